"""Sending tasks by name, for clients and workers alike: plain Celery, no worker code."""

# celery has no type information, kombu only some.
# mypy: disable-error-code="attr-defined,no-untyped-call"

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any, Protocol

from celery import Celery
from kombu import Exchange, Queue
from kombu.exceptions import OperationalError

from fsworker.broker.kv import unavailable
from fsworker.broker.redisurl import celery_url

PRODUCER_SETTINGS: Mapping[str, Any] = {
    "task_serializer": "json",
    "accept_content": ["json"],
    "result_serializer": "json",
    "enable_utc": True,
    # One more try on a connection that the server closed meanwhile; then the sweep is the retry.
    "task_publish_retry": True,
    "task_publish_retry_policy": {"max_retries": 1, "interval_start": 0.1, "interval_step": 0, "interval_max": 0.1},
    "task_ignore_result": True,
}
_MAX_CONNECTIONS = 10
_TRANSPORT_OPTIONS = {"socket_connect_timeout": 3, "socket_timeout": 15, "socket_keepalive": True}


def make_producer(redis_url: str) -> Celery:
    """A Celery app that only sends. It is nobody's current app, so it does not meddle with the application's own."""
    app = Celery("fsworker-client", broker=celery_url(redis_url), set_as_current=False)
    app.conf.update(PRODUCER_SETTINGS, broker_transport_options=_TRANSPORT_OPTIONS)
    return app


def queue_named(name: str) -> Queue:
    """A queue on the anonymous exchange: Redis needs no declaration, so its user needs no more than ``LPUSH``."""
    return Queue(name, Exchange(""), name, no_declare=True)


class Send(Protocol):
    """Sends a task by its name. Raises :class:`RedisUnavailableError`; then nothing was sent, or perhaps it was."""

    def __call__(self, task: str, kwargs: Mapping[str, Any], queue: str, task_id: str) -> None: ...


class Sender:
    """Sends tasks through a Celery app. Raises :class:`RedisUnavailableError`; then nothing was sent, or perhaps it was.

    The connections are its own, made anew in each process: Celery's are shared by all apps of a process and inherited
    by a fork, and web servers fork (``gunicorn --preload``) after the application was loaded.
    """

    def __init__(self, app: Celery, redis_url: str) -> None:
        self._app = app
        self._url = redis_url
        self._lock = threading.Lock()
        self._pid = 0
        self._pool: Any = None

    def __call__(self, task: str, kwargs: Mapping[str, Any], queue: str, task_id: str) -> None:
        try:
            with self._connections().acquire(block=True) as connection:
                self._app.send_task(
                    task,
                    kwargs=dict(kwargs),
                    queue=queue_named(queue),
                    task_id=task_id,
                    ignore_result=True,
                    # Celery would send the limits of a task that is registered here, too; these are the worker's own.
                    time_limit=None,
                    soft_time_limit=None,
                    connection=connection,
                )
        except (OperationalError, OSError) as error:
            raise unavailable(self._url, error) from error

    def _connections(self) -> Any:
        with self._lock:
            if self._pid != os.getpid():
                self._pool = self._app.connection_for_write().Pool(_MAX_CONNECTIONS)
                self._pid = os.getpid()
            return self._pool

    def close(self) -> None:
        """Close this process's connections."""
        if self._pool is not None and self._pid == os.getpid():
            self._pool.force_close_all()
        self._pool, self._pid = None, 0
