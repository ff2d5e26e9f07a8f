"""What a worker does with a job: take it, do it, end it. Tasks and commands call this; it knows no Celery.

The life of a job (its files are listed in :mod:`fsworker.spool.directory`):

1. **begin** (:mod:`fsworker.jobs.life`): under the job's lock; a message that is delivered twice finds the lock held, or
   the outcome there, and ends. The request is written if the producer did not, and the attempt is counted in it.
2. **work** (:mod:`fsworker.jobs.work`): the upload is taken, copied into the store, sniffed, its thumbnails are made and
   stored; every hash is freshened. What it raises fails the job, or lets it wait (:mod:`fsworker.jobs.attempts`).
3. **end**: the outcome is written durably; Redis gets its copy; the callback is sent; then, and only then, upload and
   request are removed (:mod:`fsworker.jobs.announcing`). A crash in between repeats the rest: all of it may be done twice.

Whatever kills the process leaves a counted attempt; after ``max_attempts`` the upload is taken out of the way.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fsworker.broker.kv import KV
from fsworker.broker.names import Names
from fsworker.broker.sending import Send
from fsworker.config import Settings
from fsworker.errors import ConfigError
from fsworker.jobs.announcing import Announcer
from fsworker.jobs.attempts import Failed, attempt
from fsworker.jobs.batches import Batches
from fsworker.jobs.held import holding
from fsworker.jobs.life import Life
from fsworker.jobs.pictures import Pictures
from fsworker.jobs.spools import Spools
from fsworker.jobs.work import Worker
from fsworker.model import BatchRequest, Outcome, app_of_job, check_job_id
from fsworker.store.objects import ObjectStore

log = logging.getLogger(__name__)


class Service:
    """Everything that the ingest role can do, for one store. Safe to share between threads."""

    def __init__(self, store: ObjectStore, kv: KV, send: Send, settings: Settings) -> None:
        self.store = store
        names = Names(settings.namespace)
        self._spools = Spools(store)
        self._worker = Worker(store, settings, Pictures(store, settings, kv))
        self._announcer = Announcer(kv, send, names, settings.result_retention)
        self._life = Life(store, self._spools, self._worker, self._announcer, settings)
        self._batches = Batches(self._life, send, names)

    def run(self, job_id: str, task: str, kwargs: Mapping[str, Any]) -> Outcome | None:
        """Do one job (``task`` is ``ingest``, ``thumbnail`` or ``claim``) to its end.

        Returns the outcome, or ``None`` when there is none now: another process is at it, or it has to wait.
        """
        app = app_of_job(job_id)
        check_job_id(job_id, app)
        try:
            spool = self._spools.of(app)
        except ConfigError as error:
            return self._announcer.fail_in_redis(job_id, task, error)
        with holding(self.store, job_id) as obtained:
            if not obtained:
                log.info("job %s is being done by another process; this message was delivered twice", job_id)
                return None
            job = self._life.begin(spool, job_id, task, kwargs)
            if job is None or isinstance(job, Outcome):
                return job
            verdict = attempt(
                self.store,
                job,
                lambda: self._worker.do(job.understood, spool, job.id, self._announcer.progress(job.id)),
            )
            if verdict is None:
                return None
            return self._life.end_one(job, verdict.outcome if isinstance(verdict, Failed) else verdict)

    def run_many(self, batch_id: str, batch: BatchRequest, *, redelivered: bool = False) -> dict[str, Any]:
        """Do many ingests together: one message, two ``syncfs`` for all their bytes (see :mod:`fsworker.store.batch`).

        Each upload is a job of its own, with its own outcome and callback; a bad one fails alone. A batch that was
        ``redelivered`` may have killed its worker, so it is split: each upload gets a message of its own.
        Returns ``{"jobs": [{"job_id", "state", …}]}``, the state ``queued`` for what was handed on or has to wait.
        """
        return self._batches.run(batch_id, batch, redelivered=redelivered)
