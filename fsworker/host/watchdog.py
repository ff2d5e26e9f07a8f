"""Ends a worker that has gone deaf or hangs, so that whoever supervises it starts another.

A worker can be alive and useless: its event loop stuck in a call that never returns, or its consumer no longer asking
for messages. Neither shows in a ping. So the event loop proves once a second that it turns and listens: a pop was
answered lately (:func:`fsworker.broker.transport.seconds_since_turn`), or a task runs, and there are only so many at a time. A
thread of the main process counts the seconds without such a proof, and ends the process when they are too many. It
counts its own seconds, not the clock's: a machine that slept, or a process that was stopped, is not accused.

While Redis is away the watch is off: the worker is in the hands of Celery's reconnecting.
"""

# celery has no type information.
# mypy: disable-error-code="misc"

from __future__ import annotations

import faulthandler
import logging
import os
import threading
from typing import Any, ClassVar

from celery import bootsteps
from celery.worker.state import active_requests

from fsworker.broker.transport import seconds_since_turn

log = logging.getLogger(__name__)

EXIT_STATUS = 70  # EX_SOFTWARE: sysexits.h


class Watchdog(bootsteps.StartStopStep):
    """Celery's bootstep.

    Without an answered pop for ``silence_s``, and without a running task, a worker does not listen; after ``limit_s``
    without a proof it is ended. That has to exceed what one command to a Redis that hangs may take (``socket_timeout``).
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)
    silence_s: ClassVar[float] = 60.0
    limit_s: ClassVar[float] = 120.0

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        self._timer: Any = None
        self._disarm = threading.Event()
        self._proofs = 0

    def include_if(self, consumer: Any) -> bool:
        """Not for the solo pool, whose tasks run in the event loop itself."""
        return bool(consumer.pool.__class__.__module__ != "celery.concurrency.solo")

    def start(self, consumer: Any) -> None:
        """Watch from now on."""
        self._disarm = threading.Event()
        self._timer = consumer.timer.call_repeatedly(1.0, self._prove, (consumer,))
        threading.Thread(target=self._watch, args=(self._disarm,), name="watchdog", daemon=True).start()

    def stop(self, consumer: Any) -> None:  # noqa: ARG002 - Celery's signature
        """Watch no more (the connection is gone, or the worker stops)."""
        self._disarm.set()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    terminate = stop

    def _prove(self, consumer: Any) -> None:
        nothing_to_hear = not consumer.task_consumer.queues
        if active_requests or nothing_to_hear or seconds_since_turn() < self.silence_s:
            self._proofs += 1

    def _watch(self, disarm: threading.Event) -> None:
        seen, silent_s = self._proofs, 0.0
        while not disarm.wait(1.0):
            if self._proofs != seen:
                seen, silent_s = self._proofs, 0.0
                continue
            silent_s += 1.0
            if silent_s >= self.limit_s:
                self._end(silent_s)

    @staticmethod
    def _end(silent_s: float) -> None:
        try:
            log.critical(
                "The worker has neither listened nor worked for %.0f s; it ends, to be started again", silent_s
            )
            faulthandler.dump_traceback(file=2)  # by number: celery puts its logger in the place of sys.stderr
        finally:
            os._exit(EXIT_STATUS)
