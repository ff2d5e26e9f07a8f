"""FastAPI and Starlette: the same, without blocking the event loop."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.resources
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, UploadFile
from processes import eventually
from quickstarts import assert_short, quick_start
from stacks import RunningStack
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from webservers import free_port, listens, program

from fsworker.contrib.starlette import Files
from fsworker.errors import JobTimeoutError, UploadRejectedError
from fsworker.model import new_job_id
from fsworker.spool.upload import Upload

PICTURE = importlib.resources.files("fsworker").joinpath("demo_photos", "people.jpg").read_bytes()


@pytest.fixture
def files(stack: RunningStack) -> Files:
    return Files("shop", max_bytes=1_000_000, settings=stack.client().settings)


@contextmanager
def serving(app: Any) -> Iterator[httpx.Client]:
    """An application in a real server, and who asks it."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert eventually(lambda: listens(port))
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def browser(files: Files) -> Iterator[httpx.Client]:
    async def form(request: Request) -> Response:
        async with files.form(request) as given:
            photo = given["photo"]
            assert not isinstance(photo, str)
            kept = (await files.ingest(photo)).id if "keep" in given else None
            assert isinstance(photo.file, Upload)
            return JSONResponse({"name": photo.filename, "size": photo.size, "job": kept})

    async def raw(request: Request) -> Response:
        with await files.receive(request) as upload:
            return JSONResponse({"job": (await files.ingest(upload)).id})

    async def file(request: Request) -> Response:
        return await files.serve(request, request.path_params["hash"], filename="a.txt", media_type="text/plain")

    routes = [
        Route("/form", form, methods=["POST"]),
        Route("/raw", raw, methods=["PUT"]),
        Route("/file/{hash:path}", file),
        Route("/jobs/{job_id}", files.status),
    ]
    with serving(Starlette(routes=routes)) as made:
        yield made
    files.client.close()


def spooled(stack: RunningStack) -> list[str]:
    return [n for n in os.listdir(stack.spool()) if not n.endswith(".done") and n != ".store.json"]


def test_the_quick_start_runs(stack: RunningStack, tmp_path: Path) -> None:
    assert_short("fastapi")
    (tmp_path / "app.py").write_text(quick_start("fastapi"))
    port = free_port()
    environment = {"FSWORKER_STORE": str(stack.store_path), "FSWORKER_REDIS_URL": stack.redis_url}
    with (
        program(port, "-m", "uvicorn", "app:app", "--port", port, cwd=tmp_path, **environment),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        sent = client.post("/upload", files={"photo": ("people.jpg", PICTURE)})
        assert sent.status_code == 202
        job = f"/jobs/{sent.json()['job']}"
        assert eventually(lambda: client.get(job).json()["state"] == "done", timeout_s=30)
        result = client.get(job).json()["result"]
        assert result["hash"] == hashlib.sha1(PICTURE).hexdigest()
        shown = client.get(f"/photo/{result['thumbnails']['small']['hash']}")
        assert (shown.status_code, shown.headers["Content-Type"]) == (200, "image/jpeg")
        assert len(shown.content) == result["thumbnails"]["small"]["size"]


def test_a_form_goes_straight_to_the_spool(browser: httpx.Client, files: Files, stack: RunningStack) -> None:
    content = os.urandom(900_000)
    reply = browser.post("/form", data={"keep": "1"}, files={"photo": ("x.bin", content)}).json()
    assert (reply["name"], reply["size"]) == ("x.bin", len(content))
    assert files.client.job(reply["job"]).get(timeout=30).hash == hashlib.sha1(content).hexdigest()
    assert eventually(lambda: spooled(stack) == [])


def test_an_empty_file_is_a_file(browser: httpx.Client, files: Files) -> None:
    reply = browser.post("/form", data={"keep": "1"}, files={"photo": ("empty", b"")}).json()
    assert files.client.job(reply["job"]).get(timeout=30).size == 0


def test_what_is_not_ingested_is_gone_after_the_request(browser: httpx.Client, stack: RunningStack) -> None:
    assert browser.post("/form", files={"photo": ("x.txt", b"not wanted")}).json()["job"] is None
    assert spooled(stack) == []


def test_too_many_bytes_are_a_413_and_leave_nothing(browser: httpx.Client, stack: RunningStack) -> None:
    assert browser.post("/form", files={"photo": ("x", bytes(1_000_001))}).status_code == 413
    assert browser.put("/raw", content=bytes(1_000_001)).status_code == 413
    assert spooled(stack) == []


@pytest.mark.parametrize(
    "body",
    [b"nonsense", b"--b\r\nContent-Disposition: form-data; name=photo; filename=x\r\n\r\ncut off", b"", b"--b\r\n\r\n"],
)
def test_a_broken_form_is_a_400_and_leaves_nothing(browser: httpx.Client, stack: RunningStack, body: bytes) -> None:
    reply = browser.post("/form", content=body, headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert reply.status_code == 400, reply.text
    assert browser.post("/form", json={}).status_code == 400
    assert spooled(stack) == []


def test_a_raw_body_is_an_upload(browser: httpx.Client, files: Files) -> None:
    job_id = browser.put("/raw", content=b"by put").json()["job"]
    assert files.client.job(job_id).get(timeout=30).hash == hashlib.sha1(b"by put").hexdigest()
    assert browser.get(f"/jobs/{job_id}").json()["state"] == "done"
    assert browser.get("/jobs/blog.0b0ae5a4-6a3c-4f0b-9f43-0d7a2b1c9d10").status_code == 404


def test_files_are_served(browser: httpx.Client, files: Files) -> None:
    name = files.client.ingest(b"0123456789").get(timeout=30).hash
    whole = browser.get(f"/file/{name}")
    assert (whole.status_code, whole.content) == (200, b"0123456789")
    assert whole.headers["Content-Disposition"] == 'inline; filename="a.txt"'
    part = browser.get(f"/file/{name}", headers={"Range": "bytes=2-4"})
    assert (part.status_code, part.content, part.headers["Content-Range"]) == (206, b"234", "bytes 2-4/10")
    assert browser.get(f"/file/{name}", headers={"If-None-Match": whole.headers["ETag"]}).status_code == 304
    assert browser.get(f"/file/{name}", headers={"Range": "bytes=10-"}).status_code == 416
    head = browser.head(f"/file/{name}")
    assert (head.status_code, head.headers["Content-Length"], head.content) == (200, "10", b"")
    assert browser.get(f"/file/{'0' * 40}").status_code == 404
    assert browser.get("/file/..%2f..%2fFileStruct.json").status_code == 404


def test_an_upload_file_of_fastapi_can_be_ingested(files: Files) -> None:
    app = FastAPI()

    @app.post("/")
    async def upload(photo: UploadFile) -> dict[str, Any]:
        job = await files.ingest(photo)
        return {"hash": (await files.result(job)).hash}

    app.post("/")(upload)
    with serving(app) as browser:
        reply = browser.post("/", files={"photo": ("x", b"through FastAPI's own parameter")})
    assert reply.json()["hash"] == hashlib.sha1(b"through FastAPI's own parameter").hexdigest()


def test_waiting_for_many_results_holds_up_nobody(files: Files) -> None:
    """More waiters than there are threads, and the loop turns all the time."""

    async def main() -> int:
        turns, ended = 0, asyncio.Event()

        async def turn() -> None:
            nonlocal turns
            while not ended.is_set():
                turns += 1
                await asyncio.sleep(0.01)

        turning = asyncio.create_task(turn())
        missing = [files.result(new_job_id("shop"), timeout=1.0) for _ in range(100)]
        answers = await asyncio.gather(*missing, return_exceptions=True)
        assert all(isinstance(answer, JobTimeoutError) for answer in answers)
        job = await files.ingest(b"waited for")
        assert (await files.result(job.id)).hash == hashlib.sha1(b"waited for").hexdigest()
        with pytest.raises(UploadRejectedError):
            await files.result(await files.ingest(b"refused", media_types=["image/*"]))
        ended.set()
        await turning
        return turns

    assert asyncio.run(main()) > 10
    files.client.close()
