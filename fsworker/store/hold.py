"""A hold: for a while no file is moved, so that a database dump followed by ``rsync`` of the store is a backup of one piece.

A file in the store, ``Lock/hold.json``, with an end time. It stops collections (also one that is running), restores that
would move, purges, and quarantine that can wait; uploads go on. It ends by itself, later rather than sooner: both by
the wall clock and, within one boot, by the time since boot. A restored backup brings the hold that it was made under; its
end has long passed, or it can be released.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fsworker.store.clock import boot_id, boot_time_s
from fsworker.store.handle import StoreHandle, translated
from fsworker.store.notes import BrokenNoteError, read_note, remove_note, write_note

NOTE = "hold.json"
MAX_HOLD_S = 30 * 86400.0


@dataclass(frozen=True)
class Hold:
    """A hold in force, until ``until_s`` (seconds since the epoch, by the store's clock)."""

    until_s: float


@translated("Holding")
def set_hold(handle: StoreHandle, duration_s: float) -> Hold:
    """Hold everything from now on for ``duration_s``; replaces a hold that is there. Durable on return.

    A move that has begun may still end: see :func:`fsworker.collection.turn.quiesce`.
    """
    until_s = handle.probe_clock() + duration_s
    write_note(handle, NOTE, {"until": until_s, "boot_id": boot_id(), "boot_until": boot_time_s() + duration_s})
    return Hold(until_s)


@translated("Releasing")
def release(handle: StoreHandle) -> bool:
    """End the hold. False when there was none."""
    return remove_note(handle, NOTE)


@translated("Reading the hold")
def current(handle: StoreHandle) -> Hold | None:
    """The hold that is in force, or ``None``. A hold that cannot be read is in force until it is released."""
    try:
        tree = read_note(handle, NOTE)
        if tree is None:
            return None
        until_s, boot_until_s = float(tree["until"]), float(tree["boot_until"])
        if not (math.isfinite(until_s) and math.isfinite(boot_until_s)):
            return Hold(math.inf)
    except (BrokenNoteError, KeyError, TypeError, ValueError):
        return Hold(math.inf)
    over = handle.probe_clock() >= until_s
    if over and tree.get("boot_id") == boot_id():
        over = boot_time_s() >= boot_until_s  # a clock that was set forward ends no backup
    return None if over else Hold(until_s)
