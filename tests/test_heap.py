"""The decoding process takes its memory in large pages, within its limit."""

from __future__ import annotations

import os
import resource
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from fsworker.thumbnails.child import watch
from fsworker.thumbnails.heap import more_large_pages, touch_large_page, use_large_pages
from fsworker.thumbnails.limits import address_space_bytes

_MIB = 2**20
_SMALL_PAGES_A_MIB = _MIB // resource.getpagesize()
_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")

needs_large_pages = pytest.mark.skipif(
    not _SETTING.exists() or "[never]" in _SETTING.read_text(),
    reason="CI-may-skip: this kernel has no large pages to give",
)


def _in_a_fork(act: Callable[[], int]) -> int:
    """What ``act`` returns in a fork of this process, as it is called for a picture."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writing, struct.pack("q", act()))
        finally:
            os._exit(0)
    os.close(writing)
    os.close(watch(pid))
    os.waitpid(pid, 0)
    told = os.read(reading, 8)
    os.close(reading)
    assert len(told) == 8, "the fork failed"
    return int(struct.unpack("q", told)[0])


def _faults_of(sizes_mib: tuple[int, ...]) -> int:
    """How many pages a process is given while it fills so much memory, held together."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [b"x" * (size * _MIB) for size in sizes_mib]
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    del held
    return faults


def _least(act: Callable[[], int]) -> int:
    """The least of some: the kernel gives small pages where it finds no large one at that moment."""
    return min(_in_a_fork(act) for _ in range(3))


@needs_large_pages
@pytest.mark.parametrize("sizes_mib", [(16, 16, 16), (48,), (33, 33)], ids=str)
def test_a_large_picture_costs_few_page_faults(sizes_mib: tuple[int, ...]) -> None:
    def prepared() -> int:
        use_large_pages(512 * _MIB)
        return _faults_of(sizes_mib)

    plain = _in_a_fork(lambda: _faults_of(sizes_mib))
    assert plain > sum(sizes_mib) * _SMALL_PAGES_A_MIB / 2, "the measure does not see them"
    assert _least(prepared) < plain / 8


@needs_large_pages
def test_a_spare_has_more_once_it_knows_its_limit() -> None:
    def spare() -> int:
        use_large_pages(64 * _MIB)
        touch_large_page()
        assert more_large_pages(512 * _MIB)
        return _faults_of((48,))

    assert _least(spare) < 48 * _SMALL_PAGES_A_MIB / 8


def test_a_tight_limit_is_respected() -> None:
    def limited() -> int:
        space = address_space_bytes() + 20 * _MIB
        resource.setrlimit(resource.RLIMIT_AS, (space, space))
        use_large_pages(512 * _MIB)  # as if a limit of the host were tighter than the picture's
        assert more_large_pages(512 * _MIB) == 0
        return len(bytes(12 * _MIB))

    assert _in_a_fork(limited) == 12 * _MIB


def test_half_of_the_memory_is_left_for_what_malloc_does_not_give() -> None:
    def limited() -> int:
        space = address_space_bytes() + 64 * _MIB
        resource.setrlimit(resource.RLIMIT_AS, (space, space))
        use_large_pages(64 * _MIB)
        return address_space_bytes() - (space - 64 * _MIB)

    assert _in_a_fork(limited) <= 36 * _MIB


def test_all_of_the_memory_can_be_had_by_malloc() -> None:
    def limited() -> int:
        space = address_space_bytes() + 128 * _MIB
        resource.setrlimit(resource.RLIMIT_AS, (space, space))
        use_large_pages(128 * _MIB)
        return len(bytearray(100 * _MIB))

    assert _in_a_fork(limited) == 100 * _MIB
