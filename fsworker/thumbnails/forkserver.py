"""A worker's fork server: a small process of its own that has the decoders loaded and nothing else, and forks for it.

A fork costs what the forking process has in memory: 2 ms from an interpreter with the decoders, 10 ms from a worker with
Celery, for each picture (`benchmarks/thumbnails.py`). The server is a fresh interpreter, so it also has no thread, no
lock, no connection and no secret of the worker's that a fork could inherit. In a pause it forks ahead, once: a
:mod:`~fsworker.thumbnails.spare`.

The worker sends it a wish (JSON) with four descriptors: the original, the report, the output, and one end of a
*control* socket, which serves that one picture. The server answers there with the status when the picture's process has
ended; it kills that process when the other end is shut. It ends itself, and with it all that it forked, when its worker
does; nobody has to stop it.

What goes wrong with the server is not the picture's fault. One that cannot be sent to a server is decoded in a fork of the
worker (:mod:`~fsworker.thumbnails.child`). One whose server ended, or hung, goes to a new server, once; never to the worker, for
it may be the picture that did it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from fsworker.specification import Thumbnail
from fsworker.thumbnails.limits import Limits
from fsworker.thumbnails.wish import MAX_WISH_BYTES, format_wish

ANSWER = struct.Struct("=id")
"""Of a picture's process: its status as of wait(2), and the server's and its processes' processor time until now."""
READY = b"ready"
DESCRIPTORS = 4

REFUSED = -1
"""The status of a process that could not be made: the server has no room for it now."""

_START = "import sys; sys.path[:] = sys.argv[4:]; from fsworker.thumbnails.forkserver_process import main; main()"
_READY_WITHIN_S = 30.0
_KILLED_WITHIN_S = 5.0
_ENDED_WITHIN_S = 1.0
_TRY_AGAIN_AFTER_S = 60.0
_NEEDED = ("LD_LIBRARY_PATH",)
_RENDER = "fsworker.thumbnails.render:render"


class ServerGoneError(Exception):
    """The server cannot be used, and was not asked."""


class ServerDiedError(Exception):
    """The server ended, or hung and was killed, when it had been asked. Nothing of it is left."""


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
        with self._lock, contextlib.suppress(ServerGoneError, OSError):  # the first picture tries again, and logs it
            self._connect()

    def run(
        self, fd: int, specifications: Mapping[str, Thumbnail], limits: Limits, report_fd: int, output_fd: int
    ) -> tuple[int | None, bool]:
        """As :data:`~fsworker.thumbnails.child.Run`. Raises :class:`ServerGoneError`, :class:`ServerDiedError`.

        Also ``OSError`` where this process can have no descriptor. Whatever is raised, the picture's process is killed.
        """
        message = format_wish(specifications, limits)
        if len(message) > MAX_WISH_BYTES:
            raise ServerGoneError("too many wishes for one message")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            with theirs:
                server = self._send(message, [theirs.fileno(), fd, report_fd, output_fd])
            return self._wait(server, ours, limits.wall_s)

    def begin_anew(self) -> None:
        """In a fork of this process: what the process has is not the fork's, and its lock may be held for ever."""
        self._lock = threading.Lock()
        self._forget()

    def stop(self) -> None:
        """Stop the server, if this process has one, and what it has forked; return when it is gone."""
        with self._lock:
            self._discard()

    # -- the server's life ---------------------------------------------------------------------------------------------

    def _ready_server(self) -> socket.socket:
        """Under the lock."""
        server = self._connect()
        if not self._ready:
            # Only looked at, so that it is still there for the next one if this one is interrupted.
            if not (_readable(server, _READY_WITHIN_S) and server.recv(len(READY), socket.MSG_PEEK) == READY):
                self._discard()
                self._not_before_s = time.monotonic() + _TRY_AGAIN_AFTER_S
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
                self._process = _start(self._engine, theirs)
        except BaseException as error:
            ours.close()
            if not isinstance(error, OSError):
                raise
            self._not_before_s = time.monotonic() + _TRY_AGAIN_AFTER_S
            raise ServerGoneError(str(error)) from error
        ours.settimeout(_READY_WITHIN_S)  # one that hangs takes no wishes
        self._socket, self._pid, self._ready, self.processor_s = ours, os.getpid(), False, 0.0
        return ours

    def _forget(self) -> None:
        if self._socket is not None:
            self._socket.close()
        if self._process is not None and self._process.returncode is None:
            self._process.returncode = 0  # not this process's child: nothing to warn of
        self._process, self._socket, self._ready = None, None, False

    def _discard(self) -> None:
        if self._process is not None and self._pid == os.getpid():
            self._process.kill()  # what it has forked dies with it
            self._process.wait()
        self._forget()

    def _lives(self, server: socket.socket) -> bool:
        """Whether that server, and not one after it, is there a moment later: who ends closes its sockets first."""
        with self._lock:
            if self._process is None or self._socket is not server:
                return False
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_ENDED_WITHIN_S)
            return self._process.returncode is None

    def _lose(self, server: socket.socket) -> None:
        with self._lock:
            if self._socket is server:
                self._discard()

    # -- one picture ---------------------------------------------------------------------------------------------------

    def _send(self, message: bytes, descriptors: list[int]) -> socket.socket:
        # Under the lock, so that no other thread closes the socket meanwhile and its number becomes another's.
        with self._lock:
            server = self._ready_server()
            try:
                socket.send_fds(server, [message], descriptors)
            except OSError as error:
                if error.errno not in (errno.EMSGSIZE, errno.ETOOMANYREFS):
                    self._discard()
                raise ServerGoneError(str(error)) from error
            return server

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
            lives = not answer and finished and self._lives(server)  # it had no room for so much as where to answer
            if not answer and not lives:
                self._lose(server)
        if lives:
            raise ServerGoneError("it has no room now")
        if not answer:
            raise ServerDiedError("it ended" if finished else "it hung")
        status, self.processor_s = ANSWER.unpack(answer)
        if status == REFUSED:
            raise ServerGoneError("it has no room now")
        return status, not finished


def _start(engine: str, theirs: socket.socket) -> subprocess.Popen[bytes]:
    # The worker's environment has secrets, as a Redis URL with its password.
    environment = {name: os.environ[name] for name in _NEEDED if name in os.environ}
    number = fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, 3)  # the first three will be /dev/null, if they are not taken
    try:
        # -I and -S, for neither the environment nor a site's own modules shall add to what is forked.
        told = ["-I", "-S", "-c", _START, str(number), engine, str(os.getpid()), *_module_path()]
        return subprocess.Popen(
            [sys.executable, *told], stdin=subprocess.DEVNULL, pass_fds=[number], env=environment, cwd="/"
        )
    finally:
        os.close(number)


def _readable(stream: socket.socket, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(stream, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def _module_path() -> list[str]:
    """Where this process finds its modules, and this package in any case, however it was installed."""
    here = str(Path(__file__).parents[2])
    path = [os.path.abspath(entry) for entry in sys.path if entry]
    return path if here in path else [here, *path]
