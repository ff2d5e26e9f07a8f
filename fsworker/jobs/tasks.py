"""The Celery tasks. Each is thin: take the arguments, call one service function, return JSON."""

# celery has no type information.
# mypy: disable-error-code="misc,untyped-decorator"

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from celery import Celery, Task
from pydantic import BaseModel, ValidationError

from fsworker.broker.names import (
    CLAIM,
    COLLECT,
    COLLECT_PART,
    INGEST,
    INGEST_MANY,
    PURGE,
    PURGE_PART,
    SWEEP,
    THUMBNAIL,
    VERIFY,
)
from fsworker.collection.upkeep import Upkeep
from fsworker.errors import UploadRejectedError
from fsworker.jobs.service import Service
from fsworker.model import BatchRequest, ClaimRequest, IngestRequest, ThumbnailRequest, describe
from fsworker.store.layout import is_stamp

log = logging.getLogger(__name__)

GetService = Callable[[], Service]
Validator = Callable[[dict[str, Any]], None]


def register_ingest_tasks(app: Celery, service: GetService) -> None:
    """What applications may ask for. Results and failures are stored by the service, not by Celery."""

    def run(kind: str, task: Task, kwargs: Mapping[str, Any]) -> None:
        service().run(task.request.id, kind, kwargs)

    @app.task(name=INGEST, shared=False, bind=True)
    def ingest(self: Task, **kwargs: Any) -> None:
        run("ingest", self, kwargs)

    @app.task(name=THUMBNAIL, shared=False, bind=True)
    def thumbnail(self: Task, **kwargs: Any) -> None:
        run("thumbnail", self, kwargs)

    @app.task(name=CLAIM, shared=False, bind=True)
    def claim(self: Task, **kwargs: Any) -> None:
        run("claim", self, kwargs)

    @app.task(name=INGEST_MANY, shared=False, bind=True)
    def ingest_many(self: Task, **kwargs: Any) -> None:
        batch = BatchRequest.model_validate(kwargs)
        redelivered = bool((self.request.delivery_info or {}).get("redelivered"))
        service().run_many(self.request.id, batch, redelivered=redelivered)


def register_maintenance_tasks(app: Celery, do_sweep: Callable[[], dict[str, Any]]) -> None:
    """What beat asks for."""

    @app.task(name=SWEEP, shared=False)
    def sweep() -> dict[str, Any]:
        report = do_sweep()
        if report["rung"] or report["abandoned"] or report["expired"]:
            log.info("sweep: %s", report)
        return report


def register_collection_tasks(app: Celery, upkeep: Callable[[], Upkeep]) -> None:
    """Collections and purges: beat asks for one, and each part asks for the next. Verification: beat asks for each part."""

    @app.task(name=COLLECT, shared=False)
    def collect() -> dict[str, Any]:
        return upkeep().collect()

    @app.task(name=COLLECT_PART, shared=False)
    def collect_part(run: str) -> dict[str, Any]:
        return upkeep().collect(run)

    @app.task(name=VERIFY, shared=False)
    def verify() -> dict[str, Any]:
        return upkeep().verify()

    @app.task(name=PURGE, shared=False)
    def purge() -> dict[str, Any]:
        return upkeep().purge()

    @app.task(name=PURGE_PART, shared=False)
    def purge_part(shard: int) -> dict[str, Any]:
        return upkeep().purge(shard)


def _validator(model: type[BaseModel]) -> Validator:
    def check(kwargs: dict[str, Any]) -> None:
        try:
            model.model_validate(kwargs)
        except ValidationError as error:
            raise UploadRejectedError(describe(error)) from None

    return check


def _no_arguments(kwargs: dict[str, Any]) -> None:
    if kwargs:
        raise UploadRejectedError(f"unexpected argument {next(iter(kwargs))!r}; this task takes none")


INGEST_VALIDATORS: Mapping[str, Validator] = {
    INGEST: _validator(IngestRequest),
    INGEST_MANY: _validator(BatchRequest),
    THUMBNAIL: _validator(ThumbnailRequest),
    CLAIM: _validator(ClaimRequest),
}
"""The tasks on an application's queue, and what checks their arguments before they may become a task."""


def _only(name: str, is_right: Callable[[Any], bool]) -> Validator:
    def check(kwargs: dict[str, Any]) -> None:
        if set(kwargs) != {name} or not is_right(kwargs[name]):
            raise UploadRejectedError(f"expected the one argument {name!r}, as the part before gave it")

    return check


MAINTENANCE_VALIDATORS: Mapping[str, Validator] = {
    SWEEP: _no_arguments,
    VERIFY: _no_arguments,
    COLLECT: _no_arguments,
    COLLECT_PART: _only("run", lambda run: isinstance(run, str) and is_stamp(run)),
    PURGE: _no_arguments,
    PURGE_PART: _only("shard", lambda shard: type(shard) is int and 0 <= shard < 256),
}
"""The tasks on the maintenance queue."""
