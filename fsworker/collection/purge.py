"""Purging: files in trash are deleted for good, when nobody can want them any more.

A file goes when all of this is so: it has been in trash for longer than ``trash_retention``; every application has published
a keep-set whose snapshot is later than the trashing plus the grace; none of these keep-sets has it. Whatever refuses a
collection refuses a purge, for the same reasons. The time of trashing is the file's ctime (a rename renews it), or the
run's stamp, or the clock floor, whichever is latest.

A purge can be done in parts; each begins at a shard, and goes on with the tally of those before it (``Lock/purge.json``).
Killed at any moment it has deleted some of what was to be deleted.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from fsworker.collection.basis import Basis, broken
from fsworker.collection.collector import Collector
from fsworker.collection.runs import SHARDS
from fsworker.errors import CollectionRefusedError
from fsworker.keepsets.form import BrokenKeepSetError
from fsworker.model import Hash
from fsworker.store import layout
from fsworker.store.notes import BrokenNoteError, read_note, remove_note, write_note
from fsworker.store.trash import delete_from_trash
from fsworker.store.trashlist import TrashIndex, stamps, trash_status

log = logging.getLogger(__name__)

NOTE = "purge.json"
_LOOK_FOR_HOLD_EVERY = 32


@dataclass(frozen=True)
class Trashed:
    """A file in trash, as a purge sees it. ``since_s``: when it went there, in seconds since the epoch."""

    stamp: str
    name: Hash
    since_s: float
    size_bytes: int


@dataclass(frozen=True)
class Purged:
    """What a purge did, up to ``shard``, or would do. ``wanted`` files are kept by an application, and stay."""

    deleted: int = 0
    deleted_bytes: int = 0
    wanted: int = 0
    young: int = 0
    shard: int = 0

    @property
    def done(self) -> bool:
        """Whether every shard was looked at."""
        return self.shard >= SHARDS

    def as_json(self) -> dict[str, Any]:
        """For reports."""
        return {
            "deleted": self.deleted,
            "deleted_bytes": self.deleted_bytes,
            "wanted": self.wanted,
            "young": self.young,
            "done": self.done,
        }


def purge_before(basis: Basis, now_s: float, retention_s: float) -> float:
    """The time before which a file must have gone to trash, to be deleted. Pure.

    The cutoff of collections says that every snapshot is later than that time plus the grace.
    """
    return min(now_s - retention_s, basis.cutoff_s)


def is_due(file: Trashed, before_s: float, floor_s: float) -> bool:
    """Whether a file that no application keeps may be deleted. Pure."""
    return max(file.since_s, floor_s) < before_s


def purge(
    collector: Collector, *, first_shard: int = 0, budget_s: float = float("inf"), dry_run: bool = False
) -> Purged:
    """Delete what is due, beginning with ``first_shard``, for about ``budget_s`` and at least one shard.

    Raises :class:`CollectionRefusedError`; keep-sets are read before anything of their shard is deleted.
    """
    with collector.alone():
        basis = collector.basis()
        before_s = purge_before(basis, collector.store.probe_clock(), collector.settings.trash_retention)
        index = TrashIndex(collector.store)
        done = replace(_tally_before(collector, first_shard), shard=first_shard)
        deadline_s = time.monotonic() + budget_s
        if first_shard == 0:
            _read_all(collector, basis, index)
        while not done.done:
            done = _purge_shard(collector, basis, before_s, index, done, dry_run=dry_run)
            if time.monotonic() >= deadline_s:
                break
        if not dry_run:
            _remove_empty(collector)
            _note_tally(collector, done)
        return done


def _tally_before(collector: Collector, shard: int) -> Purged:
    """What the parts before did; nothing where that is not known: it is only for people."""
    with suppress(BrokenNoteError, TypeError, OSError):
        tree = read_note(collector.store, NOTE) if shard else None
        if tree is not None and tree.pop("shard", None) == shard:
            return Purged(**{name: int(count) for name, count in tree.items()})
    return Purged()


def _note_tally(collector: Collector, done: Purged) -> None:
    try:
        if done.done:
            remove_note(collector.store, NOTE)
        else:
            write_note(collector.store, NOTE, asdict(done), sync=False)
    except OSError as error:
        log.warning("what the purge did so far cannot be noted; its report will count less than it removed: %s", error)


def _read_all(collector: Collector, basis: Basis, index: TrashIndex) -> None:
    """Find a broken keep-set before the first deletion."""
    if any(index.names(shard) for shard in range(SHARDS)):
        for shard in range(SHARDS):
            _kept(collector, basis, shard, set())


def _kept(collector: Collector, basis: Basis, shard: int, names: set[bytes]) -> set[bytes]:
    kept: set[bytes] = set()
    for manifest in basis.manifests:
        try:
            kept |= collector.reader.marked(manifest, shard, names)
        except BrokenKeepSetError as error:
            raise CollectionRefusedError(broken(manifest.app, str(error))) from None
    return kept


def _purge_shard(
    collector: Collector, basis: Basis, before_s: float, index: TrashIndex, done: Purged, *, dry_run: bool
) -> Purged:
    shard = done.shard
    names = index.names(shard)
    kept = _kept(collector, basis, shard, names) if names else set()
    for number, file in enumerate(_files(collector, index, shard)):
        if number % _LOOK_FOR_HOLD_EVERY == 0:
            collector.refuse_hold()
        if bytes.fromhex(file.name) in kept:
            done = replace(done, wanted=done.wanted + 1)
            continue
        if not is_due(file, before_s, basis.floor_s):
            size_bytes = None
        elif dry_run:
            size_bytes = file.size_bytes
        else:
            size_bytes = delete_from_trash(collector.store, file.stamp, file.name, before_s)
        if size_bytes is None:
            done = replace(done, young=done.young + 1)
        else:
            done = replace(done, deleted=done.deleted + 1, deleted_bytes=done.deleted_bytes + size_bytes)
    return replace(done, shard=shard + 1)


def _files(collector: Collector, index: TrashIndex, shard: int) -> Iterator[Trashed]:
    for stamp, raw in index.entries(shard):
        name = Hash(raw.hex())
        status = trash_status(collector.store, stamp, name)
        if status is not None:
            began_s = layout.stamp_time(stamp) + int(stamp[15:23]) / 10**8
            yield Trashed(stamp, name, max(status.st_ctime, began_s), status.st_size)


def _remove_empty(collector: Collector) -> None:
    """Remove directories that nothing is left in."""
    store = collector.store
    for stamp in stamps(store):
        with suppress(OSError):  # not empty, nearly always; one that stays does no harm, and is tried again
            os.rmdir(f"{layout.TRASH}/{stamp}", dir_fd=store.fd)
    store.fsync_directory(layout.TRASH)
