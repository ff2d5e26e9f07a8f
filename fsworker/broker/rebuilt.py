"""What is made of a message that was accepted: one as an honest producer sends it, field by field (Celery's protocol 2)."""

from __future__ import annotations

import base64
import json
import uuid
from typing import Any, Final

CANVAS: Final = ("callbacks", "errbacks", "chain", "chord")
"""What a body can carry beside arguments: what shall run afterwards, with the worker's credentials."""

ENVELOPE_BYTES: Final = 2048
"""What :func:`message` puts around a body, generously."""


def encode_body(kwargs: dict[str, Any]) -> str:
    """``kwargs`` as a body of protocol 2, in base64."""
    body = [[], kwargs, dict.fromkeys(CANVAS)]
    text = json.dumps(body, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(text.encode("utf-8")).decode("ascii")


def message(queue: str, task: str, job_id: str, expires: str | None, body: str, redelivered: bool) -> dict[str, Any]:
    """The message as kombu would hand it over had an honest producer sent it. Fields: Celery's message protocol 2."""
    return {
        "body": body,
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {
            "lang": "py",
            "task": task,
            "id": job_id,
            "root_id": job_id,
            "parent_id": None,
            "group": None,
            "group_index": None,
            "eta": None,
            "expires": expires,
            "retries": 0,
            "timelimit": [None, None],
            "shadow": None,
            "origin": "",
            "argsrepr": "()",
            "kwargsrepr": "{...}",
            "replaced_task_nesting": 0,
            "stamped_headers": [],
            "stamps": {},
        },
        "properties": {
            "correlation_id": job_id,
            "reply_to": "",
            "delivery_mode": 2,
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
            # The anonymous exchange: a restored message needs no binding table to find its queue again.
            "delivery_info": {"exchange": "", "routing_key": queue, "redelivered": redelivered},
        },
    }
