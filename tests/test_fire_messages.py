"""Hostile messages against everything that ``fsworker up`` runs: none runs, nobody stops, every good upload is done."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import hostile_messages
import pytest
import redis
from celery import Celery
from hostile_messages import QUEUE, plain, plain_bytes
from processes import eventually
from stacks import RunningStack, running_stack

from fsworker.broker.judge import Reason
from fsworker.broker.kv import connect
from fsworker.errors import UploadRejectedError

RESULT = "celery-task-meta-"


@pytest.fixture(scope="module")
def quiet_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """A stack whose sweep does not ring by itself, so that what runs was in a message."""
    with running_stack(tmp_path_factory.mktemp("fire"), sweep_every="1h", visibility_timeout="10m") as running:
        yield running


@pytest.fixture
def raw(quiet_stack: RunningStack) -> Iterator[redis.Redis]:
    with connect(quiet_stack.redis_url) as client:
        yield client


def children(stack: RunningStack) -> list[int]:
    """The processes that ``up`` started, not those that they started."""
    path = Path(f"/proc/{stack.process.pid}/task/{stack.process.pid}/children")
    return [int(pid) for pid in path.read_text().split()]


def test_hostile_messages_do_not_run_and_good_uploads_do(quiet_stack: RunningStack, raw: redis.Redis) -> None:
    client = quiet_stack.client()
    running = children(quiet_stack)
    hostile = [case.raw for case in hostile_messages.refused()]
    per_upload = len(hostile) // 100
    jobs = []
    for number in range(100):
        raw.lpush(QUEUE, *hostile[number * per_upload : (number + 1) * per_upload])
        jobs.append(client.ingest(f"good {number}".encode()))
    raw.lpush(QUEUE, *hostile[100 * per_upload :])
    results = [job.get(timeout=120) for job in jobs]
    assert len({result.hash for result in results}) == 100
    assert eventually(lambda: raw.llen(QUEUE) == 0, 30)
    last = client.ingest(b"last").get(timeout=30)
    assert set(quiet_stack.store()) == {last.hash, *(result.hash for result in results)}
    assert children(quiet_stack) == running
    assert raw.llen("fsworker.maintenance") == 0
    assert not list((quiet_stack.store_path / "Error").iterdir())
    # Nothing was taken for a job: no request, no outcome, but those of the good ones.
    assert not [path for path in quiet_stack.spool().iterdir() if "hostile" in path.name]
    # Only under ids of its own does an application read a failure, and it says why.
    told = {key.decode().removeprefix(RESULT) for key in raw.scan_iter(f"{RESULT}*")}
    assert all(job_id.startswith("shop.") for job_id in told)
    refused = [job_id for job_id in told if job_id.startswith("shop.hostile-")]
    assert len(refused) > 300
    assert json.loads(raw.get(RESULT + refused[0]))["status"] == "FAILURE"  # type: ignore[arg-type]


def test_refusals_are_counted_where_a_person_sees_them(quiet_stack: RunningStack) -> None:
    shown = json.loads(fsworker("stats", "--json", quiet_stack))["refused"][QUEUE]
    hostile = hostile_messages.refused()
    assert shown == Counter(str(case.reason) for case in hostile)
    assert "Refused  messages of fsworker.ingest.shop: arguments" in fsworker("stats", quiet_stack)


def fsworker(*arguments: object) -> str:
    *words, stack = arguments
    assert isinstance(stack, RunningStack)
    command = [sys.executable, "-m", "fsworker", *map(str, words), "--store", str(stack.store_path)]
    return subprocess.run(command, env=stack.environment, capture_output=True, text=True, check=True).stdout


def test_the_sender_of_a_refused_message_reads_why(quiet_stack: RunningStack) -> None:
    producer = Celery(broker=quiet_stack.redis_url, backend=quiet_stack.redis_url, set_as_current=False)
    job_id = "shop.refused-0001"
    producer.send_task("fsworker.ingest", kwargs={"upload": "../blog/x"}, queue=QUEUE, task_id=job_id)
    with pytest.raises(UploadRejectedError, match="the message was refused: .*upload"):
        quiet_stack.client().job(job_id).get(timeout=20)
    producer.close()


def test_a_refusal_does_not_replace_a_result(quiet_stack: RunningStack, raw: redis.Redis) -> None:
    job = quiet_stack.client().ingest(b"kept")
    result = job.get(timeout=20)
    raw.lpush(QUEUE, plain_bytes(job.id, task="fsworker.collect"))
    quiet_stack.client().ingest(b"after").get(timeout=20)
    assert json.loads(raw.get(RESULT + job.id))["status"] == "SUCCESS"  # type: ignore[arg-type]
    assert job.get(timeout=20) == result


def test_steering_fields_steer_nothing(quiet_stack: RunningStack, raw: redis.Redis) -> None:
    """Their uploads do not exist: each job fails under its own id, in its own place."""
    running = children(quiet_stack)
    cases = hostile_messages.defused()[::5]
    ids = [json.loads(case.raw)["headers"]["id"] for case in cases]
    raw.lpush(QUEUE, *(case.raw for case in cases))
    assert eventually(lambda: all(raw.exists(RESULT + job_id) for job_id in ids), 60)
    assert children(quiet_stack) == running
    assert raw.llen("fsworker.maintenance") == 0
    assert {path.name.split(".")[1] for path in quiet_stack.spool().iterdir() if "hostile" in path.name} == {"shop"}


def test_nothing_of_an_application_reaches_maintenance(quiet_stack: RunningStack, raw: redis.Redis) -> None:
    """Not by name, not by canvas, not by a forged way back of an unacknowledged message."""
    forged = plain("shop.forged-0001", task="fsworker.sweep", kwargs={})
    forged["properties"]["delivery_info"] = {"exchange": "", "routing_key": "fsworker.maintenance"}
    raw.lpush(QUEUE, json.dumps(forged))
    raw.hset("fsworker:ingest:unacked", "tag", json.dumps([forged, "", "fsworker.maintenance"]))
    raw.zadd("fsworker:ingest:unacked_index", {"tag": 1})
    quiet_stack.client().ingest(b"once more").get(timeout=20)
    assert raw.llen("fsworker.maintenance") == 0
    assert json.loads(raw.get(f"{RESULT}shop.forged-0001"))["status"] == "FAILURE"  # type: ignore[arg-type]
    raw.delete("fsworker:ingest:unacked", "fsworker:ingest:unacked_index")


def test_maintenance_messages_are_judged_as_well(quiet_stack: RunningStack, raw: redis.Redis) -> None:
    running = children(quiet_stack)
    raw.lpush("fsworker.maintenance", b"[]", b"{", plain_bytes("sweep-12345678", task="fsworker.ingest"))
    raw.lpush("fsworker.maintenance", plain_bytes("sweep-23456789", task="fsworker.sweep", kwargs={"x": 1}))
    assert eventually(lambda: raw.llen("fsworker.maintenance") == 0)
    assert eventually(lambda: quiet_stack.log().count("Refused a message of queue fsworker.maintenance") == 4)
    assert children(quiet_stack) == running


def test_refusals_are_logged_once_for_each_reason(quiet_stack: RunningStack) -> None:
    log = quiet_stack.log()
    assert all(log.count(f"Refused a message of queue {QUEUE} ({reason})") <= 2 for reason in Reason)
    assert "Traceback" not in log
