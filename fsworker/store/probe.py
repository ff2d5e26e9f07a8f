"""Start-up probe: does the store's filesystem keep the promises that everything else is built on?

Some network and FUSE filesystems accept ``flock`` and do nothing, cannot link, or take the ctime from a client's clock.
On those a collection could take a live file, so a store there is refused, by name of what is missing.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time

from fsworker import durable
from fsworker.errors import ConfigError
from fsworker.store import layout
from fsworker.store.handle import StoreHandle, explain


def check_filesystem(handle: StoreHandle) -> None:
    """Try ``flock``, ``link`` and ctime in ``Temp/``. Raises :class:`ConfigError`; leaves nothing behind."""
    name = f"{layout.TEMP}/.probe-{secrets.token_hex(8)}"
    second = name + "-link"
    try:
        handle.ensure_directory(layout.TEMP, handle.modes.private)
        fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=handle.fd)
        try:
            _check_link(handle, fd, name, second)
            _check_flock(handle, fd, name)
            _check_ctime(handle, fd)
        finally:
            os.close(fd)
            for leftover in (name, second):
                _unlink_if_there(handle.fd, leftover)
        _check_unnamed(handle)
    except OSError as error:
        raise explain(error, "Probing the filesystem", handle) from error


def _refuse(handle: StoreHandle, what: str) -> ConfigError:
    return ConfigError(
        f"the filesystem of {handle.root} {what}; put the store on a local filesystem (ext4, xfs, btrfs, zfs)"
    )


def _check_link(handle: StoreHandle, fd: int, name: str, second: str) -> None:
    try:
        os.link(name, second, src_dir_fd=handle.fd, dst_dir_fd=handle.fd, follow_symlinks=False)
    except OSError as error:
        raise _refuse(handle, f"cannot make hard links ({error.strerror})") from error
    if os.fstat(fd).st_nlink != 2:
        raise _refuse(handle, "does not count hard links")
    try:
        os.link(name, second, src_dir_fd=handle.fd, dst_dir_fd=handle.fd, follow_symlinks=False)
    except FileExistsError:
        return
    raise _refuse(handle, "lets link() replace a file")


def _check_flock(handle: StoreHandle, fd: int, name: str) -> None:
    other = os.open(name, os.O_RDWR | os.O_CLOEXEC, dir_fd=handle.fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        raise _refuse(handle, "accepts flock() but does not lock")
    except OSError as error:
        raise _refuse(handle, f"has no flock ({error.strerror})") from error
    finally:
        os.close(other)


def _check_ctime(handle: StoreHandle, fd: int) -> None:
    os.utime(fd, (1, 1))
    before = os.fstat(fd).st_ctime_ns
    if before < 10**9 * 60:
        raise _refuse(handle, "lets utime() set the ctime")
    for _ in range(200):  # ctime advances by clock ticks (4 or 10 ms)
        time.sleep(0.01)
        os.fchmod(fd, 0o600)
        if os.fstat(fd).st_ctime_ns > before:
            return
    raise _refuse(handle, "does not renew the ctime on chmod")


def _check_unnamed(handle: StoreHandle) -> None:
    fd = durable.open_unnamed(handle.fd, layout.TEMP)
    name = f"{layout.TEMP}/.probe-{secrets.token_hex(8)}"
    try:
        durable.link_unnamed(fd, name, handle.fd)
    except OSError as error:
        raise _refuse(handle, f"cannot link an unnamed file ({error.strerror}); is /proc mounted?") from error
    finally:
        durable.close_unnamed(fd)
        _unlink_if_there(handle.fd, name)


def _unlink_if_there(directory_fd: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=directory_fd)
    except FileNotFoundError:
        return
