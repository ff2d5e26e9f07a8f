"""Celery's worker parts, changed where a stranger or a task could reach or end the main process.

**Consumer**, without the ways in that no judge sees. A stock worker also takes messages from its fellows (mingle, gossip)
and sends them events, over channels that anybody may publish to who may publish at all. Nothing here needs them, and only
command line options switch them off; so this consumer does, for whoever starts the worker. Remote control has a setting,
``worker_enable_remote_control``. See :func:`fsworker.broker.transport.broker_settings`, which sets both.

**Request**, which survives a task's ``MemoryError``. Celery 5.7 raises it again in the main process, which ends.
"""

# celery has no type information.
# mypy: disable-error-code="misc,no-untyped-call,import-untyped"

from __future__ import annotations

import logging
import warnings
from typing import Any

from celery.exceptions import CPendingDeprecationWarning
from celery.worker.consumer import Consumer as StockConsumer
from celery.worker.request import Request as StockRequest

log = logging.getLogger(__name__)


class Consumer(StockConsumer):
    """A consumer of task messages, and of nothing else."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs, without_mingle=True, without_gossip=True, without_heartbeat=True)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        with warnings.catch_warnings():
            # Advice to cancel the tasks that run: here they go on, and are acknowledged on the next connection.
            warnings.simplefilter("ignore", CPendingDeprecationWarning)
            super().on_connection_error_after_connected(exc)


class Request(StockRequest):
    """A task in the worker's hands; to be named by the task class: ``app.Task.Request``."""

    def on_failure(self, *args: Any, **kwargs: Any) -> Any:
        """What Celery does, and no more than that: a task that ran out of memory is acknowledged; the sweep rings again."""
        try:
            return super().on_failure(*args, **kwargs)
        except MemoryError as error:
            log.error("Task %s[%s] ran out of memory: %s", self.name, self.id, error)  # noqa: TRY400 - no news in it
            if self.task.acks_late:
                self.acknowledge()
            return None
