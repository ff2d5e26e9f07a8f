"""Every error that fsworker raises on purpose.

The class tells the caller what to do:

* :class:`ConfigError`: a person has to change a setting, a permission or a command line; retrying is useless.
* :class:`UploadError`, :class:`ImageError`, :class:`InvalidHashError`, :class:`KeepSetError`: this input is refused
  for good; tell its author.
* :class:`UnavailableError`: nothing is wrong with the input; try again later. fsworker's own sweep does.
* :class:`HashCollisionError`, :class:`CollectionRefusedError`: the store protected itself; a person has to look.

Each message names what is wrong and what to do about it, because it is read in a log at night.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


class FSWorkerError(Exception):
    """Root of all errors below, so that one ``except`` can catch what fsworker means to say."""


class ConfigError(FSWorkerError):
    """A setting, a permission or the environment is wrong; the message says which and how to mend it."""


class InvalidHashError(FSWorkerError, ValueError):
    """A text that is not forty lower-case hexadecimal digits was used as a hash."""


class UploadError(FSWorkerError):
    """An upload cannot become a stored file. Permanent: the same upload fails again."""


class UploadNotFoundError(UploadError):
    """The upload, or the stored file that a job names, does not exist (any more)."""


class UploadRejectedError(UploadError):
    """The upload breaks a rule (size, media type, name, kind of file); its bytes are kept under ``Error/``."""


class ImageError(FSWorkerError):
    """A picture, or a thumbnail specification, that cannot be turned into a thumbnail; the message says why."""


class HashCollisionError(FSWorkerError):
    """Two different contents have the same SHA-1. The stored file is untouched, the new one is kept under ``Error/``."""


class KeepSetError(FSWorkerError):
    """A keep-set cannot be published as given; nothing of it is visible to a collection."""


@dataclass(frozen=True)
class Refusal:
    """One reason for which a collection declines: a ``reason`` in one word, what is wrong and what to do, the numbers.

    ``app`` is the application concerned, or ``None``. ``override`` names the override that a person may give, if any.
    """

    reason: str
    message: str
    app: str | None = None
    numbers: Mapping[str, float | int | str] = field(default_factory=dict)
    override: str | None = None

    def as_json(self) -> dict[str, object]:
        """For ``--json`` and task results."""
        return {
            "reason": self.reason,
            "app": self.app,
            "message": self.message,
            "numbers": dict(self.numbers),
            "override": self.override,
        }


class CollectionRefusedError(FSWorkerError):
    """A collection (or purge) declined to run. Nothing was moved, or, when it was begun already, nothing more is."""

    def __init__(self, *refusals: Refusal) -> None:
        super().__init__("; ".join(refusal.message for refusal in refusals))
        self.refusals = refusals


class UnavailableError(FSWorkerError):
    """Something that is needed is away for now (disk full, I/O error, Redis down). Nothing is lost; try later."""


class StoreUnavailableError(UnavailableError):
    """The store's filesystem refused a write or a read (``ENOSPC``, ``EDQUOT``, ``EIO``, ``EROFS``, …)."""


class VerificationRunningError(UnavailableError):
    """Another whole verification of this store runs; this one did nothing."""


class RedisUnavailableError(UnavailableError):
    """Redis cannot be reached or refuses commands."""


class JobTimeoutError(UnavailableError, TimeoutError):
    """``job.get(timeout=…)`` ran out of time; the job itself goes on, ask again."""


class NotStoredError(FSWorkerError, KeyError):
    """A well-formed hash that is not in the store."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would show the message's repr
