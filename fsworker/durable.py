"""The durable write, in one place.

A file becomes durable in this order, and only then may anybody be told its name:

1. bytes go into an **unnamed** file (``O_TMPFILE``) on the store's filesystem, hashed on the way: a crash leaves nothing;
2. ``fchmod`` and ``fsync``: content and mode are on disk before a name exists;
3. ``link`` publishes it: the name appears whole or not at all, and never replaces another file;
4. ``fsync`` of each directory that changed, up to the first that was durable before.

A failed ``fsync`` is final. The kernel reports a write-back error once and then marks the pages clean (fsyncgate,
https://lwn.net/Articles/752063/), so a second ``fsync`` that succeeds proves nothing: callers must fail the operation.

Only standard calls are used; what Python lacks (``syncfs``) comes from the C library.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

BUFFER_BYTES = 1 << 20
"""Size of one read and write. Larger gains nothing, 64 KiB costs a tenth (measured)."""

_libc = ctypes.CDLL(None, use_errno=True)


class Reader(Protocol):
    """Anything with ``read(n)`` that returns at most ``n`` bytes, and ``b""`` at the end."""

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes."""
        ...


@dataclass(frozen=True)
class Copied:
    """What a copy saw of the bytes: their SHA-1 in hex, and how many there were."""

    sha1: str
    size_bytes: int


class TooLargeError(Exception):
    """A copy met more bytes than its limit. Raised as soon as the limit is passed, not at the end."""


def open_unnamed(directory_fd: int, directory: str) -> int:
    """Open a new file without a name, mode 0600, in ``directory`` (relative to ``directory_fd``), for writing and reading.

    Where the filesystem has no ``O_TMPFILE`` (NFS, some FUSE), the file is made with a random dotted name and unlinked
    by :func:`link_unnamed`'s caller through :func:`fallback_name`; its name is recorded for that.
    """
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=directory_fd)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
    name = f"{directory}/.{secrets.token_hex(16)}"
    fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=directory_fd)
    _fallback_names[fd] = (directory_fd, name)
    return fd


_fallback_names: dict[int, tuple[int, str]] = {}
"""Descriptors that :func:`open_unnamed` had to give a name, and the name. Removed by :func:`close_unnamed`."""


def close_unnamed(fd: int) -> None:
    """Close what :func:`open_unnamed` opened; the bytes vanish unless they were linked."""
    named = _fallback_names.pop(fd, None)
    try:
        if named is not None:
            os.unlink(named[1], dir_fd=named[0])
    finally:
        os.close(fd)


def link_unnamed(fd: int, name: str, directory_fd: int) -> None:
    """Give the file behind ``fd`` the name ``name`` in ``directory_fd``. ``FileExistsError`` if that name is taken.

    ``/proc/self/fd`` with ``AT_SYMLINK_FOLLOW`` is the way for those without ``CAP_DAC_READ_SEARCH`` (open(2)).
    """
    named = _fallback_names.get(fd)
    if named is not None:
        os.link(named[1], name, src_dir_fd=named[0], dst_dir_fd=directory_fd, follow_symlinks=False)
    else:
        os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=directory_fd, follow_symlinks=True)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write all of ``data`` at the descriptor's position; a short write goes on where it stopped."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def copy_hashed(
    read_into: Callable[[memoryview], int],
    target_fd: int,
    max_bytes: int | None = None,
    progress: Callable[[int], None] | None = None,
    filled: int = 0,
) -> Copied:
    """Copy until ``read_into`` returns 0, hashing what is written, in one pass and constant memory.

    ``filled`` bytes are in :func:`buffer` already and count as the beginning. ``progress`` is told the bytes so far
    after each buffer. Raises :class:`TooLargeError` past ``max_bytes``, and ``OSError`` of either side; the target
    then holds an unspecified prefix.
    """
    digest = hashlib.sha1(usedforsecurity=False)
    room = buffer()
    size = 0
    while count := filled or read_into(room):
        filled = 0
        size += count
        if max_bytes is not None and size > max_bytes:
            raise TooLargeError
        part = room[:count]
        digest.update(part)
        write_all(target_fd, part)
        if progress is not None:
            progress(size)
    return Copied(digest.hexdigest(), size)


_local = threading.local()


def buffer() -> memoryview:
    """This thread's buffer of :data:`BUFFER_BYTES`, made once: zeroing a new one costs more than storing a small file."""
    view: memoryview | None = getattr(_local, "buffer", None)
    if view is None:
        view = _local.buffer = memoryview(bytearray(BUFFER_BYTES))
    return view


def reader_into(stream: Reader) -> Callable[[memoryview], int]:
    """Adapt any object with ``read(n)`` to :func:`copy_hashed`; ``TypeError`` if it yields text."""

    def read_into(buffer: memoryview) -> int:
        data = stream.read(len(buffer))
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"read() must return bytes, not {type(data).__name__}; open the file in binary mode")
        count = len(data)
        if count > len(buffer):
            raise ValueError(f"read({len(buffer)}) returned {count} bytes")
        buffer[:count] = data
        return count

    return read_into


def descriptor_into(fd: int) -> Callable[[memoryview], int]:
    """Adapt a file descriptor, read from its position, to :func:`copy_hashed`."""
    return lambda buffer: os.readv(fd, [buffer])


def hash_descriptor(fd: int) -> Copied:
    """Hash a file from its beginning without moving the descriptor's position."""
    digest = hashlib.sha1(usedforsecurity=False)
    room = buffer()
    size = 0
    while count := os.preadv(fd, [room], size):
        digest.update(room[:count])
        size += count
    return Copied(digest.hexdigest(), size)


def same_bytes(left_fd: int, right_fd: int) -> bool:
    """Compare two files from their beginnings; neither descriptor's position moves."""
    left, right = bytearray(BUFFER_BYTES), bytearray(BUFFER_BYTES)
    offset = 0
    while True:
        count = os.preadv(left_fd, [left], offset)
        if os.preadv(right_fd, [right], offset) != count:
            return False  # regular files on local disks do not read short but at their end
        if count == 0:
            return True
        if memoryview(left)[:count] != memoryview(right)[:count]:
            return False
        offset += count


def equals(fd: int, data: bytes | memoryview) -> bool:
    """Compare a file with ``data`` from its beginning, reading no more than one byte beyond its length."""
    got = os.pread(fd, len(data) + 1, 0)
    return got == data


def fsync_path(name: str, directory_fd: int) -> None:
    """``fsync`` the directory ``name`` relative to ``directory_fd``."""
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory_fd)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def syncfs(fd: int) -> None:
    """Sync the whole filesystem that ``fd`` lies on. Since Linux 5.8 write-back errors are reported here (syncfs(2))."""
    if _libc.syncfs(fd) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "syncfs")


def replace_small_file(name: str, data: bytes, directory_fd: int, mode: int = 0o640, *, sync: bool = True) -> None:
    """Atomically make ``name`` in ``directory_fd`` hold ``data``, whatever was there; readers see the old or the new.

    With ``sync`` the content and then the name are on disk on return. A crash may leave a file ``.<random>.new``, which
    the sweep removes. The name is not followed if somebody made it a symbolic link: ``rename`` replaces the link itself.
    """
    temporary = f".{secrets.token_hex(16)}.new"
    fd = os.open(
        temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=directory_fd
    )
    try:
        try:
            write_all(fd, data)
            os.fchmod(fd, mode)  # not open's mode: the umask never matters
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, name, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
    except BaseException:
        os.unlink(temporary, dir_fd=directory_fd)
        raise
    if sync:
        os.fsync(directory_fd)
