"""The API of the original FileStruct, as it was: code written against it runs unchanged.

::

    import fsworker.filestruct as FileStruct

    client = FileStruct.Client("/srv/files")
    with client.TempDir() as TempDir:
        open(TempDir.FilePath("upload.jpg"), "wb").write(mydata)
        TempDir.ResizeImage("upload.jpg", "resize.jpg", "100x100")
        hash1 = TempDir.Save("upload.jpg")

A thin face over :class:`fsworker.store.facade.Store`, which keeps the promises: durable, safe under concurrency, no race
between looking and renaming. Names, spelling and exceptions are the original's; pictures are converted by
:mod:`fsworker.thumbnails`, in the geometry of ImageMagick, which need not be installed.
"""

# ruff: noqa: N802, N803, A002 - the names are the original's

from __future__ import annotations

import errno
import grp
import json
import os
import posixpath
import pwd
import re
from types import TracebackType
from typing import Any, BinaryIO

from fsworker import copying, errors
from fsworker.copying import Reader
from fsworker.model import parse_hash
from fsworker.store import layout
from fsworker.store.facade import Store
from fsworker.store.reading import INTERNAL_LOCATION
from fsworker.store.tempdirs import BaseTempDir, check_temp_name
from fsworker.thumbnails import normalize_file, resize_file

__all__ = ("Client", "ConfigError", "Error", "HashFile", "TempDir", "TempFile")


class Error(errors.FSWorkerError):
    """A failed conversion; and the root of this API's own errors."""


class ConfigError(Error, errors.ConfigError):
    """The directory is no FileStruct database, or this process may not use it."""


class Client:
    """An open FileStruct database. Thread-safe; best made once and shared.

    ``Path`` is a ``str``. Missing top-level directories are made; where only the worker may write, as far as they have
    to be. ``bin_convert`` is there because the original had it; nothing is started.
    """

    def __init__(self, Path: str, InternalLocation: Any = INTERNAL_LOCATION) -> None:
        if not isinstance(Path, str):
            raise TypeError(f"Path must be a str, not {type(Path).__name__}")
        self.Path = os.path.abspath(Path)
        self.DataPath = os.path.join(self.Path, layout.DATA)
        self.ErrorPath = os.path.join(self.Path, layout.ERROR)
        self.TempPath = os.path.join(self.Path, layout.TEMP)
        self.TrashPath = os.path.join(self.Path, layout.TRASH)
        self.StaticPath = os.path.join(self.Path, layout.STATIC)
        self.ConfPath = os.path.join(self.Path, layout.CONFIG_FILE)
        self.InternalLocation = InternalLocation
        self.bin_convert = "/usr/bin/convert"
        try:
            self.store = Store(self.Path)
        except errors.ConfigError as error:
            raise ConfigError(str(error)) from error
        self.Version = layout.VERSION
        self.Conf = _read_conf(self.ConfPath)
        self._check_user()
        self._make_directories()

    def _check_user(self) -> None:
        try:
            self.DatabaseGroup = grp.getgrgid(os.stat(self.Path).st_gid)
            self.EffectiveUser = pwd.getpwuid(os.geteuid())
            self.EffectiveGroup = grp.getgrgid(os.getegid())
        except KeyError as error:
            raise ConfigError(f"{self.Path}: the user or a group has no name: {error}") from error
        user, group = self.EffectiveUser, self.DatabaseGroup
        ours = {user.pw_gid, self.EffectiveGroup.gr_gid, *os.getgroups()}  # a service manager may have added some
        if group.gr_gid not in ours and user.pw_name not in group.gr_mem:
            raise ConfigError(
                f"user {user.pw_name} is not a member of {group.gr_name}, the group of {self.Path}. "
                f"Run: usermod -aG {group.gr_name} {user.pw_name}, then log in again"
            )

    def _make_directories(self) -> None:
        try:
            self.store.prepare()
            self.store.ensure_directory(layout.STATIC, self.store.modes.data)
        except OSError as error:
            readable = os.path.isdir(self.DataPath)
            if not (readable and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)):
                raise ConfigError(f"cannot make the directories of {self.Path}: {error.strerror}") from error

    def __contains__(self, hash: str) -> bool:
        return hash in self.store

    def __getitem__(self, hash: str) -> HashFile:
        path = self.HashToPath(hash)
        if hash not in self.store:
            raise errors.NotStoredError(f"{hash} is not in the database {self.Path}")
        return HashFile(self, path, hash)

    def HashToPath(self, hash: str) -> str:
        """Where a hash lies, or would lie. ``ValueError`` for what is no hash, ``TypeError`` for no ``str``."""
        return str(self.store.location(parse_hash(_require_str(hash))))

    def HashToInternalURI(self, hash: str) -> str:
        """``InternalLocation`` as it was given, and the path below ``Data``. Errors as :meth:`HashToPath`."""
        name = parse_hash(_require_str(hash))
        return posixpath.join(self.InternalLocation, layout.shard(name), name)

    def PutStream(self, stream: Reader) -> str:
        """Store what ``stream.read(n)`` yields, from where it stands, and return the hash. It is not closed."""
        return self.store.put_stream(stream)

    def PutData(self, data: bytes | None) -> str:
        """Store ``data`` (``None`` counts as empty) and return the hash."""
        return self.store.put_bytes(b"" if data is None else data)

    def PutFile(self, path: str | os.PathLike[str] | int) -> str:
        """Store the content of a file and return the hash. A descriptor is read from its position, then closed."""
        if not isinstance(path, int):
            return self.store.put_file(path)
        with open(path, "rb", buffering=0) as stream:
            return self.store.put_descriptor(stream.fileno()).hash

    def TempDir(self) -> TempDir:
        """A new temp directory, for a ``with`` block."""
        return TempDir(self)


class TempDir(BaseTempDir):
    """A temp directory: deleted when its block is left, kept under ``Error/`` after an exception or with ``Retain``."""

    def __init__(self, Client: Client) -> None:
        super().__init__(Client.store)
        self.Client = Client

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            super().__exit__(kind, error, trace)
        except errors.FSWorkerError as problem:
            if isinstance(problem.__cause__, FileNotFoundError):
                raise problem.__cause__ from None  # as the original, when its user removed the directory
            raise

    @property
    def Path(self) -> str:
        """Where it is."""
        return str(self.directory)

    @property
    def Retain(self) -> bool:
        """Whether it is kept under ``Error/`` though nothing failed."""
        return self.retain

    @Retain.setter
    def Retain(self, value: bool) -> None:
        self.retain = value

    def __getitem__(self, FileName: str) -> TempFile:
        return TempFile(self, self.FilePath(FileName), FileName)

    def FilePath(self, FileName: str) -> str:
        """The path of a file in this directory. ``ValueError`` for a name outside ``[a-zA-Z0-9_.+-]{1,255}``."""
        return str(self.path(FileName))

    def Save(self, FileName: str) -> str:
        """Move a file into the database and return its hash."""
        return self.put_in(check_temp_name(FileName)).hash

    def ResizeImage(self, SourceFileName: str, DestFileName: str, SizeSpec: str) -> None:
        """:meth:`convert_resize`."""
        self.convert_resize(SourceFileName, DestFileName, SizeSpec)

    def convert_resize(self, SourceFileName: str, DestFileName: str, SizeSpec: str) -> None:
        """Scale a picture to a geometry of ImageMagick's ``-resize``. Raises :class:`Error`."""
        source, target = self.path(SourceFileName), self.path(DestFileName)
        try:
            resize_file(source, target, SizeSpec)
        except (errors.FSWorkerError, OSError) as error:
            raise Error(str(error)) from error

    def convert_normalize(self, SourceFileName: str, DestFileName: str, Width: int, Height: int) -> None:
        """Scale a picture to fill, enlarging if need be, and cut the centre to this size. Raises :class:`Error`."""
        source, target = self.path(SourceFileName), self.path(DestFileName)
        width, height = int(Width), int(Height)
        try:
            normalize_file(source, target, width, height)
        except (errors.FSWorkerError, OSError) as error:
            raise Error(str(error)) from error


class _File:
    """What stored and temporary files have in common."""

    def __init__(self, Client: Client, Path: str) -> None:
        self.Client = Client
        self.Path = Path

    def GetStream(self) -> BinaryIO:
        """The file, open for reading bytes."""
        return open(self.Path, "rb")

    def GetData(self) -> bytes:
        """The whole content."""
        with self.GetStream() as stream:
            return stream.read()


class HashFile(_File):
    """A stored file. Only for reading: whoever writes to its path damages the database."""

    def __init__(self, Client: Client, Path: str, Hash: str) -> None:
        super().__init__(Client, Path)
        self.Hash = Hash

    @property
    def InternalURI(self) -> str:
        """What to send nginx as ``X-Accel-Redirect``."""
        return self.Client.HashToInternalURI(self.Hash)


class TempFile(_File):
    """A file in a temp directory, whether it exists or not."""

    def __init__(self, TempDir: TempDir, Path: str, name: str) -> None:
        super().__init__(TempDir.Client, Path)
        self.TempDir = TempDir
        self._name = name

    def PutStream(self, stream: Reader) -> None:
        """Write what ``stream.read(n)`` yields. The stream is not closed."""
        self._forget_link()
        with open(self.Path, "wb") as target:
            while data := stream.read(copying.BUFFER_BYTES):
                target.write(data)

    def PutData(self, data: bytes | None) -> None:
        """Write ``data``."""
        self._forget_link()
        with open(self.Path, "wb") as target:
            target.write(b"" if data is None else data)

    def PutFile(self, path: str | os.PathLike[str] | int) -> None:
        """Write a copy of a file. A descriptor is read from its position, then closed."""
        with open(path, "rb") as stream:
            self.PutStream(stream)

    def Link(self, hash: str) -> None:
        """Make this name a symbolic link to a stored file."""
        os.symlink(self.Client[hash].Path, self.Path)

    def Delete(self) -> None:
        """Remove the file."""
        os.unlink(self.Path)

    def Ingest(self) -> str:
        """Move this file into the database and return its hash."""
        return self.TempDir.Save(self._name)

    Save = Ingest

    def _forget_link(self) -> None:
        """A link to a stored file must not be written through: the owner of the database could."""
        if os.path.islink(self.Path):
            os.unlink(self.Path)  # where that fails, nothing may be written either


def _require_str(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a hash is a str, not {type(value).__name__}")
    return value


def _read_conf(path: str) -> dict[str, Any]:
    """The configuration as the original shows it. The store has judged it already."""
    with open(path, encoding="utf-8") as stream:
        conf = json.loads("".join(line for line in stream if not re.match(r"\s*#", line)))
    return dict(conf)
