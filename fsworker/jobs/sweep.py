"""The sweep: what makes the spool the truth and a message only a doorbell.

It rings again for requests whose message was lost (a worker killed between taking it and noting it, a flushed Redis, a
fail-over), ends what can never come to an end by itself, and removes what is past its time. It may run as often as one
likes and beside itself: jobs in flight hold their lock, and a job that is rung for twice is done once.
"""

from __future__ import annotations

import logging
import os
import secrets
import stat
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from pydantic import ValidationError

from fsworker.broker.kv import KV
from fsworker.broker.names import TASK_PREFIX, Names
from fsworker.broker.sending import Send
from fsworker.config import Settings
from fsworker.errors import ConfigError, FSWorkerError, RedisUnavailableError, UploadRejectedError
from fsworker.jobs.attempts import MAX_DELAY_S
from fsworker.model import REQUESTS
from fsworker.spool.directory import (
    Entry,
    SpoolDirectory,
    SpooledRequest,
    done_name,
    part_name,
    request_name,
    taken_name,
)
from fsworker.store import errordir, hold, layout
from fsworker.store.locks import job_in_flight
from fsworker.store.objects import ObjectStore
from fsworker.store.tempdirs import sweep_leftovers

log = logging.getLogger(__name__)

_QUIET_AFTER_S = 5.0
"""A request this old, with nothing in the queue and nothing unacknowledged, has lost its message."""
_ABANDONED_AFTER_S = 24 * 3600.0
"""An upload that nobody has written to for so long, and was never committed, is given up."""
_LITTER_AFTER_S = 600.0
"""A small file that has been on its way to its name for so long belongs to a process that was killed."""
_SECONDS_PER_APP = 30.0
_UNREADABLE = {"upload": "unreadable"}
"""Sent for a request that no message can carry: the worker reads the file, finds the same, and tells its owner."""
_MAX_RUNG = 1000
_MAX_BACKLOG = 1000
"""While more messages than this wait, nothing is added to them: what waits in the spool loses nothing."""


@dataclass
class SweepReport:
    """What one sweep did. ``failed`` are names in a spool (or in ``Error/``) at which it failed; the log says why.

    ``leftovers`` are what dead processes left in the store itself, see :func:`fsworker.store.tempdirs.sweep_leftovers`.
    """

    rung: int = 0
    waiting: int = 0
    in_flight: int = 0
    abandoned: int = 0
    expired: int = 0
    leftovers: int = 0
    failed: int = 0

    def as_json(self) -> dict[str, int]:
        """For ``--json`` and task results."""
        return asdict(self)


def sweep(store: ObjectStore, kv: KV, send: Send, settings: Settings, *, at_once: bool = False) -> SweepReport:
    """Sweep the spool of every registered application, ``Error/``, and what dead processes left in the store.

    ``at_once`` rings for every request that is not in flight, whatever its age: right after a start, when no message
    can be on its way. What an application has in its spool never stops the sweep of another's. Raises
    :class:`RedisUnavailableError`.
    """
    report = SweepReport()
    now_s = _now_s(store)
    for app in store.reload().app_names:
        try:
            with SpoolDirectory(store.root / layout.SPOOL / app, app) as spool:
                _Sweep(store, kv, send, settings, spool, report, now_s, at_once=at_once).run()
        except (ConfigError, OSError) as error:
            log.error("sweep of application %s: %s", app, error)  # noqa: TRY400 - the message says it all
    _expire_rejected(store, now_s, settings.error_retention, report)
    _clear_leftovers(store, report)
    return report


def _clear_leftovers(store: ObjectStore, report: SweepReport) -> None:
    """Clear ``Temp/`` and unfinished small files, unless a hold is in force: a backup may be reading them."""
    try:
        if hold.current(store) is None:
            swept = sweep_leftovers(store)
            report.leftovers = len(swept)
            if swept:
                log.info("sweep: %d leftovers of dead processes cleared, the first: %s", len(swept), ascii(swept[0]))
    except (OSError, FSWorkerError) as error:  # a full disk, root's hold: the spool has been swept, and that matters
        log.warning("sweep: what dead processes left in the store stays for now: %s", error)


def _now_s(store: ObjectStore) -> float:
    """The store's clock; on a disk so full that it cannot be asked, this host's: what is removed now makes room."""
    try:
        return store.probe_clock()
    except OSError as error:
        log.warning("the store's clock cannot be asked: %s", error)
        return time.time()


class _Sweep:
    """One application's part of a sweep."""

    def __init__(
        self,
        store: ObjectStore,
        kv: KV,
        send: Send,
        settings: Settings,
        spool: SpoolDirectory,
        report: SweepReport,
        now_s: float,
        *,
        at_once: bool,
    ) -> None:
        names = Names(settings.namespace)
        self._store, self._send, self._settings, self._spool, self._report = store, send, settings, spool, report
        self._queue = names.ingest_queue(spool.app)
        self._now_s = now_s
        backlog = kv.queue_length(self._queue)
        quiet = backlog == 0 and kv.hash_length(names.unacked_key("ingest")) == 0
        self._ring_after_s = 0.0 if at_once else _QUIET_AFTER_S if quiet else 2 * settings.visibility_timeout
        self._room = min(_MAX_RUNG, _MAX_BACKLOG - backlog)

    def run(self) -> None:
        """Look at every name once. Whatever an application does to its own spool, the others have their sweep."""
        until_s = time.monotonic() + _SECONDS_PER_APP
        told = False
        for entry in self._entries():
            if time.monotonic() > until_s:
                log.warning(
                    "sweep: the spool of %s takes too long; the rest of it is left to the next", self._spool.app
                )
                return
            try:
                self._look_at(entry)
            except RedisUnavailableError:
                raise
            except Exception:  # of one name: the spool is written by an application, and others' uploads wait behind it
                self._report.failed += 1
                if not told:
                    log.exception("sweep: %s in the spool of %s is passed over", ascii(entry.name), self._spool.app)
                told = True

    def _entries(self) -> Iterator[Entry]:
        """Everything, from a random place on: what this sweep has no time or no room for, another one begins with."""
        skipped = secrets.randbelow(1 + sum(1 for _ in self._spool.entries()))
        yield from islice(self._spool.entries(), skipped, None)
        yield from islice(self._spool.entries(), skipped)

    def _look_at(self, entry: Entry) -> None:
        age_s = self._age_s(entry.name)
        if age_s is None:
            return
        if entry.kind == "json":
            self._request(entry, age_s)
        elif age_s > self._lifetime_s(entry):
            self._spool.remove(entry.name)
            self._report.expired += 1

    def _lifetime_s(self, entry: Entry) -> float:
        lifetimes = {"done": self._settings.result_retention, "part": _ABANDONED_AFTER_S, "new": _LITTER_AFTER_S}
        return lifetimes.get(entry.kind, float("inf"))

    def _age_s(self, name: str) -> float | None:
        """Since the last change of the inode: nobody can set that back. ``None``: gone, or no regular file."""
        status = self._spool.status(name)
        if status is None or not stat.S_ISREG(status.st_mode):
            return None
        return self._now_s - status.st_ctime

    def _request(self, entry: Entry, age_s: float) -> None:
        job_id = entry.key
        if age_s < self._ring_after_s or self._room <= 0:
            self._report.waiting += 1
            return
        if job_in_flight(self._store.fd, job_id, self._store.modes.lock_file):
            self._report.in_flight += 1
            return
        try:
            request = self._spool.read_request(job_id)
        except UploadRejectedError:
            self._ring(job_id, "ingest", _UNREADABLE)
            return
        if request is None:
            return
        wait_s = request.not_before - time.time()
        if 0 < wait_s <= 2 * MAX_DELAY_S:  # more is a clock that was set back
            self._report.waiting += 1
            return
        if not _can_be_sent(request):
            self._ring(job_id, "ingest", _UNREADABLE)
        elif request.task != "ingest" or not self._is_uncommitted(job_id, request.request["upload"], age_s):
            self._ring(job_id, request.task, request.request)

    def _is_uncommitted(self, job_id: str, upload: str, age_s: float) -> bool:
        """Whether the upload is still being written. One that was given up ends here, with its request."""
        if any(self._spool.exists(name) for name in (upload, taken_name(job_id), done_name(job_id))):
            return False
        part_age_s = self._age_s(part_name(upload))
        if part_age_s is None:  # between request and upload; else the worker reports it
            return age_s < 2 * self._settings.visibility_timeout
        # Removing the part decides it: a client that wakes up now cannot commit any more, and is told.
        abandoned = part_age_s > _ABANDONED_AFTER_S and age_s > _ABANDONED_AFTER_S
        if abandoned and self._spool.remove(part_name(upload)):
            self._spool.remove(request_name(job_id))
            self._report.abandoned += 1
        return True

    def _ring(self, job_id: str, task: str, kwargs: dict[str, Any]) -> None:
        self._send(f"{TASK_PREFIX}.{task}", kwargs, self._queue, job_id)
        self._room -= 1
        self._report.rung += 1


def _can_be_sent(request: SpooledRequest) -> bool:
    """Whether these arguments pass the check at the worker's door (:mod:`fsworker.broker.judge`)."""
    try:
        REQUESTS[request.task].model_validate(request.request)
    except ValidationError:
        return False
    return True


def _expire_rejected(store: ObjectStore, now_s: float, retention_s: float, report: SweepReport) -> None:
    """Remove uploads that were refused so long ago. Nothing else under ``Error/`` ever expires."""
    for stamp in errordir.stamps(store):
        try:
            # Age first: what is young need not be read, and applications decide how many there are.
            if now_s - os.stat(store.root / layout.ERROR / stamp).st_ctime <= retention_s:
                continue
            if errordir.read_entry(store, stamp).kind == errordir.REJECTED:
                errordir.remove(store, stamp)
                report.expired += 1
        except OSError as error:  # an upload can be a directory with things in it that only their owner may remove
            report.failed += 1
            log.warning("sweep: Error/%s cannot be removed: %s", stamp, error)
