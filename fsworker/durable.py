"""The durable write, in one place.

A file becomes durable in this order, and only then may anybody be told its name:

1. bytes go into an **unnamed** file (``O_TMPFILE``) on the store's filesystem, hashed on the way: a crash leaves none;
2. ``fchmod`` and ``fsync``: content and mode are on disk before a name exists;
3. ``link`` publishes it: the name appears whole or not at all, and never replaces another file;
4. ``fsync`` of each directory that changed, up to the first that was durable before.

A failed ``fsync`` is final. The kernel reports a write-back error once and then marks the pages clean (fsyncgate,
lwn.net/Articles/752063), so a second ``fsync`` that succeeds proves nothing: callers must fail the operation.

Only standard calls are used; what Python lacks (``syncfs``) comes from the C library.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from contextlib import suppress

_FICLONE = 0x40049409  # ioctl_ficlone(2)
_RENAME_NOREPLACE = 1

_libc = ctypes.CDLL(None, use_errno=True)


def open_unnamed(directory_fd: int, directory: str, mode: int = 0o600) -> int:
    """Open a new file without a name in ``directory`` (relative to ``directory_fd``), for reading and writing.

    ``mode`` is subject to the umask: look before you publish. Where the filesystem has no ``O_TMPFILE`` (NFS, some
    FUSE) the file gets a random dotted name, which :func:`close_unnamed` removes; a crash leaves it to the sweep.
    """
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode, dir_fd=directory_fd)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
    name = f"{directory}/.{os.urandom(16).hex()}"
    fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, mode, dir_fd=directory_fd)
    _fallback_names[fd] = (directory_fd, name)
    return fd


_fallback_names: dict[int, tuple[int, str]] = {}
"""Descriptors that :func:`open_unnamed` had to give a name, and the name. Removed by :func:`close_unnamed`."""


def close_unnamed(fd: int) -> None:
    """Close what :func:`open_unnamed` opened; the bytes vanish unless they were linked."""
    named = _fallback_names.pop(fd, None)
    try:
        if named is not None:
            with suppress(FileNotFoundError):  # swept meanwhile
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


def clone(source_fd: int, target_fd: int) -> bool:
    """Make the empty file ``target_fd`` share the whole content of ``source_fd``, copy-on-write.

    False where that is not possible: the filesystem cannot, or the source lies on another one (ioctl_ficlone(2)). The
    clone is a file of its own: whatever a writer of the source does afterwards does not reach it.
    """
    try:
        fcntl.ioctl(target_fd, _FICLONE, source_fd)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM):
            return False
        raise
    return True


def fsync_path(name: str, directory_fd: int) -> None:
    """``fsync`` the directory ``name`` relative to ``directory_fd``."""
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory_fd)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_file(name: str, directory_fd: int) -> None:
    """``fsync`` the file ``name`` relative to ``directory_fd``; a symbolic link is not followed."""
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory_fd)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def syncfs(fd: int) -> None:
    """Sync the whole filesystem that ``fd`` lies on. Reports write-back errors since Linux 5.8 (syncfs(2))."""
    if _libc.syncfs(fd) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "syncfs")


def rename_new(source: str, target: str, directory_fd: int) -> None:
    """Rename within ``directory_fd``, never replacing: ``FileExistsError`` if ``target`` is there (renameat2(2)).

    ``OSError`` with ``EINVAL`` or ``ENOSYS`` where the filesystem or kernel has no such call.
    """
    if _libc.renameat2(directory_fd, os.fsencode(source), directory_fd, os.fsencode(target), _RENAME_NOREPLACE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), target)


def replace_small_file(
    name: str, data: bytes, directory_fd: int, mode: int = 0o640, *, sync: bool = True, sync_content: bool | None = None
) -> None:
    """Atomically make ``name`` in ``directory_fd`` hold ``data``; readers see what was there, or the new.

    With ``sync`` the content and then the name are on disk on return. With ``sync_content`` alone the content is on disk
    before it gets the name: after a power cut there is the old, or the new. With neither there may be an empty file, on
    XFS at least, so that is for names that are new. A crash may leave a file ``.<random>.new``, which the sweep removes.
    A symbolic link of that name is not followed: ``rename`` replaces the link itself.
    """
    temporary = f".{os.urandom(16).hex()}.new"
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(temporary, flags, 0o600, dir_fd=directory_fd)
    try:
        try:
            write_all(fd, data)
            os.fchmod(fd, mode)  # not open's mode: the umask never matters
            if sync if sync_content is None else sync_content:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, name, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
    except BaseException:
        with suppress(OSError):  # the first error is the one to tell
            os.unlink(temporary, dir_fd=directory_fd)
        raise
    if sync:
        os.fsync(directory_fd)
