"""What an application uses: drop an upload, get a job, get hashes.

``ingest`` returns when the upload is safe: its request and its bytes are on disk in the application's spool directory.
Redis is told then, and need not be there: a sweep rings for what it never heard of. This works in a process, or a
container, that sees nothing of the store but ``Spool/<app>``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from pydantic import BaseModel

from fsworker import serving
from fsworker.broker.names import CLAIM, INGEST, INGEST_MANY, TASK_PREFIX, THUMBNAIL, Names
from fsworker.client.bell import Bell
from fsworker.client.drop import Dropped, Dropper
from fsworker.client.options import Specification, check, given, ingest_options, specifications
from fsworker.client.place import find_spool, find_store_id
from fsworker.client.source import Source
from fsworker.config import Settings, load_settings
from fsworker.errors import ConfigError, UploadRejectedError
from fsworker.jobs.job import Job
from fsworker.keepsets.publish import KeepSets
from fsworker.model import (
    MAX_UPLOADS_PER_TASK,
    ClaimRequest,
    ThumbnailRequest,
    check_app,
    check_job_id,
    new_job_id,
    parse_hash,
)
from fsworker.spool.upload import SpooledUpload, Upload
from fsworker.store import layout

_MAX_MESSAGE_BYTES = 150_000


class Client:
    """An application's side of fsworker.

    ``app`` is its name, as registered with the store. Settings come from the environment and the TOML file
    (:mod:`fsworker.config`); keyword arguments win: ``store``, ``spool``, ``redis_url``, ``namespace``, ``state_dir``.
    Thread-safe; make one and keep it. Raises :class:`ConfigError` when the spool directory cannot be used.
    """

    def __init__(self, app: str, *, settings: Settings | None = None, **overrides: Any) -> None:
        try:
            self.app = check_app(app)
        except UploadRejectedError as error:
            raise ConfigError(str(error)) from error
        self.settings = settings if settings is not None else load_settings(**overrides)
        self._names = Names(self.settings.namespace)
        self._spool = find_spool(self.settings, self.app)
        self._store_id = find_store_id(self.settings, self._spool)
        if self.settings.redis_url is None and self.settings.store is None:
            raise ConfigError("FSWORKER_REDIS_URL is not set; a client that sees only its spool needs it")
        self._dropper = Dropper(self._spool, self._store_id)
        self._bell = Bell(self.settings, self._store_id, self._names.ingest_queue(self.app))

    # -- jobs ------------------------------------------------------------------------------------------------------

    def ingest(
        self,
        source: Source,
        *,
        thumbnails: Mapping[str, Specification] | None = None,
        max_bytes: int | None = None,
        media_types: Sequence[str] | None = None,
        max_pixels: int | None = None,
        on_done: str | None = None,
        ring: bool = True,
    ) -> Job:
        """Hand over one upload and return its job.

        ``thumbnails`` maps names of your choice to specifications (``"100x100"`` or :class:`Thumbnail`). ``max_bytes``,
        ``media_types`` (``["image/*", "application/pdf"]``) and ``max_pixels`` narrow what is accepted; a job that
        breaks them fails. ``on_done`` names a task of your own Celery app that is sent to ``fsworker.done.<app>`` at the
        end. With ``ring=False`` the workers are not told until :meth:`ring` (after a commit, say), or the sweep, does it.
        Raises :class:`UploadRejectedError` or :class:`ImageError` for options that make no sense, and
        :class:`StoreUnavailableError` when the bytes cannot be written (then nothing is left behind).
        """
        options = ingest_options(thumbnails, max_bytes, media_types, max_pixels, on_done)
        dropped = self._dropper.write(source, options, sync=True)
        self._dropper.commit([dropped])
        if ring:
            self._bell.ring(INGEST, dropped.kwargs, dropped.job_id)
        return self._job(dropped.job_id)

    def ring(self, job: Job) -> None:
        """Tell the workers of a job whose request waits in the spool. Doing so twice is harmless."""
        request = self._spool.read_request(job.id)
        if request is not None:
            self._bell.ring(f"{TASK_PREFIX}.{request.task}", request.request, job.id)

    def open_upload(self, max_bytes: int | None = None) -> Upload:
        """A file in the spool to write an upload into, piece by piece; then ``ingest`` it, which copies nothing.

        Its ``job_id`` is known before there is a job. Not more than ``max_bytes`` (or ``FSWORKER_MAX_BYTES``) go in.
        Raises :class:`ConfigError`, :class:`StoreUnavailableError`.
        """
        limits = [self.settings.max_bytes, *([max_bytes] if max_bytes is not None else [])]
        return Upload(self._spool, min(limits))

    def uploaded(self, name: str) -> SpooledUpload:
        """A complete file that is in the spool directory already, written by nginx, say; then ``ingest`` it.

        Raises :class:`UploadNotFoundError`, :class:`UploadRejectedError` for a name that cannot be.
        """
        return SpooledUpload(self._spool, name)

    def ingest_many(
        self,
        sources: Iterable[Source],
        *,
        thumbnails: Mapping[str, Specification] | None = None,
        max_bytes: int | None = None,
        media_types: Sequence[str] | None = None,
        max_pixels: int | None = None,
        on_done: str | None = None,
    ) -> list[Job]:
        """Hand over many uploads with the same options; one job for each, in order.

        Up to fifty travel in one message, which a worker handles several times faster than fifty messages. ``sources``
        may be lazy. When one cannot be written the error is raised; those before it are safe and are done.
        """
        options = ingest_options(thumbnails, max_bytes, media_types, max_pixels, on_done)
        jobs: list[Job] = []
        iterator = iter(sources)
        per_message = min(MAX_UPLOADS_PER_TASK, max(1, _MAX_MESSAGE_BYTES // (200 + len(repr(options)))))
        more = True
        while more:
            dropped: list[Dropped] = []
            try:
                for source in islice(iterator, per_message):
                    dropped.append(self._dropper.write(source, options, sync=False))
                more = len(dropped) == per_message
            finally:  # what was dropped before an error is wanted all the same
                if dropped:
                    self._dropper.commit(dropped, sync_content=True)
                    uploads = [{**kwargs, "id": job_id} for job_id, kwargs in dropped]
                    self._bell.ring(INGEST_MANY, {"uploads": uploads}, new_job_id(self.app))
                    jobs.extend(self._job(job_id) for job_id, _ in dropped)
        return jobs

    def thumbnail(
        self,
        hash: str,  # noqa: A002 - the public name
        specification: Specification | Mapping[str, Specification],
        *,
        max_pixels: int | None = None,
        on_done: str | None = None,
    ) -> Job:
        """Make a thumbnail of a stored file; the result is an :class:`IngestResult` whose ``thumbnail`` it is.

        A mapping of names to specifications makes several. Raises :class:`InvalidHashError`, :class:`ImageError`.
        """
        several = isinstance(specification, Mapping) and "geometry" not in specification
        thumbnails: Any = specification if several else {"thumbnail": specification}
        request = given(
            hash=parse_hash(hash), thumbnails=specifications(thumbnails), max_pixels=max_pixels, on_done=on_done
        )
        return self._request_only("thumbnail", THUMBNAIL, request, ThumbnailRequest)

    def claim(self, hashes: Iterable[str], *, on_done: str | None = None) -> Job:
        """Ask which of these are stored, and keep them from collection for the grace; at most 5,000 at a time.

        Claim what you are about to refer to and have not just ingested, then commit the reference within the grace. The
        result is ``{"present": [...], "missing": [...]}``.
        """
        request = given(hashes=list(dict.fromkeys(parse_hash(name) for name in hashes)), on_done=on_done)
        return self._request_only("claim", CLAIM, request, ClaimRequest)

    def job(self, job_id: str) -> Job:
        """A job by its id, from another process or after a restart. Raises :class:`UploadRejectedError` for another's."""
        return self._job(check_job_id(job_id, self.app))

    @property
    def keep(self) -> KeepSets:
        """The application's keep-set: ``files.keep.publish(…)``, see :meth:`fsworker.keepsets.publish.KeepSets.publish`."""
        return KeepSets(self.app, self._names, self._store_id, self._bell.kv)

    def check_redis(self) -> None:
        """Ask whether Redis is there. Raises :class:`ConfigError` or :class:`RedisUnavailableError`; no job needs this."""
        self._bell.check()

    # -- serving ---------------------------------------------------------------------------------------------------

    def response_headers(
        self,
        hash: str,  # noqa: A002 - the public name
        filename: str | None = None,
        media_type: str | None = None,
        disposition: str = "inline",
        *,
        immutable: bool = False,
        public: bool = False,
    ) -> dict[str, str]:
        """The headers of an empty 200 answer that makes nginx send a stored file, safely (:mod:`fsworker.serving`).

        Give ``media_type`` as ingest found it; what browsers could execute becomes an attachment whatever
        ``disposition`` says. ``immutable``: this URL will never mean another file, so browsers need not ask again.
        Answer 304 yourself where :func:`fsworker.serving.not_modified` says so. With ``FSWORKER_SERVE_WITH=sendfile``
        the header is ``X-Sendfile``, which needs ``FSWORKER_STORE``; with ``stream`` there is neither, send the bytes.
        Decide first who may see the file: nothing is looked up here. Raises :class:`InvalidHashError`.
        """
        name, how = parse_hash(hash), self.settings.serve_with or "nginx"
        headers = serving.file_headers(
            name,
            filename=filename,
            media_type=media_type,
            disposition=disposition,
            immutable=immutable,
            public=public,
            inline_types=self.settings.serve_inline,
        )
        if how == "stream":
            return headers
        location = self.settings.serve_location
        if how == "sendfile":
            if self.settings.store is None:
                raise ConfigError("FSWORKER_SERVE_WITH=sendfile needs the store's path: set FSWORKER_STORE")
            location = str(self.settings.store / layout.DATA)
        return {**headers, **serving.accelerated(name, how, location)}

    # -- parts -----------------------------------------------------------------------------------------------------

    def _job(self, job_id: str) -> Job:
        return Job(job_id, self._spool, self._bell.kv_if_any())

    def _request_only(self, kind: str, task: str, request: dict[str, Any], model: type[BaseModel]) -> Job:
        check(request, model)
        job_id = new_job_id(self.app)
        self._dropper.write_request(job_id, kind, request)
        self._bell.ring(task, request, job_id)
        return self._job(job_id)

    def close(self) -> None:
        """Close connections and the spool directory."""
        self._bell.close()
        self._spool.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
