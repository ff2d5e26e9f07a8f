"""Celery's beat, when the wall clock is set back.

Beat notes by the wall clock when each entry ran last, and waits for the next time by the wall clock. When the clock is set
back, by hand or because it was wrong at boot and is corrected, stock beat of Celery 5.7 sends nothing, sweeps neither, until
the clock has caught up: a day that it was ahead is a day without maintenance, and its file makes that outlast restarts. Here
an entry that ran in the future ran just now, and all waiting begins anew.

A clock that is set forward needs nothing: everything is due once.

While Redis is away each tick fails. Stock beat logs each with its whole stack; here a line says so.
"""

# celery has no type information.
# mypy: disable-error-code="misc"

from __future__ import annotations

import logging
from typing import Any

from celery.beat import PersistentScheduler, SchedulingError

log = logging.getLogger(__name__)


class Scheduler(PersistentScheduler):
    """Beat's scheduler; to be named by ``beat_scheduler``."""

    def tick(self, *args: Any, **kwargs: Any) -> Any:
        """Send what is due; return for how many seconds nothing will be, at most."""
        if self._bring_back_to_now():
            self._heap = None  # the times to wait for; made anew from the entries
        return super().tick(*args, **kwargs)

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        """Send one entry's task. One that cannot be sent is logged; the next tick, or the sweep, makes it good."""
        log.info("sending %s", entry.task)
        try:
            self.apply_async(entry, producer=producer, advance=False)
        except SchedulingError as error:
            log.error("%s", error)  # noqa: TRY400 - it says it all

    def _bring_back_to_now(self) -> bool:
        """Let no entry have run in the future; returns whether one had."""
        ahead = [entry for entry in self.schedule.values() if entry.last_run_at > entry.default_now()]
        for entry in ahead:
            entry.last_run_at = entry.default_now()
        if ahead:
            log.warning("beat: the clock was set back; what ran in its future counts as run now")
        return bool(ahead)
