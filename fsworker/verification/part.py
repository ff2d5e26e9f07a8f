"""Scheduled verification: one bounded part of what is due, at a pace, in a process that may be killed at any moment.

The note of :mod:`fsworker.verification.history` says what is due and where the pass stands. It is written every few seconds
and at the end; what a killed part did since is done again. A part that is taken up where the last one stopped notes every
single file before it reads it: should one file kill its readers, it is known which, and passed over after a few attempts.

A single file is never split over two parts. One that is too large for the rest of a part begins the next; one that is too
large for any is read faster than the pace.
"""

from __future__ import annotations

import logging
import os
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fsworker.config import Settings, format_duration
from fsworker.errors import ConfigError, VerificationRunningError
from fsworker.store import errordir, layout
from fsworker.store.handle import SYNC_FAILED_MARK
from fsworker.store.objects import ObjectStore
from fsworker.store.tempdirs import LEFTOVER_AGE_S
from fsworker.verification import history as histories
from fsworker.verification import leftovers
from fsworker.verification.copies import Mirror
from fsworker.verification.desk import Desk, Policy
from fsworker.verification.findings import Finding, Suspicion
from fsworker.verification.history import Coverage, Cursor, History, Limits, Plan, Verified
from fsworker.verification.judging import Judge, clock_of, expected_of
from fsworker.verification.kindly import KindReader, LowPriority
from fsworker.verification.pace import Pace
from fsworker.verification.settling import Settler
from fsworker.verification.whole import BETWEEN_LOOKS_S, only_one

log = logging.getLogger(__name__)

BUDGET_S = 30.0
MAX_ATTEMPTS = 3
_SAVE_EVERY_S = 5.0
_LEFTOVERS_EVERY_S = 3600.0
_NOTED_BYTES = 64 << 20
"""Before a file of this size is read, the cursor is written: reading it may take long."""


@dataclass(frozen=True)
class Clock:
    """The clocks and the sleep of a part; tests bring their own. ``now_s`` ``None``: the store's clock."""

    now_s: Callable[[], float] | None = None
    monotonic_s: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


@dataclass
class PartReport:
    """What one part did, and what is left."""

    files: int = 0
    size_bytes: int = 0
    took_s: float = 0.0
    directories: int = 0
    due: int = 0
    rate_bytes_s: float = 0.0
    raised: bool = False
    left_s: float = 0.0
    skipped: str = ""
    findings: list[Finding] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """For task results and logs."""
        return {
            "files": self.files,
            "bytes": self.size_bytes,
            "seconds": round(self.took_s, 3),
            "directories": self.directories,
            "due": self.due,
            "rate": round(self.rate_bytes_s),
            "raised": self.raised,
            "seconds_left": round(self.left_s),
            "skipped": self.skipped,
            "findings": [finding.as_json() for finding in self.findings[: histories.MAX_FINDINGS]],
        }


def limits_of(settings: Settings) -> Limits:
    """What the settings say of pace and time. A part stays well below the visibility timeout."""
    every_s = settings.verify_every or 300.0
    budget_s = min(BUDGET_S, every_s, settings.visibility_timeout / 4)
    longest_s = max(budget_s, min(settings.visibility_timeout / 2, 0.8 * every_s))
    return Limits(settings.verify_period, max(1, settings.verify_rate), every_s, budget_s, longest_s)


def verify_part(
    store: ObjectStore, limits: Limits, *, mirror_path: Path | None = None, clock: Clock | None = None
) -> PartReport:
    """Verify one part of what is due, repairing what can be repaired; see the module.

    A part that finds another verification running does nothing. Raises :class:`ConfigError`,
    :class:`StoreUnavailableError`; then, as after a kill, the next part goes on.
    """
    with store.errors("Verifying"):
        try:
            with only_one(store), LowPriority():
                return _Part(store, limits, mirror_path, clock or Clock()).run()
        except VerificationRunningError as error:
            return PartReport(skipped=str(error))


class _OutOfTimeError(Exception):
    """The part's time is over; the cursor stands before what was not read."""


class _Part:
    def __init__(self, store: ObjectStore, limits: Limits, mirror_path: Path | None, clock: Clock) -> None:
        self._store, self._limits, self._mirror_path, self._clock = store, limits, mirror_path, clock
        self._now_s = (clock.now_s or store.probe_clock)()
        self._history = histories.load(store, self._now_s)
        self._plan = self._make_plan()
        self._pace = Pace(self._plan.rate_bytes_s, now=clock.monotonic_s, sleep=clock.sleep)
        self._judge = Judge(store.fd, expected_of(store), KindReader(self._pace))
        self._settler: Settler
        self._report = PartReport(rate_bytes_s=self._plan.rate_bytes_s, raised=self._plan.raised)
        self._begun_s = self._saved_s = clock.monotonic_s()
        self._careful = False

    def _make_plan(self) -> Plan:
        try:
            mark_s = os.stat(SYNC_FAILED_MARK, dir_fd=self._store.fd, follow_symlinks=False).st_mtime
        except OSError:
            mark_s = 0.0
        self._mark_s = mark_s
        return histories.plan(self._history, self._now_s, self._limits, everything_before_s=mark_s)

    def run(self) -> PartReport:
        if self._plan.raised:
            log.warning(
                "verification reads %.0f MB/s for up to %.0f s every %s: slower, and the store would not be covered within %s",
                self._plan.rate_bytes_s / 1e6,
                self._plan.budget_s,
                format_duration(self._limits.every_s),
                format_duration(self._limits.period_s),
            )
        mirror = self._open_mirror()
        try:
            policy = Policy(repair=True, min_stray_age_s=LEFTOVER_AGE_S)
            self._settler = Settler(Desk(self._store, self._judge, policy, mirror))
            self._work()
        finally:
            if mirror is not None:
                mirror.close()
        self._finish()
        return self._report

    def _open_mirror(self) -> Mirror | None:
        if self._mirror_path is None:
            return None
        try:
            return Mirror(self._mirror_path, self._store)
        except ConfigError as error:
            log.warning("verification goes on without its mirror: %s", error)
            return None

    def _work(self) -> None:
        look = self._now_s - self._history.leftovers_s >= _LEFTOVERS_EVERY_S or self._history.leftovers_s > self._now_s
        first = leftovers.look(self._store) if look else []
        with suppress(_OutOfTimeError):
            self._work_through()
        if look:
            if first:
                self._clock.sleep(max(0.0, BETWEEN_LOOKS_S - self._spent_s()))
            for suspicion in self._judge.pairs().suspicions:
                self._settle(suspicion)
            for finding in leftovers.settle(self._store, first, repair=True, move_uploads=False):
                self._found(finding)
            self._history.leftovers_s = self._now_s

    def _work_through(self) -> None:
        for pair in self._plan.due:
            self._verify_pair(self._cursor_for(pair))
            self._report.directories += 1

    def _cursor_for(self, pair: str) -> Cursor:
        cursor = self._history.cursor
        if cursor is None or cursor.pair != pair:
            cursor = self._history.cursor = Cursor(pair=pair, began_s=(self._clock.now_s or self._store.probe_clock)())
        cursor.attempts += 1
        self._careful = cursor.attempts > 1  # a part that began here was killed
        self._save(sync=False)
        return cursor

    def _verify_pair(self, cursor: Cursor) -> None:
        listing = self._judge.seconds(cursor.pair)
        for suspicion in listing.suspicions if not cursor.second else ():
            self._settle(suspicion)
        for second in listing.names[_index_from(listing.names, cursor.second) :]:
            self._verify_second(cursor, second)
        self._history.verified[cursor.pair] = Verified(
            at_s=cursor.began_s, files=cursor.files, size_bytes=cursor.size_bytes, took_s=cursor.took_s
        )
        self._history.cursor = None

    def _verify_second(self, cursor: Cursor, second: str) -> None:
        listing = self._judge.names(cursor.pair, second)
        name_before = cursor.name if second == cursor.second else ""
        for suspicion in listing.suspicions if not name_before else ():
            self._settle(suspicion)
        for name in listing.names[bisect_right(listing.names, name_before) :]:
            self._verify_name(cursor, second, name)
            cursor.second, cursor.name, cursor.attempts = second, name, 0

    def _verify_name(self, cursor: Cursor, second: str, name: str) -> None:
        path = f"{layout.DATA}/{cursor.pair}/{second}/{name}"
        if cursor.attempts > MAX_ATTEMPTS:
            log.error("verification: %s was not read to its end in %d attempts; it is passed over", path, MAX_ATTEMPTS)
            self._found(Finding(path, "unverified", hash=name))
            return
        self._before_reading(path)
        begun_s = self._clock.monotonic_s()
        tally = self._judge.judge_names(cursor.pair, second, [name])
        self._pace.rate_bytes_s = self._plan.rate_bytes_s
        cursor.files, cursor.size_bytes = cursor.files + tally.files, cursor.size_bytes + tally.size_bytes
        cursor.took_s += self._clock.monotonic_s() - begun_s
        self._report.files, self._report.size_bytes = (
            self._report.files + tally.files,
            self._report.size_bytes + tally.size_bytes,
        )
        self._settler.desk.files_read += tally.files
        for suspicion in tally.suspicions:
            self._settle(suspicion)

    def _before_reading(self, path: str) -> None:
        """See that there is time for the file, and that the note says where we are. Raises :class:`_OutOfTimeError`."""
        try:
            size = os.stat(path, dir_fd=self._store.fd, follow_symlinks=False).st_size
        except OSError:
            size = 0
        left_s = self._plan.budget_s - self._spent_s()
        wanted_s = max(1, size) / self._plan.rate_bytes_s
        if self._report.files and wanted_s > left_s:
            raise _OutOfTimeError
        if wanted_s > left_s:
            self._pace.rate_bytes_s = size / max(1.0, left_s)
        if size >= _NOTED_BYTES or self._careful:
            self._save(sync=False)
        elif self._clock.monotonic_s() - self._saved_s > _SAVE_EVERY_S:
            self._save()

    def _settle(self, suspicion: Suspicion) -> None:
        for finding in self._settler.settle(suspicion):
            self._found(finding)

    def _found(self, finding: Finding) -> None:
        log.error(
            "verification: %s: %s; done: %s; to do: %s", finding.path, finding.message, finding.done, finding.advice
        )
        self._report.findings.append(finding)
        self._history.note_findings([{**finding.as_json(), "time": self._now_s}])

    def _save(self, *, sync: bool = True) -> None:
        try:
            histories.save(self._store, self._history, sync=sync)
        except OSError as error:  # a full disk: what was verified will be verified again
            log.warning("how far verification is could not be noted: %s", error)
        self._saved_s = self._clock.monotonic_s()

    def _spent_s(self) -> float:
        return self._clock.monotonic_s() - self._begun_s

    def _finish(self) -> None:
        if self._mark_s and all(self._history.of(pair).at_s >= self._mark_s for pair in histories.PAIRS):
            self._unmark()
        if self._history.cursor is not None:
            self._history.cursor.attempts = 0
        self._save()
        rest = histories.plan(self._history, self._now_s, self._limits, everything_before_s=self._mark_s)
        self._report.due, self._report.left_s = len(rest.due), rest.left_s
        self._report.took_s = self._spent_s()

    def _unmark(self) -> None:
        try:
            if os.stat(SYNC_FAILED_MARK, dir_fd=self._store.fd).st_mtime == self._mark_s:
                os.unlink(SYNC_FAILED_MARK, dir_fd=self._store.fd)
        except FileNotFoundError:
            return


def _index_from(names: Sequence[str], second: str) -> int:
    """Where a pass goes on: at the directory that the cursor is in."""
    return max(0, bisect_right(names, second) - 1) if second else 0


def coverage(store: ObjectStore, limits: Limits) -> Coverage:
    """How far scheduled verification is, what was found last, and how much is in quarantine. Changes nothing."""
    now_s = clock_of(store)
    history: History = histories.load(store, now_s)
    times = [history.of(pair).at_s for pair in histories.PAIRS]
    return Coverage(
        oldest_age_s=now_s - min(times) if all(times) else None,
        directories=sum(1 for at_s in times if at_s),
        left_s=histories.plan(history, now_s, limits).left_s,
        findings=history.findings,
        quarantined=sum(entry.kind == errordir.QUARANTINED for entry in errordir.entries(store)),
    )
