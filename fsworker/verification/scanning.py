"""The first look at many directories, by several threads in several processes. Only looks: suspicions come back.

Threads hide the disk's waiting for small files, and are in each other's way when there is none; processes use all cores,
because hashing small files is Python's work. They are forked, once, before anything else starts a thread; each is given
one first-level directory after the other, answers with tallies, and dies with its parent.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any

from fsworker.errors import UnavailableError
from fsworker.verification.judging import Judge, Tally

_THREADS = 4
_BEGIN = 16
"""So many of a directory's directories are looked at by one thread, which sees whether the disk is waited for."""
_WAITS = 0.25
"""From this share of small files that were not in the page cache on, threads are worth their price."""
_PR_SET_PDEATHSIG = 1

Report = Callable[[str, Tally], None]
"""Is told the first-level directory, and what a part of it was."""
Done = Callable[[str], None]
"""Is told which first-level directory was looked at to its end."""


def scan_pair(judge: Judge, pair: str, threads: int = _THREADS) -> Iterator[Tally]:
    """Look at everything in one first-level directory."""
    listing = judge.seconds(pair)
    yield Tally(suspicions=list(listing.suspicions))
    names = list(listing.names)
    begin, names = names[:_BEGIN], names[_BEGIN:]
    waited_before = judge.reader.waited
    tally = _scan_seconds(judge, pair, begin)
    yield tally
    if threads == 1 or judge.reader.waited - waited_before < _WAITS * tally.files or not names:
        yield _scan_seconds(judge, pair, names)
        return
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(lambda number: _scan_seconds(judge, pair, names[number::threads]), range(threads))


def _scan_seconds(judge: Judge, pair: str, seconds: Sequence[str]) -> Tally:
    tally = Tally()
    for second in seconds:
        judge.judge_second(tally, pair, second)
    return tally


class Scanners:
    """Processes that scan; a context manager. With ``processes`` 1 there are none: this one does it."""

    def __init__(self, judge: Judge, processes: int, threads: int = _THREADS) -> None:
        self._judge = judge
        self._threads = threads
        self._processes = processes
        self._children: dict[Connection, BaseProcess] = {}

    def _fork(self) -> None:
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        inherited = [*self._children, ours]
        process = context.Process(
            target=_serve, args=(self._judge, self._threads, theirs, inherited, os.getpid()), daemon=True
        )
        process.start()
        theirs.close()
        self._children[ours] = process

    def scan(self, pairs: Sequence[str], report: Report, done: Done) -> None:
        """Look at first-level directories, in no order. ``report`` and ``done`` are called in this thread.

        Raises what a look raised, and :class:`UnavailableError` when a process was killed.
        """
        if not self._children:
            for pair in pairs:
                for tally in scan_pair(self._judge, pair, self._threads):
                    report(pair, tally)
                done(pair)
            return
        waiting = list(reversed(pairs))
        busy = dict.fromkeys(self._children, 0)
        for connection in busy:
            _give(connection, waiting, busy)
        while any(busy.values()):
            for ready in wait([connection for connection, count in busy.items() if count]):
                assert isinstance(ready, Connection)
                try:
                    pair, answer = ready.recv()
                except (EOFError, ConnectionError):
                    raise UnavailableError(
                        "a process that verified was killed (out of memory?); run the verification again"
                    ) from None
                if isinstance(answer, BaseException):
                    raise answer
                if answer is None:
                    busy[ready] -= 1
                    _give(ready, waiting, busy)
                    done(pair)
                else:
                    report(pair, answer)

    def __enter__(self) -> Scanners:
        try:
            # An interrupt in the middle of a fork would be swallowed by the handlers that Python runs there.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                for _ in range(self._processes if self._processes > 1 else 0):
                    self._fork()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        for connection, process in self._children.items():
            connection.close()
            process.kill()  # it only reads
            process.join()
            process.close()
        self._children.clear()


def _give(connection: Connection, waiting: list[str], busy: dict[Connection, int]) -> None:
    if waiting:
        with suppress(ConnectionError):  # killed: reading from it says so
            connection.send(waiting.pop())
        busy[connection] += 1


def _serve(judge: Judge, threads: int, connection: Connection, inherited: list[Connection], parent: int) -> None:
    """A process's life: scan what it is given until its parent closes the pipe, or dies."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    for other in inherited:
        other.close()
    with suppress(EOFError, ConnectionError):
        while True:
            _serve_one(judge, threads, connection, connection.recv())


def _serve_one(judge: Judge, threads: int, connection: Connection, pair: str) -> None:
    answer: Any = None
    try:
        for tally in scan_pair(judge, pair, threads):
            connection.send((pair, tally))
    except Exception as error:  # noqa: BLE001 - it is raised in the parent
        answer = _for_the_parent(error)
    connection.send((pair, answer))


def _for_the_parent(error: Exception) -> Exception:
    """The error with the traceback of this process, which does not cross the pipe; what cannot cross it either, in words."""
    error.add_note(f"In a process that scans:\n{''.join(traceback.format_exception(error))}")
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    except Exception:  # noqa: BLE001 - an exception's pickling runs whatever its class says
        told = RuntimeError(f"{type(error).__name__}: {error}")
        told.__notes__ = error.__notes__
        return told
    return error
