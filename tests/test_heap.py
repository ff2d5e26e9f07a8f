"""The decoding process takes its memory in large pages, within its limit."""

from __future__ import annotations

import ctypes
import multiprocessing
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from engines import ordered

from fsworker.thumbnails import Limits
from fsworker.thumbnails.heap import (
    more_large_pages,
    touch_large_page,
    use_large_pages,
    use_some_large_pages,
)
from fsworker.thumbnails.limits import address_space_bytes

_MIB = 2**20
_SMALL_PAGES_A_MIB = _MIB // resource.getpagesize()
_M_MMAP_MAX = -4  # mallopt(3)
_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")

needs_large_pages = pytest.mark.skipif(
    not _SETTING.exists() or "[never]" in _SETTING.read_text(),
    reason="CI-may-skip: this kernel has no large pages to give",
)


def _in_a_process(act: Callable[[], int]) -> int:
    """What ``act`` returns in a new interpreter: the heap of this one has holes that would be filled first."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(act).result()


def _least(act: Callable[[], int]) -> int:
    """The least of some: the kernel gives small pages where it finds no large one at that moment."""
    return min(_in_a_process(act) for _ in range(3))


def _limit(memory_mib: int) -> None:
    """As a picture's process is limited: so much memory on top of what there is."""
    space = address_space_bytes() + memory_mib * _MIB
    resource.setrlimit(resource.RLIMIT_AS, (space, space))


def _fill(*sizes_mib: int) -> int:
    """How many pages this process is given while it fills so much memory, held together."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [b"x" * (size * _MIB) for size in sizes_mib]
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    del held
    return faults


def _prepare_and_fill(*sizes_mib: int) -> int:
    use_large_pages(512 * _MIB)
    return _fill(*sizes_mib)


def _fill_as_a_spare(size_mib: int) -> int:
    use_large_pages(64 * _MIB)
    touch_large_page()
    more_large_pages(512 * _MIB)
    return _fill(size_mib)


def _prepare_some_and_fill(size_mib: int) -> int:
    use_some_large_pages()
    return _fill(size_mib)


def _in_a_thread(act: Callable[[], int]) -> int:
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(act).result()


@needs_large_pages
@pytest.mark.parametrize("sizes_mib", [(16, 16, 16), (48,), (33, 33)], ids=str)
def test_a_large_picture_costs_few_page_faults(sizes_mib: tuple[int, ...]) -> None:
    plain = _in_a_process(partial(_fill, *sizes_mib))
    assert plain > sum(sizes_mib) * _SMALL_PAGES_A_MIB / 2, "the measure does not see them"
    assert _least(partial(_prepare_and_fill, *sizes_mib)) < plain / 8


@needs_large_pages
def test_a_spare_has_more_once_it_knows_its_limit() -> None:
    assert _least(partial(_fill_as_a_spare, 48)) < 48 * _SMALL_PAGES_A_MIB / 8


@needs_large_pages
def test_a_fork_of_an_application_has_some() -> None:
    few = 20 * _SMALL_PAGES_A_MIB / 4
    assert _least(partial(_prepare_some_and_fill, 20)) < few
    assert _least(partial(_in_a_thread, partial(_prepare_some_and_fill, 20))) < few


def _use_of(limit_mib: int, prepare: Callable[[], None], size_mib: int) -> int:
    """How many bytes can be had at once."""
    _limit(limit_mib)
    prepare()
    return len(b"x" * (size_mib * _MIB))


def test_a_limit_of_the_host_that_is_tighter_is_respected() -> None:
    assert _in_a_process(partial(_use_of, 20, partial(use_large_pages, 512 * _MIB), 12)) == 12 * _MIB
    assert _in_a_process(partial(_use_of, 20, use_some_large_pages, 12)) == 12 * _MIB


def test_most_of_the_memory_can_be_had_at_once() -> None:
    assert _in_a_process(partial(_use_of, 130, partial(use_large_pages, 130 * _MIB), 90)) == 90 * _MIB
    some = partial(_use_of, 130, use_some_large_pages, 90)
    assert _in_a_process(some) == 90 * _MIB
    assert _in_a_process(partial(_in_a_thread, some)) == 90 * _MIB


def _use_with_holes(size_mib: int) -> int:
    """What becomes of a picture that needs so much and may have 64 MiB, in a process with 250 MiB of holes in its heap."""
    ctypes.CDLL(None).mallopt(_M_MMAP_MAX, 0)
    held = [b"x" * (25 * _MIB) for _ in range(11)]
    last = held.pop()
    held.clear()
    ctypes.CDLL(None).mallopt(_M_MMAP_MAX, 65536)
    assert len(b"x" * (200 * _MIB)) == 200 * _MIB
    _, why = ordered(f"bytearray({size_mib * _MIB})", Limits(memory_bytes=64 * _MIB))
    del last
    assert why in (None, "needs more than 64 MiB of memory")
    return 0 if why else size_mib


def test_the_holes_of_an_application_do_not_make_its_limit_wider() -> None:
    assert _in_a_process(partial(_use_with_holes, 100)) == 0
    assert _in_a_process(partial(_in_a_thread, partial(_use_with_holes, 100))) == 0
    assert _in_a_process(partial(_use_with_holes, 40)) == 40


def _taken_beforehand() -> int:
    _limit(64)
    before = address_space_bytes()
    use_large_pages(64 * _MIB)
    return address_space_bytes() - before


def test_half_is_left_for_what_malloc_does_not_give() -> None:
    assert 0 <= _in_a_process(_taken_beforehand) <= 36 * _MIB
