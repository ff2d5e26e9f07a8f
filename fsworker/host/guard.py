"""A program that never outlives the process that started it, and nor does anything that it started.

Between parent and program stands a **guard**: this very file, run as a small process of the standard library alone. It
holds one end of a socket whose other end only the parent has. When that closes, because the parent asked or because it
died of whatever, the guard SIGKILLs every descendant and ends. It is a "child subreaper" (prctl(2)), so a grandchild
whose own parent died becomes the guard's child, in whatever session or group it put itself: killing and reaping
children until there are none left *is* the proof that nobody is left. The same happens when the program ends by
itself, so a restart begins without leftovers.

Should the guard itself be killed, the kernel kills the program (``PR_SET_PDEATHSIG``). That signal is bound to the
*thread* that forked: asked for in the guard, which has one thread, it means the guard; asked for in an application's
thread pool it would kill the program when that thread ends. For the same reason ``preexec_fn`` is harmless in the guard
and would not be in a parent with threads.

The program runs in a session of its own, so that Ctrl-C in a terminal reaches the parent alone. Exit statuses are those
of a shell: 0 to 255, and 128 + N for a death by signal N.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, NoReturn

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_KILLED = 128 + signal.SIGKILL
_ANSWER = struct.Struct("=ii")  # the program's pid, or 0 and the errno of why it could not be run
_KILL_WAIT_S = 5.0
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # a scan of /proc needs descriptors


class GuardedProcess:
    """A program under a guard, with ``/dev/null`` as input. Started when made.

    Output, both kinds, goes to the parent's standard error (its standard output is for reports), or is appended to
    ``log_path``. ``env`` None inherits the environment, a
    mapping replaces it. The program and all that it starts die with this process, and when this object is collected;
    call :meth:`stop` or :meth:`kill` in the end, also when the program has ended by itself.

    Raises OSError, as ``subprocess.Popen`` does, when the program cannot be run; nothing runs then.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        log_path: Path | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        #: The program's process id.
        self.pid = 0
        self._group: int | None = None
        self._control, theirs = socket.socketpair()
        fds = ",".join(map(str, pass_fds))
        # Isolated and without site-packages: nothing of the environment reaches a process that merely waits.
        guard = [sys.executable, "-I", "-S", __file__, str(theirs.fileno()), str(os.getpid()), fds]
        try:
            # Our copy of the guard's end is closed before we listen, or a guard that dies unheard would leave us deaf.
            with theirs, _appending(log_path) as output:
                self._guard = subprocess.Popen(
                    [*guard, *argv],
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=2 if output is None else output,
                    stderr=output,
                    pass_fds=(theirs.fileno(), *pass_fds),
                    start_new_session=True,
                )
        except BaseException:
            self._control.close()
            raise
        try:
            self.pid = self._group = self._await_start(argv[0])
        except BaseException:
            self.kill()
            raise

    def _await_start(self, program: str) -> int:
        answer = self._control.recv(_ANSWER.size)
        pid, number = _ANSWER.unpack(answer) if answer else (0, errno.ECHILD)
        if number:
            raise OSError(number, os.strerror(number), program)
        return int(pid)

    @property
    def guard_pid(self) -> int:
        """The process id of the guard."""
        return self._guard.pid

    def poll(self) -> int | None:
        """The exit status, once the program and all its descendants are gone; None before."""
        returncode = self._guard.poll()
        return None if returncode is None else self._settle(returncode)

    def wait(self, timeout_s: float) -> int | None:
        """Like :meth:`poll`, after waiting for up to ``timeout_s`` seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._guard.wait(timeout_s)
        return self.poll()

    def send_signal(self, number: int) -> None:
        """Send a signal to the program, not to its descendants; nothing happens when it has ended."""
        with contextlib.suppress(OSError):  # the guard has gone, or was closed
            self._control.send(bytes([number]))

    def kill(self) -> int:
        """SIGKILL the program and all its descendants, wait until they are gone, return the exit status."""
        with contextlib.suppress(OSError):  # the guard has gone; if not, it is killed below
            self._control.shutdown(socket.SHUT_RDWR)  # unlike close, also ends the copies that a fork has made
        if self.wait(_KILL_WAIT_S) is None:
            self._guard.kill()
        self._control.close()
        return self._settle(self._guard.wait())

    def stop(self, number: int, grace_s: float) -> int:
        """Send ``number``, wait up to ``grace_s`` seconds, then :meth:`kill`. Returns the exit status."""
        self.send_signal(number)
        self.wait(grace_s)
        return self.kill()

    def _settle(self, returncode: int) -> int:
        """The guard's return code as a status; if the guard was killed, and only once, see to the program's group."""
        if returncode < 0 and self._group is not None:
            # The kernel has killed the program; others of its group may live, and keep the number theirs.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._group, signal.SIGKILL)
        self._group = None
        return _shell_status(returncode)


def describe_status(status: int) -> str:
    """``"status 3"``, or ``"status 137 (SIGKILL)"`` for a status that stands for a signal."""
    with contextlib.suppress(ValueError):
        return f"status {status} ({signal.Signals(status - 128).name})"
    return f"status {status}"


def _shell_status(returncode: int) -> int:
    return returncode if returncode >= 0 else 128 - returncode


def _appending(log_path: Path | None) -> AbstractContextManager[IO[bytes] | None]:
    if log_path is None:
        return contextlib.nullcontext()
    return open(log_path, "ab", opener=lambda path, flags: os.open(path, flags, 0o600))


# From here on: the guard's own process.


def _main(arguments: Sequence[str]) -> NoReturn:
    """Be the guard: ``[socket fd, parent's pid, comma-separated fds to hand on, program, argument, …]``.

    Sends :data:`_ANSWER`, then obeys: each byte received is a signal number for the program. Ends with the program's
    exit status when no descendant is left.
    """
    control = socket.socket(fileno=int(arguments[0]))
    parent_pid = int(arguments[1])
    pass_fds = tuple(int(fd) for fd in arguments[2].split(",") if fd)
    wake, waker = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    # Handled rather than ignored, as an ignored signal stays ignored in the program. Whoever stops a whole control
    # group (systemd) reaches the program itself; the guard stays until it is gone.
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, lambda _number, _frame: None)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)  # a set-user-id descendant could be one that we may not kill
    try:
        child = _run(arguments[3:], pass_fds)
    except OSError as error:
        control.send(_ANSWER.pack(0, error.errno or errno.ECHILD))
        sys.exit(1)
    with contextlib.suppress(OSError):  # a parent that is gone already is noticed in _attend
        control.send(_ANSWER.pack(child.pid, 0))
    status = _attend(child.pid, parent_pid, control, wake)
    _kill_descendants()
    sys.exit(status)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}): {os.strerror(ctypes.get_errno())}")


def _run(argv: Sequence[str], pass_fds: tuple[int, ...]) -> subprocess.Popen[bytes]:
    guard_pid = os.getpid()

    def die_with_the_guard() -> None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard_pid:  # it died before the kernel knew of our wish
            os._exit(_KILLED)

    return subprocess.Popen(argv, start_new_session=True, preexec_fn=die_with_the_guard, pass_fds=pass_fds)


def _attend(child_pid: int, parent_pid: int, control: socket.socket, wake: socket.socket) -> int:
    """Pass signals on until the program ends (its status), or the parent does or hangs up (that of a SIGKILL)."""
    while True:
        # The time limit is for a parent that forked without exec: the copy keeps the socket open after its death.
        readable, _, _ = select.select([control, wake], [], [], 1.0)
        if wake in readable:
            wake.recv(4096)
        ended, wait_status = -1, 0
        while ended != 0:
            ended, wait_status = os.waitpid(-1, os.WNOHANG)
            if ended == child_pid:
                return _shell_status(os.waitstatus_to_exitcode(wait_status))
        orders = b""
        if control in readable:
            with contextlib.suppress(ConnectionResetError):
                orders = control.recv(64)
        if (control in readable and not orders) or os.getppid() != parent_pid:
            return _KILLED
        for number in orders:
            os.kill(child_pid, number)  # not reaped yet, so the pid is still its own


def _kill_descendants() -> None:
    """Kill and reap children until there are none; theirs become ours when they die (PR_SET_CHILD_SUBREAPER)."""
    while True:
        try:
            pids = _children(os.getpid())
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            time.sleep(0.1)  # who is not seen is not gone
            continue
        if not pids:
            return
        for pid in pids:
            os.kill(pid, signal.SIGKILL)  # only we reap them, so none of these pids can have been given away
        for _ in pids:
            os.waitpid(-1, 0)


def _children(parent_pid: int) -> list[int]:
    """Pids whose parent is ``parent_pid``, zombies too, from field 4 of ``/proc/<pid>/stat`` (proc_pid_stat(5)).

    Not empty while there is a descendant: whoever was a child when the scan began is one until we reap it. Raises
    ``OSError`` when the system has no room to look.
    """
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            # Gone meanwhile; or another user's (proc(5), hidepid), so not a child of ours.
            gone = contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError)
            with gone, open(f"/proc/{name}/stat", "rb") as stat:
                if int(stat.read().rpartition(b")")[2].split()[1]) == parent_pid:
                    found.append(int(name))
    return found


if __name__ == "__main__":
    _main(sys.argv[1:])
