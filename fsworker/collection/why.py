"""Why is a file here, or not: where a hash lies, who keeps it, and what the next collection would do with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fsworker.collection.basis import DEBOUNCE
from fsworker.collection.collector import Collector
from fsworker.config import format_duration
from fsworker.errors import CollectionRefusedError, RedisUnavailableError
from fsworker.keepsets.form import BrokenKeepSetError
from fsworker.keepsets.reader import KeepReader
from fsworker.model import Hash
from fsworker.store import errordir
from fsworker.store.clock import read_record
from fsworker.store.handle import translated
from fsworker.store.layout import stamp_time
from fsworker.store.notes import BrokenNoteError
from fsworker.store.objects import ObjectStore
from fsworker.store.trashlist import stamps, trash_status


@dataclass(frozen=True)
class Stored:
    """A file in ``Data/``. ``born_s`` is its ctime or the clock floor, from which ages count; seconds since the epoch.

    It is safe from every keep-set whose snapshot is earlier than ``safe_until_s``, though no application keeps it.
    """

    size_bytes: int
    born_s: float
    safe_until_s: float


@dataclass(frozen=True)
class Why:
    """The answer. ``kept_by`` maps each application to True, False, or to the reason for which that cannot be told."""

    hash: Hash
    stored: Stored | None
    trashed: tuple[tuple[str, float], ...]
    quarantined: tuple[str, ...]
    kept_by: Mapping[str, bool | str]
    next_collection: str
    problems: tuple[str, ...] = field(default=())

    @property
    def known(self) -> bool:
        """Whether the store has, or had, anything of that name."""
        return self.stored is not None or bool(self.trashed) or bool(self.quarantined)

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "hash": self.hash,
            "state": self.state,
            "stored": None if self.stored is None else asdict(self.stored),
            "trashed": [{"run": stamp, "time": time_s} for stamp, time_s in self.trashed],
            "quarantined": list(self.quarantined),
            "kept_by": dict(self.kept_by),
            "next_collection": self.next_collection,
            "problems": list(self.problems),
        }

    @property
    def state(self) -> str:
        """``present``, ``trashed``, ``quarantined`` or ``unknown``: the best that is true."""
        if self.stored is not None:
            return "present"
        return "trashed" if self.trashed else "quarantined" if self.quarantined else "unknown"


@translated("Looking up a hash")
def why(store: ObjectStore, name: Hash, collector: Collector | None) -> Why:
    """Look ``name`` up. Without ``collector`` (no Redis is configured) nobody can say who keeps it."""
    stored = _stored(store, name)
    trashed = tuple((s, stamp_time(s)) for s in reversed(stamps(store)) if trash_status(store, s, name) is not None)
    quarantined = tuple(
        entry.stamp for entry in errordir.entries(store) if entry.reason.get("hash") == name or name in entry.files
    )
    problems: tuple[str, ...] = ()
    try:
        kept_by = {} if collector is None else _kept_by(store, collector.reader, name)
        verdict = "not known: no Redis" if collector is None else _verdict(collector, stored, bool(trashed), kept_by)
    except RedisUnavailableError as error:
        kept_by, verdict, problems = {}, "not known: Redis is away", (str(error),)
    except CollectionRefusedError as error:
        verdict, problems = "would be refused", tuple(refusal.message for refusal in error.refusals)
    return Why(name, stored, trashed, quarantined, kept_by, verdict, problems)


def _stored(store: ObjectStore, name: Hash) -> Stored | None:
    status = store.status(name)
    if status is None:
        return None
    try:
        record = read_record(store)
    except (BrokenNoteError, PermissionError):  # Lock/ may be closed to who asks
        record = None
    born_s = max(status.st_ctime, record.floor_s if record is not None else 0.0)
    return Stored(status.st_size, born_s, born_s + store.grace_s * (1 + DEBOUNCE))


def _kept_by(store: ObjectStore, reader: KeepReader, name: Hash) -> dict[str, bool | str]:
    raw = bytes.fromhex(name)
    answers: dict[str, bool | str] = {}
    for found in reader.find(store.reload().app_names):
        if found.manifest is None:
            answers[found.app] = found.problem or "it has no keep-set"
            continue
        try:
            answers[found.app] = bool(reader.marked(found.manifest, raw[0], {raw}))
        except BrokenKeepSetError as error:
            answers[found.app] = str(error)
    return answers


def _verdict(collector: Collector, stored: Stored | None, trashed: bool, kept_by: Mapping[str, bool | str]) -> str:
    """What the next collection would do, with the keep-sets that are in force. Raises :class:`CollectionRefusedError`."""
    basis = collector.basis()
    keepers = [app for app, kept in kept_by.items() if kept is True]
    if stored is None:
        if not trashed:
            return "nothing: it is not stored"
        return f"would restore it, for {', '.join(keepers)}" if keepers else "would leave it in trash"
    if keepers:
        return f"would keep it, for {', '.join(keepers)}"
    later_s = max(0.0, basis.floor_s - stored.born_s)  # a step of the clock that was seen only now
    if stored.born_s + later_s < basis.cutoff_s:
        return "would trash it: no application keeps it"
    wait_s = stored.safe_until_s + later_s - basis.oldest.snapshot_time
    return (
        f"would leave it: no application keeps it, but it is too young; a snapshot {format_duration(round(wait_s))} later "
        f"than that of {basis.oldest.app} would let it go"
    )
