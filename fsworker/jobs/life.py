"""The two ends of a job's life, between which the work is done: it is begun, and it is ended.

Begun: a message that is delivered twice finds the outcome there, which is told again; the request is written if the
producer did not, and the attempt is counted in it. Ended: the outcome is written durably, and then told. A crash in
between repeats the rest: all of it may be done twice.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from fsworker.config import Settings
from fsworker.errors import (
    ConfigError,
    FSWorkerError,
    StoreUnavailableError,
    UnavailableError,
    UploadNotFoundError,
    UploadRejectedError,
)
from fsworker.jobs.announcing import Announcer
from fsworker.jobs.attempts import back_off, fail
from fsworker.jobs.held import HeldJob
from fsworker.jobs.intake import check_member
from fsworker.jobs.spools import Spools
from fsworker.jobs.work import Worker
from fsworker.model import REQUESTS, Failure, Outcome, describe
from fsworker.spool.directory import SpoolDirectory, SpooledRequest, done_name, request_name
from fsworker.store.objects import ObjectStore

log = logging.getLogger(__name__)


class Life:
    """Begins and ends the jobs of one store. Whoever calls holds the job's lock."""

    def __init__(
        self, store: ObjectStore, spools: Spools, worker: Worker, announcer: Announcer, settings: Settings
    ) -> None:
        self.store = store
        self.spools = spools
        self.worker = worker
        self.announcer = announcer
        self._settings = settings

    # -- begin -----------------------------------------------------------------------------------------------------

    def begin(
        self, spool: SpoolDirectory, job_id: str, task: str, kwargs: Mapping[str, Any], *, alone: bool = True
    ) -> HeldJob | Outcome | None:
        """Make the job ready to be worked on, or return its outcome when it has one (repeated to who asks).

        ``None``: not even that is possible now (a full disk); everything is as it was, the sweep rings again. Attempts
        are counted only for jobs that are done ``alone``: what kills a batch is not known to be this one's fault.
        """
        try:
            outcome = self.spools.outcome(spool, job_id)
            if outcome is not None:
                return self._repeat(spool, job_id, outcome)
            return self._begin_anew(spool, job_id, task, kwargs, alone=alone)
        except (OSError, UnavailableError) as error:
            log.warning("job %s cannot be begun now: %s", job_id, error)
            return self.not_begun(spool, job_id, task, error)

    def not_begun(self, spool: SpoolDirectory, job_id: str, task: str, error: BaseException) -> Outcome | None:
        """What becomes of a job that could not be begun: the sweep rings (``None``), if there is a request to ring for.

        There is none when its producer did not write one and this process could not. Then only the producer can.
        """
        if spool.exists(request_name(job_id)):
            return None
        return self.announcer.fail_in_redis(
            job_id,
            task,
            StoreUnavailableError(
                f"the job could not be begun, nor its request be noted: {error}. Its upload stays in the spool; free the "
                f"cause, then send it again"
            ),
        )

    def _begin_anew(
        self, spool: SpoolDirectory, job_id: str, task: str, kwargs: Mapping[str, Any], *, alone: bool
    ) -> HeldJob | Outcome:
        """Read the request, which is believed rather than the message; or write it; or fail the job for it."""
        try:
            found = spool.read_request(job_id)
        except UploadRejectedError as error:
            check_member(spool)  # where the fault is ours, the job waits
            return self._fail(HeldJob(job_id, spool, SpooledRequest(task="ingest", request={}), None), error)
        spooled = found or SpooledRequest.model_validate({"task": task, "request": dict(kwargs)})
        job = HeldJob(job_id, spool, spooled, None)
        try:
            self._check_store(spooled)
            job.request = REQUESTS[spooled.task].model_validate(spooled.request)
            self._check_attempts(spooled)
        except ValidationError as error:
            return self._fail(job, UploadRejectedError(f"the request is refused: {describe(error)}"))
        except FSWorkerError as error:
            return self._fail(job, error)
        job.is_new = found is None
        if alone:
            job.spooled, job.counted = spooled.model_copy(update={"attempts": spooled.attempts + 1}), True
        if alone or job.is_new:
            # A count need not survive a power cut; a request that the producer did not write has to (sync_requests),
            # and one that he did write must not be lost with the count.
            spool.write_request(job_id, job.spooled, sync=alone and job.is_new, sync_content=alone)
        return job

    def _fail(self, job: HeldJob, error: FSWorkerError) -> Outcome:
        return self.end_one(job, fail(self.store, job, error))

    def _check_store(self, spooled: SpooledRequest) -> None:
        known = self.store.config.store_id
        if spooled.store and known and spooled.store != known:
            raise ConfigError(
                f"the request is meant for store {spooled.store}, this is {known}: the application's FSWORKER_SPOOL or "
                f"FSWORKER_REDIS_URL belongs to another installation"
            )

    def _check_attempts(self, spooled: SpooledRequest) -> None:
        if spooled.attempts >= self._settings.max_attempts:
            raise UploadRejectedError(
                f"{spooled.attempts} attempts ended without a result; the worker was killed each time, or failed in an "
                f"unexpected way (see its log). The upload is kept: look at it, then 'fsworker error retry'"
            )

    def _repeat(self, spool: SpoolDirectory, job_id: str, outcome: Outcome) -> Outcome:
        """Give a known outcome again. What it names must be fresh, or must not be named."""
        missing = self.worker.freshen_all(outcome)
        if missing:
            failure = UploadNotFoundError(
                f"the result of this job is no longer stored ({missing[0]} was collected); upload the file again, and list "
                f"hashes in the keep-set within the grace"
            )
            outcome = Outcome(job_id=job_id, task=outcome.task, error=Failure.of(failure))
            spool.write_outcome(outcome)
        try:
            spooled = spool.read_request(job_id)
        except UploadRejectedError:
            spooled = None
        job = HeldJob(job_id, spool, spooled or SpooledRequest(task=outcome.task, request={}), None)
        if spool.exists(request_name(job_id)):
            # Whoever wrote the outcome died before he told it, and perhaps before his sync.
            spool.sync_file(done_name(job_id))
            spool.sync()
        self.announcer.announce([(job, outcome)])
        return outcome

    def sync_requests(self, jobs: Sequence[HeldJob]) -> bool:
        """Put the requests that a batch had to write itself on disk, before anything is done to their uploads.

        False when that is not possible now: then nothing may be done to them, the sweep rings again.
        """
        if not any(job.is_new for job in jobs):
            return True
        try:
            self.store.syncfs()
        except OSError as error:
            log.warning("a batch of %d cannot be begun now: %s", len(jobs), error)
            return False
        return True

    # -- end -------------------------------------------------------------------------------------------------------

    def end(self, ended: Sequence[tuple[HeldJob, Outcome]]) -> None:
        """Make outcomes durable, tell who asked, tidy up. On an error the rest is left to the sweep."""
        if not ended:
            return
        try:
            for job, outcome in ended:
                job.spool.write_outcome(outcome, sync=len(ended) == 1 and self.store.durability != "none")
            if len(ended) > 1 and self.store.durability != "none":
                self.store.syncfs()
        except OSError as error:
            for job, _ in ended:
                back_off(job, error)
            return
        self.announcer.announce(ended)

    def end_one(self, job: HeldJob, outcome: Outcome) -> Outcome:
        """:meth:`end` for one job; returns its outcome."""
        self.end([(job, outcome)])
        return outcome
