"""Collections and purges as the maintenance worker does them: in short parts, each a task that sends the next.

A part is short against the visibility timeout, so that no copy of it is delivered while it works; should one be, it finds
the lock taken and ends, or does the next part. Whatever breaks the chain of parts (a lost message, a killed process, a Redis
that is away) and whatever had to wait, the sweep sends again: see :mod:`fsworker.collection.agenda`. What the last ones did is
noted in the store (``Lock/last.json``) for ``fsworker stats``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from fsworker.broker.kv import KV
from fsworker.broker.names import COLLECT, COLLECT_PART, PURGE, PURGE_PART, Names
from fsworker.broker.sending import Send
from fsworker.collection.agenda import Agenda
from fsworker.collection.basis import ageing
from fsworker.collection.collector import Collector
from fsworker.collection.purge import purge
from fsworker.collection.runs import Run
from fsworker.collection.turn import is_free
from fsworker.config import Settings
from fsworker.errors import CollectionRefusedError, FSWorkerError, RedisUnavailableError
from fsworker.keepsets.reader import KeepReader
from fsworker.store.clock import observe
from fsworker.store.handle import StoreHandle
from fsworker.store.hold import current as current_hold
from fsworker.store.notes import BrokenNoteError, read_note, write_note
from fsworker.store.objects import ObjectStore
from fsworker.verification.part import limits_of, verify_part
from fsworker.verification.telling import tell

log = logging.getLogger(__name__)

NOTE = "last.json"
SWEPT_NOTE = "swept.json"
_PART_S = 30.0
_WARN_EVERY_S = 3600.0
_TASKS = {"collect": COLLECT, "purge": PURGE}
_PASSING = {"running", "hold", "apps_changed"}
"""Reasons of refusals that nobody has to do anything about: it is tried again when they have passed."""


class Upkeep:
    """What beat starts for one store, beside the sweep."""

    def __init__(self, store: ObjectStore, kv: KV, send: Send, settings: Settings) -> None:
        self._store, self._send, self._settings = store, send, settings
        self._names = Names(settings.namespace)
        self._reader = KeepReader(kv, self._names)
        self._agenda = Agenda(store, settings)
        self._part_s = min(_PART_S, settings.visibility_timeout / 4)
        self._warned_s = -_WARN_EVERY_S

    def collect(self, run: str | None = None) -> dict[str, Any]:
        """Begin (or take up) a collection, or do the next part of ``run``. A refusal is logged and returned."""
        self._agenda.begun("collect")
        try:
            done = Collector(self._store, self._reader, self._settings).part(run, self._part_s)
        except CollectionRefusedError as error:
            return self._refused("collect", error)
        if done is None:
            self._agenda.over("collect")
            return {"run": run, "over": True}
        if done.done:
            log_run(done)
            note_last(self._store, "collect", done.as_json())
            self._agenda.over("collect")
        else:
            task_id = f"fsworker.collect-{done.stamp}-{done.phase}-{done.shard}"
            self._send(COLLECT_PART, {"run": done.stamp}, self._names.maintenance_queue, task_id)
            self._agenda.goes_on("collect")
        return done.as_json()

    def purge(self, shard: int = 0) -> dict[str, Any]:
        """Purge from ``shard`` on, for one part. A refusal is logged and returned."""
        self._agenda.begun("purge")
        collector = Collector(self._store, self._reader, self._settings)
        try:
            done = purge(collector, first_shard=shard, budget_s=self._part_s)
        except CollectionRefusedError as error:
            return self._refused("purge", error)
        if done.deleted or done.wanted:
            log.info("purge: %s", done.as_json())
        if done.done:
            note_last(self._store, "purge", done.as_json())
            self._agenda.over("purge")
        else:
            task_id = f"fsworker.purge-{int(time.time())}-{done.shard}"
            self._send(PURGE_PART, {"shard": done.shard}, self._names.maintenance_queue, task_id)
            self._agenda.goes_on("purge")
        return done.as_json()

    def verify(self) -> dict[str, Any]:
        """Verify a part of what is due, and tell applications what of theirs is in quarantine."""
        part = verify_part(self._store, limits_of(self._settings), mirror_path=self._settings.mirror)
        if part.skipped:
            log.info("verification: %s", part.skipped)
            return part.as_json()
        if part.files or part.findings:
            log.info("verification: %s", {**part.as_json(), "findings": len(part.findings)})
        try:
            tell(self._store, self._reader, self._names, self._send)
        except RedisUnavailableError as error:
            log.warning("applications will be told later what is in quarantine: %s", error)
        return part.as_json()

    def watch(self) -> None:
        """Look at the clock, send what is overdue, and warn of keep-sets that will soon be too old (once an hour)."""
        try:
            observe(self._store)
        except OSError as error:
            log.warning("cannot look at the store's clock: %s", error)
        self._send_overdue()
        if time.monotonic() - self._warned_s < _WARN_EVERY_S:
            return
        self._warned_s = time.monotonic()
        try:
            found = self._reader.find(self._store.reload().app_names)
            for warning in ageing(found, self._reader.time_s(), self._settings.keep_set_max_age):
                log.warning("%s", warning.message)
        except RedisUnavailableError as error:
            log.info("%s", error)

    def _refused(self, what: str, error: CollectionRefusedError) -> dict[str, Any]:
        reasons = [refusal.as_json() for refusal in error.refusals]
        if {refusal.reason for refusal in error.refusals} <= _PASSING:
            self._agenda.postponed(what)
        else:
            self._agenda.over(what)
        if [refusal.reason for refusal in error.refusals] == ["running"]:
            log.info("%s: %s", what, error)
        else:
            log.warning("%s refused: %s", what, error)
            note_last(self._store, what, {"refused": reasons})
        return {"refused": reasons}

    def _send_overdue(self) -> None:
        """Send what is past its time, unless it is being done. It goes on where it was."""
        try:
            if current_hold(self._store) is not None or not is_free(self._store):
                return
            for what, task in _TASKS.items():
                if self._agenda.is_due(what):
                    log.info("%s: sent again, since beat or the part before was not heard, or it had to wait", what)
                    self._send(task, {}, self._names.maintenance_queue, f"fsworker.{what}-{int(time.time())}-again")
                    self._agenda.sent(what)
        except (OSError, FSWorkerError) as error:
            log.warning("an overdue collection or purge waits longer: %s", error)


def log_run(run: Run) -> None:
    """Say in the log what a collection did."""
    tally = run.tally
    log.info(
        "collection %s: %d files, %d trashed (%d bytes), %d restored, %d unreferenced but young",
        run.stamp,
        tally.files,
        tally.trashed,
        tally.trashed_bytes,
        tally.restored,
        tally.young,
    )
    if tally.rotten:
        log.error("collection %s: %d files that are kept are only in trash, and rotten", run.stamp, tally.rotten)


def note_last(handle: StoreHandle, what: str, report: Mapping[str, Any]) -> None:
    """Note what a collection or a purge did. Not synced, and not missed on a full disk: it is only for people."""
    try:
        write_note(handle, NOTE, {**read_last(handle), what: {"time": handle.probe_clock(), **report}}, sync=False)
    except OSError as error:
        log.warning("what the last %s did cannot be noted: %s", what, error)


def read_last(handle: StoreHandle) -> dict[str, Any]:
    """What the last collection and the last purge did; empty when that is not known."""
    try:
        return read_note(handle, NOTE) or {}
    except BrokenNoteError:
        return {}


def note_sweep(handle: StoreHandle) -> None:
    """Note that a sweep was made: by it is seen that beat, Redis and a maintenance worker together do their work.

    Not synced. On a full disk the note is as old as the last one that could be written, and a warning is logged.
    """
    try:
        write_note(handle, SWEPT_NOTE, {"time": handle.probe_clock()}, sync=False)
    except OSError as error:
        log.warning("the sweep cannot be noted: %s", error)


def last_sweep_s(handle: StoreHandle) -> float | None:
    """When the last sweep was made, by the store's clock; ``None`` when that is not known. Raises ``OSError``."""
    try:
        time_s = (read_note(handle, SWEPT_NOTE) or {}).get("time")
    except BrokenNoteError:
        return None
    return float(time_s) if isinstance(time_s, (int, float)) else None
