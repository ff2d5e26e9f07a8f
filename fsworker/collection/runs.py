"""A collection as it stands between two parts: a value, and a note in the store, ``Lock/collection.json``."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from fsworker.collection.plan import Tally
from fsworker.keepsets.form import BrokenKeepSetError, Manifest, parse_manifest
from fsworker.store.handle import StoreHandle
from fsworker.store.notes import BrokenNoteError, read_note

log = logging.getLogger(__name__)

NOTE = "collection.json"
SHARDS = 256


@dataclass(frozen=True)
class Run:
    """A collection, as it stands between two parts.

    ``phase`` is ``plan``, ``move`` or ``done``; ``shard`` the next one. ``due`` are the shards in which something is to be
    done.
    """

    stamp: str
    cutoff_s: float
    overrides: tuple[str, ...]
    manifests: tuple[Manifest, ...]
    phase: str = "plan"
    shard: int = 0
    due: tuple[int, ...] = ()
    tally: Tally = field(default_factory=Tally)

    @property
    def done(self) -> bool:
        """Whether it has come to its end."""
        return self.phase == "done"

    def as_json(self) -> dict[str, Any]:
        """What is reported: no keep-sets."""
        return {
            "run": self.stamp,
            "phase": self.phase,
            "shard": self.shard,
            "cutoff": datetime.fromtimestamp(self.cutoff_s, UTC).isoformat(),
            "oldest_keep_set": min(self.manifests, key=lambda m: m.snapshot_time).app,
            **self.tally.as_json(),
        }

    def note(self) -> dict[str, Any]:
        """What is kept between parts."""
        return {
            "stamp": self.stamp,
            "cutoff_s": self.cutoff_s,
            "overrides": list(self.overrides),
            "manifests": [manifest.dump().decode() for manifest in self.manifests],
            "phase": self.phase,
            "shard": self.shard,
            "due": list(self.due),
            "tally": self.tally.as_json(),
        }

    @classmethod
    def of_note(cls, tree: dict[str, Any]) -> Run:
        """The reverse of :meth:`note`. Raises :class:`BrokenNoteError`."""
        try:
            return cls(
                stamp=str(tree["stamp"]),
                cutoff_s=float(tree["cutoff_s"]),
                overrides=tuple(map(str, tree["overrides"])),
                manifests=tuple(parse_manifest(str(text).encode()) for text in tree["manifests"]),
                phase=str(tree["phase"]),
                shard=int(tree["shard"]),
                due=tuple(map(int, tree["due"])),
                tally=Tally.of_json(tree["tally"]),
            )
        except (KeyError, TypeError, ValueError, BrokenKeepSetError) as error:
            raise BrokenNoteError(f"the note of the last collection is broken ({error!r})") from None


def read_run(handle: StoreHandle) -> Run | None:
    """The run that is under way, or was interrupted; ``None`` when there is none. A broken note is told, and is none."""
    try:
        tree = read_note(handle, NOTE)
        return None if tree is None else Run.of_note(tree)
    except BrokenNoteError as error:
        log.warning("%s; the next collection begins anew", error)
        return None
