"""A real Redis and real ``celery worker`` processes of judged_app.py, for tests and benchmarks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
from celery import Celery
from hostile_messages import QUEUE
from processes import ENVIRONMENT, eventually

from fsworker.host.embedded import EmbeddedServer

RESULT = "celery-task-meta-"


class Server:
    """An embedded server that can be stopped and started again, and a plain client of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.embedded = EmbeddedServer.start(directory)
        self.url = self.embedded.url
        self.redis = redis.Redis(unix_socket_path=str(self.embedded.socket_path))

    def stop(self) -> None:
        self.redis.close()
        self.embedded.stop()

    def restart(self) -> None:
        with self.stopped():
            pass

    @contextmanager
    def stopped(self) -> Iterator[None]:
        self.embedded.stop()
        try:
            yield
        finally:
            self.embedded = EmbeddedServer.start(self.directory)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        assert self.embedded.pid is not None
        os.kill(self.embedded.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.embedded.pid, signal.SIGCONT)

    def cut_connections(self) -> None:
        self.redis.client_kill_filter(skipme=True, _type="normal")

    def queued(self, queue: str = QUEUE) -> int:
        return int(self.redis.llen(queue))

    def unacknowledged(self, role: str = "ingest") -> int:
        key = f"test:{role}:unacked"
        with self.redis.pipeline() as pipe:  # at one moment: an acknowledgement may come between
            held, indexed = pipe.hlen(key).zcard(f"{key}_index").execute()
        assert held == indexed
        return int(held)

    def result(self, job_id: str) -> Any:
        raw = self.redis.get(RESULT + job_id)
        return None if raw is None else json.loads(raw)


class Worker:
    """A ``celery worker`` process of judged_app.py and the log of its tasks."""

    def __init__(self, server: Server, directory: Path, *options: str, **environment: str) -> None:
        self.log_path = directory / "tasks.log"
        self.log_path.touch()
        self.output_path = directory / "worker.log"
        variables = {"JUDGED_URL": server.url, "JUDGED_LOG": str(self.log_path), **environment}
        path = f"{Path(__file__).parent}{os.pathsep}{ENVIRONMENT['PYTHONPATH']}"
        with self.output_path.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "judged_app", "worker", "-c", "2", "-l", "info", *options],
                env={**ENVIRONMENT, "PYTHONPATH": path, **variables},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self.output_path.read_text()

    @property
    def lines(self) -> list[str]:
        return self.log_path.read_text().splitlines()

    @property
    def starts(self) -> Counter[str]:
        """How often the task of each id was started."""
        return Counter(line.split()[1] for line in self.lines if line.startswith("start "))

    @property
    def ends(self) -> Counter[str]:
        """How often the task of each id came to its end."""
        return Counter(line.split()[1] for line in self.lines if line.startswith("end "))

    @property
    def refusals(self) -> Counter[tuple[str, str]]:
        """Refused messages by queue and reason."""
        return Counter((line.split()[1], line.split()[2]) for line in self.lines if line.startswith("refused "))

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def await_ready(self) -> Worker:
        assert eventually(lambda: " ready." in self.output, 30), self.output
        return self

    def signal(self, number: int) -> int:
        """Send a signal to the main process, return its exit status."""
        self.process.send_signal(number)
        return self.process.wait(30)

    def kill(self) -> None:
        """SIGKILL, with all children."""
        if self.is_alive():
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


StartWorker = Callable[..., Worker]


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture
def server(shared_server: Server) -> Server:
    shared_server.redis.flushall()
    return shared_server


@pytest.fixture
def start_worker(server: Server, tmp_path: Path) -> Iterator[StartWorker]:
    """Starts workers with ``(*options, **environment)``; they are killed in the end."""
    workers: list[Worker] = []

    def start(*options: str, **environment: str) -> Worker:
        workers.append(Worker(server, tmp_path, *options, **environment).await_ready())
        return workers[-1]

    yield start
    for worker in workers:
        worker.kill()


def send(server: Server, task: str = "fsworker.ingest", app: str = "shop", **kwargs: Any) -> str:
    """Send with stock Celery, as a foreign application does."""
    job_id = f"{app}.{uuid4()}"
    producer = Celery(broker=server.url, backend=server.url, set_as_current=False)
    producer.send_task(task, kwargs=kwargs, queue=f"fsworker.ingest.{app}", task_id=job_id)
    producer.close()
    return job_id


def nap(server: Server, seconds: float) -> str:
    return send(server, "test.nap", seconds=seconds)
