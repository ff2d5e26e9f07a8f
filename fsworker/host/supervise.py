"""A handful of programs kept running in the foreground: started in order, restarted, stopped in reverse order.

Those that do not need each other (``beside``) start, and stop, together.

:class:`Supervisor` has no thread. It works inside :meth:`Supervisor.run`, which ``fsworker up`` is made of, or when
the body of its ``with`` block calls :meth:`Supervisor.check`. Each child runs under a guard (:mod:`fsworker.host.guard`),
so that nothing outlives the supervisor, even if that is killed, and nothing of a dead child is left when it is started
again. Under systemd, use ``KillMode=mixed``: the order of stopping is then the supervisor's to keep.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType

from fsworker.errors import ConfigError, FSWorkerError, UnavailableError
from fsworker.host.guard import GuardedProcess, describe_status

MAX_DELAY_S = 30.0
HEALTHY_S = 60.0
# What a person has to mend before the program can run; other reasons (memory, process limits) may pass.
_NOT_RUNNABLE = {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ENOEXEC, errno.E2BIG}


@dataclass(frozen=True)
class Child:
    """What the supervisor has to know of one program.

    ``ready`` is asked every 50 ms until it says True, at most ``ready_timeout_s`` seconds; without it a child counts as
    ready when it runs. ``stop_grace_s`` is the time between ``stop_signal`` and SIGKILL. ``env`` None inherits the
    environment, a mapping replaces it; output goes to our standard error, or is appended to ``log_path``. ``beside``: it does
    not need the child before it, so the two start and stop at the same time.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] | None = None
    stop_signal: int = signal.SIGTERM
    stop_grace_s: float = 60.0
    ready: Callable[[], bool] | None = None
    ready_timeout_s: float = 60.0
    log_path: Path | None = None
    pass_fds: tuple[int, ...] = ()
    beside: bool = False

    def spawn(self) -> GuardedProcess:
        """Run it under a guard of its own.

        Raises ConfigError for what is no program that may be run here, UnavailableError when the system has no room.
        """
        try:
            return GuardedProcess(self.argv, env=self.env, log_path=self.log_path, pass_fds=self.pass_fds)
        except OSError as error:
            kind = ConfigError if error.errno in _NOT_RUNNABLE else UnavailableError
            raise kind(f"{self.name} cannot be started: {error.strerror}: {error.filename or self.argv[0]}") from error


def restart_delay_s(previous_s: float, lived_s: float) -> float:
    """How long to wait before a dead child is started again: 1 s, doubled up to 30 s; 1 s again after a minute's life.

    ``previous_s`` is the delay before this life, 0 for the first.
    """
    return 1.0 if lived_s >= HEALTHY_S else min(max(2 * previous_s, 1.0), MAX_DELAY_S)


def tail(path: Path, max_lines: int = 15) -> str:
    """The last lines of a log file, for an error message; empty when there is no such file."""
    try:
        with open(path, "rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - 8192))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-max_lines:])
    except OSError:
        return ""


@dataclass
class _Life:
    """One child as it is now: its process, or the time at which it is to be started again."""

    child: Child
    process: GuardedProcess | None
    started_s: float
    delay_s: float = 0.0
    due_s: float = 0.0


class Supervisor:
    """Runs children: started in order, each when the one before is ready; restarted; stopped in reverse order.

    Used as ``Supervisor(children, log).run()``, which returns when it is told to stop by a signal, or as a context
    manager whose body calls :meth:`check` now and then. ``log`` gets one line for each thing that happens.
    """

    def __init__(self, children: Sequence[Child], log: Callable[[str], None]) -> None:
        self._children = tuple(children)
        self._log = log
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

    def run(self, on_ready: Callable[[], None] = lambda: None) -> int:
        """Start, keep running until SIGINT, SIGTERM or SIGHUP, stop; from the main thread. Returns an exit status.

        ``on_ready`` is called once, when all children are ready. The status is 0 when every child stopped in its time,
        1 when some had to be killed; a second signal kills all at once. Raises what :meth:`start` and ``on_ready``
        raise. Whatever is raised, no child is left.
        """
        with self._counting_stop_signals():
            try:
                self.start()
                if not self._stop_requests:
                    on_ready()
                while not self._stop_requests:
                    self.check()
                    time.sleep(0.1)
            finally:
                in_time = self.stop()
        return 0 if in_time else 1

    def start(self) -> None:
        """Start all children. Whatever is raised, those already started are stopped first.

        Raises ConfigError for a child that cannot be run or ends before it is ready, UnavailableError for one that does
        not get ready.
        """
        try:
            waiting: list[_Life] = []
            for child in self._children:
                if not child.beside:
                    self._await_ready(waiting)
                if self._stop_requests:
                    return
                life = _Life(child, child.spawn(), time.monotonic())
                self._lives.append(life)
                waiting.append(life)
                self._log(f"{child.name}: started (process {self.pids[child.name]})")
            self._await_ready(waiting)
        except BaseException:
            self.stop()
            raise

    def check(self) -> None:
        """Note who has died, and start again those whose delay (:func:`restart_delay_s`) is over."""
        for life in self._lives:
            if life.process is None:
                if time.monotonic() >= life.due_s:
                    self._restart(life)
            elif (status := life.process.poll()) is not None:
                lived_s = time.monotonic() - life.started_s
                life.process.kill()
                life.process = None
                self._put_off(life, lived_s, f"ended with {describe_status(status)} after {lived_s:.1f} s")

    def stop(self) -> bool:
        """Stop in reverse order, each within its grace. True if no child had to be killed.

        A second stop signal to :meth:`run`, or an exception (KeyboardInterrupt) in here, kills all that is left.
        """
        in_time = True
        try:
            while self._lives:
                together = [self._lives[-1]]
                while together[-1].child.beside and len(together) < len(self._lives):
                    together.append(self._lives[-1 - len(together)])
                for life in together:
                    if life.process:
                        life.process.send_signal(life.child.stop_signal)
                told_s = time.monotonic()
                for life in together:
                    in_time = self._await_end(life, told_s + life.child.stop_grace_s) and in_time
                    self._lives.pop()
        finally:
            for life in self._lives:
                if life.process:
                    life.process.kill()
            self._lives.clear()
        return in_time

    @contextlib.contextmanager
    def _counting_stop_signals(self) -> Iterator[None]:
        def count(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a signal handler's signature
            self._stop_requests += 1

        numbers = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # nohup(1) has promised that a hang-up is survived
            numbers.remove(signal.SIGHUP)
        self._stop_requests = 0
        before = {number: signal.signal(number, count) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _await_ready(self, waiting: list[_Life]) -> None:
        """Wait until all of them are ready, and look after all meanwhile; the list is empty then."""
        while waiting and not self._stop_requests:
            waiting[:] = [life for life in waiting if not self._is_ready(life)]
            if waiting:
                time.sleep(0.05)

    def _is_ready(self, life: _Life) -> bool:
        child, process = life.child, life.process
        if child.ready is None or process is None or child.ready():
            return True
        if (status := process.poll()) is not None:
            raise ConfigError(
                f"{child.name} ended with {describe_status(status)} while starting; mend what {_output_of(child)}"
            )
        if time.monotonic() > life.started_s + child.ready_timeout_s:
            raise UnavailableError(
                f"{child.name} is not ready after {child.ready_timeout_s:g} s; look whether the machine is "
                f"overloaded, and what {_output_of(child)}"
            )
        return False

    def _restart(self, life: _Life) -> None:
        try:
            life.process = life.child.spawn()
        except FSWorkerError as error:
            self._put_off(life, 0.0, str(error))
        else:
            life.started_s = time.monotonic()
            self._log(f"{life.child.name}: started again (process {life.process.pid})")

    def _put_off(self, life: _Life, lived_s: float, why: str) -> None:
        life.delay_s = restart_delay_s(life.delay_s, lived_s)
        life.due_s = time.monotonic() + life.delay_s
        self._log(f"{life.child.name}: {why}; starting it again in {life.delay_s:g} s")

    def _await_end(self, life: _Life, deadline_s: float) -> bool:
        """True if it was gone, or went, by the deadline; else it is killed."""
        process = life.process
        if process is None:
            return True
        while process.poll() is None and time.monotonic() < deadline_s and self._stop_requests < 2:
            time.sleep(0.05)
        in_time = process.poll() is not None
        process.kill()
        self._log(f"{life.child.name}: {'stopped' if in_time else 'killed, with all that it had started'}")
        return in_time


def _output_of(child: Child) -> str:
    return f"it says in {child.log_path}:\n{tail(child.log_path)}" if child.log_path else "it says above"
