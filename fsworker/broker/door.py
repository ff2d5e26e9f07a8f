"""The door of this process: the rules of its queues, and the tally of what they refused.

One door for a process, because kombu makes its channels itself and nothing can be handed to them.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from fsworker.broker.judge import Accepted, QueueRules, Reason, Refused, judge

_log = logging.getLogger(__name__)

_BURST_S: Final = 60.0

RulesForQueue = Callable[[str], QueueRules | None]
OnRefused = Callable[[Refused, str], None]


class Door:
    """Admits messages by the rules of their queue; counts, logs and reports those that it refuses."""

    def __init__(self) -> None:
        self.rules_for_queue: RulesForQueue = lambda _queue: None
        self.on_refused: OnRefused = lambda _refused, _queue: None
        self.counts: Counter[tuple[str, str]] = Counter()
        self._logged: dict[tuple[str, str], tuple[float, int]] = {}
        self._callback_failed_s = -_BURST_S

    def admit(self, raw: bytes, queue: str) -> dict[str, Any] | None:
        """Judge one message of ``queue``: its rebuilt form, or ``None`` after it was counted and reported."""
        rules = self.rules_for_queue(queue)
        if rules is None:
            self.report(Refused(Reason.UNKNOWN_QUEUE, "no rules for this queue; it is not served here"), queue)
            return None
        verdict = judge(raw, rules)
        if isinstance(verdict, Accepted):
            return verdict.message
        self.report(verdict, queue)
        return None

    def report(self, refused: Refused, queue: str) -> None:
        """Count a refusal, log it once in a burst, tell the application's callback. Never raises."""
        self.counts[queue, refused.reason] += 1
        self._log_once_in_a_burst(refused, queue)
        try:
            self.on_refused(refused, queue)
        except Exception:  # noqa: BLE001 - recorded in the log; the worker must go on
            if time.monotonic() - self._callback_failed_s >= _BURST_S:
                self._callback_failed_s = time.monotonic()
                _log.exception("Reporting a refused message of queue %s failed; the worker goes on", queue)

    def _log_once_in_a_burst(self, refused: Refused, queue: str) -> None:
        key = queue, refused.reason
        now_s, count = time.monotonic(), self.counts[key]
        logged_at_s, logged_count = self._logged.get(key, (-_BURST_S, 0))
        if now_s - logged_at_s < _BURST_S:
            return
        self._logged[key] = now_s, count
        _log.warning(
            "Refused a message of queue %s (%s): %s; job %s; %d of this kind, %d since the last report",
            queue,
            refused.reason,
            refused.detail,
            refused.job_id or "unknown",
            count,
            count - logged_count,
        )


door: Final = Door()
"""The door of this process; see :func:`configure`."""


def configure(rules_for_queue: RulesForQueue, on_refused: OnRefused) -> None:
    """Set the rules of this process.

    ``rules_for_queue`` gives the rules of a queue, or ``None`` for one that is not served here. ``on_refused`` is told
    of each refusal, in the worker's main process between two messages: be quick; what it raises is logged.
    """
    door.rules_for_queue = rules_for_queue
    door.on_refused = on_refused
