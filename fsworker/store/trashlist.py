"""What lies in trash: ``Trash/<stamp>/<hash>``, one directory for each collection. Looks, and changes nothing."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from fsworker.model import Hash, is_hash
from fsworker.store import layout
from fsworker.store.handle import StoreHandle, translated

_ENTRY = struct.Struct("20sI")
_SHARDS = 256


@dataclass(frozen=True)
class TrashRun:
    """One collection's trash. ``time_s`` is when the collection began, in seconds since the epoch."""

    stamp: str
    time_s: float
    files: int
    size_bytes: int


def stamps(handle: StoreHandle) -> list[str]:
    """The collections that have trash, oldest first."""
    return sorted(name for name in handle.names_of(layout.TRASH) if layout.is_stamp(name))


def names_of(handle: StoreHandle, stamp: str) -> Iterator[Hash]:
    """The hashes in one collection's trash, in no order; other names are nobody's business here."""
    return (Hash(name) for name in handle.names_of(f"{layout.TRASH}/{stamp}") if is_hash(name))


@translated("Listing trash")
def runs(handle: StoreHandle) -> list[TrashRun]:
    """All trash in numbers, oldest first."""
    return [_run(handle, stamp) for stamp in stamps(handle)]


def _run(handle: StoreHandle, stamp: str) -> TrashRun:
    files = size_bytes = 0
    for name in names_of(handle, stamp):
        if (status := trash_status(handle, stamp, name)) is not None:
            files, size_bytes = files + 1, size_bytes + status.st_size
    return TrashRun(stamp, layout.stamp_time(stamp), files, size_bytes)


def trash_status(handle: StoreHandle, stamp: str, name: Hash) -> os.stat_result | None:
    """``stat`` of a file in trash; ``None`` when it is not there (any more), or is no regular file."""
    with suppress(FileNotFoundError, NotADirectoryError):
        status = os.stat(f"{layout.TRASH}/{stamp}/{name}", dir_fd=handle.fd, follow_symlinks=False)
        if stat.S_ISREG(status.st_mode):
            return status
    return None


class TrashIndex:
    """Everything in trash by shard: 24 bytes for each file."""

    def __init__(self, handle: StoreHandle) -> None:
        self._stamps = stamps(handle)
        self._shards = [bytearray() for _ in range(_SHARDS)]
        for number, stamp in enumerate(self._stamps):
            for name in names_of(handle, stamp):
                raw = bytes.fromhex(name)
                self._shards[raw[0]] += _ENTRY.pack(raw, number)

    def names(self, shard: int) -> set[bytes]:
        """The hashes in trash of one shard, 20 bytes each."""
        return {raw for raw, _ in _ENTRY.iter_unpack(self._shards[shard])}

    def entries(self, shard: int) -> Iterator[tuple[str, bytes]]:
        """Each file in trash of one shard: the collection's stamp, and the hash as 20 bytes."""
        return ((self._stamps[number], raw) for raw, number in _ENTRY.iter_unpack(self._shards[shard]))
