"""An open store: its root descriptor, configuration, permission set-up and clock. What every store module works with.

All access is relative to one descriptor of the store's root, so that a store that is moved or re-mounted under a
running process is never half of one and half of the other.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import secrets
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ParamSpec, Self, TypeVar

from fsworker import durable
from fsworker.errors import ConfigError, StoreUnavailableError
from fsworker.store import layout
from fsworker.store.layout import StoreConfig
from fsworker.store.opening import detect_modes, open_root, read_config
from fsworker.store.owners import group_name, user_name

P = ParamSpec("P")
T = TypeVar("T")

_CONFIG_ERRNOS = frozenset({errno.EACCES, errno.EPERM})
_CLOCK_FRESH_S = 1.0

SYNC_FAILED_MARK = f"{layout.LOCK}/sync-failed"
"""Made when an ``fsync`` failed; a whole verification removes it."""

log = logging.getLogger(__name__)


class StoreHandle:
    """An open FileStruct database.

    ``root`` is the store's absolute path. ``grace_s`` is the store's grace, raised by the argument if that is larger.
    Opening creates nothing and needs only to read ``FileStruct.json``; raises :class:`ConfigError` when that fails.
    """

    def __init__(self, path: str | os.PathLike[str], *, grace_s: float | None = None) -> None:
        if not sys.platform.startswith("linux"):
            raise ConfigError(
                "fsworker stores work on Linux only: they need O_TMPFILE, openat2, flock and ctime as Linux has them"
            )
        self.root = Path(os.path.abspath(path))
        self._minimum_grace_s = grace_s or 0.0
        self.fd = open_root(self.root)
        try:
            self._load()
        except BaseException:
            self.close()
            raise
        self._clock: tuple[float, float] | None = None
        self._prepared = False

    def _load(self) -> None:
        self.config = read_config(self.fd, self.root)
        status = os.fstat(self.fd)
        self.gid = status.st_gid
        self.owner_uid = status.st_uid
        self.modes = detect_modes(self.fd, self.config)

    def reload(self) -> StoreConfig:
        """Read ``FileStruct.json`` again (an application may have been registered) and return it."""
        self.config = read_config(self.fd, self.root)
        return self.config

    @property
    def grace_s(self) -> float:
        """How long an unreferenced file is protected: the store's grace, or the caller's if that is longer."""
        return max(self.config.grace_s, self._minimum_grace_s)

    def close(self) -> None:
        """Release the root descriptor. The handle is unusable afterwards; closing twice is harmless."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __del__(self) -> None:
        # When the interpreter ends, modules may be gone before their objects; the kernel closes the descriptor then.
        if os is not None and getattr(self, "fd", -1) >= 0:
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def probe_clock(self) -> float:
        """The filesystem's *now*: the ctime of a file just made in the store (a network filesystem's clock counts)."""
        fd = durable.open_unnamed(self.fd, layout.TEMP)
        try:
            return os.fstat(fd).st_ctime
        finally:
            durable.close_unnamed(fd)

    def recent_clock(self) -> float:
        """:meth:`probe_clock`, asked at most once a second and extrapolated between: enough to debounce freshening."""
        now = time.monotonic()
        if self._clock is None or now - self._clock[0] > _CLOCK_FRESH_S:
            self._clock = (now, self.probe_clock())
        return self._clock[1] + (now - self._clock[0])

    def names_of(self, directory: str) -> list[str]:
        """What is in ``directory``, relative to the store. Nothing if there is no such directory, or a link in its place."""
        try:
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self.fd)
        except (FileNotFoundError, NotADirectoryError):
            return []
        try:
            return os.listdir(fd)
        finally:
            os.close(fd)

    def make_directory(self, name: str, mode: int) -> bool:
        """Make the directory ``name`` (relative to the store) with exactly ``mode`` and the store's group.

        Returns False, and changes nothing, when it exists. It appears whole: made aside, then renamed, so that neither
        a crash nor another process of the group ever meets it with the mode that the umask left. Not synced: see the
        callers.
        """
        aside = f"{layout.TEMP}/.{secrets.token_hex(16)}"
        try:
            self._make_bare_directory(aside, mode)
        except FileNotFoundError:
            if name != layout.TEMP:
                raise
            return self._make_in_place(name, mode)  # Temp itself
        try:
            durable.rename_new(aside, name, self.fd)
            return True
        except OSError as error:
            os.rmdir(aside, dir_fd=self.fd)
            if error.errno == errno.EEXIST:
                return False
            if error.errno not in (errno.EINVAL, errno.ENOSYS):
                raise
        return self._make_in_place(name, mode)

    def _make_in_place(self, name: str, mode: int) -> bool:
        try:
            self._make_bare_directory(name, mode)
        except FileExistsError:
            return False
        return True

    def _make_bare_directory(self, name: str, mode: int) -> None:
        os.mkdir(name, mode & 0o777, dir_fd=self.fd)
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self.fd)
        try:
            self.dress_directory(fd, mode)
        finally:
            os.close(fd)

    def dress_directory(self, fd: int, mode: int) -> None:
        """Give a directory the store's group and ``mode``, whatever the umask left of it; what is right already stays.

        Somebody else's directory is his to mend: nothing is done.
        """
        status = os.fstat(fd)
        if status.st_gid == self.gid and stat.S_IMODE(status.st_mode) == mode:
            return
        if os.geteuid() in (0, status.st_uid):
            if status.st_gid != self.gid:
                os.fchown(fd, -1, self.gid)
            os.fchmod(fd, mode)

    def ensure_directory(self, name: str, mode: int) -> None:
        """Make a top-level directory if it is missing, and see that its name is on disk."""
        if not self._exists(name):
            self.make_directory(name, mode)
        self.fsync(self.fd)

    def prepare(self) -> None:
        """Make the directories that writing needs and an original database, or a restored backup, may lack.

        Once for each handle; their names are on disk then, even if another process made them and died before its sync.
        """
        if self._prepared:
            return
        wanted = dict.fromkeys((layout.TEMP, layout.ERROR, layout.LOCK), self.modes.private)
        wanted |= dict.fromkeys((layout.DATA, layout.TRASH), self.modes.data)
        for name, mode in wanted.items():
            if not self._exists(name):
                self.make_directory(name, mode)
        self.fsync(self.fd)
        self._prepared = True

    def _exists(self, name: str) -> bool:
        try:
            os.close(os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.fd))
        except FileNotFoundError:
            return False
        return True

    def fsync(self, fd: int) -> None:
        """``fsync``; a failure marks the store for verification and is never retried (see :mod:`fsworker.durable`)."""
        with self._sync_failure_marks():
            os.fsync(fd)

    def fsync_directory(self, name: str) -> None:
        """:meth:`fsync` of the directory ``name``, relative to the store."""
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.fd)
        try:
            self.fsync(fd)
        finally:
            os.close(fd)

    def syncfs(self) -> None:
        """Sync the whole filesystem of the store, with the same rule for failures."""
        with self._sync_failure_marks():
            durable.syncfs(self.fd)

    @contextmanager
    def _sync_failure_marks(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # What reached the disk is unknown now, for this file and for others that were written back at the same
            # time: verification has to look. The mark itself cannot be relied on (this disk is failing), so try.
            with suppress(OSError):
                flags = os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC  # truncating renews its time
                os.close(os.open(SYNC_FAILED_MARK, flags, 0o600, dir_fd=self.fd))
            message = "fsync failed in %s (%s): the operation fails, the store is marked for verification"
            log.error(message, self.root, error)  # noqa: TRY400 - the caller raises
            raise

    @contextmanager
    def errors(self, doing: str) -> Iterator[None]:
        """Turn ``OSError`` into what its receiver has to do: try later, or mend a permission."""
        try:
            yield
        except OSError as error:
            raise explain(error, doing, self) from error


class SourceError(Exception):
    """Carries an ``OSError`` of the caller's own stream past the translation; the caller gets it as it was."""

    def __init__(self, error: OSError) -> None:
        self.error = error


def translated(doing: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a method of a :class:`StoreHandle` subclass with :meth:`StoreHandle.errors`."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return function(*args, **kwargs)
            except SourceError as wrapped:
                raise wrapped.error from None
            except OSError as error:
                handle = args[0]
                if not isinstance(handle, StoreHandle):
                    raise
                raise explain(error, doing, handle) from error

        return wrapper

    return decorate


def explain(error: OSError, doing: str, handle: StoreHandle) -> Exception:
    """The fsworker error for an ``OSError`` met while ``doing`` something with a store."""
    reason = error.strerror or str(error)
    if error.errno in _CONFIG_ERRNOS:
        return ConfigError(
            f"{doing} in {handle.root}: {reason}. This process runs as {user_name(os.geteuid())}; the store belongs to "
            f"{user_name(handle.owner_uid)}, and {_who_writes(handle)}. Run as that user, or mend the modes "
            f"('fsworker doctor' names them)"
        )
    if error.errno == errno.EXDEV:
        return ConfigError(
            f"{doing} in {handle.root}: {reason}. Data, Temp, Error, Trash and Spool must be on one filesystem"
        )
    return StoreUnavailableError(
        f"{doing} in {handle.root}: {reason}. Nothing was acknowledged; free the cause and try again"
    )


def _who_writes(handle: StoreHandle) -> str:
    if handle.modes is not layout.WORKER_WRITES:
        return f"members of group {group_name(handle.gid)} write to it"
    return "only that user writes to it"
