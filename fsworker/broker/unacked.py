"""What a worker has taken and not acknowledged: kombu's bookkeeping of it, made to survive a failing Redis.

What stock kombu 5.7 does, and what happens here:

* *The connection is lost while a late-acknowledged task runs.* The stock worker puts the task's message back on the
  queue, so that it runs a second time beside the first; and when the first ends, it builds a client from the closed
  channel and dies of an ``AttributeError``. Here a message stays noted as unacknowledged until its task ends or its
  visibility timeout does; only a worker that shuts down hands back what it holds. The acknowledgement is owed
  (``_owed``) and paid with the next one that succeeds, or with the next look for abandoned messages.
* *An acknowledgement fails while the popping connection lives.* The stock message stays in the prefetch window for
  ever, and the worker goes deaf. Here it leaves the window at once and is owed.
* *An entry of the unacknowledged hash cannot be read.* Stock, it stops every later look; here it is dropped.

A copy that returns to its queue passes the judge like any message (:mod:`fsworker.broker.transport`). ``QoS`` overrides
most of what kombu's has; it is written against kombu 5.7, and pyproject.toml bounds its version.
"""

# kombu says that it is typed, but most of its functions are not.
# mypy: disable-error-code="no-untyped-call,import-untyped"

from __future__ import annotations

import json
import logging
from typing import Any, Final

from celery.worker import state as worker_state
from kombu.transport import redis as kombu_redis
from kombu.transport.virtual import QoS as BaseQoS

from fsworker.broker.door import door
from fsworker.broker.judge import Reason, Refused, printable

_log = logging.getLogger(__name__)

_MAX_OWED: Final = 10_000


class WriteRefusedError(Exception):
    """Redis took a message from a queue and would not note it as unacknowledged."""


class QoS(kombu_redis.QoS):
    """Bookkeeping of unacknowledged messages that outlives its channel's connection."""

    # By unacknowledged key, for the whole process: a reconnected worker has new channels with new QoS objects.
    _owed: Final[dict[str, set[str]]] = {}

    def append(self, message: Any, delivery_tag: str) -> None:
        try:
            super().append(message, delivery_tag)
        except self.channel.ResponseError as error:
            raise WriteRefusedError(str(error)) from error

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
