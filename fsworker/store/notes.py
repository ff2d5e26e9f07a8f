"""Small JSON files in ``Lock/``: what the store remembers of its own upkeep, where applications cannot write.

They belong to the store, not to Redis, so that a flushed Redis cannot make the store forget. A restored backup brings
them back as old as the rest; what that means is said where each is kept (:mod:`clock`, :mod:`hold`, :mod:`accepted`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from fsworker import durable
from fsworker.store import layout
from fsworker.store.handle import StoreHandle

MAX_NOTE_BYTES = 16 << 20


class BrokenNoteError(Exception):
    """The file is there and cannot be understood. Who reads it decides what is safe."""


def read_note(handle: StoreHandle, name: str) -> dict[str, Any] | None:
    """The note ``name``, or ``None`` when there is none. Raises :class:`BrokenNoteError`, ``OSError``."""
    try:
        fd = os.open(f"{layout.LOCK}/{name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=handle.fd)
    except FileNotFoundError:
        return None
    with os.fdopen(fd, "rb") as stream:
        data = stream.read(MAX_NOTE_BYTES)
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BrokenNoteError(f"{handle.root / layout.LOCK / name} is not JSON: {error}") from None
    if not isinstance(tree, dict):
        raise BrokenNoteError(f"{handle.root / layout.LOCK / name} is not a JSON object")
    return tree


def write_note(handle: StoreHandle, name: str, tree: Mapping[str, Any], *, sync: bool = True) -> None:
    """Replace the note ``name`` atomically; with ``sync`` it is on disk on return. Raises ``OSError``."""
    handle.prepare()
    mode = 0o600 if handle.modes.private == 0o700 else 0o644  # where a group writes, whoever writes next replaces it
    fd = os.open(layout.LOCK, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=handle.fd)
    try:
        durable.replace_small_file(name, json.dumps(tree).encode(), fd, mode, sync=sync)
    finally:
        os.close(fd)


def remove_note(handle: StoreHandle, name: str) -> bool:
    """Remove a note, durably. False when there was none."""
    try:
        os.unlink(f"{layout.LOCK}/{name}", dir_fd=handle.fd)
    except FileNotFoundError:
        return False
    handle.fsync_directory(layout.LOCK)
    return True
