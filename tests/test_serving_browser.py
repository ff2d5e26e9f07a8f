"""Hostile uploads in a real browser, behind a real nginx, on the origin of the application."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from chromium import Page, chromium, need_chromium
from test_nginx import Site, site

SCRIPT = b"document.title = 'taken over'; window.takenOver = true;"
PAGE = (
    b"<!doctype html><title>a page</title><p>text</p><script>"
    + SCRIPT
    + b"</script><img src=x onerror='"
    + SCRIPT
    + b"'>"
)
DRAWING = (
    b"<svg xmlns='http://www.w3.org/2000/svg' width='10' height='10'><title>a drawing</title>"
    b"<rect width='10' height='10'/><script>" + SCRIPT + b"</script></svg>"
)


@pytest.fixture(scope="module")
def served() -> Iterator[Site]:
    """A site whose operator has allowed inline what should not be."""
    need_chromium()
    with site(FSWORKER_SERVE_INLINE="text/html, image/svg+xml") as made:
        yield made


@pytest.fixture(scope="module")
def page(served: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("profile")) as made:
        yield made


def url(served: Site, content: bytes, kind: str, **more: str) -> str:
    query = "".join(f"&{name}={quote(value)}" for name, value in more.items())
    return f"{served.url}/file/{served.store.put_bytes(content)}?media_type={quote(kind)}{query}"


@pytest.mark.parametrize(("content", "kind"), [(PAGE, "text/html"), (DRAWING, "image/svg+xml")])
def test_what_is_shown_inline_runs_no_script(served: Site, page: Page, content: bytes, kind: str) -> None:
    page.go(url(served, content, kind))
    assert page.run("document.title") in ("a page", "a drawing"), "the page is not shown, so this proves nothing"
    assert page.run("window.takenOver === undefined && self.origin === 'null'")


def test_a_picture_can_be_looked_at_and_is_no_page(served: Site, page: Page) -> None:
    page.go(url(served, PAGE, "image/jpeg"))
    assert page.run("document.contentType !== 'text/html' && window.takenOver === undefined")


def test_an_attachment_is_not_opened(served: Site, page: Page, tmp_path: Path) -> None:
    page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.go("about:blank")
    page.call("Page.navigate", url=url(served, PAGE, "application/xhtml+xml", filename="page.html"))
    page.wait_for("true")
    assert page.run("location.href") == "about:blank"


def test_no_page_of_the_application_can_load_an_upload_as_script_or_style(served: Site, page: Page) -> None:
    page.go(f"{served.url}/nothing-there")  # a page of the same origin
    load = """
        new Promise((done) => {
            const element = document.createElement(%r);
            element.onload = () => done("loaded");
            element.onerror = () => done("refused");
            element.rel = "stylesheet";
            element.src = element.href = %r;
            document.head.append(element);
        })
    """
    assert page.run(load % ("script", url(served, SCRIPT, "text/javascript"))) == "refused"
    assert page.run(load % ("link", url(served, b"* { color: red }", "text/css"))) == "refused"
    assert page.run("window.takenOver === undefined")
