"""The judging transport under real workers and a real Redis: what strangers send, and what Redis does, stops nobody."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import hostile_messages
import pytest
import redis
from celery import Celery
from celery.worker import state as worker_state
from hostile_messages import KWARGS, QUEUE, plain, plain_bytes
from kombu import Connection, Consumer, Exchange, Queue
from live_worker import RESULT, Server, StartWorker, Worker, nap, send
from processes import eventually

from fsworker.broker import door, transport
from fsworker.broker.door import configure
from fsworker.broker.judge import QueueRules, Reason, Refused
from fsworker.broker.options import broker_settings, transport_options
from fsworker.errors import ConfigError

# Strangers


def test_a_stock_producer_is_served(server: Server, start_worker: StartWorker) -> None:
    start_worker()
    producer = Celery(broker=server.url, backend=server.url, set_as_current=False)
    job_id = f"shop.{uuid4()}"
    result = producer.send_task("fsworker.ingest", kwargs=KWARGS, queue=QUEUE, task_id=job_id)
    assert result.get(timeout=20) == {"kwargs": KWARGS, "queue": QUEUE}
    producer.send_task("fsworker.ingest", kwargs=KWARGS, queue=QUEUE, task_id=f"shop.{uuid4()}", priority=9)
    assert eventually(lambda: len(server.redis.keys(f"{RESULT}*")) == 2)
    assert eventually(lambda: server.unacknowledged() == 0)
    producer.close()


def test_hostile_messages_neither_run_nor_stop_a_worker(server: Server, start_worker: StartWorker) -> None:
    worker = start_worker()
    hostile = hostile_messages.refused()
    good = [f"shop.good-{number:08d}" for number in range(100)]
    messages = [case.raw for case in hostile]
    for number, job_id in enumerate(good):
        messages.insert((number * len(messages)) // len(good), plain_bytes(job_id))
    server.redis.lpush(QUEUE, *messages)
    assert eventually(lambda: len(worker.ends) >= len(good), 60), worker.output[-5000:]
    assert eventually(lambda: server.queued() == 0, 30)
    last = send(server, **KWARGS)
    assert eventually(lambda: worker.ends[last] == 1)
    assert worker.starts == worker.ends == Counter([*good, last])
    assert worker.refusals == Counter((QUEUE, case.reason) for case in hostile)
    assert worker.is_alive()
    assert "Connection to broker lost" not in worker.output
    assert "Traceback" not in worker.output
    # One line for each reason, not for each message.
    assert worker.output.count("Refused a message") == len({case.reason for case in hostile})
    assert {key.decode() for key in server.redis.scan_iter()} == {f"{RESULT}{job_id}" for job_id in worker.ends}


def test_a_stock_worker_is_stopped_or_runs_them(server: Server, start_worker: StartWorker) -> None:
    """The negative control of the test above: the corpus has teeth."""
    worker = start_worker(JUDGED_STOCK="1")
    chain = next(
        case for case in hostile_messages.refused() if case.family == "canvas" and case.name.startswith("chain")
    )
    server.redis.lpush(QUEUE, chain.raw)
    assert eventually(lambda: server.queued("fsworker.maintenance") or "COLLECTED" in worker.log_path.read_text())
    server.redis.lpush(QUEUE, b"[]")
    assert eventually(lambda: not worker.is_alive())


def test_steering_messages_run_like_plain_ones(server: Server, start_worker: StartWorker) -> None:
    worker = start_worker()
    cases = hostile_messages.defused()
    server.redis.lpush(QUEUE, *(case.raw for case in cases))
    assert eventually(lambda: len(worker.ends) == len(cases), 60), worker.output[-5000:]
    assert set(worker.ends.values()) == {1}
    assert worker.refusals == Counter()
    assert worker.is_alive()
    results = {f"{RESULT}{job_id}" for job_id in worker.ends}
    assert eventually(lambda: {key.decode() for key in server.redis.scan_iter()} == results), (
        "the last one is acknowledged"
    )
    assert all(server.result(job_id)["result"]["queue"] == QUEUE for job_id in worker.ends)


def test_the_queue_decides_whose_message_it_is(server: Server, start_worker: StartWorker) -> None:
    worker = start_worker()
    server.redis.lpush("fsworker.ingest.blog", plain_bytes("shop.12345678", queue=QUEUE))
    server.redis.lpush(QUEUE, plain_bytes("blog.12345678", queue="fsworker.ingest.blog"))
    server.redis.lpush("fsworker.ingest.blog", plain_bytes("blog.good-0001", queue="fsworker.maintenance"))
    assert eventually(lambda: worker.ends == Counter(["blog.good-0001"]))
    assert eventually(lambda: worker.refusals.total() == 2)
    assert {reason for _, reason in worker.refusals} == {Reason.FOREIGN_ID}


def test_a_failing_callback_of_refusals_stops_nothing(server: Server, start_worker: StartWorker) -> None:
    worker = start_worker()
    server.redis.lpush(QUEUE, plain_bytes("shop.raise-in-the-callback", task="no.such"))
    job_id = send(server, **KWARGS)
    assert eventually(lambda: worker.ends[job_id] == 1)
    assert "Reporting a refused message" in worker.output


def test_a_worker_listens_to_its_queues_alone(server: Server, start_worker: StartWorker) -> None:
    """Started without options: no remote control, no gossip, no mingle, no events."""
    worker = start_worker()
    assert server.redis.pubsub_numpat() == 0
    assert server.redis.pubsub_channels() == []
    server.redis.publish("/0.celery.pidbox", json.dumps({"method": "shutdown"}))
    server.redis.publish("/0.celeryev/worker.heartbeat", b"\xff")
    job_id = nap(server, 0)
    assert eventually(lambda: worker.ends[job_id] == 1)
    assert server.redis.keys("*pidbox*") == server.redis.keys("*celeryev*") == []


# Unacknowledged messages


def test_forged_unacknowledged_entries_are_judged_like_messages(server: Server, start_worker: StartWorker) -> None:
    forged: dict[str, object] = {
        "to maintenance": [plain("shop.forged-01", task="fsworker.collect"), "", "fsworker.maintenance"],
        "to another key": [plain("shop.forged-02"), "", "celery-task-meta-blog.12345678"],
        "foreign id": [plain("blog.forged-03"), "", QUEUE],
        "no message": [None, "", QUEUE],
        "a list": [[], "", QUEUE],
        "no queue": [plain("shop.forged-04"), "", None],
        "two items": [plain("shop.forged-05"), ""],
        "a number": 1,
        "deep": json.loads("[" * 500 + "]" * 500),
        "good": [plain("shop.good-00001"), "x", QUEUE],
    }
    entries: dict[str, bytes] = {tag: json.dumps(entry).encode() for tag, entry in forged.items()}
    entries |= {
        "not json": b"{",
        "not text": b"\xff",
        "deeper": b"[" * 100_000,
        "empty": b"",
        "nan": b"[NaN, NaN, NaN]",
    }
    server.redis.hset("test:ingest:unacked", mapping=entries)
    server.redis.zadd("test:ingest:unacked_index", dict.fromkeys([*entries, "not there"], 1.0))
    worker = start_worker()
    assert eventually(lambda: worker.ends == Counter(["shop.good-00001"]))
    later = nap(server, 0)
    assert eventually(lambda: worker.ends[later] == 1)
    assert worker.is_alive()
    assert server.queued("fsworker.maintenance") == 0
    assert not server.redis.exists("celery-task-meta-blog.12345678")
    # What is of no queue of this worker stays for whom it may concern.
    assert eventually(
        lambda: set(server.redis.hkeys("test:ingest:unacked")) == {b"to maintenance", b"to another key"}
    ), server.redis.hkeys("test:ingest:unacked")


def test_what_a_killed_worker_held_is_delivered_again(server: Server, start_worker: StartWorker) -> None:
    worker = start_worker(JUDGED_VISIBILITY_TIMEOUT_S="2")
    job_id = nap(server, 3)
    assert eventually(lambda: worker.starts[job_id] == 1)
    worker.kill()
    assert server.unacknowledged() == 1
    other = start_worker("-n", "other@%h", JUDGED_VISIBILITY_TIMEOUT_S="2")
    assert eventually(lambda: other.starts[job_id] == 2)


def test_a_message_whose_child_died_goes_back_and_says_so(server: Server, start_worker: StartWorker) -> None:
    worker = start_worker()
    job_id = send(server, "test.die")
    assert eventually(lambda: worker.ends[job_id] == 1, 20)
    assert eventually(lambda: (server.result(job_id) or {}).get("result") == "redelivered True")
    assert eventually(lambda: server.unacknowledged() == 0)


def test_a_task_without_memory_does_not_stop_its_worker(server: Server, start_worker: StartWorker) -> None:
    worker = start_worker()
    job_id = send(server, "test.exhaust")
    assert eventually(lambda: worker.starts[job_id] == 1)
    later = nap(server, 0)
    assert eventually(lambda: worker.ends[later] == 1), worker.output
    assert eventually(lambda: server.unacknowledged() == 0)
    assert worker.starts[job_id] == 1
    assert "ran out of memory" in worker.output


def test_one_applications_backlog_does_not_keep_another_waiting(server: Server, start_worker: StartWorker) -> None:
    worker = start_worker()
    with suspended(worker):
        for number in range(500):
            server.redis.lpush(QUEUE, plain_bytes(f"shop.backlog-{number:06d}"))
        server.redis.lpush("fsworker.ingest.blog", plain_bytes("blog.good-0001", queue="fsworker.ingest.blog"))
    assert eventually(lambda: worker.ends["blog.good-0001"] == 1, 20)
    assert worker.starts.total() < 50


def test_a_cold_shutdown_hands_back_at_once(server: Server, start_worker: StartWorker) -> None:
    worker = start_worker()
    job_id = nap(server, 30)
    assert eventually(lambda: worker.starts[job_id] == 1)
    worker.signal(signal.SIGQUIT)
    assert (server.queued(), server.unacknowledged()) == (1, 0)


def test_a_warm_shutdown_finishes_what_it_holds(server: Server, start_worker: StartWorker) -> None:
    worker = start_worker()
    job_id = nap(server, 1)
    assert eventually(lambda: worker.starts[job_id] == 1)
    worker.signal(signal.SIGTERM)
    assert worker.ends[job_id] == 1
    assert (server.queued(), server.unacknowledged()) == (0, 0)


# Redis fails


def test_a_restart_of_redis_during_a_task(server: Server, start_worker: StartWorker) -> None:
    worker = start_worker()
    job_id = nap(server, 3)
    assert eventually(lambda: worker.starts[job_id] == 1)
    server.restart()
    assert eventually(lambda: worker.ends[job_id] == 1, 20)
    later = nap(server, 0)
    assert eventually(lambda: worker.ends[later] == 1, 30), worker.output
    assert eventually(lambda: server.unacknowledged() == 0)
    assert worker.starts == Counter([job_id, later])


def test_cut_connections_do_not_start_a_running_task_twice(server: Server, start_worker: StartWorker) -> None:
    worker = start_worker()
    job_id = nap(server, 4)
    assert eventually(lambda: worker.starts[job_id] == 1)
    server.cut_connections()
    assert eventually(lambda: worker.output.count("Connection to broker lost") == 1)
    later = nap(server, 0)
    assert eventually(lambda: worker.ends[later] == 1, 20)
    assert worker.ends[job_id] == 0  # the second child was free, and was not given the first one's message again
    assert eventually(lambda: worker.ends[job_id] == 1, 20)
    assert eventually(lambda: server.unacknowledged() == 0)
    assert worker.starts == Counter([job_id, later])


def test_a_redis_that_hangs_during_a_task(server: Server, start_worker: StartWorker) -> None:
    worker = start_worker()
    job_id = nap(server, 1)
    assert eventually(lambda: worker.starts[job_id] == 1)
    with server.frozen():
        assert eventually(lambda: worker.ends[job_id] == 1)
        time.sleep(5)  # longer than the worker's socket timeout
    later = nap(server, 0)
    assert eventually(lambda: worker.ends[later] == 1, 30), worker.output
    assert eventually(lambda: server.unacknowledged() == 0, 20)
    assert worker.is_alive()


def test_a_redis_that_is_full_loses_no_message(server: Server, start_worker: StartWorker) -> None:
    worker = start_worker()
    server.redis.config_set("maxmemory", "0")
    with suspended(worker):
        jobs = [nap(server, 0) for _ in range(20)]
        server.redis.config_set("maxmemory", "1")
    try:
        assert eventually(lambda: "Redis refuses" in worker.output), worker.output
        waiting = server.queued()
        time.sleep(2.5)  # it tries again, and takes no further message
        assert server.queued() == waiting
        assert worker.starts == Counter()
    finally:
        server.redis.config_set("maxmemory", "0")
    assert eventually(lambda: worker.ends == Counter(jobs), 20), worker.output
    assert worker.output.count("Redis refuses") == 1


def test_a_full_redis_costs_no_message_when_the_worker_stops(server: Server, start_worker: StartWorker) -> None:
    worker = start_worker()
    with suspended(worker):
        job_id = nap(server, 0)
        server.redis.config_set("maxmemory", "1")
    try:
        assert eventually(lambda: "Redis refuses" in worker.output), worker.output
    finally:
        server.redis.config_set("maxmemory", "0")
    worker.signal(signal.SIGTERM)
    assert worker.ends[job_id] or server.queued() == 1


def test_a_demoted_primary_is_waited_for(server: Server, start_worker: StartWorker) -> None:
    worker = start_worker()
    server.redis.replicaof("127.0.0.1", "1")
    try:
        assert eventually(lambda: "Redis refuses" in worker.output), worker.output
    finally:
        server.redis.replicaof("NO", "ONE")
    job_id = nap(server, 0)
    assert eventually(lambda: worker.ends[job_id] == 1, 20), worker.output
    assert worker.is_alive()


@contextmanager
def suspended(worker: Worker) -> Iterator[None]:
    """Stop the main process for the block. A pop that it began before has a second at most."""
    worker.process.send_signal(signal.SIGSTOP)
    try:
        time.sleep(1.2)
        yield
    finally:
        worker.process.send_signal(signal.SIGCONT)


# In this process


@pytest.fixture
def rules() -> Iterator[dict[str, QueueRules]]:
    """The rules of this process; those of QUEUE admit everything."""
    found = {QUEUE: QueueRules(QUEUE, {"fsworker.ingest": lambda _: None}, "shop.")}
    configure(found.get, lambda _refused, _queue: None)
    yield found
    configure(lambda _queue: None, lambda _refused, _queue: None)


@pytest.fixture
def connection(server: Server, rules: dict[str, QueueRules]) -> Iterator[Connection]:
    settings = broker_settings(server.url)
    options = transport_options(60, "test:ingest:")
    with Connection(settings["broker_url"], transport_options=options) as made:
        yield made


def queue(name: str = QUEUE) -> Queue:
    return Queue(name, Exchange(""), name, no_declare=True)


def take(connection: Connection, channel: Any) -> Any:
    """Consume one message on ``channel``, do not acknowledge it."""
    taken: list[Any] = []
    with Consumer(channel, [queue()], on_message=taken.append, prefetch_count=1):
        for _ in range(50):
            if taken:
                return taken[0]
            connection.drain_events(timeout=5)
    raise AssertionError("no message came")


def test_a_queue_without_rules_cannot_be_consumed_from(connection: Connection) -> None:
    channel = connection.channel()
    with pytest.raises(ConfigError, match="no rules"):
        Consumer(channel, [queue("celery")]).consume()
    with pytest.raises(ConfigError, match="no rules"):
        Consumer(channel, [Queue("x", Exchange("x", type="fanout"))]).consume()


def test_the_plain_get_is_judged_too(server: Server, connection: Connection) -> None:
    server.redis.lpush(QUEUE, b"[]", plain_bytes("blog.12345678"), plain_bytes("shop.12345678"), b"{")
    before = door.door.counts.total()
    message = queue().bind(connection.channel()).get()
    assert message.headers["id"] == "shop.12345678"
    assert queue().bind(connection.channel()).get() is None
    assert door.door.counts.total() - before == 3


def test_an_acknowledgement_on_a_closed_channel_is_paid_on_the_next(server: Server, connection: Connection) -> None:
    server.redis.lpush(QUEUE, plain_bytes("shop.12345678"), plain_bytes("shop.23456789"))
    channel = connection.channel()
    message = take(connection, channel)
    channel.close()
    message.ack()
    assert server.unacknowledged() == 1
    take(connection, connection.channel()).ack()
    assert server.unacknowledged() == 0


def test_a_rejection_on_a_closed_channel_waits_for_its_time(server: Server, connection: Connection) -> None:
    server.redis.lpush(QUEUE, plain_bytes("shop.12345678"))
    channel = connection.channel()
    message = take(connection, channel)
    channel.close()
    message.reject(requeue=True)
    assert (server.queued(), server.unacknowledged()) == (0, 1)


def test_a_channel_that_closes_hands_back_only_at_shutdown(
    server: Server, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.redis.lpush(QUEUE, plain_bytes("shop.12345678"))
    channel = connection.channel()
    take(connection, channel)
    channel.close()
    assert (server.queued(), server.unacknowledged()) == (0, 1)
    server.redis.flushall()
    server.redis.lpush(QUEUE, plain_bytes("shop.12345678"))
    channel = connection.channel()
    take(connection, channel)
    monkeypatch.setattr(worker_state, "should_stop", 0)
    channel.close()
    assert (server.queued(), server.unacknowledged()) == (1, 0)


def test_acknowledgements_are_owed_while_redis_is_away(server: Server, connection: Connection) -> None:
    server.redis.lpush(QUEUE, plain_bytes("shop.12345678"))
    channel = connection.channel()
    message = take(connection, channel)
    with server.stopped():
        message.ack()
        assert channel.qos.can_consume()
    assert server.unacknowledged() == 1
    channel.qos.restore_visible()
    assert server.unacknowledged() == 0


def test_a_rejected_message_goes_to_the_end_of_its_queue(server: Server, connection: Connection) -> None:
    server.redis.lpush(QUEUE, plain_bytes("shop.first-001"), plain_bytes("shop.second-02"))
    channel = connection.channel()
    take(connection, channel).reject(requeue=True)
    ids = [json.loads(raw)["headers"]["id"] for raw in server.redis.lrange(QUEUE, 0, -1)]
    assert ids == ["shop.first-001", "shop.second-02"]  # the last is the next


def test_rules_may_come_and_go(server: Server, connection: Connection, rules: dict[str, QueueRules]) -> None:
    """A message of an application that was retired while it was held is neither run nor put anywhere."""
    server.redis.lpush(QUEUE, plain_bytes("shop.12345678"))
    message = take(connection, connection.channel())
    rules.clear()
    message.reject(requeue=True)
    assert (server.queued(), server.unacknowledged()) == (0, 1)


# The door


def test_refusals_are_logged_once_in_a_burst(caplog: pytest.LogCaptureFixture) -> None:
    one = door.Door()
    for _ in range(100):
        one.report(Refused(Reason.SHAPE, "detail", None), "a")
        one.report(Refused(Reason.NOT_JSON, "detail", None), "a")
        one.report(Refused(Reason.SHAPE, "detail", None), "b")
    assert len(caplog.records) == 3
    assert one.counts["a", Reason.SHAPE] == 100


def test_failures_of_the_callback_are_logged_once_in_a_burst(caplog: pytest.LogCaptureFixture) -> None:
    def fail(_refused: Refused, _queue: str) -> None:
        raise OSError("no Redis")

    one = door.Door()
    one.on_refused = fail
    for _ in range(100):
        one.report(Refused(Reason.SHAPE, "detail", None), "a")
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]


# Settings


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:secret@host:6380/3",
        "rediss://host/0",
        "rediss://host/0?ssl_cert_reqs=none",
        "redis+socket:///a/b?x=1",
    ],
)
def test_every_kind_of_url_goes_through_the_judge(url: str) -> None:
    app = Celery(set_as_current=False)
    app.conf.update(broker_settings(url))
    with app.connection_for_read() as made:
        assert made.get_transport_cls() is transport.Transport
    with app.connection_for_write() as made:
        assert made.get_transport_cls() is transport.Transport


@pytest.mark.parametrize("url", ["amqp://host", "memory://", "host:6379", "", "sentinel://host", "redis"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="redis://"):
        broker_settings(url)


@pytest.mark.parametrize("parameters", ["", "?ssl_cert_reqs=none"])
def test_rediss_speaks_tls(parameters: str) -> None:
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def listen() -> None:
            accepted, _ = listener.accept()
            listener.close()  # it is tried twice
            with accepted:
                heard.append(accepted.recv(3))

        thread = threading.Thread(target=listen)
        thread.start()
        app = Celery(set_as_current=False)
        port = listener.getsockname()[1]
        app.conf.update(broker_settings(f"rediss://127.0.0.1:{port}/0{parameters}"))
        with app.connection_for_read() as made, pytest.raises(redis.ConnectionError):
            made.connect()
        thread.join(10)
    assert heard[0][:2] == b"\x16\x03"  # a handshake: RFC 8446, 5.1


def test_certificates_are_verified_unless_the_url_says_otherwise() -> None:
    settings = broker_settings("rediss://host/0")
    assert settings["broker_use_ssl"]["ssl_cert_reqs"].name == "CERT_REQUIRED"
    assert "broker_use_ssl" not in broker_settings("rediss://host/0?ssl_cert_reqs=none")


def test_roles_keep_their_unacknowledged_messages_apart() -> None:
    ingest, maintenance = (transport_options(60, f"fsworker:{role}:") for role in ("ingest", "maintenance"))
    keys = [name for name in ingest if name.startswith("unacked") and name.endswith("key")]
    assert len(keys) == 3
    assert all(ingest[name] != maintenance[name] for name in keys)
