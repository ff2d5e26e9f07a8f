"""The keep-set of a Django project: every hash in every registered model, read in one snapshot of the database.

What a keep-set does not name is collected, so this fails closed: a model that has hash columns and is neither
registered nor exempt is a warning of ``manage.py check``, and no keep-set is published before somebody has decided.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from django.apps import apps
from django.core import checks
from django.db import connections, models, router, transaction

from fsworker.contrib.django.fields import HashField, ThumbnailsField, thumbnail_hashes
from fsworker.contrib.django.files import client
from fsworker.contrib.django.storage import FSWorkerStorage, hash_of
from fsworker.errors import InvalidHashError, KeepSetError
from fsworker.keepsets.publish import Published
from fsworker.model import Hash, parse_hash, shorten

M = TypeVar("M", bound=type[models.Model])

_CHUNK_ROWS = 5000

_registered: dict[type[models.Model], tuple[str, ...]] = {}
_exempt: set[type[models.Model]] = set()


def register(model: M, *columns: str) -> M:
    """Keep the files of this model: of its hash columns, and of other ``columns`` that hold a hash, or ``<hash>/…``.

    Hash columns are :class:`HashField`, :class:`ThumbnailsField`, and file fields whose storage is
    :class:`FSWorkerStorage`. Also as a decorator: ``@register`` above the class.
    """
    _registered[model] = columns
    return model


def exempt(model: M) -> M:
    """Say that this model's hashes keep nothing alive: a log, a cache, what refers to what others keep."""
    _exempt.add(model)
    return model


@dataclass(frozen=True)
class Column:
    """A column that holds hashes, and how to find them in a value of it."""

    model: type[models.Model]
    name: str
    hashes_in: Callable[[Any], Iterator[Hash]]

    def read(self, using: str) -> Iterator[Hash]:
        """All hashes in this column, in flat memory. Raises :class:`KeepSetError` that names a row with none."""
        # Not a manager of the model: that might leave rows out (soft deletion, tenants).
        rows = models.QuerySet(self.model, using=using).exclude(**{f"{self.name}__isnull": True}).order_by()
        for key, value in rows.values_list("pk", self.name).iterator(chunk_size=_CHUNK_ROWS):
            if value in ("", None):
                continue
            try:
                yield from self.hashes_in(value)
            except InvalidHashError as error:
                raise KeepSetError(
                    f"{self.model._meta.label}.{self.name} of row {shorten(key)} names no stored file ({error}). Mend the "
                    f"row, or exempt the model; nothing was published"
                ) from error


def hash_columns(model: type[models.Model], *more: str) -> list[Column]:
    """The hash columns that a model has itself (not those of its parents' tables), and ``more`` of them by name."""
    found = []
    for field in model._meta.local_fields:
        reader = _reader(field)
        if reader is None and field.name in more:
            reader = _one_of_a_name
        if reader is not None:
            found.append(Column(model, field.attname, reader))
    unknown = set(more) - {field.name for field in model._meta.local_fields}
    if unknown:
        raise KeepSetError(f"{model._meta.label} has no column {', '.join(sorted(unknown))}; see its register(…)")
    return found


def _reader(field: Any) -> Callable[[Any], Iterator[Hash]] | None:
    if isinstance(field, HashField):
        return _one
    if isinstance(field, ThumbnailsField):
        return thumbnail_hashes
    if isinstance(field, models.FileField) and _is_ours(field.storage):
        return _one_of_a_name
    return None


def _is_ours(storage: Any) -> bool:
    """Also behind ``default_storage``, which is a lazy object."""
    return isinstance(storage, FSWorkerStorage)


def _one(value: Any) -> Iterator[Hash]:
    yield parse_hash(value)


def _one_of_a_name(value: Any) -> Iterator[Hash]:
    yield hash_of(value)


def unregistered() -> list[type[models.Model]]:
    """Models with hash columns of which nobody has said whether they keep files."""
    return [
        model
        for model in apps.get_models(include_auto_created=True)
        if not model._meta.proxy and model not in _registered and model not in _exempt and hash_columns(model)
    ]


def check_registered(**_: Any) -> list[checks.CheckMessage]:
    """The check behind ``manage.py check``."""
    return [
        checks.Warning(
            f"{model._meta.label} has hash columns and is not registered: its files would be collected, so no keep-set "
            f"is published.",
            hint="Put @register (fsworker.contrib.django) above the class, or @exempt if it keeps nothing alive.",
            obj=model,
            id="fsworker.W001",
        )
        for model in unregistered()
    ]


def kept_hashes(counted: Callable[[Column, int], None] | None = None) -> Generator[Hash, None, None]:
    """Every hash that the registered models refer to, duplicates included; each database in one snapshot.

    ``counted`` is told how many hashes a column had. Raises :class:`KeepSetError`.
    """
    for using, columns in _by_database().items():
        with _snapshot(using):
            for column in columns:
                count = 0
                for name in column.read(using):
                    count += 1
                    yield name
                if counted is not None:
                    counted(column, count)


def _by_database() -> dict[str, list[Column]]:
    if missing := unregistered():
        names = ", ".join(model._meta.label for model in missing)
        raise KeepSetError(f"{names}: hash columns, but not registered; see: manage.py check. Nothing was published")
    databases: dict[str, list[Column]] = {}
    for model, more in _registered.items():
        # Where it is written: a replica may be behind the snapshot time.
        databases.setdefault(router.db_for_write(model), []).extend(hash_columns(model, *more))
    return databases


@contextmanager
def _snapshot(using: str) -> Iterator[None]:
    """A new transaction that sees one state of the database: a hash that moves between two columns is seen.

    SQLite's is one anyway. Others follow the isolation level, which is set here where it is not enough by default.
    """
    connection = connections[using]
    nested = connection.in_atomic_block
    if connection.vendor == "mysql" and not nested:
        _execute(using, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    try:
        with transaction.atomic(using=using, durable=True):
            if connection.vendor == "postgresql" and not nested:
                _execute(using, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            yield
    except RuntimeError as error:
        if "durable" not in str(error):
            raise
        raise KeepSetError(
            "a keep-set is read in a transaction of its own; publish it outside of transaction.atomic (and of a view with "
            "ATOMIC_REQUESTS). Nothing was published"
        ) from error


def _execute(using: str, statement: str) -> None:
    with connections[using].cursor() as cursor:
        cursor.execute(statement)


def publish_keep_set(*, allow_empty: bool = False, counted: Callable[[Column, int], None] | None = None) -> Published:
    """Publish what the registered models refer to as the application's keep-set; run it by a timer, every hour, say.

    Raises :class:`KeepSetError`, :class:`RedisUnavailableError`; then the last one stays in force.
    """
    with closing(kept_hashes(counted)) as hashes:  # its transaction ends here, whatever happens
        return client().keep.publish(hashes, allow_empty=allow_empty)
