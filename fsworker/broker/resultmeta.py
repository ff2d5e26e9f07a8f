"""A task's state and result in Celery's own format: what lies under ``celery-task-meta-<id>``.

It is the key-value backend's JSON, so plain Celery producers read it with ``AsyncResult``. A result in Redis is a copy:
the ``.done`` file in the spool is the truth.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fsworker.model import ClaimResult, Failure, IngestResult, Outcome

RESULT_PREFIX = "celery-task-meta-"
"""Where Celery's key-value backends keep a task's result."""


@dataclass(frozen=True)
class TaskMeta:
    """A task's state as the result backend has it: Celery's ``status``, and its ``result`` as JSON."""

    status: str
    result: Any


def meta_of_outcome(outcome: Outcome) -> TaskMeta:
    """A job's end in Celery's terms, so that ``AsyncResult.get()`` returns or raises it."""
    if outcome.error is None:
        return TaskMeta("SUCCESS", outcome.result)
    return meta_of_failure(outcome.error)


def meta_of_failure(failure: Failure) -> TaskMeta:
    """A failure as Celery's JSON backends store an exception."""
    return TaskMeta(
        "FAILURE",
        {"exc_type": failure.type, "exc_message": [failure.message], "exc_module": "fsworker.errors"},
    )


def failure_of_meta(meta: TaskMeta) -> Failure:
    """The failure in a ``FAILURE`` meta, whoever stored it."""
    if not isinstance(meta.result, dict):
        return Failure(type="FSWorkerError", message=str(meta.result)[:1000])
    message = meta.result.get("exc_message")
    text = " ".join(str(part) for part in message) if isinstance(message, list) else str(message)
    return Failure(type=str(meta.result.get("exc_type", "FSWorkerError")), message=text[:4000])


def result_of_meta(result: object) -> IngestResult | ClaimResult:
    """The result in a ``SUCCESS`` meta. Raises ``ValueError`` for what is none."""
    kind = ClaimResult if isinstance(result, dict) and "present" in result else IngestResult
    return kind.model_validate(result)


def encode_meta(job_id: str, meta: TaskMeta) -> str:
    """A state as it stands under its key."""
    return json.dumps(
        {
            "status": meta.status,
            "result": meta.result,
            "traceback": None,
            "children": [],
            "date_done": datetime.fromtimestamp(time.time(), UTC).isoformat(),
            "task_id": job_id,
        }
    )


def decode_meta(raw: bytes | None) -> TaskMeta | None:
    """The state in what stands under a key; ``None`` when there is nothing readable."""
    try:
        meta = json.loads(raw) if raw else None
    except ValueError:
        return None
    if not isinstance(meta, dict) or not isinstance(meta.get("status"), str):
        return None
    return TaskMeta(meta["status"], meta.get("result"))
