"""kombu's Redis transport with a judge at the door, and without the ways in which it loses its worker.

Theory of operation
-------------------
A message enters a worker in three places, and each passes :func:`fsworker.broker.judge.judge` with the rules of the queue
that its bytes really came from: the blocking pop (``_brpop_read``), the plain pop (``_get``), and the return of an
unacknowledged copy to its queue (``restore_by_tag``). A refused message is dropped, counted and reported; the next
pop follows as after any other. A queue without rules (:func:`fsworker.broker.door.configure`) cannot be consumed from;
what else a stock worker listens to is switched off by :func:`fsworker.broker.options.broker_settings`.

What stock kombu 5.7 does when Redis fails, and what happens here (for what was taken already, see
:mod:`fsworker.broker.unacked`):

* *Redis refuses writes* (``maxmemory``, a failed save, a demoted primary). The stock worker pops messages that it
  cannot note, and exits. Here the popped message is kept in hand, no further one is popped, and the same is tried
  again every second. Should the process die meanwhile, the message is lost: the sweep of the spool rings again.

``Channel`` overrides ``_brpop_start``, ``_brpop_read``, ``_get``, ``basic_consume`` and ``close``; it is written against
kombu 5.7, and pyproject.toml bounds its version.
"""

# kombu says that it is typed, but most of its functions are not.
# mypy: disable-error-code="no-untyped-call,import-untyped"

from __future__ import annotations

import json
import logging
import time
from queue import Empty
from typing import Any, Final

from kombu.transport import redis as kombu_redis

from fsworker.broker.door import door
from fsworker.broker.judge import printable
from fsworker.broker.unacked import QoS, WriteRefusedError
from fsworker.errors import ConfigError

_log = logging.getLogger(__name__)

_REFUSED_WRITE_PAUSE_S: Final = 1.0
_REPORT_PAUSE_EVERY_S: Final = 60.0

_last_turn_s = time.monotonic()


def seconds_since_turn() -> float:
    """How long ago Redis answered a pop of this process, with a message or without, or a refusal was last waited out.

    Small in a worker that listens, whether there is work or not; it grows in one whose prefetch window is full, and in a
    deaf one.
    """
    return time.monotonic() - _last_turn_s


def _note_turn() -> None:
    global _last_turn_s
    _last_turn_s = time.monotonic()


class Channel(kombu_redis.Channel):
    """A channel whose messages have been judged."""

    QoS = QoS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._in_hand: tuple[dict[str, Any], str] | None = None
        self._pause_until_s = 0.0
        self._pause_reported_s = -_REPORT_PAUSE_EVERY_S
        super().__init__(*args, **kwargs)

    def basic_consume(self, queue: str, *args: Any, **kwargs: Any) -> Any:
        if door.rules_for_queue(queue) is None:
            raise ConfigError(
                f"queue '{queue}' has no rules, so its messages cannot be judged; consume only queues of this worker's "
                "role (no remote control, events or replies), and call fsworker.broker.door.configure() first"
            )
        return super().basic_consume(queue, *args, **kwargs)

    def close(self) -> None:
        if self._in_poll:
            # kombu waits for the outstanding pop here, and would stay half open were the connection gone.
            self._closing = True
            try:
                self._brpop_read()
            except (Empty, *self.connection_errors, self.ResponseError) as error:
                _log.debug("The last pop of a closing channel gave nothing: %r", error)
        self._return_in_hand()
        super().close()
        self._disconnect_pools()  # handing back makes a new one

    def _brpop_start(self, timeout: float | None = None) -> None:
        if time.monotonic() < self._pause_until_s:
            return
        if self._in_hand is not None:
            message, queue = self._in_hand
            self._in_hand = None
            self._deliver(message, queue)
            if self._in_hand is not None or not self.qos.can_consume():
                return
        super()._brpop_start(timeout)

    def _brpop_read(self, **options: Any) -> bool:
        connection = self.client.connection
        try:
            try:
                popped = self.client.parse_response(connection, "BRPOP", **options)
            except self.connection_errors:
                # The next poll connects again.
                connection.disconnect()
                raise
            except self.ResponseError as error:
                # A demoted or refusing server: another connection may reach the right one.
                connection.disconnect()
                self._pause(error)
                raise Empty from error
            _note_turn()
            if not popped:
                raise Empty
            key, raw = popped
            queue = key.decode().rsplit(self.sep, 1)[0]
            self._queue_cycle.rotate(queue)
            admitted = door.admit(raw, queue)
            if admitted is None:
                raise Empty
            self._deliver(admitted, queue)
            return True
        finally:
            self._in_poll = None  # type: ignore[assignment]  # False, None or a connection
            self._flush_brpop_reauth()

    def _get(self, queue: str, timeout: float | None = None) -> dict[str, Any]:  # noqa: ARG002 - kombu's signature
        with self.conn_or_acquire() as client:
            for priority in self.priority_steps:
                while raw := client.rpop(self._q_for_pri(queue, priority)):
                    message = door.admit(raw, queue)
                    if message is not None:
                        return message
        raise Empty

    def _deliver(self, message: dict[str, Any], queue: str) -> None:
        try:
            self.connection._deliver(message, queue)
        except WriteRefusedError as error:
            self._in_hand = message, queue
            self._pause(error)
        except self.connection_errors:
            if message["properties"]["delivery_tag"] not in self.qos._delivered:
                self._in_hand = message, queue
            raise

    def _pause(self, error: Exception) -> None:
        _note_turn()
        now_s = time.monotonic()
        if now_s - self._pause_reported_s >= _REPORT_PAUSE_EVERY_S:
            self._pause_reported_s = now_s
            _log.error("Redis refuses (%s); no message is taken, trying again every second", printable(str(error)))
        self._pause_until_s = now_s + _REFUSED_WRITE_PAUSE_S

    def _return_in_hand(self) -> None:
        if self._in_hand is None:
            return
        message, queue = self._in_hand
        self._in_hand = None
        try:
            with self.conn_or_acquire() as client:
                client.rpush(queue, json.dumps(message))
        except (*self.connection_errors, self.ResponseError) as error:
            _log.warning("A message of queue %s is lost (%r); the sweep will ring again", queue, error)


class Transport(kombu_redis.Transport):
    """kombu's Redis transport with judging channels. See :mod:`fsworker.broker.options` for its use."""

    Channel = Channel
