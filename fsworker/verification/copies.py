"""Good copies of a stored file: in trash, and in a mirror (a backup made by rsync). Each is verified before it is used."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from fsworker.errors import ConfigError
from fsworker.model import Hash
from fsworker.store import layout
from fsworker.store.handle import log
from fsworker.store.objects import ObjectStore
from fsworker.store.staging import Candidate
from fsworker.store.trash import trashed_names

_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Mirror:
    """A directory that a store is copied to by ``rsync -a``. It is only read.

    Raises :class:`ConfigError` when there is no ``Data/`` in it, so that a disk that is not mounted is not taken for a
    backup that lost everything, and when it is the store itself.
    """

    def __init__(self, path: str | os.PathLike[str], store: ObjectStore) -> None:
        self.root = Path(os.path.abspath(path))
        try:
            self.fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(
                f"the mirror {self.root} cannot be opened: {error.strerror}; is its disk mounted?"
            ) from error
        try:
            data = os.stat(layout.DATA, dir_fd=self.fd)
        except OSError as error:
            self.close()
            raise ConfigError(
                f"the mirror {self.root} has no {layout.DATA}/, so it is no copy of a store; is its disk mounted?"
            ) from error
        if os.path.samestat(data, os.stat(layout.DATA, dir_fd=store.fd)):
            self.close()
            raise ConfigError(f"the mirror {self.root} is the store itself; name the directory of its backup")

    def close(self) -> None:
        """Release the descriptor; closing twice is harmless."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Mirror:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def good_copy(store: ObjectStore, name: Hash, mirror: Mirror | None) -> Iterator[tuple[str, Candidate] | None]:
    """A verified copy of ``name``, ready to be put in place, and where it was found; ``None`` when there is none.

    Trash comes first: it is near, and as old as a collection. What is rotten or unreadable is passed over. ``OSError``
    when the copy cannot be written to ``Temp/``.
    """
    for where, fd in _copies(store, name, mirror):
        candidate = None
        try:
            candidate = _stage(store, where, fd)
            if candidate is not None and candidate.hash == name:
                store.materialise(candidate, sync=True)
                yield where, candidate
                return
            if candidate is not None:
                log.error("%s is no good copy: it hashes to %s", where, candidate.hash)
        finally:
            os.close(fd)
            if candidate is not None:
                candidate.close()
    yield None


def _copies(store: ObjectStore, name: Hash, mirror: Mirror | None) -> Iterator[tuple[str, int]]:
    places = [(relative, store.fd, relative) for relative in trashed_names(store, name)]
    if mirror is not None:
        relative = layout.data_name(name)
        places.append((str(mirror.root / relative), mirror.fd, relative))
    for where, directory_fd, relative in places:
        try:
            fd = os.open(relative, _OPEN_FILE, dir_fd=directory_fd)
        except OSError as error:
            if error.errno != errno.ENOENT:
                log.warning("%s cannot be used to heal: %s", where, error.strerror)
            continue
        if stat.S_ISREG(os.fstat(fd).st_mode):
            yield where, fd
        else:
            os.close(fd)


def _stage(store: ObjectStore, where: str, fd: int) -> Candidate | None:
    store.prepare()
    try:
        return store.stage_descriptor(fd)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        log.warning("%s cannot be read: %s", where, error.strerror)
        return None
