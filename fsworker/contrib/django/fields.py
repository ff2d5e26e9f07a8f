"""Columns that hold hashes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.core.exceptions import ValidationError
from django.db import models

from fsworker.errors import InvalidHashError
from fsworker.model import Hash, IngestResult, ThumbnailResult, is_hash, parse_hash


def validate_hash(value: object) -> None:
    """A validator: forty lower-case hexadecimal digits."""
    if not isinstance(value, str) or not is_hash(value):
        raise ValidationError("%(value)s is not a hash of a stored file.", params={"value": value}, code="invalid")


class HashField(models.CharField):
    """The hash of a stored file. With ``null=True, blank=True``: of one that may be missing, or not be ready yet.

    Whatever is saved is checked, in ``bulk_create`` and ``update`` too: a broken hash would stop the keep-set.
    """

    description = "The hash of a stored file"
    default_validators = (validate_hash,)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["max_length"] = 40
        super().__init__(*args, **kwargs)

    def deconstruct(self) -> tuple[str, str, list[Any], dict[str, Any]]:
        """For migrations."""
        name, path, args, kwargs = super().deconstruct()
        del kwargs["max_length"]
        return name, path, args, kwargs

    def get_prep_value(self, value: Any) -> Any:
        """What goes to the database. Raises :class:`InvalidHashError` (a ``ValueError``)."""
        value = super().get_prep_value(value)
        return value if value in (None, "") else parse_hash(value)


class ThumbnailsField(models.JSONField):
    """The thumbnails of an ingest, by name: ``ThumbnailsField(default=dict)``.

    Assign ``result.thumbnails``; read ``photo.thumbnails["small"]["hash"]``, ``["width"]``, ``["height"]``, ….
    """

    description = "Thumbnails of a stored file"

    def to_python(self, value: Any) -> Any:
        """Plain dictionaries, of what an ingest gives, too."""
        return _plain(super().to_python(value))

    def pre_save(self, model_instance: models.Model, add: bool) -> Any:
        """The value as it will be read back."""
        value = _plain(super().pre_save(model_instance, add))
        setattr(model_instance, self.attname, value)
        return value

    def get_db_prep_save(self, value: Any, connection: Any) -> Any:
        """What goes to the database. Raises :class:`InvalidHashError` for anything but thumbnails with their hashes."""
        value = _plain(value)
        if not hasattr(value, "as_sql"):  # an expression is the database's to judge; the keep-set looks again
            list(thumbnail_hashes(value))
        return super().get_db_prep_save(value, connection)


def _plain(value: Any) -> Any:
    if isinstance(value, IngestResult):
        value = value.thumbnails
    if isinstance(value, dict):
        return {name: item.model_dump() if isinstance(item, ThumbnailResult) else item for name, item in value.items()}
    return value


def thumbnail_hashes(value: object) -> Iterator[Hash]:
    """The hashes in a :class:`ThumbnailsField`. Raises :class:`InvalidHashError` for what has another form."""
    if value is None:
        return
    if not isinstance(value, dict) or not all(isinstance(item, dict) for item in value.values()):
        raise InvalidHashError("these are not thumbnails: expected {name: {'hash': …}}, as in result.thumbnails")
    for item in value.values():
        yield parse_hash(item.get("hash"))
