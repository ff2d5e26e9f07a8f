"""Parts of the running worker's main process."""

# celery has no type information.
# mypy: disable-error-code="misc"

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, ClassVar

from celery import bootsteps

from fsworker.broker.names import Names
from fsworker.broker.sending import queue_named
from fsworker.errors import FSWorkerError
from fsworker.store.clock import observe
from fsworker.store.handle import StoreHandle

log = logging.getLogger(__name__)

_EVERY_S = 5.0


class FollowApplications(bootsteps.StartStopStep):
    """Consumes from the queue of an application that is registered while the worker runs, and not from a retired one."""

    requires = ("celery.worker.consumer.tasks:Tasks",)
    store: ClassVar[StoreHandle]
    names: ClassVar[Names]

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        self._timer: Any = None

    def start(self, consumer: Any) -> None:
        """Look every five seconds from now on."""
        self._timer = consumer.timer.call_repeatedly(_EVERY_S, self._look, (consumer,))

    def stop(self, consumer: Any) -> None:  # noqa: ARG002 - Celery's signature
        """Look no more (the connection is gone, or the worker stops)."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    terminate = stop

    def _look(self, consumer: Any) -> None:
        try:
            observe(self.store)  # here, because a clock that is set has to be seen soon: see fsworker.store.clock
        except OSError as error:
            log.warning("cannot look at the store's clock: %s", error)
        try:
            wanted = {self.names.ingest_queue(app) for app in self.store.reload().app_names}
        except FSWorkerError as error:
            log.error("cannot read the registered applications, keeping those known: %s", error)  # noqa: TRY400
            return
        current = {queue.name for queue in consumer.task_consumer.queues}
        for name in sorted(wanted - current):
            consumer.task_consumer.add_queue(queue_named(name))
            consumer.task_consumer.consume()
            log.info("consuming from %s", name)
        for name in sorted(current - wanted):
            consumer.task_consumer.cancel_by_queue(name)
            log.info("no longer consuming from %s", name)


class Heartbeat(bootsteps.StartStopStep):
    """Touches a file every second while the main process turns and is connected: what liveness is judged by."""

    requires = ("celery.worker.consumer.tasks:Tasks",)
    path: ClassVar[Path]

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        self._timer: Any = None

    def start(self, consumer: Any) -> None:
        """Beat from now on."""
        self._beat()
        self._timer = consumer.timer.call_repeatedly(1.0, self._beat)

    def stop(self, consumer: Any) -> None:  # noqa: ARG002 - Celery's signature
        """Beat no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    terminate = stop

    def _beat(self) -> None:
        try:
            self.path.touch()
            os.utime(self.path)
        except OSError as error:
            log.warning("no sign of life in %s: %s", self.path, error)
