"""Nothing is lost when processes are killed or Redis forgets: every upload gets its result, none stays in the spool."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis
from processes import eventually
from stacks import RunningStack, running_stack

from fsworker.broker.kv import connect
from fsworker.jobs.job import Job
from fsworker.model import IngestResult

UPLOADS = 200


@pytest.fixture
def fresh_stack(tmp_path: Path) -> Iterator[RunningStack]:
    """A stack that may be broken."""
    with running_stack(tmp_path, sweep_every="1s", visibility_timeout="3s") as running:
        yield running


def descendants(pid: int) -> list[int]:
    """All processes below one, nearest first."""
    found = []
    with suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


def ingest_workers(stack: RunningStack) -> list[int]:
    """The ingest worker's main process and its children, as they are now; empty while it starts."""
    for pid in descendants(stack.process.pid):
        with suppress(OSError):
            if b"--role=ingest" in Path(f"/proc/{pid}/cmdline").read_bytes():
                children = descendants(pid)
                # A guard bears the command line of its program, which is its child.
                if children and b"guard" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return [pid, *children]
    return []


def upload_all(stack: RunningStack, while_uploading: Callable[[], None] = lambda: None) -> dict[str, Job]:
    """Ingest different contents, some alone and some in batches; SHA-1 → job."""
    client, jobs = stack.client(), {}
    contents = [b"%d " % n + os.urandom(200 * (n % 40)) for n in range(UPLOADS)]
    for data in contents[: UPLOADS // 2]:
        jobs[hashlib.sha1(data).hexdigest()] = client.ingest(data)
        while_uploading()
    batch = contents[UPLOADS // 2 :]
    for start in range(0, len(batch), 25):
        for data, job in zip(batch[start : start + 25], client.ingest_many(batch[start : start + 25]), strict=True):
            jobs[hashlib.sha1(data).hexdigest()] = job
        while_uploading()
    return jobs


def assert_all_done(stack: RunningStack, jobs: dict[str, Job], timeout_s: float = 90.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    for name, job in jobs.items():
        result = job.get(timeout=max(0.0, deadline_s - time.monotonic()))
        assert isinstance(result, IngestResult)
        assert result.hash == name
    with stack.store() as store:
        assert set(jobs) <= set(store)
        for name in store:
            with store.open(name) as stream:
                assert hashlib.file_digest(stream, "sha1").hexdigest() == name
    assert eventually(lambda: left_over(stack) == [], 30), left_over(stack)


def left_over(stack: RunningStack) -> list[str]:
    """Uploads and requests; not outcomes, nor what a killed process was just writing (the sweep removes it in time)."""
    return [n for n in os.listdir(stack.spool()) if not n.endswith((".done", ".new")) and n != ".store.json"]


def test_killing_workers_and_their_children_loses_nothing(fresh_stack: RunningStack) -> None:
    chance, stop = random.Random(20261122), threading.Event()
    killed = []

    def kill_now_and_then() -> None:
        while not stop.wait(chance.uniform(0.05, 0.4)):
            victims = ingest_workers(fresh_stack)
            if victims:
                main, *children = victims
                pid = main if chance.random() < 0.3 else chance.choice(children)
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

    killer = threading.Thread(target=kill_now_and_then)
    killer.start()
    try:
        jobs = upload_all(fresh_stack, lambda: time.sleep(0.1))
    finally:
        stop.set()
        killer.join()
    assert len(killed) >= 5
    assert_all_done(fresh_stack, jobs)


def test_a_flushed_redis_loses_nothing(fresh_stack: RunningStack) -> None:
    server = connect(fresh_stack.redis_url)
    flushed = 0

    def flush_now_and_then() -> None:
        nonlocal flushed
        flushed += 1
        if flushed % 15 == 0:
            server.flushall()

    jobs = upload_all(fresh_stack, flush_now_and_then)
    server.flushall()
    assert_all_done(fresh_stack, jobs)
    server.flushall()  # after the last result: the spool answers
    assert_all_done(fresh_stack, jobs, timeout_s=5)
    assert all(job.state == "done" for job in jobs.values())
    server.close()


def test_redis_away_for_a_while_loses_nothing(fresh_stack: RunningStack) -> None:
    server = next(
        pid
        for pid in descendants(fresh_stack.process.pid)
        if Path(f"/proc/{pid}/exe").resolve().name in ("valkey-server", "redis-server")
    )
    client = fresh_stack.client()
    before = client.ingest(b"before")
    before.get()
    os.kill(server, signal.SIGKILL)
    during = [client.ingest(b"during %d" % n) for n in range(20)]
    assert before.state == "done"
    jobs = {hashlib.sha1(b"during %d" % n).hexdigest(): job for n, job in enumerate(during)}
    assert_all_done(fresh_stack, jobs)


def test_killing_everything_and_starting_again_loses_nothing(tmp_path: Path) -> None:
    with running_stack(tmp_path) as stack:
        jobs = upload_all(stack)
        os.kill(stack.process.pid, signal.SIGKILL)
        stack.process.wait()
        ids = {name: job.id for name, job in jobs.items()}
    with running_stack(tmp_path) as stack:
        client = stack.client()
        assert_all_done(stack, {name: client.job(job_id) for name, job_id in ids.items()})


def test_stop_signal_ends_in_order_and_leaves_no_process(tmp_path: Path) -> None:
    with running_stack(tmp_path) as stack:
        everything = descendants(stack.process.pid)
        assert len(everything) > 6
        stack.process.send_signal(signal.SIGINT)
        assert stack.process.wait(60) == 0
    alive = [pid for pid in everything if Path(f"/proc/{pid}").exists()]
    assert alive == []
    with pytest.raises(redis.RedisError):
        connect(stack.redis_url).ping()
