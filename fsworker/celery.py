"""The Celery app: ``celery -A fsworker worker`` and ``fsworker worker`` run the same one.

``app`` is made from the environment when it is first asked for. Its role (``FSWORKER_ROLE``, ``ingest`` unless set)
decides which tasks exist in it and which queues it consumes: nothing that an application may send reaches maintenance,
because a worker that hears applications does not know the maintenance tasks.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from celery import Celery
from celery.signals import celeryd_init, setup_logging

from fsworker.broker.door import configure
from fsworker.broker.judge import QueueRules
from fsworker.broker.kv import KV
from fsworker.broker.names import COLLECT, PURGE, SWEEP, TASK_PREFIX, VERIFY, Names
from fsworker.broker.options import broker_settings, transport_options
from fsworker.broker.redisurl import celery_url
from fsworker.broker.refusals import reporter
from fsworker.broker.sending import PRODUCER_SETTINGS, Sender, queue_named
from fsworker.collection.upkeep import Upkeep, note_sweep
from fsworker.config import Settings, load_settings
from fsworker.errors import ConfigError, FSWorkerError
from fsworker.host.alive import alive_file
from fsworker.host.bootsteps import FollowApplications, Heartbeat
from fsworker.host.checks import check_worker
from fsworker.host.logs import log_as_json
from fsworker.host.state import find_redis_url, make_state_directory
from fsworker.host.watchdog import Watchdog
from fsworker.jobs.service import Service
from fsworker.jobs.sweep import sweep
from fsworker.jobs.tasks import (
    INGEST_VALIDATORS,
    MAINTENANCE_VALIDATORS,
    register_collection_tasks,
    register_ingest_tasks,
    register_maintenance_tasks,
)
from fsworker.store.objects import ObjectStore

T = TypeVar("T")

log = logging.getLogger(__name__)

_SHORTEST_EXPIRY_S = 300.0
_NOBODY = ""
"""No application's name: where there is none yet, its queue stands in, because Celery has no worker without a queue."""


class PerProcess(Generic[T]):
    """A value made on first use, anew in each process: connections and locks do not survive a fork."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._pid = 0
        self._value: T | None = None

    def __call__(self) -> T:
        """The value of this process."""
        if self._pid != os.getpid():
            with self._lock:
                if self._pid != os.getpid():
                    self._value = self._make()
                    self._pid = os.getpid()
        assert self._value is not None
        return self._value


def open_store(settings: Settings) -> ObjectStore:
    """The store of ``FSWORKER_STORE``. Raises :class:`ConfigError`."""
    if settings.store is None:
        raise ConfigError("FSWORKER_STORE is not set; it names the store's directory")
    return ObjectStore(settings.store, durability=settings.durability, grace_s=settings.grace)


def make_app(settings: Settings) -> Celery:
    """The Celery app for ``settings.role``. Raises :class:`ConfigError`; connects to nothing yet."""
    store = open_store(settings)
    url = find_redis_url(settings, store.config.store_id)
    names = Names(settings.namespace)
    app = Celery("fsworker")
    app.Task.Request = "fsworker.broker.consumer:Request"
    app.conf.update(PRODUCER_SETTINGS, **broker_settings(celery_url(url)), **_worker_settings(settings, names, url))
    send = Sender(app, url)
    rules: Callable[[str], QueueRules | None]
    if settings.role == "ingest":
        app.conf.task_queues = [queue_named(names.ingest_queue(name)) for name in store.config.app_names or [_NOBODY]]
        rules = _ingest_rules(store, names)
        service = PerProcess(lambda: Service(open_store(settings), KV(url), send, settings))
        register_ingest_tasks(app, service)
        app.steps["consumer"].add(FollowApplications)
        FollowApplications.store, FollowApplications.names = store, names
    else:
        app.conf.task_queues = [queue_named(names.maintenance_queue)]
        maintenance = QueueRules(names.maintenance_queue, MAINTENANCE_VALIDATORS, None)
        rules = {names.maintenance_queue: maintenance}.get
        parts = PerProcess(lambda: (open_store(settings), KV(url)))
        upkeep = PerProcess(lambda: Upkeep(*parts(), send, settings))

        def look_and_sweep() -> dict[str, Any]:
            try:
                upkeep().watch()
            except Exception:  # whatever it is: uploads that nobody was told of are found by the sweep alone
                log.exception("looking at clocks, keep-sets and what is overdue failed; the sweep goes on")
            report = sweep(*parts(), send, settings).as_json()
            note_sweep(parts()[0])
            return report

        register_maintenance_tasks(app, look_and_sweep)
        register_collection_tasks(app, upkeep)
        app.conf.beat_schedule = _schedule(settings, names)
    Heartbeat.path = alive_file(make_state_directory(settings, store.config.store_id), settings.role)
    app.steps["consumer"].update({Heartbeat, Watchdog})
    configure(rules, reporter(PerProcess(lambda: KV(url)), names, settings.role, settings.result_retention))
    if settings.log_json:
        setup_logging.connect(log_as_json, weak=False)
    celeryd_init.connect(lambda **_: _exit_on_error(store), weak=False)
    return app


def _exit_on_error(store: ObjectStore) -> None:
    try:
        check_worker(store)
    except FSWorkerError as error:
        raise SystemExit(f"fsworker: {error}") from None  # a signal's ordinary exceptions are only logged


def _worker_settings(settings: Settings, names: Names, url: str) -> dict[str, Any]:
    return {
        "broker_transport_options": transport_options(settings.visibility_timeout, names.unacked_prefix(settings.role)),
        "result_backend": celery_url(url),
        "result_expires": int(settings.result_retention),
        "task_create_missing_queues": False,
        # A job is acknowledged when it is over; what its process did not survive is delivered again.
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "task_time_limit": settings.task_time_limit,
        "task_store_errors_even_if_ignored": False,
        "worker_prefetch_multiplier": 1,
        # What FSWORKER_CONCURRENCY says of applications' jobs is no reason for as many processes that collect and verify.
        "worker_concurrency": (settings.concurrency or None) if settings.role == "ingest" else 1,
        "worker_max_tasks_per_child": 2000,
        "worker_max_memory_per_child": 400_000,  # KiB; looked at between two tasks
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_hijack_root_logger": not settings.log_json,
        "worker_send_task_events": False,
        "worker_proc_alive_timeout": 30.0,
        "beat_cron_starting_deadline": 3600,
        "beat_scheduler": "fsworker.host.beat:Scheduler",
        "timezone": "UTC",
    }


def _schedule(settings: Settings, names: Names) -> dict[str, Any]:
    """Beat's entries. Each expires with its interval, so that what nobody consumed for long is not all done after it.

    Five minutes at least: so long may a part hold up a sweep, and so far may the clock of the worker's host be ahead of beat's.
    """
    entries = {
        SWEEP: settings.sweep_every,
        COLLECT: settings.collect_every,
        PURGE: settings.purge_every,
        VERIFY: settings.verify_every,
    }
    return {
        name.removeprefix(f"{TASK_PREFIX}."): {
            "task": name,
            "schedule": every_s,
            # The limits are the worker's; beat, which knows the task, would put them into the message.
            "options": {
                "queue": queue_named(names.maintenance_queue),
                "expires": max(every_s, _SHORTEST_EXPIRY_S),
                "time_limit": None,
            },
        }
        for name, every_s in entries.items()
        if every_s is not None
    }


def _ingest_rules(store: ObjectStore, names: Names) -> Callable[[str], QueueRules | None]:
    known: dict[str, QueueRules] = {}

    def rules(queue: str) -> QueueRules | None:
        app = names.app_of_ingest_queue(queue)
        if app == _NOBODY:
            return QueueRules(queue, {}, None)
        if app is None or app not in (store.config.apps or {}):
            return None
        if queue not in known:
            known[queue] = QueueRules(queue, INGEST_VALIDATORS, f"{app}.")
        return known[queue]

    return rules


def __getattr__(name: str) -> Any:
    """Make ``app`` when it is first asked for: importing this module must not need a configuration."""
    if name == "app":
        made = make_app(load_settings())
        globals()["app"] = made
        return made
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
