"""The answer to a request for a stored file, in no framework's words: status, headers, and perhaps the bytes.

Behind nginx the answer is headers only (``FSWORKER_SERVE_WITH=nginx``). Otherwise, as in development, the application
sends the bytes itself, ranges included, in flat memory; for that it must be able to read the store.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from fsworker import serving
from fsworker.client import Client
from fsworker.errors import (
    ConfigError,
    FSWorkerError,
    ImageError,
    InvalidHashError,
    JobTimeoutError,
    NotStoredError,
    UploadError,
)
from fsworker.jobs.job import Job
from fsworker.model import Hash, parse_hash
from fsworker.store.reading import ObjectReader

_CHUNK_BYTES = 256 << 10

GetHeader = Callable[[str], str | None]
"""Looks up a header of the request, whatever its case; ``None`` when it is not there."""


class FilePart:
    """Bytes of an open stored file, in pieces. Closes the file at the end, or by :meth:`close`, whichever is first."""

    def __init__(self, fd: int, part: serving.Part) -> None:
        self._fd = fd
        self._part = part

    def __iter__(self) -> Iterator[bytes]:
        offset = self._part.start
        try:
            while offset < self._part.stop and self._fd >= 0:
                data = os.pread(self._fd, min(_CHUNK_BYTES, self._part.stop - offset), offset)
                if not data:
                    break  # somebody cut a stored file short: the client sees that bytes are missing
                offset += len(data)
                yield data
        finally:
            self.close()

    def close(self) -> None:
        """Release the file; closing twice is harmless."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()


@dataclass(frozen=True)
class Answer:
    """An HTTP response. ``body`` is ``None`` where there are no bytes to send (or nginx sends them)."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: FilePart | None = None


_NOT_FOUND = {"Content-Type": "text/plain; charset=utf-8", "Cache-Control": "no-store"}


class FileAnswers:
    """Makes answers for a client's application. Thread-safe. ``streams``: it reads files; else nothing here blocks."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.streams = client.settings.serve_with in (None, "stream")
        self._reader: ObjectReader | None = None
        self._lock = threading.Lock()

    @property
    def reader(self) -> ObjectReader:
        """The store, to read. Raises :class:`ConfigError` when this process does not see it."""
        with self._lock:
            if self._reader is None:
                if self.client.settings.store is None:
                    raise ConfigError(
                        "FSWORKER_STORE is not set, so this application cannot send stored files itself; set it, or "
                        "let nginx do it: FSWORKER_SERVE_WITH=nginx"
                    )
                self._reader = ObjectReader(self.client.settings.store)
            return self._reader

    def answer(self, method: str, header: GetHeader, hash: str, **how: Any) -> Answer:  # noqa: A002 - the public name
        """Answer a request for ``hash``; ``how`` are the options of :meth:`Client.response_headers`.

        304 where the browser has the file, 404 for what is no hash or is not stored, 405 for other methods than GET and
        HEAD. Raises :class:`ConfigError` (no access to the store), :class:`StoreUnavailableError`.
        """
        if method not in ("GET", "HEAD"):
            return Answer(405, {"Allow": "GET, HEAD"})
        try:
            name = parse_hash(hash)
        except InvalidHashError:
            return Answer(404, dict(_NOT_FOUND))
        headers = self.client.response_headers(name, **how)
        if serving.not_modified(header("If-None-Match"), name):
            kept = ("ETag", "Cache-Control", "Content-Security-Policy", "X-Content-Type-Options")
            return Answer(304, {key: headers[key] for key in kept})
        if not self.streams:
            return Answer(200, headers)
        headers.pop("X-Accel-Redirect", None)
        return self._stream(method, header, name, headers)

    def _stream(self, method: str, header: GetHeader, name: Hash, headers: dict[str, str]) -> Answer:
        try:
            fd = self.reader.open_descriptor(name)
        except NotStoredError:
            return Answer(404, dict(_NOT_FOUND))
        size_bytes = os.fstat(fd).st_size
        headers["Accept-Ranges"] = "bytes"
        try:
            # A range of a HEAD is ignored (RFC 9110, 14.2)
            asked = header("Range") if method == "GET" else None
            part = serving.requested_part(asked, header("If-Range"), name, size_bytes)
        except serving.UnsatisfiableRangeError:
            os.close(fd)
            return Answer(416, {"Content-Range": f"bytes */{size_bytes}", "Accept-Ranges": "bytes"})
        sent = part or serving.Part(0, size_bytes, size_bytes)
        headers["Content-Length"] = str(sent.length_bytes)
        if part is not None:
            headers["Content-Range"] = part.content_range
        status = 200 if part is None else 206
        if method == "HEAD":
            os.close(fd)
            return Answer(status, headers)
        return Answer(status, headers, FilePart(fd, sent))


def job_report(job: Job) -> dict[str, Any]:
    """How a job stands, for a browser: ``id``, ``state``, ``progress``, and at the end ``result`` or ``error``.

    The error of a :class:`ConfigError` or of something unexpected is for the log, not for visitors: they get its type.
    """
    report: dict[str, Any] = {"id": job.id, "state": job.state, "progress": job.progress}
    try:
        report["result"] = job.get(timeout=0).model_dump(mode="json")
        report["state"], report["progress"] = "done", 1.0
    except JobTimeoutError:
        return report
    except FSWorkerError as error:
        told = isinstance(error, (UploadError, ImageError))
        report["state"], report["progress"] = "failed", 1.0
        report["error"] = {"type": type(error).__name__, "message": str(error) if told else "It could not be stored."}
    return report
