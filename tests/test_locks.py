"""Locks: shared beside shared, exclusive alone, and none outlives its holder."""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import background, eventually

from fsworker.model import EMPTY_HASH, Hash
from fsworker.store.locks import job_in_flight, job_lock, shard_lock, store_lock

OTHER_SHARD = Hash("00" * 20)


@pytest.fixture
def root_fd(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "Lock").mkdir()
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


def can_have(root_fd: int, name: Hash, *, exclusive: bool) -> bool:
    """Whether another thread gets the lock at once."""
    got = threading.Event()

    def take() -> None:
        with shard_lock(root_fd, name, 0o600, exclusive=exclusive):
            got.set()

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    return got.wait(0.3)


def test_shared_locks_stand_beside_each_other_and_exclude_an_exclusive_one(root_fd: int) -> None:
    with shard_lock(root_fd, EMPTY_HASH, 0o600):
        assert can_have(root_fd, EMPTY_HASH, exclusive=False)
        assert not can_have(root_fd, EMPTY_HASH, exclusive=True)
    assert can_have(root_fd, EMPTY_HASH, exclusive=True)


def test_an_exclusive_lock_excludes_all_in_its_shard_and_none_in_another(root_fd: int) -> None:
    with shard_lock(root_fd, EMPTY_HASH, 0o600, exclusive=True):
        assert not can_have(root_fd, EMPTY_HASH, exclusive=False)
        assert can_have(root_fd, OTHER_SHARD, exclusive=True)


def test_a_lock_is_released_when_its_block_fails(root_fd: int) -> None:
    with pytest.raises(ZeroDivisionError), shard_lock(root_fd, EMPTY_HASH, 0o600, exclusive=True):
        raise ZeroDivisionError
    assert can_have(root_fd, EMPTY_HASH, exclusive=True)


def test_the_store_lock_never_waits(root_fd: int) -> None:
    with store_lock(root_fd, "collect", 0o600) as first, store_lock(root_fd, "collect", 0o600) as second:
        assert (first, second) == (True, False)
        with store_lock(root_fd, "verify", 0o600) as other:
            assert other
    with store_lock(root_fd, "collect", 0o600) as again:
        assert again


def test_a_job_is_in_flight_once(root_fd: int) -> None:
    with job_lock(root_fd, "shop.1", 0o600) as first, job_lock(root_fd, "shop.1", 0o600) as second:
        assert (first, second) == (True, False)
        assert job_in_flight(root_fd, "shop.1", 0o600)
        assert not job_in_flight(root_fd, "shop.2", 0o600)
    assert not job_in_flight(root_fd, "shop.1", 0o600)


def test_asking_does_not_release_the_holders_lock(root_fd: int) -> None:
    with job_lock(root_fd, "shop.1", 0o600) as held:
        assert held
        for _ in range(3):
            assert job_in_flight(root_fd, "shop.1", 0o600)


HOLDER = """
import os, sys, time
from fsworker.store.locks import job_lock, shard_lock, store_lock
fd = os.open(sys.argv[1], os.O_RDONLY)
with shard_lock(fd, sys.argv[2], 0o600, exclusive=True), store_lock(fd, "collect", 0o600), job_lock(fd, "shop.1", 0o600):
    print("held", flush=True)
    time.sleep(600)
"""


def test_all_locks_die_with_their_process(root_fd: int, tmp_path: Path) -> None:
    with background(HOLDER, tmp_path, EMPTY_HASH) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        assert not can_have(root_fd, EMPTY_HASH, exclusive=False)
        with store_lock(root_fd, "collect", 0o600) as free:
            assert not free
        assert job_in_flight(root_fd, "shop.1", 0o600)
        process.kill()
        assert eventually(lambda: not job_in_flight(root_fd, "shop.1", 0o600))
        assert can_have(root_fd, EMPTY_HASH, exclusive=True)


def test_a_child_forked_meanwhile_does_not_keep_the_lock(root_fd: int) -> None:
    with shard_lock(root_fd, EMPTY_HASH, 0o600, exclusive=True):
        pid = os.fork()
        if pid == 0:
            time.sleep(600)
            os._exit(0)
    try:
        assert can_have(root_fd, EMPTY_HASH, exclusive=True)
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def test_lock_files_have_their_mode_whatever_the_umask(root_fd: int, tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        with shard_lock(root_fd, EMPTY_HASH, 0o660):
            pass
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "Lock/da").stat().st_mode) == 0o660
    assert os.listdir(tmp_path / "Lock") == ["da"]


def test_a_symbolic_link_is_no_lock(root_fd: int, tmp_path: Path) -> None:
    (tmp_path / "Lock/da").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError), shard_lock(root_fd, EMPTY_HASH, 0o600):
        pass
    assert not (tmp_path / "elsewhere").exists()
