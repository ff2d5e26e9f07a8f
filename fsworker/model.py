"""The words of fsworker as values: hashes, names, requests, results.

Everything here is frozen and checked when it is made, because it is made from what strangers send: a message on a
queue, a request file in a spool, a row of a keep-set. Whoever holds one of these values need not check it again; only a
:data:`Hash` may become part of a path. This is the ground layer and does no I/O.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, NewType, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError, model_validator

from fsworker.errors import FSWorkerError, InvalidHashError, UploadRejectedError
from fsworker.specification import Thumbnail

Hash = NewType("Hash", str)
"""Forty lower-case hexadecimal digits: the SHA-1 of a stored file's content, and its name."""

EMPTY_HASH = Hash("da39a3ee5e6b4b0d3255bfef95601890afd80709")
"""The hash of the empty file, which is a valid upload."""

_HASH = re.compile(r"[0-9a-f]{40}\Z")
_APP = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}\Z")
_UPLOAD = re.compile(r"[a-zA-Z0-9_+-][a-zA-Z0-9_.+-]{0,199}\Z")
_JOB_SUFFIX = re.compile(r"[a-zA-Z0-9_-]{8,64}\Z")
_TASK_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_.-]{0,199}\Z")
_THUMBNAIL_NAME = re.compile(r"(?!__type__\Z)[a-zA-Z0-9_][a-zA-Z0-9_.@-]{0,63}\Z")  # kombu's own: fsworker.broker.judge

MAX_THUMBNAILS = 20
"""Thumbnails a request may ask for: one decode serves all, so this bounds output, not decodes."""
MAX_UPLOADS_PER_TASK = 50
"""Uploads in one ``fsworker.ingest_many`` message (celery.md's measurement: beyond fifty nothing is gained)."""
MAX_HASHES_PER_CLAIM = 5000
"""Hashes in one ``fsworker.claim``; keeps its message under the size that is accepted at the door."""


def is_hash(text: str) -> bool:
    """Tell whether ``text`` is a hash; never raises for a ``str``."""
    return _HASH.match(text) is not None


def parse_hash(text: object) -> Hash:
    """Return ``text`` as a :data:`Hash`.

    Raises :class:`InvalidHashError` for anything but forty lower-case hexadecimal digits (no white space, no newline).
    """
    if not isinstance(text, str) or not _HASH.match(text):
        raise InvalidHashError(f"{shorten(text)} is not a hash: expected 40 lower-case hexadecimal digits")
    return Hash(text)


def shorten(value: object, limit: int = 60) -> str:
    """Quote ``value`` for a message: control characters escaped, at most about ``limit`` characters."""
    text = value if isinstance(value, str) else repr(value)
    return ascii(text) if len(text) <= limit else f"{ascii(text[:limit])[:-1]}…'"


def check_app(name: object) -> str:
    """Return ``name`` if it can name an application, else raise :class:`UploadRejectedError`."""
    if not isinstance(name, str) or not _APP.match(name):
        raise UploadRejectedError(
            f"{shorten(name)} cannot name an application: use 1 to 32 of a-z, 0-9, '_' and '-', not starting with '_' or '-'"
        )
    return name


def check_upload_name(name: object) -> str:
    """Return ``name`` if it is allowed for an upload in a spool directory, else raise :class:`UploadRejectedError`."""
    if not isinstance(name, str) or not _UPLOAD.match(name):
        raise UploadRejectedError(
            f"{shorten(name)} cannot name an upload: use 1 to 200 of a-z, A-Z, 0-9, '_', '+', '-', '.', not starting with a dot"
        )
    return name


def new_job_id(app: str) -> str:
    """Make an unguessable job id (128 random bits) that belongs to ``app``."""
    return f"{app}.{uuid.uuid4()}"


def check_job_id(job_id: object, app: str) -> str:
    """Return ``job_id`` if it is one of ``app``'s, else raise :class:`UploadRejectedError`."""
    prefix = f"{app}."
    if not isinstance(job_id, str) or not job_id.startswith(prefix) or not _JOB_SUFFIX.match(job_id[len(prefix) :]):
        raise UploadRejectedError(f"{shorten(job_id)} is not a job id of application {app!r}: use '{app}.<uuid4>'")
    return job_id


def batch_job_id(batch_id: str, item_id: str | None, number: int) -> str:
    """The job id of one upload of a batch: its own (``shop.<uuid>``), or the batch's with a sub-id (or its number) added.

    Raises :class:`UploadRejectedError` for one that is not of the batch's application, or too long.
    """
    app = app_of_job(batch_id)
    if item_id is not None and item_id.startswith(f"{app}."):
        return check_job_id(item_id, app)
    return check_job_id(f"{batch_id}-{number if item_id is None else item_id}", app)


def app_of_job(job_id: str) -> str:
    """Name the application that a job id belongs to (application names have no dot)."""
    return job_id.partition(".")[0]


def _check_task_name(name: object) -> object:
    if isinstance(name, str) and not _TASK_NAME.match(name):
        raise ValueError("a task name is letters, digits, '_', '-' and '.', at most 200")
    return name


def _check_thumbnails(value: object) -> object:
    if value is None:
        return {}
    if isinstance(value, Mapping):
        if len(value) > MAX_THUMBNAILS:
            raise ValueError(f"{len(value)} thumbnails asked for, at most {MAX_THUMBNAILS} are allowed")
        for name in value:
            if not isinstance(name, str) or not _THUMBNAIL_NAME.match(name):
                raise ValueError(
                    f"{shorten(name)} cannot name a thumbnail: use 1 to 64 letters, digits, '_', '.', '@', '-'"
                )
    return value


def _parse_specification(value: object) -> Thumbnail:
    try:
        return Thumbnail.parse(value)
    except FSWorkerError as error:
        raise ValueError(str(error)) from error


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


HashField = Annotated[Hash, Field(pattern=r"^[0-9a-f]{40}$", min_length=40, max_length=40)]
UploadName = Annotated[str, BeforeValidator(lambda v: v if not isinstance(v, str) else check_upload_name_field(v))]
TaskName = Annotated[str, BeforeValidator(_check_task_name)]
Specification = Annotated[
    Thumbnail, BeforeValidator(_parse_specification), PlainSerializer(lambda t: t.to_json(), return_type=Any)
]
Specifications = Annotated[dict[str, Specification], BeforeValidator(_check_thumbnails)]
MediaTypes = Annotated[
    list[Annotated[str, Field(pattern=r"^[a-zA-Z0-9!#$&^_.+-]{1,127}/([a-zA-Z0-9!#$&^_.+-]{1,127}|\*)$")]],
    Field(max_length=100),
]
Count = Annotated[int, Field(ge=0, le=2**62)]


def check_upload_name_field(name: str) -> str:
    """:func:`check_upload_name` for a field of a message: the same rule as a ``ValueError``."""
    try:
        return check_upload_name(name)
    except UploadRejectedError as error:
        raise ValueError(str(error)) from error


class IngestRequest(_Model):
    """What ``fsworker.ingest`` is asked to do with one upload.

    ``upload`` names a file in the application's spool directory. ``max_bytes``, ``max_pixels`` and ``media_types``
    (exact types, or ``image/*``) can only narrow what the operator allows. ``on_done`` names a task of the
    application's own Celery app, sent to queue ``fsworker.done.<app>``.
    """

    upload: UploadName
    thumbnails: Specifications = Field(default_factory=dict)
    max_bytes: Count | None = None
    max_pixels: Count | None = None
    media_types: MediaTypes | None = None
    on_done: TaskName | None = None


class ThumbnailRequest(_Model):
    """What ``fsworker.thumbnail`` is asked: thumbnails of a file that is stored already."""

    hash: HashField
    thumbnails: Specifications = Field(min_length=1)
    max_pixels: Count | None = None
    on_done: TaskName | None = None


class ClaimRequest(_Model):
    """What ``fsworker.claim`` is asked: freshen these hashes and say which are present."""

    hashes: Annotated[list[HashField], Field(max_length=MAX_HASHES_PER_CLAIM)]
    on_done: TaskName | None = None


class BatchItem(IngestRequest):
    """One upload of ``fsworker.ingest_many``: an :class:`IngestRequest` and the id of its own job (see :func:`batch_job_id`)."""

    id: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,97}$")] | None = None

    def as_ingest(self) -> dict[str, Any]:
        """The keyword arguments of the ``fsworker.ingest`` that does the same."""
        return self.model_dump(mode="json", exclude={"id"}, exclude_defaults=True)


class BatchRequest(_Model):
    """What ``fsworker.ingest_many`` is asked: up to :data:`MAX_UPLOADS_PER_TASK` uploads, each with its own job id."""

    uploads: Annotated[list[BatchItem], Field(min_length=1, max_length=MAX_UPLOADS_PER_TASK)]

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        for names in (
            [item.upload for item in self.uploads],
            [item.id for item in self.uploads if item.id is not None],
        ):
            if (twice := first_duplicate(names)) is not None:
                raise ValueError(f"{shorten(twice)} comes twice in one batch")
        return self


Request = IngestRequest | ThumbnailRequest | ClaimRequest

REQUESTS: dict[str, type[IngestRequest] | type[ThumbnailRequest] | type[ClaimRequest]] = {
    "ingest": IngestRequest,
    "thumbnail": ThumbnailRequest,
    "claim": ClaimRequest,
}
"""The kinds of job, by the last word of their task's name."""


class PictureSize(_Model):
    """A picture as its decoder sees it: media type, and upright size in pixels."""

    media_type: str
    width: int
    height: int


class ThumbnailResult(_Model):
    """One stored thumbnail. Sizes in bytes and pixels."""

    hash: HashField
    size: int
    media_type: str
    width: int
    height: int


class IngestResult(_Model):
    """What an ingest, or a thumbnail job, gives back.

    ``hash``, ``size`` (bytes) and ``media_type`` describe the stored original; ``width`` and ``height`` are those of
    the upright picture in pixels, ``None`` for what is no picture. ``duplicate`` (the content was there before) is
    advisory: of two simultaneous uploads both may say False. ``failed_thumbnails`` maps a name to the reason.
    """

    hash: HashField
    size: int
    media_type: str
    width: int | None = None
    height: int | None = None
    duplicate: bool = False
    thumbnails: dict[str, ThumbnailResult] = Field(default_factory=dict)
    failed_thumbnails: dict[str, str] = Field(default_factory=dict)

    @property
    def thumbnail(self) -> ThumbnailResult:
        """The only thumbnail, of a job that was asked for one. ``ValueError`` if there is not exactly one."""
        (only,) = self.thumbnails.values()
        return only

    @property
    def hashes(self) -> list[Hash]:
        """Every hash that the application must list in its keep-set: the original's first, no duplicates."""
        return list(dict.fromkeys([self.hash, *(t.hash for t in self.thumbnails.values())]))


class ClaimResult(_Model):
    """Which of the claimed hashes are in the store (and now fresh), and which are not."""

    present: list[HashField]
    missing: list[HashField]

    @property
    def hashes(self) -> list[Hash]:
        """The present ones: what a repeated answer freshens again."""
        return self.present

    def __getitem__(self, key: Literal["present", "missing"]) -> list[Hash]:
        return self.present if key == "present" else self.missing


Result = IngestResult | ClaimResult


class Failure(_Model):
    """Why a job failed for good: ``type`` is a class of :mod:`fsworker.errors`, ``message`` names what to do."""

    type: str
    message: str

    @classmethod
    def of(cls, error: FSWorkerError) -> Self:
        """The failure that tells of ``error``."""
        return cls(type=type(error).__name__, message=str(error))


class Outcome(_Model):
    """The end of a job, as its ``.done`` file and its callback carry it: exactly one of ``result`` and ``error``."""

    job_id: str
    task: Literal["ingest", "thumbnail", "claim"]
    result: dict[str, Any] | None = None
    error: Failure | None = None

    @property
    def state(self) -> Literal["done", "failed"]:
        """``done`` or ``failed``, in the words of ``job.state``."""
        return "failed" if self.error is not None else "done"

    def parsed(self) -> Result:
        """The result as its model; only for state ``done``."""
        kind = ClaimResult if self.task == "claim" else IngestResult
        return kind.model_validate(self.result)


def describe(error: ValidationError) -> str:
    """Say in one line what is wrong with a request: field, reason, and nothing long or unprintable."""
    parts = []
    for item in error.errors(include_url=False, include_context=False, include_input=False)[:3]:
        where = ".".join(shorten(str(p), 40).strip("'") for p in item["loc"]) or "request"
        parts.append(f"{where}: {item['msg'].removeprefix('Value error, ')}")
    more = error.error_count() - len(parts)
    return "; ".join(parts)[:500] + (f" (and {more} more)" if more > 0 else "")


def first_duplicate(names: Iterable[str]) -> str | None:
    """The first of ``names`` that comes a second time, or ``None``."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
