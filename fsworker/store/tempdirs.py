"""Temp directories: work on files inside the store's filesystem, keep the result, leave nothing behind.

``Temp/<stamp>/`` is deleted when its ``with`` block is left normally, and moved whole to ``Error/`` when it is left by
an exception (with ``Python-Exception.txt`` beside the files) or when ``retain`` is set. While it is in use its
directory is locked (``flock``, shared), so that the sweep can tell a long operation from what a dead process left.

A file that was made in a temp directory is **moved** into the store, not copied, but only if nobody can change it any
more: one link, and a read lease (``F_SETLEASE``), which the kernel grants only while no writer has the file open or
mapped, and which makes a later one wait (fcntl(2)). Whatever is not provably ours alone is copied.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import signal
import stat
import traceback
from pathlib import Path
from types import TracebackType
from typing import Self

from fsworker import copying, durable
from fsworker.model import Hash, shorten
from fsworker.store import layout
from fsworker.store.handle import explain, log
from fsworker.store.objects import ObjectStore, Stored

EXCEPTION_FILE = "Python-Exception.txt"
_NAME = re.compile(r"[a-zA-Z0-9_.+-]{1,255}\Z")
_NO_LEASE = frozenset({errno.EAGAIN, errno.EINVAL, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM})


def check_temp_name(name: object) -> str:
    """Return ``name`` if a file in a temp directory may have it.

    Raises ``ValueError`` for a name outside ``[a-zA-Z0-9_.+-]{1,255}``, ``TypeError`` for what is no ``str``.
    """
    if not isinstance(name, str):
        raise TypeError(f"a file name is a str, not {type(name).__name__}")
    if not _NAME.match(name) or name in (".", ".."):
        raise ValueError(f"{shorten(name)} cannot name a file here: use 1 to 255 of a-z, A-Z, 0-9, '_', '.', '+', '-'")
    return name


class BaseTempDir:
    """A temp directory of a store; a context manager. See the module's docstring for what becomes of it."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self.retain = False
        self.name = layout.stamp()
        self._lock_fd = -1

    @property
    def directory(self) -> Path:
        """Where it is; there only inside the ``with`` block."""
        return self.store.root / layout.TEMP / self.name

    def __enter__(self) -> Self:
        store = self.store
        try:
            store.prepare()
            while not store.make_directory(f"{layout.TEMP}/{self.name}", store.modes.private):
                self.name = layout.stamp()
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            self._lock_fd = os.open(f"{layout.TEMP}/{self.name}", flags, dir_fd=store.fd)
            fcntl.flock(self._lock_fd, fcntl.LOCK_SH)
        except OSError as error:
            self._unlock()
            raise explain(error, "Making a temp directory", store) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None and not self.retain:
                shutil.rmtree(self.directory)
            else:
                self._keep(error)
        except OSError as problem:
            if error is None:
                raise explain(problem, "Leaving a temp directory", self.store) from problem
            log.error("%s could not be moved to Error/ (%s); it stays where it is", self.directory, problem)
        finally:
            self._unlock()

    def _keep(self, error: BaseException | None) -> None:
        if error is not None:
            self._write_exception(error)
        source, target = f"{layout.TEMP}/{self.name}", f"{layout.ERROR}/{self.name}"
        os.rename(source, target, src_dir_fd=self.store.fd, dst_dir_fd=self.store.fd)

    def _write_exception(self, error: BaseException) -> None:
        text = "".join(traceback.format_exception(error)).encode("utf-8", "backslashreplace")
        # By rename: the name may be a link to a stored file, which must not be written through.
        mode = layout.FILE_MODE | stat.S_IWUSR
        durable.replace_small_file(EXCEPTION_FILE, text, self._lock_fd, mode, sync=False)

    def _unlock(self) -> None:
        if self._lock_fd >= 0:
            fcntl.flock(self._lock_fd, fcntl.LOCK_UN)  # by name: a forked child may have a copy of the descriptor
            os.close(self._lock_fd)
            self._lock_fd = -1

    def path(self, name: str) -> Path:
        """The path of a file in this directory. ``ValueError`` for a name outside ``[a-zA-Z0-9_.+-]{1,255}``."""
        return self.directory / check_temp_name(name)

    def put_in(self, name: str) -> Stored:
        """Move a file of this directory into the store and return what it became.

        A symbolic link is followed (FileStruct's ``Link`` makes one) and removed. On an error the file is still here.
        Raises ``FileNotFoundError``, ``ValueError`` for what is no regular file.
        """
        store = self.store
        relative = f"{layout.TEMP}/{self.name}/{check_temp_name(name)}"
        fd = os.open(relative, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=store.fd)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError(f"{name} is not a regular file")
            stored = self._move(fd) if _is_ours_alone(fd, status) else None
            if stored is None:
                stored = store.put_descriptor(fd)
            os.unlink(relative, dir_fd=store.fd)
        except OSError as error:
            raise explain(error, f"Storing {name}", store) from error
        finally:
            os.close(fd)  # ends the lease
        return stored

    def _move(self, fd: int) -> Stored | None:
        """Publish the leased file ``fd`` under its hash. ``None`` when that is taken: the put compares and freshens."""
        store = self.store
        sync = store.durability != "none"
        copied = copying.hash_descriptor(fd)
        name = Hash(copied.sha1)
        if store.status(name) is not None:
            return None
        store.dress(fd)
        if sync:
            store.fsync(fd)
        if not store.publish(name, fd, sync=sync):  # links by descriptor: what was hashed
            return None
        return Stored(name, copied.size_bytes, duplicate=False)


def _is_ours_alone(fd: int, status: os.stat_result) -> bool:
    """One link, our own, and no writer: the lease is granted only then. It lasts until ``fd`` is closed."""
    if status.st_nlink != 1 or status.st_uid != os.geteuid():
        return False
    try:
        # A lease break sends SIGIO, which kills by default; SIGURG is ignored by default.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        if error.errno in _NO_LEASE:
            return False
        raise
    return os.fstat(fd).st_nlink == 1


# -- leftovers ---------------------------------------------------------------------------------------------------------

LEFTOVER_AGE_S = 24 * 3600.0
"""Younger things in ``Temp/`` are left alone: the original FileStruct's processes do not lock their directories."""


def sweep_leftovers(store: ObjectStore, min_age_s: float = LEFTOVER_AGE_S) -> list[str]:
    """Clear what dead processes left, and return the names (relative to the store).

    Dotted files and directories are ours, unfinished: deleted. A temp directory that nobody has locked goes to
    ``Error/``, as if its block had been left by an exception; an empty one is deleted. Other names are left to
    verification. What cannot be cleared (another user's, say) is logged, and stops nothing else.
    """
    now_s = store.probe_clock()
    swept, stuck = [], 0
    for directory in (".", layout.LOCK, layout.TEMP):
        for name in sorted(os.listdir(store.root / directory)):
            relative = name if directory == "." else f"{directory}/{name}"
            try:
                status = os.stat(relative, dir_fd=store.fd, follow_symlinks=False)
                if now_s - status.st_ctime >= min_age_s and _clear(store, directory, name, status):
                    swept.append(relative)
            except FileNotFoundError:  # by somebody else, meanwhile
                continue
            except OSError as error:
                stuck += 1
                if stuck == 1:  # there may be thousands, and this comes every minute
                    log.warning("%s, left by a dead process, cannot be cleared: %s", ascii(relative), error.strerror)
    return swept


def _clear(store: ObjectStore, directory: str, name: str, status: os.stat_result) -> bool:
    relative = f"{directory}/{name}"
    if name.startswith(".") and (directory == layout.TEMP or name.endswith(".new")):
        if stat.S_ISDIR(status.st_mode):
            os.rmdir(relative, dir_fd=store.fd)
        else:
            os.unlink(relative, dir_fd=store.fd)
        return True
    if directory == layout.TEMP and layout.is_stamp(name) and stat.S_ISDIR(status.st_mode):
        return _retire(store, name)
    return False


def _retire(store: ObjectStore, name: str) -> bool:
    """Move a temp directory to ``Error/``, or delete it when it is empty. False when it is in use."""
    fd = os.open(f"{layout.TEMP}/{name}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=store.fd)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if os.listdir(fd):
            os.rename(f"{layout.TEMP}/{name}", f"{layout.ERROR}/{name}", src_dir_fd=store.fd, dst_dir_fd=store.fd)
        else:
            os.rmdir(f"{layout.TEMP}/{name}", dir_fd=store.fd)
        fcntl.flock(fd, fcntl.LOCK_UN)
        return True
    finally:
        os.close(fd)
