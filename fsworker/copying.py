"""Reading, copying, hashing and comparing bytes: in one pass each, and in constant memory."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from fsworker.durable import write_all
from fsworker.hashing import SideHash

BUFFER_BYTES = 1 << 20
"""Size of one read and write. Larger gains nothing, 64 KiB costs a tenth (measured)."""


class Reader(Protocol):
    """Anything with ``read(n)`` that returns some bytes, and ``b""`` at the end."""

    def read(self, size: int, /) -> bytes:
        """Return about ``size`` bytes."""
        ...


@dataclass(frozen=True)
class Copied:
    """What a copy saw of the bytes: their SHA-1 in hex, and how many there were."""

    sha1: str
    size_bytes: int


class TooLargeError(Exception):
    """A copy met more bytes than its limit. Raised as soon as the limit is passed, not at the end."""


def copy_hashed(
    read_into: Callable[[memoryview], int],
    target_fd: int,
    max_bytes: int | None = None,
    progress: Callable[[int], None] | None = None,
    head: bytes | memoryview = b"",
) -> Copied:
    """Copy until ``read_into`` returns 0, hashing what is written, in one pass and constant memory.

    Much content is hashed beside (:mod:`fsworker.hashing`): then two buffers take turns.
    ``head`` was read already and counts as the beginning. ``progress`` is told the bytes so far after each buffer.
    Raises :class:`TooLargeError` past ``max_bytes``, and ``OSError`` of either side; the target then holds an
    unspecified prefix.
    """
    size = 0
    part = memoryview(head)
    with borrowed_buffer() as room, borrowed_buffer() as other, SideHash() as digest:
        while part or (part := room[: read_into(room)]):
            size += len(part)
            if max_bytes is not None and size > max_bytes:
                raise TooLargeError
            if digest.update(part):
                room, other = other, room
            write_all(target_fd, part)
            part = room[:0]
            if progress is not None:
                progress(size)
        return Copied(digest.hexdigest(), size)


class _Spare(threading.local):
    """Buffers of this thread that are not in use."""

    def __init__(self) -> None:
        self.buffers: list[memoryview] = []


_spare = _Spare()


class _Loan:
    """A buffer for the time of a ``with`` block. Not a generator: entering one costs as much as reading a small file."""

    __slots__ = ("_room",)

    def __enter__(self) -> memoryview:
        buffers = _spare.buffers
        self._room = buffers.pop() if buffers else memoryview(bytearray(BUFFER_BYTES))
        return self._room

    def __exit__(self, *_: object) -> None:
        buffers = _spare.buffers
        if len(buffers) < 3:  # as many as one put uses
            buffers.append(self._room)


def borrowed_buffer() -> AbstractContextManager[memoryview]:
    """Lend a buffer of :data:`BUFFER_BYTES`; its content is arbitrary.

    Buffers are kept for the thread, because zeroing a new one costs more than storing a small file. Borrowing inside a
    loan (a stream whose ``read`` stores something itself) gets another buffer.
    """
    return _Loan()


def reader_into(stream: Reader) -> Callable[[memoryview], int]:
    """Adapt any object with ``read(n)`` to :func:`copy_hashed`; ``TypeError`` if it yields text.

    One that yields more than it was asked for is served in pieces.
    """
    read = stream.read
    left: memoryview = memoryview(b"")

    def read_into(room: memoryview) -> int:
        nonlocal left
        if not left:
            data = read(len(room))
            if not isinstance(data, (bytes, bytearray, memoryview)):
                raise TypeError(f"read() must return bytes, not {type(data).__name__}; open the file in binary mode")
            left = memoryview(data)
        count = min(len(left), len(room))
        room[:count] = left[:count]
        left = left[count:]
        return count

    return read_into


def descriptor_into(fd: int) -> Callable[[memoryview], int]:
    """Adapt a file descriptor, read from its position, to :func:`copy_hashed`."""
    return lambda buffer: os.readv(fd, [buffer])


def hash_descriptor(fd: int, progress: Callable[[int], None] | None = None) -> Copied:
    """Hash a file from its beginning without moving the descriptor's position."""
    digest = hashlib.sha1(usedforsecurity=False)
    size = 0
    with borrowed_buffer() as room:
        while count := os.preadv(fd, [room], size):
            digest.update(room[:count])
            size += count
            if progress is not None:
                progress(size)
    return Copied(digest.hexdigest(), size)


def same_bytes(left_fd: int, right_fd: int) -> bool:
    """Compare two files from their beginnings; neither descriptor's position moves."""
    offset = 0
    with borrowed_buffer() as left, borrowed_buffer() as right:
        while True:
            count = os.preadv(left_fd, [left], offset)
            if os.preadv(right_fd, [right], offset) != count:
                return False  # regular files on local disks do not read short but at their end
            if count == 0:
                return True
            # memoryviews compare byte by byte (100 times slower), what they look at by memcmp
            if count == len(left):
                if left.obj != right.obj:
                    return False
            elif bytes(left[:count]) != bytes(right[:count]):
                return False
            offset += count


def equals(fd: int, data: bytes) -> bool:
    """Compare a file with ``data`` from its beginning."""
    if len(data) < BUFFER_BYTES and os.pread(fd, len(data) + 1, 0) == data:  # nearly always; one more than should be
        return True
    offset = 0
    while part := os.pread(fd, min(BUFFER_BYTES, len(data) - offset + 1), offset):
        if part != data[offset : offset + len(part)]:
            return False
        offset += len(part)
        if offset == len(data) < BUFFER_BYTES:
            return True  # it was asked for one more
    return offset == len(data)
