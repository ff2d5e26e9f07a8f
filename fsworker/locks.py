"""Advisory locks under ``Lock/``. All die with their process; nothing has to be cleaned up after a crash.

* **Shard lock**, ``flock`` on ``Lock/da``: *shared* while a file is published or freshened, *exclusive* for one file's
  move to trash or quarantine. Held for microseconds. It closes the one race that age cannot: a collection that read an
  old ctime, an ingest that freshens the file, and the collection's rename, in this order.
* **Store lock**, ``flock`` on ``Lock/<name>``, never waits: one collection and one verification at a time.
* **Job lock**, a byte of ``Lock/jobs`` locked by open file description (``F_OFD_SETLK``, fcntl(2)): a job in flight is
  not begun a second time by a redelivered message. One file serves all jobs; the byte is taken from the job's id.

A reader could hold a ``flock`` for ever, so ``Lock/`` is closed to applications (mode 0700) where only the worker writes.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from fsworker.layout import LOCK
from fsworker.model import Hash

_JOBS = f"{LOCK}/jobs"


def _open_lock(store_fd: int, name: str, mode: int) -> int:
    """Open a lock file, making it (and ``Lock/``'s entry for it) the first time."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(name, flags, dir_fd=store_fd)
    except FileNotFoundError:
        fd = os.open(name, flags | os.O_CREAT, mode, dir_fd=store_fd)
        if os.fstat(fd).st_uid == os.geteuid():
            os.fchmod(fd, mode)  # whatever the umask
        return fd


@contextmanager
def shard_lock(store_fd: int, name: Hash, mode: int, *, exclusive: bool = False) -> Iterator[None]:
    """Hold the lock of ``name``'s shard (its first two digits), waiting for it. ``mode`` is for a lock file not made yet."""
    fd = _open_lock(store_fd, f"{LOCK}/{name[:2]}", mode)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield
    finally:
        os.close(fd)  # releases: this open file description has no other descriptor


@contextmanager
def store_lock(store_fd: int, name: str, mode: int) -> Iterator[bool]:
    """Try to hold the whole-store lock ``name`` without waiting; yields whether it was obtained."""
    fd = _open_lock(store_fd, f"{LOCK}/{name}", mode)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)


@contextmanager
def job_lock(store_fd: int, job_id: str, mode: int) -> Iterator[bool]:
    """Try to hold a job's lock without waiting; yields False when another process or thread works on this job.

    Two jobs share a byte with probability 2⁻⁶²; then one of them waits for the sweep.
    """
    fd = _open_lock(store_fd, _JOBS, mode)
    try:
        yield _lock_byte(fd, _job_offset(job_id))
    finally:
        os.close(fd)


def job_in_flight(store_fd: int, job_id: str, mode: int) -> bool:
    """Tell whether somebody holds the job's lock right now."""
    with job_lock(store_fd, job_id, mode) as obtained:
        return not obtained


def _job_offset(job_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(job_id.encode(), digest_size=8).digest(), "big") >> 2


def _lock_byte(fd: int, offset: int) -> bool:
    # struct flock on 64-bit Linux: l_type, l_whence, (pad), l_start, l_len, l_pid (must be 0 for OFD locks)
    request = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, request)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True
