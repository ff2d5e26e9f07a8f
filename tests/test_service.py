"""A job's life in one process: begin, work, end; and what comes in between."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stores import sha1
from worlds import Crash, World, crash
from worlds import world as world  # a fixture

from fsworker.broker.kv import KV
from fsworker.broker.resultmeta import RESULT_PREFIX
from fsworker.errors import StoreUnavailableError, UploadRejectedError
from fsworker.model import BatchRequest
from fsworker.store import hold
from fsworker.store.locks import job_lock
from fsworker.store.objects import ObjectStore


def test_files_of_a_job_from_drop_to_done(world: World) -> None:
    job = world.client.ingest(b"content")
    upload = next(name for name in world.spool() if not name.startswith("."))
    assert world.spool() == sorted([upload, f".{job.id}.json"])
    assert (job.state, job.progress) == ("queued", 0.0)
    outcome = world.service.run(job.id, "ingest", {"upload": upload})
    assert outcome is not None
    assert outcome.state == "done"
    assert world.spool() == [f".{job.id}.done"]
    assert world.redis.exists(RESULT_PREFIX + job.id)
    assert world.redis.ttl(RESULT_PREFIX + job.id) > 6 * 86400


def test_the_request_file_wins_over_the_message(world: World) -> None:
    job = world.client.ingest(b"content", max_bytes=3)
    outcome = world.service.run(job.id, "ingest", {"upload": "something-else"})
    assert outcome is not None
    assert outcome.error is not None
    assert "more than the 3 allowed" in outcome.error.message


def test_running_a_job_twice_gives_the_same_result_and_one_file(world: World) -> None:
    job = world.client.ingest(b"content")
    first = world.service.run(job.id, "ingest", {})
    second = world.service.run(job.id, "ingest", {"upload": "gone"})
    assert first == second
    assert world.hashes() == [sha1(b"content")]


def test_a_job_in_flight_is_not_begun_again(world: World) -> None:
    job = world.client.ingest(b"content")
    with job_lock(world.object_store.fd, job.id, 0o600) as obtained:
        assert obtained
        assert world.service.run(job.id, "ingest", {}) is None
        assert world.sweep(at_once=True).in_flight == 1
    assert world.sent == []
    assert world.service.run(job.id, "ingest", {}) is not None


@pytest.mark.parametrize("step", ["taken", "stored", "done", "announced"])
def test_a_crash_at_each_step_is_made_good_by_the_next_run(
    step: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = world.client.ingest(b"content", on_done="shop.done")
    with monkeypatch.context() as patched:
        if step == "taken":
            patched.setattr(ObjectStore, "put_descriptor", crash)
        elif step == "stored":
            patched.setattr("fsworker.spool.directory.SpoolDirectory.write_outcome", crash)
        elif step == "done":
            patched.setattr(KV, "set_results", crash)
        else:
            patched.setattr("fsworker.spool.directory.SpoolDirectory.remove", crash)
        with pytest.raises(Crash):
            world.service.run(job.id, "ingest", {})
    report = world.sweep(at_once=True)
    assert report.rung == 1
    task, kwargs, queue, task_id = world.sent[-1]
    assert (task, queue, task_id) == ("fsworker.ingest", "fsworker.ingest.shop", job.id)
    outcome = world.new_service().run(task_id, "ingest", kwargs)
    assert outcome is not None
    assert outcome.state == "done"
    assert world.spool() == [f".{job.id}.done"]
    assert world.hashes() == [sha1(b"content")]
    callbacks = [sent for sent in world.sent if sent[0] == "shop.done"]
    assert len(callbacks) >= 1
    assert {sent[3] for sent in callbacks} == {f"{job.id}-done"}


def test_what_kills_its_process_again_and_again_is_taken_out_of_the_way(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Kill(BaseException):
        pass

    def kill(*_args: Any) -> None:
        raise Kill

    job = world.client.ingest(b"poison")
    with monkeypatch.context() as patched:
        patched.setattr("fsworker.jobs.work.media.sniff", kill)
        for _ in range(world.settings.max_attempts):
            with pytest.raises(Kill):
                world.service.run(job.id, "ingest", {})
        outcome = world.service.run(job.id, "ingest", {})
    assert outcome is not None
    assert outcome.error is not None
    assert "3 attempts ended without a result" in outcome.error.message
    with pytest.raises(UploadRejectedError, match="error retry"):
        job.get(timeout=0)
    (entry,) = os.listdir(world.root / "Error")
    assert sha1(b"poison") in {sha1(path.read_bytes()) for path in (world.root / "Error" / entry).iterdir()}


def test_redis_away_at_the_end_leaves_the_request_for_the_sweep(world: World) -> None:
    job = world.client.ingest(b"content", on_done="shop.done")
    world.redis_is_away = True
    outcome = world.service.run(job.id, "ingest", {})
    assert outcome is not None
    assert job.get(timeout=0).hash == sha1(b"content")
    assert f".{job.id}.json" in world.spool()
    world.redis_is_away = False
    world.sweep(at_once=True)
    world.service.run(job.id, "ingest", {})
    assert [sent[0] for sent in world.sent] == ["fsworker.ingest", "shop.done"]
    assert world.spool() == [f".{job.id}.done"]


def test_a_result_whose_file_was_collected_is_not_given_again(world: World) -> None:
    job = world.client.ingest(b"content")
    world.service.run(job.id, "ingest", {})
    world.object_store.location(sha1(b"content")).unlink()
    outcome = world.service.run(job.id, "ingest", {})
    assert outcome is not None
    assert outcome.error is not None
    assert outcome.error.type == "UploadNotFoundError"


def test_a_result_whose_file_is_in_trash_brings_it_back(world: World) -> None:
    job = world.client.ingest(b"content")
    world.service.run(job.id, "ingest", {})
    name = sha1(b"content")
    trash = world.root / "Trash" / "20260101000000-00000000-00000000"
    trash.mkdir()
    world.object_store.location(name).rename(trash / name)
    outcome = world.service.run(job.id, "ingest", {})
    assert outcome is not None
    assert outcome.state == "done"
    assert world.hashes() == [name]


def test_a_request_for_another_store_is_refused(world: World) -> None:
    job = world.client.ingest(b"content")
    request = world.root / "Spool" / "shop" / f".{job.id}.json"
    request.write_text(request.read_text().replace(world.object_store.config.store_id, "0" * 32))
    outcome = world.service.run(job.id, "ingest", {})
    assert outcome is not None
    assert outcome.error is not None
    assert outcome.error.type == "ConfigError"
    assert any(not name.startswith(".") for name in world.spool())  # the upload is still there


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"task": "collect", "request": {}}', '{"task": "ingest", "request": {"upload": "../x"}}',
     '{"task": "ingest", "request": {"upload": "x"}, "attempts": -1}', '{"task": "ingest", "request": {"upload": 3}}',
     '{"task": "ingest", "request": {"upload": "x"}, "not_before": 1e400}', "[" * 100_000],
)  # fmt: skip
def test_a_hostile_request_file_fails_its_own_job_only(text: str, world: World) -> None:
    job_id = f"shop.{uuid.uuid4()}"
    (world.root / "Spool" / "shop" / f".{job_id}.json").write_text(text)
    world.sweep(at_once=True)
    outcome = world.service.run(job_id, "ingest", {"upload": "x"})
    assert outcome is not None
    assert outcome.error is not None
    assert outcome.error.type == "UploadRejectedError"
    assert world.spool() == [f".{job_id}.done"]


def test_the_sweep_clears_what_dead_processes_left_in_the_store_but_not_under_a_hold(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = {"Temp/20260101000000-00000000-00000001/upload.jpg": "Error", "Temp/.0123": None, "Lock/.0123.new": None}
    for name in left:
        (world.root / name).parent.mkdir(parents=True, exist_ok=True)
        (world.root / name).write_text("left")
    assert world.sweep().leftovers == 0  # it may be somebody's of this moment
    now_s = world.object_store.probe_clock
    monkeypatch.setattr(world.object_store, "probe_clock", lambda: now_s() + 2 * 24 * 3600)
    hold.set_hold(world.object_store, 3600)
    assert world.sweep().leftovers == 0
    assert hold.release(world.object_store)
    assert world.sweep().leftovers == 3
    assert sorted(os.listdir(world.root / "Temp")) == []
    assert (world.root / "Error/20260101000000-00000000-00000001/upload.jpg").read_text() == "left"
    assert not (world.root / "Lock/.0123.new").exists()


def test_attempts_of_the_future_do_not_stop_the_sweep(world: World) -> None:
    job = world.client.ingest(b"content")
    request = world.root / "Spool" / "shop" / f".{job.id}.json"
    request.write_text(request.read_text().removesuffix("}") + ',"not_before":9999999999.0}')
    assert world.sweep(at_once=True).rung == 1  # a clock that was set back


# Batches


def batch_of(world: World, contents: list[bytes]) -> tuple[str, BatchRequest, list[str]]:
    uploads = []
    for number, data in enumerate(contents):
        (world.root / "Spool" / "shop" / f"upload-{number}").write_bytes(data)
        uploads.append({"upload": f"upload-{number}", "id": f"shop.{uuid.uuid4()}"})
    return f"shop.{uuid.uuid4()}", BatchRequest.model_validate({"uploads": uploads}), [u["id"] for u in uploads]


def test_a_redelivered_batch_is_split(world: World) -> None:
    batch_id, batch, ids = batch_of(world, [b"one", b"two", b"three"])
    world.service.run(ids[1], "ingest", {"upload": "upload-1"})
    world.sent.clear()
    report = world.service.run_many(batch_id, batch, redelivered=True)
    assert [job["state"] for job in report["jobs"]] == ["queued", "done", "queued"]
    assert [(task, task_id) for task, _, _, task_id in world.sent] == [
        ("fsworker.ingest", ids[0]),
        ("fsworker.ingest", ids[2]),
    ]
    for _, kwargs, _, task_id in list(world.sent):
        assert world.service.run(task_id, "ingest", kwargs)
    assert sorted(world.hashes()) == sorted(map(sha1, (b"one", b"two", b"three")))


def test_a_batch_with_an_impossible_sub_id_fails_as_a_whole_and_says_why(world: World) -> None:
    batch_id = f"shop.{uuid.uuid4()}"
    for item_id, said in (("x" * 60, "not a job id"), ("blog.12345678", "not a job id"), ("0", "the same job id")):
        uploads = [{"upload": "two", "id": None}, {"upload": "one", "id": item_id}]
        report = world.service.run_many(batch_id, BatchRequest.model_validate({"uploads": uploads}))
        assert said in report["error"]["message"]
        assert b"FAILURE" in world.redis.get(RESULT_PREFIX + batch_id)


def test_a_batch_that_cannot_be_synced_waits_as_a_whole(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.service.store.durability = "batch"
    jobs = world.client.ingest_many([b"one", b"two"])
    ids = [job.id for job in jobs]
    requests = [json.loads((world.root / "Spool" / "shop" / f".{job.id}.json").read_text())["request"] for job in jobs]
    uploads = [{**request, "id": job.id} for request, job in zip(requests, jobs, strict=True)]
    batch_id, batch = f"shop.{uuid.uuid4()}", BatchRequest.model_validate({"uploads": uploads})

    def failing(*_args: Any) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr("fsworker.durable.syncfs", failing)
        report = world.service.run_many(batch_id, batch)
    assert [job["state"] for job in report["jobs"]] == ["queued", "queued"]
    assert all(f".{job_id}.json" in world.spool() and f".{job_id}.done" not in world.spool() for job_id in ids)
    assert world.client.job(ids[0]).problem is not None
    for job_id in ids:
        outcome = world.service.run(job_id, "ingest", {})
        assert outcome is not None
        assert outcome.state == "done"


# A full disk, a wrong filesystem


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 4 MiB."""
    if os.geteuid() != 0:
        pytest.skip("CI-may-skip: only root can mount a small filesystem")
    path = tmp_path / "small"
    path.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m,mode=755", "tmpfs", path], capture_output=True, check=False
    )
    if mount.returncode != 0:
        pytest.skip("CI-may-skip: mounting is not allowed here")
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


def test_a_full_disk_refuses_the_upload_and_leaves_nothing(small_disk: Path) -> None:
    world = World(small_disk / "store")
    with pytest.raises(StoreUnavailableError, match="No space left"):
        world.client.ingest(os.urandom(8 << 20))
    assert world.spool() == []
    assert world.client.ingest(b"small").state == "queued"


def test_a_disk_that_fills_up_makes_a_job_wait_and_it_goes_on_by_itself(small_disk: Path) -> None:
    world = World(small_disk / "store")
    data = os.urandom(1 << 20)
    job = world.client.ingest(data)
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space"), filler.open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))
    assert world.service.run(job.id, "ingest", {}) is None
    assert job.state in ("queued", "running")
    filler.unlink()
    outcome = world.service.run(job.id, "ingest", {})
    assert outcome is not None
    assert outcome.state == "done"
    assert world.hashes() == [sha1(data)]


def test_a_spool_on_another_filesystem_is_refused_and_keeps_the_upload(small_disk: Path, tmp_path: Path) -> None:
    world = World(tmp_path / "store")
    spool = world.root / "Spool" / "shop"
    subprocess.run(["mount", "--bind", small_disk, spool], check=True)
    try:
        (spool / "upload").write_bytes(b"content")
        job_id = f"shop.{uuid.uuid4()}"
        outcome = world.new_service().run(job_id, "ingest", {"upload": "upload"})
        assert outcome is not None
        assert outcome.error is not None
        assert (outcome.error.type, outcome.state) == ("ConfigError", "failed")
        assert "another filesystem" in outcome.error.message
        assert b"another filesystem" in world.redis.get(RESULT_PREFIX + job_id)
        assert (spool / "upload").read_bytes() == b"content"
    finally:
        subprocess.run(["umount", "--lazy", spool], check=True)


def test_a_hold_that_this_user_may_not_read_does_not_fail_the_sweep(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root set it, say. Nothing is cleared then, and the sweep, which has rung already, is a sweep."""

    def refuse(*_args: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    world.client.ingest(b"content")
    monkeypatch.setattr(hold, "read_note", refuse)
    assert world.sweep(at_once=True).rung == 1
