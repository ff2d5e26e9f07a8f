"""Workers as people run them: by hand, with other pools, with applications that come and go."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from processes import eventually
from stacks import RunningStack, running_stack

from fsworker.client import Client
from fsworker.config import load_settings
from fsworker.store.facade import Store


@contextmanager
def celery_worker(store: Store, redis_url: str, namespace: str, log: Path, *options: str) -> Iterator[Client]:
    """``celery -A fsworker worker``, as those run it who run Celery their own way, and a client of it."""
    environment = {
        **os.environ,
        "FSWORKER_STORE": str(store.root),
        "FSWORKER_REDIS_URL": redis_url,
        "FSWORKER_NAMESPACE": namespace,
        "FSWORKER_STATE_DIR": str(log.parent / "state"),
    }
    command = [sys.executable, "-m", "celery", "-A", "fsworker", "worker", "--loglevel=INFO", *options]
    settings = load_settings(environ={}, store=store.root, redis_url=redis_url, namespace=namespace)
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    try:
        with Client("shop", settings=settings) as client:
            yield client
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_celery_runs_it_with_any_pool(pool: str, store: Store, redis_url: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with celery_worker(store, redis_url, f"pool-{pool}", log, f"--pool={pool}", "--concurrency=2") as client:
        jobs = client.ingest_many([b"%d" % n for n in range(5)], thumbnails={"small": "10x10"})
        jobs += [client.ingest(b"one")]
        assert [job.get(timeout=30).size for job in jobs] == [1, 1, 1, 1, 1, 3]
    assert "Traceback" not in log.read_text()


def test_two_namespaces_share_one_redis(redis_url: str, tmp_path: Path) -> None:
    stores = [Store.create(tmp_path / name, apps=["shop"]) for name in ("a", "b")]
    for directory in ("log-a", "log-b"):
        (tmp_path / directory).mkdir()
    with (
        celery_worker(stores[0], redis_url, "first", tmp_path / "log-a" / "log", "--concurrency=1") as first,
        celery_worker(stores[1], redis_url, "second", tmp_path / "log-b" / "log", "--concurrency=1") as second,
    ):
        name = first.ingest(b"for the first").get().hash
        other = second.ingest(b"for the second").get().hash
    assert (list(stores[0]), list(stores[1])) == ([name], [other])


def test_a_worker_says_what_is_wrong_before_it_starts(store: Store, redis_url: str, tmp_path: Path) -> None:
    shutil.rmtree(store.root / "Spool" / "blog")
    with celery_worker(store, redis_url, "wrong", tmp_path / "log"):
        assert eventually(
            lambda: "blog is missing; make it again with: fsworker init" in (tmp_path / "log").read_text(), 20
        )


@pytest.fixture(scope="module")
def one_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    with running_stack(tmp_path_factory.mktemp("one"), apps=("shop",)) as running:
        yield running


def test_an_application_that_is_registered_while_the_worker_runs_is_served(one_app: RunningStack) -> None:
    command = [sys.executable, "-m", "fsworker", "app", "add", "late", "--store", str(one_app.store_path)]
    subprocess.run(command, check=True, capture_output=True)
    result = one_app.client("late").ingest(b"late").get(timeout=30)
    assert result.hash == hashlib.sha1(b"late").hexdigest()
    assert one_app.client("shop").ingest(b"still here").get(timeout=30).size == 10


def test_a_worker_of_a_store_without_applications_waits_for_one(tmp_path: Path) -> None:
    with running_stack(tmp_path, apps=()) as stack:
        command = [sys.executable, "-m", "fsworker", "app", "add", "first", "--store", str(stack.store_path)]
        subprocess.run(command, check=True, capture_output=True)
        assert stack.client("first").ingest(b"first").get(timeout=30).size == 5
        assert "ended with status" not in stack.log()


def test_log_lines_as_json_carry_no_secret(
    store: Store, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FSWORKER_LOG_JSON", "true")
    with celery_worker(store, redis_url, "json", tmp_path / "log", "--concurrency=1") as client:
        name = client.ingest(b"logged").get().hash
        assert eventually(lambda: name in (tmp_path / "log").read_text())
    lines = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("{")]
    assert any(json.loads(line)["message"].startswith("job shop.") for line in lines)
