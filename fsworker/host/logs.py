"""Log lines as JSON, one object a line, for those who collect logs (``FSWORKER_LOG_JSON=true``)."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any


class JsonFormatter(logging.Formatter):
    """``{"time", "level", "logger", "process", "message"}`` and, of an error, ``"trace"``."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the message holds."""
        tree: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        if record.exc_info:
            tree["trace"] = self.formatException(record.exc_info)
        return json.dumps(tree, ensure_ascii=False)


def log_as_json(loglevel: int | str | None = None, **_: Any) -> None:
    """Send everything to standard error as JSON; a receiver of Celery's ``setup_logging`` signal."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(loglevel or logging.INFO)
