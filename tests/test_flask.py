"""Flask: uploads stream into the spool, jobs are reported, files are served."""

from __future__ import annotations

import hashlib
import importlib.resources
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask import Flask, request
from processes import eventually
from quickstarts import assert_short, quick_start
from stacks import RunningStack
from webservers import free_port, program

from fsworker.contrib.flask import FSWorker
from fsworker.spool.upload import Upload

DOCS = Path(__file__).parents[1] / "docs"
PICTURE = importlib.resources.files("fsworker").joinpath("demo_photos", "people.jpg").read_bytes()


@pytest.fixture
def files(stack: RunningStack) -> FSWorker:
    return FSWorker(None, "shop", max_bytes=100_000, settings=stack.client().settings)


@pytest.fixture
def app(files: FSWorker) -> Iterator[Flask]:
    made = Flask(__name__)
    files.init_app(made)
    made.add_url_rule("/jobs/<job_id>", view_func=files.status)

    @made.post("/form")
    def form() -> Any:
        file = request.files["photo"]
        assert isinstance(file.stream, Upload)
        return {"name": file.filename, "job": files.ingest(file).id if "keep" in request.form else None}

    @made.put("/raw")
    def raw() -> Any:
        with files.receive() as upload:
            return {"job": files.ingest(upload).id}

    @made.route("/file/<path:hash>", methods=["GET", "HEAD"])
    def file(hash: str) -> Any:
        return files.serve(hash, filename="a.txt", media_type="text/plain")

    yield made
    files.client.close()


def spooled(stack: RunningStack) -> list[str]:
    return [n for n in os.listdir(stack.spool()) if not n.endswith(".done") and n != ".store.json"]


def test_the_quick_start_runs(stack: RunningStack, tmp_path: Path) -> None:
    assert_short("flask")
    (tmp_path / "app.py").write_text(quick_start("flask"))
    port = free_port()
    environment = {"FSWORKER_STORE": str(stack.store_path), "FSWORKER_REDIS_URL": stack.redis_url}
    with (
        program(port, "-m", "flask", "--app", "app", "run", "--port", port, cwd=tmp_path, **environment),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as browser,
    ):
        sent = browser.post("/upload", files={"photo": ("people.jpg", PICTURE)})
        assert sent.status_code == 202
        job = f"/jobs/{sent.json()['job']}"
        assert eventually(lambda: browser.get(job).json()["state"] == "done", timeout_s=30)
        result = browser.get(job).json()["result"]
        assert result["hash"] == hashlib.sha1(PICTURE).hexdigest()
        shown = browser.get(f"/photo/{result['thumbnails']['small']['hash']}")
        assert (shown.status_code, shown.headers["Content-Type"]) == (200, "image/jpeg")
        assert len(shown.content) == result["thumbnails"]["small"]["size"]


def test_a_form_goes_straight_to_the_spool(app: Flask, files: FSWorker, stack: RunningStack) -> None:
    with app.test_client() as browser:
        reply = browser.post("/form", data={"photo": (io.BytesIO(b"by form"), "x.txt"), "keep": "1"})
        assert files.client.job(reply.json["job"]).get(timeout=30).hash == hashlib.sha1(b"by form").hexdigest()
    assert eventually(lambda: spooled(stack) == [])


def test_what_a_view_does_not_ingest_is_gone_after_the_request(app: Flask, stack: RunningStack) -> None:
    with app.test_client() as browser:
        reply = browser.post("/form", data={"photo": (io.BytesIO(b"not wanted"), "x.txt")})
        assert reply.json == {"name": "x.txt", "job": None}
    assert eventually(lambda: spooled(stack) == [])


def test_too_many_bytes_are_a_413_and_leave_nothing(app: Flask, stack: RunningStack) -> None:
    with app.test_client() as browser:
        assert browser.post("/form", data={"photo": (io.BytesIO(bytes(100_001)), "x"), "keep": "1"}).status_code == 413
        assert browser.put("/raw", data=bytes(100_001)).status_code == 413
    assert eventually(lambda: spooled(stack) == [])


def test_a_raw_body_is_an_upload(app: Flask, files: FSWorker) -> None:
    with app.test_client() as browser:
        job_id = browser.put("/raw", data=b"by put").json["job"]
        assert files.client.job(job_id).get(timeout=30).hash == hashlib.sha1(b"by put").hexdigest()
        report = browser.get(f"/jobs/{job_id}")
        assert (report.json["state"], report.json["progress"]) == ("done", 1.0)
        assert report.headers["Cache-Control"] == "no-store"
        assert browser.get("/jobs/blog.0b0ae5a4-6a3c-4f0b-9f43-0d7a2b1c9d10").status_code == 404


def test_files_are_served(app: Flask, files: FSWorker) -> None:
    name = files.client.ingest(b"0123456789").get(timeout=30).hash
    with app.test_client() as browser:
        whole = browser.get(f"/file/{name}")
        assert (whole.status_code, whole.data) == (200, b"0123456789")
        assert whole.headers["Content-Disposition"] == 'inline; filename="a.txt"'
        part = browser.get(f"/file/{name}", headers={"Range": "bytes=2-4"})
        assert (part.status_code, part.data, part.headers["Content-Range"]) == (206, b"234", "bytes 2-4/10")
        assert browser.get(f"/file/{name}", headers={"If-None-Match": whole.headers["ETag"]}).status_code == 304
        assert browser.get(f"/file/{name}", headers={"Range": "bytes=10-"}).status_code == 416
        head = browser.head(f"/file/{name}")
        assert (head.status_code, head.headers["Content-Length"], head.data) == (200, "10", b"")
        assert browser.get(f"/file/{'0' * 40}").status_code == 404
        assert browser.get("/file/../../FileStruct.json").status_code == 404


def test_the_short_gallery_of_the_docs_runs(stack: RunningStack, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "frameworks.md").read_text(), re.S)
    (code,) = [block for block in blocks if '"gallery"' in block]
    (tmp_path / "app.py").write_text(code.replace('"gallery"', '"shop"'))
    port = free_port()
    environment = {"FSWORKER_STORE": str(stack.store_path), "FSWORKER_REDIS_URL": stack.redis_url}
    with (
        program(port, "-m", "flask", "--app", "app", "run", "--port", port, cwd=tmp_path, **environment),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as browser,
    ):
        job = browser.put("/photos", content=PICTURE).json()["job"]
        assert eventually(lambda: browser.get("/photos").json()[job], timeout_s=30)
        shown = browser.get(f"/photos/{job}", params={"type": "image/jpeg"})
        assert (shown.status_code, shown.content) == (200, PICTURE)
        assert browser.delete(f"/photos/{job}").status_code == 204
        assert browser.get(f"/photos/{job}").status_code == 404
