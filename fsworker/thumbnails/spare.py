"""A process that waits for its picture: forked and run in while the server had nothing else to do.

Most of what a process costs comes before it looks at its picture: the fork, and a copy of every page that it writes to.
A *spare* has all that behind it, so that a picture which comes alone is not kept waiting (2 ms in place of 9). It costs
as much processor time as any other, so there is one only after a pause; where picture follows picture, each is forked for.

It serves one picture, as any other process here, and gets its limits with it. Until then it has nothing but its end
of a socket, and ends when the server closes the other.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from fsworker.thumbnails.child import Engine, decode_and_exit, watch
from fsworker.thumbnails.heap import more_large_pages, touch_large_page, use_large_pages
from fsworker.thumbnails.limits import Renounced, close_descriptors, confine
from fsworker.thumbnails.outcome import Reporter
from fsworker.thumbnails.render import warm_up
from fsworker.thumbnails.wish import MAX_WISH_BYTES, parse_wish

LEAST_MEMORY_BYTES = 64 * 2**20
"""A picture that may have less gets a process that is forked for it: a spare has taken some already."""

_READY = b"ready"
_DESCRIPTORS = 3


@dataclass(slots=True)
class Spare:
    """The server's side. ``watch`` is the process's pidfd, readable when it has ended; it is not reaped until then."""

    pid: int
    watch: int
    socket: socket.socket

    def take(self, message: bytes, descriptors: list[int]) -> bool:
        """Hand a picture over: the wish, the original, the report, the output. False: it is not ready, or no more."""
        with suppress(OSError):
            if self.socket.recv(len(_READY), socket.MSG_DONTWAIT) == _READY:
                socket.send_fds(self.socket, [message], descriptors)
                return True
        return False


def fork_spare(engine: Engine, space_bytes: int, renounced: Renounced) -> Spare:
    """Fork a spare. Raises ``OSError`` if there is no room for one; nothing is left then."""
    server = os.getpid()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with theirs:
            pid = os.fork()
            if pid == 0:
                _wait_and_decode(engine, theirs, server, space_bytes, renounced)
        return Spare(pid, watch(pid), ours)
    except OSError:
        ours.close()
        raise


def _wait_and_decode(
    engine: Engine, wishes: socket.socket, server: int, space_bytes: int, renounced: Renounced
) -> NoReturn:
    try:
        close_descriptors(frozenset((wishes.fileno(), renounced.ruleset_fd)))
        use_large_pages(LEAST_MEMORY_BYTES)
        touch_large_page()
        warm_up(rounds=1)
        wishes.send(_READY)
        message, descriptors, _, _ = socket.recv_fds(wishes, MAX_WISH_BYTES, _DESCRIPTORS)
        if len(descriptors) == _DESCRIPTORS:
            picture, report, output = descriptors
            specifications, limits = parse_wish(message)

            def prepare() -> None:
                confine(limits, frozenset(descriptors), server, space_bytes, renounced)
                more_large_pages(limits.memory_bytes)

            decode_and_exit(engine, picture, specifications, limits, Reporter(report, output), prepare)
    finally:
        os._exit(1)  # the server has gone, or there was no room
