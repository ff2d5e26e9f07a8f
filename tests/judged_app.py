"""A Celery app behind the judging transport, for worker processes of test_transport.py. Configured by environment.

Its tasks write what they do to a file, one line each: ``start <id>``, ``end <id>``, and ``refused <queue> <reason> <id>``.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from celery import Celery, Task, bootsteps
from kombu import Exchange, Queue

from fsworker.broker import transport
from fsworker.broker.door import configure
from fsworker.broker.judge import QueueRules, Refused
from fsworker.broker.options import broker_settings, transport_options
from fsworker.host.watchdog import Watchdog
from fsworker.model import IngestRequest

URL = os.environ["JUDGED_URL"]
LOG = Path(os.environ["JUDGED_LOG"])
VISIBILITY_TIMEOUT_S = float(os.environ.get("JUDGED_VISIBILITY_TIMEOUT_S", "60"))
ROLE = os.environ.get("JUDGED_ROLE", "ingest")
WATCHED = os.environ.get("JUDGED_WATCHED") == "1"
STOCK = os.environ.get("JUDGED_STOCK") == "1"


def check_nap(kwargs: dict[str, Any]) -> None:
    if set(kwargs) != {"seconds"}:
        raise ValueError("nap takes seconds")


TASKS = {
    "fsworker.ingest": IngestRequest.model_validate,
    "test.nap": check_nap,
    "test.die": lambda _: None,
    "test.exhaust": lambda _: None,
}
RULES = (
    {f"fsworker.ingest.{name}": QueueRules(f"fsworker.ingest.{name}", TASKS, f"{name}.") for name in ("shop", "blog")}
    if ROLE == "ingest"
    else {"fsworker.maintenance": QueueRules("fsworker.maintenance", {"test.nap": check_nap}, None)}
)


def note(*words: object) -> None:
    with LOG.open("a") as log:
        log.write(" ".join(map(str, words)) + "\n")


def report(refused: Refused, queue: str) -> None:
    note("refused", queue, refused.reason, refused.job_id)
    if refused.job_id == "shop.raise-in-the-callback":
        raise RuntimeError("the callback failed")


configure(RULES.get, report)
app = Celery("judged", backend=URL, set_as_current=False)
if not STOCK:
    app.Task.Request = "fsworker.broker.consumer:Request"
app.conf.update({"broker_url": URL} if STOCK else broker_settings(URL))
app.conf.update(
    broker_transport_options={
        **transport_options(VISIBILITY_TIMEOUT_S, f"test:{ROLE}:"),
        "unacked_restore_interval": 0.3,
        "socket_timeout": 3,
    },
    task_queues=[Queue(name, Exchange(""), name, no_declare=True) for name in RULES],
    task_create_missing_queues=STOCK,
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    accept_content=["json"],
)


class Sabotage(bootsteps.StartStopStep):
    """Makes the main process hang, or deaf, when a file of that name appears beside the log."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, consumer: Any) -> None:
        consumer.timer.call_repeatedly(0.1, self.look)

    def look(self) -> None:
        if LOG.with_name("hang").exists():
            time.sleep(600)
        if LOG.with_name("deafen").exists():
            transport.Channel._brpop_start = lambda *_: None  # type: ignore[method-assign]


if WATCHED:
    Watchdog.limit_s, Watchdog.silence_s = 3.0, 3.0
    app.steps["consumer"].update({Watchdog, Sabotage})


@app.task(name="fsworker.ingest", bind=True)
def ingest(self: Task, **kwargs: Any) -> dict[str, Any]:
    note("start", self.request.id)
    note("end", self.request.id)
    return {"kwargs": kwargs, "queue": self.request.delivery_info["routing_key"]}


@app.task(name="test.nap", bind=True)
def nap(self: Task, seconds: float) -> str:
    note("start", self.request.id)
    time.sleep(seconds)
    note("end", self.request.id)
    return "rested"


@app.task(name="test.die", bind=True)
def die(self: Task) -> str:
    """Kill this process the first time; the second time, say whether the message admits to be a second one."""
    note("start", self.request.id)
    if LOG.read_text().count(f"start {self.request.id}\n") == 1:
        os._exit(1)
    note("end", self.request.id)
    return f"redelivered {self.request.delivery_info['redelivered']}"


@app.task(name="test.exhaust", bind=True)
def exhaust(self: Task) -> None:
    note("start", self.request.id)
    raise MemoryError("exhausted")


@app.task(name="fsworker.collect", bind=True)
def collect(self: Task) -> None:
    note("start", self.request.id)
    note("COLLECTED", self.request.id)
