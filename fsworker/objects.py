"""The store of immutable contents: put, look up, freshen.

Theory of operation. A put makes a *candidate*: the content, its hash, and (when needed) an unnamed synced file of it.
Then, until one of them succeeds:

* the name is taken: freshen the stored file under the shared shard lock, so that no collection may take it from here
  on, then compare the bytes. Equal: a duplicate. Different: :mod:`fsworker.heal` decides between rot and a collision;
* the name is free: link the candidate under the shared shard lock. Whoever loses that race starts again.

A name is only ever created by ``link`` (whole or not at all) or replaced by ``rename`` with the same content, so a
reader never sees a name absent, short or wrong. The hash is returned when the data, and every directory entry that leads
to it, are on disk.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fsworker import durable, heal, layout
from fsworker.durable import Reader
from fsworker.errors import ConfigError, NotStoredError, StoreUnavailableError, UploadRejectedError
from fsworker.handle import StoreHandle, translated
from fsworker.locks import shard_lock
from fsworker.model import Hash, is_hash, parse_hash

INTERNAL_LOCATION = "/FileStruct/Data"
DURABILITIES = ("full", "batch", "none")

_MAX_RACES = 100
"""Races lost in a row before we give up. Each needs a collection to take, and an ingest to bring back, the same file."""


@dataclass(frozen=True)
class Stored:
    """What a put did: the content's hash and size, and whether it was there before."""

    hash: Hash
    size_bytes: int
    duplicate: bool


class Candidate:
    """Content on its way into the store: in memory (``data``) until it needs a file, or in an unnamed file (``fd``)."""

    def __init__(self, name: Hash, size_bytes: int, *, data: bytes | None = None, fd: int | None = None) -> None:
        self.hash = name
        self.size_bytes = size_bytes
        self.data = data
        self.fd = fd

    def equals(self, stored_fd: int) -> bool:
        """Compare with a stored file, byte by byte."""
        if self.data is not None:
            return durable.equals(stored_fd, self.data)
        assert self.fd is not None
        return durable.same_bytes(self.fd, stored_fd)

    def close(self) -> None:
        """Drop the unnamed file, if there is one."""
        if self.fd is not None:
            durable.close_unnamed(self.fd)
            self.fd = None


class ObjectStore(StoreHandle):
    """The contents of a store.

    ``durability`` is ``full`` (a put returns when everything is on disk), ``batch`` (the same, but puts inside
    :meth:`fsworker.batch.Batch` share two ``syncfs``) or ``none`` (a power cut may lose or empty recent files).
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durability: str = "full",
        grace_s: float | None = None,
        internal_location: str = INTERNAL_LOCATION,
    ) -> None:
        if durability not in DURABILITIES:
            raise ConfigError(f"durability {durability!r} is not one of {', '.join(DURABILITIES)}")
        super().__init__(path, grace_s=grace_s)
        self.durability = durability
        self.internal_location = internal_location
        self._durable_shards = bytearray(1 << 16)  # 1 for a shard directory whose own name we know to be on disk

    # -- reading ---------------------------------------------------------------------------------------------------

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            raise TypeError(f"a hash is a str, not {type(name).__name__}")
        return is_hash(name) and self.status(Hash(name)) is not None

    def status(self, name: Hash) -> os.stat_result | None:
        """``stat`` of a stored file, or ``None`` when there is no regular file of that name."""
        try:
            status = os.stat(layout.data_name(name), dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return status if stat.S_ISREG(status.st_mode) else None

    def location(self, name: Hash) -> Path:
        """Where a hash lies, or would lie. No I/O."""
        return self.path / layout.data_name(name)

    @translated("Reading")
    def open_descriptor(self, name: Hash) -> int:
        """Open a stored file for reading. Raises :class:`NotStoredError` when it is absent."""
        fd = self._try_open(name)
        if fd is None:
            raise NotStoredError(f"{name} is not in the store {self.path}")
        return fd

    def path_of(self, text: str) -> Path:
        """The path of a stored file. Raises :class:`InvalidHashError`, or :class:`NotStoredError` when it is absent."""
        name = parse_hash(text)
        if self.status(name) is None:
            raise NotStoredError(f"{name} is not in the store {self.path}")
        return self.location(name)

    def open_file(self, text: str) -> BinaryIO:
        """A stored file, open for reading. Errors as :meth:`path_of`."""
        return os.fdopen(self.open_descriptor(parse_hash(text)), "rb")

    def internal_uri(self, text: str) -> str:
        """What to send as ``X-Accel-Redirect``: ``/FileStruct/Data/da/39/da39…``. Raises :class:`InvalidHashError`. No I/O."""
        name = parse_hash(text)
        return f"{self.internal_location}/{layout.shard(name)}/{name}"

    def shards(self) -> Iterator[str]:
        """The first-level directories that exist, in order: ``00`` … ``ff``."""
        yield from (n for n in sorted(self._list(layout.DATA)) if _is_pair(n))

    def names_in(self, pair: str) -> Iterator[Hash]:
        """The hashes in one first-level directory, in order; other names are left to verification."""
        for second in sorted(self._list(f"{layout.DATA}/{pair}")):
            if _is_pair(second):
                prefix = pair + second
                for name in sorted(self._list(f"{layout.DATA}/{pair}/{second}")):
                    if is_hash(name) and name.startswith(prefix):
                        yield Hash(name)

    def __iter__(self) -> Iterator[Hash]:
        for pair in self.shards():
            yield from self.names_in(pair)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __bool__(self) -> bool:
        return True  # an empty store is still a store

    def _list(self, name: str) -> list[str]:
        try:
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self.fd)
        except (FileNotFoundError, NotADirectoryError):
            return []
        try:
            return os.listdir(fd)
        finally:
            os.close(fd)

    def _try_open(self, name: Hash) -> int | None:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            return os.open(layout.data_name(name), flags, dir_fd=self.fd)
        except FileNotFoundError:
            return None

    # -- writing ---------------------------------------------------------------------------------------------------

    @translated("Storing")
    def put(self, data: bytes) -> Stored:
        """Store ``data``. On any error nothing is stored under this name that was not there before."""
        return self._finish(
            Candidate(Hash(hashlib.sha1(data, usedforsecurity=False).hexdigest()), len(data), data=data)
        )

    @translated("Storing")
    def put_reader(self, stream: Reader, max_bytes: int | None = None) -> Stored:
        """Store what ``stream`` yields, from where it stands, in one pass. The stream is neither closed nor rewound.

        Raises :class:`UploadRejectedError` past ``max_bytes``.
        """
        return self._finish(self.stage(durable.reader_into(stream), max_bytes))

    @translated("Storing")
    def put_descriptor(
        self, fd: int, max_bytes: int | None = None, progress: Callable[[int], None] | None = None
    ) -> Stored:
        """Store what is read from ``fd``, from its position on. Errors as :meth:`put_reader`."""
        return self._finish(self.stage(durable.descriptor_into(fd), max_bytes, progress))

    def put_path(self, path: str | os.PathLike[str]) -> Stored:
        """Store a copy of the file at ``path``, which stays as it is.

        ``FileNotFoundError`` and the like of ``path`` itself are raised as they are.
        """
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return self.put_descriptor(fd)
        finally:
            os.close(fd)

    def stage(
        self,
        read_into: Callable[[memoryview], int],
        max_bytes: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Candidate:
        """Read content to its end. What fits one buffer stays in memory; more goes to an unnamed file at once."""
        room = durable.buffer()
        filled = 0
        while filled < len(room):
            count = read_into(room[filled:])
            if not count:
                if max_bytes is not None and filled > max_bytes:
                    raise _too_large(max_bytes)
                data = bytes(room[:filled])
                return Candidate(Hash(hashlib.sha1(data, usedforsecurity=False).hexdigest()), filled, data=data)
            filled += count
        fd = durable.open_unnamed(self.fd, layout.TEMP)
        try:
            copied = durable.copy_hashed(read_into, fd, max_bytes, progress, filled)
        except durable.TooLargeError:
            durable.close_unnamed(fd)
            raise _too_large(max_bytes) from None
        except BaseException:
            durable.close_unnamed(fd)
            raise
        return Candidate(Hash(copied.sha1), copied.size_bytes, fd=fd)

    def _finish(self, candidate: Candidate) -> Stored:
        try:
            return self.insert(candidate, sync=self.durability != "none")
        finally:
            candidate.close()

    def insert(self, candidate: Candidate, *, sync: bool) -> Stored:
        """Bring a candidate into the store (see the module's theory of operation). Does not close it.

        With ``sync`` everything that leads to the content is on disk on return. Raises ``OSError``,
        :class:`HashCollisionError`, :class:`StoreUnavailableError`.
        """
        for _ in range(_MAX_RACES):
            verdict = self.try_duplicate(candidate, sync=sync)
            if verdict is not None:
                return Stored(candidate.hash, candidate.size_bytes, verdict)
            self.materialise(candidate, sync=sync)
            if self._publish(candidate, sync=sync):
                return Stored(candidate.hash, candidate.size_bytes, duplicate=False)
        raise StoreUnavailableError(
            f"{candidate.hash} appeared and vanished {_MAX_RACES} times in {self.path}; try again"
        )

    def try_duplicate(self, candidate: Candidate, *, sync: bool) -> bool | None:
        """Try to serve a candidate by the stored file of its name.

        True: it is stored already, and fresh. False: the stored file was rotten and has been replaced. ``None``: there
        is none (any more).
        """
        stored_fd = self._try_open(candidate.hash)
        if stored_fd is None:
            return None
        try:
            if not self.freshen_descriptor(candidate.hash, stored_fd):
                return None
            if _same(candidate, stored_fd):
                if sync:  # its first writer may have died before its own fsync
                    self.fsync(stored_fd)
                    self.sync_shard(candidate.hash)
                return True
            self.materialise(candidate, sync=sync)
            assert candidate.fd is not None
            return False if heal.replace_rotten(self, candidate.hash, stored_fd, candidate.fd) else None
        finally:
            os.close(stored_fd)

    def materialise(self, candidate: Candidate, *, sync: bool) -> None:
        """Give the candidate its unnamed file, with the mode and group of a stored one, synced if asked."""
        if candidate.fd is None:
            assert candidate.data is not None
            candidate.fd = durable.open_unnamed(self.fd, layout.TEMP)
            durable.write_all(candidate.fd, candidate.data)
        status = os.fstat(candidate.fd)
        if status.st_gid != self.gid:
            os.fchown(candidate.fd, -1, self.gid)
        if stat.S_IMODE(status.st_mode) != layout.FILE_MODE:
            os.fchmod(candidate.fd, layout.FILE_MODE)
        if sync:
            self.fsync(candidate.fd)

    def _publish(self, candidate: Candidate, *, sync: bool) -> bool:
        """Link the candidate under its name. False when that name is taken."""
        assert candidate.fd is not None
        shard_fd = self.open_shard(candidate.hash)
        try:
            with shard_lock(self.fd, candidate.hash, self.modes.lock_file):
                try:
                    durable.link_unnamed(candidate.fd, candidate.hash, shard_fd)
                except FileExistsError:
                    return False
            if sync:
                self.sync_shard(candidate.hash, shard_fd)
            return True
        finally:
            os.close(shard_fd)

    def open_shard(self, name: Hash) -> int:
        """Open the directory of a hash, making it if need be. The caller syncs."""
        directory = f"{layout.DATA}/{layout.shard(name)}"
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            return os.open(directory, flags, dir_fd=self.fd)
        except FileNotFoundError:
            self._durable_shards[int(name[:4], 16)] = 0
            self.make_directory(f"{layout.DATA}/{name[:2]}", self.modes.data)
            self.make_directory(directory, self.modes.data)
            return os.open(directory, flags, dir_fd=self.fd)

    def sync_shard(self, name: Hash, shard_fd: int | None = None) -> None:
        """Sync the directory of a hash, and those above it unless this process has done so before.

        Another process may have made them and died before its own sync, so "it exists" is not "it is on disk".
        """
        directory = f"{layout.DATA}/{layout.shard(name)}"
        fd = (
            os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.fd)
            if shard_fd is None
            else shard_fd
        )
        try:
            self.fsync(fd)
        finally:
            if shard_fd is None:
                os.close(fd)
        index = int(name[:4], 16)
        if not self._durable_shards[index]:
            for parent in (f"{layout.DATA}/{name[:2]}", layout.DATA):
                self.fsync_directory(parent)
            self._durable_shards[index] = 1

    def mark_durable(self, name: Hash) -> None:
        """Note that the directories of a hash have been synced (by a ``syncfs``)."""
        self._durable_shards[int(name[:4], 16)] = 1

    # -- age -------------------------------------------------------------------------------------------------------

    @translated("Freshening")
    def freshen(self, name: Hash) -> bool:
        """Make a stored file young again, so that no collection takes it within the grace. False when it is absent."""
        fd = self._try_open(name)
        if fd is None:
            return False
        try:
            if not self.freshen_descriptor(name, fd):
                return self.status(name) is not None and self.freshen(name)
            if self.durability != "none":
                self.fsync(fd)
            return True
        finally:
            os.close(fd)

    def freshen_descriptor(self, name: Hash, fd: int) -> bool:
        """Freshen the stored file open as ``fd``. False when it no longer is the file of that name.

        Age is the ctime; ``fchmod`` to the mode it has renews it and leaves mtime alone (rsync does not send the file
        again). Skipped when the file is younger than an eighth of the grace. Where the caller does not own the file,
        :mod:`fsworker.heal` puts the caller's verified copy in its place.
        """
        with shard_lock(self.fd, name, self.modes.lock_file):
            current = self.status(name)
            mine = os.fstat(fd)
            if current is None or (current.st_ino, current.st_dev) != (mine.st_ino, mine.st_dev):
                return False
            if 0 <= self.recent_clock() - mine.st_ctime < self.grace_s / 8:
                return True
            try:
                os.fchmod(fd, stat.S_IMODE(mine.st_mode))
            except PermissionError:
                heal.replace_by_own_copy(self, name, fd)
            return True


def _same(candidate: Candidate, stored_fd: int) -> bool:
    """Equal bytes? A stored file that cannot be read (``EIO``) counts as different: healing keeps its inode."""
    try:
        return candidate.equals(stored_fd)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return False


def _too_large(max_bytes: int | None) -> UploadRejectedError:
    return UploadRejectedError(f"more than the {max_bytes:,} bytes allowed; send less, or have max_bytes raised")


def _is_pair(name: str) -> bool:
    return len(name) == 2 and all(c in "0123456789abcdef" for c in name)
