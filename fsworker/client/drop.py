"""Dropping uploads into the spool: request and bytes on disk first, then the name, and only then is one accepted.

The order is that of DESIGN.md, "The path of one upload". The request comes before the upload, so that there is never an
upload that nobody knows about.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from fsworker import copying, durable
from fsworker.client.source import ReadInto, Source, reading
from fsworker.errors import StoreUnavailableError, UploadRejectedError
from fsworker.model import new_job_id
from fsworker.spool.directory import SpoolDirectory, SpooledRequest, part_name, request_name
from fsworker.spool.upload import UPLOAD_MODE, SpooledUpload, Upload, spool_errors


class Dropped(NamedTuple):
    """An upload in the spool, and the arguments of its job, ``upload`` among them."""

    job_id: str
    kwargs: dict[str, Any]

    @property
    def upload(self) -> str:
        """The upload's name."""
        name: str = self.kwargs["upload"]
        return name


class Dropper:
    """Drops into one application's spool. Methods raise :class:`ConfigError` or :class:`StoreUnavailableError` for it."""

    def __init__(self, spool: SpoolDirectory, store_id: str) -> None:
        self._spool = spool
        self._store_id = store_id

    def write_request(self, job_id: str, kind: str, request: dict[str, Any]) -> None:
        """Write the request of a job that needs no upload, durably."""
        with self._written():
            self._spool.write_request(job_id, self._spooled(kind, request))

    def write(self, source: Source, options: dict[str, Any], *, sync: bool) -> Dropped:
        """Write the request and the upload, the latter under its ``.part`` name.

        With ``sync`` their content is on disk. On an error neither is left; those of the source come as they are.
        """
        if isinstance(source, (Upload, SpooledUpload)):
            return self._finish(source, options, sync=sync)
        dropped = Dropped(new_job_id(self._spool.app), {"upload": uuid.uuid4().hex, **options})
        with reading(source) as read_into, self._with_request(dropped, sync=sync):
            self._write_part(dropped.upload, read_into, sync=sync)
        return dropped

    def commit(self, written: Sequence[Dropped], *, sync_content: bool = False) -> None:
        """Give uploads whose content is on disk their names, durably: from here on they are accepted.

        With ``sync_content`` their content is put there first. On an error none is accepted, nor is anything left.
        """
        uploads = [dropped.upload for dropped in written]
        committed: list[str] = []
        try:
            with self._written():
                if sync_content:
                    durable.syncfs(self._spool.fd)  # one for all, where each alone costs two fsyncs
                for upload in uploads:
                    if self._spool.rename(part_name(upload), upload):
                        committed.append(upload)
                    elif not self._spool.exists(upload):  # somebody else's is there already, see SpooledUpload
                        raise StoreUnavailableError(
                            "the upload is not in the spool any more; one that nobody has written to for a day is given "
                            "up: send it again"
                        )
                self._spool.sync()
        except BaseException:  # a server's time limit too (SystemExit): who gets no job cannot know of the upload
            self._remove(*committed, *map(part_name, uploads), *(request_name(job_id) for job_id, _ in written))
            raise

    def _finish(self, given: Upload | SpooledUpload, options: dict[str, Any], *, sync: bool) -> Dropped:
        """What :meth:`write` does for an upload whose bytes are in the spool already."""
        if self._spool.exists(request_name(given.job_id)):
            raise UploadRejectedError(f"this upload was ingested already, as job {given.job_id}")
        dropped = Dropped(given.job_id, {"upload": given.upload, **options})
        with self._with_request(dropped, sync=sync):
            given.finish(sync=sync)
        return dropped

    @contextlib.contextmanager
    def _with_request(self, dropped: Dropped, *, sync: bool) -> Iterator[None]:
        """Write the request, let the bytes follow, and sync it after them. On an error neither is left."""
        try:
            with self._written():
                self._spool.write_request(dropped.job_id, self._spooled("ingest", dropped.kwargs), sync=False)
            yield
            if sync:
                with self._written():
                    self._spool.sync_file(request_name(dropped.job_id))
        except BaseException:
            self._remove(part_name(dropped.upload), request_name(dropped.job_id))
            raise

    def _write_part(self, upload: str, read_into: ReadInto, *, sync: bool) -> None:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        with self._written():
            fd = os.open(part_name(upload), flags, 0o600, dir_fd=self._spool.fd)
        try:
            with copying.borrowed_buffer() as room:
                while count := read_into(room):  # its errors are the source's, and reach the caller as they are
                    with self._written():
                        durable.write_all(fd, room[:count])
            with self._written():
                os.fchmod(fd, UPLOAD_MODE)
                if sync:
                    os.fsync(fd)
        finally:
            os.close(fd)

    def _remove(self, *names: str) -> None:
        for name in names:
            with contextlib.suppress(OSError):  # the sweep gets what is left
                self._spool.remove(name)

    def _spooled(self, kind: str, request: dict[str, Any]) -> SpooledRequest:
        return SpooledRequest.model_validate({"task": kind, "request": request, "store": self._store_id})

    def _written(self) -> AbstractContextManager[None]:
        return spool_errors(self._spool.path)
