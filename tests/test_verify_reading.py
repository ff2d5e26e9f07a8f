"""How verification reads: right whatever the kernel gives at once, behind others in the disk's queue, and past bad sectors."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from crash import tracer
from damage import Plant, all_bytes, content, memory_path, sha1

from fsworker.store.create import create_store
from fsworker.store.locks import job_lock
from fsworker.store.objects import ObjectStore
from fsworker.verification import kindly
from fsworker.verification import part as parts
from fsworker.verification.copies import Mirror
from fsworker.verification.desk import Policy
from fsworker.verification.findings import Finding
from fsworker.verification.history import Limits
from fsworker.verification.kindly import KindReader, LowPriority
from fsworker.verification.pace import Pace
from fsworker.verification.whole import Options, verify_all

__all__ = ["memory_path"]

LIMITS = Limits(period_s=30 * 86400.0, rate_bytes_s=50e6, every_s=300.0, budget_s=30.0, max_budget_s=60.0)
JOB = "shop.0f5b1d3e-0000-4000-8000-000000000000"


def make(root: Path, count: int = 20) -> Plant:
    create_store(root / "store", apps=["shop"])
    (root / "mirror/Data").mkdir(parents=True)
    plant = Plant(root / "store", root / "mirror")
    plant.fill(count)
    return plant


def verify(plant: Plant, *, repair: bool = False) -> list[Finding]:
    found: list[Finding] = []
    with ObjectStore(plant.root) as store, Mirror(plant.mirror, store) as mirror:
        verify_all(store, Options(Policy(repair=repair)), found.append, mirror=mirror)
    return found


# -- what the kernel gives ---------------------------------------------------------------------------------------------

Answer = Callable[[Callable[..., int], int, Sequence[memoryview], int, int], int]


def partly(real: Callable[..., int], fd: int, room: Sequence[memoryview], offset: int, flags: int) -> int:
    """Only the beginning is in the page cache."""
    return real(fd, [room[0][:100]], offset, 0) if flags else real(fd, room, offset)


def not_at_all(real: Callable[..., int], fd: int, room: Sequence[memoryview], offset: int, flags: int) -> int:
    """Nothing is in the page cache."""
    if flags:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return real(fd, room, offset)


def not_and_then_in_pieces(
    real: Callable[..., int], fd: int, room: Sequence[memoryview], offset: int, flags: int
) -> int:
    """A filesystem that gives less than it was asked for, as FUSE may."""
    if flags:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return real(fd, [room[0][:777]], offset)


def not_known(real: Callable[..., int], fd: int, room: Sequence[memoryview], offset: int, flags: int) -> int:
    """A filesystem that cannot be asked, as tmpfs."""
    if flags:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    return real(fd, room, offset)


@pytest.mark.parametrize("kernel", ["with cachestat", "without"])
@pytest.mark.parametrize("answer", [partly, not_at_all, not_and_then_in_pieces, not_known])
@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 4096, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 9 << 20])
def test_whatever_is_read_at_once_the_hash_is_that_of_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: str, answer: Answer, size: int
) -> None:
    if kernel == "without":
        monkeypatch.setattr(kindly, "_CACHESTAT", -1)
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, room, offset, flags=0: answer(real, fd, room, offset, flags))
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        reader = KindReader(Pace(None))
        for _ in range(2):
            assert reader.sha1(fd, size) == hashlib.sha1(data).hexdigest()
    finally:
        os.close(fd)


@pytest.mark.parametrize("stated", [0, 10, 299, 301, 1 << 20, 20 << 20])
def test_a_file_that_grew_or_shrank_since_it_was_asked_for_its_size_is_read_to_its_end(
    tmp_path: Path, stated: int
) -> None:
    (tmp_path / "file").write_bytes(content(1))
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        assert KindReader(Pace(None)).sha1(fd, stated) == sha1(content(1))
    finally:
        os.close(fd)


def pages_of(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY)
    try:
        return kindly._Room().cached_pages(fd)
    finally:
        os.close(fd)


def test_files_of_every_small_size_are_gone_from_the_page_cache_after_they_were_read(tmp_path: Path) -> None:
    """Also those that a fast disk has there as soon as they are asked for."""
    plant = make(tmp_path, 0)
    paths = [plant.put(os.urandom(size)) for size in (4096, 20_000, 131_072, 140_000, 700_000) for _ in range(30)]
    os.sync()
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        kindly.drop_cache(fd)
        os.close(fd)
    if any(pages_of(path) for path in paths):
        pytest.skip("CI-may-skip: a kernel before 6.5, or a filesystem whose cache cannot be dropped")
    assert verify(plant) == []
    assert [path.stat().st_size for path in paths if pages_of(path)] == []


def test_what_is_in_the_page_cache_stays_where_the_kernel_has_no_cachestat_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant = make(tmp_path, 0)
    paths = [plant.put(os.urandom(size)) for size in (4096, 140_000)]
    os.sync()
    for path in paths:
        path.read_bytes()
    if min(map(pages_of, paths)) < 1:
        pytest.skip("CI-may-skip: a kernel before 6.5, which cannot be asked")
    with monkeypatch.context() as patch:
        patch.setattr(kindly, "_CACHESTAT", -1)
        assert verify(plant) == []
    assert min(map(pages_of, paths)) > 0


# -- behind others -----------------------------------------------------------------------------------------------------

_GET = {"x86_64": 252, "aarch64": 31}


def priority() -> int:
    """This thread's I/O priority, ioprio_get(2)."""
    return int(ctypes.CDLL(None).syscall(_GET[platform.machine()], 1, 0))


@pytest.mark.skipif(platform.machine() not in _GET, reason="CI-may-skip: the numbers of two architectures are known")
def test_a_scheduled_part_reads_at_the_lowest_priority_and_gives_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant = make(tmp_path)
    seen: set[int] = set()
    judge = parts.Judge.judge_names

    def judge_and_note(self: parts.Judge, pair: str, second: str, names: list[str]) -> Any:
        seen.add(priority())
        return judge(self, pair, second, names)

    monkeypatch.setattr(parts.Judge, "judge_names", judge_and_note)
    before = priority()
    with ObjectStore(plant.root) as store:
        assert parts.verify_part(store, LIMITS).files == 20
    assert seen == {2 << 13 | 7}, "best effort, 7"
    assert priority() == before
    with pytest.raises(RuntimeError), LowPriority():
        raise RuntimeError
    assert priority() == before


# -- past bad sectors --------------------------------------------------------------------------------------------------

READING = {"openat", "getdents64", "fstat", "newfstatat", "preadv", "pread64", "read"}


@pytest.mark.skipif(not tracer.SUPPORTED, reason="CI-may-skip: the tracer writes registers of x86-64")
def test_whichever_call_the_disk_fails_nothing_is_moved_and_nothing_is_taken_for_rotten(
    memory_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """``EIO`` at each reading call of a repairing run in turn: it says so, or fails; the store is as it was."""
    caplog.set_level("CRITICAL")
    make(memory_path / "template", 4)

    def at(root: Path) -> Plant:
        return Plant(root / "store", root / "mirror")

    def fresh() -> Plant:
        shutil.rmtree(memory_path / "copy", ignore_errors=True)
        return at(Path(shutil.copytree(memory_path / "template", memory_path / "copy", symlinks=True)))

    points: list[int] = []

    def note(call: tracer.Call) -> None:
        if call.name in READING:
            points.append(call.index)

    first = fresh()
    assert tracer.run(lambda _: verify(first, repair=True), note).error is None
    assert len(points) > 30
    told = 0
    for point in points:
        plant = fresh()

        def run(_: object, plant: Plant = plant) -> list[tuple[str, str]]:
            return [(finding.kind, finding.action) for finding in verify(plant, repair=True)]

        outcome = tracer.run(run, lambda call, point=point: errno.EIO if call.index == point else None)  # type: ignore[misc]
        assert not outcome.killed
        if outcome.error is None:
            assert {kind for kind, _ in outcome.value} <= {"unreadable", "unreadable-directory", "unstable"}, point
            told += bool(outcome.value)
        for number in range(4):
            assert plant.path(sha1(content(number))).read_bytes() == content(number), point
        assert os.listdir(plant.root / "Error") == [], point
        assert verify(plant) == [], point
    assert told >= 8, "at least each file and its directory"


def test_a_directory_that_the_disk_cannot_list_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant = make(tmp_path)
    _, path = plant.victim()
    inode, scandir = path.parent.stat().st_ino, os.scandir

    def failing(fd: int) -> Any:
        if isinstance(fd, int) and os.fstat(fd).st_ino == inode:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return scandir(fd)

    before = all_bytes(plant.root / "Data")
    monkeypatch.setattr(os, "scandir", failing)
    (finding,) = verify(plant, repair=True)
    assert (finding.kind, finding.action) == ("unreadable-directory", "reported")
    assert finding.path == plant.relative(path.parent)
    monkeypatch.undo()
    assert all_bytes(plant.root / "Data") == before


# -- what is in use ----------------------------------------------------------------------------------------------------


def test_a_taken_upload_whose_job_is_at_work_is_no_orphan(tmp_path: Path) -> None:
    plant = make(tmp_path)
    taken = plant.root / f"Spool/shop/.{JOB}.taken"
    taken.write_bytes(b"being worked on")
    with ObjectStore(plant.root) as store, job_lock(store.fd, JOB, store.modes.lock_file):
        assert verify(plant, repair=True) == []
    request = plant.root / f"Spool/shop/.{JOB}.json"
    request.write_text("{}")
    assert verify(plant, repair=True) == []
    request.unlink()
    assert [(f.kind, f.action) for f in verify(plant, repair=True)] == [("orphaned-taken", "quarantined")]
    assert not taken.exists()
