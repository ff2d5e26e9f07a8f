"""A clock that is set, either way, makes nothing older: the floor, by itself and in collections."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keeping import DAY, HOUR, VirtualKV, World, world
from virtual_time import virtual_clock

from fsworker.store import clock
from fsworker.store.clock import ClockRecord, Reading, advance

WALL, BOOT = 1_800_000_000.0, 5000.0
RECORD = ClockRecord(WALL, BOOT, "boot", WALL - 100 * DAY, "why")


def after(seconds: float, *, step: float = 0.0, boot_id: str = "boot", synchronised: bool = True) -> Reading:
    return Reading(WALL + seconds + step, BOOT + seconds, boot_id, synchronised)


def test_at_first_sight_the_floor_is_the_time_of_boot() -> None:
    assert advance(None, after(0)).floor_s == WALL - BOOT


@pytest.mark.parametrize("elapsed", [0.1, 60, DAY, 365 * DAY])
@pytest.mark.parametrize("slew", [-0.0005, 0, 0.0005])
def test_slewing_is_no_step(elapsed: float, slew: float) -> None:
    record = advance(RECORD, after(elapsed, step=slew * elapsed))
    assert record.floor_s == RECORD.floor_s
    assert record.wall_s == WALL + elapsed + slew * elapsed


@pytest.mark.parametrize("step", [-3 * DAY, -HOUR, -6, 6, HOUR, 3 * DAY])
def test_a_step_moves_the_floor_to_the_clock_after_it(step: float) -> None:
    record = advance(RECORD, after(60, step=step))
    assert record.floor_s == WALL + 60 + step
    assert "was set" in record.reason


def test_a_boot_with_a_good_clock_is_no_step() -> None:
    assert advance(RECORD, after(HOUR, boot_id="next")).floor_s == RECORD.floor_s


@pytest.mark.parametrize(
    "reading", [after(0, step=-1, boot_id="next"), after(HOUR, boot_id="next", synchronised=False)]
)
def test_a_boot_with_a_doubtful_clock_is_one(reading: Reading) -> None:
    assert advance(RECORD, reading).floor_s == reading.wall_s


@given(st.lists(st.tuples(st.floats(0.01, 1e6), st.floats(-1e7, 1e7)), min_size=1, max_size=20))
def test_after_any_history_no_file_looks_older_than_it_is(history: list[tuple[float, float]]) -> None:
    """A file made at any time, looked at after any steps that were seen, is never older than the true time since."""
    true_s, offset = 0.0, 0.0
    record = advance(None, Reading(WALL, BOOT, "boot", True))
    files: list[tuple[float, float]] = []
    for passed, step in history:
        files.append((true_s, WALL + true_s + offset))
        true_s, offset = true_s + passed, offset + step
        now_s = WALL + true_s + offset
        record = advance(record, Reading(now_s, BOOT + true_s, "boot", True))
        tolerance = 6 * len(files) + 0.002 * true_s  # what counts as slewing
        for made_s, ctime in files:
            assert now_s - max(ctime, record.floor_s) <= true_s - made_s + tolerance


@pytest.fixture
def w(tmp_path: Path, redis_url: str) -> Iterator[World]:
    with virtual_clock() as virtual, world(tmp_path, VirtualKV(redis_url, virtual)) as made:
        clock.observe(made.store)
        yield made


def floor(w: World) -> float:
    record = clock.read_record(w.store)
    assert record is not None
    return record.floor_s


def test_the_note_is_kept_in_the_store(w: World) -> None:
    first = floor(w)
    assert clock.observe(w.store).floor_s == first
    w.clock.step(-HOUR)
    assert clock.observe(w.store).floor_s == pytest.approx(w.clock.now(), abs=1)
    assert floor(w) != first


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"wall_s": "x"}', '{"wall_s": NaN}'])
def test_a_broken_note_counts_as_a_step(w: World, text: str) -> None:
    (w.store.root / "Lock/clock.json").write_text(text)
    assert clock.observe(w.store).floor_s == pytest.approx(w.clock.now(), abs=1)
    assert json.loads((w.store.root / "Lock/clock.json").read_bytes())


def test_a_note_with_an_infinite_time_is_broken(w: World) -> None:
    record = clock.read_record(w.store)
    assert record is not None
    tree = dataclasses.asdict(record) | {"floor_s": float("-inf")}
    (w.store.root / "Lock/clock.json").write_text(json.dumps(tree))
    assert clock.observe(w.store).floor_s == pytest.approx(w.clock.now(), abs=1)


@pytest.mark.parametrize("step", [3 * DAY, -3 * DAY], ids=["forward", "back"])
@pytest.mark.parametrize("order", ["before publish", "after publish"])
def test_a_clock_that_is_set_makes_nothing_live_eligible(w: World, step: float, order: str) -> None:
    """A file that an application has had for an hour, and whose reference it has not committed yet."""
    w.clock.advance(10 * DAY)
    w.publish_all()
    w.collect()
    (name,) = w.put("ingested an hour ago")
    w.clock.advance(HOUR)
    if order == "after publish":
        w.publish_all()
    w.clock.step(step)
    if order == "before publish":
        w.publish_all()
    for _ in range(3):
        w.refusals()
        assert w.has(name)
        w.clock.advance(HOUR)
        w.publish_all()
    w.publish_all(shop=[name])
    assert w.refusals() == []
    assert w.has(name)


@pytest.mark.parametrize("step", [3 * DAY, -3 * DAY], ids=["forward", "back"])
def test_a_clock_that_was_wrong_for_a_while(w: World, step: float) -> None:
    """Wrong while a file was made, right again: seen each time by a worker."""
    w.clock.step(step)
    clock.observe(w.store)
    (name,) = w.put("made by the wrong clock")
    w.clock.advance(60)
    w.clock.step(-step)
    w.publish_all()
    assert w.refusals() == []
    assert w.has(name)


def test_garbage_goes_in_the_end_after_a_step(w: World) -> None:
    (name,) = w.put("garbage")
    w.clock.advance(2 * DAY)
    w.clock.step(-5 * DAY)
    w.publish_all()
    assert w.refusals() == []
    assert w.has(name), "its ctime lies in the future"
    for _ in range(9):
        w.clock.advance(DAY)
        w.publish_all()
        assert w.refusals() == []
    assert not w.has(name)


def test_after_a_clock_was_set_back_new_keep_sets_are_accepted(w: World) -> None:
    w.publish_all()
    w.collect()
    w.clock.step(-3 * DAY)
    assert w.refusals() == ["future:blog", "future:shop"]
    w.publish_all()
    assert w.refusals() == []


@pytest.mark.parametrize("ahead", [-120.0, 120.0])
def test_redis_and_store_must_agree_about_the_time(w: World, ahead: float) -> None:
    assert isinstance(w.kv, VirtualKV)
    w.kv.ahead_s = ahead
    w.publish_all()
    assert w.refusals() == ["clock_skew"]
    assert w.refusals("max_clock_skew") == []
    assert w.refusals(max_clock_skew=150.0) == []


def test_a_redis_that_is_ahead_makes_the_cutoff_earlier(w: World) -> None:
    assert isinstance(w.kv, VirtualKV)
    w.kv.ahead_s = 50.0
    published = w.publish("shop")
    w.publish("blog")
    cutoff = w.collector().basis().cutoff_s
    assert cutoff == pytest.approx(published.snapshot_time - DAY * 9 / 8 - 50, abs=1)


def test_the_real_clocks_can_be_read(tmp_path: Path, redis_url: str) -> None:
    with world(tmp_path, VirtualKV(redis_url, None)) as made:  # type: ignore[arg-type]
        reading = clock.look(made.store)
        assert reading.boot_s > 0
        assert len(reading.boot_id) == 36
        assert isinstance(reading.synchronised, bool)
