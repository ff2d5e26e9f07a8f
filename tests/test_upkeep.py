"""Collections in the queue: beat starts them, parts follow parts, refusals are told, nothing is done twice."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from keeping import DAY, VirtualKV, World, world
from virtual_time import virtual_clock

from fsworker.broker.judge import Accepted, QueueRules, judge
from fsworker.broker.kv import KV, connect
from fsworker.broker.names import COLLECT, COLLECT_PART, PURGE, PURGE_PART, SWEEP
from fsworker.broker.sending import Sender
from fsworker.celery import make_app
from fsworker.client import Client
from fsworker.collection.retire import retire
from fsworker.collection.upkeep import Upkeep, read_last
from fsworker.contrib.celery import EVERY_S, add_publish_keep_set
from fsworker.errors import KeepSetError, RedisUnavailableError, UploadRejectedError
from fsworker.jobs.tasks import MAINTENANCE_VALIDATORS
from fsworker.store.hold import release, set_hold

Sent = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def w(tmp_path: Path, redis_url: str) -> Iterator[World]:
    with virtual_clock() as clock, world(tmp_path, VirtualKV(redis_url, clock)) as made:
        yield made


def upkeep(w: World, sent: Sent, part_s: float = 30.0) -> Upkeep:
    def send(task: str, kwargs: Mapping[str, Any], queue: str, task_id: str) -> None:
        assert queue == w.names.maintenance_queue
        MAINTENANCE_VALIDATORS[task](dict(kwargs))
        sent.append((task, dict(kwargs)))

    settings = w.settings.model_copy(update={"visibility_timeout": part_s * 4})
    return Upkeep(w.store, w.kv, send, settings)


def run_all(keeper: Upkeep, sent: Sent) -> int:
    """Do what was sent, until nothing is; returns how many parts."""
    parts = 0
    while sent:
        parts += 1
        task, kwargs = sent.pop(0)
        does = {COLLECT: keeper.collect, COLLECT_PART: keeper.collect, PURGE: keeper.purge, PURGE_PART: keeper.purge}
        does[task](**kwargs)
    return parts


def test_parts_follow_parts_to_the_end(w: World) -> None:
    names = w.put(*map(str, range(200)))
    w.clock.advance(3 * DAY)
    w.publish_all(shop=names[:100])
    sent: Sent = []
    keeper = upkeep(w, sent, part_s=0.01)
    assert keeper.collect()["phase"] == "plan"
    assert run_all(keeper, sent) > 1
    assert set(w.store) == set(names[:100])
    assert read_last(w.store)["collect"]["trashed"] == 100
    w.clock.advance(40 * DAY)
    w.publish_all(shop=names[:100])
    assert not keeper.purge()["done"]
    assert run_all(keeper, sent) > 1
    assert w.trashed() == []
    assert read_last(w.store)["purge"]["deleted"] == 100, "all of it, not the last part's"


def test_a_message_that_is_delivered_twice_does_nothing_twice(w: World) -> None:
    w.put(*map(str, range(200)))
    w.clock.advance(3 * DAY)
    w.publish_all()
    sent: Sent = []
    keeper = upkeep(w, sent, part_s=0.01)
    keeper.collect()
    while sent:
        task, kwargs = sent.pop(0)
        assert task == COLLECT_PART
        keeper.collect(**kwargs)
        keeper.collect(**kwargs)
    assert len(w.trashed()) == 200
    assert len(list(w.store.root.glob("Trash/*"))) == 1


def test_a_lost_message_is_made_good_by_the_next_tick(w: World) -> None:
    w.put(*map(str, range(100)))
    w.clock.advance(3 * DAY)
    w.publish_all()
    sent: Sent = []
    first = upkeep(w, sent, part_s=0.0).collect()
    sent.clear()
    done = upkeep(w, sent).collect()
    assert (done["run"], done["trashed"]) == (first["run"], 100)


def test_a_refusal_is_logged_and_noted(w: World, caplog: pytest.LogCaptureFixture) -> None:
    keeper = upkeep(w, [])
    with caplog.at_level(logging.WARNING):
        assert [r["reason"] for r in keeper.collect()["refused"]] == ["no_keep_set", "no_keep_set"]
        assert len(keeper.purge()["refused"]) == 2
    assert "application blog has no keep-set" in caplog.text
    assert len(read_last(w.store)["collect"]["refused"]) == 2


def test_two_beats_at_once_do_no_harm(w: World) -> None:
    w.publish_all()
    keeper = upkeep(w, [])
    with w.collector().alone():
        assert keeper.collect()["refused"][0]["reason"] == "running"
    assert "collect" not in read_last(w.store)


@pytest.mark.parametrize("what", ["collect", "purge"])
def test_what_found_another_at_work_comes_to_its_turn_by_the_sweep(w: World, what: str) -> None:
    """Beat starts both at the same moment: the one that is refused must not wait for the next day, when it is refused again."""
    w.put("garbage")
    w.clock.advance(3 * DAY)
    w.publish_all()
    sent: Sent = []
    keeper = upkeep(w, sent)
    with w.collector().alone():
        assert getattr(keeper, what)()["refused"][0]["reason"] == "running"
        keeper.watch()
        run_all(keeper, sent)
    upkeep(w, sent).watch()
    assert run_all(keeper, sent) == 1
    assert read_last(w.store)[what]["time"]
    keeper.watch()
    assert not sent, "once is enough"


def test_what_a_hold_refused_is_done_after_it(w: World) -> None:
    w.put("garbage")
    w.clock.advance(3 * DAY)
    w.publish_all()
    sent: Sent = []
    keeper = upkeep(w, sent)
    set_hold(w.store, 3600)
    assert keeper.collect()["refused"][0]["reason"] == "hold"
    keeper.watch()
    assert not sent, "not while the hold is in force"
    release(w.store)
    keeper.watch()
    assert run_all(keeper, sent) == 1
    assert len(w.trashed()) == 1


def test_what_is_postponed_outlives_a_redis_that_is_away(w: World) -> None:
    w.publish_all()
    sent: Sent = []
    keeper = upkeep(w, sent)
    with w.collector().alone():
        keeper.purge()

    def away(task: str, kwargs: Mapping[str, Any], queue: str, task_id: str) -> None:
        raise RedisUnavailableError("Redis does not answer")

    Upkeep(w.store, w.kv, away, w.settings).watch()
    keeper.watch()
    assert [task for task, _ in sent] == [PURGE]


@pytest.mark.parametrize("what", ["collect", "purge"])
def test_a_chain_of_parts_that_broke_is_taken_up_by_the_sweep(w: World, what: str) -> None:
    """Its message was lost, or its process killed: it does not wait for beat's next one, a day later."""
    w.put(*map(str, range(100)))
    w.clock.advance(3 * DAY)
    w.publish_all()
    sent: Sent = []
    broken, keeper = upkeep(w, sent), upkeep(w, sent)
    broken._part_s = 0.0
    first = getattr(broken, what)()
    assert len(sent) == 1
    sent.clear()
    keeper.watch()
    assert not sent, "it may be on its way"
    w.clock.advance(241)
    keeper.watch()
    assert run_all(keeper, sent) == 1
    last = read_last(w.store)[what]
    assert last["run"] == first["run"] if what == "collect" else last["done"]
    w.clock.advance(DAY)
    keeper.watch()
    assert not sent, "an interval and a quarter of an hour are beat's"


def test_attempts_that_end_in_nothing_are_made_less_and_less_often(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    w.publish_all()
    sent: Sent = []
    keeper = upkeep(w, sent)

    def broken(*_: Any) -> None:
        raise RedisUnavailableError("Redis does not answer")

    monkeypatch.setattr("fsworker.collection.collector.Collector.part", broken)
    waits = []
    for _ in range(9):
        with pytest.raises(RedisUnavailableError):
            keeper.collect()
        waited_s = 0
        while not sent:
            w.clock.advance(120)
            waited_s += 120
            keeper.watch()
        sent.clear()
        waits.append(waited_s)
    assert waits[:4] == [240, 480, 960, 1920]
    assert waits[-1] == 6 * 3600


def test_a_beat_that_forgets_its_schedule_does_not_begin_its_day_anew_for_ever(w: World) -> None:
    """Its file goes with each restart of a container; its first tick comes a whole interval after each."""
    w.publish_all()
    sent: Sent = []
    keeper = upkeep(w, sent)
    keeper.watch()
    w.clock.advance(DAY)
    w.publish_all()
    keeper.watch()
    assert not sent
    w.clock.advance(1000)
    keeper.watch()
    assert sent == [(COLLECT, {}), (PURGE, {})]
    run_all(keeper, sent)
    assert {"collect", "purge"} <= set(read_last(w.store))
    off = Upkeep(w.store, w.kv, upkeep(w, sent)._send, w.settings.model_copy(update={"collect_every": None}))
    w.clock.advance(2 * DAY)
    off.watch()
    assert sent == [(PURGE, {})], "off is off"


@pytest.mark.parametrize("note", ["", "{}", '{"due": "soon"}', '{"due": 1e12}', '{"over": 1e12}'])
def test_a_note_that_makes_no_sense_delays_nothing(w: World, note: str) -> None:
    w.publish_all()
    sent: Sent = []
    keeper = upkeep(w, sent)
    keeper.watch()
    (w.store.root / "Lock/due-purge.json").write_text(note)
    keeper.watch()
    assert run_all(keeper, sent) == 1
    keeper.watch()
    assert not sent


def test_a_change_of_the_registry_ends_a_run_and_the_sweep_begins_another(w: World) -> None:
    w.put("garbage", "waste")
    w.clock.advance(3 * DAY)
    w.publish_all()
    sent: Sent = []
    keeper = upkeep(w, sent, part_s=0.0)
    keeper.collect()
    retire(w.store, "blog")
    (_, kwargs), *_ = sent
    sent.clear()
    assert keeper.collect(**kwargs)["refused"][0]["reason"] == "apps_changed"
    keeper.watch()
    run_all(upkeep(w, sent), sent)
    assert len(w.trashed()) == 2


def test_a_keep_set_is_warned_of_before_it_is_refused(w: World, caplog: pytest.LogCaptureFixture) -> None:
    w.publish_all()
    keeper = upkeep(w, [])
    w.clock.advance(35 * 3600)
    with caplog.at_level(logging.WARNING):
        keeper.watch()
        assert caplog.text == ""
        w.publish("blog")
        w.clock.advance(2 * 3600)
        upkeep(w, []).watch()
        assert "the keep-set of application shop is 37.0 h old" in caplog.text
        assert "blog" not in caplog.text


@pytest.mark.parametrize(
    ("task", "kwargs"),
    [
        (COLLECT, {"overrides": ["max_trash"]}),
        (COLLECT_PART, {}),
        (COLLECT_PART, {"run": "../../etc"}),
        (COLLECT_PART, {"run": 5}),
        (COLLECT_PART, {"run": "20260101000000-00000000-00000000", "overrides": []}),
        (PURGE, {"shard": 1}),
        (PURGE_PART, {"shard": 256}),
        (PURGE_PART, {"shard": True}),
        (PURGE_PART, {"shard": -1}),
    ],
)
def test_no_message_can_override_anything(task: str, kwargs: dict[str, Any]) -> None:
    with pytest.raises(UploadRejectedError):
        MAINTENANCE_VALIDATORS[task](kwargs)


@pytest.mark.parametrize(
    ("task", "kwargs"),
    [
        (COLLECT, {}),
        (COLLECT_PART, {"run": "20260101000000-00000000-00000000"}),
        (PURGE, {}),
        (PURGE_PART, {"shard": 7}),
    ],
)
def test_what_the_maintenance_worker_sends_itself_is_admitted(w: World, task: str, kwargs: dict[str, Any]) -> None:
    """Celery gives a message the time limits of a task that is registered where it is sent; the judge refuses such."""
    settings = w.settings.model_copy(update={"role": "maintenance"})
    app = make_app(settings)
    app.finalize()
    assert task in app.tasks
    queue = w.names.maintenance_queue
    sender = Sender(app, settings.redis_url or "")
    sender(task, kwargs, queue, "fsworker.test-1")
    sender.close()
    with connect(settings.redis_url or "") as redis:
        raw = redis.lpop(queue)
    assert isinstance(raw, bytes)
    verdict = judge(raw, QueueRules(queue, MAINTENANCE_VALIDATORS, None))
    assert isinstance(verdict, Accepted), verdict


def test_what_goes_wrong_beside_the_sweep_does_not_stop_it(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Upkeep) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(Upkeep, "watch", broken)
    app = make_app(w.settings.model_copy(update={"role": "maintenance", "concurrency": 8}))
    assert app.conf.worker_concurrency == 1, "of an ingest worker"
    assert app.tasks[SWEEP]()["failed"] == 0


def test_beat_collects_and_purges_unless_it_is_off(w: World) -> None:
    settings = w.settings.model_copy(update={"role": "maintenance"})
    schedule = make_app(settings).conf.beat_schedule
    assert schedule["collect"]["schedule"] == schedule["purge"]["schedule"] == DAY
    off = settings.model_copy(update={"collect_every": None, "purge_every": None})
    assert not {"collect", "purge"} & set(make_app(off).conf.beat_schedule)


@pytest.fixture
def files(tmp_path: Path, redis_url: str) -> Iterator[Client]:
    with world(tmp_path, KV(redis_url)) as w, Client("shop", settings=w.settings) as client:
        yield client


def made(wrap: Callable[[Client], Any], files: Client, **options: Any) -> tuple[Celery, Any]:
    app = Celery("shop", set_as_current=False)
    app.conf.beat_schedule = {"other": {"task": "x", "schedule": 1}}
    return app, add_publish_keep_set(app, wrap(files), lambda: ["da39a3ee5e6b4b0d3255bfef95601890afd80709"], **options)


@pytest.mark.parametrize("wrap", [lambda c: c, lambda c: lambda: c], ids=["client", "callable"])
def test_a_ready_task_for_the_applications_own_celery(files: Client, wrap: Callable[[Client], Any]) -> None:
    app, task = made(wrap, files)
    assert task.apply().get()["count"] == 1
    assert app.conf.beat_schedule["publish_keep_set"]["schedule"] == EVERY_S
    assert "other" in app.conf.beat_schedule


def test_its_failure_is_raised_and_logged(files: Client, caplog: pytest.LogCaptureFixture) -> None:
    app = Celery("shop", set_as_current=False)
    task = add_publish_keep_set(app, files, lambda: ["oops"], every_s=None)
    with pytest.raises(KeepSetError):
        task.apply(throw=True)
    assert "the keep-set of shop was not published" in caplog.text
    assert not app.conf.beat_schedule
