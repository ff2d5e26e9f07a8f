"""Advisory locks under ``Lock/``. All die with their process; nothing has to be cleaned up after a crash.

Each is released by name before its descriptor is closed: a child forked meanwhile by another thread has a copy of the
descriptor, and would hold the lock as long as it lives.

* **Shard lock**, ``flock`` on ``Lock/da``: *shared* while a file is published or freshened, *exclusive* for one file's
  move to trash or quarantine. Held for microseconds. It closes the one race that age cannot: a collection that read an
  old ctime, an ingest that freshens the file, and the collection's rename, in this order.
* **Store lock**, ``flock`` on ``Lock/<name>``, never waits: one collection and one verification at a time.
* **Job lock**, a byte of ``Lock/jobs`` locked by open file description (``F_OFD_SETLK``, fcntl(2)): a job in flight is
  not begun a second time by a redelivered message. One file serves all jobs; the job's id picks the byte.

A reader could hold a ``flock`` for ever, so where only the worker writes ``Lock/`` is closed to others (mode 0700).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from fsworker.model import Hash
from fsworker.store.layout import LOCK

_JOBS = f"{LOCK}/jobs"
_PICTURES = f"{LOCK}/pictures"


def _open_lock(store_fd: int, name: str, mode: int) -> int:
    """Open a lock file, making it the first time."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(name, flags, dir_fd=store_fd)
    except FileNotFoundError:
        _make_lock(store_fd, name, mode)
        return os.open(name, flags, dir_fd=store_fd)


def _make_lock(store_fd: int, name: str, mode: int) -> None:
    """Make a lock file whole: another member of the group must never meet it with the mode that the umask left."""
    temporary = f"{LOCK}/.{secrets.token_hex(16)}.new"
    fd = os.open(temporary, os.O_RDWR | os.O_CLOEXEC | os.O_CREAT | os.O_EXCL, mode, dir_fd=store_fd)
    try:
        group = os.fstat(store_fd).st_gid
        if os.fstat(fd).st_gid != group:
            os.fchown(fd, -1, group)
        os.fchmod(fd, mode)
        with suppress(FileExistsError):  # somebody else was first
            os.link(temporary, name, src_dir_fd=store_fd, dst_dir_fd=store_fd, follow_symlinks=False)
    finally:
        os.close(fd)
        os.unlink(temporary, dir_fd=store_fd)


@contextmanager
def shard_lock(store_fd: int, name: Hash, mode: int, *, exclusive: bool = False) -> Iterator[None]:
    """Hold the lock of ``name``'s shard (its first two digits), waiting for it. ``mode`` is for a new lock file."""
    fd = _open_lock(store_fd, f"{LOCK}/{name[:2]}", mode)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        try:
            yield
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)


@contextmanager
def store_lock(store_fd: int, name: str, mode: int) -> Iterator[bool]:
    """Try to hold the whole-store lock ``name`` without waiting; yields whether it was obtained."""
    fd = _open_lock(store_fd, f"{LOCK}/{name}", mode)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)


@contextmanager
def job_lock(store_fd: int, job_id: str, mode: int) -> Iterator[bool]:
    """Try to hold a job's lock without waiting; yields False when another process or thread works on this job.

    Two jobs share a byte with probability 2⁻⁶²; then one of them waits for the sweep.
    """
    fd = _open_lock(store_fd, _JOBS, mode)
    try:
        offset = _job_offset(job_id)
        obtained = _lock_byte(fd, fcntl.F_WRLCK, offset)
        try:
            yield obtained
        finally:
            if obtained:
                _lock_byte(fd, fcntl.F_UNLCK, offset)
    finally:
        os.close(fd)


def job_in_flight(store_fd: int, job_id: str, mode: int) -> bool:
    """Tell whether somebody holds the job's lock right now."""
    with job_lock(store_fd, job_id, mode) as obtained:
        return not obtained


@contextmanager
def picture_lock(store_fd: int, name: Hash, mode: int) -> Iterator[None]:
    """Hold the lock under which thumbnails of ``name`` are made, waiting for it."""
    fd = _open_lock(store_fd, _PICTURES, mode)
    try:
        offset = _job_offset(name)
        _lock_byte(fd, fcntl.F_WRLCK, offset, wait=True)
        try:
            yield
        finally:
            _lock_byte(fd, fcntl.F_UNLCK, offset)
    finally:
        os.close(fd)


def _job_offset(job_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(job_id.encode(), digest_size=8).digest(), "big") >> 2


def _lock_byte(fd: int, kind: int, offset: int, *, wait: bool = False) -> bool:
    # struct flock on 64-bit Linux: l_type, l_whence, (pad), l_start, l_len, l_pid (must be 0 for OFD locks)
    request = struct.pack("hhqqi4x", kind, os.SEEK_SET, offset, 1, 0)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, request)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True
