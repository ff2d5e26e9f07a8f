"""One forked, limited process for one picture.

Why ``fork`` and not a fresh interpreter: the decoders are loaded already, so it costs a few milliseconds in place of
ninety. Why ``os.fork`` and not multiprocessing: the pool processes of Celery are daemonic, which multiprocessing
forbids to have children.

A worker lets its :mod:`~fsworker.thumbnails.forkserver` fork, which is small; an application that calls the FileStruct
API forks itself, and so does a worker whose server has gone.

Forking from a thread among others is safe here. The child is a copy
of one thread. What could hang it is a lock that another thread held at that moment: of the interpreter (the GIL, the
import lock, logging and threading are made new by CPython after a fork), of malloc (glibc does so too), or of
a library. The child touches only decoders, which share no locks between threads, and modules that are loaded already;
it logs nothing, prints nothing and runs no exit handlers. If something did hang, ``wall_s`` ends it.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import select
import signal
from collections.abc import Callable, Mapping
from functools import partial
from typing import NoReturn

from fsworker.specification import Thumbnail
from fsworker.thumbnails.heap import fill_holes, use_some_large_pages
from fsworker.thumbnails.limits import BlockedSignals, Limits, address_space_bytes, confine, renounce
from fsworker.thumbnails.outcome import MemoryFile, Report, Reporter, read_report

Engine = Callable[[int, Mapping[str, Thumbnail], Limits, Reporter], None]
"""What makes thumbnails of an open file, inside the limited process: the seam for another engine.

It reports a verdict for each specification. What it raises, or dies of, is the verdict for the rest.
"""

_OUT_OF_MEMORY = 3
_FAILED = 4
_UNPREPARED = 5


Run = Callable[[int, Mapping[str, Thumbnail], Limits, int, int], tuple[int | None, bool]]
"""Runs an engine in a limited process, which writes to the report's and the output's descriptors; returns at its end.

The result is its status as of wait(2), if it is known, and whether its time was up.
"""


def run_limited(
    engine: Engine, fd: int, specifications: Mapping[str, Thumbnail], limits: Limits
) -> tuple[Report, str | None]:
    """Run ``engine`` on the file behind ``fd`` in a fork of this process, and wait for its end.

    Returns what it reported and why it ended early (``None`` if it did not). Raises ``OSError`` if this process cannot
    fork or has no descriptor left. In every case, exceptions included, the process is gone when this returns.
    """
    return collect(partial(_run, engine), fd, specifications, limits)


def collect(run: Run, fd: int, specifications: Mapping[str, Thumbnail], limits: Limits) -> tuple[Report, str | None]:
    """What a limited process that ``run`` runs has reported, and why it ended early.

    Raises what ``run`` raises, and ``OSError`` when the process could not be made ready: no picture is to blame for that.
    """
    report, output = MemoryFile("fsworker-report"), MemoryFile("fsworker-thumbnails")
    try:
        status, timed_out = run(fd, specifications, limits, report.fd, output.fd)
        if status is not None and os.WIFEXITED(status) and os.WEXITSTATUS(status) == _UNPREPARED:
            raise OSError(errno.EAGAIN, "a process for a picture could not be given its limits")
        return read_report(report, output, frozenset(specifications)), _why(status, timed_out, limits)
    finally:
        report.close()


def _run(
    engine: Engine,
    fd: int,
    specifications: Mapping[str, Thumbnail],
    limits: Limits,
    report_fd: int,
    output_fd: int,
) -> tuple[int | None, bool]:
    parent, space_bytes = os.getpid(), address_space_bytes()
    # No handler of the worker may run, and raise, in the child before it has put them all aside.
    signals = BlockedSignals()
    try:
        child = os.fork()
    except BaseException:
        signals.restore()
        raise
    if child == 0:
        keep = frozenset((fd, report_fd, output_fd))

        def prepare() -> None:
            fill_holes(space_bytes)
            confine(limits, keep, parent, space_bytes, renounce(keep))
            use_some_large_pages()

        decode_and_exit(engine, fd, specifications, limits, Reporter(report_fd, output_fd), prepare)
    finished = False
    try:
        signals.restore()
        finished = _wait(child, limits.wall_s)
    finally:  # also when a time limit of the worker is raised into the waiting
        if not finished:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        status = _reap(child)
    return status, not finished


def decode_and_exit(
    engine: Engine,
    fd: int,
    specifications: Mapping[str, Thumbnail],
    limits: Limits,
    reporter: Reporter,
    prepare: Callable[[], None],
) -> NoReturn:
    """What a forked process does; ``prepare`` gives it its limits. Its status says how it went."""
    code = _UNPREPARED
    try:
        gc.disable()  # a collection would touch, and so copy, the pages that are shared with the parent
        prepare()
        code = _FAILED
        engine(fd, specifications, limits, reporter)
        code = 0
    except MemoryError:
        code = _OUT_OF_MEMORY
    finally:
        os._exit(code)


def watch(child: int) -> int:
    """The pidfd of a process that was just forked. Raises ``OSError`` if there is no room; the process is gone then."""
    try:
        return os.pidfd_open(child)
    except OSError:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise


def _wait(child: int, timeout_s: float) -> bool:
    """Wait for the end of a child without reaping it; whether it came in time."""
    descriptor = os.pidfd_open(child)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))
    finally:
        os.close(descriptor)


def _reap(child: int) -> int | None:
    try:
        return os.waitpid(child, 0)[1]
    except ChildProcessError:  # SIGCHLD is ignored in this process, so the kernel reaped it
        return None


def _why(status: int | None, timed_out: bool, limits: Limits) -> str | None:
    """Why a child ended early, in words for whoever sent the picture."""
    if timed_out:
        return f"took longer than {limits.wall_s:g} s"
    if status is None or status == 0:
        return None
    if os.WIFEXITED(status):
        memory = os.WEXITSTATUS(status) == _OUT_OF_MEMORY
        return _needs_memory(limits) if memory else "the decoder failed"
    number = os.WTERMSIG(status)
    if number == signal.SIGXCPU:
        return f"took more than {limits.cpu_whole_s} s of processor time"
    if number == signal.SIGKILL:
        return "the decoder was killed, probably because the machine ran out of memory"
    return f"the decoder crashed ({signal.Signals(number).name})"


def _needs_memory(limits: Limits) -> str:
    return f"needs more than {limits.memory_bytes / 2**20:.0f} MiB of memory"
