"""Reading a whole store without being felt: other programs' page cache stays, and so do access times.

``posix_fadvise(DONTNEED)`` drops pages whoever brought them in. So before a file is read it is asked what of it is
already in the cache: that stays, because somebody (nginx) uses it; what our own reading brought in goes. A small file is
asked by ``cachestat`` (Linux 6.5), which costs a microsecond; a large one by ``mincore(2)``, before read-ahead blurs the
answer. Older kernels are asked with ``RWF_NOWAIT`` (preadv2(2)) for a small file: it reads from the cache or not at all.
Newer ones begin to read ahead then, and a fast disk has the file there before they look, so that they say it was cached.
Dropping early is also faster: the kernel need not look for pages to evict.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import mmap
import os
import platform
import threading

from fsworker import copying
from fsworker.verification.pace import Pace

_WINDOW_BYTES = 8 << 20
"""What is read before it is dropped."""
_PIECE_BYTES = 4 << 30
"""What is asked about at once: 1 MiB of answer."""
_PAGE = mmap.PAGESIZE

_CACHESTAT = 451
"""The number of the call, the same on all architectures but Alpha: Linux, include/uapi/linux/mman.h has its structures."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_int64)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)


_syscall = _libc["syscall"]  # a function of its own: types are declared for this use only
_syscall.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long)
_syscall.restype = ctypes.c_long


class _Room(threading.local):
    """This thread's buffer, and what ``cachestat`` is asked with. Made once: zeroing one costs more than a small file."""

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(copying.BUFFER_BYTES))
        self._whole = (ctypes.c_uint64 * 2)(0, 0)  # from 0 to the end
        self.counts = (ctypes.c_uint64 * 5)()  # in the cache, dirty, being written, evicted, recently evicted
        self.where = (ctypes.addressof(self._whole), ctypes.addressof(self.counts))

    def cached_pages(self, fd: int) -> int:
        """How many pages of a file are in the page cache; -1 where the kernel does not tell, as of a stranger's file."""
        if _syscall(_CACHESTAT, fd, *self.where, 0) != 0:
            return -1
        return self.counts[0]


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
        if size_bytes >= copying.BUFFER_BYTES:
            return self._sha1_large(fd, size_bytes)
        room = self._room
        pages = room.cached_pages(fd)
        if pages < 0:
            count, was_cached = self._read_asking(fd, size_bytes)
        else:
            count, was_cached = os.preadv(fd, [room.buffer], 0), 4 * _PAGE * pages >= size_bytes
        if count == size_bytes:
            found = hashlib.sha1(room.buffer[:count], usedforsecurity=False).hexdigest()
            if self.pace.rate_bytes_s is not None:
                self.pace.spend(count)
        else:  # it is being changed, or the filesystem gives less than it is asked for
            found = self._sha1_large(fd, size_bytes)
        if not was_cached:
            self.waited += 1
            drop_cache(fd)
        return found

    def _read_asking(self, fd: int, size_bytes: int) -> tuple[int, bool]:
        """Read the beginning of a small file: how much there was, and whether it was in the page cache before."""
        buffer = self._room.buffer
        if self._nowait:
            try:
                return os.preadv(fd, [buffer], 0, self._nowait), True
            except BlockingIOError:
                return os.preadv(fd, [buffer], 0), False
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                    raise
                self._nowait = 0  # tmpfs, some network filesystems: asked as large files are
        was_cached = size_bytes == 0 or any(cached_windows(fd, 0, size_bytes))
        return os.preadv(fd, [buffer], 0), was_cached

    def _sha1_large(self, fd: int, size_bytes: int) -> str:
        digest = hashlib.sha1(usedforsecurity=False)
        buffer = self._room.buffer
        cached: list[bool] = []
        offset = window = piece = asked = 0
        while True:
            if offset >= asked:
                piece, asked = asked, asked + _PIECE_BYTES
                cached = cached_windows(fd, piece, min(_PIECE_BYTES, max(1, size_bytes - piece)))
            count = os.preadv(fd, [buffer], offset)
            digest.update(buffer[:count])
            offset += count
            if count == 0 or offset >= window + _WINDOW_BYTES:
                number = (window - piece) // _WINDOW_BYTES
                if offset > window and not (number < len(cached) and cached[number]):
                    os.posix_fadvise(fd, window, offset - window, os.POSIX_FADV_DONTNEED)
                window = offset - offset % _WINDOW_BYTES
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
