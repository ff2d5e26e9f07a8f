"""The sweep: what makes the spool the truth and a message only a doorbell.

It rings again for requests whose message was lost (a worker killed between taking it and noting it, a flushed Redis, a
fail-over), ends what can never come to an end by itself, and removes what is past its time. It may run as often as one
likes and beside itself: jobs in flight hold their lock, and a job that is rung for twice is done once.
"""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from fsworker import errordir, layout
from fsworker.config import Settings
from fsworker.errors import ConfigError, RedisUnavailableError, UploadRejectedError
from fsworker.kv import KV
from fsworker.locks import job_in_flight
from fsworker.names import TASK_PREFIX, Names
from fsworker.objects import ObjectStore
from fsworker.service import MAX_DELAY_S, Send
from fsworker.spool import Entry, SpoolDirectory, part_name, taken_name

log = logging.getLogger(__name__)

_QUIET_AFTER_S = 5.0
"""A request this old, with nothing in the queue and nothing unacknowledged, has lost its message."""
_ABANDONED_AFTER_S = 24 * 3600.0
"""An upload that nobody has written to for so long, and was never committed, is given up."""
_LITTER_AFTER_S = 600.0
"""A small file that has been on its way to its name for so long belongs to a process that was killed."""
_SECONDS_PER_APP = 30.0
_MAX_RUNG = 1000
_MAX_BACKLOG = 1000
"""While more messages than this wait, nothing is added to them: what waits in the spool loses nothing."""


@dataclass
class SweepReport:
    """What one sweep did."""

    rung: int = 0
    waiting: int = 0
    in_flight: int = 0
    abandoned: int = 0
    expired: int = 0
    failed: int = 0

    def as_json(self) -> dict[str, int]:
        """For ``--json`` and task results."""
        return asdict(self)


def sweep(store: ObjectStore, kv: KV, send: Send, settings: Settings, *, at_once: bool = False) -> SweepReport:
    """Sweep the spool of every registered application, and ``Error/``.

    ``at_once`` rings for every request that is not in flight, whatever its age: right after a start, when no message
    can be on its way. Raises :class:`RedisUnavailableError`.
    """
    report = SweepReport()
    for app in store.reload().app_names:
        try:
            spool = SpoolDirectory(store.root / layout.SPOOL / app, app)
        except ConfigError as error:
            log.error("sweep: %s", error)  # noqa: TRY400 - the message says it all
            continue
        with spool:
            _Sweep(store, kv, send, settings, spool, report, at_once=at_once).run()
    report.expired += _expire_rejected(store, settings.error_retention)
    return report


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
        *,
        at_once: bool,
    ) -> None:
        names = Names(settings.namespace)
        self._store, self._send, self._settings, self._spool, self._report = store, send, settings, spool, report
        self._queue = names.ingest_queue(spool.app)
        self._now_s = store.probe_clock()
        backlog = kv.queue_length(self._queue)
        quiet = backlog == 0 and kv.hash_length(names.unacked_key("ingest")) == 0
        self._ring_after_s = 0.0 if at_once else _QUIET_AFTER_S if quiet else 2 * settings.visibility_timeout
        self._room = min(_MAX_RUNG, _MAX_BACKLOG - backlog)

    def run(self) -> None:
        """Look at every name once. Whatever an application does to its own spool, the others have their sweep."""
        until_s = time.monotonic() + _SECONDS_PER_APP
        told = False
        for entry in self._spool.entries():
            if time.monotonic() > until_s:
                log.warning(
                    "sweep: the spool of %s takes too long; the rest of it is left to the next", self._spool.app
                )
                return
            try:
                self._look_at(entry)
            except RedisUnavailableError:
                raise
            except Exception:
                self._report.failed += 1
                if not told:
                    log.exception("sweep: %s in the spool of %s is passed over", ascii(entry.name), self._spool.app)
                told = True

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
            self._ring(
                job_id, "ingest", {"upload": "unreadable"}
            )  # the worker finds the same, and says so to its owner
            return
        if request is None:
            return
        wait_s = request.not_before - time.time()
        if 0 < wait_s <= 2 * MAX_DELAY_S:  # more is a clock that was set back
            self._report.waiting += 1
            return
        if request.task == "ingest" and self._is_uncommitted(job_id, request.request, age_s):
            return
        self._ring(job_id, request.task, request.request)

    def _is_uncommitted(self, job_id: str, request: dict[str, Any], age_s: float) -> bool:
        """Whether the upload is still being written. One that was given up ends here, with its request."""
        upload = request.get("upload")
        if not isinstance(upload, str) or "/" in upload or "\0" in upload or len(upload) > 200:
            return False
        if self._spool.exists(upload) or self._spool.exists(taken_name(job_id)) or self._has_outcome(job_id):
            return False
        part_age_s = self._age_s(part_name(upload))
        if part_age_s is None:
            return (
                age_s < 2 * self._settings.visibility_timeout
            )  # between request and upload; else the worker reports it
        if part_age_s > _ABANDONED_AFTER_S and age_s > _ABANDONED_AFTER_S:
            self._spool.remove(part_name(upload))
            self._spool.remove(f".{job_id}.json")
            self._report.abandoned += 1
        return True

    def _has_outcome(self, job_id: str) -> bool:
        return self._spool.exists(f".{job_id}.done")

    def _ring(self, job_id: str, task: str, kwargs: dict[str, Any]) -> None:
        self._send(f"{TASK_PREFIX}.{task}", kwargs, self._queue, job_id)
        self._room -= 1
        self._report.rung += 1


def _expire_rejected(store: ObjectStore, retention_s: float) -> int:
    """Remove uploads that were refused so long ago. Nothing else under ``Error/`` ever expires."""
    now_s = store.probe_clock()
    expired = 0
    for entry in _rejected(store):
        status = os.stat(store.root / layout.ERROR / entry.stamp)
        if now_s - status.st_ctime > retention_s:
            errordir.remove(store, entry.stamp)
            expired += 1
    return expired


def _rejected(store: ObjectStore) -> Iterator[errordir.ErrorEntry]:
    return (entry for entry in errordir.entries(store) if entry.kind == errordir.REJECTED)
