"""``openat2(2)``: open a name below a directory without ever leaving it, whatever happens to the path meanwhile.

A check of a path followed by an open of it is a race that an application can win by swapping a directory for a symbolic
link. With ``RESOLVE_BENEATH`` and ``RESOLVE_NO_SYMLINKS`` the kernel does both in one step (Linux 5.6).
"""

from __future__ import annotations

import ctypes
import errno
import os

_SYS_OPENAT2 = 437  # the same on every architecture: new system calls have had one number since 5.1
_RESOLVE_NO_XDEV = 0x01
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08

_libc = ctypes.CDLL(None, use_errno=True)
_unavailable = frozenset({errno.ENOSYS, errno.EPERM})  # an old kernel; a container's seccomp filter


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_beneath(directory_fd: int, name: str) -> int:
    """Open ``name``, one component in the directory ``directory_fd``, for reading; never blocks, never follows a link.

    Raises ``OSError``: ``ELOOP`` for a symbolic link, ``EXDEV`` for what would leave the directory or its filesystem.
    Where the call is missing, the single component below a held descriptor is opened with ``O_NOFOLLOW``: there is
    nothing in between that could be swapped.
    """
    if "/" in name or "\0" in name or name in ("", ".", ".."):
        raise OSError(errno.EXDEV, "not a name in this directory", name)
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    how = _OpenHow(flags, 0, _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS | _RESOLVE_NO_XDEV)
    fd = int(
        _libc.syscall(
            _SYS_OPENAT2, directory_fd, os.fsencode(name), ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how))
        )
    )
    if fd >= 0:
        return fd
    code = ctypes.get_errno()
    if code in _unavailable:
        return os.open(name, flags, dir_fd=directory_fd)
    raise OSError(code, os.strerror(code), name)
