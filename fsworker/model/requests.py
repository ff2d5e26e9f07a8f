"""What is asked for an upload or a hash, checked when it is made: it comes from a message, or from a file in a spool."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, PlainSerializer, ValidationError, model_validator

from fsworker.errors import FSWorkerError, UploadRejectedError
from fsworker.model.fields import HashField, Model
from fsworker.model.names import check_upload_name, first_duplicate, shorten
from fsworker.specification import Thumbnail

_TASK_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_.-]{0,199}\Z")
_THUMBNAIL_NAME = re.compile(r"(?!__type__\Z)[a-zA-Z0-9_][a-zA-Z0-9_.@-]{0,63}\Z")  # kombu's own: fsworker.broker.judge

MAX_THUMBNAILS = 20
"""Thumbnails a request may ask for: one decode serves all, so this bounds output, not decodes."""
MAX_UPLOADS_PER_TASK = 50
"""Uploads in one ``fsworker.ingest_many`` message (celery.md's measurement: beyond fifty nothing is gained)."""
MAX_HASHES_PER_CLAIM = 5000
"""Hashes in one ``fsworker.claim``; keeps its message under the size that is accepted at the door."""


def _check_upload(name: object) -> object:
    if isinstance(name, str):
        try:
            check_upload_name(name)
        except UploadRejectedError as error:
            raise ValueError(str(error)) from error
    return name


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


UploadName = Annotated[str, BeforeValidator(_check_upload)]
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


class IngestRequest(Model):
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


class ThumbnailRequest(Model):
    """What ``fsworker.thumbnail`` is asked: thumbnails of a file that is stored already."""

    hash: HashField
    thumbnails: Specifications = Field(min_length=1)
    max_pixels: Count | None = None
    on_done: TaskName | None = None


class ClaimRequest(Model):
    """What ``fsworker.claim`` is asked: freshen these hashes and say which are present."""

    hashes: Annotated[list[HashField], Field(max_length=MAX_HASHES_PER_CLAIM)]
    on_done: TaskName | None = None


class BatchItem(IngestRequest):
    """One upload of ``fsworker.ingest_many``: an :class:`IngestRequest` and the id of its own job (see :func:`batch_job_id`)."""

    id: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,97}$")] | None = None

    def as_ingest(self) -> dict[str, Any]:
        """The keyword arguments of the ``fsworker.ingest`` that does the same."""
        return self.model_dump(mode="json", exclude={"id"}, exclude_defaults=True)


class BatchRequest(Model):
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


def describe(error: ValidationError) -> str:
    """Say in one line what is wrong with a request: field, reason, and nothing long or unprintable."""
    parts = []
    for item in error.errors(include_url=False, include_context=False, include_input=False)[:3]:
        where = ".".join(shorten(str(p), 40).strip("'") for p in item["loc"]) or "request"
        parts.append(f"{where}: {item['msg'].removeprefix('Value error, ')}")
    more = error.error_count() - len(parts)
    return "; ".join(parts)[:500] + (f" (and {more} more)" if more > 0 else "")
