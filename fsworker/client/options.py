"""What a caller asks for an upload or a hash, as the JSON of a request, checked as the worker will check it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from fsworker.errors import UploadRejectedError
from fsworker.model import IngestRequest, describe
from fsworker.specification import Thumbnail

Specification = Thumbnail | str | Mapping[str, Any]
"""What a thumbnail shall be: ``"100x100"``, a :class:`Thumbnail`, or its JSON."""


def ingest_options(
    thumbnails: Mapping[str, Specification] | None,
    max_bytes: int | None,
    media_types: Sequence[str] | None,
    max_pixels: int | None,
    on_done: str | None,
) -> dict[str, Any]:
    """The arguments of an ingest, but for its upload. Raises :class:`UploadRejectedError`, :class:`ImageError`."""
    options = given(
        thumbnails=specifications(thumbnails) if thumbnails else None,
        max_bytes=max_bytes,
        max_pixels=max_pixels,
        media_types=list(media_types) if media_types is not None else None,
        on_done=on_done,
    )
    check({"upload": "upload", **options}, IngestRequest)
    return options


def given(**arguments: Any) -> dict[str, Any]:
    """Those of the arguments that are not ``None``."""
    return {name: value for name, value in arguments.items() if value is not None}


def specifications(thumbnails: Mapping[str, Specification]) -> dict[str, Any]:
    """Named specifications as JSON. Raises :class:`ImageError` for one that makes no sense."""
    return {name: Thumbnail.parse(value).to_json() for name, value in thumbnails.items()}


def check(request: Mapping[str, Any], model: type[BaseModel]) -> None:
    """Raise :class:`UploadRejectedError` for a request that the worker would refuse."""
    try:
        model.model_validate(request)
    except ValidationError as error:
        raise UploadRejectedError(describe(error)) from None
