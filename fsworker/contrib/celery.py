"""A ready task that publishes the keep-set, and its beat entry, for the application's own Celery app.

::

    from fsworker import Client
    from fsworker.contrib.celery import add_publish_keep_set

    files = Client("shop")
    publish_keep_set = add_publish_keep_set(app, files, lambda: photo_hashes())

It is the application that runs this, with its own database: fsworker never sees it.
"""

# celery has no type information.
# mypy: disable-error-code="misc,untyped-decorator"

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from celery import Celery, Task

from fsworker.client import Client
from fsworker.errors import KeepSetError, RedisUnavailableError

log = logging.getLogger(__name__)

EVERY_S = 6 * 3600.0
"""An eighth of the age at which a keep-set is refused (``FSWORKER_KEEP_SET_MAX_AGE``): several may fail in a row."""


def add_publish_keep_set(
    app: Celery,
    client: Client | Callable[[], Client],
    hashes: Callable[[], Iterable[Any]],
    *,
    every_s: float | None = EVERY_S,
    name: str = "publish_keep_set",
    queue: str | None = None,
    allow_empty: bool = False,
) -> Task:
    """Add the task ``name`` to ``app``, and an entry for it to its beat schedule; returns the task.

    ``hashes`` is called in the task, after the snapshot time was noted: read there, in a new transaction on the primary
    database, every hash that the application refers to, those of thumbnails too. ``every_s=None`` adds no beat entry.
    ``client`` may be a callable that makes it, for a worker that forks. A failed publish is logged, and raised, so that
    whoever watches the tasks sees it; the keep-set before it stays in force.
    """

    @app.task(name=name, ignore_result=True)
    def publish_keep_set() -> dict[str, Any]:
        files = client if isinstance(client, Client) else client()
        try:
            done = files.keep.publish(hashes, allow_empty=allow_empty)
        except (KeepSetError, RedisUnavailableError) as error:
            log.error("the keep-set of %s was not published: %s", files.app, error)  # noqa: TRY400 - it says it all
            raise
        log.info("the keep-set of %s is in force: %d hashes", files.app, done.count)
        return done.as_json()

    if every_s is not None:
        options = {"expires": every_s, **({"queue": queue} if queue is not None else {})}
        app.conf.beat_schedule = {
            **(app.conf.beat_schedule or {}),
            name: {"task": name, "schedule": every_s, "options": options},
        }
    return publish_keep_set
