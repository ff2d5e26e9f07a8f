"""Many ingests in one message: two ``syncfs`` for all their bytes, and yet each upload is a job of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeVar

from fsworker.broker.names import INGEST, Names
from fsworker.broker.sending import Send
from fsworker.errors import ConfigError, UnavailableError, UploadRejectedError
from fsworker.jobs.attempts import Failed, attempt, back_off
from fsworker.jobs.held import HeldJob, holding
from fsworker.jobs.life import Life
from fsworker.model import BatchItem, BatchRequest, Outcome, app_of_job, batch_job_id
from fsworker.spool.directory import SpoolDirectory, SpooledRequest, request_name
from fsworker.store.batch import Batch
from fsworker.store.objects import Stored

log = logging.getLogger(__name__)

T = TypeVar("T")


class Batches:
    """Does batches of ingests for one store. Methods raise nothing that an upload could cause."""

    def __init__(self, life: Life, send: Send, names: Names) -> None:
        self._life = life
        self._store, self._spools = life.store, life.spools
        self._worker, self._announcer = life.worker, life.announcer
        self._send = send
        self._names = names

    def run(self, batch_id: str, batch: BatchRequest, *, redelivered: bool) -> dict[str, Any]:
        """See :meth:`fsworker.jobs.service.Service.run_many`."""
        try:
            items = {batch_job_id(batch_id, item.id, n): item for n, item in enumerate(batch.uploads)}
            if len(items) < len(batch.uploads):
                raise UploadRejectedError("two uploads of the batch have the same job id; give each an id of its own")
        except UploadRejectedError as error:  # a sub-id that makes no job id: nothing of the batch is touched
            outcome = self._announcer.fail_in_redis(batch_id, "ingest", error)
            return {"jobs": [], "error": outcome.model_dump(mode="json")["error"]}
        try:
            spool = self._spools.of(app_of_job(batch_id))
        except ConfigError as error:
            outcomes = {job_id: self._announcer.fail_in_redis(job_id, "ingest", error) for job_id in items}
        else:
            if redelivered:
                return _report(items, self._split(spool, items))
            outcomes = self._do(spool, items)
        report = _report(items, outcomes)
        self._announcer.report_batch(batch_id, report)
        return report

    # -- together --------------------------------------------------------------------------------------------------

    def _do(self, spool: SpoolDirectory, items: Mapping[str, BatchItem]) -> dict[str, Outcome]:
        """Do the jobs that nobody else is at; the outcomes that there are then."""
        outcomes: dict[str, Outcome] = {}
        jobs: list[HeldJob] = []
        with ExitStack() as held:
            for job_id, item in items.items():
                if not held.enter_context(holding(self._store, job_id)):
                    continue
                begun = self._life.begin(spool, job_id, "ingest", item.as_ingest(), alone=False)
                if isinstance(begun, Outcome):
                    outcomes[job_id] = begun
                elif begun is not None:
                    jobs.append(begun)
            ended = self._attempt_all(jobs) if self._life.sync_requests(jobs) else []
            self._life.end(ended)
        outcomes.update((job.id, outcome) for job, outcome in ended)
        return outcomes

    def _attempt_all(self, jobs: Sequence[HeldJob]) -> list[tuple[HeldJob, Outcome]]:
        """All bytes first, then all thumbnails: what is put in a batch is there only after it."""

        def store(job: HeldJob, batch: Batch) -> Stored:
            return self._worker.store_upload(job.ingest, job.spool, job.id, batch, self._announcer.progress(job.id))

        def finish(job: HeldJob, batch: Batch) -> Outcome:
            return self._worker.finish_ingest(
                job.ingest, stored[job.id], job.id, batch, self._announcer.progress(job.id)
            )

        first, ended = self._in_batch(jobs, store)
        stored = {job.id: content for job, content in first}
        second, failed = self._in_batch([job for job, _ in first], finish)
        return ended + failed + second

    def _in_batch(
        self, jobs: Sequence[HeldJob], step: Callable[[HeldJob, Batch], T]
    ) -> tuple[list[tuple[HeldJob, T]], list[tuple[HeldJob, Outcome]]]:
        """Run ``step`` for each job in one :class:`Batch`: those that went well, and those that failed for good.

        When the batch as a whole cannot be made durable, nothing in it went well, and all its jobs wait.
        """
        went_well: list[tuple[HeldJob, T]] = []
        failed: list[tuple[HeldJob, Outcome]] = []
        try:
            with Batch(self._store) as batch:
                for job in jobs:
                    verdict = attempt(self._store, job, partial(step, job, batch))
                    if isinstance(verdict, Failed):
                        failed.append((job, verdict.outcome))
                    elif verdict is not None:
                        went_well.append((job, verdict))
        except (UnavailableError, OSError) as error:
            for job, _ in went_well:
                back_off(job, error)
            return [], failed
        return went_well, failed

    # -- split -----------------------------------------------------------------------------------------------------

    def _split(self, spool: SpoolDirectory, items: Mapping[str, BatchItem]) -> dict[str, Outcome]:
        """Hand each job on by itself; the outcomes of those that have one, or that only their producer can send again."""
        outcomes: dict[str, Outcome] = {}
        for job_id, item in items.items():
            try:
                outcome = self._hand_on(spool, job_id, item.as_ingest())
            except (OSError, UnavailableError) as error:
                log.warning("job %s of a batch could not be handed on: %s", job_id, error)
                outcome = self._life.not_begun(spool, job_id, "ingest", error)
            if outcome is not None:
                outcomes[job_id] = outcome
        return outcomes

    def _hand_on(self, spool: SpoolDirectory, job_id: str, kwargs: dict[str, Any]) -> Outcome | None:
        """Give one job of a batch a request and a message of its own, or return the outcome that it has."""
        with holding(self._store, job_id) as obtained:
            outcome = self._spools.outcome(spool, job_id)
            if outcome is not None:
                return outcome
            if obtained and not spool.exists(request_name(job_id)):
                spool.write_request(job_id, SpooledRequest(task="ingest", request=kwargs))
        self._send(INGEST, kwargs, self._names.ingest_queue(spool.app), job_id)
        return None


def _report(items: Mapping[str, BatchItem], outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    jobs = []
    for job_id in items:
        outcome = outcomes.get(job_id)
        if outcome is None:
            jobs.append({"job_id": job_id, "state": "queued"})
        else:
            jobs.append(
                {"state": outcome.state, **outcome.model_dump(mode="json", exclude_none=True, exclude={"task"})}
            )
    return {"jobs": jobs}
