"""The store of immutable contents: put and freshen.

Theory of operation. A put makes a *candidate*: the content, its hash, and (when needed) an unnamed synced file of it.
Then, until one of them succeeds:

* the name is taken: freshen the stored file under the shared shard lock, so that no collection may take it from here
  on, then compare the bytes. Equal: a duplicate. Different: :mod:`fsworker.store.heal` decides between rot and a collision.
  A file that is young enough as it is needs no lock: it is in its place, and no cutoff reaches it;
* the name is free: link the candidate under the shared shard lock. Whoever loses that race starts again.

A name is only ever created by ``link`` (whole or not at all) or replaced by ``rename`` with the same content, so a
reader never sees a name absent, short or wrong. The hash is returned when the data, and every directory entry that
leads to it, are on disk.

A put does not look into ``Trash/``: it has the bytes in hand, and a copy in trash beside the new one harms nobody.
Whoever has only a hash does (:mod:`fsworker.store.trash`).
"""

from __future__ import annotations

import enum
import errno
import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from fsworker import copying, durable
from fsworker.copying import Reader
from fsworker.errors import ConfigError, StoreUnavailableError
from fsworker.model import Hash
from fsworker.store import heal
from fsworker.store.handle import translated
from fsworker.store.locks import shard_lock
from fsworker.store.reading import INTERNAL_LOCATION
from fsworker.store.shards import ShardDirectories
from fsworker.store.staging import Candidate, candidate_of, of_source, open_source

DURABILITIES = ("full", "batch", "none")

_MAX_RACES = 100
"""Races lost in a row before we give up. Each needs a collection to take, and an ingest to bring back, one file."""


class Stored(NamedTuple):
    """What a put did: the content's hash and size, and whether it was there before."""

    hash: Hash
    size_bytes: int
    duplicate: bool


class Touch(enum.Enum):
    """What came of an attempt to freshen a stored file."""

    FRESH = enum.auto()
    GONE = enum.auto()  # the descriptor is no longer the file of that name
    FOREIGN = enum.auto()  # it belongs to another user and is due: only a copy of one's own can be fresh


class ObjectStore(ShardDirectories):
    """The contents of a store.

    ``durability`` is ``full`` (a put returns when everything is on disk), ``batch`` (the same, but puts inside
    :meth:`fsworker.store.batch.Batch` share two ``syncfs``) or ``none`` (a power cut may lose or empty recent files).
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

    # -- writing ---------------------------------------------------------------------------------------------------

    @translated("Storing")
    def put(self, data: bytes) -> Stored:
        """Store ``data``. On any error nothing is stored under this name that was not there before."""
        return self._finish(candidate_of(data))

    @translated("Storing")
    def put_reader(self, stream: Reader, max_bytes: int | None = None) -> Stored:
        """Store what ``stream`` yields, from where it stands, in one pass. The stream is neither closed nor rewound.

        Raises :class:`UploadRejectedError` past ``max_bytes``; errors of the stream itself are raised as they are.
        """
        return self._finish(self.stage(of_source(copying.reader_into(stream)), max_bytes))

    @translated("Storing")
    def put_descriptor(
        self, fd: int, max_bytes: int | None = None, progress: Callable[[int], None] | None = None
    ) -> Stored:
        """Store what is read from ``fd``, from its position on. Errors as :meth:`put_reader`, but translated."""
        return self._finish(self.stage_descriptor(fd, max_bytes, progress))

    @translated("Storing")
    def put_path(self, path: str | os.PathLike[str]) -> Stored:
        """Store a copy of the file at ``path``, which stays as it is.

        ``FileNotFoundError`` and the like of ``path`` itself are raised as they are.
        """
        fd = open_source(path)
        try:
            return self._finish(self.stage_source(fd))
        finally:
            os.close(fd)

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
            if self.publish(candidate.hash, candidate.file, sync=sync):
                return Stored(candidate.hash, candidate.size_bytes, duplicate=False)
            self._refuse_stray(candidate.hash)
        raise StoreUnavailableError(
            f"{candidate.hash} appeared and vanished {_MAX_RACES} times in {self.root}; try again"
        )

    def _refuse_stray(self, name: Hash) -> None:
        """Whoever finds a name taken that cannot be opened as a stored file must not look for ever."""
        if self.status(name) is None and os.path.lexists(self.location(name)):
            raise StoreUnavailableError(
                f"{self.location(name)} is in the way: it is not a file. Run: fsworker verify --repair {name}"
            )

    def try_duplicate(self, candidate: Candidate, *, sync: bool) -> bool | None:
        """Try to serve a candidate by the stored file of its name.

        True: it is stored already, and fresh. False: the stored file was rotten and has been replaced. ``None``: there
        is none (any more). Replacing always syncs what it puts in place: a good copy that a power cut empties would be
        worse than the rot.
        """
        found = self._look_and_open(candidate.hash)
        if found is None:
            return None
        status, stored_fd = found
        try:
            foreign = False
            if not self._is_young(status):
                touch = self._touch(candidate.hash, stored_fd)
                if touch is Touch.GONE:
                    return None
                foreign = touch is Touch.FOREIGN
            if not _same(candidate, stored_fd):
                self.materialise(candidate, sync=True)
                return False if heal.replace_rotten(self, candidate.hash, stored_fd, candidate.file) else None
            if foreign:
                self.materialise(candidate, sync=True)
                return True if heal.replace_by_own(self, candidate.hash, stored_fd, candidate.file) else None
            if sync:  # its first writer may have died before its own fsync
                self.fsync(stored_fd)
                self.sync_shard(candidate.hash)
            return True
        finally:
            os.close(stored_fd)

    def publish(self, name: Hash, fd: int, *, sync: bool) -> bool:
        """Link the file behind ``fd``, dressed and synced, under its name. False when that name is taken."""
        shard_fd = self.open_shard(name)
        try:
            with shard_lock(self.fd, name, self.modes.lock_file):
                try:
                    durable.link_unnamed(fd, name, shard_fd)
                except FileExistsError:
                    return False
            if sync:
                self.sync_shard(name, shard_fd)
            return True
        finally:
            os.close(shard_fd)

    # -- age -------------------------------------------------------------------------------------------------------

    @translated("Freshening")
    def freshen(self, name: Hash, *, sync: bool = True) -> bool:
        """Make a stored file young again, so that no collection takes it within the grace. False when it is absent.

        On return it is on disk, name and age, unless durability is ``none``. Whoever freshens many passes
        ``sync=False`` and calls :meth:`syncfs` once at the end.
        """
        for _ in range(_MAX_RACES):
            fd = self._try_open(name)
            if fd is None:
                return False
            try:
                touch = self._touch(name, fd)
                if touch is Touch.FRESH:
                    if sync and self.durability != "none":
                        self.fsync(fd)
                        self.sync_shard(name)
                    return True
                if touch is Touch.FOREIGN and self._replace_by_copy(name, fd):
                    return True
            finally:
                os.close(fd)
        raise StoreUnavailableError(f"{name} changed {_MAX_RACES} times in {self.root} while freshened; try again")

    def _touch(self, name: Hash, fd: int) -> Touch:
        """Freshen the stored file open as ``fd``, if it is due.

        Age is the ctime; ``fchmod`` to the mode it has renews it and leaves mtime alone (rsync does not send the file
        again). A file younger than an eighth of the grace is fresh enough; collection allows for that. Where the caller
        does not own the file, :mod:`fsworker.store.heal` puts the caller's verified copy in its place.
        """
        self.prepare()
        with shard_lock(self.fd, name, self.modes.lock_file):
            mine = os.fstat(fd)
            if not self._is_current(name, mine):
                return Touch.GONE
            if self._is_young(mine):
                return Touch.FRESH
            try:
                os.fchmod(fd, stat.S_IMODE(mine.st_mode))
            except PermissionError:
                return Touch.FOREIGN
            return Touch.FRESH

    def _is_young(self, status: os.stat_result) -> bool:
        """So young that no collection may take it: a cutoff is never later than now, less the grace, less an eighth.

        It is the store's own grace that counts: this process may have been told a longer one that a collection does not
        know. A ctime that lies well ahead (the clock was stepped back) is young: to renew it would make it older. One
        that lies a little ahead is not, because our clock runs behind by up to a tick.
        """
        age_s = self.recent_clock() - status.st_ctime
        return 0 <= age_s < self.config.grace_s / 8 or age_s < -1

    def _is_current(self, name: Hash, status: os.stat_result) -> bool:
        current = self.status(name)
        return current is not None and os.path.samestat(current, status)

    def _replace_by_copy(self, name: Hash, stored_fd: int) -> bool:
        copy_fd = self.open_unnamed()
        try:
            offset = 0

            def read_into(room: memoryview) -> int:
                nonlocal offset
                count = os.preadv(stored_fd, [room], offset)
                offset += count
                return count

            if copying.copy_hashed(read_into, copy_fd).sha1 != name:
                raise StoreUnavailableError(f"stored file {name} is rotten; run: fsworker verify --repair {name}")
            self.dress(copy_fd)
            self.fsync(copy_fd)
            return heal.replace_by_own(self, name, stored_fd, copy_fd)
        finally:
            durable.close_unnamed(copy_fd)


def _same(candidate: Candidate, stored_fd: int) -> bool:
    """Equal bytes? A stored file that cannot be read (``EIO``) counts as different: healing keeps its inode."""
    try:
        return candidate.equals(stored_fd)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return False
