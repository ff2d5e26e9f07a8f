"""One look at the store: what is in a directory of ``Data/``, and is each file what its name says. Changes nothing.

A first look only raises suspicions. It is made while files come and go: what vanishes between the listing and the look
was moved to trash, or was never meant to stay, and is no suspicion.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from fsworker.model import EMPTY_HASH, is_hash
from fsworker.store import layout
from fsworker.store.handle import StoreHandle
from fsworker.verification.findings import Suspicion
from fsworker.verification.kindly import KindReader

_PAIR = re.compile(r"[0-9a-f]{2}\Z")
_LIKE_A_HASH = re.compile(r"[0-9a-fA-F]{30,}")
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_RIGHT_MODE = stat.S_IFREG | layout.FILE_MODE
_DIRECTORY_BITS = 0o1777
"""Setgid is not looked at: fsworker gives directories their group by itself, and the original knew no setgid."""


@dataclass(frozen=True)
class Expected:
    """What the inode of a stored file, and of a directory, must be. ``uid`` is ``None`` where every member may write."""

    gid: int
    uid: int | None
    directory_mode: int
    is_lenient: bool = False
    """Everything will do: a mirror is another user's, on another machine perhaps."""

    def file_problems(self, status: os.stat_result) -> list[tuple[str, str]]:
        """What is wrong with a stored file's inode: kinds, and what was found."""
        if self.is_lenient:
            return []
        problems = []
        if (mode := stat.S_IMODE(status.st_mode)) != layout.FILE_MODE:
            problems.append(("wrong-mode", f"{mode:04o}"))
        if status.st_gid != self.gid:
            problems.append(("wrong-group", f"gid {status.st_gid}, not {self.gid}"))
        if self.uid is not None and status.st_uid != self.uid:
            problems.append(("wrong-owner", f"uid {status.st_uid}, not {self.uid}"))
        return problems

    def directory_problems(self, status: os.stat_result) -> list[tuple[str, str]]:
        """What is wrong with a directory's inode."""
        if self.is_lenient:
            return []
        problems = []
        mode = stat.S_IMODE(status.st_mode)
        if (mode ^ self.directory_mode) & _DIRECTORY_BITS:
            problems.append(("directory-mode", f"{mode:04o}, not {self.directory_mode:04o}"))
        if status.st_gid != self.gid:
            problems.append(("directory-group", f"gid {status.st_gid}, not {self.gid}"))
        return problems


def expected_of(handle: StoreHandle) -> Expected:
    """What is to be expected in a store. Where only the worker writes, it is the owner of ``Data/``."""
    status = os.stat(layout.DATA, dir_fd=handle.fd)
    uid = status.st_uid if handle.modes is layout.WORKER_WRITES else None
    return Expected(handle.gid, uid, handle.modes.data)


LENIENT = Expected(-1, None, 0, is_lenient=True)


@dataclass
class Tally:
    """What a look went over, and its suspicions."""

    files: int = 0
    size_bytes: int = 0
    suspicions: list[Suspicion] = field(default_factory=list)


@dataclass(frozen=True)
class Listing:
    """What is in a directory of ``Data/``: names of the right form and type, and suspicions about all others."""

    names: Sequence[str]
    suspicions: Sequence[Suspicion]


class Judge:
    """Looks at a store, open as ``root_fd``. May be shared by threads, and by forked processes."""

    def __init__(self, root_fd: int, expected: Expected, reader: KindReader) -> None:
        self.root_fd = root_fd
        self.expected = expected
        self.reader = reader
        self._flags = _OPEN_FILE | os.O_NOATIME
        self._gid, self._uid = expected.gid, expected.uid
        self._right_directory = (stat.S_IFDIR | expected.directory_mode, expected.gid)

    def pairs(self) -> Listing:
        """``Data/``: its directories ``00`` … ``ff``, in order."""
        return self._list(layout.DATA, "")

    def seconds(self, pair: str) -> Listing:
        """``Data/da/``: its directories, in order. Empty when there is no such directory."""
        return self._list(f"{layout.DATA}/{pair}", pair)

    def names(self, pair: str, second: str) -> Listing:
        """``Data/da/39/``: its hashes, in order."""
        return self._list(f"{layout.DATA}/{pair}/{second}", pair + second)

    def judge_second(self, tally: Tally, pair: str, second: str) -> None:
        """Look at everything in ``Data/da/39/``, and count it into ``tally``."""
        directory = f"{layout.DATA}/{pair}/{second}"
        try:
            fd = os.open(directory, _OPEN_DIRECTORY, dir_fd=self.root_fd)
        except OSError as error:
            tally.suspicions += _unlisted(directory, error)
            return
        try:
            names, suspicions = self._look_into(fd, directory, pair + second)
            tally.suspicions += suspicions
            for name in names:
                self._judge_into(tally, fd, directory, name)
        except OSError as error:
            tally.suspicions += _unlisted(directory, error)
        finally:
            os.close(fd)

    def _list(self, path: str, prefix: str) -> Listing:
        try:
            with opened_directory(self.root_fd, path) as fd:
                return Listing(*self._look_into(fd, path, prefix))
        except OSError as error:
            return Listing((), _unlisted(path, error))

    def _look_into(self, fd: int, path: str, prefix: str) -> tuple[list[str], list[Suspicion]]:
        status = os.fstat(fd)
        suspicions = []
        if (status.st_mode, status.st_gid) != self._right_directory:
            problems = self.expected.directory_problems(status)
            suspicions = [Suspicion(path, kind, detail=detail) for kind, detail in problems]
        names = []
        with os.scandir(fd) as found:
            for entry in found:
                kind = _kind_of_entry(entry, prefix)
                if kind is None:
                    names.append(entry.name)
                else:
                    suspicions.append(Suspicion(f"{path}/{entry.name}", kind))
        names.sort()
        return names, suspicions

    def judge_names(self, pair: str, second: str, names: Sequence[str]) -> Tally:
        """Judge files of one directory."""
        directory = f"{layout.DATA}/{pair}/{second}"
        tally = Tally()
        try:
            with opened_directory(self.root_fd, directory) as fd:
                for name in names:
                    self._judge_into(tally, fd, directory, name)
        except (FileNotFoundError, NotADirectoryError):
            return tally
        return tally

    def judge_path(self, path: str) -> Tally:
        """Judge one stored file by its path relative to the store."""
        directory, _, name = path.rpartition("/")
        pair, second = directory.split("/")[1:]
        return self.judge_names(pair, second, [name])

    def _judge_into(self, tally: Tally, directory_fd: int, directory: str, name: str) -> None:
        try:
            try:
                fd = os.open(name, self._flags, dir_fd=directory_fd)
            except PermissionError:  # O_NOATIME is the owner's right
                fd = os.open(name, _OPEN_FILE, dir_fd=directory_fd)
        except OSError as error:
            self._cannot_open(tally, directory_fd, f"{directory}/{name}", error)
            return
        try:
            status = os.fstat(fd)
            problems: Sequence[tuple[str, str]] = ()
            if status.st_mode != _RIGHT_MODE or status.st_gid != self._gid or status.st_uid != self._uid:
                if not stat.S_ISREG(status.st_mode):
                    return  # replaced since it was listed
                problems = self.expected.file_problems(status)
            try:
                found = self.reader.sha1(fd, status.st_size)
            except OSError as error:
                if error.errno not in (errno.EIO, errno.EUCLEAN, errno.EBADMSG):
                    raise
                tally.suspicions.append(Suspicion(f"{directory}/{name}", "unreadable", detail=error.strerror or ""))
            else:
                if found != name:
                    is_empty = status.st_size == 0 and name != EMPTY_HASH
                    kind = "empty" if is_empty else "rotten"
                    tally.suspicions.append(Suspicion(f"{directory}/{name}", kind, found=found))
            for kind, detail in problems:
                tally.suspicions.append(Suspicion(f"{directory}/{name}", kind, detail=detail))
            tally.files += 1
            tally.size_bytes += status.st_size
        finally:
            os.close(fd)

    def _cannot_open(self, tally: Tally, directory_fd: int, path: str, error: OSError) -> None:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
            return  # gone, or replaced since it was listed: the next listing tells
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EIO, errno.EUCLEAN, errno.EBADMSG):
            raise error
        problems: list[tuple[str, str]] = []
        try:
            status = os.stat(path.rpartition("/")[2], dir_fd=directory_fd, follow_symlinks=False)
            problems = self.expected.file_problems(status)
        except FileNotFoundError:
            return
        except OSError:  # the inode itself cannot be read
            pass
        if error.errno not in (errno.EACCES, errno.EPERM) or not problems:
            problems = [("unreadable", error.strerror or "")]
        tally.suspicions += [Suspicion(path, kind, detail=detail) for kind, detail in problems]
        tally.files += 1


def _unlisted(path: str, error: OSError) -> list[Suspicion]:
    """What it means that a directory could not be listed; raises what is not the directory's fault."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
        return []  # gone; or a symbolic link, which the directory above has told
    if error.errno in (errno.EACCES, errno.EIO, errno.EUCLEAN, errno.EBADMSG):
        return [Suspicion(path, "unreadable-directory", detail=error.strerror or "")]
    raise error


def _kind_of_entry(entry: os.DirEntry[str], prefix: str) -> str | None:
    """What is wrong with a name in the directory of ``prefix`` (``""``, ``da`` or ``da39``); ``None``: nothing."""
    name = entry.name
    if entry.is_file(follow_symlinks=False):
        if len(prefix) == 4 and name.startswith(prefix) and is_hash(name):
            return None
        if is_hash(name):
            return "wrong-place"
        return "wrong-name" if _LIKE_A_HASH.search(name) else "stray-file"
    if entry.is_symlink():
        return "symlink"
    if entry.is_dir(follow_symlinks=False):
        return None if len(prefix) < 4 and _PAIR.match(name) else "stray-directory"
    return "special-file"


def clock_of(handle: StoreHandle) -> float:
    """The store's *now*; by this host's clock for who may only read, and cannot ask the filesystem."""
    try:
        return handle.recent_clock()
    except OSError:
        return time.time()


@contextmanager
def opened_directory(root_fd: int, path: str) -> Iterator[int]:
    """A directory below the store's root, open to look into. ``OSError``; a symbolic link is not followed."""
    fd = os.open(path, _OPEN_DIRECTORY, dir_fd=root_fd)
    try:
        yield fd
    finally:
        os.close(fd)
