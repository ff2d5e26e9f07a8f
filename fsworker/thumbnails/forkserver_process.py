"""The fork server's process. What it does, and why, is told in :mod:`~fsworker.thumbnails.forkserver`.

It trusts what its worker sends, and nothing else; it never looks at a picture.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

from fsworker.specification import Thumbnail
from fsworker.thumbnails.child import Engine, decode_and_exit, watch
from fsworker.thumbnails.forkserver import ANSWER, DESCRIPTORS, READY, REFUSED
from fsworker.thumbnails.heap import use_large_pages
from fsworker.thumbnails.limits import Limits, Renounced, address_space_bytes, confine, renounce
from fsworker.thumbnails.outcome import Reporter
from fsworker.thumbnails.render import warm_up
from fsworker.thumbnails.spare import LEAST_MEMORY_BYTES, Spare, fork_spare
from fsworker.thumbnails.wish import MAX_WISH_BYTES, parse_wish

_PAUSE_MS = 100
"""So long after a picture without another one, a spare is made."""


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
        self._running = 0
        self._spare: Spare | None = None
        self._spare_wanted = False
        self._watch(wishes.fileno(), select.POLLIN, self._begin)

    def serve(self, worker: int) -> None:
        """Until the worker has ended, or closed the socket. What is still decoding then dies with this process."""
        self._watch(worker, select.POLLIN, _leave)
        while True:
            events = self._poll.poll(_PAUSE_MS if self._spare_wanted and not self._running else None)
            if not events:
                self._prepare_spare()
            # All looked up before any is called: a number that one of them closes may be another's at once.
            for act in [self._on[fd] for fd, _ in events]:
                act()

    def _watch(self, fd: int, events: int, act: Callable[[], None]) -> None:
        self._poll.register(fd, events)
        self._on[fd] = act

    def _forget(self, fd: int) -> None:
        if self._on.pop(fd, None) is not None:
            self._poll.unregister(fd)

    # -- the spare -----------------------------------------------------------------------------------------------------

    def _prepare_spare(self) -> None:
        self._spare_wanted = False  # until a picture has been made: one that dies at once is not made again and again
        with contextlib.suppress(OSError):
            self._spare = spare = fork_spare(self._engine, address_space_bytes(), self._renounced)
            self._watch(spare.watch, select.POLLIN, partial(self._lose_spare, spare))

    def _lose_spare(self, spare: Spare) -> None:
        """It has ended without a picture: the kernel needed its memory, say."""
        if self._spare is spare:
            self._spare = None
            self._forget(spare.watch)
            spare.socket.close()
            os.close(spare.watch)
            os.waitpid(spare.pid, os.WNOHANG)

    # -- pictures ------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        message, descriptors, _, _ = socket.recv_fds(self._wishes, MAX_WISH_BYTES, DESCRIPTORS)
        if not message:
            _leave()
        try:
            if len(descriptors) == DESCRIPTORS:
                self._take(message, descriptors)
            elif descriptors:  # no room for all of them
                _refuse(descriptors[0])
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _take(self, message: bytes, descriptors: list[int]) -> None:
        control = descriptors[0]
        specifications, limits = parse_wish(message)
        try:
            kept = socket.socket(fileno=os.dup(control))
        except OSError:
            _refuse(control)
            return
        child = None
        if limits.memory_bytes >= LEAST_MEMORY_BYTES:
            child = self._use_spare(message, descriptors[1:], kept)
        if child is None:
            try:
                child = self._fork(specifications, limits, descriptors, kept)
            except OSError:
                kept.close()
                _refuse(control)
                return
        self._running += 1
        self._watch(child.watch, select.POLLIN, partial(self._end, child))
        self._watch(kept.fileno(), select.POLLIN | select.POLLRDHUP, partial(self._kill, child))

    def _use_spare(self, message: bytes, descriptors: list[int], control: socket.socket) -> _Child | None:
        spare = self._spare
        if spare is None or not spare.take(message, descriptors):
            return None
        self._spare = None
        self._forget(spare.watch)
        spare.socket.close()
        return _Child(spare.pid, control, spare.watch)

    def _fork(
        self, specifications: Mapping[str, Thumbnail], limits: Limits, descriptors: list[int], control: socket.socket
    ) -> _Child:
        _, picture, report, output = descriptors
        space_bytes = address_space_bytes()
        pid = os.fork()
        if pid == 0:
            keep = frozenset((picture, report, output))

            def prepare() -> None:
                confine(limits, keep, self._pid, space_bytes, self._renounced)
                use_large_pages(limits.memory_bytes)

            decode_and_exit(self._engine, picture, specifications, limits, Reporter(report, output), prepare)
        os.close(descriptors.pop())  # so that there is room for the next line
        return _Child(pid, control, watch(pid))

    def _kill(self, child: _Child) -> None:
        """The worker waits no longer."""
        if not child.ended:
            self._forget(child.control.fileno())
            os.kill(child.pid, signal.SIGKILL)

    def _end(self, child: _Child) -> None:
        child.ended = True
        self._running -= 1
        self._spare_wanted = self._spare is None
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
