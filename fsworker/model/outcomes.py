"""What becomes of a request: a result, or a failure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, Self

from pydantic import Field

from fsworker.errors import FSWorkerError
from fsworker.model.fields import HashField, Model
from fsworker.model.names import Hash


class PictureSize(Model):
    """A picture as its decoder sees it: media type, and upright size in pixels."""

    media_type: str
    width: int
    height: int


class ThumbnailResult(Model):
    """One stored thumbnail. Sizes in bytes and pixels."""

    hash: HashField
    size: int
    media_type: str
    width: int
    height: int


class IngestResult(Model):
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


class ClaimResult(Model, Mapping[str, list[Hash]]):
    """Which of the claimed hashes are in the store (and now fresh), and which are not.

    Also a mapping, equal to the ``{"present": [...], "missing": [...]}`` that a plain Celery producer gets.
    """

    present: list[HashField]
    missing: list[HashField]

    @property
    def hashes(self) -> list[Hash]:
        """The present ones: what a repeated answer freshens again."""
        return self.present

    def __getitem__(self, key: str) -> list[Hash]:
        return {"present": self.present, "missing": self.missing}[key]

    def __iter__(self) -> Iterator[str]:  # type: ignore[override]  # a mapping's, not the model's pairs
        return iter(("present", "missing"))

    def __len__(self) -> int:
        return 2

    def __eq__(self, other: object) -> bool:
        return dict(self) == dict(other) if isinstance(other, Mapping) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # like any mapping's with lists in it


Result = IngestResult | ClaimResult


class Failure(Model):
    """Why a job failed for good: ``type`` is a class of :mod:`fsworker.errors`, ``message`` names what to do."""

    type: str
    message: str

    @classmethod
    def of(cls, error: FSWorkerError) -> Self:
        """The failure that tells of ``error``."""
        return cls(type=type(error).__name__, message=str(error))


class Outcome(Model):
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
