"""A storage for ``FileField`` and ``ImageField``: the file's name in the database is ``<hash>/<name>``.

::

    STORAGES = {
        "default": {"BACKEND": "fsworker.contrib.django.storage.FSWorkerStorage", "OPTIONS": {"timeout": 30}},
        "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
    }

Saving waits for the worker: on return the file is stored. It is not undone by a rollback; the file is then kept by
nobody, and a collection takes it. Deleting does nothing, for another row, or another application, may have the file.
Names need room: a ``FileField`` of 100 characters leaves 59 for the name itself, longer ones are shortened.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any, NoReturn

from django.conf import settings
from django.core.exceptions import SuspiciousFileOperation
from django.core.files.base import File
from django.core.files.storage import Storage
from django.urls import reverse
from django.utils.deconstruct import deconstructible

from fsworker.contrib.django.files import answers, ingest
from fsworker.contrib.django.signing import sign
from fsworker.errors import InvalidHashError, NotStoredError
from fsworker.model import Hash, IngestResult, parse_hash
from fsworker.serving import clean_filename

_HASH_PART = 41  # the hash and a slash
_DEFAULT_NAME = "file"


@deconstructible(path="fsworker.contrib.django.storage.FSWorkerStorage")
class FSWorkerStorage(Storage):
    """Files in the store. ``timeout`` (seconds) is how long saving waits for a worker; the others narrow what is taken.

    Saving raises what :meth:`fsworker.Job.get` raises: :class:`UploadRejectedError` for what breaks a rule,
    :class:`JobTimeoutError` when no worker has come; then the upload is safe, and is ingested, but no row has it.
    """

    def __init__(
        self,
        timeout: float = 30.0,
        max_bytes: int | None = None,
        max_pixels: int | None = None,
        media_types: Sequence[str] | None = None,
    ) -> None:
        self._timeout_s = timeout
        self._limits = {"max_bytes": max_bytes, "max_pixels": max_pixels, "media_types": media_types}

    def _save(self, name: str, content: File) -> str:
        result = ingest(content, **self._limits).get(timeout=self._timeout_s)
        assert isinstance(result, IngestResult)
        return f"{result.hash}/{name}"

    def _open(self, name: str, mode: str = "rb") -> File:
        if mode != "rb":
            raise ValueError(f"stored files do not change, so they cannot be opened with mode {mode!r}; save a new one")
        return File(answers().reader.open_file(hash_of(name)), name=name)

    def get_valid_name(self, name: str) -> str:
        """The name as its owner wrote it, without what is dangerous in one."""
        return clean_filename(str(name)) or _DEFAULT_NAME

    def get_available_name(self, name: str, max_length: int | None = None) -> str:
        """The last part of a name, so short that the hash has room before it. Every name is available."""
        only = self.get_valid_name(name)
        room = (max_length or 255) - _HASH_PART
        if room < 1:
            raise SuspiciousFileOperation(f"a FileField for this storage needs a max_length of more than {_HASH_PART}")
        suffix = PurePosixPath(only).suffix if len(PurePosixPath(only).suffix) < min(room, 16) else ""
        return only if len(only) <= room else only[: room - len(suffix)] + suffix

    def delete(self, name: str) -> None:
        """Nothing: a file goes when no keep-set has it."""

    def exists(self, name: str) -> bool:
        """Whether the file is in the store."""
        try:
            return hash_of(name) in answers().reader
        except InvalidHashError:
            return False

    def size(self, name: str) -> int:
        """Bytes. Raises :class:`NotStoredError`."""
        return self._status(name).st_size

    def url(self, name: str | None) -> str:
        """A signed URL of :mod:`fsworker.contrib.django.urls`: whoever has it may see this file, and no other."""
        file_hash, _, filename = str(name).partition("/")
        filename = filename or _DEFAULT_NAME
        name_hash = parse_hash(file_hash)
        return str(reverse("fsworker:file", args=[name_hash, sign(name_hash, filename), filename]))

    def get_modified_time(self, name: str) -> datetime:
        """When the content was stored, for the first time."""
        seconds = self._status(name).st_mtime
        return datetime.fromtimestamp(seconds, tz=UTC if settings.USE_TZ else None)

    get_created_time = get_modified_time

    def get_accessed_time(self, name: str) -> NoReturn:
        """Not known."""
        raise NotImplementedError("a store does not know when a file was read")

    def listdir(self, path: str) -> NoReturn:
        """Not possible: several applications share a store, and it has no names."""
        raise NotImplementedError("a store cannot be listed by an application; ask your models")

    def _status(self, name: str) -> os.stat_result:
        status = answers().reader.status(hash_of(name))
        if status is None:
            raise NotStoredError(f"{name} is not in the store")
        return status


def hash_of(name: Any) -> Hash:
    """The hash in a name of this storage. Raises :class:`InvalidHashError` (a ``ValueError``)."""
    return parse_hash(str(name).partition("/")[0])
