"""Memory in large pages for the decoding process: worth a tenth of a thumbnail's time, of a large WebP a third.

A new process pays for each page of memory that it touches first, four KiB at a time: of 44 ms for a photograph of
12 megapixels those faults took 6. So malloc(3) is told to take all memory from one heap, to keep it, and to begin with
a stretch of huge pages. It changes nothing but time; where the C library or the kernel has no such thing, nothing happens.
What a fork finds free in its heap is another matter (:func:`fill_holes`): it is beyond the memory limit.
"""

from __future__ import annotations

import ctypes
import resource
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # mallopt(3)
_MADV_HUGEPAGE = 14  # madvise(2)
_LEAST_STRETCH_BYTES, _LONGEST_STRETCH_BYTES = 16 * 2**20, 256 * 2**20
_LONGEST_IN_A_THREAD_BYTES = 30 * 2**20  # glibc's threads have heaps of 64 MiB
_LARGEST_THRESHOLD_BYTES = 32 * 2**20  # glibc refuses a higher one
_PAGE_BYTES = 4096
_LARGE_PAGE_BYTES = 2**21
_LARGEST_HOLE_BYTES, _LEAST_HOLE_BYTES = 2**30, 2**20
_CHUNK_HEAD_BYTES = 64  # what malloc needs beside, generously

_libc = ctypes.CDLL(None)
_CAN = all(hasattr(_libc, name) for name in ("mallopt", "malloc", "free", "madvise"))
if _CAN:
    _libc.malloc.restype = ctypes.c_void_p
    _libc.malloc.argtypes = [ctypes.c_size_t]
    _libc.free.argtypes = [ctypes.c_void_p]
    _libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def touch_large_page() -> None:
    """Have the first large page at hand before it is needed: the kernel fills it with zeros, which takes time."""
    if _CAN and (room := _libc.malloc(_LARGE_PAGE_BYTES)):
        ctypes.memset(room, 0, _LARGE_PAGE_BYTES)
        _libc.free(room)


def use_large_pages(memory_bytes: int) -> None:
    """Prepare the heap of a process that is to live for one picture, and may have so much memory, half of it in large pages.

    The rest is for what malloc does not give. For a fork of a process with one thread.
    """
    if _CAN:
        _libc.mallopt(_M_MMAP_MAX, 0)
        _use_stretch(memory_bytes // 2)


def more_large_pages(memory_bytes: int) -> None:
    """Go on with :func:`use_large_pages` when more is known of the memory that the process may have."""
    if _CAN:
        _stretch(memory_bytes // 2)


def use_some_large_pages() -> None:
    """As :func:`use_large_pages`, for a fork of an application, or of a worker, whose threads have heaps of their own."""
    if _CAN:
        _libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_THRESHOLD_BYTES)
        _use_stretch(_LONGEST_IN_A_THREAD_BYTES)


def fill_holes(space_bytes: int) -> None:
    """Take for good what malloc has free in a heap that this process was forked with: a limit of address space counts none of it.

    ``space_bytes`` is what the process has, and until it is given another limit all it may have. Hardly a page is touched,
    so it costs no memory. Holes of less than a megabyte stay.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(
        resource.RLIMIT_AS, (space_bytes if hard == resource.RLIM_INFINITY else min(space_bytes, hard), hard)
    )
    size, left = _LARGEST_HOLE_BYTES, space_bytes  # there is an end even where the kernel does not keep to the limit
    with suppress(MemoryError):  # not so much as a number could be made: then there are none
        while _CAN and size >= _LEAST_HOLE_BYTES and left > 0:
            if _libc.malloc(size):
                left -= size
            else:
                size //= 2


def _use_stretch(length: int) -> None:
    _libc.mallopt(_M_TRIM_THRESHOLD, 2**30)
    # What lies before the first large page would come in small ones, so it is taken, for good, and not touched.
    before = -_stretch(length) % _LARGE_PAGE_BYTES
    if before > _CHUNK_HEAD_BYTES:
        _libc.malloc(before - _CHUNK_HEAD_BYTES)


def _stretch(length: int) -> int:
    """Have so much of what malloc gives next come in large pages.

    Returns where they begin; 0, and there are none, if that is too little to be worth it, or the process may have less.
    """
    length = min(length, _LONGEST_STRETCH_BYTES)
    stretch = _libc.malloc(length) if length >= _LEAST_STRETCH_BYTES else None
    if not stretch:
        return 0
    _libc.madvise(-(-stretch // _PAGE_BYTES) * _PAGE_BYTES, length - 2 * _PAGE_BYTES, _MADV_HUGEPAGE)
    _libc.free(stretch)
    return int(stretch)
