"""Reading a store: is a hash there, where, what are all of them. Writes nothing, needs no lock."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fsworker.errors import NotStoredError
from fsworker.model import Hash, is_hash, parse_hash
from fsworker.store import layout
from fsworker.store.handle import StoreHandle, translated

INTERNAL_LOCATION = "/FileStruct/Data"
"""Where nginx's internal location for ``Data/`` is, unless told otherwise."""

_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_ABSENT = frozenset({errno.ENOENT, errno.ELOOP})  # the second: what has the name is a symbolic link


class ObjectReader(StoreHandle):
    """The stored files of a store, to look at. ``internal_location`` is the URI of ``Data/`` inside nginx."""

    internal_location = INTERNAL_LOCATION

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
        return self.root / layout.data_name(name)

    @translated("Reading")
    def open_descriptor(self, name: Hash) -> int:
        """Open a stored file for reading. Raises :class:`NotStoredError` when it is absent."""
        fd = self._try_open(name)
        if fd is None:
            raise NotStoredError(f"{name} is not in the store {self.root}")
        return fd

    def path_of(self, text: str) -> Path:
        """The path of a stored file. Raises :class:`InvalidHashError`, or :class:`NotStoredError` when it is absent."""
        name = parse_hash(text)
        if self.status(name) is None:
            raise NotStoredError(f"{name} is not in the store {self.root}")
        return self.location(name)

    def open_file(self, text: str) -> BinaryIO:
        """A stored file, open for reading. Errors as :meth:`path_of`."""
        return os.fdopen(self.open_descriptor(parse_hash(text)), "rb")

    def internal_uri(self, text: str) -> str:
        """What to send as ``X-Accel-Redirect``: ``/FileStruct/Data/da/39/da39…``. No I/O.

        Raises :class:`InvalidHashError`.
        """
        name = parse_hash(text)
        return f"{self.internal_location}/{layout.shard(name)}/{name}"

    def shards(self) -> Iterator[str]:
        """The first-level directories that exist, in order: ``00`` … ``ff``."""
        yield from (n for n in sorted(self.names_of(layout.DATA)) if _is_pair(n))

    def names_in(self, pair: str) -> Iterator[Hash]:
        """The hashes in one first-level directory, in order; other names are left to verification."""
        for second in sorted(self.names_of(f"{layout.DATA}/{pair}")):
            if _is_pair(second):
                prefix = pair + second
                for name in sorted(self.names_of(f"{layout.DATA}/{pair}/{second}")):
                    if is_hash(name) and name.startswith(prefix):
                        yield Hash(name)

    def __iter__(self) -> Iterator[Hash]:
        for pair in self.shards():
            yield from self.names_in(pair)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __bool__(self) -> bool:
        return True  # an empty store is still a store

    def _try_open(self, name: Hash) -> int | None:
        """Open a stored file. ``None`` when there is none, or when what is there is no regular file."""
        fd = self._open_name(name)
        if fd is None or stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
        return None

    def _look_and_open(self, name: Hash) -> tuple[os.stat_result, int] | None:
        """The status of a stored file by its name, and then a descriptor of what has that name. ``None`` without either.

        In this order: the move to trash renews the ctime of a file that is open already, so ``fstat`` would call it
        young when it is no longer in its place.
        """
        location = layout.data_name(name)
        try:
            status = os.stat(location, dir_fd=self.fd, follow_symlinks=False)
            return (status, os.open(location, _OPEN, dir_fd=self.fd)) if stat.S_ISREG(status.st_mode) else None
        except OSError as error:
            if error.errno not in _ABSENT:
                raise
            return None

    def _open_name(self, name: Hash) -> int | None:
        """Open what has that name, be it a file or not. ``None`` when there is nothing, or a symbolic link."""
        try:
            return os.open(layout.data_name(name), _OPEN, dir_fd=self.fd)
        except OSError as error:
            if error.errno not in _ABSENT:
                raise
            return None


def _is_pair(name: str) -> bool:
    return len(name) == 2 and all(c in "0123456789abcdef" for c in name)
