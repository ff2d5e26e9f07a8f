"""The public store: put content, get its hash, find it again.

::

    store = Store("/srv/files")
    name = store.put_bytes(b"...")
    with store.open(name) as stream: ...

A face over :class:`fsworker.store.objects.ObjectStore`, which says how it works, and :mod:`fsworker.thumbnails`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, Self

from fsworker.copying import Reader
from fsworker.store import create, layout
from fsworker.store.batch import Batch
from fsworker.store.objects import ObjectStore
from fsworker.store.tempdirs import BaseTempDir
from fsworker.thumbnails import resize_file


class Store(ObjectStore):
    """A store of immutable files, each named by the SHA-1 of its content.

    Safe to use from several threads and processes at once. Errors are those of :mod:`fsworker.errors`: a
    :class:`~fsworker.errors.ConfigError` wants a person, an :class:`~fsworker.errors.UnavailableError` another try.
    """

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        apps: Iterable[str] = (),
        *,
        grace_s: float = layout.DEFAULT_GRACE_S,
        writers: str = "worker",
        group: str | None = None,
        **options: Any,
    ) -> Self:
        """Make a store at ``path``, or add what it lacks, and open it.

        ``apps`` are the applications whose keep-sets decide what is kept, each ``NAME`` or ``NAME:GROUP``. ``writers``
        is ``worker`` (only the user who runs this writes) or ``group`` (every member of ``group``). ``grace_s``: how
        many seconds a new file is safe though nobody keeps it yet. ``options`` are those of ``Store(path)``.
        Raises :class:`ConfigError`.
        """
        create.create_store(path, apps=apps, grace_s=grace_s, writers=writers, group=group)
        return cls(path, **options)

    def put_bytes(self, data: bytes) -> str:
        """Store ``data`` and return its hash. It is on disk on return (durability ``none`` apart)."""
        return self.put(data).hash

    def put_stream(self, stream: Reader) -> str:
        """Store what ``stream.read(n)`` yields, from here to its end, and return the hash. The stream stays open."""
        return self.put_reader(stream).hash

    def put_file(self, path: str | os.PathLike[str]) -> str:
        """Store a copy of a file and return its hash. The file stays; ``OSError`` if it cannot be read."""
        return self.put_path(path).hash

    def path(self, name: str) -> Path:
        """Where a stored file lies, to read it.

        Raises :class:`InvalidHashError` (a ``ValueError``), :class:`NotStoredError` (a ``KeyError``).
        """
        return self.path_of(name)

    def open(self, name: str) -> BinaryIO:
        """A stored file, open for reading. Errors as :meth:`path`."""
        return self.open_file(name)

    def batch(self) -> Batch:
        """Puts that become durable together: see :class:`fsworker.store.batch.Batch`."""
        return Batch(self)

    def tempdir(self) -> TempDir:
        """A temp directory on the store's filesystem, for a ``with`` block: see :class:`TempDir`."""
        return TempDir(self)


class TempDir(BaseTempDir):
    """A directory to work in: deleted when its block is left, kept under ``Error/`` when that was by an exception.

    ::

        with store.tempdir() as tmp:
            tmp.path("upload.jpg").write_bytes(data)
            tmp.resize("upload.jpg", "small.jpg", "100x100")
            name = tmp.save("small.jpg")
    """

    def resize(self, source: str, target: str, geometry: str) -> None:
        """Scale the picture ``source`` into ``target``, both names in this directory.

        ``geometry`` is ImageMagick's: ``100x100``, ``50%``, ``300x^``… Raises :class:`ImageError`.
        """
        resize_file(self.path(source), self.path(target), geometry)

    def save(self, name: str) -> str:
        """Move a file of this directory into the store and return its hash.

        ``FileNotFoundError``, or ``ValueError`` for what is no regular file; on an error the file is still here.
        """
        return self.put_in(name).hash
