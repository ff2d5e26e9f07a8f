"""The fork server's process. What it does, and why, is told in :mod:`~fsworker.thumbnails.forkserver`.

It trusts what its worker sends, and nothing else; it never looks at a picture.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

from fsworker.specification import Thumbnail
from fsworker.thumbnails.child import Engine, decode_and_exit
from fsworker.thumbnails.forkserver import ANSWER, DESCRIPTORS, MAX_WISH_BYTES, READY
from fsworker.thumbnails.limits import Limits, Renounced, address_space_bytes, confine, renounce
from fsworker.thumbnails.outcome import Reporter
from fsworker.thumbnails.render import warm_up


def main() -> None:
    """Serve the socket whose descriptor is the first argument, with the engine that is the second, to the worker's end."""
    worker = os.pidfd_open(os.getppid())
    wishes = socket.socket(fileno=int(sys.argv[1]))
    module, function = sys.argv[2].split(":")
    engine: Engine = getattr(importlib.import_module(module), function)
    warm_up()
    renounced = renounce()
    gc.collect()
    gc.disable()
    gc.freeze()
    wishes.send(READY)  # fails where the worker ended meanwhile: so does this process
    _Server(wishes, engine, renounced).serve(worker)


@dataclass(slots=True)
class _Child:
    """A picture's process. ``watch`` is its pidfd, readable when it has ended; it is not reaped until then."""

    pid: int
    control: socket.socket
    watch: int
    ended: bool = False


class _Server:
    def __init__(self, wishes: socket.socket, engine: Engine, renounced: Renounced) -> None:
        self._wishes, self._engine, self._renounced = wishes, engine, renounced
        self._pid = os.getpid()
        self._poll = select.poll()
        self._on: dict[int, Callable[[], None]] = {}
        self._watch(wishes.fileno(), select.POLLIN, self._begin)

    def serve(self, worker: int) -> None:
        """Until the worker has ended, or closed the socket. What is still decoding then dies with this process."""
        self._watch(worker, select.POLLIN, _leave)
        while True:
            # All looked up before any is called: a number that one of them closes may be another's at once.
            for act in [self._on[fd] for fd, _ in self._poll.poll()]:
                act()

    def _watch(self, fd: int, events: int, act: Callable[[], None]) -> None:
        self._poll.register(fd, events)
        self._on[fd] = act

    def _forget(self, fd: int) -> None:
        if self._on.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def _begin(self) -> None:
        message, descriptors, _, _ = socket.recv_fds(self._wishes, MAX_WISH_BYTES, DESCRIPTORS)
        if not message:
            _leave()
        try:
            if len(descriptors) == DESCRIPTORS:  # else this process has no room for them: the worker sees the hang-up
                self._fork(message, *descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _fork(self, message: bytes, picture: int, report: int, output: int, control: int) -> None:
        wishes, numbers = json.loads(message)
        specifications = {name: Thumbnail.parse(wish) for name, wish in wishes.items()}
        limits, space_bytes = Limits(*numbers), address_space_bytes()
        try:
            pid = os.fork()
        except OSError:  # the worker sees the hang-up, and tries it itself
            return
        if pid == 0:
            keep = frozenset((picture, report, output))

            def confine_itself() -> None:
                confine(limits, keep, self._pid, space_bytes, self._renounced)

            decode_and_exit(self._engine, picture, specifications, limits, Reporter(report, output), confine_itself)
        child = _Child(pid, socket.socket(fileno=os.dup(control)), os.pidfd_open(pid))
        self._watch(child.watch, select.POLLIN, partial(self._end, child))
        self._watch(child.control.fileno(), select.POLLIN | select.POLLRDHUP, partial(self._kill, child))

    def _kill(self, child: _Child) -> None:
        """The worker waits no longer."""
        if not child.ended:
            self._forget(child.control.fileno())
            os.kill(child.pid, signal.SIGKILL)

    def _end(self, child: _Child) -> None:
        child.ended = True
        status = os.waitpid(child.pid, 0)[1]
        self._forget(child.watch)
        os.close(child.watch)
        self._forget(child.control.fileno())
        with child.control, contextlib.suppress(OSError):
            child.control.send(ANSWER.pack(status, _processor_s()))


def _leave() -> NoReturn:
    os._exit(0)  # no exit handler of a library has anything to do here


def _processor_s() -> float:
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)
