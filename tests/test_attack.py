"""What was found by attacking the main job: each test is a hole that was there once."""

from __future__ import annotations

import io
import json
import os
import uuid
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from stacks import RunningStack
from users import OTHER_GROUP, READER, STRANGER, as_user, needs_root
from worlds import Crash, World, crash
from worlds import world as world  # a fixture

from fsworker.broker.judge import QueueRules, judge
from fsworker.broker.kv import KV
from fsworker.config import redact_url
from fsworker.errors import StoreUnavailableError, UploadRejectedError
from fsworker.jobs.job import Job
from fsworker.jobs.rejected import retry
from fsworker.jobs.tasks import INGEST_VALIDATORS
from fsworker.model import Outcome
from fsworker.spool.directory import SpoolDirectory
from fsworker.store import errordir
from fsworker.store.facade import Store
from fsworker.store.objects import ObjectStore


def spool_of(world: World) -> Path:
    return world.root / "Spool" / "shop"


def new_id() -> str:
    return f"shop.{uuid.uuid4()}"


def write_request(world: World, text: str | bytes, job_id: str | None = None) -> str:
    job_id = job_id or new_id()
    path = spool_of(world) / f".{job_id}.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return job_id


def heard(world: World, job_id: str) -> Job:
    """The job, for a client that can reach the world's Redis."""
    return Job(job_id, SpoolDirectory(spool_of(world), "shop"), world.kv())


# Bytes that were deleted, or forgotten


def test_a_refused_upload_that_cannot_be_moved_to_error_is_kept_and_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: Any, **_kwargs: Any) -> Any:
        raise OSError(28, "No space left on device")

    job = world.client.ingest(b"too large", max_bytes=3)
    with monkeypatch.context() as patched:
        patched.setattr(errordir, "new_entry", full)
        assert world.service.run(job.id, "ingest", {}) is None
    assert "No space" in str(job.problem)
    outcome = world.service.run(job.id, "ingest", {})
    assert outcome is not None
    assert outcome.error is not None
    (entry,) = errordir.entries(world.object_store)
    assert (world.root / "Error" / entry.stamp / entry.files[0]).read_bytes() == b"too large"


def test_a_failed_job_never_deletes_the_upload_that_it_could_not_move(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: Any, **_kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    job = world.client.ingest(b"too large", max_bytes=3)
    with monkeypatch.context() as patched:
        patched.setattr(errordir, "new_entry", refuse)
        for _ in range(2):
            world.service.run(job.id, "ingest", {})
    assert b"too large" in [path.read_bytes() for path in spool_of(world).iterdir()]


@pytest.mark.parametrize(
    "step", ["fsworker.spool.directory.SpoolDirectory.remove", "os.rename", "fsworker.store.errordir.remove"]
)
def test_a_crash_in_error_retry_loses_nothing(step: str, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job = world.client.ingest(b"too large", max_bytes=3)
    world.service.run(job.id, "ingest", {})
    (entry,) = errordir.entries(world.object_store)
    with monkeypatch.context() as patched:
        if step == "os.rename":
            rename = os.rename
            patched.setattr(os, "rename", lambda *a, **k: rename(*a, **k) if str(a[1]).endswith(".json") else crash())
        else:
            patched.setattr(step, crash)
        with pytest.raises(Crash):
            retry(world.object_store, entry.stamp)
    world.sweep(at_once=True)
    world.service.run(job.id, "ingest", {})
    kept = [path for path in world.root.rglob("*") if path.is_file() and path.read_bytes() == b"too large"]
    assert len(kept) == 1


def test_an_upload_that_is_ingested_twice_keeps_the_request_of_the_first_time(world: World) -> None:
    upload = world.client.open_upload()
    upload.write(b"content")
    job = world.client.ingest(upload)
    with pytest.raises(UploadRejectedError, match=f"already, as job {job.id}"):
        world.client.ingest(upload)
    assert world.sweep(at_once=True).rung == 1
    outcome = world.service.run(job.id, "ingest", {})
    assert outcome is not None
    assert outcome.state == "done"


def test_an_upload_whose_part_was_swept_away_is_not_called_safe(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that was stopped for a day, or a clock that was set forward by one."""
    sync_file = SpoolDirectory.sync_file

    def late(spool: SpoolDirectory, name: str) -> None:
        sync_file(spool, name)
        for part in spool_of(world).glob(".*.part"):
            part.unlink()

    with monkeypatch.context() as patched:
        patched.setattr(SpoolDirectory, "sync_file", late)
        with pytest.raises(StoreUnavailableError, match="given up"):
            world.client.ingest(b"content")
    assert world.spool() == []


def test_a_commit_that_cannot_be_synced_leaves_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_spool: SpoolDirectory) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(SpoolDirectory, "sync", failing)
        with pytest.raises(StoreUnavailableError, match="Nothing was accepted"):
            world.client.ingest(b"content")
        with pytest.raises(StoreUnavailableError, match="Nothing was accepted"):
            world.client.ingest_many([b"one", b"two"])
    assert world.spool() == []


def test_a_plain_producer_is_told_when_its_request_cannot_be_written(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nothing in the spool that the sweep could ring for, and the message is gone."""

    def full(*_args: Any, **_kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    (spool_of(world) / "photo.jpg").write_bytes(b"content")
    job_id = new_id()
    with monkeypatch.context() as patched:
        patched.setattr(SpoolDirectory, "write_request", full)
        world.service.run(job_id, "ingest", {"upload": "photo.jpg"})
    with pytest.raises(StoreUnavailableError, match="send it again"):
        heard(world, job_id).get(timeout=0)
    outcome = world.service.run(job_id, "ingest", {"upload": "photo.jpg"})
    assert outcome is not None
    assert outcome.state == "done"


def test_an_outcome_that_was_perhaps_not_synced_is_synced_before_it_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = world.client.ingest(b"content")
    with monkeypatch.context() as patched:
        patched.setattr(SpoolDirectory, "write_outcome", lambda s, o, sync: (_written(s, o), crash()))
        with pytest.raises(Crash):
            world.service.run(job.id, "ingest", {})
    synced: list[str] = []
    sync_file = SpoolDirectory.sync_file
    with monkeypatch.context() as patched:
        patched.setattr(SpoolDirectory, "sync_file", lambda s, name: (synced.append(name), sync_file(s, name))[1])
        patched.setattr(KV, "set_results", lambda *_a, **_k: synced.append("told"))
        world.service.run(job.id, "ingest", {})
    assert synced == [f".{job.id}.done", "told"]


def _written(spool: SpoolDirectory, outcome: Outcome) -> None:
    spool._write(f".{outcome.job_id}.done", outcome.model_dump(mode="json", exclude_none=True), sync=False)


def test_a_request_is_replaced_only_by_one_that_is_on_disk(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a power cut leaves an empty file, and nobody knows any more what was asked."""
    job = world.client.ingest(b"content")
    done: list[str] = []
    fsync, rename = os.fsync, os.rename

    def failing(*_args: Any) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", lambda fd: (done.append("fsync"), fsync(fd)))
        patched.setattr(os, "rename", lambda *a, **k: (done.append(Path(a[1]).suffix), rename(*a, **k)))
        patched.setattr("fsworker.jobs.work.take", failing)
        world.service.run(job.id, "ingest", {})  # counts the attempt, and notes the back-off
    assert done == ["fsync", ".json", "fsync", ".json"]


def test_a_file_that_is_collected_while_its_job_runs_makes_the_job_wait(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = ObjectStore.put_descriptor

    def put_and_lose(store: ObjectStore, *args: Any, **kwargs: Any) -> Any:
        stored = put(store, *args, **kwargs)
        store.location(stored.hash).unlink()
        return stored

    job = world.client.ingest(b"content")
    with monkeypatch.context() as patched:
        patched.setattr(ObjectStore, "put_descriptor", put_and_lose)
        assert world.service.run(job.id, "ingest", {}) is None
    outcome = world.service.run(job.id, "ingest", {})
    assert outcome is not None
    assert outcome.state == "done"


def test_a_spool_directory_that_was_made_again_is_noticed(world: World) -> None:
    first = world.client.ingest(b"one")
    world.service.run(first.id, "ingest", {})
    spool = spool_of(world)
    spool.rename(world.root / "Spool" / "old")
    spool.mkdir()
    (spool / "two").write_bytes(b"two")
    outcome = world.service.run(new_id(), "ingest", {"upload": "two"})
    assert outcome is not None
    assert outcome.state == "done"


def test_a_refusal_whose_worker_died_before_it_was_told_is_told_by_the_next(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = world.client.ingest(b"too large", max_bytes=3)
    with monkeypatch.context() as patched:
        patched.setattr(SpoolDirectory, "write_outcome", crash)
        with pytest.raises(Crash):
            world.service.run(job.id, "ingest", {})
    world.service.run(job.id, "ingest", {})
    (entry,) = errordir.entries(world.object_store)
    with pytest.raises(UploadRejectedError, match=f"more than the 3 allowed.*{entry.stamp}"):
        job.get(timeout=0)


# A hostile spool must not stop the sweep of the others


HOSTILE_UPLOADS = ["\\ud800", "é" * 150, "x" * 200, "", ".", "..", "a\\u0000b", "/etc/passwd"]


@pytest.mark.parametrize("upload", HOSTILE_UPLOADS)
def test_a_hostile_request_does_not_stop_the_sweep(upload: str, world: World) -> None:
    hostile = write_request(world, f'{{"task": "ingest", "request": {{"upload": "{upload}"}}}}')
    job = world.client.ingest(b"content")
    world.sweep(at_once=True)
    assert job.id in [sent[3] for sent in world.sent]
    for _task, kwargs, _queue, task_id in list(world.sent):
        world.service.run(task_id, "ingest", kwargs)
    assert job.state == "done"
    assert world.client.job(hostile).state in ("failed", "queued")


def test_what_a_sweep_has_no_room_for_is_not_always_the_same(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory is read in the same order each time; a sweep that stops early must not begin there each time."""
    jobs = world.client.ingest_many([b"one", b"two", b"three"])
    monkeypatch.setattr("fsworker.jobs.sweep._MAX_RUNG", 1)
    for _ in range(200):  # each job is missed by all of them once in 10**13 times or less
        world.sweep(at_once=True)
    assert {sent[3] for sent in world.sent} == {job.id for job in jobs}


def test_names_that_are_no_text_do_not_stop_the_sweep(world: World) -> None:
    spool = os.fsencode(spool_of(world))
    for name in (
        b"\xff\xfe",
        b".\xff.part",
        b".\xff.json",
        b".shop.\xff\xff\xff\xff\xff\xff\xff\xff.json",
        b".\xff.new",
    ):
        with open(os.path.join(spool, name), "wb"):
            pass
    job = world.client.ingest(b"content")
    assert world.sweep(at_once=True).rung == 1
    assert world.sent[-1][3] == job.id


@pytest.mark.parametrize("depth", [50, 300, 600, 900, 1500, 3000, 20000])
def test_a_deeply_nested_request_does_not_stop_the_sweep(depth: int, world: World) -> None:
    write_request(world, '{"task": "ingest", "request": {"upload": ' + "[" * depth + "]" * depth + "}}")
    job = world.client.ingest(b"content")
    world.sweep(at_once=True)
    assert job.id in [sent[3] for sent in world.sent]


def test_a_request_that_cannot_be_read_fails_its_own_job_only(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    unreadable, job = world.client.ingest(b"one"), world.client.ingest(b"two")
    read = SpoolDirectory._read

    def closed(spool: SpoolDirectory, name: str, *args: Any) -> Any:
        if name == f".{unreadable.id}.json":
            raise PermissionError(13, "Permission denied", name)
        return read(spool, name, *args)

    with monkeypatch.context() as patched:
        patched.setattr(SpoolDirectory, "_read", closed)
        world.sweep(at_once=True)
        assert {sent[3] for sent in world.sent} == {unreadable.id, job.id}
        outcome = world.service.run(unreadable.id, "ingest", {"upload": "unreadable"})
    assert outcome is not None
    assert outcome.error is not None
    assert "0640" in outcome.error.message
    assert sorted(p.read_bytes() for p in spool_of(world).iterdir() if not p.name.startswith(".")) == [b"one", b"two"]


@pytest.mark.parametrize(
    "request_tree",
    [
        {"upload": "x", "thumbnails": {"small": "not a size"}},
        {"upload": "x", "surprise": 1},
        {"upload": "x", "on_done": "a b c"},
        {"upload": "x", "thumbnails": {"__type__": "100x100"}},
    ],
)
def test_a_request_that_no_message_can_carry_comes_to_an_end(request_tree: dict[str, Any], world: World) -> None:
    """What the sweep sends has to pass the judge, or it rings for ever and the worker never hears it."""
    job_id = write_request(world, json.dumps({"task": "ingest", "request": request_tree}))
    world.sweep(at_once=True)
    ((task, kwargs, queue, task_id),) = world.sent
    assert passes_the_judge(task, kwargs, queue, task_id)
    outcome = world.service.run(task_id, "ingest", kwargs)
    assert outcome is not None
    assert outcome.state == "failed"
    assert world.spool() == [f".{job_id}.done"]


def passes_the_judge(task: str, kwargs: dict[str, Any], queue: str, task_id: str) -> bool:
    from celery import Celery

    app = Celery("x", broker="memory://", set_as_current=False)
    caught: list[bytes] = []
    with app.connection_for_write() as connection:
        connection.default_channel._put = lambda _q, message, **_k: caught.append(json.dumps(message).encode())
        from fsworker.broker.sending import queue_named

        app.send_task(task, kwargs=kwargs, queue=queue_named(queue), task_id=task_id, connection=connection)
    verdict = judge(caught[0], QueueRules(queue, INGEST_VALIDATORS, "shop."))
    return type(verdict).__name__ != "Refused"


def test_rejected_uploads_that_cannot_be_removed_do_not_stop_the_sweep(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.settings = world.settings.model_copy(update={"error_retention": -1.0})
    for data in (b"one too large", b"two too large"):
        job = world.client.ingest(data, max_bytes=3)
        world.service.run(job.id, "ingest", {})
    first, second = [entry.stamp for entry in errordir.entries(world.object_store)]
    remove = errordir.remove

    def stubborn(handle: Any, stamp: str) -> None:
        if stamp == first:
            raise PermissionError(13, "Permission denied", stamp)
        remove(handle, stamp)

    with monkeypatch.context() as patched:
        patched.setattr(errordir, "remove", stubborn)
        assert world.sweep().expired >= 1
    assert not (world.root / "Error" / second).exists()


# Wrong answers


def test_a_job_that_ends_while_it_is_looked_at_is_never_unknown(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job = world.client.ingest(b"content")
    read = SpoolDirectory.read_outcome
    ended: list[bool] = []

    def read_then_end(spool: SpoolDirectory, job_id: str, **kwargs: Any) -> Any:
        found = read(spool, job_id, **kwargs)
        if not ended:
            ended.append(True)
            world.service.run(job.id, "ingest", {})
        return found

    with monkeypatch.context() as patched:
        patched.setattr(SpoolDirectory, "read_outcome", read_then_end)
        assert job.state == "done"


def test_a_back_off_takes_back_only_the_attempt_that_was_counted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsworker.model import BatchRequest

    job = world.client.ingest(b"content")
    request = spool_of(world) / f".{job.id}.json"
    tree = json.loads(request.read_text())
    request.write_text(json.dumps({**tree, "attempts": 2}))

    def failing(*_args: Any) -> None:
        raise OSError(5, "Input/output error")

    batch = BatchRequest.model_validate({"uploads": [{**tree["request"], "id": job.id}]})
    with monkeypatch.context() as patched:
        patched.setattr("fsworker.jobs.work.take", failing)
        world.service.run_many(new_id(), batch)
    assert json.loads(request.read_text())["attempts"] == 2


class Broken(io.RawIOBase):
    def __init__(self, error: OSError) -> None:
        self.error = error

    def read(self, size: int = -1) -> bytes:
        raise self.error


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_an_error_of_the_source_is_not_blamed_on_the_spool(error: OSError, world: World) -> None:
    with pytest.raises(OSError) as caught:
        world.client.ingest(Broken(error))
    assert caught.value is error
    assert world.spool() == []


def test_a_fifo_is_refused_and_not_waited_for(world: World, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UploadRejectedError, match="not a regular file"):
        world.client.ingest(tmp_path / "fifo")


PICTURES = ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "ICO", "AVIF"]


@pytest.mark.parametrize("kind", PICTURES)
def test_every_picture_is_one_of_image(kind: str, world: World) -> None:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(buffer, kind)
    job = world.client.ingest(buffer.getvalue(), media_types=["image/*"], thumbnails={"small": "16x16"})
    outcome = world.service.run(job.id, "ingest", {})
    assert outcome is not None
    assert outcome.error is None
    assert outcome.result is not None
    assert outcome.result["width"] == 64


# The command line


def run_cli(*arguments: str | bytes, **environment: str) -> Any:
    import subprocess
    import sys

    return subprocess.run(
        [sys.executable, "-m", "fsworker", *arguments],
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **environment},
        capture_output=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"FSWORKER_REDIS_URL": "redis://[::1"}, "is not a URL"),
        ({"FSWORKER_REDIS_URL": "http://x"}, "is not a Redis URL"),
        ({"FSWORKER_MAX_BYTES": "9" * 400}, "FSWORKER_MAX_BYTES"),
        ({"FSWORKER_SWEEP_EVERY": "0s"}, "FSWORKER_SWEEP_EVERY"),
        ({"FSWORKER_RESULT_RETENTION": "1e9d"}, "not a duration"),
    ],
)
def test_senseless_settings_are_told_in_one_line(environment: dict[str, str], said: str, world: World) -> None:
    done = run_cli("stats", "--store", str(world.root), **environment)
    assert done.returncode == 2
    assert said.encode() in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_a_password_never_shows() -> None:
    for url in ("redis://u:hush@h/0", "redis://h/0?db=1&password=hush", "redis://[hush", "redis+socket://:hush@/s"):
        assert "hush" not in str(redact_url(url))
    assert redact_url("redis+socket:///a/b?virtual_host=0") == "redis+socket:///a/b?virtual_host=0"


@needs_root
def test_who_may_not_do_it_is_told_so(open_path: Path) -> None:
    from click.testing import CliRunner

    from fsworker.cli import cli

    dict(cli.commands)  # loaded now: the interpreter may lie where only root gets
    Store.create(open_path / "store", apps=["shop"]).close()

    def run(*arguments: str) -> tuple[int, str, bool]:
        done = CliRunner().invoke(cli, [*arguments, "--store", str(open_path / "store")])
        return done.exit_code, done.output, done.exception is None or isinstance(done.exception, SystemExit)

    commands = (("error", "list"), ("app", "add", "cellar"), ("error", "discard", "--yes", "x"), ("app", "list"))
    for user, group, allowed in ((STRANGER, OTHER_GROUP, ()), (READER, 0, (("app", "list"),))):
        for arguments in commands:
            code, output, clean = as_user(user, group, partial(run, *arguments))
            assert clean, output
            assert code == (0 if arguments in allowed else 2), output
            assert "not readable" not in output  # in click's words, of a directory that need not be


def test_file_names_are_printed_whatever_they_are(stack: RunningStack, tmp_path: Path) -> None:
    names = [b"a[red]b.txt", b"\xff\xfe.txt", b"esc\x1b[2J.txt"]
    for name in names:
        (Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))).write_bytes(name)
    paths = [os.path.join(os.fsencode(tmp_path), name) for name in names]
    where = {"FSWORKER_REDIS_URL": stack.redis_url, "FSWORKER_STORE": str(stack.store_path)}
    done = run_cli("ingest", "--app", "shop", *paths, paths[0], **where)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"a[red]b.txt" in done.stdout
    assert b"\x1b" not in done.stdout
    done = run_cli("ingest", "--app", "shop", "--json", *paths, **where)
    assert done.returncode == 0
    assert [os.fsencode(item["file"]) for item in json.loads(done.stdout)["results"]] == paths
