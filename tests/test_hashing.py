"""Hashing in a second thread, beside the copying: the same hash, bounded, and no thread left, whatever happens."""

from __future__ import annotations

import hashlib
import io
import os
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsworker import copying, hashing
from fsworker.hashing import WORTH_BYTES, WORTH_PIECES, SideHash

MIB = copying.BUFFER_BYTES
LARGE = os.urandom(MIB) * (WORTH_PIECES + 4) + b"the end"


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert helpers() == []


@pytest.fixture
def target() -> Iterator[int]:
    fd = os.memfd_create("target")
    yield fd
    os.close(fd)


def helpers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "fsworker-hash"]


def sha1(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def slowly(digest: Callable[[], object]) -> Callable[..., object]:
    """A digest that takes its time before it looks at a piece."""

    class Slow:
        def __init__(self, **_: object) -> None:
            self.inner = digest()

        def update(self, piece: memoryview) -> None:
            time.sleep(0.005)
            self.inner.update(piece)  # type: ignore[attr-defined]

        def hexdigest(self) -> str:
            return self.inner.hexdigest()  # type: ignore[attr-defined, no-any-return]

    return Slow


@given(st.lists(st.sampled_from([0, 1, WORTH_BYTES - 1, WORTH_BYTES, 2 * WORTH_BYTES]), max_size=3 * WORTH_PIECES))
def test_the_hash_is_that_of_all_pieces_in_their_order(sizes: list[int]) -> None:
    pieces = [bytes([number]) * size for number, size in enumerate(sizes)]
    with SideHash() as digest:
        for piece in pieces:
            digest.update(memoryview(piece))
        assert digest.hexdigest() == sha1(b"".join(pieces))


def test_a_piece_is_with_the_other_thread_only_when_that_is_worth_it() -> None:
    large, small = memoryview(bytes(WORTH_BYTES)), memoryview(b"small")
    with SideHash() as digest:
        assert [digest.update(large) for _ in range(WORTH_PIECES - 1)] == [False] * (WORTH_PIECES - 1)
        assert helpers() == []
        assert digest.update(large) is True
        assert len(helpers()) == 1
        assert digest.update(small) is False
        assert digest.update(large) is True
        assert len(helpers()) == 1


def test_a_slow_hash_sees_the_bytes_that_were_written(target: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No buffer is read into before it is hashed."""
    monkeypatch.setattr(hashing, "hashlib", SimpleNamespace(sha1=slowly(hashlib.sha1)))
    content = b"".join(bytes([number]) * MIB for number in range(WORTH_PIECES + 8))
    copied = copying.copy_hashed(copying.reader_into(io.BytesIO(content)), target)
    assert copied == copying.Copied(sha1(content), len(content))
    assert os.pread(target, len(content) + 1, 0) == content


@pytest.mark.parametrize("most", [MIB - 1, WORTH_BYTES, 100_003])
def test_short_reads(target: int, most: int) -> None:
    stream = io.BytesIO(LARGE)
    copied = copying.copy_hashed(lambda room: stream.readinto(room[:most]), target)
    assert copied == copying.Copied(sha1(LARGE), len(LARGE))
    assert os.pread(target, len(LARGE) + 1, 0) == LARGE


def test_a_slow_source_whose_reads_are_large_and_small(target: int) -> None:
    stream = io.BytesIO(LARGE)
    reads = 0

    def read_into(room: memoryview) -> int:
        nonlocal reads
        reads += 1
        time.sleep(0.001)
        return stream.readinto(room[: 10_000 if reads % 3 == 0 else MIB])

    assert copying.copy_hashed(read_into, target).sha1 == sha1(LARGE)


@pytest.mark.parametrize("error", [OSError("the source broke"), KeyboardInterrupt(), SystemExit()])
def test_an_error_of_the_source_ends_the_thread(target: int, error: BaseException) -> None:
    stream = io.BytesIO(LARGE)

    def read_into(room: memoryview) -> int:
        if stream.tell() > WORTH_PIECES * MIB:
            assert len(helpers()) == 1
            raise error
        return stream.readinto(room)

    with pytest.raises(type(error)):
        copying.copy_hashed(read_into, target)


def test_an_error_of_the_target_ends_the_thread() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        with pytest.raises(BrokenPipeError):
            copying.copy_hashed(copying.reader_into(io.BytesIO(LARGE)), writing)
    finally:
        os.close(writing)


def test_the_limit_ends_the_thread(target: int) -> None:
    with pytest.raises(copying.TooLargeError):
        copying.copy_hashed(copying.reader_into(io.BytesIO(LARGE)), target, max_bytes=len(LARGE) - 1)


@pytest.mark.parametrize("then", [lambda d: d.update(memoryview(b"next")), lambda d: d.hexdigest()])
def test_an_error_of_the_hashing_is_raised_by_the_next_call(then: Callable[[SideHash], object]) -> None:
    whole = memoryview(bytes(2 * WORTH_BYTES))
    with SideHash() as digest:
        for _ in range(WORTH_PIECES):
            digest.update(whole)
        digest.update(whole[::2])  # not contiguous: cannot be hashed
        with pytest.raises(BufferError):
            then(digest)
        with pytest.raises(BufferError):  # and by every later one: the hash would be wrong
            digest.hexdigest()


def test_memory_is_bounded(target: int) -> None:
    left = 64 * MIB

    def read_into(room: memoryview) -> int:
        nonlocal left
        count = min(left, len(room))
        left -= count
        os.ftruncate(target, 0)
        return count

    tracemalloc.start()
    try:
        assert copying.copy_hashed(read_into, target).size_bytes == 64 * MIB
        assert tracemalloc.get_traced_memory()[1] < 4 * MIB
    finally:
        tracemalloc.stop()


def test_one_core_hashes_by_itself(target: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1})
    monkeypatch.setattr(threading, "Thread", None)
    assert copying.copy_hashed(copying.reader_into(io.BytesIO(LARGE)), target).sha1 == sha1(LARGE)


def test_where_no_thread_is_to_be_had_the_caller_hashes(target: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert copying.copy_hashed(copying.reader_into(io.BytesIO(LARGE)), target).sha1 == sha1(LARGE)


def test_an_interruption_while_the_thread_is_started_leaves_none(target: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Celery's time limit is an exception that may come anywhere."""
    real = threading.Thread.start
    started: list[threading.Thread] = []

    def interrupted(self: threading.Thread) -> None:
        real(self)
        started.append(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        copying.copy_hashed(copying.reader_into(io.BytesIO(LARGE)), target)
    started[0].join()


def test_a_copy_inside_a_copy(target: int) -> None:
    """A stream whose ``read`` copies something itself."""

    class Nesting(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            inner = os.memfd_create("inner")
            try:
                assert copying.copy_hashed(copying.reader_into(io.BytesIO(LARGE)), inner).sha1 == sha1(LARGE)
            finally:
                os.close(inner)
            return super().read(size)

    assert copying.copy_hashed(copying.reader_into(Nesting(LARGE)), target).sha1 == sha1(LARGE)
