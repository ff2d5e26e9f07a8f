"""``fsworker up``: Redis, an ingest worker, a maintenance worker and beat, under one supervisor.

The demo and the tests run the same thing, so what is shown is what is used.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsworker.broker.kv import KV
from fsworker.broker.sending import Sender, make_producer
from fsworker.config import Settings, redact_url
from fsworker.errors import ConfigError, RedisUnavailableError
from fsworker.host.alive import alive_file
from fsworker.host.checks import check_worker
from fsworker.host.embedded import EmbeddedServer
from fsworker.host.state import REDIS_DIRECTORY, UP_FILE, make_state_directory, only_one, write_up_file
from fsworker.host.supervise import Child
from fsworker.jobs.sweep import sweep
from fsworker.store.layout import SPOOL
from fsworker.store.objects import ObjectStore

_STOP_GRACE_S = 60.0  # a worker ends the jobs that it has begun


@dataclass(frozen=True)
class Stack:
    """What ``up`` runs for one store: its children in their order, and where things are."""

    store: ObjectStore
    settings: Settings
    state_dir: Path
    redis_url: str
    embedded: bool
    children: tuple[Child, ...]

    def describe(self) -> dict[str, Any]:
        """Where things are, for reports; a password in the URL is hidden."""
        return {
            "store": str(self.store.root),
            "spool": {app: str(self.store.root / SPOOL / app) for app in self.store.config.app_names},
            "redis_url": redact_url(self.redis_url),
            "redis": "embedded" if self.embedded else "configured",
            "state_dir": str(self.state_dir),
            "pid": os.getpid(),
        }

    def sweep_at_once(self) -> None:
        """Ring for everything that waits in the spool: whatever was in flight before, nobody is at it now."""
        with (
            contextlib.suppress(RedisUnavailableError),  # the maintenance worker sweeps when Redis is back
            contextlib.closing(Sender(make_producer(self.redis_url), self.redis_url)) as send,
            contextlib.closing(KV(self.redis_url)) as kv,
        ):
            sweep(self.store, kv, send, self.settings, at_once=True)


@contextlib.contextmanager
def stack(settings: Settings, *, log_dir: Path | None = None) -> Iterator[Stack]:
    """Check everything, take the state directory, and describe what is to be run. Nothing runs yet.

    With ``log_dir`` each child's output goes to a file of its own there. Raises :class:`ConfigError`: no store, no
    permission, or an ``up`` that runs already; :class:`RedisUnavailableError`: a configured Redis does not answer.
    """
    if settings.store is None:
        raise ConfigError("no store: name it (fsworker up STORE), or set FSWORKER_STORE")
    with contextlib.ExitStack() as held:
        store = held.enter_context(ObjectStore(settings.store, durability=settings.durability, grace_s=settings.grace))
        check_worker(store)
        state_dir = make_state_directory(settings, store.config.store_id)
        held.enter_context(only_one(state_dir / "up.lock", "an 'fsworker up'"))
        children: list[Child] = []
        if settings.redis_url:
            url = settings.redis_url
            with contextlib.closing(KV(url)) as kv:
                kv.ping()  # an embedded one is never started in its place
        else:
            server = held.enter_context(EmbeddedServer(state_dir / REDIS_DIRECTORY))
            url = server.url
            children.append(server.child())
        children += _workers(settings, store, state_dir, url, log_dir)
        built = Stack(store, settings, state_dir, url, not settings.redis_url, tuple(children))
        write_up_file(state_dir, built.describe())
        held.callback((state_dir / UP_FILE).unlink, missing_ok=True)
        yield built


def _workers(settings: Settings, store: Any, state_dir: Path, url: str, log_dir: Path | None) -> list[Child]:
    environment = {
        **os.environ,
        "FSWORKER_STORE": str(store.root),
        "FSWORKER_REDIS_URL": url,
        "FSWORKER_STATE_DIR": str(state_dir),
    }

    def child(name: str, arguments: list[str], ready: Callable[[], bool] | None, *, beside: bool = True) -> Child:
        return Child(
            name,
            [sys.executable, "-m", "fsworker", *arguments],
            env=environment,
            stop_grace_s=_STOP_GRACE_S,
            ready=ready,
            log_path=None if log_dir is None else log_dir / f"{name}.log",
            beside=beside,
        )

    concurrency = [f"--concurrency={settings.concurrency}"] if settings.concurrency else []
    return [
        child("ingest", ["worker", "--role=ingest", *concurrency], _alive_since_now(state_dir, "ingest"), beside=False),
        child("maintenance", ["worker", "--role=maintenance"], _alive_since_now(state_dir, "maintenance")),
        child("beat", ["beat"], None),
    ]


def _alive_since_now(state_dir: Path, role: str) -> Callable[[], bool]:
    """Whether a worker of this role has given a sign of life since this call."""
    path, since_s = alive_file(state_dir, role), time.time()

    def alive() -> bool:
        try:
            return path.stat().st_mtime >= since_s
        except FileNotFoundError:
            return False

    return alive
