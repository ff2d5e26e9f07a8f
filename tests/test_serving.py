"""What a browser is told of a stored file: headers, 304, ranges."""

from __future__ import annotations

import re
from email.message import Message
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsworker import serving
from fsworker.client import Client
from fsworker.config import load_settings
from fsworker.errors import ConfigError, InvalidHashError
from fsworker.model import Hash
from fsworker.store.facade import Store

NAME = Hash("da39a3ee5e6b4b0d3255bfef95601890afd80709")
OTHER = "f" * 40


@pytest.fixture
def files(store: Store) -> Client:
    return client(store)


def client(store: Store, **settings: object) -> Client:
    options = {"store": store.root, "redis_url": "redis://localhost:1/0", **settings}
    return Client("shop", settings=load_settings(environ={}, **options))


def test_the_headers_of_a_photograph(files: Client) -> None:
    assert files.response_headers(NAME, filename="holiday.jpg", media_type="image/jpeg") == {
        "X-Accel-Redirect": f"/FileStruct/Data/da/39/{NAME}",
        "ETag": f'"{NAME}"',
        "Cache-Control": "private, no-cache",
        "Content-Type": "image/jpeg",
        "Content-Disposition": 'inline; filename="holiday.jpg"',
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; img-src 'self'; media-src 'self'; style-src 'unsafe-inline'; sandbox",
    }


def test_what_is_no_hash_never_becomes_a_path(files: Client) -> None:
    for text in ("", "../../etc/passwd", NAME.upper(), f"{NAME}\n", f"{NAME}/x"):
        with pytest.raises(InvalidHashError):
            files.response_headers(text)


def test_immutable_where_asked(files: Client) -> None:
    assert files.response_headers(NAME, immutable=True)["Cache-Control"] == "private, max-age=31536000, immutable"
    assert files.response_headers(NAME, immutable=True, public=True)["Cache-Control"].startswith("public, ")


MARKUP = (
    "text/html",
    "TEXT/HTML; charset=utf-8",
    "application/xhtml+xml",
    "image/svg+xml",
    "text/xml",
    "application/xml",
)
OTHER_DANGERS = ("application/pdf", "text/javascript", "application/x-shockwave-flash", "multipart/x-mixed-replace")
UNKNOWN_TYPES = ("x/unheard-of", "application/octet-stream", "message/rfc822", "no type", "", "image/png\r\nX: y")


@pytest.mark.parametrize("kind", [*MARKUP, *OTHER_DANGERS, *UNKNOWN_TYPES])
def test_what_browsers_may_execute_is_an_attachment_in_a_sandbox(files: Client, kind: str) -> None:
    headers = files.response_headers(NAME, filename="x", media_type=kind, disposition="inline")
    assert headers["Content-Disposition"].startswith("attachment; ")
    assert headers["Content-Security-Policy"].endswith("; sandbox")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "\n" not in headers["Content-Type"]


@pytest.mark.parametrize("kind", ["text/javascript", "application/x-javascript", "text/css", "application/wasm"])
def test_no_page_can_load_an_upload_as_its_own_code(files: Client, kind: str) -> None:
    assert files.response_headers(NAME, media_type=kind)["Content-Type"] == "application/octet-stream"


@pytest.mark.parametrize("kind", ["application/pdf", "image/svg+xml"])
def test_a_type_can_be_allowed_inline_and_stays_in_its_sandbox(store: Store, kind: str) -> None:
    headers = client(store, serve_inline="application/pdf, image/svg+xml").response_headers(NAME, media_type=kind)
    assert headers["Content-Disposition"] == "inline"
    assert headers["Content-Security-Policy"] == "default-src 'none'; style-src 'unsafe-inline'; sandbox"


def test_without_a_media_type_only_a_harmless_suffix_says_something(files: Client) -> None:
    assert files.response_headers(NAME, filename="A.JPG")["Content-Type"] == "image/jpeg"
    for name in ("page.html", "drawing.svg", "script.js", "none", "x.jpg/y"):
        headers = files.response_headers(NAME, filename=name)
        assert headers["Content-Type"] == "application/octet-stream"
        assert headers["Content-Disposition"].startswith("attachment")


def test_plain_text_says_how_it_is_encoded(files: Client) -> None:
    assert files.response_headers(NAME, media_type="text/plain")["Content-Type"] == "text/plain; charset=utf-8"


def test_apache_and_lighttpd_get_a_path(store: Store, tmp_path: Path) -> None:
    headers = client(store, serve_with="sendfile").response_headers(NAME)
    assert headers["X-Sendfile"] == f"{store.root}/Data/da/39/{NAME}"
    assert "X-Accel-Redirect" not in headers
    blind = load_settings(
        environ={}, spool=store.root / "Spool" / "shop", redis_url="redis://localhost:1/0", serve_with="sendfile"
    )
    with pytest.raises(ConfigError, match="FSWORKER_STORE"):
        Client("shop", settings=blind).response_headers(NAME)


def test_a_client_that_sees_only_its_spool_can_send_visitors_to_nginx(store: Store) -> None:
    blind = load_settings(
        environ={}, spool=store.root / "Spool" / "shop", redis_url="redis://x:1/0", serve_location="/files"
    )
    assert Client("shop", settings=blind).response_headers(NAME)["X-Accel-Redirect"] == f"/files/da/39/{NAME}"


def test_a_disposition_is_inline_or_attachment(files: Client) -> None:
    assert files.response_headers(NAME, media_type="image/png", disposition="attachment")["Content-Disposition"] == (
        "attachment"
    )
    with pytest.raises(ConfigError, match="inline"):
        files.response_headers(NAME, disposition="form-data")


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("plain name.txt", 'filename="plain name.txt"'),
        ("Füße.pdf", "filename=\"Fue.pdf\"; filename*=UTF-8''F%C3%BC%C3%9Fe.pdf"),
        ("写真.jpg", "filename=\"file.jpg\"; filename*=UTF-8''%E5%86%99%E7%9C%9F.jpg"),
        ('a"b\\c.txt', 'filename="c.txt"'),
        ('a"b.txt', "filename=\"a_b.txt\"; filename*=UTF-8''a%22b.txt"),
        ("100%41.txt", "filename=\"100_41.txt\"; filename*=UTF-8''100%2541.txt"),
        ("C:\\Users\\me\\photo.jpg", 'filename="photo.jpg"'),
        ("../../etc/passwd", 'filename="passwd"'),
        ("a\r\nSet-Cookie: x=y", "filename=\"aSet-Cookie_ x=y\"; filename*=UTF-8''aSet-Cookie%3A%20x%3Dy"),
        ("photo\u202egpj.exe", 'filename="photogpj.exe"'),
        ("\ud800.txt", 'filename="txt"'),
        ("...", None),
        ("", None),
    ],
)
def test_file_names(name: str, header: str | None) -> None:
    expected = "inline" if header is None else f"inline; {header}"
    assert serving.content_disposition("inline", name) == expected


@given(st.text(st.characters()))
def test_no_file_name_breaks_the_header(name: str) -> None:
    header = serving.content_disposition("attachment", name)
    assert re.fullmatch(
        r"attachment(; filename=\"[ !#-\[\]-~]*\"(; filename\*=UTF-8''([A-Za-z0-9_.~-]|%[0-9A-F]{2})+)?)?", header
    )
    assert len(header) < 2100
    message = Message()
    message["Content-Disposition"] = header
    parsed = message.get_filename()
    assert parsed is None or ("/" not in parsed and "\\" not in parsed and parsed not in (".", ".."))


def test_a_long_name_keeps_its_suffix() -> None:
    name = serving.clean_filename("x" * 5000 + ".jpeg")
    assert len(name) == 150
    assert name.endswith("x.jpeg")


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, False),
        (f'"{NAME}"', True),
        (f'W/"{NAME}"', True),
        (f'"{OTHER}", "{NAME}"', True),
        (f'"{OTHER}"', False),
        ("*", True),
        (NAME, False),
        (f'"x{NAME}"', False),
        ("", False),
    ],
)
def test_if_none_match(header: str | None, expected: bool) -> None:
    assert serving.not_modified(header, NAME) is expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("bytes=0-0", (0, 1)),
        ("bytes=10-", (10, 100)),
        ("bytes=-10", (90, 100)),
        ("bytes=-1000", (0, 100)),
        ("bytes=90-1000", (90, 100)),
        ("Bytes = 1 - 2", (1, 3)),
        ("bytes=5-4", None),
        ("bytes=-", None),
        ("bytes=0-1,5-6", None),
        ("lines=0-1", None),
        ("bytes=a-b", None),
    ],
)
def test_ranges(header: str | None, expected: tuple[int, int] | None) -> None:
    part = serving.requested_part(header, None, NAME, 100)
    assert (None if part is None else (part.start, part.stop)) == expected


@pytest.mark.parametrize(("header", "size"), [("bytes=100-", 100), ("bytes=-0", 100), ("bytes=0-", 0), ("bytes=-1", 0)])
def test_a_range_beyond_the_end(header: str, size: int) -> None:
    with pytest.raises(serving.UnsatisfiableRangeError):
        serving.requested_part(header, None, NAME, size)


def test_if_range_is_a_strong_tag() -> None:
    assert serving.requested_part("bytes=0-1", f'"{NAME}"', NAME, 100) is not None
    for other in (f'W/"{NAME}"', f'"{OTHER}"', "Wed, 21 Oct 2026 07:28:00 GMT"):
        assert serving.requested_part("bytes=0-1", other, NAME, 100) is None
