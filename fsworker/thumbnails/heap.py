"""Memory in large pages for the decoding process: worth a tenth of a thumbnail's time, of a large WebP a third.

A new process pays for each page of memory that it touches first, four KiB at a time: of 44 ms for a photograph of
12 megapixels those faults took 6. So malloc(3) is told to take all memory from one heap, to keep it, and to begin with
a stretch of huge pages. It changes nothing but time; where the C library or the kernel has no such thing, nothing happens.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # mallopt(3)
_MADV_HUGEPAGE = 14  # madvise(2)
_LEAST_STRETCH_BYTES, _LONGEST_STRETCH_BYTES = 16 * 2**20, 256 * 2**20
_LONGEST_IN_A_THREAD_BYTES = 30 * 2**20  # glibc's threads have heaps of 64 MiB
_LARGEST_THRESHOLD_BYTES = 32 * 2**20  # glibc refuses a higher one
_PAGE_BYTES = 4096
_LARGE_PAGE_BYTES = 2**21
_CHUNK_HEAD_BYTES = 64  # what malloc needs beside, generously

_libc = ctypes.CDLL(None)
_CAN = all(hasattr(_libc, name) for name in ("mallopt", "malloc", "free", "madvise", "sbrk"))
if _CAN:
    _libc.malloc.restype = ctypes.c_void_p
    _libc.malloc.argtypes = [ctypes.c_size_t]
    _libc.free.argtypes = [ctypes.c_void_p]
    _libc.sbrk.restype = ctypes.c_void_p
    _libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def touch_large_page() -> None:
    """Have the first large page at hand before it is needed: the kernel fills it with zeros, which takes time."""
    if _CAN and (room := _libc.malloc(_LARGE_PAGE_BYTES)):
        ctypes.memset(room, 0, _LARGE_PAGE_BYTES)
        _libc.free(room)


def use_large_pages(memory_bytes: int) -> None:
    """Prepare the heap of a process that is to live for one picture, and may have so much memory."""
    if not _CAN:
        return
    if _is_on_the_main_heap():
        _libc.mallopt(_M_MMAP_MAX, 0)
    else:
        _libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_THRESHOLD_BYTES)
        memory_bytes = min(memory_bytes, 2 * _LONGEST_IN_A_THREAD_BYTES)
    _libc.mallopt(_M_TRIM_THRESHOLD, 2**30)
    # What lies before the first large page would come in small ones, so it is taken, for good, and not touched.
    before = -more_large_pages(memory_bytes) % _LARGE_PAGE_BYTES
    if before > _CHUNK_HEAD_BYTES:
        _libc.malloc(before - _CHUNK_HEAD_BYTES)


def more_large_pages(memory_bytes: int) -> int:
    """Have half of so much memory come in large pages; the rest is for what does not come from malloc.

    Returns where they begin; 0, and there are none, if that is too little to be worth it, or the process may have less.
    """
    length = min(memory_bytes // 2, _LONGEST_STRETCH_BYTES)
    stretch = _libc.malloc(length) if _CAN and length >= _LEAST_STRETCH_BYTES else None
    if not stretch:
        return 0
    _libc.madvise(-(-stretch // _PAGE_BYTES) * _PAGE_BYTES, length - 2 * _PAGE_BYTES, _MADV_HUGEPAGE)
    _libc.free(stretch)
    return int(stretch)


def _is_on_the_main_heap() -> bool:
    """Whether malloc gives this thread memory from the process's heap: else it was forked by a thread that has its own."""
    piece = _libc.malloc(_PAGE_BYTES)
    _libc.free(piece)
    return 0 < (_libc.sbrk(0) or 0) - (piece or 0) < 2**32
