"""What tests of real processes need: to find them by a mark in their command line, and to wait for them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import fsworker

_PYTHONPATH = [str(Path(fsworker.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(_PYTHONPATH)}

FORKING_PROGRAM = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:                       # a pool child, of the same group
    if os.fork() == 0:                   # and its own child
        time.sleep(600)
    time.sleep(600)
if os.fork() == 0:                       # one that leaves session and group, and loses its parent
    os.setsid()
    if os.fork() == 0:
        time.sleep(600)
    os._exit(0)
time.sleep(600)
"""
FORKING_PROCESSES = 4
SLEEP = "import time; time.sleep(600)"
GUARD = 1
"""A guard bears its program's command line too, so one more process carries the mark."""


def python(code: str, *arguments: object) -> list[str]:
    """The command line that runs ``code``."""
    return [sys.executable, "-c", code, *map(str, arguments)]


def marked(mark: object) -> list[int]:
    """Processes, zombies apart, that have ``mark`` in their command line; not this one."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(mark).encode() in command:
                found.append(int(entry.name))
    return found


@contextmanager
def none_left(mark: Path) -> Iterator[Path]:
    """Fail if a process has ``mark`` in its command line after the block; there is none either way."""
    yield mark
    left = marked(mark)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """A path that no other process has in its command line; at the end, none may have it."""
    with none_left(tmp_path):
        yield tmp_path


def eventually(condition: Callable[[], object], timeout_s: float = 10.0) -> bool:
    """Whether the condition comes true; asked every 20 ms."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.02)
    return True


def children(pid: int | None) -> list[int]:
    """The processes that a process has now."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for text in lists for child in text.read_text().split()]


def state(pid: int) -> str:
    """A process's state as of proc_pid_stat(5): R, S, Z …; X if it is not there."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def is_alive(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    return state(pid) not in ("Z", "X")


@contextmanager
def background(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Python code in a process group of its own, with fsworker importable and its output in a pipe; killed after."""
    process = subprocess.Popen(
        python(code, *arguments),
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()
