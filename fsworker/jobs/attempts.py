"""An attempt at a job, and what becomes of a job at which it fails: it has failed for good, or it waits.

Errors are permanent (the job fails, the bytes go to ``Error/``) or transient (the job waits: back-off in the request,
the sweep rings again); the error's class says which. What was not foreseen is transient, and stays counted against the
job.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from fsworker.errors import (
    ConfigError,
    FSWorkerError,
    UnavailableError,
    UploadNotFoundError,
    UploadRejectedError,
)
from fsworker.jobs.held import HeldJob
from fsworker.jobs.intake import keep_rejected, rejected_before
from fsworker.model import Failure, Outcome
from fsworker.spool.directory import taken_name
from fsworker.store.handle import StoreHandle

log = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_DELAY_S = 15.0
MAX_DELAY_S = 15 * 60.0
"""The longest back-off."""


@dataclass(frozen=True)
class Failed:
    """The end of a job that failed for good."""

    outcome: Outcome


def attempt(store: StoreHandle, job: HeldJob, work: Callable[[], T]) -> T | Failed | None:
    """Run ``work``; turn what it raises into a failure for good, or into a back-off (``None``)."""
    try:
        return work()
    except (UnavailableError, OSError, MemoryError) as error:
        back_off(job, error)
    except FSWorkerError as error:
        return _fail_or_wait(store, job, error)
    except Exception as error:
        # A fault of ours, or a soft time limit: no verdict on the upload, until it has cost its attempts.
        log.exception("job %s: unexpected error", job.id)
        back_off(job, error, counts=True)
    return None


def _fail_or_wait(store: StoreHandle, job: HeldJob, error: FSWorkerError) -> Failed | None:
    """:func:`fail`; ``None`` where the upload cannot be moved now: then the job waits, and fails later."""
    try:
        return Failed(fail(store, job, error))
    except (UnavailableError, OSError) as problem:
        back_off(job, problem)
        return None


def fail(store: StoreHandle, job: HeldJob, error: FSWorkerError) -> Outcome:
    """Give a job up: the upload goes to ``Error/`` (back to its name when only the configuration is wrong).

    Returns the outcome, which is not written yet. Raises ``OSError`` and :class:`StoreUnavailableError` when the upload
    cannot be moved now.
    """
    if isinstance(error, UploadNotFoundError) and job.spooled.attempts > 1:
        reason = rejected_before(store, job.id)
        error = error if reason is None else UploadRejectedError(reason)
    message = str(error)
    upload = job.upload or "upload"
    if isinstance(error, ConfigError):
        if job.upload is not None and not job.spool.exists(job.upload):
            job.spool.rename(taken_name(job.id), job.upload)
    elif job.spooled.task == "ingest":
        if job.upload is not None and not job.spool.exists(taken_name(job.id)):
            job.spool.rename(job.upload, taken_name(job.id))
        kept = keep_rejected(store, job.spool, job.id, upload, message, job.spooled.request)
        if kept is not None:
            message += f". It is kept as {kept}"
    log.warning("job %s failed: %s: %s", job.id, type(error).__name__, message)
    return Outcome(job_id=job.id, task=job.spooled.task, error=Failure(type=type(error).__name__, message=message))


def back_off(job: HeldJob, error: BaseException, *, counts: bool = False) -> None:
    """Leave the job for the sweep, later each time. ``counts``: the attempt stays counted. Raises nothing."""
    failures = job.spooled.failures + 1
    delay_s = min(_FIRST_DELAY_S * 2 ** min(failures - 1, 10), MAX_DELAY_S)
    problem = str(error) or type(error).__name__
    log.warning("job %s waits %.0f s: %s", job.id, delay_s, problem)
    changed = job.spooled.model_copy(
        update={
            # Only what was counted at the beginning is taken back; what is no fault of the upload is not held against it.
            "attempts": job.spooled.attempts - (1 if job.counted and not counts else 0),
            "failures": failures,
            "not_before": time.time() + delay_s,
            "problem": problem[:2000],
        }
    )
    try:
        job.spool.write_request(job.id, changed, sync=False, sync_content=True)
    except OSError as problem_writing:  # a full disk, most likely: the request stays as it was, the sweep rings
        log.warning("job %s: its back-off could not be noted: %s", job.id, problem_writing)
