"""The fork server's process. What it does, and why, is told in :mod:`~fsworker.thumbnails.forkserver`.

It trusts what its worker sends, and nothing else; it never looks at a picture.
"""

from __future__ import annotations

import contextlib
import fcntl
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
from fsworker.thumbnails.forkserver import ANSWER, DESCRIPTORS, MAX_WISH_BYTES, READY, REFUSED
from fsworker.thumbnails.limits import Limits, Renounced, address_space_bytes, confine, renounce
from fsworker.thumbnails.outcome import Reporter
from fsworker.thumbnails.render import warm_up


def main() -> None:
    """Serve the socket whose descriptor is the first argument, with the engine that is the second, to the worker's end."""
    parent = int(sys.argv[3])
    worker = fcntl.fcntl(os.pidfd_open(parent), fcntl.F_DUPFD_CLOEXEC, 3)  # the first three will be /dev/null
    if os.getppid() != parent:  # it ended before the line above
        return
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
            if len(descriptors) == DESCRIPTORS:
                self._fork(message, descriptors)
            elif descriptors:  # no room for all of them
                _refuse(descriptors[0])
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _fork(self, message: bytes, descriptors: list[int]) -> None:
        control, picture, report, output = descriptors
        wishes, numbers = json.loads(message)
        specifications = {name: Thumbnail.parse(wish) for name, wish in wishes.items()}
        limits = Limits(*numbers)
        try:
            space_bytes = address_space_bytes()
            kept = socket.socket(fileno=os.dup(control))
        except OSError:
            _refuse(control)
            return
        try:
            pid = os.fork()
        except OSError:
            kept.close()
            _refuse(control)
            return
        if pid == 0:
            keep = frozenset((picture, report, output))

            def confine_itself() -> None:
                confine(limits, keep, self._pid, space_bytes, self._renounced)

            decode_and_exit(self._engine, picture, specifications, limits, Reporter(report, output), confine_itself)
        os.close(descriptors.pop())  # so that there is room for the next line
        child = _Child(pid, kept, os.pidfd_open(pid))
        self._watch(child.watch, select.POLLIN, partial(self._end, child))
        self._watch(child.control.fileno(), select.POLLIN | select.POLLRDHUP, partial(self._kill, child))

    def _kill(self, child: _Child) -> None:
        """The worker waits no longer."""
        if not child.ended:
            self._forget(child.control.fileno())
            os.kill(child.pid, signal.SIGKILL)

    def _end(self, child: _Child) -> None:
        child.ended = True
        reaped, status = os.waitpid(child.pid, os.WNOHANG)
        if not reaped:  # something traces it, and holds it: the other pictures shall not wait for that
            status = signal.SIGKILL
        self._forget(child.watch)
        os.close(child.watch)
        self._forget(child.control.fileno())
        with child.control, contextlib.suppress(OSError):
            child.control.send(ANSWER.pack(status, _processor_s()))


def _refuse(control: int) -> None:
    with contextlib.suppress(OSError):
        os.write(control, ANSWER.pack(REFUSED, _processor_s()))


def _leave() -> NoReturn:
    os._exit(0)  # no exit handler of a library has anything to do here


def _processor_s() -> float:
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)
