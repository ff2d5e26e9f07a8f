"""Scheduled verification: everything in its turn, at a pace, whatever is killed meanwhile."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from damage import DAMAGES, Damage, Plant, all_bytes, content, sha1
from hypothesis import given
from hypothesis import strategies as st
from processes import ENVIRONMENT

from fsworker.model import Hash
from fsworker.store.create import create_store
from fsworker.store.handle import SYNC_FAILED_MARK
from fsworker.store.locks import store_lock
from fsworker.store.objects import ObjectStore
from fsworker.verification import history as histories
from fsworker.verification import part as parts
from fsworker.verification.copies import Mirror
from fsworker.verification.desk import Policy
from fsworker.verification.history import PAIRS, Cursor, History, Limits, Verified, plan
from fsworker.verification.pace import Pace
from fsworker.verification.part import Clock, PartReport, verify_part
from fsworker.verification.whole import verify_hashes

HOUR_S, DAY_S = 3600.0, 86400.0
LIMITS = Limits(period_s=30 * DAY_S, rate_bytes_s=50e6, every_s=300.0, budget_s=30.0, max_budget_s=60.0)


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, and no note is written after it."""


@dataclass
class Time:
    """A clock that only sleeping moves on. ``kill``: asked at each sleep."""

    now_s: float = 1.8e9
    kill: Callable[[], bool] = lambda: False

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        if self.kill():
            raise Killed

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.now_s, lambda: self.now_s, self.sleep)


def make(tmp_path: Path, count: int = 100) -> Plant:
    create_store(tmp_path / "store", apps=["shop"])
    plant = Plant(tmp_path / "store", tmp_path / "mirror")
    plant.fill(count)
    return plant


def history_of(plant: Plant, now_s: float = 2e9) -> History:
    with ObjectStore(plant.root) as store:
        return histories.load(store, now_s)


def tick(plant: Plant, at: Time | None = None, limits: Limits = LIMITS) -> PartReport:
    with ObjectStore(plant.root) as store:
        return verify_part(store, limits, clock=None if at is None else at.clock)


# -- the plan ----------------------------------------------------------------------------------------------------------


def verified(ages_s: dict[str, float], now_s: float = 1e9, size_bytes: int = 10**9) -> History:
    entries = {pair: Verified(at_s=now_s - age_s, size_bytes=size_bytes) for pair, age_s in ages_s.items()}
    return History(since_s=now_s - 365 * DAY_S, verified=entries)


def test_at_first_everything_is_due() -> None:
    assert plan(History(since_s=1e9), 1e9, LIMITS).due == PAIRS


def test_what_was_verified_lately_is_not_due() -> None:
    assert plan(verified(dict.fromkeys(PAIRS, DAY_S)), 1e9, LIMITS).due == ()


def test_the_least_recently_verified_comes_first_but_what_was_begun_is_ended() -> None:
    ages = {pair: (26 + number / 100) * DAY_S for number, pair in enumerate(PAIRS)}
    history = verified(ages)
    assert plan(history, 1e9, LIMITS).due == tuple(reversed(PAIRS))
    history.cursor = Cursor(pair="07", began_s=1e9)
    assert plan(history, 1e9, LIMITS).due[:2] == ("07", "ff")


def test_a_failed_sync_makes_everything_due() -> None:
    history = verified(dict.fromkeys(PAIRS, DAY_S))
    assert len(plan(history, 1e9, LIMITS, everything_before_s=1e9 - HOUR_S).due) == 256


def test_the_pace_is_as_set_while_that_is_enough() -> None:
    found = plan(verified(dict.fromkeys(PAIRS, 25 * DAY_S)), 1e9, LIMITS)
    assert (found.rate_bytes_s, found.raised) == (50e6, False)


def test_the_pace_is_raised_where_the_store_would_not_be_covered_in_time() -> None:
    history = verified(dict.fromkeys(PAIRS, 15 * DAY_S), size_bytes=10**12)
    found = plan(history, 1e9, LIMITS)
    assert found.raised
    assert found.rate_bytes_s > 256e12 / (15 * DAY_S) / 0.11
    assert len(found.due) == 256, "a large store is begun earlier"


@given(
    st.lists(st.floats(0, 40 * DAY_S), min_size=256, max_size=256),
    st.floats(1e3, 1e9),
    st.integers(0, 10**13),
    st.floats(DAY_S, 100 * DAY_S),
)
def test_whatever_is_older_than_the_period_is_due_and_the_pace_is_never_lowered(
    ages: list[float], rate: float, size: int, period_s: float
) -> None:
    limits = Limits(period_s, rate, 300.0, 30.0, 60.0)
    history = verified(dict(zip(PAIRS, ages, strict=True)), size_bytes=size)
    found = plan(history, 1e9, limits)
    assert {pair for pair, age_s in zip(PAIRS, ages, strict=True) if age_s > period_s} <= set(found.due)
    assert found.rate_bytes_s >= rate
    assert [history.of(pair).at_s for pair in found.due] == sorted(history.of(pair).at_s for pair in found.due)


# -- pace --------------------------------------------------------------------------------------------------------------


def test_a_pace_is_kept_and_a_stall_is_not_made_up_for() -> None:
    at = Time(0.0)
    pace = Pace(1000.0, now=lambda: at.now_s, sleep=at.sleep)
    for _ in range(100):
        pace.spend(500)
    assert at.now_s == pytest.approx(50.0)
    at.now_s += 100.0
    for _ in range(100):
        pace.spend(500)
    assert at.now_s == pytest.approx(200.0, abs=0.5)


# -- parts -------------------------------------------------------------------------------------------------------------


def test_a_small_store_is_verified_in_one_part_and_then_left_in_peace(tmp_path: Path) -> None:
    plant = make(tmp_path)
    first, second = tick(plant), tick(plant)
    assert (first.files, first.due, first.findings) == (100, 0, [])
    assert (second.files, second.directories) == (0, 0)


def test_a_part_ends_in_time_and_the_next_goes_on(tmp_path: Path) -> None:
    plant = make(tmp_path)
    at = Time()
    slow = Limits(30 * DAY_S, 100.0, 300.0, 30.0, 30.0)  # ten files of 300 bytes in a part of 30 s
    seen = 0
    for _ in range(12):
        before_s = at.now_s
        seen += tick(plant, at, slow).files
        assert at.now_s - before_s <= 31.0
        at.now_s += 300.0
        if not history_of(plant).cursor and len(history_of(plant).verified) == 256:
            break
    assert seen == 100


def test_a_file_too_large_for_a_part_is_read_faster_than_the_pace(tmp_path: Path) -> None:
    plant = make(tmp_path, 3)
    plant.put(os.urandom(100_000))
    at = Time()
    slow = Limits(30 * DAY_S, 100.0, 300.0, 30.0, 30.0)
    begun_s = at.now_s
    while len(history_of(plant).verified) < 256:
        tick(plant, at, slow)
        assert at.now_s - begun_s < 200.0


def test_a_file_that_comes_behind_the_cursor_has_its_turn(tmp_path: Path) -> None:
    plant = make(tmp_path, 50)
    at = Time()
    tick(plant, at, Limits(30 * DAY_S, 100.0, 300.0, 30.0, 30.0))
    cursor = history_of(plant).cursor
    assert cursor is not None
    behind = next(d for n in range(10**7) if sha1(d := b"behind %d" % n)[:2] < cursor.pair)
    plant.rot(plant.put(behind), b"rot")
    found = []
    for _ in range(400):
        at.now_s += 6 * HOUR_S
        found += [finding.hash for finding in tick(plant, at).findings]
        if found:
            break
    assert found == [sha1(behind)]
    assert at.now_s - 1.8e9 < 30 * DAY_S


def test_beside_another_verification_a_part_does_nothing(tmp_path: Path) -> None:
    plant = make(tmp_path, 1)
    with ObjectStore(plant.root) as store, store_lock(store.fd, "verify", store.modes.lock_file):
        report = tick(plant)
    assert (report.files, bool(report.skipped)) == (0, True)


def test_what_it_finds_it_heals_or_quarantines_but_what_may_be_in_use_waits(tmp_path: Path) -> None:
    plant = make(tmp_path, 20)
    names = (
        "flipped_with_a_copy_in_trash",
        "emptied",
        "a_file_in_data",
        "writable",
        "an_upload_that_nobody_asked_for",
        "a_dead_process_in_temp",
    )
    damages = [DAMAGES[name](plant) for name in names]
    otherwise = {"stray-file": "waits", "unrequested-upload": "reported"}
    actions = {finding.path: finding.action for finding in tick(plant).findings}
    assert actions == {d.path: otherwise.get(d.kind, d.action) for d in damages}
    noted = history_of(plant).findings
    assert {entry["path"] for entry in noted} == set(actions)
    assert all(entry["advice"] for entry in noted)


@pytest.mark.parametrize("loss", ["removed", "broken", "of the future", "restored"])
def test_a_history_that_is_lost_makes_everything_due(tmp_path: Path, loss: str) -> None:
    plant = make(tmp_path, 10)
    assert tick(plant).files == 10
    note = plant.root / "Lock/verify.json"
    match loss:
        case "removed":
            note.unlink()
        case "broken":
            note.write_bytes(b"\xff")
        case "of the future":
            tree = json.loads(note.read_bytes())
            tree["verified"] = {pair: {"at_s": time.time() + DAY_S} for pair in PAIRS}
            note.write_text(json.dumps(tree))
        case "restored":
            (plant.root / "Data").rename(tmp_path / "old")
            (plant.root / "Data").mkdir()
            os.chmod(plant.root / "Data", 0o2750)
            for directory in (tmp_path / "old").iterdir():
                directory.rename(plant.root / "Data" / directory.name)
    assert tick(plant).files == 10


def test_a_failed_sync_has_everything_verified_and_the_mark_removed(tmp_path: Path) -> None:
    plant = make(tmp_path, 10)
    assert tick(plant).files == 10
    time.sleep(0.02)
    (plant.root / SYNC_FAILED_MARK).touch()
    assert tick(plant).files == 10
    assert not (plant.root / SYNC_FAILED_MARK).exists()
    assert tick(plant).files == 0


# -- kills -------------------------------------------------------------------------------------------------------------


def test_weeks_of_arrivals_and_kills_leave_nothing_unverified_beyond_the_period(tmp_path: Path) -> None:
    """One tick an hour, a store that grows, parts killed now and then: no directory is older than period + one run."""
    chance = random.Random(20261122)
    plant = make(tmp_path, 150)
    period_s = 6 * DAY_S
    limits = Limits(period_s, 40.0, HOUR_S, 30.0, 60.0)  # 4 files a part: too slow for the whole store, so it is raised
    at = Time(kill=lambda: chance.random() < 0.03)
    begun_s, number, kills = at.now_s, 150, 0
    oldest_s = 0.0
    while at.now_s < begun_s + 4 * 7 * DAY_S:
        before_s = at.now_s
        try:
            tick(plant, at, limits)
        except Killed:
            kills += 1
        at.now_s = max(at.now_s, before_s + HOUR_S * chance.choice((1, 1, 1, 6)))  # and outages
        if chance.random() < 0.2:
            plant.put(content(number))
            number += 1
        if at.now_s > begun_s + period_s:
            history = history_of(plant, at.now_s)
            oldest_s = max(oldest_s, at.now_s - min(history.of(pair).at_s or begun_s for pair in PAIRS))
    assert kills > 15
    assert number > 200
    assert 0.5 * period_s < oldest_s <= period_s + HOUR_S


def test_a_file_that_kills_its_readers_is_passed_over_after_some_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant = make(tmp_path, 60)
    killer = sorted(sha1(content(number)) for number in range(60))[30]
    judge = parts.Judge.judge_names

    def judge_or_die(self: parts.Judge, pair: str, second: str, names: list[str]) -> object:
        if names == [killer]:
            raise Killed
        return judge(self, pair, second, names)

    monkeypatch.setattr(parts.Judge, "judge_names", judge_or_die)
    killed, found = 0, []
    for _ in range(10):
        try:
            report = tick(plant)
        except Killed:
            killed += 1
        else:
            found += [(finding.kind, finding.hash) for finding in report.findings]
    assert found == [("unverified", killer)]
    assert 2 <= killed <= parts.MAX_ATTEMPTS + 2
    assert len(history_of(plant).verified) == 256


PART = """
import sys
from pathlib import Path
from fsworker.store.objects import ObjectStore
from fsworker.verification.part import verify_part, BUDGET_S
from fsworker.verification.history import Limits
from fsworker.verification import content as contents, history as histories
contents.MAX_ROTTEN = histories.MAX_FINDINGS = 10**9
print("ready", flush=True)
while True:
    report = verify_part(ObjectStore(sys.argv[1]), Limits(1e6, 1e9, 300.0, 30.0, 30.0), mirror_path=Path(sys.argv[2]))
    if not report.due:
        break
"""


def test_killed_anywhere_the_next_run_goes_on_and_nothing_is_lost(tmp_path: Path) -> None:
    plant = make(tmp_path, 900)
    (plant.mirror / "Data").mkdir(parents=True)
    names = (
        "one_bit_flipped",
        "flipped_with_a_copy_in_trash",
        "flipped_with_a_copy_in_the_mirror",
        "emptied",
        "writable",
    )
    damages: list[Damage] = [DAMAGES[name](plant) for _ in range(40) for name in names]
    chance, kills = random.Random(7), 0
    for _ in range(60):
        words = [sys.executable, "-c", PART, plant.root, plant.mirror]
        process = subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        with process:
            assert process.stdout is not None
            process.stdout.readline()
            try:
                process.wait(chance.uniform(0.0, 0.25) if kills < 12 else 60)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                kills += 1
            else:
                if process.returncode == 0:
                    break
    assert kills >= 3
    assert process.returncode == 0
    # A slow machine is killed at the same file again and again. It is passed over, which is told, and so is how to mend it.
    passed_over = [Hash(found["hash"]) for found in history_of(plant).findings if found["kind"] == "unverified"]
    assert len(passed_over) <= kills // parts.MAX_ATTEMPTS
    with ObjectStore(plant.root) as store, Mirror(plant.mirror, store) as mirror:
        verify_hashes(store, passed_over, Policy(repair=True), lambda _: None, mirror=mirror)
    everywhere = all_bytes(plant.root)
    for number in range(900):
        name = sha1(content(number))
        if name not in plant.touched:
            assert plant.path(name).read_bytes() == content(number)
    for damage in damages:
        assert damage.bytes_kept is None or damage.bytes_kept in everywhere
        if damage.restored is not None:
            assert plant.path(sha1(damage.restored)).read_bytes() == damage.restored
        else:
            assert not (plant.root / damage.path).exists()
