"""Maintenance as it really runs: every message that our own processes send passes the door, and every chain comes to its end.

One ``fsworker up`` in a namespace of its own, with parts of a quarter of a second: what tests of single functions cannot
see is how beat, queue, judge, worker, sweep and server together treat what they send to each other.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from celery import Celery
from images import encoded
from PIL import Image
from processes import eventually
from stacks import RunningStack, running_stack
from stores import spoil

from fsworker.broker.kv import connect
from fsworker.broker.names import COLLECT, PURGE, SWEEP, VERIFY, Names
from fsworker.client import Client
from fsworker.collection.upkeep import read_last
from fsworker.model import Hash
from fsworker.store.facade import Store
from fsworker.store.hold import release, set_hold
from fsworker.store.objects import ObjectStore

NAMES = Names("files-2")
MANY = 700
PICTURE = encoded(Image.new("RGB", (20, 20)), "PNG")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """What only beat's clock would start within the tests is off, or comes from a person."""
    short = {"visibility_timeout": "1s", "sweep_every": "1s", "verify_every": "1s", "trash_retention": "1s"}
    with running_stack(
        tmp_path_factory.mktemp("upkeep"), namespace=NAMES.namespace, max_trash="1.0", concurrency="1", **short
    ) as running:
        config = running.store_path / "FileStruct.json"
        tree = json.loads(config.read_text())
        tree["Apps"]["shop"]["on_quarantine"] = "shop.tasks.file_lost"
        config.write_text(json.dumps({**tree, "Grace": "0s"}))
        yield running


@pytest.fixture(scope="module")
def raw(stack: RunningStack) -> Iterator[redis.Redis]:
    with connect(stack.redis_url) as client:
        yield client


@pytest.fixture(scope="module")
def person(stack: RunningStack) -> Iterator[Callable[[str], Any]]:
    """Sends a maintenance task by hand and gives its report."""
    with Celery("a person's", broker=stack.redis_url, backend=stack.redis_url, set_as_current=False) as app:
        yield lambda task: app.send_task(task, queue=NAMES.maintenance_queue).get(timeout=30)


@pytest.fixture
def shop(stack: RunningStack) -> Client:
    return stack.client("shop", namespace=NAMES.namespace)


def sh(stack: RunningStack, *arguments: str, module: str = "fsworker", **environment: str) -> Any:
    """A command, as a person on this host gives it; gives its JSON, or its output."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={**stack.environment, "FSWORKER_STORE": str(stack.store_path), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) if "--json" in arguments else done.stdout


def celery(stack: RunningStack, *arguments: str) -> None:
    """Celery's own command, as in "Your own Celery"."""
    role = {"FSWORKER_ROLE": "maintenance", "FSWORKER_REDIS_URL": stack.redis_url}
    sh(stack, "-A", "fsworker", *arguments, module="celery", **role)


def publish(stack: RunningStack, kept: list[Hash], *apps: str) -> None:
    stack.client("shop", namespace=NAMES.namespace).keep.publish(lambda: kept, allow_empty=True)
    for app in ("blog", *apps):
        stack.client(app, namespace=NAMES.namespace).keep.publish(list, allow_empty=True)


def put(stack: RunningStack, what: str, count: int) -> list[Hash]:
    with Store(stack.store_path, durability="none") as store:
        return [Hash(store.put_bytes(f"{what} {number}".encode())) for number in range(count)]


def trashed(stack: RunningStack) -> int:
    return sum(1 for _ in stack.store_path.glob("Trash/*/*"))


def stored(stack: RunningStack) -> set[str]:
    return {path.name for path in stack.store_path.glob("Data/??/??/*")}


def last_runs(stack: RunningStack) -> dict[str, Any]:
    with ObjectStore(stack.store_path) as store:
        return read_last(store)


def parts(stack: RunningStack, task: str) -> int:
    return stack.log().count(f"Task {task}_part[")


def test_a_collection_and_a_purge_of_many_parts_come_to_their_end(
    stack: RunningStack, person: Callable[[str], Any]
) -> None:
    kept = put(stack, "kept", 5)
    put(stack, "garbage", MANY)
    time.sleep(0.1)
    publish(stack, kept)
    assert person(COLLECT)["phase"] != "done"
    assert eventually(lambda: stored(stack) == set(kept), 30), stack.log()
    assert eventually(lambda: "collect" in last_runs(stack), 10)
    assert trashed(stack) == MANY
    time.sleep(1.1)
    publish(stack, kept)
    celery(stack, "call", PURGE, "--queue", NAMES.maintenance_queue)
    assert eventually(lambda: not trashed(stack), 30), stack.log()
    assert parts(stack, COLLECT) > 1
    assert parts(stack, PURGE) > 0
    assert eventually(lambda: last_runs(stack).get("purge", {}).get("deleted") == MANY, 10)


def test_who_keeps_what_is_in_quarantine_is_told(stack: RunningStack, shop: Client, raw: redis.Redis) -> None:
    lost = shop.ingest(b"to be lost").get(timeout=30).hash
    publish(stack, [lost])
    with ObjectStore(stack.store_path) as store:
        spoil(store, lost, b"rotten")
        # Verification comes to it in a month; a failed sync makes everything due.
        (stack.store_path / "Lock/sync-failed").touch()
    assert eventually(lambda: raw.llen(NAMES.done_queue("shop")), 30), stack.log()
    message = json.loads(raw.rpop(NAMES.done_queue("shop")) or b"")
    assert message["headers"]["task"] == "shop.tasks.file_lost"
    assert message["headers"]["id"].startswith("shop.quarantined-")
    assert lost in message["headers"]["kwargsrepr"]


def test_the_sweep_rings_for_every_kind_of_job_and_each_is_done_and_called_back(
    stack: RunningStack, shop: Client, raw: redis.Redis
) -> None:
    """A client whose Redis is away leaves requests of each kind in the spool; nobody but the sweep knows of them."""
    known = shop.ingest(PICTURE).get(timeout=30).hash
    silent = stack.client("shop", namespace=NAMES.namespace, redis_url="redis+socket:///nowhere")
    jobs = [
        silent.ingest(b"alone", on_done="shop.done"),
        *silent.ingest_many([b"one", b"two"], on_done="shop.done"),
        silent.thumbnail(known, "10x10", on_done="shop.done"),
    ]
    claim = silent.claim([known])
    assert [job.get(timeout=30).size for job in jobs] == [5, 3, 3, len(PICTURE)]
    assert claim.get(timeout=30)["present"] == [known]
    assert eventually(lambda: raw.llen(NAMES.done_queue("shop")) >= len(jobs), 10)
    called = [json.loads(entry)["headers"]["id"] for entry in raw.lrange(NAMES.done_queue("shop"), 0, -1)]
    assert set(called) == {f"{job.id}-done" for job in jobs}


def test_a_hold_lets_collections_wait_and_the_sweep_has_them_done_after_it(
    stack: RunningStack, person: Callable[[str], Any]
) -> None:
    put(stack, "held", 3)
    publish(stack, [])
    with ObjectStore(stack.store_path) as store:
        set_hold(store, 3600)
    assert [person(task)["refused"][0]["reason"] for task in (COLLECT, PURGE)] == ["hold", "hold"]
    before = stored(stack)
    time.sleep(2.1)
    assert stored(stack) == before
    with ObjectStore(stack.store_path) as store:
        release(store)
    assert eventually(lambda: not stored(stack), 30), stack.log()


def test_who_is_registered_is_heard_and_who_is_retired_is_not(
    stack: RunningStack, person: Callable[[str], Any]
) -> None:
    sh(stack, "app", "add", "late")
    put(stack, "late", 3)
    publish(stack, [])
    refused = person(COLLECT)["refused"]
    assert [(each["reason"], each["app"]) for each in refused] == [("no_keep_set", "late")]
    late = stack.client("late", namespace=NAMES.namespace)
    assert late.ingest(b"of the new one").get(timeout=30).size == 14
    publish(stack, [], "late")
    person(COLLECT)
    assert eventually(lambda: not stored(stack), 30)
    sh(stack, "app", "retire", "late", "--yes")
    publish(stack, [])
    assert not person(COLLECT).get("refused")


def test_who_asks_gets_a_report_and_what_beat_asks_for_leaves_none(
    stack: RunningStack, person: Callable[[str], Any], raw: redis.Redis
) -> None:
    assert person(SWEEP)["failed"] == 0
    assert person(VERIFY)["skipped"] in ("", "another verification of this store runs")
    stats = sh(stack, "stats", "--json")
    assert stats["queues"].keys() == {NAMES.maintenance_queue, *map(NAMES.ingest_queue, ("blog", "shop"))}
    assert stats["refused"] == {}
    before = raw.keys("celery-task-meta-*")
    sent = stack.log().count("sending fsworker.sweep")
    assert eventually(lambda: stack.log().count("sending fsworker.sweep") > sent + 1)
    assert sorted(raw.keys("celery-task-meta-*")) == sorted(before)


def test_nobody_refused_what_another_of_our_own_processes_sent(stack: RunningStack) -> None:
    """After all of the above; and nothing went wrong unseen."""
    assert "Traceback" not in stack.log()
    assert "Refused a message" not in stack.log()


def test_a_run_outlives_its_worker_and_its_redis(stack: RunningStack, person: Callable[[str], Any]) -> None:
    """Collections are due once a day here: what is broken off in the middle is taken up by the sweep."""
    for name in ("maintenance", "redis"):
        put(stack, name, MANY)
        publish(stack, [])
        person(COLLECT)
        os.kill(stack.where["pids"][name], signal.SIGKILL)
        assert eventually(lambda: not stored(stack), 60), stack.log()
