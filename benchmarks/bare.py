"""The store's own system calls, in a plain loop: what a put costs on this machine whoever makes the calls.

The calls of a put, in its order, as ``tests/crash/test_calls.py`` lists them, each with its reason; and nothing else: no
error is told apart, nothing healed, freshened, waited for or checked. What ``benchmarks/store.py`` finds between this
and ours is Python's price for those. Here for files that fit one read.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

from fsworker import durable
from fsworker.store.create import create_store

_READ = os.O_RDONLY | os.O_CLOEXEC
_STORED = _READ | os.O_NOFOLLOW | os.O_NONBLOCK
_DIRECTORY = _READ | os.O_DIRECTORY
_HEAD_BYTES = 1 << 16
_BATCH = 1024


def bare(durability: str) -> Callable[[Path, list[Path]], None]:
    """What puts files into a store with no more than the system calls of ``durability``."""

    def ingest(directory: Path, files: list[Path]) -> None:
        if not directory.exists():
            create_store(directory, apps=["benchmark"])
        root_fd = os.open(directory, _DIRECTORY)
        if durability == "batch":
            for start in range(0, len(files), _BATCH):
                _put_batch(root_fd, files[start : start + _BATCH])
        else:
            for path in files:
                _put(root_fd, path, sync=durability == "full")
        os.close(root_fd)

    return ingest


def _put(root_fd: int, path: Path, *, sync: bool) -> None:
    name, fd = _stage(root_fd, path, sync=sync)
    if fd is not None:
        _link(root_fd, name, fd, sync=sync)


def _put_batch(root_fd: int, files: list[Path]) -> None:
    staged = []
    for path in files:
        name, fd = _stage(root_fd, path, sync=False)
        if fd is not None:
            staged.append((name, fd))
    if staged:
        durable.syncfs(root_fd)
        for name, fd in sorted(staged):
            _link(root_fd, name, fd, sync=False)
    durable.syncfs(root_fd)


def _stage(root_fd: int, path: Path, *, sync: bool) -> tuple[str, int | None]:
    """Read and hash a file; compare it with the stored one, or write it into an unnamed file."""
    source_fd = os.open(path, _READ)
    data = os.read(source_fd, _HEAD_BYTES)
    os.read(source_fd, _HEAD_BYTES)
    name = hashlib.sha1(data).hexdigest()
    shard = f"Data/{name[:2]}/{name[2:4]}"
    location = f"{shard}/{name}"
    fd = None
    try:
        os.stat(location, dir_fd=root_fd, follow_symlinks=False)
    except FileNotFoundError:
        fd = os.open("Temp", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o444, dir_fd=root_fd)
        os.write(fd, data)
        os.fstat(fd)
        if sync:
            os.fsync(fd)
    else:
        stored_fd = os.open(location, _STORED, dir_fd=root_fd)
        if os.pread(stored_fd, len(data) + 1, 0) != data:
            sys.exit(f"{name} is not what it was")
        if sync:
            os.fsync(stored_fd)
            durable.fsync_path(shard, root_fd)
        os.close(stored_fd)
    os.close(source_fd)
    return name, fd


def _link(root_fd: int, name: str, fd: int, *, sync: bool) -> None:
    shard = f"Data/{name[:2]}/{name[2:4]}"
    try:
        shard_fd, made = os.open(shard, _DIRECTORY, dir_fd=root_fd), False
    except FileNotFoundError:
        _make_shard(root_fd, name[:2], shard)
        shard_fd, made = os.open(shard, _DIRECTORY, dir_fd=root_fd), True
        os.fstat(shard_fd)
    lock_fd = os.open(f"Lock/{name[:2]}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=root_fd)
    fcntl.flock(lock_fd, fcntl.LOCK_SH)
    os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=shard_fd, follow_symlinks=True)
    fcntl.flock(lock_fd, fcntl.LOCK_UN)
    os.close(lock_fd)
    if sync:
        os.fsync(shard_fd)
        if made:
            durable.fsync_path(f"Data/{name[:2]}", root_fd)
            durable.fsync_path("Data", root_fd)
    os.close(shard_fd)
    os.close(fd)


def _make_shard(root_fd: int, pair: str, shard: str) -> None:
    try:
        os.mkdir(shard, 0o750, dir_fd=root_fd)
    except FileNotFoundError:
        os.mkdir(f"Data/{pair}", 0o750, dir_fd=root_fd)
        os.mkdir(shard, 0o750, dir_fd=root_fd)
