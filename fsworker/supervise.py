"""Child processes that never outlive their parent, and the supervisor that keeps a handful of them running.

Three layers, each used on its own:

* The **guard** (:func:`guard`) is a small process between a parent and a child. It holds one end of a socket whose
  other end only the parent has. When that closes, because the parent asked or because it died of whatever, the guard
  SIGKILLs every descendant and ends. It is a "child subreaper" (prctl(2)), so a grandchild whose own parent died
  becomes the guard's child, in whatever session or group it put itself: killing and reaping children until there are
  none left *is* the proof that nobody is left. The same happens when the child ends by itself, so a restart begins
  without leftovers. Should the guard be killed, the kernel kills the child (``PR_SET_PDEATHSIG``). That signal is
  bound to the *thread* that forked: asked for in the guard, which has one thread, it means the guard; asked for in an
  application's thread pool it would kill the child when that thread ends. For the same reason, ``preexec_fn`` is
  harmless in the guard and would not be in a parent with threads.
* :class:`GuardedProcess` is the parent's handle: one program under one guard, in a session of its own, so that Ctrl-C
  in a terminal reaches the supervisor alone.
* :class:`Supervisor` starts children in order, restarts those that die, stops them in reverse order. It has no thread:
  it works inside :meth:`Supervisor.run` (foreground) or when :meth:`Supervisor.check` is called.

Exit statuses are those of a shell: 0 to 255, and 128 + N for a death by signal N.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn

from fsworker.errors import ConfigError, UnavailableError

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# The guard needs this file and the standard library only; a bare package object keeps fsworker/__init__.py, and with it
# Pillow, redis and Celery, out of a process that merely waits.
_BOOT = (
    "import sys, types; package = types.ModuleType('fsworker'); package.__path__ = [sys.argv[1]]; "
    "sys.modules['fsworker'] = package; from fsworker.supervise import guard; guard(sys.argv[2:])"
)
_PID = struct.Struct("=i")
_KILL_WAIT_S = 5.0


def guard(arguments: Sequence[str]) -> NoReturn:
    """Be the guard process: ``[socket fd, parent's pid, comma-separated fds to hand on, program, argument, …]``.

    Sends the child's pid as one native int, then obeys: each byte received is a signal number for the child. Ends
    with the child's exit status when no descendant is left; 126 when the program could not be started.
    """
    control = socket.socket(fileno=int(arguments[0]))
    parent_pid = int(arguments[1])
    pass_fds = tuple(int(fd) for fd in arguments[2].split(",") if fd)
    wake, waker = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    # Handled rather than ignored, as an ignored signal stays ignored in the program. Whoever stops a whole control
    # group (systemd) reaches the child itself; the guard stays until it is gone.
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, lambda _number, _frame: None)
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        sys.exit(f"fsworker guard: prctl(PR_SET_CHILD_SUBREAPER): {os.strerror(ctypes.get_errno())}")
    guard_pid = os.getpid()

    def die_with_the_guard() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != guard_pid:  # it died before the kernel knew of our wish
            os._exit(128 + signal.SIGKILL)

    try:
        child = subprocess.Popen(
            arguments[3:], start_new_session=True, preexec_fn=die_with_the_guard, pass_fds=pass_fds
        )
    except OSError as error:
        sys.stderr.write(f"cannot run {arguments[3]}: {error.strerror}\n")
        sys.exit(126)
    with contextlib.suppress(OSError):  # a parent that is gone already is noticed in _attend
        control.send(_PID.pack(child.pid))
    status = _attend(child.pid, parent_pid, control, wake)
    _kill_descendants()
    sys.exit(status)


def _attend(child_pid: int, parent_pid: int, control: socket.socket, wake: socket.socket) -> int:
    """Pass signals on until the child ends (its exit status) or the parent does or hangs up (that of a SIGKILL)."""
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
            return 128 + signal.SIGKILL
        for number in orders:
            os.kill(child_pid, number)  # not reaped yet, so the pid is still its own


def _kill_descendants() -> None:
    """Kill and reap children until there are none; theirs become ours when they die (PR_SET_CHILD_SUBREAPER)."""
    while pids := _children(os.getpid()):
        for pid in pids:
            os.kill(pid, signal.SIGKILL)  # only we reap them, so none of these pids can have been given away
        for _ in pids:
            os.waitpid(-1, 0)


def _children(parent_pid: int) -> list[int]:
    """Pids whose parent is ``parent_pid``, zombies too, from field 4 of ``/proc/<pid>/stat`` (proc_pid_stat(5))."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as stat:
                if int(stat.read().rpartition(b")")[2].split()[1]) == parent_pid:
                    found.append(int(name))
    return found


def _shell_status(returncode: int) -> int:
    return returncode if returncode >= 0 else 128 - returncode


def describe_status(status: int) -> str:
    """``"status 3"``, or ``"status 137 (SIGKILL)"`` for a status that stands for a signal."""
    with contextlib.suppress(ValueError):
        return f"status {status} ({signal.Signals(status - 128).name})"
    return f"status {status}"


def tail(path: Path, max_lines: int = 15) -> str:
    """The last lines of a log file, for an error message; empty when there is no such file."""
    try:
        with open(path, "rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - 8192))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-max_lines:])
    except OSError:
        return ""


class GuardedProcess:
    """A program that runs under a guard, in its own session, with ``/dev/null`` as input. Started when made.

    Output goes where the parent's goes, or is appended to ``log_path``. ``env`` None inherits the environment, a
    mapping replaces it. A program that cannot be run ends at once with status 126, the reason in its output.
    Everything it started dies with this process, and when this object is closed or collected.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        log_path: Path | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self._control, theirs = socket.socketpair()
        fds = ",".join(str(fd) for fd in pass_fds)
        boot = [sys.executable, "-I", "-S", "-c", _BOOT, str(Path(__file__).resolve().parent)]
        with contextlib.ExitStack() as stack:
            stack.enter_context(theirs)
            log_fd = None
            if log_path is not None:
                log_fd = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
                stack.callback(os.close, log_fd)
            self._guard = subprocess.Popen(
                [*boot, str(theirs.fileno()), str(os.getpid()), fds, *argv],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log_fd,
                stderr=log_fd,
                pass_fds=(theirs.fileno(), *pass_fds),
                start_new_session=True,
            )
        answer = self._control.recv(_PID.size)
        #: The program's process id; 0 when it could not be run, or the guard was killed.
        self.pid: int = _PID.unpack(answer)[0] if answer else 0

    @property
    def guard_pid(self) -> int:
        """The process id of the guard."""
        return self._guard.pid

    def poll(self) -> int | None:
        """The exit status, once the program and all its descendants are gone; None before."""
        return self._status(self._guard.poll())

    def wait(self, timeout_s: float) -> int | None:
        """Like :meth:`poll`, after waiting for up to ``timeout_s`` seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._guard.wait(timeout_s)
        return self.poll()

    def send_signal(self, number: int) -> None:
        """Send a signal to the program, not to its descendants; nothing happens when it has ended."""
        with contextlib.suppress(OSError):
            self._control.send(bytes([number]))

    def kill(self) -> int:
        """SIGKILL the program and all its descendants, wait until they are gone, return the exit status."""
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)  # unlike close, also ends the copies that a fork has made
        status = self.wait(_KILL_WAIT_S)
        if status is None:
            self._guard.kill()
            status = self._status(self._guard.wait())
        self._control.close()
        return 0 if status is None else status

    def stop(self, number: int, grace_s: float) -> int:
        """Send ``number``, wait up to ``grace_s`` seconds, then :meth:`kill`. Returns the exit status."""
        self.send_signal(number)
        self.wait(grace_s)
        return self.kill()

    def _status(self, returncode: int | None) -> int | None:
        if returncode is not None and returncode < 0 and self.pid:
            # The guard was killed and the kernel has killed the program; its group may have more members.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self.pid = 0  # once: the number may belong to a stranger next time
        return None if returncode is None else _shell_status(returncode)


@dataclass(frozen=True)
class Child:
    """What the supervisor has to know of one program.

    ``ready`` is asked every 50 ms until it says True, at most ``ready_timeout_s`` seconds; without it a child counts as
    ready when it runs. ``stop_grace_s`` is the time between ``stop_signal`` and SIGKILL. A child with ``restart=False``
    is a reason to stop when it ends. ``env``, ``log_path`` and ``pass_fds`` are those of :class:`GuardedProcess`.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] | None = None
    stop_signal: int = signal.SIGTERM
    stop_grace_s: float = 60.0
    ready: Callable[[], bool] | None = None
    ready_timeout_s: float = 60.0
    restart: bool = True
    log_path: Path | None = None
    pass_fds: tuple[int, ...] = ()

    def spawn(self) -> GuardedProcess:
        """Run it under a guard of its own."""
        return GuardedProcess(self.argv, env=self.env, log_path=self.log_path, pass_fds=self.pass_fds)


class _Life:
    """One child as it is now: its process, or the time at which it is to be started again."""

    def __init__(self, child: Child, process: GuardedProcess, now_s: float) -> None:
        self.child = child
        self.process: GuardedProcess | None = process
        self.started_s = now_s
        self.restart_at_s = now_s
        self.delay_s = 0.0


class Supervisor:
    """Runs children: started in order, each when the one before is ready; restarted; stopped in reverse order.

    Used as ``Supervisor(children, log).run()``, which returns when it is told to stop by a signal, or as a context
    manager whose body calls :meth:`check` now and then. A child that dies is started again after 1 s, then 2 s, up to
    30 s, and after 1 s again once it has lived for 60 s. If this process is killed, all descendants die with it.
    ``log`` gets one line for each thing that happens; ``clock`` counts seconds.
    """

    FIRST_DELAY_S = 1.0
    MAX_DELAY_S = 30.0
    HEALTHY_S = 60.0

    def __init__(
        self,
        children: Sequence[Child],
        log: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._children = tuple(children)
        self._log = log
        self._clock = clock
        self._sleep = sleep
        self._lives: list[_Life] = []
        self._stop_requests = 0

    @property
    def pids(self) -> dict[str, int]:
        """The process id of each child that is running, by name."""
        return {life.child.name: life.process.pid for life in self._lives if life.process}

    def __enter__(self) -> Supervisor:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def run(self) -> int:
        """Start, keep running until SIGINT, SIGTERM or SIGHUP, stop; from the main thread. Returns an exit status.

        0: told to stop, and every child did so in its time. 1: some had to be killed; a second signal kills all at
        once. Otherwise the status of the child with ``restart=False`` that ended. Raises what :meth:`start` raises.
        """
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, self._note_stop) for number in numbers}
        try:
            self.start()
            ended: _Life | None = None
            while not self._stop_requests and ended is None:
                self._sleep(0.1)
                ended = self._tend()
            in_time = self.stop()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if ended is not None and ended.process is not None:
            return ended.process.poll() or 0
        return 0 if in_time else 1

    def start(self) -> None:
        """Start all children. Whatever is raised, those already started are stopped first.

        Raises ConfigError for a child that ends before it is ready, UnavailableError for one that does not get ready.
        """
        try:
            for child in self._children:
                if self._stop_requests:
                    return
                life = _Life(child, child.spawn(), self._clock())
                self._lives.append(life)
                self._log(f"{child.name}: started (process {self.pids[child.name]})")
                self._await_ready(life)
        except BaseException:
            self.stop()
            raise

    def check(self) -> None:
        """Restart what died and is due. Raises UnavailableError when a child with ``restart=False`` has ended."""
        ended = self._tend()
        if ended is not None and ended.process is not None:
            status = ended.process.poll() or 0
            raise UnavailableError(_obituary(ended.child, status, "and is not to be restarted"))

    def stop(self) -> bool:
        """Stop in reverse order, within the sum of the graces. True if no child had to be killed.

        A second stop signal to :meth:`run`, or an exception (KeyboardInterrupt) in here, kills all that is left.
        """
        in_time = True
        try:
            while self._lives:
                life = self._lives[-1]
                in_time = self._stop_one(life) and in_time
                self._lives.pop()
        finally:
            for life in self._lives:
                if life.process:
                    life.process.kill()
            self._lives.clear()
        return in_time

    def _note_stop(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a signal handler's signature
        self._stop_requests += 1

    def _await_ready(self, life: _Life) -> None:
        child, process = life.child, life.process
        deadline_s = life.started_s + child.ready_timeout_s
        while child.ready and process and not self._stop_requests and not child.ready():
            status = process.poll()
            if status is not None:
                raise ConfigError(_obituary(child, status, "while starting; mend what its output says"))
            if self._clock() > deadline_s:
                raise UnavailableError(
                    f"{child.name} is not ready after {child.ready_timeout_s:g} s; see its output"
                    f"{f' in {child.log_path}' if child.log_path else ''}, and whether the machine is overloaded"
                )
            self._sleep(0.05)

    def _tend(self) -> _Life | None:
        """One round: note deaths, restart who is due. Returns a child that ended and must not be restarted."""
        for life in self._lives:
            if life.process is None:
                if self._clock() >= life.restart_at_s:
                    self._restart(life)
            elif (status := life.process.poll()) is not None:
                if not life.child.restart:
                    return life
                self._bury(life, status)
        return None

    def _bury(self, life: _Life, status: int) -> None:
        lived_s = self._clock() - life.started_s
        doubled_s = min(2 * life.delay_s, self.MAX_DELAY_S)
        life.delay_s = self.FIRST_DELAY_S if lived_s >= self.HEALTHY_S else max(doubled_s, self.FIRST_DELAY_S)
        life.restart_at_s = self._clock() + life.delay_s
        if life.process:
            life.process.kill()
        life.process = None
        end = f"ended with {describe_status(status)} after {lived_s:.1f} s"
        self._log(f"{life.child.name}: {end}; starting it again in {life.delay_s:g} s")

    def _restart(self, life: _Life) -> None:
        life.process = life.child.spawn()
        life.started_s = self._clock()
        self._log(f"{life.child.name}: started again (process {life.process.pid})")

    def _stop_one(self, life: _Life) -> bool:
        """True if it was gone, or went, within its grace."""
        child, process = life.child, life.process
        if process is None:
            return True
        process.send_signal(child.stop_signal)
        deadline_s = self._clock() + child.stop_grace_s
        while process.poll() is None and self._clock() < deadline_s and self._stop_requests < 2:
            self._sleep(0.05)
        in_time = process.poll() is not None
        process.kill()
        self._log(f"{child.name}: {'stopped' if in_time else 'killed, with all that it had started'}")
        return in_time


def _obituary(child: Child, status: int, remark: str) -> str:
    last_words = tail(child.log_path) if child.log_path else ""
    return f"{child.name} ended with {describe_status(status)} {remark}" + (f":\n{last_words}" if last_words else "")
