"""Beat's schedule: when the clock is set, when its file is old, when intervals were changed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fsworker.celery import make_app
from fsworker.config import load_settings
from fsworker.host.beat import Scheduler
from fsworker.store.facade import Store

DAY_S = 24 * 3600.0


class Beat:
    """Beat without its process: its clock is set by hand, and what it sends is listed."""

    def __init__(self, store: Store, path: Path, **settings: str) -> None:
        chosen = load_settings(environ={}, store=store.root, redis_url="redis://", role="maintenance", **settings)
        self.app = make_app(chosen)
        self.now = datetime.now(UTC)
        self.app.now = lambda: self.now
        self.sent: list[str] = []
        self.path = path
        self.start()

    def start(self) -> None:
        self.scheduler = Scheduler(self.app, schedule_filename=str(self.path))
        self.scheduler.apply_entry = self._apply
        self.scheduler.__dict__["producer"] = None

    def _apply(self, entry: Any, producer: object) -> None:
        assert producer is None
        self.sent.append(entry.name)

    def run(self, seconds: float) -> list[str]:
        """Let time pass; gives what was sent meanwhile."""
        self.sent.clear()
        until = self.now + timedelta(seconds=seconds)
        while self.now < until:
            self.now += timedelta(seconds=min(max(0.02, self.scheduler.tick()), (until - self.now).total_seconds()))
        return list(self.sent)

    def set_clock(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def beat(store: Store, tmp_path: Path) -> Iterator[Beat]:
    made = Beat(store, tmp_path / "schedule")
    yield made
    made.scheduler.close()


def test_everything_is_sent_at_its_interval(beat: Beat) -> None:
    sent = beat.run(DAY_S + 30)
    assert {name: sent.count(name) for name in set(sent)} == {"sweep": 1440, "verify": 288, "collect": 1, "purge": 1}


@pytest.mark.parametrize("restart", [False, True], ids=["running", "started again"])
def test_a_clock_that_is_set_back_does_not_stop_maintenance(beat: Beat, restart: bool) -> None:
    beat.run(3600)
    beat.set_clock(-400 * DAY_S)
    if restart:
        beat.scheduler.close()
        beat.start()
    sent = beat.run(3600 + 30)
    assert (sent.count("sweep"), sent.count("verify")) == (60, 12)


def test_a_clock_that_is_set_forward_and_corrected_sends_each_once(beat: Beat) -> None:
    beat.run(100)
    beat.set_clock(400 * DAY_S)
    assert sorted(beat.run(1)) == ["collect", "purge", "sweep", "verify"]
    beat.set_clock(-400 * DAY_S)
    assert beat.run(59) == []
    assert beat.run(2) == ["sweep"]


def test_changed_intervals_are_taken_over_from_an_old_file_and_what_is_off_is_gone(beat: Beat, store: Store) -> None:
    beat.run(3600)
    beat.scheduler.close()
    changed = Beat(store, beat.path, sweep_every="10m", collect_every="2h", purge_every="off", verify_every="5m")
    changed.now = beat.now
    sent = changed.run(3600 + 5)
    changed.scheduler.close()
    assert set(sent) == {"sweep", "collect", "verify"}
    assert 6 <= sent.count("sweep") <= 7
    beat.start()
