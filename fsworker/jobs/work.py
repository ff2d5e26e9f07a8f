"""The work inside a job: bytes into the store, pictures into thumbnails, hashes kept fresh. Knows no queue and no Redis."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from fsworker import media
from fsworker.config import Settings
from fsworker.errors import (
    ImageError,
    NotStoredError,
    RedisUnavailableError,
    StoreUnavailableError,
    UploadNotFoundError,
    UploadRejectedError,
)
from fsworker.jobs.intake import take
from fsworker.jobs.pictures import Pictures, Putter
from fsworker.model import (
    ClaimRequest,
    ClaimResult,
    Hash,
    IngestRequest,
    IngestResult,
    Outcome,
    PictureSize,
    Request,
    ThumbnailRequest,
)
from fsworker.spool.directory import SpoolDirectory
from fsworker.store.objects import ObjectStore, Stored
from fsworker.store.trash import restore

_STILL_FRESH_S = 5.0
"""A file that was put or freshened so recently is looked up again, not freshened again."""
_PROGRESS_EVERY_S = 0.5


class Progress:
    """Tells how far a job is, at most every half second and not at all for short ones; never fails a job."""

    def __init__(self, publish: Callable[[dict[str, Any]], None]) -> None:
        self._publish = publish
        self._last_s = time.monotonic()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """``done`` of ``total`` bytes (or pictures) of a stage."""
        now_s = time.monotonic()
        if now_s - self._last_s < _PROGRESS_EVERY_S:
            return
        self._last_s = now_s
        try:
            self._publish({"stage": stage, "done": done, "total": total})
        except RedisUnavailableError:
            self._last_s = float("inf")  # each try may take seconds: no more of them for this job


class Worker:
    """Does the requests of applications in one store. Methods raise the errors of :mod:`fsworker.errors`."""

    def __init__(self, store: ObjectStore, settings: Settings, pictures: Pictures) -> None:
        self._store = store
        self._settings = settings
        self._pictures = pictures

    def do(self, request: Request, spool: SpoolDirectory, job_id: str, progress: Progress) -> Outcome:
        """Do a request by itself, to its outcome."""
        if isinstance(request, IngestRequest):
            stored = self.store_upload(request, spool, job_id, self._store, progress)
            return self.finish_ingest(request, stored, job_id, self._store, progress)
        if isinstance(request, ThumbnailRequest):
            return self._thumbnail(request, job_id)
        return self._claim(request, job_id)

    # -- ingest ----------------------------------------------------------------------------------------------------

    def store_upload(
        self, request: IngestRequest, spool: SpoolDirectory, job_id: str, into: Putter, progress: Progress
    ) -> Stored:
        """Take the upload and store its bytes."""
        limit = min(
            self._settings.max_bytes, self._settings.max_bytes if request.max_bytes is None else request.max_bytes
        )
        fd = take(spool, job_id, request.upload, limit)
        try:
            if request.media_types is not None:  # refuse early what the application does not want; see finish_ingest
                _check_media_type(media.sniff(fd), request.media_types)
            total = os.fstat(fd).st_size
            return into.put_descriptor(fd, limit, lambda done: progress("store", done, max(total, done)))
        finally:
            os.close(fd)

    def finish_ingest(
        self, request: IngestRequest, stored: Stored, job_id: str, into: Putter, progress: Progress
    ) -> Outcome:
        """Look at what was stored, make its thumbnails, and name everything."""
        put_s = time.monotonic()
        fd = self._open(stored.hash)
        try:
            kind = media.sniff(fd)
            progress("thumbnails", 0, max(1, len(request.thumbnails)))
            seen = self._pictures.look(fd, stored.hash, request.thumbnails, request.max_pixels, into)
        finally:
            os.close(fd)
        if seen.size is not None:
            kind = seen.size.media_type
            _check_pixels(seen.size, request.max_pixels)
        # Judged on the stored bytes: those in the spool may have changed since the first look.
        if request.media_types is not None:
            _check_media_type(kind, request.media_types)
        result = IngestResult(
            hash=stored.hash,
            size=stored.size_bytes,
            media_type=kind,
            width=seen.size.width if seen.size else None,
            height=seen.size.height if seen.size else None,
            duplicate=stored.duplicate,
            thumbnails=seen.thumbnails,
            failed_thumbnails=seen.failed,
        )
        self._ensure_fresh(result.hashes if into is self._store else [stored.hash], put_s)
        return _outcome(job_id, "ingest", result)

    def _open(self, name: Hash) -> int:
        """Open what was there a moment ago. Raises :class:`StoreUnavailableError` when a collection was faster."""
        try:
            return self._store.open_descriptor(name)
        except NotStoredError as error:
            raise StoreUnavailableError(f"{error}: it went away while its job ran") from error

    # -- the other two ---------------------------------------------------------------------------------------------

    def _thumbnail(self, request: ThumbnailRequest, job_id: str) -> Outcome:
        put_s = time.monotonic()
        if not restore(self._store, request.hash):
            raise UploadNotFoundError(f"{request.hash} is not stored, so it has no thumbnails; upload the file first")
        fd = self._open(request.hash)
        try:
            size_bytes = os.fstat(fd).st_size
            seen = self._pictures.look(fd, request.hash, request.thumbnails, request.max_pixels, self._store)
            kind = media.sniff(fd)
        finally:
            os.close(fd)
        if seen.size is None or not seen.thumbnails:
            reason = next(iter(seen.failed.values()), f"{kind} is not a picture")
            raise ImageError(f"no thumbnail of {request.hash}: {reason}")
        result = IngestResult(
            hash=request.hash,
            size=size_bytes,
            media_type=seen.size.media_type,
            width=seen.size.width,
            height=seen.size.height,
            duplicate=True,
            thumbnails=seen.thumbnails,
            failed_thumbnails=seen.failed,
        )
        self._ensure_fresh(result.hashes, put_s)
        return _outcome(job_id, "thumbnail", result)

    def _claim(self, request: ClaimRequest, job_id: str) -> Outcome:
        present: list[Hash] = []
        missing: list[Hash] = []
        for name in dict.fromkeys(request.hashes):
            (present if restore(self._store, name) else missing).append(name)
        return _outcome(job_id, "claim", ClaimResult(present=present, missing=missing))

    # -- freshness -------------------------------------------------------------------------------------------------

    def freshen_all(self, outcome: Outcome) -> list[Hash]:
        """Freshen everything that an outcome names, and return what is missing (of a claim: nothing ever is)."""
        if outcome.error is not None:
            return []
        missing = [name for name in outcome.parsed().hashes if not restore(self._store, name)]
        return [] if outcome.task == "claim" else missing

    def _ensure_fresh(self, hashes: list[Hash], since_s: float) -> None:
        """The last act before a result is told. Raises :class:`StoreUnavailableError` when a collection was faster."""
        recent = time.monotonic() - since_s < _STILL_FRESH_S
        for name in hashes:
            if not (self._store.status(name) is not None if recent else self._store.freshen(name)):
                raise StoreUnavailableError(f"{name} was collected while its job ran; is the store's grace too short?")


def _check_pixels(size: PictureSize, max_pixels: int | None) -> None:
    if max_pixels is not None and size.width * size.height > max_pixels:
        raise UploadRejectedError(
            f"the picture has {size.width}×{size.height} pixels, more than the {max_pixels:,} allowed; scale it down, or have "
            f"max_pixels raised"
        )


def _check_media_type(kind: str, allowed: list[str]) -> None:
    if not media.matches(kind, allowed):
        raise UploadRejectedError(f"the upload is {kind} by its content; allowed are {', '.join(allowed) or 'none'}")


def _outcome(job_id: str, task: str, result: IngestResult | ClaimResult) -> Outcome:
    return Outcome.model_validate({"job_id": job_id, "task": task, "result": result.model_dump(mode="json")})
