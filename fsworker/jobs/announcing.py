"""Telling who asked: Redis gets its copy of an outcome, the callback is sent, and only then the spool is tidied.

All of it may be done twice. Where Redis is away nothing is tidied: the request that stays makes the sweep ring, and the
outcome is told again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fsworker.broker.kv import KV
from fsworker.broker.names import Names
from fsworker.broker.resultmeta import TaskMeta, meta_of_outcome
from fsworker.broker.sending import Send
from fsworker.errors import FSWorkerError, RedisUnavailableError
from fsworker.jobs.held import HeldJob
from fsworker.jobs.work import Progress
from fsworker.model import Failure, Outcome
from fsworker.spool.directory import request_name, taken_name

log = logging.getLogger(__name__)


class Announcer:
    """Tells outcomes through one Redis, where they stay for ``retention_s``."""

    def __init__(self, kv: KV, send: Send, names: Names, retention_s: float) -> None:
        self._kv = kv
        self._send = send
        self._names = names
        self._retention_s = retention_s

    def announce(self, ended: Sequence[tuple[HeldJob, Outcome]]) -> None:
        """Redis, callbacks, then the removal of upload and request. Stops at an unreachable Redis; the sweep rings."""
        try:
            self._kv.set_results(((job.id, meta_of_outcome(outcome)) for job, outcome in ended), self._retention_s)
            for job, outcome in ended:
                self._call_back(job, outcome)
        except RedisUnavailableError as error:
            log.warning("%d results are in the spool, but not in Redis: %s", len(ended), error)
            return
        for job, outcome in ended:
            log.info("job %s: %s", job.id, _in_short(outcome))
            if outcome.error is None:  # of a failure it was moved away, or could not be: then it has to stay
                job.spool.remove(taken_name(job.id))
            job.spool.remove(request_name(job.id))

    def _call_back(self, job: HeldJob, outcome: Outcome) -> None:
        task = job.spooled.request.get("on_done")
        if not isinstance(task, str):
            return
        kwargs: dict[str, Any] = {"job_id": job.id, "state": outcome.state}
        if outcome.error is None:
            kwargs["result"] = outcome.result
        else:
            kwargs["error"] = outcome.error.model_dump()
        # The id is the same each time: an application may recognise a callback that comes twice.
        self._send(task, kwargs, self._names.done_queue(job.spool.app), f"{job.id}-done")

    def fail_in_redis(self, job_id: str, task: str, error: FSWorkerError) -> Outcome:
        """Tell a failure in Redis alone, where the spool cannot be used; whatever is in it stays there."""
        log.error("job %s: %s", job_id, error)
        outcome = Outcome.model_validate({"job_id": job_id, "task": task, "error": Failure.of(error)})
        try:
            self._kv.set_results([(job_id, meta_of_outcome(outcome))], self._retention_s)
        except RedisUnavailableError as problem:
            log.warning("job %s: its failure could not be told: %s", job_id, problem)
        return outcome

    def report_batch(self, batch_id: str, report: Mapping[str, Any]) -> None:
        """Store the result of a batch's own task. Where Redis is away there is none; its jobs have theirs."""
        try:
            self._kv.set_results([(batch_id, TaskMeta("SUCCESS", report))], self._retention_s)
        except RedisUnavailableError as error:
            log.warning("batch %s: %s", batch_id, error)

    def progress(self, job_id: str) -> Progress:
        """Where a job tells how far it is."""

        def publish(meta: dict[str, Any]) -> None:
            self._kv.set_results([(job_id, TaskMeta("PROGRESS", meta))], self._retention_s)

        return Progress(publish)


def _in_short(outcome: Outcome) -> str:
    if outcome.result is None:
        return "failed, and its application was told"
    if outcome.task == "claim":
        return f"{len(outcome.result['present'])} present, {len(outcome.result['missing'])} missing"
    known = "duplicate" if outcome.result.get("duplicate") else "new"
    thumbnails = ", ".join(outcome.result.get("thumbnails", {})) or "none"
    return f"{outcome.result['hash']} ({outcome.result['media_type']}, {known}), thumbnails: {thumbnails}"
