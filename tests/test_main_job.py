"""The main job, end to end: upload, task, worker, hashes; with the real worker and a real Redis."""

from __future__ import annotations

import hashlib
import io
import json
import os
import uuid
from pathlib import Path

import pytest
from celery import Celery
from PIL import Image
from processes import eventually
from stacks import RunningStack

from fsworker.errors import (
    ImageError,
    InvalidHashError,
    JobTimeoutError,
    UploadNotFoundError,
    UploadRejectedError,
)
from fsworker.model import EMPTY_HASH, ClaimResult, IngestResult


def sha1(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


def photograph(width: int = 640, height: int = 480, colour: str = "teal") -> bytes:
    """A JPEG that is unlike any other."""
    stream = io.BytesIO()
    picture = Image.effect_noise((width, height), 40).convert("RGB")
    picture.paste(colour, (0, 0, width // 2, height // 2))
    picture.save(stream, "JPEG")
    return stream.getvalue()


def files_of(stack: RunningStack, app: str = "shop") -> list[str]:
    """What is in a spool directory apart from outcomes and the store's note."""
    return [n for n in os.listdir(stack.spool(app)) if not n.endswith(".done") and n != ".store.json"]


def test_an_upload_becomes_a_hash_and_thumbnails(stack: RunningStack) -> None:
    data = photograph()
    job = stack.client().ingest(data, thumbnails={"small": "100x100", "hero": {"geometry": "320x", "format": "webp"}})
    result = job.get(timeout=30)
    assert isinstance(result, IngestResult)
    assert (result.hash, result.size, result.media_type) == (sha1(data), len(data), "image/jpeg")
    assert (result.width, result.height, result.duplicate) == (640, 480, False)
    small, hero = result.thumbnails["small"], result.thumbnails["hero"]
    assert (small.width, small.height, small.media_type) == (100, 75, "image/jpeg")
    assert (hero.width, hero.height, hero.media_type) == (320, 240, "image/webp")
    assert job.state == "done"
    assert job.progress == 1.0
    with stack.store() as store:
        assert result.hashes == [result.hash, small.hash, hero.hash]
        for name in result.hashes:
            with store.open(name) as stream:
                assert sha1(stream.read()) == name
        with Image.open(store.path(small.hash)) as picture:
            assert picture.size == (100, 75)
    assert eventually(lambda: files_of(stack) == [])


@pytest.mark.parametrize("source", ["path", "str", "stream", "bytes", "bytearray", "memoryview"])
def test_sources(source: str, stack: RunningStack, tmp_path: Path) -> None:
    data = os.urandom(3000)
    path = tmp_path / "upload"
    path.write_bytes(data)
    given = {
        "path": path,
        "str": str(path),
        "stream": io.BytesIO(data),
        "bytes": data,
        "bytearray": bytearray(data),
        "memoryview": memoryview(data),
    }[source]
    assert stack.client().ingest(given).get().hash == sha1(data)
    assert path.read_bytes() == data


def test_a_stream_is_read_from_where_it_stands_and_left_open(stack: RunningStack) -> None:
    stream = io.BytesIO(b"header" + b"content")
    stream.seek(6)
    assert stack.client().ingest(stream).get().hash == sha1(b"content")
    assert not stream.closed


def test_the_empty_file_is_valid(stack: RunningStack) -> None:
    result = stack.client().ingest(b"").get()
    assert (result.hash, result.size) == (EMPTY_HASH, 0)


def test_the_second_upload_of_the_same_bytes_is_a_duplicate(stack: RunningStack) -> None:
    data, client = os.urandom(100), stack.client()
    assert client.ingest(data).get().duplicate is False
    assert stack.client("blog").ingest(data).get().duplicate is True


def test_many_at_once_keep_their_order(stack: RunningStack) -> None:
    contents = [os.urandom(50 + n) for n in range(120)]
    jobs = stack.client().ingest_many(iter(contents))
    assert [job.get().hash for job in jobs] == [sha1(data) for data in contents]
    assert len({job.id for job in jobs}) == 120
    assert eventually(lambda: files_of(stack) == [])


def test_a_bad_upload_among_many_fails_alone(stack: RunningStack) -> None:
    picture = photograph(300, 200)
    jobs = stack.client().ingest_many(
        [picture, b"x" * 5000, photograph(301, 200)], media_types=["image/*"], thumbnails={"t": "50x50"}
    )
    assert jobs[0].get().thumbnails["t"].width == 50
    with pytest.raises(UploadRejectedError, match="text/plain"):
        jobs[1].get()
    assert jobs[2].get().thumbnails["t"].width == 50


def test_thumbnails_of_a_stored_file(stack: RunningStack) -> None:
    client = stack.client()
    name = client.ingest(photograph(500, 250)).get().hash
    one = client.thumbnail(name, "100x100").get()
    assert (one.thumbnail.width, one.thumbnail.height) == (100, 50)
    several = client.thumbnail(name, {"a": "20x20", "b": {"geometry": "10x", "format": "png"}}).get()
    assert {n: t.media_type for n, t in several.thumbnails.items()} == {"a": "image/jpeg", "b": "image/png"}


def test_a_thumbnail_of_what_is_no_picture_fails_with_an_image_error(stack: RunningStack) -> None:
    client = stack.client()
    name = client.ingest(b"just text").get().hash
    job = client.thumbnail(name, "100x100")
    with pytest.raises(ImageError, match="no thumbnail"):
        job.get()
    assert job.state == "failed"


def test_a_thumbnail_of_what_is_not_stored_fails(stack: RunningStack) -> None:
    with pytest.raises(UploadNotFoundError, match="not stored"):
        stack.client().thumbnail("0" * 40, "100x100").get()


def test_a_broken_picture_is_stored_and_its_thumbnail_fails_with_the_reason(stack: RunningStack) -> None:
    data = photograph()[:4000]
    result = stack.client().ingest(data, thumbnails={"small": "100x100"}).get()
    assert result.hash == sha1(data)
    assert result.thumbnails == {}
    assert result.failed_thumbnails["small"]


def test_claim_says_what_is_there(stack: RunningStack) -> None:
    client = stack.client()
    name = client.ingest(b"claimed").get().hash
    result = client.claim([name, "f" * 40]).get()
    assert isinstance(result, ClaimResult)
    assert result["present"] == [name]
    assert result["missing"] == ["f" * 40]
    assert result == {"present": [name], "missing": ["f" * 40]}
    assert result != {"present": [name], "missing": []}
    assert "absent" not in result


# What an application may get wrong


def test_too_large_is_refused_and_kept(stack: RunningStack) -> None:
    job = stack.client().ingest(b"12345678901", max_bytes=10)
    with pytest.raises(UploadRejectedError, match="11 bytes, more than the 10 allowed"):
        job.get()
    assert job.state == "failed"
    kept = rejected(stack, job.id)
    (upload,) = [path for path in kept.iterdir() if path.name != "Reason.json"]
    assert upload.read_bytes() == b"12345678901"
    assert eventually(lambda: files_of(stack) == [])


def rejected(stack: RunningStack, job_id: str) -> Path:
    """The entry of ``Error/`` for a job."""
    for entry in (stack.store_path / "Error").iterdir():
        reason = json.loads((entry / "Reason.json").read_text())
        if reason["job_id"] == job_id:
            assert reason["kind"] == "rejected"
            assert reason["message"]
            return entry
    raise AssertionError(f"nothing is kept of {job_id}")


def test_media_type_is_judged_by_content(stack: RunningStack) -> None:
    with pytest.raises(UploadRejectedError, match="application/pdf by its content; allowed are image/"):
        stack.client().ingest(b"%PDF-1.7\n" + b"x" * 100, media_types=["image/*"]).get()
    assert stack.client().ingest(b"%PDF-1.7\nok", media_types=["application/pdf"]).get().media_type == "application/pdf"


def test_pixels_are_limited(stack: RunningStack) -> None:
    with pytest.raises(UploadRejectedError, match="640×480 pixels"):
        stack.client().ingest(photograph(), max_pixels=1000, thumbnails={"s": "10x10"}).get()


@pytest.mark.parametrize(
    "options",
    [
        {"thumbnails": {"small": "no size"}},
        {"thumbnails": {"../small": "10x10"}},
        {"max_bytes": -1},
        {"media_types": ["pictures"]},
        {"on_done": "not a task name"},
        {"thumbnails": {str(n): "10x10" for n in range(21)}},
    ],
)
def test_senseless_options_are_refused_before_anything_is_written(options: dict, stack: RunningStack) -> None:  # type: ignore[type-arg]
    before = sorted(os.listdir(stack.spool()))
    with pytest.raises((UploadRejectedError, ImageError)):
        stack.client().ingest(b"x", **options)
    assert sorted(os.listdir(stack.spool())) == before


def test_a_path_that_cannot_be_read_is_refused_and_leaves_nothing(stack: RunningStack, tmp_path: Path) -> None:
    before = sorted(os.listdir(stack.spool()))
    with pytest.raises(UploadRejectedError, match="No such file"):
        stack.client().ingest(tmp_path / "absent")
    with pytest.raises(UploadRejectedError, match="not a regular file"):
        stack.client().ingest(tmp_path)
    assert sorted(os.listdir(stack.spool())) == before


def test_a_stream_that_fails_midway_leaves_nothing(stack: RunningStack) -> None:
    class Broken:
        def __init__(self) -> None:
            self.pieces = [b"x" * 10]

        def read(self, size: int) -> bytes:
            if self.pieces:
                return self.pieces.pop()
            raise RuntimeError("the browser went away")

    before = sorted(os.listdir(stack.spool()))
    with pytest.raises(RuntimeError, match="went away"):
        stack.client().ingest(Broken())  # type: ignore[arg-type]
    assert sorted(os.listdir(stack.spool())) == before


def test_a_text_stream_is_refused(stack: RunningStack) -> None:
    with pytest.raises(TypeError, match="binary mode"):
        stack.client().ingest(io.StringIO("text"))  # type: ignore[arg-type]


def test_another_applications_job_is_none_of_ours(stack: RunningStack) -> None:
    with pytest.raises(UploadRejectedError, match="not a job id of application 'blog'"):
        stack.client("blog").job(f"shop.{uuid.uuid4()}")
    with pytest.raises(InvalidHashError):
        stack.client().thumbnail("abc", "10x10")


def test_an_unknown_job_is_unknown(stack: RunningStack) -> None:
    job = stack.client().job(f"shop.{uuid.uuid4()}")
    assert (job.state, job.progress) == ("unknown", 0.0)
    with pytest.raises(JobTimeoutError, match="is unknown after 0 s"):
        job.get(timeout=0)


# Plain Celery


@pytest.fixture
def producer(stack: RunningStack) -> Celery:
    """A stock Celery app, as an application without fsworker has it."""
    return Celery("stranger", broker=stack.redis_url, backend=stack.redis_url)


def send(producer: Celery, app: str = "shop", task: str = "fsworker.ingest", **kwargs: object):  # type: ignore[no-untyped-def]
    return producer.send_task(task, kwargs=kwargs, queue=f"fsworker.ingest.{app}", task_id=f"{app}.{uuid.uuid4()}")


def test_a_plain_producer_gets_the_same_result(stack: RunningStack, producer: Celery) -> None:
    data = photograph(200, 100)
    (stack.spool() / "holiday.jpg").write_bytes(data)
    answer = send(producer, upload="holiday.jpg", thumbnails={"small": "50x50"})
    assert answer.get(timeout=30) == {
        "hash": sha1(data),
        "size": len(data),
        "media_type": "image/jpeg",
        "width": 200,
        "height": 100,
        "duplicate": False,
        "thumbnails": {
            "small": {
                "hash": answer.result["thumbnails"]["small"]["hash"],
                "size": answer.result["thumbnails"]["small"]["size"],
                "media_type": "image/jpeg",
                "width": 50,
                "height": 25,
            }
        },
        "failed_thumbnails": {},
    }
    assert answer.state == "SUCCESS"
    assert stack.client().job(answer.id).get().hash == sha1(data)
    assert eventually(lambda: files_of(stack) == [])


def test_a_plain_producer_gets_a_failure_that_names_the_fix(stack: RunningStack, producer: Celery) -> None:
    answer = send(producer, upload="absent.jpg")
    with pytest.raises(Exception, match=r"upload 'absent.jpg' is not in the spool of application 'shop'") as caught:
        answer.get(timeout=30)
    assert type(caught.value).__name__ == "UploadNotFoundError"
    with pytest.raises(UploadNotFoundError):
        stack.client().job(answer.id).get()


def test_a_plain_producer_of_a_batch_gets_each_result(stack: RunningStack, producer: Celery) -> None:
    for name in ("one", "two"):
        (stack.spool() / name).write_bytes(name.encode())
    uploads = [{"upload": "one", "id": "a"}, {"upload": "two"}, {"upload": "three"}]
    answer = send(producer, task="fsworker.ingest_many", uploads=uploads)
    jobs = answer.get(timeout=30)["jobs"]
    assert [job["state"] for job in jobs] == ["done", "done", "failed"]
    assert [job["job_id"] for job in jobs] == [f"{answer.id}-a", f"{answer.id}-1", f"{answer.id}-2"]
    assert jobs[0]["result"]["hash"] == sha1(b"one")
    assert jobs[2]["error"]["type"] == "UploadNotFoundError"
    assert stack.client().job(jobs[1]["job_id"]).get().hash == sha1(b"two")


@pytest.mark.parametrize("name", ["../blog/secret", ".hidden", "a/b", "a\0b", "", "ü", "a" * 201, "a b"])
def test_a_name_outside_the_alphabet_is_refused(name: str, stack: RunningStack, producer: Celery) -> None:
    with pytest.raises(Exception, match="cannot name an upload"):
        send(producer, upload=name).get(timeout=30)


def test_a_re_used_name_is_not_eaten_by_a_redelivery(stack: RunningStack, producer: Celery) -> None:
    upload = stack.spool() / "avatar"
    upload.write_bytes(b"first")
    first = send(producer, upload="avatar")
    assert first.get(timeout=30)["hash"] == sha1(b"first")
    upload.write_bytes(b"second")
    producer.send_task("fsworker.ingest", kwargs={"upload": "avatar"}, queue="fsworker.ingest.shop", task_id=first.id)
    assert eventually(lambda: stack.client().job(first.id).get().hash == sha1(b"first"))
    assert upload.read_bytes() == b"second"


# Callbacks


def test_on_done_is_sent_to_the_applications_queue_for_success_and_failure(stack: RunningStack) -> None:
    client = stack.client("blog")
    good = client.ingest(b"good", on_done="blog.tasks.attach")
    bad = client.ingest(b"too large", max_bytes=1, on_done="blog.tasks.attach")
    good.get()
    with pytest.raises(UploadRejectedError):
        bad.get()
    received = {}
    with Celery("blog", broker=stack.redis_url).connection_for_read() as connection:
        queue = connection.SimpleQueue("fsworker.done.blog")
        while len(received) < 2:
            message = queue.get(timeout=20)
            assert message.headers["task"] == "blog.tasks.attach"
            _args, kwargs, _embed = message.payload
            received[kwargs["job_id"]] = kwargs
            message.ack()
    assert received[good.id]["state"] == "done"
    assert received[good.id]["result"]["hash"] == sha1(b"good")
    assert received[bad.id]["state"] == "failed"
    assert received[bad.id]["error"]["type"] == "UploadRejectedError"


# A client that sees only its spool


def test_a_client_that_sees_only_its_spool_directory(stack: RunningStack) -> None:
    client = stack.client(store=None, spool=stack.spool())
    assert client.ingest(b"from a container").get().hash == sha1(b"from a container")
