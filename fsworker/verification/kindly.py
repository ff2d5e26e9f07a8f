"""Reading a whole store without being felt: other programs' page cache stays, and so do access times.

``posix_fadvise(DONTNEED)`` drops pages whoever brought them in. So before a file is read it is asked what of it is
already in the cache: that stays, because somebody (nginx) uses it; what our own reading brought in goes. A small file is
asked with ``RWF_NOWAIT`` (preadv2(2)), which reads from the cache or not at all, at no cost when it is there; a large one
with ``mincore(2)``, before read-ahead blurs the answer. Dropping early is also faster: the kernel need not look for
pages to evict.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import mmap
import os
import platform
import threading

from fsworker import durable
from fsworker.verification.pace import Pace

_WINDOW_BYTES = 8 << 20
"""What is read before it is dropped."""
_PIECE_BYTES = 4 << 30
"""What is asked about at once: 1 MiB of answer."""
_PAGE = mmap.PAGESIZE

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_int64)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)


class _Room(threading.local):
    """This thread's buffer. Made once: zeroing one costs more than hashing a small file."""

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(durable.BUFFER_BYTES))


class KindReader:
    """Hashes files at a pace. May be shared by threads.

    ``waited`` counts small files for which the disk was waited for, roughly: where there are many, threads help.
    """

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self.waited = 0
        self._nowait = os.RWF_NOWAIT
        self._room = _Room()

    def sha1(self, fd: int, size_bytes: int) -> str:
        """The SHA-1 of a file in hex, from its beginning to its end; ``size_bytes`` is what fstat said. ``OSError``."""
        if size_bytes >= durable.BUFFER_BYTES:
            return self._sha1_large(fd, size_bytes)
        room = self._room.buffer
        nowait = self._nowait
        was_cached = nowait != 0 or size_bytes == 0 or any(cached_windows(fd, 0, size_bytes))
        try:
            count = os.preadv(fd, [room], 0, nowait)
        except BlockingIOError:
            was_cached = False
            count = os.preadv(fd, [room], 0)
        except OSError as error:
            if not nowait or error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
            self._nowait = 0  # tmpfs, some network filesystems: asked as large files are
            return self.sha1(fd, size_bytes)
        if count != size_bytes:  # half of it was in the cache, or it is being changed
            return self._sha1_large(fd, size_bytes)
        found = hashlib.sha1(room[:count], usedforsecurity=False).hexdigest()
        if not was_cached:
            self.waited += 1
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        if self.pace.rate_bytes_s is not None:
            self.pace.spend(count)
        return found

    def _sha1_large(self, fd: int, size_bytes: int) -> str:
        digest = hashlib.sha1(usedforsecurity=False)
        offset = 0
        cached: list[bool] = []
        room = self._room.buffer
        while True:
            if offset % _PIECE_BYTES == 0:
                cached = cached_windows(fd, offset, min(_PIECE_BYTES, max(1, size_bytes - offset)))
            count = os.preadv(fd, [room], offset)
            digest.update(room[:count])
            offset += count
            if count == 0 or offset % _WINDOW_BYTES == 0:
                start = (offset - 1) // _WINDOW_BYTES * _WINDOW_BYTES if offset else 0
                number = start % _PIECE_BYTES // _WINDOW_BYTES
                if number >= len(cached) or not cached[number]:
                    os.posix_fadvise(fd, start, _WINDOW_BYTES, os.POSIX_FADV_DONTNEED)
            if count == 0:
                return digest.hexdigest()
            self.pace.spend(count)


def cached_windows(fd: int, offset: int, size_bytes: int) -> list[bool]:
    """For each 8 MiB from ``offset`` on (a multiple of that): is a good part of it in the page cache?

    Where the kernel does not tell (the file is another user's, mincore(2)), it says that all is.
    """
    address = _libc.mmap(None, size_bytes, mmap.PROT_READ, mmap.MAP_SHARED, fd, offset)
    if address in (None, ctypes.c_void_p(-1).value):
        return []
    try:
        answer = ctypes.create_string_buffer(-(-size_bytes // _PAGE))
        if _libc.mincore(address, size_bytes, answer) != 0:
            return []
    finally:
        _libc.munmap(address, size_bytes)
    pages = answer.raw
    step = _WINDOW_BYTES // _PAGE
    parts = (pages[start : start + step] for start in range(0, len(pages), step))
    # A quarter: read-ahead of others may have brought in a little, a file that is served has it all.
    return [4 * part.count(1) >= len(part) for part in parts]


def drop_cache(fd: int) -> None:
    """Make the next reading come from the disk: forget what the page cache has of a file."""
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


_IOPRIO_SET = {"x86_64": (251, 252), "aarch64": (30, 31)}
_IOPRIO_WHO_THREAD = 1
_LOWEST_BEST_EFFORT = 2 << 13 | 7


class LowPriority:
    """A ``with`` block in which this thread's disk reads come after those of others (ioprio_set(2)).

    The lowest of the ordinary class, not the idle class: on a disk that is never idle, verification would never end. Where
    the kernel or the I/O scheduler knows no priorities nothing happens.
    """

    def __init__(self) -> None:
        self._calls = _IOPRIO_SET.get(platform.machine())
        self._before = -1

    def __enter__(self) -> LowPriority:
        if self._calls is not None:
            self._before = _libc.syscall(self._calls[1], _IOPRIO_WHO_THREAD, 0)
            _libc.syscall(self._calls[0], _IOPRIO_WHO_THREAD, 0, _LOWEST_BEST_EFFORT)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._calls is not None and self._before >= 0:
            _libc.syscall(self._calls[0], _IOPRIO_WHO_THREAD, 0, self._before)
