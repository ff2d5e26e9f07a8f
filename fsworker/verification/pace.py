"""How fast verification may read: bytes a second, with little credit for time that was not used."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_CREDIT_S = 0.25
"""What a pause may be made up for afterwards: enough for a late wake-up, not enough for a burst that is felt."""


class Pace:
    """A bound on bytes a second; ``None`` is none. May be shared by threads. The clock and the sleep can be replaced."""

    def __init__(
        self,
        rate_bytes_s: float | None,
        *,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.rate_bytes_s = rate_bytes_s
        self._now = now
        self._sleep = sleep
        self._lock = threading.Lock()
        self._paid_until_s = now()

    def spend(self, size_bytes: int) -> None:
        """Account for bytes that were read; sleep until they were due."""
        rate = self.rate_bytes_s
        if rate is None:
            return
        with self._lock:
            now_s = self._now()
            self._paid_until_s = max(self._paid_until_s, now_s - _CREDIT_S) + size_bytes / rate
            wait_s = self._paid_until_s - now_s
        if wait_s > 0:
            self._sleep(wait_s)
