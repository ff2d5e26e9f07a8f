"""Random histories of several applications over one store: no file that one of them committed within the grace is lost.

Real files, locks and Redis, and an explicit clock. The applications do what the README asks of them, and nothing better:
they commit in the last moment, publish rarely, delete and change their minds, die while they publish; collections are done
in parts, die between two moves, overlap with everything.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from keeping import DAY, HOUR, VirtualKV, World
from stores import sha1
from virtual_time import virtual_clock

from fsworker.collection import collector as collecting
from fsworker.collection import purge
from fsworker.collection.runs import Run
from fsworker.errors import CollectionRefusedError, KeepSetError
from fsworker.model import Hash
from fsworker.store import trash
from fsworker.store.hold import release, set_hold

APPS = ("blog", "shop", "wiki")
REFUSED = (CollectionRefusedError, KeepSetError)

apps = st.sampled_from(APPS)
contents = st.integers(0, 5).map(str)
durations = st.sampled_from([60.0, 2 * HOUR, 3 * HOUR, 20 * HOUR])


class Killed(BaseException):
    """A process that dies here."""


class Keeping(RuleBasedStateMachine):
    """``granted``: when each application was last given a hash; ``committed``: what its database refers to."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.clock = self.stack.enter_context(virtual_clock())
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # many fsyncs, and no power cut here
        self.directory = Path(tempfile.mkdtemp(prefix="keeping-", dir=memory))
        self.stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
        self.w = World(self.directory, VirtualKV(self.url, self.clock), apps=APPS)
        self.stack.callback(self.w.close)
        self.granted: dict[str, dict[Hash, float]] = {app: {} for app in APPS}
        self.committed: dict[str, set[Hash]] = {app: set() for app in APPS}
        self.run_stamp: str | None = None
        self.troubled = False
        self.w.collector().clocks()

    def teardown(self) -> None:
        self.stack.close()

    # -- applications

    @rule(app=apps, content=contents)
    def ingest(self, app: str, content: str) -> None:
        (name,) = self.w.put(content)
        self.granted[app][name] = self.clock.boot_s()

    @rule(app=apps, content=contents)
    def claim(self, app: str, content: str) -> None:
        name = hash_of(content)
        if trash.restore(self.w.store, name):
            self.granted[app][name] = self.clock.boot_s()

    @rule(app=apps, content=contents)
    def commit(self, app: str, content: str) -> None:
        """Refer to a hash, if it was given within the grace."""
        name = hash_of(content)
        if self.clock.boot_s() - self.granted[app].get(name, float("-inf")) < DAY - 1:
            self.committed[app].add(name)

    @rule(app=apps, content=contents)
    def delete(self, app: str, content: str) -> None:
        self.committed[app].discard(hash_of(content))
        self.granted[app].pop(hash_of(content), None)

    @rule(app=apps, takes=st.sampled_from([0.0, 60.0, 5 * HOUR]), dies=st.booleans())
    def publish(self, app: str, takes: float, dies: bool) -> None:
        """Reads what is committed when it begins to read; others go on meanwhile."""

        def rows() -> list[Hash]:
            read = sorted(self.committed[app])
            if takes:
                self.clock.advance(takes)
            if dies:
                raise Killed
            return read

        with suppress(Killed, *REFUSED):
            self.w.keep(app).publish(rows, allow_empty=True)

    # -- the store

    @rule(
        lasts=st.sampled_from([6 * HOUR, 20 * HOUR]), silent=st.none() | apps, dies_after=st.none() | st.integers(0, 3)
    )
    def night(self, lasts: float, silent: str | None, dies_after: int | None) -> None:
        """What a night is for: time passes, applications publish (one may not), a collection runs (and may die)."""
        self.clock.advance(lasts)
        for app in APPS:
            if app != silent:
                self.publish(app, 0.0, dies=False)
        self._dying(collecting, "move_to_trash", dies_after, lambda: self.w.collect())

    @rule(app=apps, content=contents, nights=st.integers(1, 3), silent=st.booleans())
    def use_for_some_nights(self, app: str, content: str, nights: int, silent: bool) -> None:
        """A file is uploaded and referred to; its application may not have published that, for a while."""
        self.ingest(app, content)
        self.commit(app, content)
        for _ in range(nights):
            self.night(20 * HOUR, app if silent and nights < 3 else None, None)

    @rule(giver=apps, taker=apps, content=contents)
    def hand_over(self, giver: str, taker: str, content: str) -> None:
        """An application drops a file, another claims it before a collection comes; it commits later, if at all."""
        self.delete(giver, content)
        self.claim(taker, content)
        self.night(60.0, None, None)

    @rule(dies_after=st.none() | st.integers(0, 1))
    def collect_part(self, dies_after: int | None) -> None:
        def part() -> None:
            run: Run | None = self.w.collector().part(self.run_stamp, 0.0)
            self.run_stamp = None if run is None or run.done else run.stamp

        self._dying(collecting, "move_to_trash", dies_after, part)

    @rule()
    def finish_parts(self) -> None:
        if self.run_stamp is not None:
            with suppress(*REFUSED):
                self.w.collector().part(self.run_stamp, float("inf"))
            self.run_stamp = None

    @rule(dies_after=st.none() | st.integers(0, 3), retention=st.sampled_from([0.0, 2 * DAY]))
    def purge(self, dies_after: int | None, retention: float) -> None:
        self._dying(purge, "delete_from_trash", dies_after, lambda: self.w.purge(trash_retention=retention))

    @rule(content=contents)
    def restore_by_hand(self, content: str) -> None:
        trash.restore(self.w.store, hash_of(content))

    @rule()
    def hold_for_a_night(self) -> None:
        set_hold(self.w.store, HOUR)
        self.night(60.0, None, None)
        release(self.w.store)

    # -- the world

    @rule(seconds=durations)
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @precondition(lambda self: self.troubled)
    @rule(seconds=st.sampled_from([-3 * DAY, -HOUR, HOUR, 3 * DAY]))
    def clock_is_set(self, seconds: float) -> None:
        self.clock.step(seconds)
        self.w.collector().clocks()  # a worker sees it

    @precondition(lambda self: self.troubled)
    @rule()
    def redis_is_flushed(self) -> None:
        for key in self.w.redis.scan_iter(f"{self.w.names.namespace}:*", count=5000):
            self.w.redis.delete(key)

    def _dying(self, module: Any, name: str, after: int | None, act: Any) -> None:
        """Do something whose process dies before the call ``after`` of a function."""
        original, calls = getattr(module, name), 0

        def counted(*args: Any) -> Any:
            nonlocal calls
            if calls == after:
                raise Killed
            calls += 1
            return original(*args)

        with pytest.MonkeyPatch.context() as patch, suppress(Killed, *REFUSED):
            patch.setattr(module, name, counted)
            act()

    # -- what must be so

    @initialize(troubled=st.booleans())
    def something_is_there(self, troubled: bool) -> None:
        """Old files that nobody refers to; and whether this history has a bad clock and a bad Redis."""
        self.troubled = troubled
        self.w.put("0", "1", "2")
        self.clock.advance(DAY)

    @invariant()
    def nothing_is_lost(self) -> None:
        """Neither what is referred to, nor what still may be, because it was given within the grace."""
        now_s = self.clock.boot_s()
        for app in APPS:
            still = {name for name, since_s in self.granted[app].items() if now_s - since_s < DAY - 1}
            for name in still | self.committed[app]:
                assert self.w.has(name), f"{app} may refer to {name}, which is gone"


def hash_of(content: str) -> Hash:
    return sha1(content.encode())


def test_random_histories_lose_nothing(redis_url: str) -> None:
    Keeping.url = redis_url
    run_state_machine_as_test(
        Keeping,
        settings=settings(
            max_examples=12,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )
