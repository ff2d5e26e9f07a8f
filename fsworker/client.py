"""What an application uses: drop an upload, get a job, get hashes.

``ingest`` returns when the upload is safe: its request and its bytes are on disk in the application's spool directory.
Redis is told then, and need not be there: a sweep rings for what it never heard of. This works in a process, or a
container, that sees nothing of the store but ``Spool/<app>``.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import BaseModel, ValidationError

from fsworker import durable, serving
from fsworker.broker.kv import KV
from fsworker.broker.names import CLAIM, INGEST, INGEST_MANY, TASK_PREFIX, THUMBNAIL, Names
from fsworker.broker.sending import Sender, make_producer
from fsworker.config import Settings, load_settings
from fsworker.errors import ConfigError, RedisUnavailableError, StoreUnavailableError, UploadRejectedError
from fsworker.host.state import find_redis_url
from fsworker.jobs.job import Job
from fsworker.keepsets.publish import KeepSets
from fsworker.model import (
    MAX_UPLOADS_PER_TASK,
    ClaimRequest,
    IngestRequest,
    ThumbnailRequest,
    check_app,
    check_job_id,
    describe,
    new_job_id,
    parse_hash,
)
from fsworker.specification import Thumbnail
from fsworker.spool.directory import STORE_NOTE, SpoolDirectory, SpooledRequest, part_name, request_name
from fsworker.spool.upload import UPLOAD_MODE, SpooledUpload, Upload, spool_errors
from fsworker.store import layout
from fsworker.store.handle import StoreHandle

log = logging.getLogger(__name__)

Source = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Upload | SpooledUpload
"""What can be ingested: a path, bytes, an object with ``read(n)`` that is read from where it stands to its end, or what
is in the spool already (:mod:`fsworker.spool.upload`)."""

Specification = Thumbnail | str | Mapping[str, Any]

_MAX_MESSAGE_BYTES = 150_000
_REDIS_AWAY_S = 5.0


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
        self._spool = _open_spool(self.settings, self.app)
        self._store_id = self._spool.read_store_id() or _store_id(self.settings)
        if self.settings.redis_url is None and self.settings.store is None:
            raise ConfigError("FSWORKER_REDIS_URL is not set; a client that sees only its spool needs it")
        self._wire: tuple[KV, Sender] | None = None
        self._ask_redis_at_s = 0.0

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
        options = _options(thumbnails, max_bytes, media_types, max_pixels, on_done)
        job_id, kwargs = self._write(source, options, sync=True)
        self._commit([(job_id, kwargs)])
        if ring:
            self._ring(INGEST, kwargs, job_id)
        return self._job(job_id)

    def ring(self, job: Job) -> None:
        """Tell the workers of a job whose request waits in the spool. Doing so twice is harmless."""
        request = self._spool.read_request(job.id)
        if request is not None:
            self._ring(f"{TASK_PREFIX}.{request.task}", request.request, job.id)

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
        options = _options(thumbnails, max_bytes, media_types, max_pixels, on_done)
        jobs: list[Job] = []
        iterator = iter(sources)
        per_message = min(MAX_UPLOADS_PER_TASK, max(1, _MAX_MESSAGE_BYTES // (200 + len(repr(options)))))
        more = True
        while more:
            dropped: list[tuple[str, dict[str, Any]]] = []
            try:
                for source in islice(iterator, per_message):
                    dropped.append(self._write(source, options, sync=False))
                more = len(dropped) == per_message
            finally:  # what was dropped before an error is wanted all the same
                if dropped:
                    self._commit(dropped, sync_content=True)
                    uploads = [{**kwargs, "id": job_id} for job_id, kwargs in dropped]
                    self._ring(INGEST_MANY, {"uploads": uploads}, new_job_id(self.app))
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
        request = {
            "hash": parse_hash(hash),
            "thumbnails": _specifications(thumbnails),
            **({"max_pixels": max_pixels} if max_pixels is not None else {}),
            **({"on_done": on_done} if on_done is not None else {}),
        }
        return self._request_only("thumbnail", THUMBNAIL, request, ThumbnailRequest)

    def claim(self, hashes: Iterable[str], *, on_done: str | None = None) -> Job:
        """Ask which of these are stored, and keep them from collection for the grace; at most 5,000 at a time.

        Claim what you are about to refer to and have not just ingested, then commit the reference within the grace. The
        result is ``{"present": [...], "missing": [...]}``.
        """
        request = {
            "hashes": list(dict.fromkeys(parse_hash(name) for name in hashes)),
            **({"on_done": on_done} if on_done is not None else {}),
        }
        return self._request_only("claim", CLAIM, request, ClaimRequest)

    def job(self, job_id: str) -> Job:
        """A job by its id, from another process or after a restart. Raises :class:`UploadRejectedError` for another's."""
        return self._job(check_job_id(job_id, self.app))

    @property
    def keep(self) -> KeepSets:
        """The application's keep-set: ``files.keep.publish(…)``, see :meth:`fsworker.keepsets.publish.KeepSets.publish`."""
        return KeepSets(self.app, self._names, self._store_id, self._redis)

    def check_redis(self) -> None:
        """Ask whether Redis is there. Raises :class:`ConfigError` or :class:`RedisUnavailableError`; no job needs this."""
        KV(find_redis_url(self.settings, self._store_id)).ping()

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
        wire = self._connection()
        return Job(job_id, self._spool, wire[0] if wire else None)

    def _request_only(self, kind: str, task: str, request: dict[str, Any], model: type[BaseModel]) -> Job:
        _check(request, model)
        job_id = new_job_id(self.app)
        with self._written():
            self._spool.write_request(job_id, self._spooled(kind, request))
        self._ring(task, request, job_id)
        return self._job(job_id)

    def _write(self, source: Source, options: dict[str, Any], *, sync: bool) -> tuple[str, dict[str, Any]]:
        """Write the request and the upload, the latter under its ``.part`` name. Returns job id and arguments.

        With ``sync`` their content is on disk. On an error neither is left.
        """
        given = source if isinstance(source, (Upload, SpooledUpload)) else None
        job_id = given.job_id if given is not None else new_job_id(self.app)
        upload = given.upload if given is not None else uuid.uuid4().hex
        if given is not None and self._spool.exists(request_name(job_id)):
            raise UploadRejectedError(f"this upload was ingested already, as job {job_id}")
        kwargs = {"upload": upload, **options}
        with _reading(source) as read_into:
            try:
                with self._written():
                    self._spool.write_request(job_id, self._spooled("ingest", kwargs), sync=False)
                if given is not None:
                    given.finish(sync=sync)
                else:
                    self._write_part(upload, read_into, sync=sync)
                if sync:
                    with self._written():
                        self._spool.sync_file(request_name(job_id))
            except BaseException:
                self._remove(part_name(upload), request_name(job_id))
                raise
        return job_id, kwargs

    def _remove(self, *names: str) -> None:
        for name in names:
            with contextlib.suppress(OSError):  # the sweep gets what is left
                self._spool.remove(name)

    def _commit(self, written: Sequence[tuple[str, dict[str, Any]]], *, sync_content: bool = False) -> None:
        """Give uploads whose content is on disk their names, durably: from here on they are accepted.

        With ``sync_content`` their content is put there first. On an error none is accepted.
        """
        uploads = [kwargs["upload"] for _, kwargs in written]
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
        except Exception:
            self._remove(*committed, *map(part_name, uploads), *(request_name(job_id) for job_id, _ in written))
            raise

    def _write_part(self, upload: str, read_into: Any, *, sync: bool) -> None:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        with self._written():
            fd = os.open(part_name(upload), flags, 0o600, dir_fd=self._spool.fd)
        try:
            with durable.borrowed_buffer() as room:
                while count := read_into(room):  # its errors are the source's, and reach the caller as they are
                    with self._written():
                        durable.write_all(fd, room[:count])
            with self._written():
                os.fchmod(fd, UPLOAD_MODE)
                if sync:
                    os.fsync(fd)
        finally:
            os.close(fd)

    def _spooled(self, kind: str, request: dict[str, Any]) -> SpooledRequest:
        return SpooledRequest.model_validate({"task": kind, "request": request, "store": self._store_id})

    def _written(self) -> contextlib.AbstractContextManager[None]:
        return spool_errors(self._spool.path)

    def _ring(self, task: str, kwargs: dict[str, Any], task_id: str) -> None:
        """Tell the workers. When Redis is away the sweep will, and we do not make each request wait for a time-out."""
        if time.monotonic() < self._ask_redis_at_s:
            return
        try:
            wire = self._connection()
            if wire is None:
                raise RedisUnavailableError("no Redis is configured and no 'fsworker up' runs")
            wire[1](task, kwargs, self._names.ingest_queue(self.app), task_id)
        except RedisUnavailableError as error:
            self._ask_redis_at_s = time.monotonic() + _REDIS_AWAY_S
            log.warning("job %s is safe in the spool and will be done when Redis is back: %s", task_id, error)

    def _connection(self) -> tuple[KV, Sender] | None:
        if self._wire is None:
            try:
                url = find_redis_url(self.settings, self._store_id)
            except ConfigError:
                return None  # only when none is configured: 'fsworker up' may be started later
            self._wire = KV(url), Sender(make_producer(url), url)
        return self._wire

    def _redis(self) -> KV:
        """The connection to Redis. Raises :class:`ConfigError` that says why there is none."""
        wire = self._connection()
        return wire[0] if wire is not None else KV(find_redis_url(self.settings, self._store_id))

    def close(self) -> None:
        """Close connections and the spool directory."""
        if self._wire is not None:
            self._wire[0].close()
            self._wire[1].close()
            self._wire = None
        self._spool.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _open_spool(settings: Settings, app: str) -> SpoolDirectory:
    if settings.spool is not None:
        path = settings.spool
        if not os.path.exists(path / STORE_NOTE) and os.path.isdir(path / app):
            path = path / app  # the spool of all applications was named
        return SpoolDirectory(path, app)
    if settings.store is None:
        raise ConfigError("neither FSWORKER_STORE (the store) nor FSWORKER_SPOOL (only the application's spool) is set")
    if not os.path.exists(settings.store / layout.CONFIG_FILE):
        StoreHandle(settings.store).close()  # raises, and says what is wrong with the path
    return SpoolDirectory(settings.store / layout.SPOOL / app, app)


def _store_id(settings: Settings) -> str:
    if settings.store is None:
        return ""
    try:
        with StoreHandle(settings.store) as handle:
            return handle.config.store_id
    except ConfigError:
        if settings.spool is None:
            raise
        return ""


def _options(
    thumbnails: Mapping[str, Specification] | None,
    max_bytes: int | None,
    media_types: Sequence[str] | None,
    max_pixels: int | None,
    on_done: str | None,
) -> dict[str, Any]:
    """The arguments of an ingest as JSON, checked as the worker will check them."""
    given = {
        "thumbnails": _specifications(thumbnails) if thumbnails else None,
        "max_bytes": max_bytes,
        "max_pixels": max_pixels,
        "media_types": list(media_types) if media_types is not None else None,
        "on_done": on_done,
    }
    options = {name: value for name, value in given.items() if value is not None}
    _check({"upload": "upload", **options}, IngestRequest)
    return options


def _specifications(thumbnails: Mapping[str, Specification]) -> dict[str, Any]:
    return {name: Thumbnail.parse(value).to_json() for name, value in thumbnails.items()}


def _check(request: Mapping[str, Any], model: type[BaseModel]) -> None:
    try:
        model.model_validate(request)
    except ValidationError as error:
        raise UploadRejectedError(describe(error)) from None


@contextlib.contextmanager
def _reading(source: Source) -> Iterator[Any]:
    """A function that fills a buffer from ``source``. Opens (and closes) what is a path; leaves a stream open."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        yield _from_bytes(memoryview(source).cast("B"))
    elif isinstance(source, (str, os.PathLike)):
        path = Path(source)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO is refused, not waited for
        except OSError as error:
            raise _unreadable(path, error) from error
        try:
            if not _is_regular(fd):
                raise UploadRejectedError(f"{path} is not a regular file")
            yield durable.descriptor_into(fd)
        finally:
            os.close(fd)
    elif isinstance(source, (Upload, SpooledUpload)):
        yield None
    elif hasattr(source, "read"):
        yield durable.reader_into(source)
    else:
        raise TypeError(f"cannot ingest {type(source).__name__}: give a path, bytes, or a file open in binary mode")


def _unreadable(path: Path, error: OSError) -> UploadRejectedError | OSError:
    if error.errno in (errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
        return UploadRejectedError(f"{path} cannot be read: {error.strerror}")
    return error


def _is_regular(fd: int) -> bool:
    return stat.S_ISREG(os.fstat(fd).st_mode)


def _from_bytes(view: memoryview) -> Any:
    position = 0

    def read_into(room: memoryview) -> int:
        nonlocal position
        part = view[position : position + len(room)]
        room[: len(part)] = part
        position += len(part)
        return len(part)

    return read_into
