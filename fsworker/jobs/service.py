"""What a worker does with a job: take it, do it, end it. Tasks and commands call this; it knows no Celery.

The life of a job (its files are listed in :mod:`fsworker.spool.directory`):

1. **begin**: under the job's lock; a message that is delivered twice finds the lock held, or the outcome there, and ends.
   The request is written if the producer did not, and the attempt is counted in it.
2. **work**: the upload is taken, copied into the store, sniffed, its thumbnails are made and stored.
3. **end**: every hash is freshened; the outcome is written durably; Redis gets its copy; the callback is sent; then, and
   only then, upload and request are removed. A crash in between repeats the rest: all of it may be done twice.

Errors are permanent (the job fails, the bytes go to ``Error/``) or transient (the job waits: back-off in the request,
the sweep rings again). Whatever kills the process leaves a counted attempt; after ``max_attempts`` the upload is
taken out of the way.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

from pydantic import ValidationError

from fsworker.broker.kv import KV
from fsworker.broker.names import INGEST, TASK_PREFIX, Names
from fsworker.broker.resultmeta import TaskMeta, meta_of_outcome
from fsworker.config import Settings
from fsworker.errors import (
    ConfigError,
    FSWorkerError,
    RedisUnavailableError,
    StoreUnavailableError,
    UnavailableError,
    UploadNotFoundError,
    UploadRejectedError,
)
from fsworker.jobs.intake import keep_rejected, rejected_before
from fsworker.jobs.pictures import Pictures
from fsworker.jobs.work import Progress, Worker
from fsworker.model import (
    REQUESTS,
    BatchRequest,
    Failure,
    IngestRequest,
    Outcome,
    Request,
    app_of_job,
    batch_job_id,
    check_job_id,
    describe,
)
from fsworker.spool.directory import SpoolDirectory, SpooledRequest, done_name, request_name, taken_name
from fsworker.store import layout
from fsworker.store.batch import Batch
from fsworker.store.locks import job_lock
from fsworker.store.objects import ObjectStore, Stored

log = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_DELAY_S = 15.0
MAX_DELAY_S = 15 * 60.0


class Send(Protocol):
    """Sends a task. Raises :class:`RedisUnavailableError`."""

    def __call__(self, task: str, kwargs: Mapping[str, Any], queue: str, task_id: str) -> None: ...


@dataclass
class Job:
    """A job whose lock this process holds.

    ``request`` is ``None`` when it cannot be understood; ``is_new`` when there was no request file for it; ``counted``
    when this attempt was counted in it.
    """

    id: str
    spool: SpoolDirectory
    spooled: SpooledRequest
    request: Request | None
    is_new: bool = False
    counted: bool = False

    @property
    def upload(self) -> str | None:
        """The name of the upload, for jobs that have one."""
        return self.request.upload if isinstance(self.request, IngestRequest) else None


@dataclass(frozen=True)
class Failed:
    """A job that failed for good."""

    outcome: Outcome


class Service:
    """Everything that the ingest role can do, for one store. Safe to share between threads.

    Raises :class:`ConfigError` when the store cannot be opened.
    """

    def __init__(self, store: ObjectStore, kv: KV, send: Send, settings: Settings) -> None:
        self.store = store
        self.settings = settings
        self.names = Names(settings.namespace)
        self._kv = kv
        self._send = send
        self._worker = Worker(store, settings, Pictures(store, settings, kv))
        self._spools: dict[str, SpoolDirectory] = {}
        # The outcome of another user is no outcome: the application can write to its spool directory, too.
        trusted = frozenset({os.geteuid(), store.owner_uid})
        self._outcome_owners = trusted if store.modes is layout.WORKER_WRITES else None

    # -- entry points ----------------------------------------------------------------------------------------------

    def run(self, job_id: str, task: str, kwargs: Mapping[str, Any]) -> Outcome | None:
        """Do one job (``task`` is ``ingest``, ``thumbnail`` or ``claim``) to its end.

        Returns the outcome, or ``None`` when there is none now: another process is at it, or it has to wait.
        """
        app = app_of_job(job_id)
        check_job_id(job_id, app)
        try:
            spool = self._spool(app)
        except ConfigError as error:
            return self._unservable(job_id, task, error)
        with self._holding(job_id) as obtained:
            if not obtained:
                log.info("job %s is being done by another process; this message was delivered twice", job_id)
                return None
            job = self._begin(spool, job_id, task, kwargs)
            if job is None or isinstance(job, Outcome):
                return job
            verdict = self._attempt(
                job, lambda: self._worker.do(_understood(job), spool, job.id, self._progress(job.id))
            )
            if verdict is None:
                return None
            return self._end_now(job, verdict.outcome if isinstance(verdict, Failed) else verdict)

    def run_many(self, batch_id: str, batch: BatchRequest, *, redelivered: bool = False) -> dict[str, Any]:
        """Do many ingests together: one message, two ``syncfs`` for all their bytes (see :mod:`fsworker.store.batch`).

        Each upload is a job of its own, with its own outcome and callback; a bad one fails alone. A batch that was
        ``redelivered`` may have killed its worker, so it is split: each upload gets a message of its own.
        Returns ``{"jobs": [{"job_id", "state", …}]}``, the state ``queued`` for what was handed on or has to wait.
        """
        try:
            items = {batch_job_id(batch_id, item.id, n): item for n, item in enumerate(batch.uploads)}
            if len(items) < len(batch.uploads):
                raise UploadRejectedError("two uploads of the batch have the same job id; give each an id of its own")
        except UploadRejectedError as error:  # a sub-id that makes no job id: nothing of the batch is touched
            return {"jobs": [], "error": self._unservable(batch_id, "ingest", error).model_dump(mode="json")["error"]}
        try:
            spool = self._spool(app_of_job(batch_id))
        except ConfigError as error:
            return self._report(
                batch_id, items, {job_id: self._unservable(job_id, "ingest", error) for job_id in items}
            )
        if redelivered:
            return self._split(spool, items)
        outcomes: dict[str, Outcome] = {}
        jobs: list[Job] = []
        with ExitStack() as held:
            for job_id, item in items.items():
                if not held.enter_context(self._holding(job_id)):
                    continue
                begun = self._begin(spool, job_id, "ingest", item.as_ingest(), alone=False)
                if isinstance(begun, Outcome):
                    outcomes[job_id] = begun
                elif begun is not None:
                    jobs.append(begun)
            ended = self._attempt_many(jobs) if self._sync_requests(jobs) else []
            self._end(ended)
        outcomes.update((job.id, outcome) for job, outcome in ended)
        return self._report(batch_id, items, outcomes)

    # -- begin -----------------------------------------------------------------------------------------------------

    def _unservable(self, job_id: str, task: str, error: FSWorkerError) -> Outcome:
        """Tell a failure in Redis alone, where the spool cannot be used; whatever is in it stays there."""
        log.error("job %s: %s", job_id, error)
        outcome = Outcome.model_validate({"job_id": job_id, "task": task, "error": _failure(error)})
        try:
            self._kv.set_results([(job_id, meta_of_outcome(outcome))], self.settings.result_retention)
        except RedisUnavailableError as problem:
            log.warning("job %s: its failure could not be told: %s", job_id, problem)
        return outcome

    def _begin(
        self, spool: SpoolDirectory, job_id: str, task: str, kwargs: Mapping[str, Any], *, alone: bool = True
    ) -> Job | Outcome | None:
        """Make the job ready to be worked on, or return its outcome when it has one (repeated to who asks).

        ``None``: not even that is possible now (a full disk); everything is as it was, the sweep rings again. Attempts
        are counted only for jobs that are done ``alone``: what kills a batch is not known to be this one's fault.
        """
        try:
            return self._try_to_begin(spool, job_id, task, kwargs, alone=alone)
        except (OSError, UnavailableError) as error:
            log.warning("job %s cannot be begun now: %s", job_id, error)
            return self._forgotten(spool, job_id, task, error)

    def _forgotten(self, spool: SpoolDirectory, job_id: str, task: str, error: BaseException) -> Outcome | None:
        """What becomes of a job that could not be begun: the sweep rings (``None``), if there is a request to ring for.

        There is none when its producer did not write one and this process could not. Then only the producer can.
        """
        if spool.exists(request_name(job_id)):
            return None
        return self._unservable(
            job_id,
            task,
            StoreUnavailableError(
                f"the job could not be begun, nor its request be noted: {error}. Its upload stays in the spool; free the "
                f"cause, then send it again"
            ),
        )

    def _try_to_begin(
        self, spool: SpoolDirectory, job_id: str, task: str, kwargs: Mapping[str, Any], *, alone: bool
    ) -> Job | Outcome:
        outcome = spool.read_outcome(job_id, owners=self._outcome_owners)
        if outcome is not None:
            return self._repeat(spool, job_id, outcome)
        try:
            found = spool.read_request(job_id)
        except UploadRejectedError as error:
            job = Job(job_id, spool, SpooledRequest(task="ingest", request={}), None)
            return self._end_now(job, self._failed(job, error))
        spooled = found or SpooledRequest.model_validate({"task": task, "request": dict(kwargs)})
        job = Job(job_id, spool, spooled, None)
        try:
            self._check_store(spooled)
            job.request = REQUESTS[spooled.task].model_validate(spooled.request)
            if spooled.attempts >= self.settings.max_attempts:
                raise UploadRejectedError(
                    f"{spooled.attempts} attempts ended without a result; the worker was killed each time, or failed in an "
                    f"unexpected way (see its log). The upload is kept: look at it, then 'fsworker error retry'"
                )
        except ValidationError as error:
            return self._end_now(
                job, self._failed(job, UploadRejectedError(f"the request is refused: {describe(error)}"))
            )
        except FSWorkerError as error:
            return self._end_now(job, self._failed(job, error))
        job.is_new = found is None
        if alone:
            job.spooled, job.counted = spooled.model_copy(update={"attempts": spooled.attempts + 1}), True
        if alone or job.is_new:
            # A count need not survive a power cut; a request that the producer did not write has to (_sync_requests),
            # and one that he did write must not be lost with the count.
            spool.write_request(job_id, job.spooled, sync=alone and job.is_new, sync_content=alone)
        return job

    def _sync_requests(self, jobs: Sequence[Job]) -> bool:
        """Put the requests that a batch had to write itself on disk, before anything is done to their uploads."""
        if not any(job.is_new for job in jobs):
            return True
        try:
            self.store.syncfs()
        except OSError as error:
            log.warning("a batch of %d cannot be begun now: %s", len(jobs), error)
            return False
        return True

    def _check_store(self, spooled: SpooledRequest) -> None:
        known = self.store.config.store_id
        if spooled.store and known and spooled.store != known:
            raise ConfigError(
                f"the request is meant for store {spooled.store}, this is {known}: the application's FSWORKER_SPOOL or "
                f"FSWORKER_REDIS_URL belongs to another installation"
            )

    def _repeat(self, spool: SpoolDirectory, job_id: str, outcome: Outcome) -> Outcome:
        """Give a known outcome again. What it names must be fresh, or must not be named."""
        missing = self._worker.freshen_all(outcome)
        if missing:
            failure = UploadNotFoundError(
                f"the result of this job is no longer stored ({missing[0]} was collected); upload the file again, and list "
                f"hashes in the keep-set within the grace"
            )
            outcome = Outcome(job_id=job_id, task=outcome.task, error=_failure(failure))
            spool.write_outcome(outcome)
        try:
            spooled = spool.read_request(job_id)
        except UploadRejectedError:
            spooled = None
        job = Job(job_id, spool, spooled or SpooledRequest(task=outcome.task, request={}), None)
        if spool.exists(request_name(job_id)):
            # Whoever wrote the outcome died before he told it, and perhaps before his sync.
            spool.sync_file(done_name(job_id))
            spool.sync()
        self._announce([(job, outcome)])
        return outcome

    # -- work ------------------------------------------------------------------------------------------------------

    def _attempt(self, job: Job, work: Callable[[], T]) -> T | Failed | None:
        """Run ``work``; turn what it raises into a failure for good, or into a back-off (``None``)."""
        try:
            return work()
        except (UnavailableError, OSError, MemoryError) as error:
            self._back_off(job, error)
        except FSWorkerError as error:
            return self._fail(job, error)
        except Exception as error:
            log.exception("job %s: unexpected error", job.id)
            self._back_off(job, error, counts=True)
        return None

    def _fail(self, job: Job, error: FSWorkerError) -> Failed | None:
        """:meth:`_failed`; ``None`` where the upload cannot be moved now: then the job waits, and fails later."""
        try:
            return Failed(self._failed(job, error))
        except (UnavailableError, OSError) as problem:
            self._back_off(job, problem)
            return None

    def _attempt_many(self, jobs: Sequence[Job]) -> list[tuple[Job, Outcome]]:
        """All bytes first, then all thumbnails: what is put in a batch is there only after it."""

        def store(job: Job, batch: Batch) -> Stored:
            return self._worker.store_upload(_ingest_of(job), job.spool, job.id, batch, self._progress(job.id))

        def finish(job: Job, batch: Batch) -> Outcome:
            return self._worker.finish_ingest(_ingest_of(job), stored[job.id], job.id, batch, self._progress(job.id))

        first, ended = self._in_batch(jobs, store)
        stored = {job.id: content for job, content in first}
        second, failed = self._in_batch([job for job, _ in first], finish)
        return ended + failed + second

    def _in_batch(
        self, jobs: Sequence[Job], step: Callable[[Job, Batch], T]
    ) -> tuple[list[tuple[Job, T]], list[tuple[Job, Outcome]]]:
        """Run ``step`` for each job in one :class:`Batch`: those that went well, and those that failed for good.

        When the batch as a whole cannot be made durable, nothing in it went well, and all its jobs wait.
        """
        went_well: list[tuple[Job, T]] = []
        failed: list[tuple[Job, Outcome]] = []
        try:
            with Batch(self.store) as batch:
                for job in jobs:
                    verdict = self._attempt(job, partial(step, job, batch))
                    if isinstance(verdict, Failed):
                        failed.append((job, verdict.outcome))
                    elif verdict is not None:
                        went_well.append((job, verdict))
        except (UnavailableError, OSError) as error:
            for job, _ in went_well:
                self._back_off(job, error)
            return [], failed
        return went_well, failed

    def _failed(self, job: Job, error: FSWorkerError) -> Outcome:
        """End a job for good: the upload goes to ``Error/`` (back to its name when only the configuration is wrong).

        Raises ``OSError`` and :class:`StoreUnavailableError` when that is not possible now.
        """
        if isinstance(error, UploadNotFoundError) and job.spooled.attempts > 1:
            reason = rejected_before(self.store, job.id)
            error = error if reason is None else UploadRejectedError(reason)
        message = str(error)
        upload = job.upload or "upload"
        if isinstance(error, ConfigError):
            if job.upload is not None and not job.spool.exists(job.upload):
                job.spool.rename(taken_name(job.id), job.upload)
        elif job.spooled.task == "ingest":
            if job.upload is not None and not job.spool.exists(taken_name(job.id)):
                job.spool.rename(job.upload, taken_name(job.id))
            kept = keep_rejected(self.store, job.spool, job.id, upload, message, job.spooled.request)
            if kept is not None:
                message += f". It is kept as {kept}"
        log.warning("job %s failed: %s: %s", job.id, type(error).__name__, message)
        return Outcome(job_id=job.id, task=job.spooled.task, error=Failure(type=type(error).__name__, message=message))

    def _back_off(self, job: Job, error: BaseException, *, counts: bool = False) -> None:
        """Leave the job for the sweep, later each time. ``counts``: the attempt stays counted."""
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

    # -- end -------------------------------------------------------------------------------------------------------

    def _end(self, ended: Sequence[tuple[Job, Outcome]]) -> None:
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
                self._back_off(job, error)
            return
        self._announce(ended)

    def _end_now(self, job: Job, outcome: Outcome) -> Outcome:
        self._end([(job, outcome)])
        return outcome

    def _announce(self, ended: Sequence[tuple[Job, Outcome]]) -> None:
        """Redis, callbacks, then the removal of upload and request. Stops at an unreachable Redis; the sweep rings."""
        try:
            retention_s = self.settings.result_retention
            self._kv.set_results(((job.id, meta_of_outcome(outcome)) for job, outcome in ended), retention_s)
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

    def _call_back(self, job: Job, outcome: Outcome) -> None:
        task = job.spooled.request.get("on_done")
        if not isinstance(task, str):
            return
        kwargs: dict[str, Any] = {"job_id": job.id, "state": outcome.state}
        if outcome.error is None:
            kwargs["result"] = outcome.result
        else:
            kwargs["error"] = outcome.error.model_dump()
        # The id is the same each time: an application may recognise a callback that comes twice.
        self._send(task, kwargs, self.names.done_queue(job.spool.app), f"{job.id}-done")

    # -- batches ---------------------------------------------------------------------------------------------------

    def _split(self, spool: SpoolDirectory, items: Mapping[str, Any]) -> dict[str, Any]:
        outcomes: dict[str, Outcome] = {}
        for job_id, item in items.items():
            try:
                outcome = self._hand_on(spool, job_id, item.as_ingest())
            except (OSError, UnavailableError) as error:
                log.warning("job %s of a batch could not be handed on: %s", job_id, error)
                outcome = self._forgotten(spool, job_id, "ingest", error)
            if outcome is not None:
                outcomes[job_id] = outcome
        return self._report("", items, outcomes)

    def _hand_on(self, spool: SpoolDirectory, job_id: str, kwargs: dict[str, Any]) -> Outcome | None:
        """Give one job of a batch a request and a message of its own, or return the outcome that it has."""
        with self._holding(job_id) as obtained:
            outcome = spool.read_outcome(job_id, owners=self._outcome_owners)
            if outcome is not None:
                return outcome
            if obtained and not spool.exists(request_name(job_id)):
                spool.write_request(job_id, SpooledRequest(task="ingest", request=kwargs))
        self._send(INGEST, kwargs, self.names.ingest_queue(spool.app), job_id)
        return None

    def _report(self, batch_id: str, items: Mapping[str, Any], outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
        jobs = []
        for job_id in items:
            outcome = outcomes.get(job_id)
            if outcome is None:
                jobs.append({"job_id": job_id, "state": "queued"})
            else:
                jobs.append(
                    {"state": outcome.state, **outcome.model_dump(mode="json", exclude_none=True, exclude={"task"})}
                )
        report = {"jobs": jobs}
        if batch_id:
            try:
                self._kv.set_results([(batch_id, TaskMeta("SUCCESS", report))], self.settings.result_retention)
            except RedisUnavailableError as error:
                log.warning("batch %s: %s", batch_id, error)
        return report

    # -- parts -----------------------------------------------------------------------------------------------------

    def _spool(self, app: str) -> SpoolDirectory:
        spool = self._spools.get(app)
        if spool is None or not spool.is_in_place():
            root = self.store.root / layout.SPOOL
            spool = SpoolDirectory(root / app, app)
            if os.fstat(spool.fd).st_dev != os.fstat(self.store.fd).st_dev:
                spool.close()
                raise ConfigError(
                    f"{root / app} is on another filesystem than the store {self.store.root}; uploads are kept by rename, so "
                    f"both must be on one: mount the store's filesystem above both"
                )
            self._spools[app] = spool
        return spool

    @contextmanager
    def _holding(self, job_id: str) -> Iterator[bool]:
        with job_lock(self.store.fd, job_id, self.store.modes.lock_file) as obtained:
            yield obtained

    def _progress(self, job_id: str) -> Progress:
        def publish(meta: dict[str, Any]) -> None:
            self._kv.set_results([(job_id, TaskMeta("PROGRESS", meta))], self.settings.result_retention)

        return Progress(publish)


def task_name(kind: str) -> str:
    """The task of a kind of job: ``fsworker.ingest``."""
    return f"{TASK_PREFIX}.{kind}"


def _in_short(outcome: Outcome) -> str:
    if outcome.result is None:
        return "failed, and its application was told"
    if outcome.task == "claim":
        return f"{len(outcome.result['present'])} present, {len(outcome.result['missing'])} missing"
    known = "duplicate" if outcome.result.get("duplicate") else "new"
    thumbnails = ", ".join(outcome.result.get("thumbnails", {})) or "none"
    return f"{outcome.result['hash']} ({outcome.result['media_type']}, {known}), thumbnails: {thumbnails}"


def _understood(job: Job) -> Request:
    if job.request is None:
        raise StoreUnavailableError(f"job {job.id} has no request")
    return job.request


def _ingest_of(job: Job) -> IngestRequest:
    request = _understood(job)
    if not isinstance(request, IngestRequest):
        raise UploadRejectedError(
            f"job {job.id} was sent as an ingest, but its request file asks for a {job.spooled.task}"
        )
    return request


def _failure(error: FSWorkerError) -> Failure:
    return Failure(type=type(error).__name__, message=str(error))
