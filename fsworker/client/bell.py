"""An application's connection to Redis, and ringing with it: a message tells the workers what waits in the spool.

Nobody needs it to be there. What was not rung for is safe in the spool, and the sweep rings for it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from fsworker.broker.kv import KV
from fsworker.broker.sending import Sender, make_producer
from fsworker.config import Settings
from fsworker.errors import ConfigError, RedisUnavailableError
from fsworker.host.state import find_redis_url

log = logging.getLogger(__name__)

_REDIS_AWAY_S = 5.0


class Bell:
    """Rings on ``queue``. Connects when it is first used, to the Redis of the settings or of a running ``fsworker up``."""

    def __init__(self, settings: Settings, store_id: str, queue: str) -> None:
        self._settings = settings
        self._store_id = store_id
        self._queue = queue
        self._wire: tuple[KV, Sender] | None = None
        self._ask_redis_at_s = 0.0

    def ring(self, task: str, kwargs: Mapping[str, Any], task_id: str) -> None:
        """Tell the workers. When Redis is away the sweep will, and we do not make each request wait for a time-out."""
        if time.monotonic() < self._ask_redis_at_s:
            return
        try:
            wire = self._connection()
            if wire is None:
                raise RedisUnavailableError("no Redis is configured and no 'fsworker up' runs")
            wire[1](task, kwargs, self._queue, task_id)
        except RedisUnavailableError as error:
            self._ask_redis_at_s = time.monotonic() + _REDIS_AWAY_S
            log.warning("job %s is safe in the spool and will be done when Redis is back: %s", task_id, error)

    def kv_if_any(self) -> KV | None:
        """The connection to Redis; ``None`` while there is no Redis to connect to."""
        wire = self._connection()
        return wire[0] if wire is not None else None

    def kv(self) -> KV:
        """The connection to Redis. Raises :class:`ConfigError` that says why there is none."""
        kv = self.kv_if_any()
        return kv if kv is not None else KV(self._url())

    def check(self) -> None:
        """Ask whether Redis is there. Raises :class:`ConfigError`, :class:`RedisUnavailableError`."""
        KV(self._url()).ping()

    def close(self) -> None:
        """Close the connections; the next use makes new ones."""
        if self._wire is not None:
            self._wire[0].close()
            self._wire[1].close()
            self._wire = None

    def _connection(self) -> tuple[KV, Sender] | None:
        if self._wire is None:
            try:
                url = self._url()
            except ConfigError:
                return None  # only when none is configured: 'fsworker up' may be started later
            self._wire = KV(url), Sender(make_producer(url), url)
        return self._wire

    def _url(self) -> str:
        return find_redis_url(self._settings, self._store_id)
