"""Hashes, and the names of applications, uploads and jobs. Whoever holds one that was checked need not check it again."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable
from typing import NewType

from fsworker.errors import InvalidHashError, UploadRejectedError

Hash = NewType("Hash", str)
"""Forty lower-case hexadecimal digits: the SHA-1 of a stored file's content, and its name."""

EMPTY_HASH = Hash("da39a3ee5e6b4b0d3255bfef95601890afd80709")
"""The hash of the empty file, which is a valid upload."""

_HASH = re.compile(r"[0-9a-f]{40}\Z")
_APP = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}\Z")
_UPLOAD = re.compile(r"[a-zA-Z0-9_+-][a-zA-Z0-9_.+-]{0,199}\Z")
_JOB_SUFFIX = re.compile(r"[a-zA-Z0-9_-]{8,64}\Z")


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
    """Quote ``value`` for a message: what is not printable ASCII escaped, at most ``limit`` characters between the quotes."""
    text = value if isinstance(value, str) else repr(value)
    quoted = ascii(text[: limit + 1])
    return quoted if len(quoted) <= limit + 2 else f"{quoted[: limit + 1]}…{quoted[0]}"


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


def first_duplicate(names: Iterable[str]) -> str | None:
    """The first of ``names`` that comes a second time, or ``None``."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
