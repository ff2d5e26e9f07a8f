"""fsworker: a Celery worker around a content-addressed FileStruct store.

The names below are loaded when first used, so that a program that only stores bytes loads neither Celery nor redis nor
Pillow, and ``celery -A fsworker`` finds its app without loading anything else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fsworker.client import Client
    from fsworker.jobs.job import Job
    from fsworker.model import IngestResult
    from fsworker.specification import Thumbnail
    from fsworker.store.facade import Store

__all__ = ["Client", "IngestResult", "Job", "Store", "Thumbnail"]
__version__ = "0.1.0"

_HOMES = {
    "Client": "fsworker.client",
    "IngestResult": "fsworker.model",
    "Job": "fsworker.jobs.job",
    "Store": "fsworker.store.facade",
    "Thumbnail": "fsworker.specification",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)
