"""Temp directories: work on files inside the store's filesystem, keep the result, leave nothing behind.

``Temp/<stamp>/`` is deleted when its ``with`` block is left normally, and moved whole to ``Error/`` when it is left by an
exception (with ``Python-Exception.txt`` beside the files) or when ``retain`` is set.

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

from fsworker import durable, layout
from fsworker.handle import explain, log
from fsworker.locks import shard_lock
from fsworker.model import Hash, shorten
from fsworker.objects import ObjectStore, Stored

EXCEPTION_FILE = "Python-Exception.txt"
_NAME = re.compile(r"[a-zA-Z0-9_.+-]{1,255}\Z")


def check_temp_name(name: object) -> str:
    """Return ``name`` if a file in a temp directory may have it, else raise ``ValueError`` (``TypeError`` for no ``str``)."""
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
        self.name = ""

    @property
    def directory(self) -> Path:
        """Where it is; only valid inside the ``with`` block."""
        return self.store.path / layout.TEMP / self.name

    def __enter__(self) -> BaseTempDir:
        store = self.store
        try:
            while not self.name:
                name = layout.stamp()
                if store.make_directory(f"{layout.TEMP}/{name}", store.modes.private):
                    self.name = name
        except OSError as error:
            raise explain(error, "Making a temp directory", store) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and not self.retain:
            shutil.rmtree(self.directory)
            return
        try:
            if error is not None:
                text = "".join(traceback.format_exception(kind, error, trace))
                (self.directory / EXCEPTION_FILE).write_text(text, encoding="utf-8", errors="backslashreplace")
            self.store.ensure_directory(layout.ERROR, self.store.modes.private)
            target = f"{layout.ERROR}/{self.name}"
            os.rename(f"{layout.TEMP}/{self.name}", target, src_dir_fd=self.store.fd, dst_dir_fd=self.store.fd)
        except OSError as problem:
            if error is None:
                raise explain(problem, "Keeping a temp directory", self.store) from problem
            log.error("%s could not be moved to Error/ (%s); it stays where it is", self.directory, problem)  # noqa: TRY400

    def path(self, name: str) -> Path:
        """The path of a file in this directory. ``ValueError`` for a name outside ``[a-zA-Z0-9_.+-]{1,255}``."""
        return self.directory / check_temp_name(name)

    def put_in(self, name: str) -> Stored:
        """Move a file of this directory into the store and return what it became.

        On an error the file is still here. Raises ``FileNotFoundError``, ``ValueError`` for what is no regular file.
        """
        check_temp_name(name)
        store = self.store
        relative = f"{layout.TEMP}/{self.name}/{name}"
        fd = os.open(
            relative,
            os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | _nofollow_unless_link(store, relative),
            dir_fd=store.fd,
        )
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError(f"{name} is not a regular file")
            stored = self._move(relative, fd) if _is_ours_alone(fd, status) else None
            if stored is None:
                os.lseek(fd, 0, os.SEEK_SET)
                stored = store.put_descriptor(fd)
            os.unlink(relative, dir_fd=store.fd)
        except OSError as error:
            raise explain(error, f"Storing {name}", store) from error
        finally:
            os.close(fd)  # ends the lease
        return stored

    def _move(self, relative: str, fd: int) -> Stored | None:
        """Publish the leased file ``fd`` under its hash, or report the duplicate. ``None``: it has to be copied."""
        store = self.store
        sync = store.durability != "none"
        copied = durable.hash_descriptor(fd)
        name = Hash(copied.sha1)
        if store.status(name) is not None:
            return None  # the put compares the bytes, and freshens
        if os.fstat(fd).st_gid != store.gid:
            os.fchown(fd, -1, store.gid)
        os.fchmod(fd, layout.FILE_MODE)
        if sync:
            store.fsync(fd)
        shard_fd = store.open_shard(name)
        try:
            with shard_lock(store.fd, name, store.modes.lock_file):
                try:
                    durable.link_unnamed(fd, name, shard_fd)  # by descriptor: what was hashed
                except FileExistsError:
                    return None
            if sync:
                store.sync_shard(name, shard_fd)
        finally:
            os.close(shard_fd)
        return Stored(name, copied.size_bytes, duplicate=False)


def _nofollow_unless_link(store: ObjectStore, relative: str) -> int:
    """``O_NOFOLLOW``, but a symbolic link into ``Data/`` (FileStruct's ``Link``) may be saved again."""
    try:
        target = os.readlink(relative, dir_fd=store.fd)
    except OSError:
        return os.O_NOFOLLOW
    return 0 if os.path.abspath(target).startswith(f"{store.path}/{layout.DATA}/") else os.O_NOFOLLOW


def _is_ours_alone(fd: int, status: os.stat_result) -> bool:
    """One link, our own, and no writer: the lease is granted only then. It lasts until ``fd`` is closed."""
    if status.st_nlink != 1 or status.st_uid != os.geteuid():
        return False
    try:
        # A lease break sends SIGIO, which kills by default; SIGURG is ignored by default.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EINVAL, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
            return False
        raise
    return os.fstat(fd).st_nlink == 1
