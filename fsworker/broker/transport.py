"""kombu's Redis transport with a judge at the door, and without the ways in which it loses its worker.

Theory of operation
-------------------
A message enters a worker in three places, and each passes :func:`fsworker.broker.judge.judge` with the rules of the queue
that its bytes really came from: the blocking pop (``_brpop_read``), the plain pop (``_get``), and the return of an
unacknowledged copy to its queue (``restore_by_tag``). A refused message is dropped, counted and reported; the next
pop follows as after any other. A queue without rules (:func:`configure`) cannot be consumed from; what else a stock
worker listens to is switched off by the settings of :func:`broker_settings`.

What stock kombu 5.7 does when Redis fails, and what happens here:

* *The connection is lost while a late-acknowledged task runs.* The stock worker puts the task's message back on the
  queue, so that it runs a second time beside the first; and when the first ends, it builds a client from the closed
  channel and dies of an ``AttributeError``. Here a message stays noted as unacknowledged until its task ends or its
  visibility timeout does; only a worker that shuts down hands back what it holds. The acknowledgement is owed
  (``_owed``) and paid with the next one that succeeds, or with the next look for abandoned messages.
* *An acknowledgement fails while the popping connection lives.* The stock message stays in the prefetch window for
  ever, and the worker goes deaf. Here it leaves the window at once and is owed.
* *Redis refuses writes* (``maxmemory``, a failed save, a demoted primary). The stock worker pops messages that it
  cannot note, and exits. Here the popped message is kept in hand, no further one is popped, and the same is tried
  again every second. Should the process die meanwhile, the message is lost: the sweep of the spool rings again.
* *An entry of the unacknowledged hash cannot be read.* Stock, it stops every later look; here it is dropped.

``Channel`` overrides ``_brpop_start``, ``_brpop_read``, ``_get``, ``basic_consume`` and ``close``, ``QoS`` most of
what it has; both are written against kombu 5.7, and pyproject.toml bounds its version.
"""

# kombu says that it is typed, but most of its functions are not.
# mypy: disable-error-code="no-untyped-call,import-untyped"

from __future__ import annotations

import json
import logging
import ssl
import time
from queue import Empty
from typing import Any, Final

from celery.worker import state as worker_state
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as kombu_redis
from kombu.transport.virtual import QoS as BaseQoS

from fsworker.broker.door import configure, door, refusal_counts
from fsworker.broker.judge import QueueRules, Reason, Refused, printable
from fsworker.errors import ConfigError

__all__ = [
    "Channel",
    "QoS",
    "QueueRules",
    "Transport",
    "broker_settings",
    "configure",
    "refusal_counts",
    "seconds_since_turn",
    "transport_options",
]

_log = logging.getLogger(__name__)

_PATH: Final = "fsworker.broker.transport:Transport"
_ALIAS: Final = "fsworker"
_REFUSED_WRITE_PAUSE_S: Final = 1.0
_REPORT_PAUSE_EVERY_S: Final = 60.0
_MAX_OWED: Final = 10_000

# kombu takes the transport of redis+socket:// from the URL and ignores broker_transport; an alias is all it accepts.
TRANSPORT_ALIASES[_ALIAS] = _PATH


def broker_settings(url: str) -> dict[str, Any]:
    """Celery settings that make ``url`` (``redis``, ``rediss``, ``redis+socket``) go through this transport alone.

    They also close the ways around it (remote control, mingle, gossip) and let a worker wait for Redis for ever.
    ``broker_transport`` alone does not do: kombu drops it for ``redis+socket://``, and for ``rediss://`` without an
    ``ssl_…`` parameter any transport but the stock one speaks plain text. Certificates are verified unless the URL
    says ``ssl_cert_reqs=none``. Raises :class:`ConfigError` for another scheme.
    """
    settings = {
        "broker_url": url,
        "broker_transport": _PATH,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "worker_enable_remote_control": False,
        "worker_consumer": "fsworker.broker.consumer:Consumer",
    }
    scheme, separator, rest = url.partition("://")
    if separator and scheme == "redis+socket":
        return {**settings, "broker_url": f"{_ALIAS}+socket://{rest}"}
    if separator and scheme == "redis":
        return settings
    if separator and scheme == "rediss":
        tls = {} if "ssl_cert_reqs=" in rest else {"broker_use_ssl": {"ssl_cert_reqs": ssl.CERT_REQUIRED}}
        return {**settings, **tls}
    raise ConfigError(f"Redis URL scheme '{printable(scheme, 20)}': use redis://, rediss:// or redis+socket://")


def transport_options(visibility_timeout_s: float, unacked_key_prefix: str) -> dict[str, Any]:
    """``broker_transport_options`` for a worker. Roles must not share ``unacked_key_prefix``: each restores its own."""
    return {
        # A message that is not acknowledged for this long is delivered again: twice the hard time limit.
        "visibility_timeout": visibility_timeout_s,
        # Look for such messages every 10 s; kombu's default looks at every tenth occasion, each 100 s.
        "unacked_restore_interval": 10,
        "unacked_restore_throttle": 1,
        # A worker killed during its look keeps the others from looking until this has passed (default: 300 s).
        "unacked_mutex_expire": 30,
        "unacked_key": f"{unacked_key_prefix}unacked",
        "unacked_index_key": f"{unacked_key_prefix}unacked_index",
        "unacked_mutex_key": f"{unacked_key_prefix}unacked_mutex",
        # A server that takes bytes and never answers blocks the main process for this long (default: for ever).
        "socket_timeout": 30,
        "socket_connect_timeout": 5,
        # Finds a peer that went without a word, between two commands.
        "socket_keepalive": True,
        # An idle connection is tried before it is used, and a pop without an answer is dropped, after 10 to 21 s.
        "health_check_interval": 10,
        # A command that timed out may have been done: repeating it is for the caller to decide.
        "retry_on_timeout": False,
    }


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


class _WriteRefusedError(Exception):
    """Redis took a message from a queue and would not note it as unacknowledged."""


class QoS(kombu_redis.QoS):
    """Bookkeeping of unacknowledged messages that outlives its channel's connection."""

    # By unacknowledged key, for the whole process: a reconnected worker has new channels with new QoS objects.
    _owed: Final[dict[str, set[str]]] = {}

    def append(self, message: Any, delivery_tag: str) -> None:
        try:
            super().append(message, delivery_tag)
        except self.channel.ResponseError as error:
            raise _WriteRefusedError(str(error)) from error

    def ack(self, delivery_tag: str) -> None:
        owed = self._owed.setdefault(self.unacked_key, set())
        if len(owed) < _MAX_OWED:
            owed.add(delivery_tag)
        self._pay()
        BaseQoS.ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        if not requeue:
            self.ack(delivery_tag)
            return
        try:
            if self.channel.connection is not None:
                self.restore_by_tag(delivery_tag, leftmost=True)
        except self._failures() as error:
            _log.warning("Message %s is not back on its queue (%r); it will be in time", delivery_tag, error)
        BaseQoS.ack(self, delivery_tag)

    def restore_unacked(self, client: Any = None) -> None:
        """When the worker shuts down, return what it holds. What cannot be returned is restored when its time is up."""
        try:
            if self.channel.connection is not None and _is_shutting_down():
                self._pay()
                super().restore_unacked(client)
        except self._failures() as error:
            _log.warning("%d messages stay unacknowledged for now (%r)", len(self._delivered), error)
        finally:
            self._delivered.clear()

    def restore_visible(self, start: int = 0, num: int | None = None, interval: int = 1) -> None:
        try:
            # First, or a task that ended while Redis was away would be started again here.
            self._pay()
            super().restore_visible(start, num, interval)
        except self.channel.ResponseError as error:
            _log.warning("Cannot look for abandoned messages (%r); will look again", error)

    def restore_by_tag(self, tag: str | bytes, client: Any = None, leftmost: bool = False) -> None:
        def restore(pipe: Any) -> None:
            entry = pipe.hget(self.unacked_key, tag)
            returning = None if entry is None else self._returning(entry)
            pipe.multi()
            if returning is _NOT_OURS:
                return
            self._remove_from_indices(tag, pipe)
            if isinstance(returning, tuple):
                queue, message = returning
                (pipe.lpush if leftmost else pipe.rpush)(queue, json.dumps(message))

        with self.channel.conn_or_acquire(client) as client:
            client.transaction(restore, self.unacked_key)

    def _returning(self, entry: bytes) -> tuple[str, dict[str, Any]] | object | None:
        """What goes back of one entry: queue and message; ``None``: nothing; ``_NOT_OURS``: another process knows."""
        try:
            message, _exchange, queue = json.loads(entry)
            raw = json.dumps(message).encode("ascii")
            if not isinstance(queue, str):
                raise TypeError("the queue is not a string")
        except (ValueError, TypeError, RecursionError) as error:
            detail = f"an unacknowledged entry cannot be read: {printable(str(error))}"
            door.report(Refused(Reason.SHAPE, detail), self.unacked_key)
            return None
        if door.rules_for_queue(queue) is None:
            return _NOT_OURS
        admitted = door.admit(raw, queue)
        if admitted is None:
            return None
        admitted["properties"]["delivery_info"]["redelivered"] = True
        return queue, admitted

    def _pay(self) -> None:
        """Acknowledge what is owed; what fails stays owed."""
        owed = self._owed.get(self.unacked_key)
        if not owed:
            return
        if self.channel.connection is None:
            _log.warning("A task ended after its connection; it will be acknowledged on the next (%d owed)", len(owed))
            return
        tags = list(owed)
        try:
            with self.pipe_or_acquire() as pipe:
                pipe.zrem(self.unacked_index_key, *tags).hdel(self.unacked_key, *tags).execute()
        except self._failures() as error:
            _log.warning("Cannot acknowledge %d messages now (%r); will later", len(tags), error)
            return
        owed.difference_update(tags)

    def _failures(self) -> tuple[type[Exception], ...]:
        return (*self.channel.connection_errors, self.channel.ResponseError)


_NOT_OURS: Final = object()


def _is_shutting_down() -> bool:
    return worker_state.should_stop is not None or worker_state.should_terminate is not None


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
                "role (no remote control, events or replies), and call fsworker.broker.transport.configure() first"
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
        except _WriteRefusedError as error:
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
    """kombu's Redis transport with judging channels. See :func:`broker_settings` for its use."""

    Channel = Channel
