"""The client: what it leaves in the spool, and what a job says, without any worker."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fakeredis
import pytest
from celery import Celery

from fsworker import errors
from fsworker.broker.kv import KV
from fsworker.broker.resultmeta import TaskMeta, meta_of_failure
from fsworker.client import Client
from fsworker.config import load_settings
from fsworker.errors import ConfigError, FSWorkerError, JobTimeoutError, UploadRejectedError
from fsworker.host.embedded import EmbeddedServer
from fsworker.jobs.job import Job, error_of
from fsworker.model import Failure, new_job_id
from fsworker.spool.directory import SpoolDirectory
from fsworker.store.facade import Store


@pytest.fixture
def offline(store: Store) -> Iterator[Client]:
    """A client whose Redis is away."""
    with Client(
        "shop", settings=load_settings(environ={}, store=store.root, redis_url="redis://127.0.0.1:1/0")
    ) as client:
        yield client


def spool(store: Store) -> Path:
    return store.root / "Spool" / "shop"


def test_with_redis_away_an_upload_is_safe_and_queued(offline: Client, store: Store) -> None:
    job = offline.ingest(b"content", thumbnails={"small": "10x10"}, on_done="shop.done", max_bytes=100)
    request = json.loads((spool(store) / f".{job.id}.json").read_text())
    upload = spool(store) / request["request"]["upload"]
    assert upload.read_bytes() == b"content"
    assert stat.S_IMODE(upload.stat().st_mode) == 0o640
    assert request == {
        "task": "ingest",
        "store": store.config.store_id,
        "request": {"upload": upload.name, "thumbnails": {"small": "10x10"}, "on_done": "shop.done", "max_bytes": 100},
    }
    assert job.state == "queued"
    with pytest.raises(JobTimeoutError, match="does an ingest worker run"):
        job.get(timeout=0)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("step", ["rename", "sync"])
def test_a_drop_that_is_interrupted_leaves_nothing(
    step: str, error: type[BaseException], offline: Client, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that ends a request which takes too long raises ``SystemExit``: nobody gets a job then."""

    def interrupted(*_args: Any) -> Any:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(SpoolDirectory, step, interrupted)
        with pytest.raises(error):
            offline.ingest(b"content")
    assert sorted(os.listdir(spool(store))) == [".store.json"]


def test_many_uploads_do_not_each_wait_for_an_absent_redis(offline: Client) -> None:
    tried = []
    offline._bell._connection = lambda: tried.append(1)  # type: ignore[method-assign, assignment, return-value, func-returns-value]
    offline.ingest_many([b"%d" % n for n in range(10)])
    for n in range(10):
        offline.ingest(b"%d" % n)
    assert len(tried) == 2 * 10 + 1  # each job asks for its own view of Redis, but only one message was tried


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "FSWORKER_STORE"),
        ({"spool": "/no/such/spool", "redis_url": "redis://x"}, "is not registered"),
        ({"store": "/no/such/store"}, "/no/such/store does not exist; make a store"),
        ({"store": "/usr"}, "has no FileStruct.json"),
    ],
)
def test_what_is_missing_is_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Client("shop", settings=load_settings(environ={}, **settings))


def test_an_unregistered_application_is_told_how_to_register(store: Store) -> None:
    with pytest.raises(ConfigError, match="fsworker app add wiki"):
        Client("wiki", settings=load_settings(environ={}, store=store.root))
    with pytest.raises(ConfigError, match="cannot name an application"):
        Client("../blog", settings=load_settings(environ={}, store=store.root))


def test_a_spool_alone_needs_a_redis_url(store: Store) -> None:
    with pytest.raises(ConfigError, match="FSWORKER_REDIS_URL is not set"):
        Client("shop", settings=load_settings(environ={}, spool=spool(store)))


def test_settings_come_from_environment_and_file(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "fsworker.toml"
    config.write_text(f'store = "{store.root}"\n[redis]\nurl = "redis://from-the-file:1/0"\n')
    monkeypatch.setenv("FSWORKER_CONFIG", str(config))
    assert Client(app="shop").settings.redis_url == "redis://from-the-file:1/0"
    monkeypatch.setenv("FSWORKER_REDIS_URL", "redis://from-the-environment:1/0")
    assert Client(app="shop").settings.redis_url == "redis://from-the-environment:1/0"


def test_claims_are_bounded(offline: Client) -> None:
    with pytest.raises(UploadRejectedError, match="at most 5000"):
        offline.claim(f"{n:040x}" for n in range(5001))


def test_several_threads_drop_at_once(offline: Client, store: Store) -> None:
    def drop() -> None:
        for _ in range(20):
            offline.ingest(os.urandom(10))

    threads = [threading.Thread(target=drop) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = os.listdir(spool(store))
    assert len([n for n in names if not n.startswith(".")]) == 80
    assert len([n for n in names if n.endswith(".json") and n != ".store.json"]) == 80


def test_a_client_made_before_a_fork_works_after_it(store: Store, tmp_path: Path) -> None:
    """As with gunicorn --preload: both processes send, on connections of their own."""
    with EmbeddedServer.start(tmp_path / "redis") as server:
        settings = load_settings(environ={}, store=store.root, redis_url=server.url)
        with Client("shop", settings=settings) as client:
            client.ingest(b"before")
            pids = []
            for number in range(3):
                pid = os.fork()
                if pid == 0:
                    try:
                        for n in range(20):
                            client.ingest(b"%d %d" % (number, n))
                    finally:
                        os._exit(0)
                pids.append(pid)
            for n in range(20):
                client.ingest(b"parent %d" % n)
            assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0, 0]
            assert KV(server.url).queue_length("fsworker.ingest.shop") == 81


# What a job says


@pytest.fixture
def job(store: Store) -> tuple[Job, KV]:
    kv = KV("redis://fake", client=fakeredis.FakeRedis())
    return Job(new_job_id("shop"), SpoolDirectory(spool(store), "shop"), kv), kv


@pytest.mark.parametrize(
    ("meta", "state", "progress"),
    [
        (TaskMeta("PROGRESS", {"stage": "store", "done": 50, "total": 100}), "running", 0.45),
        (TaskMeta("PROGRESS", {"stage": "thumbnails", "done": 1, "total": 2}), "running", 0.95),
        (TaskMeta("PROGRESS", {"done": "x", "total": 0}), "running", 0.0),
        (TaskMeta("PROGRESS", None), "running", 0.0),
        (TaskMeta("SUCCESS", {"hash": "a" * 40, "size": 1, "media_type": "text/plain"}), "done", 1.0),
        (meta_of_failure(Failure(type="ImageError", message="no")), "failed", 1.0),
        (TaskMeta("PENDING", None), "unknown", 0.0),
    ],
)
def test_state_and_progress(meta: TaskMeta, state: str, progress: float, job: tuple[Job, KV]) -> None:
    job[1].set_results([(job[0].id, meta)], 60)
    assert job[0].state == state
    assert job[0].progress == pytest.approx(progress)


def test_a_failure_is_raised_as_its_own_class(job: tuple[Job, KV]) -> None:
    for name in ("UploadRejectedError", "ImageError", "HashCollisionError", "UploadNotFoundError", "ConfigError"):
        error = error_of(Failure(type=name, message="why"))
        assert type(error) is getattr(errors, name)
        assert str(error) == "why"
    for name in ("SystemExit", "os", "__builtins__", "KeyError", "annotations"):
        assert type(error_of(Failure(type=name, message="why"))) is FSWorkerError
    job[1].set_results([(job[0].id, TaskMeta("FAILURE", "not an object"))], 60)
    with pytest.raises(FSWorkerError, match="not an object"):
        job[0].get(timeout=0)


def test_celery_reads_what_we_store(redis_url: str) -> None:
    kv, reader = KV(redis_url), Celery(backend=redis_url)
    good, bad = new_job_id("shop"), new_job_id("shop")
    kv.set_results(
        [(good, TaskMeta("SUCCESS", {"hash": "x"})), (bad, meta_of_failure(Failure(type="ImageError", message="m")))],
        60,
    )
    assert reader.AsyncResult(good).get(timeout=5) == {"hash": "x"}
    with pytest.raises(Exception, match="m") as caught:
        reader.AsyncResult(bad).get(timeout=5)
    assert type(caught.value).__name__ == "ImageError"
    kv.set_results([(good, TaskMeta("FAILURE", None))], 60, overwrite=False)
    assert reader.AsyncResult(good).state == "SUCCESS"
