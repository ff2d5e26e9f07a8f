"""A running ``fsworker up``, for tests: started as a user starts it, with short intervals."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fsworker.client import Client
from fsworker.config import load_settings
from fsworker.store.facade import Store

READY_S = 60.0


@dataclass
class RunningStack:
    """A running stack and how to reach it."""

    directory: Path
    process: subprocess.Popen[str]
    where: dict[str, Any]
    environment: dict[str, str]
    clients: list[Client] = field(default_factory=list)

    @property
    def store_path(self) -> Path:
        """The store's directory."""
        return Path(self.where["store"])

    @property
    def redis_url(self) -> str:
        """The embedded server's URL."""
        return str(self.where["redis_url"])

    def client(self, app: str = "shop", **overrides: Any) -> Client:
        """A client that lives as long as the stack."""
        options = {"store": self.store_path, "redis_url": self.redis_url, **overrides}
        client = Client(app, settings=load_settings(environ={}, **options))
        self.clients.append(client)
        return client

    def store(self) -> Store:
        """The store, opened anew."""
        return Store(self.store_path)

    def spool(self, app: str = "shop") -> Path:
        """An application's spool directory."""
        return self.store_path / "Spool" / app

    def log(self) -> str:
        """What the stack has said so far."""
        return (self.directory / "up.log").read_text(errors="replace")


@contextmanager
def running_stack(
    directory: Path, *, apps: tuple[str, ...] = ("shop", "blog"), **settings: str
) -> Iterator[RunningStack]:
    """Run ``fsworker up`` on a new (or old) store below ``directory``; ``settings`` are ``FSWORKER_…`` variables."""
    store_path = directory / "store"
    Store.create(store_path, apps=apps).close()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FSWORKER_")}
    environment |= {
        "FSWORKER_STATE_DIR": str(directory / "state"),
        "FSWORKER_SWEEP_EVERY": "2s",
        "FSWORKER_VISIBILITY_TIMEOUT": "10s",
        "FSWORKER_CONCURRENCY": "2",
        **{f"FSWORKER_{name.upper()}": value for name, value in settings.items()},
    }
    with (directory / "up.log").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "fsworker", "up", str(store_path), "--json"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    running: RunningStack | None = None
    try:
        running = RunningStack(directory, process, json.loads(_first_line(process, directory)), environment)
        yield running
    finally:
        for client in running.clients if running else []:
            client.close()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=70)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _first_line(process: subprocess.Popen[str], directory: Path) -> str:
    assert process.stdout is not None
    deadline_s = time.monotonic() + READY_S
    while time.monotonic() < deadline_s:
        if select.select([process.stdout], [], [], 0.2)[0]:
            line = process.stdout.readline()
            if line:
                return line
            break
    process.kill()
    raise AssertionError(f"fsworker up did not get ready:\n{(directory / 'up.log').read_text(errors='replace')}")
