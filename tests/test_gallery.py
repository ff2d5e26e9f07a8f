"""The gallery, run by its one command, in a real browser: with nginx before it, and alone."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from chromium import Page, chromium, need_chromium
from PIL import Image
from processes import ENVIRONMENT, eventually
from webservers import free_port, need_nginx

from fsworker.store.facade import Store

RUN = Path(__file__).parents[1] / "examples" / "gallery" / "run.py"
RED, BLUE = (200, 30, 30), (30, 30, 200)


@dataclass
class Gallery:
    """A running gallery."""

    directory: Path
    url: str

    def photos(self) -> list[dict[str, Any]]:
        """What it shows, newest first."""
        found: list[dict[str, Any]] = httpx.get(f"{self.url}/photos", timeout=30).json()
        return found

    def send(self, name: str, content: bytes) -> dict[str, Any]:
        """Upload, and wait until it is known what came of it."""
        number = httpx.put(f"{self.url}/photos", params={"name": name}, content=content, timeout=30).json()["id"]

        def found() -> dict[str, Any]:
            return next(photo for photo in self.photos() if photo["id"] == number)

        assert eventually(lambda: found()["state"] != "waiting", timeout_s=30)
        return found()

    def row(self, photo_id: int) -> dict[str, Any]:
        """What its database says."""
        with closing(sqlite3.connect(self.directory / "gallery.sqlite3")) as database:
            database.row_factory = sqlite3.Row
            return dict(database.execute("SELECT * FROM photo WHERE id = ?", (photo_id,)).fetchone())

    def collect(self) -> None:
        """A collection of its store."""
        environment = {**ENVIRONMENT, "FSWORKER_STATE_DIR": str(self.directory / "state")}
        command = [sys.executable, "-m", "fsworker", "gc", "--store", str(self.directory / "store")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@contextmanager
def running(directory: Path, *options: str) -> Iterator[Gallery]:
    """The gallery by its one command."""
    port = free_port()
    clean = {name: value for name, value in ENVIRONMENT.items() if not name.startswith("FSWORKER_")}
    command = [sys.executable, str(RUN), "--directory", str(directory), "--port", str(port), "--grace", "0s", *options]
    with subprocess.Popen(command, env=clean, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            assert f"http://127.0.0.1:{port}/" in process.stdout.readline()
            yield Gallery(directory, f"http://127.0.0.1:{port}")
        finally:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=70)
            except subprocess.TimeoutExpired:  # then it must not leave them behind: each has a group of its own
                for pid in (process.pid, *map(int, children)):
                    os.killpg(pid, signal.SIGKILL)
                raise


def photograph(path: Path, orientation: int) -> Path:
    """A photograph that is 400 × 300, red above and blue below when it is turned upright, as its EXIF says."""
    upright = Image.new("RGB", (400, 300), BLUE)
    upright.paste(RED, (0, 0, 400, 150))
    turned = {
        1: upright,
        3: upright.rotate(180),
        6: upright.rotate(90, expand=True),
        8: upright.rotate(-90, expand=True),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned[orientation].save(path, exif=exif, quality=90)
    return path


IS_UPRIGHT = """
(async () => {
    const image = document.querySelector('[data-id="%d"] img');
    await image.decode();
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    const at = (x, y) => [...context.getImageData(x * canvas.width, y * canvas.height, 1, 1).data];
    return {size: [canvas.width, canvas.height], top: at(0.5, 0.1), bottom: at(0.5, 0.9)};
})()
"""


def look(page: Page, photo_id: int) -> tuple[list[int], str, str]:
    """A thumbnail as the browser shows it: its size, and the colours above and below."""
    seen = page.run(IS_UPRIGHT % photo_id)
    names = ["red" if pixel[0] > pixel[2] else "blue" for pixel in (seen["top"], seen["bottom"])]
    return seen["size"], names[0], names[1]


def test_three_photographs_in_a_browser_behind_nginx(tmp_path: Path) -> None:
    need_chromium()
    need_nginx()
    files = [photograph(tmp_path / f"turned-{number}.jpg", number) for number in (3, 6, 8)]
    with running(tmp_path / "data", "--nginx") as gallery, chromium(tmp_path / "profile") as page:
        page.go(f"{gallery.url}/")
        page.drop_files("#drop", files[:2])
        page.wait_for("document.querySelectorAll('#photos img').length === 2")
        page.choose_files("#choose", files[2:])
        page.wait_for("document.querySelectorAll('#photos img').length === 3")
        ids = {photo["name"]: photo["id"] for photo in gallery.photos()}
        for file in files:
            assert look(page, ids[file.name]) == ([320, 240], "red", "blue"), f"{file.name} is not upright"
        page.wait_for("document.querySelector('#uploads').children.length === 0")

        page.drop_files("#drop", [files[1]])
        page.wait_for("document.querySelector('#uploads')?.textContent.includes('is here already')")
        assert page.run("document.querySelectorAll('#photos img').length") == 3
        page.wait_for(f"document.querySelector('[data-id=\"{ids[files[1].name]}\"]').classList.contains('again')")

        gone = gallery.row(ids[files[0].name])
        page.click(f'[data-id="{gone["id"]}"] button')
        page.wait_for("document.querySelectorAll('#photos img').length === 2")
        gallery.collect()
        with Store(gallery.directory / "store") as store:
            trashed = {path.name for path in store.root.glob("Trash/*/*")}
            assert gone["hash"] in trashed
            assert gone["hash"] not in store
            for file in files[1:]:
                row = gallery.row(ids[file.name])
                assert row["hash"] in store
                assert row["small"] in store
        page.go(f"{gallery.url}/")  # anew, and nothing from the browser's cache
        page.call("Network.setCacheDisabled", cacheDisabled=True)
        page.wait_for("document.querySelectorAll('#photos img').length === 2")
        for file in files[1:]:
            assert look(page, ids[file.name]) == ([320, 240], "red", "blue")
            reply = httpx.get(f"{gallery.url}/photos/{ids[file.name]}/original")
            assert hashlib.sha1(reply.content).hexdigest() == gallery.row(ids[file.name])["hash"]
            assert reply.headers["ETag"] == f'"{gallery.row(ids[file.name])["hash"]}"'
        assert page.problems == []


def test_alone(tmp_path: Path) -> None:
    """Without nginx the application sends the files."""
    content = photograph(tmp_path / "a.jpg", 6).read_bytes()
    with running(tmp_path / "data") as gallery:
        photo = gallery.send("../Füße.jpg", content)
        assert (photo["state"], photo["name"]) == ("ready", "Füße.jpg")
        assert (photo["width"], photo["height"]) == (400, 300)
        again = gallery.send("other name.jpg", content)
        assert (again["state"], again["same_as"]) == ("duplicate", photo["id"])
        text = gallery.send("page.html", b"<script>alert(1)</script>")
        assert text["state"] == "failed"
        original = f"{gallery.url}/photos/{photo['id']}/original"
        assert httpx.get(original).content == content
        part = httpx.get(original, headers={"Range": "bytes=0-9"})
        assert (part.status_code, part.content) == (206, content[:10])
        assert [photo["state"] for photo in gallery.photos()] == ["failed", "duplicate", "ready"]


def test_the_page_says_where_its_parts_are() -> None:
    page = RUN.with_name("index.html").read_text()
    parts = [name for name in re.findall(r'(?:src|href)="([^"]+)"', page) if not name.startswith("data:")]
    assert parts
    for name in parts:
        assert RUN.with_name(name).exists()
