"""The decoding process takes its memory in large pages, within its limit."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from fsworker.thumbnails.heap import more_large_pages, touch_large_page, use_large_pages
from fsworker.thumbnails.limits import address_space_bytes

_MIB = 2**20
_SMALL_PAGES_A_MIB = _MIB // resource.getpagesize()
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
    assert more_large_pages(512 * _MIB)
    return _fill(size_mib)


def _fill_in_a_thread(size_mib: int) -> int:
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_prepare_and_fill, size_mib).result()


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
def test_a_thread_that_forks_has_a_heap_of_its_own() -> None:
    assert _least(partial(_fill_in_a_thread, 20)) < 20 * _SMALL_PAGES_A_MIB / 4


def _use_of(limit_mib: int, told_mib: int, size_mib: int) -> int:
    """How many bytes can be had at once, told that there are so many."""
    _limit(limit_mib)
    use_large_pages(told_mib * _MIB)
    return len(b"x" * (size_mib * _MIB))


def _use_of_in_a_thread(limit_mib: int, told_mib: int, size_mib: int) -> int:
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_use_of, limit_mib, told_mib, size_mib).result()


def test_a_limit_of_the_host_that_is_tighter_is_respected() -> None:
    assert _in_a_process(partial(_use_of, 20, 512, 12)) == 12 * _MIB


@pytest.mark.parametrize("use", [_use_of, _use_of_in_a_thread])
def test_most_of_the_memory_can_be_had_at_once(use: Callable[[int, int, int], int]) -> None:
    assert _in_a_process(partial(use, 130, 130, 90)) == 90 * _MIB


def _taken_beforehand() -> int:
    _limit(64)
    before = address_space_bytes()
    use_large_pages(64 * _MIB)
    return address_space_bytes() - before


def test_half_is_left_for_what_malloc_does_not_give() -> None:
    assert 0 <= _in_a_process(_taken_beforehand) <= 36 * _MIB
