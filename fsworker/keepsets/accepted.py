"""What was last accepted of each application: snapshot time and count. Kept in the store (``Lock/accepted.json``).

It is written when a collection begins to act on keep-sets. By it an old Redis dump that was brought back, or a keep-set
that lost half its hashes, is told from a good one. A restored backup brings an older note, which is weaker and never
wrong; without any the first keep-sets are taken as they come.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fsworker.errors import ConfigError
from fsworker.keepsets.form import Manifest
from fsworker.store.handle import StoreHandle
from fsworker.store.layout import LOCK
from fsworker.store.notes import BrokenNoteError, read_note, write_note

NOTE = "accepted.json"


@dataclass(frozen=True)
class Accepted:
    """The keep-set of one application that a collection last acted on."""

    snapshot_s: float
    count: int


def read_accepted(handle: StoreHandle) -> dict[str, Accepted]:
    """All that is noted. Raises :class:`ConfigError` for a broken note: a collection must not run without."""
    try:
        tree = read_note(handle, NOTE) or {}
        found = {str(app): Accepted(float(entry["snapshot_time"]), int(entry["count"])) for app, entry in tree.items()}
        if not all(math.isfinite(entry.snapshot_s) for entry in found.values()):
            raise BrokenNoteError("a time is not finite")
    except (BrokenNoteError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{handle.root / LOCK / NOTE} is broken ({error}); look at 'fsworker keep show', and remove the file if the "
            f"keep-sets there are right"
        ) from None
    return found


def note_accepted(handle: StoreHandle, manifests: Iterable[Manifest]) -> None:
    """Note these as accepted, durably; those of other applications stay. Raises ``OSError``."""
    _write(handle, read_accepted(handle) | {m.app: Accepted(m.snapshot_time, m.count) for m in manifests})


def forget_accepted(handle: StoreHandle, app: str) -> None:
    """Forget a retired application. Raises ``OSError``."""
    _write(handle, {name: entry for name, entry in read_accepted(handle).items() if name != app})


def _write(handle: StoreHandle, entries: Mapping[str, Accepted]) -> None:
    tree = {app: {"snapshot_time": entry.snapshot_s, "count": entry.count} for app, entry in sorted(entries.items())}
    write_note(handle, NOTE, tree)
