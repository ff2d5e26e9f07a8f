"""Judgement of messages: which bytes from a queue may become a task, and what is left of them.

Theory of operation
-------------------
A Celery message is written by its sender, all of it: which task runs, under whose id the result is stored, what is
published afterwards with the worker's own credentials (chain, chord, callbacks), when, with which limits, and onto
which queue an unacknowledged copy returns (``delivery_info``). The one thing a sender cannot choose is the Redis list
that its bytes were taken from. So a message is judged against the rules of *that* queue, and an accepted message is
not passed on: it is rebuilt, field by field, from the task name, the job's id and the keyword arguments. Whatever else
the bytes said is gone, which is why fields that can only steer, and that stock producers do send, need no refusal.

Refused is what would change the meaning when left out (canvas, times, positional arguments, another's id) and what
two parsers may read in two ways (:mod:`fsworker.broker.strictjson`).

Message protocol 1 (Celery 3; ``task_protocol = 1``) is refused: it carries the task and its id in the body, without
the fields of protocol 2, and no supported Celery sends it unless told to.

:func:`judge` is pure but for the fresh delivery tag, never raises, and accepts what it rebuilt: a message that is
restored after a lost worker passes the same door again.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from fsworker.broker import rebuilt, strictjson
from fsworker.errors import FSWorkerError

Validator = Callable[[dict[str, Any]], None]
"""Checks a task's keyword arguments; raises :class:`FSWorkerError` or :class:`ValueError`, naming the argument."""

MAX_DEPTH: Final = 20
"""Nesting of the envelope and of the body. A task's arguments need six levels."""

_MAX_ECHO_CHARS: Final = 100
_MAX_EXPLANATION_CHARS: Final = 200
_TAIL_BYTES: Final = 16 * 1024
_JOB_SUFFIX: Final = r"[A-Za-z0-9_-]{8,64}"
_OWN_JOB_ID: Final = r"[A-Za-z0-9._-]{8,128}"


class Reason(StrEnum):
    """Why a message was refused: one word for logs, counters and stored failures."""

    TOO_LARGE = "too_large"
    NOT_JSON = "not_json"
    TOO_DEEP = "too_deep"
    SHAPE = "shape"
    ENCODING = "encoding"
    PROTOCOL = "protocol"
    TASK_NOT_ALLOWED = "task_not_allowed"
    FOREIGN_ID = "foreign_id"
    CANVAS = "canvas"
    ETA = "eta"
    ARGUMENTS = "arguments"
    UNKNOWN_QUEUE = "unknown_queue"


@dataclass(frozen=True)
class QueueRules:
    """What one queue admits.

    ``tasks`` maps each admitted task name to the validator of its keyword arguments. ``job_prefix`` begins every job id
    (``"shop."``); ``None`` marks the queue of fsworker's own producers, where any plain id and ``expires`` are
    admitted. ``max_bytes`` bounds the raw message, and the rebuilt one; a claim of as many hashes as one may name
    (:data:`fsworker.model.MAX_HASHES_PER_CLAIM`) takes 290 KiB.
    """

    queue: str
    tasks: Mapping[str, Validator]
    job_prefix: str | None
    max_bytes: int = 512 * 1024

    def admits_job_id(self, job_id: object) -> bool:
        """Whether ``job_id`` is a text that this queue's senders may use as the id of a job."""
        return isinstance(job_id, str) and re.fullmatch(self._job_id_pattern(), job_id) is not None

    def _job_id_pattern(self) -> str:
        return _OWN_JOB_ID if self.job_prefix is None else re.escape(self.job_prefix) + _JOB_SUFFIX


@dataclass(frozen=True)
class Accepted:
    """A message that may run. ``message`` is rebuilt from scratch, in kombu's form, with an encoded body."""

    message: dict[str, Any]
    task: str
    job_id: str


@dataclass(frozen=True)
class Refused:
    """A message that may not run.

    ``detail`` is printable ASCII without line breaks, at most 300 characters, with at most 100 from the message.
    ``job_id`` is given when the message bore an id of its own queue, so that a failure can be stored for that job.
    """

    reason: Reason
    detail: str
    job_id: str | None = None


class _RefusedError(Exception):
    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def judge(raw: bytes, rules: QueueRules) -> Accepted | Refused:
    """Judge the bytes of one message that were taken from the queue of ``rules``. Never raises."""
    if len(raw) > rules.max_bytes:
        detail = f"{len(raw)} bytes; this queue takes {rules.max_bytes}: send fewer or shorter arguments in a message"
        return Refused(Reason.TOO_LARGE, detail, _job_id_in_tail(raw, rules))
    try:
        envelope = _object(_parse(raw, "message"), "message")
        headers = _object(envelope.get("headers"), "headers")
    except _RefusedError as refusal:
        return Refused(refusal.reason, refusal.detail)
    job_id = headers.get("id")
    own_job_id = job_id if rules.admits_job_id(job_id) else None
    try:
        return _judge_task(envelope, headers, own_job_id, rules)
    except _RefusedError as refusal:
        return Refused(refusal.reason, refusal.detail, own_job_id)


def printable(value: object, max_chars: int = _MAX_ECHO_CHARS) -> str:
    """Text of ``value`` for a log or an error: ASCII, control characters escaped, at most ``max_chars`` long."""
    text = value if isinstance(value, str) else repr(value) if isinstance(value, int | float) else type(value).__name__
    escaped = text[: max_chars + 1].encode("unicode_escape").decode("ascii")
    return escaped if len(escaped) <= max_chars else escaped[: max_chars - 3] + "..."


def _judge_task(
    envelope: dict[str, Any], headers: dict[str, Any], job_id: str | None, rules: QueueRules
) -> Accepted | Refused:
    properties = _object(envelope.get("properties"), "properties")
    _check_encoding(envelope, headers, properties)
    task = headers.get("task")
    if task is None:
        raise _RefusedError(Reason.PROTOCOL, "no task in the headers; send Celery message protocol 2 (the default)")
    if not isinstance(task, str) or task not in rules.tasks:
        raise _RefusedError(Reason.TASK_NOT_ALLOWED, f"task '{printable(task)}' is not served on this queue")
    if job_id is None:
        raise _RefusedError(Reason.FOREIGN_ID, _foreign_id_detail(headers.get("id"), rules))
    expires = _check_times(headers, rules)
    if headers.get("group") is not None:
        raise _RefusedError(Reason.CANVAS, "the message is part of a group; send single tasks")
    kwargs = _arguments(envelope["body"])
    # Encoded before the validator sees the arguments: what runs is what was sent, also if a validator alters its input.
    body = rebuilt.encode_body(kwargs)
    if len(body) > rules.max_bytes - rebuilt.ENVELOPE_BYTES:
        # Numbers can grow when they are written again, and a restored message has to pass this door once more.
        raise _RefusedError(Reason.TOO_LARGE, f"the body takes {len(body)} bytes; send fewer or shorter arguments")
    _validate(task, rules.tasks[task], kwargs)
    delivery_info = properties.get("delivery_info")
    redelivered = isinstance(delivery_info, dict) and delivery_info.get("redelivered") is True
    message = rebuilt.message(rules.queue, task, job_id, expires, body, redelivered)
    if rules.job_prefix is None:
        # On the operator's own queue Celery stores a result for who waits. Jobs of applications store theirs themselves.
        message["headers"]["ignore_result"] = headers.get("ignore_result") is True
    return Accepted(message, task, job_id)


def _check_encoding(envelope: dict[str, Any], headers: dict[str, Any], properties: dict[str, Any]) -> None:
    for where, found, wanted in (
        ("content-type", envelope.get("content-type"), "application/json"),
        ("content-encoding", envelope.get("content-encoding"), "utf-8"),
        ("body_encoding", properties.get("body_encoding"), "base64"),
    ):
        if found != wanted:
            raise _RefusedError(Reason.ENCODING, f"{where} is '{printable(found)}'; send '{wanted}'")
    if headers.get("compression"):
        raise _RefusedError(Reason.ENCODING, "the body is compressed; send it plain (task_compression = None)")
    if not isinstance(envelope.get("body"), str):
        raise _RefusedError(Reason.SHAPE, f"body is {printable(envelope.get('body'))}, not base64 text")


def _check_times(headers: dict[str, Any], rules: QueueRules) -> str | None:
    """Refuse times and limits; return ``expires`` in one form where the queue admits it."""
    if headers.get("eta") is not None:
        raise _RefusedError(Reason.ETA, "eta and countdown are not served; send the task when it is due")
    limits = headers.get("timelimit")
    if limits is not None and limits != [None, None]:
        raise _RefusedError(Reason.ETA, "time limits are the worker's; send the task without")
    expires = headers.get("expires")
    if expires is None:
        return None
    if rules.job_prefix is not None:
        raise _RefusedError(Reason.ETA, "expires is not served on this queue; send the task without")
    try:
        when = datetime.fromisoformat(expires)
    except (TypeError, ValueError):
        raise _RefusedError(Reason.ETA, f"expires '{printable(expires)}' is not an ISO 8601 time") from None
    if not 2000 <= when.year < 2200:
        raise _RefusedError(Reason.ETA, f"expires '{printable(expires)}' is out of range")
    return (when.astimezone(UTC) if when.tzinfo else when.replace(tzinfo=UTC)).isoformat()


def _arguments(encoded_body: str) -> dict[str, Any]:
    """Decode a body of protocol 2, ``[args, kwargs, embed]``, and return ``kwargs``."""
    try:
        raw = base64.b64decode(encoded_body, validate=True)
    except ValueError:
        raise _RefusedError(Reason.ENCODING, "the body is not base64") from None
    body = _parse(raw, "body")
    if not isinstance(body, list) or len(body) != 3:
        raise _RefusedError(Reason.SHAPE, "the body is not [args, kwargs, embed] of Celery message protocol 2")
    args, kwargs, embed = body
    if args != []:
        raise _RefusedError(Reason.ARGUMENTS, "positional arguments; send keyword arguments only")
    embedded = _object(embed, "embed")
    for key in rebuilt.CANVAS:
        value = embedded.get(key)
        if value is not None and value != [] and value != {}:
            raise _RefusedError(Reason.CANVAS, f"the message carries {key}; use on_done instead of Celery's canvas")
    return _object(kwargs, "kwargs")


def _validate(task: str, validator: Validator, kwargs: dict[str, Any]) -> None:
    try:
        validator(kwargs)
    except FSWorkerError as error:
        explanation = printable(str(error), _MAX_EXPLANATION_CHARS)
        raise _RefusedError(Reason.ARGUMENTS, f"{task}: {explanation}") from error
    except ValueError as error:
        raise _RefusedError(Reason.ARGUMENTS, f"{task}: {printable(str(error))}") from error
    except Exception as error:  # whatever an argument trips in a validator must not stop the worker
        explanation = f"{type(error).__name__}: {printable(str(error))}"
        raise _RefusedError(Reason.ARGUMENTS, f"{task}: the validator failed: {explanation}") from error


def _foreign_id_detail(job_id: object, rules: QueueRules) -> str:
    wanted = "8 to 128 letters, digits or ._-" if rules.job_prefix is None else f"'{rules.job_prefix}' and a UUID"
    return f"job id '{printable(job_id)}' is not of this queue; use {wanted}"


def _job_id_in_tail(raw: bytes, rules: QueueRules) -> str | None:
    """An own id in the end of a message that is too large to parse, where kombu writes the headers.

    Only a courtesy to an honest sender, who then reads why his job failed; a liar can name none but his own jobs.
    """
    tail = raw[-_TAIL_BYTES:].decode("utf-8", errors="replace")
    found = re.search(rf'"id": ?"({rules._job_id_pattern()})"', tail)
    return found.group(1) if found else None


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _RefusedError(Reason.SHAPE, f"{what} is {printable(value)}, not a JSON object")
    return value


def _parse(raw: bytes, what: str) -> Any:
    try:
        return strictjson.parse(raw, MAX_DEPTH)
    except strictjson.TooDeepError as error:
        raise _RefusedError(Reason.TOO_DEEP, f"the {what} is nested more than {MAX_DEPTH} levels deep") from error
    except (ValueError, RecursionError) as error:
        raise _RefusedError(Reason.NOT_JSON, f"the {what} is not strict JSON: {printable(str(error))}") from error
