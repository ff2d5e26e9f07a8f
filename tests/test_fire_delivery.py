"""What is delivered twice, forgotten, or kills whoever takes it has the effect of one delivery, or of none."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from hostile_messages import QUEUE, plain_bytes
from processes import eventually
from stacks import RunningStack, running_stack

from fsworker.broker.kv import connect
from fsworker.errors import UploadRejectedError
from fsworker.model import IngestResult

POISONER = """
import os, signal
import fsworker.media as media
sniff = media.sniff

def sniff_or_die(fd):
    if os.pread(fd, 6, 0) == b"POISON":
        os.kill(os.getpid(), signal.SIGKILL)
    return sniff(fd)

media.sniff = sniff_or_die
"""
"""As ``sitecustomize`` it makes every process die that looks at such an upload."""


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    directory = tmp_path_factory.mktemp("poisoned")
    (directory / "python").mkdir()
    (directory / "python" / "sitecustomize.py").write_text(POISONER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(directory / "python"))
        with running_stack(directory, sweep_every="1s", visibility_timeout="3s", max_attempts="2") as running:
            yield running


@pytest.fixture
def raw(stack: RunningStack) -> Iterator[redis.Redis]:
    with connect(stack.redis_url) as client:
        yield client


def test_an_upload_that_kills_its_process_is_put_aside_while_others_flow(poisoned: RunningStack) -> None:
    client = poisoned.client()
    poison = client.ingest(b"POISON alone")
    others = []
    while poison.state not in ("failed", "done"):
        others.append(client.ingest(b"good %d" % len(others)))
        others[-1].get(timeout=60)
        time.sleep(0.1)
        assert len(others) < 600
    with pytest.raises(UploadRejectedError, match="2 attempts ended without a result.*kept as Error/"):
        poison.get(timeout=1)
    kept = [path.read_bytes() for path in (poisoned.store_path / "Error").rglob("*") if path.is_file()]
    assert b"POISON alone" in kept
    assert len(others) > 1


def test_a_batch_with_an_upload_that_kills_is_split(poisoned: RunningStack) -> None:
    contents = [b"in a batch %d" % number for number in range(10)]
    contents.insert(5, b"POISON in a batch")
    jobs = poisoned.client().ingest_many(contents)
    for job, data in zip(jobs, contents, strict=True):
        if data.startswith(b"POISON"):
            with pytest.raises(UploadRejectedError, match="attempts ended without a result"):
                job.get(timeout=90)
        else:
            result = job.get(timeout=90)
            assert isinstance(result, IngestResult)
            assert result.hash == hashlib.sha1(data).hexdigest()


def test_many_deliveries_of_one_message_have_one_effect(stack: RunningStack, raw: redis.Redis) -> None:
    job_id = f"shop.{uuid.uuid4()}"
    (stack.spool() / "once").write_bytes(b"only once")
    message = plain_bytes(job_id, kwargs={"upload": "once", "on_done": "shop.attach"})
    raw.lpush(QUEUE, *[message] * 30)
    result = stack.client().job(job_id).get(timeout=30)
    assert isinstance(result, IngestResult)
    assert eventually(lambda: raw.llen(QUEUE) == 0)
    assert stack.client().ingest(b"after").get(timeout=30)
    assert stack.client().job(job_id).get(timeout=5) == result
    assert result.hash == hashlib.sha1(b"only once").hexdigest()
    assert not (stack.spool() / "once").exists()
    # Callbacks may come more than once; they bear one id and say the same.
    came = [json.loads(entry) for entry in raw.lrange("fsworker.done.shop", 0, -1)]
    ours = Counter((entry["headers"]["id"], entry["body"]) for entry in came if job_id in entry["headers"]["id"])
    assert len(ours) == 1


def test_an_expired_result_is_read_from_the_spool(stack: RunningStack, raw: redis.Redis) -> None:
    job = stack.client().ingest(b"expires")
    result = job.get(timeout=30)
    assert eventually(lambda: raw.delete(f"celery-task-meta-{job.id}"))
    assert stack.client().job(job.id).get(timeout=5) == result
    raw.lpush(QUEUE, plain_bytes(job.id, kwargs={"upload": "long gone"}))  # rung for again, with other arguments
    assert eventually(lambda: raw.exists(f"celery-task-meta-{job.id}"), 20)
    assert stack.client().job(job.id).get(timeout=5) == result


def test_a_second_beat_does_no_harm(stack: RunningStack, tmp_path: Path) -> None:
    """Another host's: with a state directory of its own, so that nothing keeps it from ticking as well."""
    environment = {**stack.environment, "FSWORKER_STORE": str(stack.store_path), "FSWORKER_REDIS_URL": stack.redis_url}
    log = tmp_path / "beat.log"
    with log.open("w") as output:
        beat = subprocess.Popen(
            [sys.executable, "-m", "fsworker", "beat"],
            env={**environment, "FSWORKER_STATE_DIR": str(tmp_path / "state"), "FSWORKER_SWEEP_EVERY": "1s"},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        assert eventually(lambda: "fsworker.sweep" in log.read_text(), 30), log.read_text()
        jobs = stack.client().ingest_many([b"between two beats %d" % number for number in range(30)])
        hashes = [job.get(timeout=30).hash for job in jobs]  # type: ignore[union-attr]
        assert len(set(hashes)) == 30
        assert beat.poll() is None
    finally:
        beat.terminate()
        beat.wait(30)
