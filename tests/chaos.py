"""A chaos run: two applications ingest without pause while everything around them is broken and mended.

``python tests/chaos.py --seconds 600`` prints the figures and exits 1 when something was lost. What is broken: children,
workers, beat and Redis are killed; Redis is flushed; the network is cut, or swallows everything; the disk is filled
(with root, on a tmpfs of its own). What must hold: every upload that ``Client.ingest`` accepted ends in one result that
``get()`` gives, or in a clear failure with its bytes under ``Error/``; each callback comes at least once.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from stacks import RunningStack, running_stack

from fsworker.errors import FSWorkerError, JobTimeoutError, StoreUnavailableError, UploadError
from fsworker.host.guard import GuardedProcess
from fsworker.host.serverbinary import find_server
from fsworker.jobs.job import Job

APPS = ("shop", "blog")
DRAIN_S = 240.0
UPLOADS_PER_S = 12.0


class Broker:
    """A Redis with persistence, on a loopback port, that can be killed and started again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        self.port = free_port()
        self.process = self._start()
        self.direct = redis.Redis(port=self.port, socket_timeout=20)
        self.callbacks: list[bytes] = []
        self.came: dict[str, list[dict[str, Any]]] = {}

    def _start(self) -> GuardedProcess:
        flags = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory)]
        flags += ["--appendonly", "yes", "--save", "", "--logfile", str(self.directory / "redis.log")]
        process = GuardedProcess([str(find_server().path), *flags])
        wait_until(lambda: answers(self.port), 30)
        return process

    def kill(self, pause_s: float) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        time.sleep(pause_s)
        self.process = self._start()

    def flush(self) -> None:
        """Forget everything, but for the callbacks that wait: those have arrived, as far as fsworker goes."""
        with self.direct.pipeline(transaction=True) as pipe:
            for app in APPS:
                pipe.lrange(f"fsworker.done.{app}", 0, -1)
            pipe.flushall()
            *waiting, _ = pipe.execute()
        self.callbacks += [message for messages in waiting for message in messages]

    def collect(self) -> None:
        """Read the callbacks that came."""
        waiting = [raw for app in APPS for raw in self.direct.lrange(f"fsworker.done.{app}", 0, -1)]
        for raw in [*self.callbacks, *waiting]:
            _, kwargs, _ = json.loads(base64.b64decode(json.loads(raw)["body"]))
            self.came.setdefault(kwargs["job_id"], []).append(kwargs)

    def told(self, job_id: str) -> set[str]:
        """The hashes that callbacks named for a job."""
        return {kwargs["result"]["hash"] for kwargs in self.came.get(job_id, []) if kwargs["state"] == "done"}

    def stop(self) -> None:
        self.direct.close()
        self.process.stop(signal.SIGTERM, 10)


class Network:
    """A wire between everybody and Redis that can be cut, or swallow what is sent."""

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.cut = self.swallow = False
        self.lines: set[socket.socket] = set()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=500)
        self.port = int(self.listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            try:
                if self.cut:
                    raise ConnectionRefusedError
                far = socket.create_connection(("127.0.0.1", self.target_port), timeout=5)
                far.settimeout(None)
            except OSError:
                near.close()
                continue
            self.lines |= {near, far}
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if not self.swallow:
                    target.sendall(data)
        self._hang_up(source, target)

    def _hang_up(self, *lines: socket.socket) -> None:
        for line in lines:
            self.lines.discard(line)
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
            line.close()

    def reset(self) -> None:
        """End every connection, and let new ones through."""
        self._hang_up(*self.lines.copy())
        self.cut = self.swallow = False

    def close(self) -> None:
        self.listener.close()
        self.reset()


@dataclass
class Accepted:
    """An upload that was accepted."""

    job: Job
    data: bytes
    at_s: float
    must_fail: bool
    called_back: bool


@dataclass
class Figures:
    """What is published."""

    seconds: float = 0.0
    uploads: int = 0
    not_accepted: int = 0
    done: int = 0
    failed_as_they_must: int = 0
    lost: int = 0
    differing: int = 0
    callbacks_due: int = 0
    callbacks_missed: int = 0
    callbacks_twice: int = 0
    failed_but_kept: int = 0
    stored_under_a_wrong_name: int = 0
    left_in_the_spool: int = 0
    worst_delay_s: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing was lost, twisted or left."""
        wrong = (self.lost, self.differing, self.callbacks_missed, self.stored_under_a_wrong_name)
        return not any(wrong) and not self.left_in_the_spool and self.done > 0


class Producer(threading.Thread):
    """One application that uploads without pause: new bytes and old, good and bad, alone and in batches."""

    def __init__(self, stack: RunningStack, app: str, url: str, seed: int) -> None:
        super().__init__(daemon=True)
        self.client = stack.client(app, redis_url=url)
        self.dice = random.Random(seed)
        self.app = app
        self.accepted: list[Accepted] = []
        self.refused = 0
        self.stopping = threading.Event()

    def run(self) -> None:
        while not self.stopping.is_set():
            begun_s = time.monotonic()
            number = self.dice.choice([1, 1, 1, 8])
            try:
                self._upload(number)
            except StoreUnavailableError:
                self.refused += number
            self.stopping.wait(max(0.0, number / UPLOADS_PER_S - (time.monotonic() - begun_s)))

    def _upload(self, number: int) -> None:
        contents = [self._content() for _ in range(number)]
        must_fail = number == 1 and self.dice.random() < 0.05
        on_done = f"{self.app}.attach" if self.dice.random() < 0.5 else None
        options: dict[str, Any] = {"on_done": on_done, "max_bytes": 3 if must_fail else None}
        at_s = time.time()
        ingest = self.client.ingest_many if number > 1 else lambda some, **more: [self.client.ingest(some[0], **more)]
        jobs = ingest(contents, **options)
        for job, data in zip(jobs, contents, strict=True):
            self.accepted.append(Accepted(job, data, at_s, must_fail, on_done is not None))

    def _content(self) -> bytes:
        if self.dice.random() < 0.1:
            return b"always the same" * self.dice.randint(1, 5)
        return self.dice.randbytes(self.dice.choice([10, 1000, 20_000, 100_000]))


def run(seconds: float, seed: int, directory: Path) -> Figures:
    """Do it all, and count."""
    figures = Figures(seconds=seconds)
    dice = random.Random(seed)
    with ExitStack() as held:
        ballast = held.enter_context(small_disk(directory)) if os.geteuid() == 0 else None
        broker = Broker(directory / "redis")
        held.callback(broker.stop)
        network = Network(broker.port)
        held.callback(network.close)
        url = f"redis://127.0.0.1:{network.port}/0"
        stack = held.enter_context(
            running_stack(
                directory / "disk",
                apps=APPS,
                redis_url=url,
                sweep_every="2s",
                visibility_timeout="15s",
                max_attempts="20",
            )
        )
        producers = [Producer(stack, app, url, seed + number) for number, app in enumerate(APPS)]
        for producer in producers:
            producer.start()
        break_things(seconds, dice, stack, broker, network, ballast, figures)
        for producer in producers:
            producer.stopping.set()
            producer.join(60)
        figures.not_accepted = sum(producer.refused for producer in producers)
        judge(stack, [item for producer in producers for item in producer.accepted], broker, figures)
    return figures


def break_things(
    seconds: float,
    dice: random.Random,
    stack: RunningStack,
    broker: Broker,
    network: Network,
    ballast: Path | None,
    figures: Figures,
) -> None:
    """One fault after the other, each mended, until the time is over; a short run meets each kind once."""

    def kill(what: Callable[[str, int], bool]) -> None:
        wait_until(lambda: any(what(line, parent) for _, line, parent in processes(stack.process.pid)), 20)
        victims = [pid for pid, line, parent in processes(stack.process.pid) if what(line, parent)]
        with suppress(ProcessLookupError):
            os.kill(dice.choice(victims), signal.SIGKILL)

    mains = lambda: {pid for pid, line, _ in processes(stack.process.pid) if " worker --role" in line}  # noqa: E731

    def cut() -> None:
        network.cut = True
        network._hang_up(*network.lines.copy())
        time.sleep(dice.uniform(1, 4))
        network.reset()

    def swallow() -> None:
        network.swallow = True
        time.sleep(dice.uniform(3, 8))
        network.reset()

    faults: dict[str, Callable[[], None]] = {
        "child killed": lambda: kill(lambda line, parent: " worker --role" in line and parent in mains()),
        "worker killed": lambda: kill(lambda line, parent: " worker --role" in line and parent not in mains()),
        "beat killed": lambda: kill(lambda line, _: line.rstrip().endswith(" beat")),
        "Redis killed": lambda: broker.kill(dice.uniform(0, 3)),
        "Redis flushed": broker.flush,
        "network cut": cut,
        "network swallows": swallow,
    }
    if ballast is not None:
        faults["disk filled"] = lambda: fill(ballast, dice.uniform(1, 4))
    until_s = time.monotonic() + seconds
    order: list[str] = []
    while time.monotonic() < until_s:
        if not order:
            order = dice.sample(sorted(faults), len(faults))
        name = order.pop()
        faults[name]()
        figures.faults[name] += 1
        time.sleep(dice.uniform(0.5, max(0.6, min(6.0, seconds / 20))))


def judge(stack: RunningStack, accepted: list[Accepted], broker: Broker, figures: Figures) -> None:
    """Wait for every job, and count what became of it."""
    figures.uploads = len(accepted)
    until_s = time.monotonic() + DRAIN_S
    for item in accepted:
        with suppress(FSWorkerError):
            item.job.get(timeout=max(0.1, until_s - time.monotonic()))
    wait_until(lambda: not left_over(stack), 60)
    broker.collect()
    kept = {
        hashlib.sha1(path.read_bytes()).hexdigest()
        for path in (stack.store_path / "Error").rglob("*")
        if path.is_file() and path.name != "reason.json"
    }
    for item in accepted:
        digest = hashlib.sha1(item.data).hexdigest()
        try:
            result = item.job.get(timeout=0.1)
        except JobTimeoutError:
            figures.lost += 1
            figures.problems.append(f"{item.job.id}: no result; state {item.job.state}")
        except UploadError as error:
            if item.must_fail:
                figures.failed_as_they_must += 1
            elif digest in kept or "Error/" in str(error):
                figures.failed_but_kept += 1
                figures.problems.append(f"{item.job.id}: {error}")
            else:
                figures.lost += 1
                figures.problems.append(f"{item.job.id}: failed, bytes not kept: {error}")
        except FSWorkerError as error:
            figures.lost += 1
            figures.problems.append(f"{item.job.id}: {type(error).__name__}: {error}")
        else:
            figures.done += 1
            told = {result.hash, *broker.told(item.job.id), *told_by_redis(broker, item.job.id)}  # type: ignore[union-attr]
            figures.differing += told != {digest} or item.must_fail
    figures.left_in_the_spool = len(left_over(stack))
    figures.problems += left_over(stack)[:5]
    figures.worst_delay_s = round(worst_delay_s(stack, accepted), 1)
    with stack.store() as store:
        for name in store:
            with store.open(name) as stream:
                figures.stored_under_a_wrong_name += hashlib.file_digest(stream, "sha1").hexdigest() != name
    due = [item.job.id for item in accepted if item.called_back]
    figures.callbacks_due = len(due)
    missed = [job_id for job_id in due if job_id not in broker.came]
    figures.callbacks_missed = len(missed)
    figures.problems += [f"{job_id}: not called back" for job_id in missed]
    figures.callbacks_twice = sum(len(broker.came.get(job_id, [])) > 1 for job_id in due)


def told_by_redis(broker: Broker, job_id: str) -> set[str]:
    """The hash that a plain Celery producer reads, if Redis still knows."""
    meta = json.loads(broker.direct.get(f"celery-task-meta-{job_id}") or "{}")
    return {meta["result"]["hash"]} if meta.get("status") == "SUCCESS" else set()


def worst_delay_s(stack: RunningStack, accepted: list[Accepted]) -> float:
    """From acceptance to the outcome on disk."""
    delays = [0.0]
    for item in accepted:
        app = item.job.id.partition(".")[0]
        with suppress(FileNotFoundError):
            delays.append((stack.spool(app) / f".{item.job.id}.done").stat().st_mtime - item.at_s)
    return max(delays)


def left_over(stack: RunningStack) -> list[str]:
    """Requests and uploads that are still in the spools."""
    names = [name for app in APPS for name in os.listdir(stack.spool(app))]
    return [name for name in names if not name.endswith((".done", ".new", ".part")) and name != ".store.json"]


def processes(root_pid: int) -> Iterator[tuple[int, str, int]]:
    """Pid, command line and parent of every process below one; guards, which bear their program's line, apart."""
    with suppress(OSError):
        for word in Path(f"/proc/{root_pid}/task/{root_pid}/children").read_text().split():
            with suppress(OSError):
                line = Path(f"/proc/{word}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if "guard.py" not in line:
                    yield int(word), line, root_pid
                yield from processes(int(word))


@contextmanager
def small_disk(directory: Path) -> Iterator[Path]:
    """A filesystem of its own for the store; gives the name of a file that can fill it."""
    disk = directory / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3g,mode=755", "chaos", str(disk)], check=True)
    try:
        yield disk / "ballast"
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def fill(ballast: Path, pause_s: float) -> None:
    """Take all room there is, for a while."""
    fd = os.open(ballast, os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        taken, step = 0, 1 << 30
        while step >= 4096:
            try:
                os.posix_fallocate(fd, taken, step)
                taken += step
            except OSError:
                step //= 2
        time.sleep(pause_s)
    finally:
        os.close(fd)
        ballast.unlink()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def answers(port: int) -> bool:
    try:
        with redis.Redis(port=port, socket_timeout=1) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


def wait_until(condition: Callable[[], object], timeout_s: float) -> bool:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.1)
    return True


def main() -> None:
    """The command line."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=600)
    options.add_argument("--seed", type=int, default=20261122)
    options.add_argument("--keep", type=Path, help="a directory to work in, and to leave the logs in")
    chosen = options.parse_args()
    directory = chosen.keep or Path(tempfile.mkdtemp(prefix="fsworker-chaos-"))
    directory.mkdir(exist_ok=True)
    figures = run(chosen.seconds, chosen.seed, directory)
    shown = {**vars(figures), "faults": dict(figures.faults), "problems": figures.problems[:20]}
    sys.stdout.write(json.dumps(shown, indent=2) + "\n")
    if chosen.keep is None:
        shutil.rmtree(directory, ignore_errors=True)
    sys.exit(0 if figures.ok else 1)


if __name__ == "__main__":
    main()
