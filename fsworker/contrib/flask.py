"""fsworker in a Flask application::

    app = Flask(__name__)
    files = FSWorker(app, "shop")                 # settings as for Client, or from the environment

    @app.post("/upload")
    def upload():
        job = files.ingest(request.files["photo"], thumbnails={"small": "200x200"})
        return {"job": job.id}, 202

    app.add_url_rule("/jobs/<job_id>", view_func=files.status)

What ``request.files`` holds has come straight into the spool, and is not copied when it is ingested; what the view does
not ingest is gone after the request.
"""

from __future__ import annotations

import threading
from typing import Any, cast

from flask import Flask, Response, abort, jsonify, request
from werkzeug.datastructures import FileStorage

from fsworker.client import Client
from fsworker.config import Settings
from fsworker.contrib.answers import FileAnswers, job_report
from fsworker.copying import BUFFER_BYTES
from fsworker.errors import UploadRejectedError
from fsworker.jobs.job import Job
from fsworker.spool.upload import Upload


class FSWorker:
    """A client, and what a Flask application does with it. ``app`` may be given later, to :meth:`init_app`.

    ``name`` is the application's name in the store. A request with more bytes than ``max_bytes`` (or
    ``FSWORKER_MAX_BYTES``) in one file is answered 413; Flask's ``MAX_CONTENT_LENGTH`` is about the whole request.
    """

    def __init__(
        self,
        app: Flask | None,
        name: str,
        *,
        max_bytes: int | None = None,
        settings: Settings | None = None,
        **overrides: Any,
    ) -> None:
        self._name, self._max_bytes, self._settings, self._overrides = name, max_bytes, settings, overrides
        self._made: FileAnswers | None = None
        self._lock = threading.Lock()
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Have this application's uploads written into the spool."""
        spooling = {"_get_file_stream": lambda _request, *_, **__: self.client.open_upload(self._max_bytes)}
        app.request_class = type("SpoolingRequest", (app.request_class,), spooling)
        app.register_error_handler(UploadRejectedError, _refused)
        app.extensions["fsworker"] = self

    @property
    def client(self) -> Client:
        """The client; made when first used, in the process that uses it."""
        return self._answers().client

    def _answers(self) -> FileAnswers:
        with self._lock:
            if self._made is None:
                self._made = FileAnswers(Client(self._name, settings=self._settings, **self._overrides))
            return self._made

    def ingest(self, source: Any, **options: Any) -> Job:
        """:meth:`fsworker.Client.ingest`, also for what ``request.files`` holds."""
        inner: Any = source.stream if isinstance(source, FileStorage) else source
        return self.client.ingest(inner, **options)

    def receive(self, max_bytes: int | None = None) -> Upload:
        """The body of this request, raw (a PUT, a ``fetch`` of a file), as an upload in the spool; to be ingested.

        Raises :class:`UploadRejectedError` (413) when there is too much, as far as it was read.
        """
        upload = self.client.open_upload(self._max_bytes if max_bytes is None else max_bytes)
        try:
            while piece := request.stream.read(BUFFER_BYTES):
                upload.write(piece)
        except BaseException:
            upload.close()
            raise
        return upload

    def serve(self, hash: str, **how: Any) -> Response:  # noqa: A002 - the public name
        """Answer this request for a stored file; decide first whether its sender may see it.

        ``how`` are the options of :meth:`fsworker.Client.response_headers`. nginx sends the bytes where
        ``FSWORKER_SERVE_WITH`` says so; without it this process does, ranges included.
        """
        answer = self._answers().answer(request.method, request.headers.get, hash, **how)
        response = Response(cast(Any, answer.body), status=answer.status, headers=answer.headers)
        if answer.body is not None:
            response.call_on_close(answer.body.close)
        return response

    def status(self, job_id: str) -> Response:
        """A view: how a job stands, as JSON, for whoever knows its id, which is 128 random bits."""
        try:
            job = self.client.job(job_id)
        except UploadRejectedError:
            abort(404)
        response = jsonify(job_report(job))
        response.cache_control.no_store = True
        return response


def _refused(error: UploadRejectedError) -> tuple[str, int]:
    return str(error), 413


__all__ = ["FSWorker"]
