"""The project's client, and handing uploads to it."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

from django.conf import settings
from django.core.files.base import File
from django.core.signals import setting_changed
from django.db import transaction

from fsworker.client import Client
from fsworker.config import load_settings
from fsworker.contrib.answers import FileAnswers
from fsworker.errors import ConfigError
from fsworker.jobs.job import Job
from fsworker.spool.upload import Upload

_lock = threading.Lock()
_answers: list[FileAnswers] = []


def answers() -> FileAnswers:
    """What answers requests for files in this process, with its client; made when first used."""
    with _lock:
        if not _answers:
            _answers.append(FileAnswers(_make_client()))
        return _answers[0]


def client() -> Client:
    """This process's client, of the application that ``settings.FSWORKER["APP"]`` names. Raises :class:`ConfigError`."""
    return answers().client


def _make_client() -> Client:
    given = dict(getattr(settings, "FSWORKER", {}))
    app = given.pop("APP", None)
    if not app:
        raise ConfigError('the Django setting FSWORKER does not name the application: FSWORKER = {"APP": "shop", …}')
    overrides: dict[str, Any] = {str(name).lower(): value for name, value in given.items()}
    return Client(app, settings=load_settings(None, **overrides))


def _forget(*, setting: str, **_: Any) -> None:
    if setting == "FSWORKER":
        with _lock:
            _answers.clear()


setting_changed.connect(_forget, dispatch_uid="fsworker")  # override_settings in tests


def ingest(source: Any, **options: Any) -> Job:
    """:meth:`fsworker.Client.ingest` for what Django has too: ``request.FILES["photo"]``, any ``File``.

    What :class:`~fsworker.contrib.django.uploads.SpoolUploadHandler` has received is in the spool and is not copied.
    """
    with _in_spool(source) as ready:
        return client().ingest(ready.source, **options)


def ingest_on_commit(source: Any, *, using: str | None = None, **options: Any) -> Job:
    """:func:`ingest`, but the workers are told when the transaction is committed, so ``on_done`` finds its row.

    The bytes and the request are safe in the spool on return, so a crash after the commit loses nothing: the sweep
    rings. It does so after a rollback, too: then the file is stored, nobody refers to it, and a collection takes it.
    """
    with _in_spool(source) as ready:
        job = client().ingest(ready.source, ring=False, **options)
    transaction.on_commit(partial(client().ring, job), using=using)
    return job


class _in_spool:  # noqa: N801 - reads as a function
    """A source as the client takes it; what had to be copied into the spool for that is closed at the end."""

    def __init__(self, source: Any) -> None:
        self._own: Upload | None = None
        inner = getattr(source, "file", source) if isinstance(source, File) else source
        if isinstance(inner, Upload) and not inner.ingested:
            self.source: Any = inner
        elif isinstance(source, File):
            self.source = self._own = client().open_upload()
            self._copy(source)
        else:
            self.source = source

    def _copy(self, source: File) -> None:
        assert self._own is not None
        try:
            for chunk in source.chunks():  # from the beginning; of a file of text, text
                self._own.write(chunk.encode() if isinstance(chunk, str) else chunk)
        except BaseException:
            self._own.close()
            raise

    def __enter__(self) -> _in_spool:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._own is not None:
            self._own.close()
