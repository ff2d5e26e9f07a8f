"""A job as its application sees it: where it stands, and what became of it.

Two places know: the spool (the truth, local files) and Redis (a copy, and the only one that knows progress). Either may be
away, and the other answers.
"""

from __future__ import annotations

import logging
import time
from typing import Literal

from fsworker import errors
from fsworker.broker.kv import KV
from fsworker.broker.resultmeta import TaskMeta, failure_of_meta, result_of_meta
from fsworker.errors import FSWorkerError, JobTimeoutError, RedisUnavailableError, UploadRejectedError
from fsworker.model import Failure, Result
from fsworker.spool.directory import SpoolDirectory, request_name, taken_name

log = logging.getLogger(__name__)

State = Literal["queued", "running", "done", "failed", "unknown"]

_FIRST_POLL_S = 0.01
_SLOWEST_POLL_S = 0.25
_REDIS_AWAY_S = 2.0
_STORE_SHARE = 0.9
"""The part of a job's time that its bytes take, roughly; the rest are thumbnails."""


class Job:
    """One job of an application, by its id. Holds no connection and no lock; make as many as you like."""

    def __init__(self, job_id: str, spool: SpoolDirectory, kv: KV | None) -> None:
        self.id = job_id
        self._spool = spool
        self._kv = kv
        self._ask_redis_at_s = 0.0

    def __repr__(self) -> str:
        return f"<Job {self.id}>"

    @property
    def state(self) -> State:
        """``queued``, ``running``, ``done``, ``failed``; ``unknown`` for what neither spool nor Redis has heard of.

        (A job that was sent by a plain Celery producer is unknown until a worker begins it.)
        """
        outcome = self._spool.read_outcome(self.id)
        if outcome is not None:
            return outcome.state
        meta, unfinished = self._meta(), self._unfinished()
        if meta is not None and meta.status in ("SUCCESS", "FAILURE") and not unfinished:
            return "done" if meta.status == "SUCCESS" else "failed"
        if (meta is not None and meta.status in ("PROGRESS", "STARTED")) or self._spool.exists(taken_name(self.id)):
            return "running"
        if unfinished:
            return "queued"
        outcome = self._spool.read_outcome(self.id)  # it may have ended since the first look
        return outcome.state if outcome is not None else "unknown"

    @property
    def progress(self) -> float:
        """How much is done, from 0.0 to 1.0; 1.0 for a job that has ended, well or not."""
        state = self.state
        if state in ("done", "failed"):
            return 1.0
        meta = self._meta() if state == "running" else None
        if meta is None or not isinstance(meta.result, dict):
            return 0.0
        done, total = meta.result.get("done"), meta.result.get("total")
        if not isinstance(done, (int, float)) or not isinstance(total, (int, float)) or total <= 0:
            return 0.0
        share = min(1.0, max(0.0, done / total))
        if meta.result.get("stage") == "store":
            return _STORE_SHARE * share
        return _STORE_SHARE + (1 - _STORE_SHARE) * share

    @property
    def problem(self) -> str | None:
        """Why a job that has not ended is waiting (a full disk, say), or ``None``."""
        try:
            request = self._spool.read_request(self.id)
        except UploadRejectedError as error:
            return str(error)
        return request.problem or None if request else None

    def get(self, timeout: float | None = 30.0) -> Result:
        """Wait for the end, at most ``timeout`` seconds (``None``: for ever), and return the result.

        An :class:`IngestResult`; for a claim a :class:`ClaimResult`. Raises the error that the job failed with, of its
        own class in :mod:`fsworker.errors`, or :class:`JobTimeoutError`: then the job goes on, ask again.
        """
        deadline_s = None if timeout is None else time.monotonic() + timeout
        pause_s = _FIRST_POLL_S
        while True:
            result = self._result()
            if result is not None:
                return result
            now_s = time.monotonic()
            if deadline_s is not None and now_s >= deadline_s:
                raise JobTimeoutError(self._not_yet(timeout))
            time.sleep(pause_s if deadline_s is None else min(pause_s, max(0.0, deadline_s - now_s)))
            pause_s = min(pause_s * 1.3, _SLOWEST_POLL_S)

    def _result(self) -> Result | None:
        """The result if there is one now; raises if the job failed."""
        outcome = self._spool.read_outcome(self.id)
        if outcome is not None:
            if outcome.error is not None:
                raise error_of(outcome.error)
            return outcome.parsed()
        if self._unfinished():
            return None  # what Redis says of its end is from before it was tried again
        meta = self._meta()
        if meta is None or meta.status not in ("SUCCESS", "FAILURE"):
            return None
        if meta.status == "FAILURE":
            raise error_of(failure_of_meta(meta))
        return result_of_meta(meta.result)

    def _unfinished(self) -> bool:
        """Whether the request is there: it is removed last, after the outcome was written."""
        return self._spool.exists(request_name(self.id))

    def _meta(self) -> TaskMeta | None:
        """What Redis says; ``None`` when it is away (and then it is not asked again for a while)."""
        if self._kv is None or time.monotonic() < self._ask_redis_at_s:
            return None
        try:
            return self._kv.task_meta(self.id)
        except RedisUnavailableError as error:
            log.debug("job %s: %s", self.id, error)
            self._ask_redis_at_s = time.monotonic() + _REDIS_AWAY_S
            return None

    def _not_yet(self, timeout: float | None) -> str:
        state, problem = self.state, self.problem
        hint = {
            "queued": "no worker has taken it yet: does an ingest worker run for this store ('fsworker up', 'fsworker worker')?",
            "running": "a worker is at it",
            "unknown": "nobody has heard of it: is the id right, and was its task sent to this application's queue?",
        }.get(state, "it has just ended: ask again")
        return f"job {self.id} is {state} after {timeout:g} s; {problem or hint}"


def error_of(failure: Failure) -> FSWorkerError:
    """The error that a failure describes, as its own class if that is one of ours."""
    kind = getattr(errors, failure.type, None)
    if isinstance(kind, type) and issubclass(kind, FSWorkerError):
        return kind(failure.message)
    return FSWorkerError(f"{failure.type}: {failure.message}")
