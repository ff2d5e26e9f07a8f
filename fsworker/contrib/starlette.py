"""fsworker in Starlette and FastAPI; nothing here blocks the event loop::

    files = Files("shop")                         # settings as for Client, or from the environment

    @app.post("/upload", status_code=202)
    async def upload(request: Request):
        async with files.form(request) as form:
            job = await files.ingest(form["photo"], thumbnails={"small": "200x200"})
        return {"job": job.id}

    app.add_route("/jobs/{job_id}", files.status)

``files.form`` writes the files of a form straight into the spool, where ``request.form()`` (and FastAPI's ``UploadFile``
parameters) write them to temporary files first; those can be ingested, too.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from fsworker.client import Client
from fsworker.config import Settings
from fsworker.contrib.answers import FileAnswers, job_report
from fsworker.errors import JobTimeoutError, UploadRejectedError
from fsworker.jobs.job import Job
from fsworker.model import Result
from fsworker.spool.upload import Upload

_FIRST_POLL_S = 0.02
_SLOWEST_POLL_S = 0.5
_GATHER_BYTES = 256 << 10


class Files:
    """A client, and what an ASGI application does with it.

    ``name`` is the application's name in the store. A file with more bytes than ``max_bytes`` (or
    ``FSWORKER_MAX_BYTES``) is answered 413.
    """

    def __init__(
        self, name: str, *, max_bytes: int | None = None, settings: Settings | None = None, **overrides: Any
    ) -> None:
        self._name, self._max_bytes, self._settings, self._overrides = name, max_bytes, settings, overrides
        self._made: FileAnswers | None = None
        self._lock = threading.Lock()

    @property
    def client(self) -> Client:
        """The client, whose methods block: call them in a thread. Made when first used."""
        return self._answers().client

    def _answers(self) -> FileAnswers:
        with self._lock:
            if self._made is None:
                self._made = FileAnswers(Client(self._name, settings=self._settings, **self._overrides))
            return self._made

    # -- uploads ---------------------------------------------------------------------------------------------------

    async def ingest(self, source: Any, **options: Any) -> Job:
        """:meth:`fsworker.Client.ingest`, also for an ``UploadFile`` of a form."""
        inner = source.file if isinstance(source, UploadFile) else source
        return await run_in_threadpool(lambda: self.client.ingest(inner, **options))

    async def receive(self, request: Request, max_bytes: int | None = None) -> Upload:
        """The body of a request, raw (a PUT, a ``fetch`` of a file), as an upload in the spool; to be ingested.

        Raises ``HTTPException`` 413 when there is too much, as far as it was read.
        """
        upload = await run_in_threadpool(self._open, max_bytes)
        try:
            async for piece in _gathered(request.stream()):
                await run_in_threadpool(upload.write, piece)
        except UploadRejectedError as error:
            upload.close()
            raise HTTPException(413, str(error)) from error
        except BaseException:
            upload.close()
            raise
        return upload

    @asynccontextmanager
    async def form(self, request: Request, *, max_files: int = 100, max_fields: int = 1000) -> AsyncIterator[FormData]:
        """A form of ``multipart/form-data``, its files in the spool; those that are not ingested go at the end.

        Raises ``HTTPException``: 400 for what is no such form, 413 for a file with too many bytes.
        """
        if not request.headers.get("Content-Type", "").lower().startswith("multipart/form-data"):
            raise HTTPException(400, "This is not multipart/form-data")
        parser = _SpoolingParser(
            request.headers,
            _gathered(request.stream()),
            max_files=max_files,
            max_fields=max_fields,
            open_upload=self._open,
        )
        try:
            form = await parser.parse()
        except MultiPartException as error:
            raise HTTPException(400, error.message) from error
        except UploadRejectedError as error:
            raise HTTPException(413, str(error)) from error
        try:
            yield form
        finally:
            await form.close()

    def _open(self, max_bytes: int | None = None) -> Upload:
        return self.client.open_upload(self._max_bytes if max_bytes is None else max_bytes)

    # -- jobs ------------------------------------------------------------------------------------------------------

    async def result(self, job: Job | str, timeout: float | None = 30.0) -> Result:
        """:meth:`fsworker.Job.get`, without a thread that waits. ``job`` is a job or its id."""
        asked = await run_in_threadpool(self.client.job, job) if isinstance(job, str) else job
        deadline_s = None if timeout is None else time.monotonic() + timeout
        pause_s = _FIRST_POLL_S
        while True:
            try:
                return await run_in_threadpool(asked.get, 0)
            except JobTimeoutError:
                if deadline_s is not None and time.monotonic() >= deadline_s:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.3, _SLOWEST_POLL_S)

    async def status(self, request: Request) -> Response:
        """An endpoint with ``job_id`` in its path: how a job stands, as JSON, for whoever knows its id."""
        try:
            job = await run_in_threadpool(self.client.job, request.path_params["job_id"])
        except UploadRejectedError as error:
            raise HTTPException(404) from error
        return JSONResponse(await run_in_threadpool(job_report, job), headers={"Cache-Control": "no-store"})

    # -- files -----------------------------------------------------------------------------------------------------

    async def serve(self, request: Request, hash: str, **how: Any) -> Response:  # noqa: A002 - the public name
        """Answer a request for a stored file; decide first whether its sender may see it.

        ``how`` are the options of :meth:`fsworker.Client.response_headers`. nginx sends the bytes where
        ``FSWORKER_SERVE_WITH`` says so; without it this process does, in threads, ranges included.
        """
        answers = self._made if self._made is not None else await run_in_threadpool(self._answers)
        make = partial(answers.answer, request.method, request.headers.get, hash, **how)
        answer = await run_in_threadpool(make) if answers.streams else make()
        if answer.body is None:
            return Response(status_code=answer.status, headers=answer.headers)
        return StreamingResponse(answer.body, answer.status, answer.headers)


async def _gathered(stream: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """The same bytes in larger pieces: each costs a visit to a thread."""
    waiting = bytearray()
    async for piece in stream:
        waiting += piece
        if len(waiting) >= _GATHER_BYTES:
            yield bytes(waiting)
            waiting.clear()
    if waiting:
        yield bytes(waiting)


class _SpoolFile(UploadFile):
    """A file of a form that is written to an upload in the spool, which is opened in a thread when it is needed."""

    def __init__(self, made: UploadFile, open_upload: Any) -> None:
        super().__init__(made.file, size=0, filename=made.filename, headers=made.headers)
        made.file.close()
        self._open_upload = open_upload
        self._upload: Upload | None = None

    def _opened(self) -> Upload:
        if self._upload is None:
            self._upload = self._open_upload()
            self.file = cast(Any, self._upload)
        return self._upload

    async def write(self, data: bytes) -> None:
        if self.size is not None:
            self.size += len(data)
        await run_in_threadpool(lambda: self._opened().write(data))

    async def seek(self, offset: int) -> None:
        await run_in_threadpool(lambda: self._opened().seek(offset))

    async def close(self) -> None:
        if self._upload is not None:
            await run_in_threadpool(self._upload.close)

    def forget(self) -> None:
        if self._upload is not None:
            self._upload.close()


class _Forgotten:
    """What Starlette closes when a form ends in the middle."""

    def __init__(self, file: _SpoolFile) -> None:
        self.close = file.forget


class _SpoolingParser(MultiPartParser):
    """Starlette's parser of forms, whose files are uploads in the spool."""

    spool_max_size = 1  # of the temporary file that is made first, and never used

    def __init__(self, *args: Any, open_upload: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._open_upload = open_upload
        self._ended = False

    async def parse(self) -> FormData:
        """The form. Raises ``MultiPartException`` for one that was cut off, too; then nothing is left of it."""
        form = await super().parse()
        if not self._ended:
            for file in self._files_to_close_on_error:
                await run_in_threadpool(file.close)
            raise MultiPartException("The form was cut off.")
        return form

    def on_end(self) -> None:
        self._ended = True

    def on_headers_finished(self) -> None:
        super().on_headers_finished()
        made = self._current_part.file
        if made is not None:
            file = _SpoolFile(made, self._open_upload)
            self._current_part.file = file
            self._files_to_close_on_error[-1] = cast(Any, _Forgotten(file))


__all__ = ["Files"]
