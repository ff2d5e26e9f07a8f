"""The two levels of directories in ``Data/``: made on demand, with the right mode, and on disk before a result is given."""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from fsworker.model import Hash
from fsworker.store import layout
from fsworker.store.staging import Stager

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class ShardDirectories(Stager):
    """The part of a store that makes and syncs directories. Remembers what this process need not do again."""

    def __init__(self, path: str | os.PathLike[str], *, grace_s: float | None = None) -> None:
        super().__init__(path, grace_s=grace_s)
        self._durable_shards = bytearray(1 << 16)  # 1 for a shard directory whose own name we know to be on disk
        self._dressed_shards = bytearray(1 << 16)  # 1 for one whose mode and group we have seen to
        self._dressed_parents = bytearray(1 << 8)  # likewise, of the first level

    def open_shard(self, name: Hash) -> int:
        """Open the directory of a hash, making it if need be. The caller syncs."""
        directory = f"{layout.DATA}/{layout.shard(name)}"
        index = int(name[:4], 16)
        try:
            fd = os.open(directory, _DIRECTORY, dir_fd=self.fd)
        except FileNotFoundError:
            self._durable_shards[index] = self._dressed_shards[index] = 0
            self._make_shard(name)
            fd = os.open(directory, _DIRECTORY, dir_fd=self.fd)
        if not self._dressed_shards[index]:
            self._dress_shard(name, fd)
        return fd

    def _make_shard(self, name: Hash) -> None:
        directory = f"{layout.DATA}/{layout.shard(name)}"
        try:
            self._make_data_directory(directory)
        except FileNotFoundError:
            self._dressed_parents[int(name[:2], 16)] = 0
            self._make_data_directory(f"{layout.DATA}/{name[:2]}")
            self._make_data_directory(directory)

    def _dress_shard(self, name: Hash, shard_fd: int) -> None:
        self.dress_directory(shard_fd, self.modes.data)
        index = int(name[:2], 16)
        if not self._dressed_parents[index]:
            fd = os.open(f"{layout.DATA}/{name[:2]}", _DIRECTORY, dir_fd=self.fd)
            try:
                self.dress_directory(fd, self.modes.data)
            finally:
                os.close(fd)
            self._dressed_parents[index] = 1
        self._dressed_shards[int(name[:4], 16)] = 1

    def _make_data_directory(self, name: str) -> None:
        """Where only one user writes, a plain ``mkdir`` will do, at an eighth of the price of making it aside.

        Nobody else works in it before its mode is right, and whoever works in it first sees to that: should we die now,
        that is another process of this user.
        """
        if self.modes.data & stat.S_IWGRP:
            self.make_directory(name, self.modes.data)
        else:
            with suppress(FileExistsError):
                os.mkdir(name, self.modes.data & 0o777, dir_fd=self.fd)

    def sync_shard(self, name: Hash, shard_fd: int | None = None) -> None:
        """Sync the entries of a hash's directory, and those that lead to it (:meth:`sync_parents`)."""
        if shard_fd is None:
            self.fsync_directory(f"{layout.DATA}/{layout.shard(name)}")
        else:
            self.fsync(shard_fd)
        self.sync_parents(name)

    def sync_parents(self, name: Hash) -> None:
        """Sync the directories above a hash's own, unless this process has done so before.

        Another process may have made them and died before its own sync, so "it exists" is not "it is on disk".
        """
        index = int(name[:4], 16)
        if not self._durable_shards[index]:
            for parent in (f"{layout.DATA}/{name[:2]}", layout.DATA):
                self.fsync_directory(parent)
            self._durable_shards[index] = 1

    def mark_durable(self, name: Hash) -> None:
        """Note that the directories of a hash have been synced (by a ``syncfs``)."""
        self._durable_shards[int(name[:4], 16)] = 1
