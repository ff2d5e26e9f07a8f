"""How many system calls a put costs, and what each is for. More than these wants a reason."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fsworker.store.create import create_store
from fsworker.store.objects import ObjectStore

from . import tracer
from .scenarios import NEW, same_shard

pytestmark = pytest.mark.skipif(not tracer.SUPPORTED, reason="CI-may-skip: the tracer writes registers of x86-64")

SOURCE = [
    "openat",  # the caller's file
    "read",  # its bytes
    "read",  # its end
]
NEW_FILE = [
    *SOURCE,
    "newfstatat",  # is it there already? no
    "openat",  # an unnamed file
    "write",
    "newfstatat",  # has it the mode and group of a stored file? (what the umask took is put right)
    "fsync",  # data before its name
    "openat",  # its directory
    "openat",  # the shard's lock
    "flock",
    "linkat",  # here it is
    "flock",  # released by name: a child forked meanwhile has the descriptor, too
    "close",
    "fsync",  # the name before the result
    "close",
    "close",
    "close",
]
DUPLICATE = [
    *SOURCE,
    "newfstatat",  # is it there already? yes, and so young that nobody may take it
    "openat",
    "pread64",  # are they the same bytes? a hash is no proof
    "fsync",  # its first writer may have died before his own
    "openat",  # its directory
    "fsync",  # likewise
    "close",
    "close",
    "close",
]
DUPLICATE_DUE = [
    *SOURCE,
    "newfstatat",  # is it there already? yes, but not young
    "openat",
    "openat",  # the shard's lock
    "flock",
    "newfstatat",  # which file have we open
    "newfstatat",  # is it still the one of this name
    "fchmod",  # young again
    "flock",
    "close",
    "pread64",
    "fsync",
    "openat",
    "fsync",
    "close",
    "close",
    "close",
]
SYNCS = {"fsync"}


def calls_of(action: Callable[[], object]) -> list[str]:
    calls: list[str] = []
    outcome = tracer.run(lambda child: action() and None, watcher=lambda call, result: calls.append(call.name))
    assert outcome.error is None
    return calls


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").write_bytes(NEW)
    return tmp_path / "source"


def warm_store(tmp_path: Path, durability: str, *, grace_s: float = 86400.0) -> ObjectStore:
    """A store that has worked in the shard before, in this process."""
    create_store(tmp_path / "store", apps=[], grace_s=grace_s)
    store = ObjectStore(tmp_path / "store", durability=durability)
    store.put(same_shard(NEW))
    store.recent_clock()
    return store


def test_a_new_file(tmp_path: Path, source: Path) -> None:
    store = warm_store(tmp_path, "full")
    assert calls_of(lambda: store.put_path(source)) == NEW_FILE


def test_a_duplicate(tmp_path: Path, source: Path) -> None:
    store = warm_store(tmp_path, "full")
    store.put_path(source)
    assert calls_of(lambda: store.put_path(source)) == DUPLICATE


def test_a_duplicate_that_is_due_to_be_freshened(tmp_path: Path, source: Path) -> None:
    store = warm_store(tmp_path, "full", grace_s=0)
    store.put_path(source)
    store.recent_clock = lambda: time.time() + 60  # type: ignore[method-assign]
    assert calls_of(lambda: store.put_path(source)) == DUPLICATE_DUE


def test_without_syncs_there_are_fewer(tmp_path: Path, source: Path) -> None:
    store = warm_store(tmp_path, "none")
    assert calls_of(lambda: store.put_path(source)) == [call for call in NEW_FILE if call not in SYNCS]
    duplicate = calls_of(lambda: store.put_path(source))
    assert duplicate == [*SOURCE, "newfstatat", "openat", "pread64", "close", "close"]


def test_fewer_than_filestruct_and_hashfs() -> None:
    """Theirs: 34 and 33 for a new file, 26 and 12 for a duplicate; neither syncs, locks or compares."""
    assert len(NEW_FILE) == 18
    assert len(DUPLICATE) == 12
    assert len(DUPLICATE_DUE) == 19


def test_a_write_is_not_torn_from_its_buffer(tmp_path: Path) -> None:
    """A large file is read and written in pieces of a MiB: two calls a piece."""
    store = warm_store(tmp_path, "none")
    (tmp_path / "large").write_bytes(os.urandom(8 << 20))
    calls = calls_of(lambda: store.put_path(tmp_path / "large"))
    assert (calls.count("readv"), calls.count("write")) == (9, 8)
