"""A verification that somebody asked for: the whole store, some directories, or some hashes; now, and on all cores."""

from __future__ import annotations

import errno
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from fsworker.errors import VerificationRunningError
from fsworker.model import Hash
from fsworker.store import layout
from fsworker.store.handle import SYNC_FAILED_MARK, log
from fsworker.store.locks import store_lock
from fsworker.store.objects import ObjectStore
from fsworker.verification import history as histories
from fsworker.verification import leftovers
from fsworker.verification.copies import Mirror, good_copy
from fsworker.verification.desk import Desk, Policy
from fsworker.verification.findings import Finding, Suspicion
from fsworker.verification.history import Verified
from fsworker.verification.judging import Judge, Tally, clock_of, expected_of
from fsworker.verification.kindly import KindReader
from fsworker.verification.pace import Pace
from fsworker.verification.scanning import Scanners
from fsworker.verification.settling import Settler

LOCK = "verify"
BETWEEN_LOOKS_S = 1.0

OnFinding = Callable[[Finding], None]
OnProgress = Callable[[int, int], None]
"""Is told how many of the 256 first-level directories are done, and how many there are."""


_LOOK = Policy()


def no_progress(done: int, total: int) -> None:
    """Tell nobody."""
    del done, total


@dataclass
class Report:
    """What a verification went over. Findings are passed on as they come, and counted here."""

    files: int = 0
    size_bytes: int = 0
    took_s: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)
    actions: Counter[str] = field(default_factory=Counter)
    problems: int = 0
    left_to_do: int = 0
    unreadable: int = 0

    def count(self, finding: Finding) -> None:
        """Count a finding in."""
        self.kinds[finding.kind] += 1
        self.actions[finding.action] += 1
        self.problems += not finding.is_note
        self.left_to_do += finding.is_open
        self.unreadable += finding.kind in ("unreadable", "unreadable-directory")

    def as_json(self) -> dict[str, Any]:
        """For ``--json`` and task results."""
        return {
            "files": self.files,
            "bytes": self.size_bytes,
            "seconds": round(self.took_s, 3),
            "problems": self.problems,
            "left_to_do": self.left_to_do,
            "kinds": dict(self.kinds),
            "actions": dict(self.actions),
        }


@dataclass(frozen=True)
class Options:
    """How to verify. ``rate_bytes_s`` is for all processes together; ``None`` is as fast as the disk can."""

    policy: Policy = _LOOK
    processes: int = 1
    threads: int = 4
    rate_bytes_s: float | None = None


def judge_of(store: ObjectStore, rate_bytes_s: float | None = None) -> Judge:
    """A judge of a store, at a pace."""
    return Judge(store.fd, expected_of(store), KindReader(Pace(rate_bytes_s)))


@contextmanager
def only_one(store: ObjectStore, *, needed: bool = True) -> Iterator[None]:
    """Hold the whole-store lock of verification. Raises :class:`VerificationRunningError` when another one runs.

    Whoever may only read the store cannot lock it: if not ``needed``, he goes on without.
    """
    with ExitStack() as held:
        try:
            store.prepare()
            obtained = held.enter_context(store_lock(store.fd, LOCK, store.modes.lock_file))
        except OSError as error:
            if needed or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            obtained = True
        if not obtained:
            raise VerificationRunningError(
                "another verification runs in this store; this one did nothing. Wait for it ('fsworker stats' shows how far "
                "it is), or name the hashes to look at"
            )
        yield


def verify_all(
    store: ObjectStore,
    options: Options,
    on_finding: OnFinding,
    *,
    pairs: Sequence[str] | None = None,
    mirror: Mirror | None = None,
    on_progress: OnProgress = no_progress,
) -> Report:
    """Verify the whole store, or the first-level directories ``pairs``. Changes nothing unless the policy says repair.

    Raises :class:`VerificationRunningError`, :class:`UnavailableError` when a process of this one was killed,
    :class:`ConfigError`, :class:`StoreUnavailableError`. What was found until then has been passed on.
    """
    with store.errors("Verifying"), only_one(store, needed=options.policy.repair):
        return _Whole(store, options, on_finding, mirror, on_progress).run(pairs)


class _Whole:
    def __init__(
        self,
        store: ObjectStore,
        options: Options,
        on_finding: OnFinding,
        mirror: Mirror | None,
        on_progress: OnProgress,
    ) -> None:
        self._store, self._options, self._tell, self._on_progress = store, options, on_finding, on_progress
        self._report = Report()
        rate = options.rate_bytes_s
        share = None if rate is None else rate / options.processes
        self._judge = judge_of(store, share)
        self._settler = Settler(Desk(store, judge_of(store), options.policy, mirror))
        self._seen: dict[str, Verified] = {}
        self._unsettled: set[str] = set()
        self._last: deque[Finding] = deque(maxlen=histories.MAX_FINDINGS)

    def run(self, pairs: Sequence[str] | None) -> Report:
        begun_s = time.monotonic()
        now_s = clock_of(self._store)
        mark = _mark(self._store)
        with Scanners(self._judge, self._options.processes, self._options.threads) as scanners:
            whole = pairs is None
            listing = self._judge.pairs()
            first = leftovers.look(self._store) if whole else []
            if whole:
                for suspicion in listing.suspicions:
                    self._settle(suspicion)
            wanted = listing.names if pairs is None else [pair for pair in pairs if pair in set(listing.names)]
            self._scan(scanners, wanted)
        if whole:
            time.sleep(max(0.0, BETWEEN_LOOKS_S - (time.monotonic() - begun_s)) if first else 0.0)
            for finding in leftovers.settle(self._store, first, repair=self._options.policy.repair):
                self._found(finding)
        self._remember(wanted if pairs is not None else histories.PAIRS, now_s)
        if whole and not self._report.unreadable:
            _unmark(self._store, mark)
        self._report.took_s = time.monotonic() - begun_s
        return self._report

    def _scan(self, scanners: Scanners, pairs: Sequence[str]) -> None:
        finished = 0

        def report(pair: str, tally: Tally) -> None:
            self._report.files += tally.files
            self._report.size_bytes += tally.size_bytes
            self._settler.desk.files_read += tally.files
            seen = self._seen.get(pair, Verified())
            self._seen[pair] = Verified(files=seen.files + tally.files, size_bytes=seen.size_bytes + tally.size_bytes)
            for suspicion in tally.suspicions:
                self._settle(suspicion)
            self._on_progress(finished, len(pairs))

        def done(_: str) -> None:
            nonlocal finished
            finished += 1
            self._on_progress(finished, len(pairs))

        scanners.scan(pairs, report, done)

    def _settle(self, suspicion: Suspicion) -> None:
        for finding in self._settler.settle(suspicion):
            self._found(finding)

    def _found(self, finding: Finding) -> None:
        self._report.count(finding)
        if finding.action in ("reported", "waits", "failed"):
            self._unsettled.add(finding.path[len(layout.DATA) + 1 :][:2])
        self._last.append(finding)
        self._tell(finding)

    def _remember(self, pairs: Sequence[str], now_s: float) -> None:
        """Note what was verified, and found; whoever may only read the store does without.

        Where something is left to be done, scheduled verification is to come by in its turn.
        """
        try:
            history = histories.load(self._store, now_s)
            for pair in (pair for pair in pairs if pair not in self._unsettled):
                took_s = history.of(pair).took_s
                seen = self._seen.get(pair, Verified())
                history.verified[pair] = seen.model_copy(update={"at_s": now_s, "took_s": took_s})
                if history.cursor is not None and history.cursor.pair == pair:
                    history.cursor = None
            history.note_findings([{**finding.as_json(), "time": now_s} for finding in self._last])
            histories.save(self._store, history)
        except PermissionError:
            return
        except OSError as error:  # a full disk is no reason to lose the report
            log.warning("what was verified could not be noted: %s", error)


def verify_hashes(
    store: ObjectStore, names: Sequence[Hash], policy: Policy, on_finding: OnFinding, *, mirror: Mirror | None = None
) -> Report:
    """Verify some hashes. One that is absent is a finding too; with repair it comes back from trash or the mirror."""
    report = Report()
    begun_s = time.monotonic()
    judge = judge_of(store)
    settler = Settler(Desk(store, judge, policy, mirror))

    def found(finding: Finding) -> None:
        report.count(finding)
        on_finding(finding)

    with store.errors("Verifying"):
        for name in names:
            path = layout.data_name(name)
            tally = judge.judge_path(path)
            report.files, report.size_bytes = report.files + tally.files, report.size_bytes + tally.size_bytes
            settler.desk.files_read += tally.files
            suspicions = tally.suspicions or list(_in_the_way(judge, path, tally))
            for suspicion in suspicions:
                for finding in settler.settle(suspicion):
                    found(finding)
            if not tally.files and not suspicions:
                found(_missing(store, name, policy, mirror))
    report.took_s = time.monotonic() - begun_s
    return report


def _in_the_way(judge: Judge, path: str, tally: Tally) -> Iterator[Suspicion]:
    """What is no file under a stored file's name."""
    if not tally.files:
        _, pair, second, _ = path.split("/")
        yield from (suspicion for suspicion in judge.names(pair, second).suspicions if suspicion.path == path)


def _missing(store: ObjectStore, name: Hash, policy: Policy, mirror: Mirror | None) -> Finding:
    finding = Finding(layout.data_name(name), "missing", hash=name)
    if not policy.repair:
        return finding
    with good_copy(store, name, mirror) as copy:
        if copy is None:
            return finding
        where, candidate = copy
        store.insert(candidate, sync=True)
    return Finding(finding.path, "missing", "healed", f"the copy from {where} was stored", hash=name)


def _mark(store: ObjectStore) -> os.stat_result | None:
    """The mark of a failed ``fsync``, if there is one."""
    try:
        return os.stat(SYNC_FAILED_MARK, dir_fd=store.fd, follow_symlinks=False)
    except OSError:
        return None


def _unmark(store: ObjectStore, seen: os.stat_result | None) -> None:
    """Remove the mark that was there at the beginning. One that was made since stays."""
    now = _mark(store)
    if seen is not None and now is not None and (now.st_ino, now.st_mtime_ns) == (seen.st_ino, seen.st_mtime_ns):
        with suppress(OSError):  # it stays, is reported by doctor, and has all verified once more
            os.unlink(SYNC_FAILED_MARK, dir_fd=store.fd)
