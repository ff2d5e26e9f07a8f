"""A worker's fork server: a small process of its own that has the decoders loaded and nothing else, and forks for it.

A fork costs what the forking process has in memory: 2 ms from an interpreter with the decoders, 10 ms from a worker with
Celery, for each picture (`benchmarks/thumbnails.py`). The server is a fresh interpreter, so it also has no thread, no
lock, no connection and no secret of the worker's that a fork could inherit.

The worker sends it a wish (JSON) with four descriptors: the original, the report, the output, and one end of a
*control* socket, which serves that one picture. The server answers there with the status when the picture's process has
ended; it kills that process when the other end is shut. It ends itself, and with it all that it forked, when its worker
does; nobody has to stop it.

What goes wrong with the server is not the picture's fault: it is made here then (:mod:`~fsworker.thumbnails.child`), and
the next picture gets a new server.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path

from fsworker.specification import Thumbnail
from fsworker.thumbnails.limits import Limits

log = logging.getLogger(__name__)

ANSWER = struct.Struct("=id")
"""Of a picture's process: its status as of wait(2), and the server's and its processes' processor time until now."""
READY = b"ready"
MAX_WISH_BYTES = 100_000
DESCRIPTORS = 4

_START = "import sys; sys.path[:] = sys.argv[3:]; from fsworker.thumbnails.forkserver_process import main; main()"
_READY_WITHIN_S = 30.0
_KILLED_WITHIN_S = 5.0
_TRY_AGAIN_AFTER_S = 60.0
_NEEDED = ("LD_LIBRARY_PATH",)
_RENDER = "fsworker.thumbnails.render:render"


class ServerGoneError(Exception):
    """The server cannot be used, and what it was asked for has not been done."""


class ForkServer:
    """The worker's side. Starts the server when it is first needed, and anew when it has gone; threads may share it.

    ``engine`` names what decodes, as ``module:function``.
    """

    def __init__(self, engine: str = _RENDER) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._pid = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._ready = False
        self._not_before_s = -_TRY_AGAIN_AFTER_S
        self.processor_s = 0.0
        """Processor time of the present server and what it forked, up to the last picture."""

    @property
    def pid(self) -> int | None:
        """The server's process, if this process has one."""
        return self._process.pid if self._process is not None and self._pid == os.getpid() else None

    def start(self) -> None:
        """Start the server and do not wait for it. Failing, it is tried again later."""
        with self._lock, contextlib.suppress(ServerGoneError):
            self._connect()

    def run(
        self, fd: int, specifications: Mapping[str, Thumbnail], limits: Limits, report_fd: int, output_fd: int
    ) -> tuple[int | None, bool]:
        """As :data:`~fsworker.thumbnails.child.Run`. Raises :class:`ServerGoneError`; then no process is left, either."""
        wishes = {name: wish.to_json() for name, wish in specifications.items()}
        message = json.dumps([wishes, astuple(limits)]).encode()
        if len(message) > MAX_WISH_BYTES:
            raise ServerGoneError("too many wishes for one message")
        server = self._ready_server()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            with theirs:
                self._send(server, message, [fd, report_fd, output_fd, theirs.fileno()])
            return self._wait(server, ours, limits.wall_s)

    def stop(self) -> None:
        """Stop the server, if this process has one, and what it has forked; return when it is gone."""
        with self._lock:
            self._discard()

    # -- the server's life ---------------------------------------------------------------------------------------------

    def _ready_server(self) -> socket.socket:
        with self._lock:
            server = self._connect()
            if not self._ready:
                if not (_readable(server, _READY_WITHIN_S) and server.recv(len(READY)) == READY):
                    self._discard()
                    self._not_before_s = time.monotonic() + _TRY_AGAIN_AFTER_S
                    log.warning(
                        "the fork server does not start; pictures are decoded in forks of this process meanwhile"
                    )
                    raise ServerGoneError("it does not start")
                self._ready = True
            return server

    def _connect(self) -> socket.socket:
        """The socket of a server that was started in this process, a new one where there is none. Under the lock."""
        if self._pid != os.getpid():  # a fork of the process that has the server
            self._forget()
        if self._process is not None and self._process.poll() is not None:
            self._discard()
        if self._socket is not None:
            return self._socket
        if time.monotonic() < self._not_before_s or not sys.executable:
            raise ServerGoneError("it did not start")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                number = theirs.fileno()
                # -I and -S, for neither the environment nor a site's own modules shall add to what is forked.
                told = ["-I", "-S", "-c", _START, str(number), self._engine, *_module_path()]
                # The worker's environment has secrets, as a Redis URL with its password.
                environment = {name: os.environ[name] for name in _NEEDED if name in os.environ}
                self._process = subprocess.Popen(
                    [sys.executable, *told], stdin=subprocess.DEVNULL, pass_fds=[number], env=environment, cwd="/"
                )
        except OSError as error:
            ours.close()
            self._not_before_s = time.monotonic() + _TRY_AGAIN_AFTER_S
            raise ServerGoneError(str(error)) from error
        ours.settimeout(_READY_WITHIN_S)  # one that hangs takes no wishes
        self._socket, self._pid, self._ready, self.processor_s = ours, os.getpid(), False, 0.0
        return ours

    def _forget(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._process, self._socket, self._ready = None, None, False

    def _discard(self) -> None:
        if self._process is not None and self._pid == os.getpid():
            self._process.kill()  # what it has forked dies with it
            self._process.wait()
        self._forget()

    def _lose(self, server: socket.socket) -> None:
        with self._lock:
            if self._socket is server:
                self._discard()

    # -- one picture ---------------------------------------------------------------------------------------------------

    def _send(self, server: socket.socket, message: bytes, descriptors: list[int]) -> None:
        try:
            socket.send_fds(server, [message], descriptors)
        except OSError as error:
            self._lose(server)
            raise ServerGoneError(str(error)) from error

    def _wait(self, server: socket.socket, control: socket.socket, wall_s: float) -> tuple[int | None, bool]:
        finished, answer = False, b""
        try:
            finished = _readable(control, wall_s)
        finally:  # also when a time limit of the worker is raised into the waiting
            if not finished:
                with contextlib.suppress(OSError):  # it has gone already
                    control.shutdown(socket.SHUT_WR)
            if _readable(control, _KILLED_WITHIN_S):
                with contextlib.suppress(ConnectionResetError):
                    answer = control.recv(ANSWER.size)
            if not answer:
                self._lose(server)
        if answer:
            status, self.processor_s = ANSWER.unpack(answer)
            return status, not finished
        if not finished:
            return None, True
        raise ServerGoneError("it ended")


def _readable(stream: socket.socket, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(stream, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def _module_path() -> list[str]:
    """Where this process finds its modules, this package first of all: however it was installed, that is the one."""
    here = str(Path(__file__).parents[2])
    return list(dict.fromkeys([here, *(os.path.abspath(entry) for entry in sys.path)]))
