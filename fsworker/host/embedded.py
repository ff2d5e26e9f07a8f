"""A private Redis-compatible server for a machine that has none to offer: development, demos, tests, small hosts.

It is a real server (Valkey or Redis; :mod:`fsworker.host.serverbinary` finds it) under a guard (:mod:`fsworker.host.guard`), so
that it ends with its parent whatever happens to that. It listens on a Unix socket alone, in a directory that only its
user may enter, so it needs no password and no port, and two of them on one machine never meet.

The directory holds:

* ``appendonlydir/``: the data. Every write is in the kernel's hands before it is answered, so that a SIGKILL loses
  none; a power cut loses up to a second, and the spool is the truth anyway. It is kept as plain commands, which a
  server of another make or age reads too: the machine may get its own one day.
* ``server.sock``: the socket, or a symbolic link to it. The kernel allows a socket's path 107 bytes (unix(7)) and URLs
  quote what they like, so for a long or oddly named directory it lies in a private one elsewhere.
* ``server.log`` and ``server.log.1``: the output of this start and of the one before.
* ``lock``: an ``flock`` whose descriptor the server itself inherits. It is free when the server is gone, not when its
  parent is, so no second server can ever open the same data.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from fsworker.errors import ConfigError
from fsworker.host.serverbinary import ServerBinary, find_server
from fsworker.host.supervise import Child, Supervisor

_SOCKET_NAME = "server.sock"
_MAX_SOCKET_PATH_BYTES = 107  # sun_path has 108, the last is NUL: unix(7)
# What stands for itself in a URL's path. Clients differ in how they undo quoting, so nothing else is put into one.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/_.+-]+")
_LOCK_WAIT_S = 2.0  # a guard needs milliseconds to clear away a server whose parent was killed
_STOP_GRACE_S = 10.0
_ELSEWHERE = "set FSWORKER_STATE_DIR to a directory of your own"


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
    socket_path = _socket_of(Path(os.path.abspath(directory)))
    return _url(socket_path) if socket_path is not None and answers(socket_path) else None


class EmbeddedServer:
    """An embedded server's directory, held by this process; and the server in it, started here or by a supervisor.

    ``with EmbeddedServer.start(directory) as server:`` runs one for the block. For a supervisor,
    ``with EmbeddedServer(directory) as server:`` only takes the directory, and :meth:`child` describes the process.
    Data, directory and log remain after :meth:`stop`.

    Raises ConfigError when the directory cannot be written to, is another user's, open to others, or in use by another
    server, and when no server program is found.
    """

    def __init__(self, directory: str | os.PathLike[str], *, binary: ServerBinary | None = None) -> None:
        self.binary = find_server() if binary is None else binary
        self.directory = Path(os.path.abspath(directory))  # a symbolic link stays what the user named
        self.log_path = self.directory / "server.log"
        self._supervisor: Supervisor | None = None
        with contextlib.ExitStack() as unwind, _explained(self.directory):
            _make_private(self.directory)
            self._lock_fd = _lock(self.directory)
            unwind.callback(os.close, self._lock_fd)
            self.socket_path = _choose_socket(self.directory)
            if self.log_path.exists():
                self.log_path.replace(self.directory / "server.log.1")
            unwind.pop_all()

    @classmethod
    def start(
        cls, directory: str | os.PathLike[str], *, binary: ServerBinary | None = None, ready_timeout_s: float = 60.0
    ) -> EmbeddedServer:
        """Take the directory, run the server in it, return when it answers.

        Raises ConfigError with the end of its log when it ends instead, UnavailableError when it does not answer in
        time (loading a large data set takes seconds per GiB); nothing runs and nothing is held then.
        """
        server = cls(directory, binary=binary)
        try:
            server._supervisor = Supervisor([server.child(ready_timeout_s)], lambda _line: None)
            server._supervisor.start()
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
        return self._supervisor.pids.get("redis") if self._supervisor else None

    def answers(self) -> bool:
        """Whether the server answers PING now."""
        return answers(self.socket_path)

    def child(self, ready_timeout_s: float = 60.0) -> Child:
        """The server as a supervisor's child, to be listed first so that it is stopped last."""
        flags = {
            "port": "0",
            "unixsocket": str(self.socket_path),
            "unixsocketperm": "700",
            "dir": str(self.directory),
            "appendonly": "yes",
            "aof-use-rdb-preamble": "no",  # or it would begin with a snapshot, which only its own make and age reads
            "save": "",  # the append-only file has everything; snapshots would only fork
            "maxmemory-policy": "noeviction",  # the default, said because a queue depends on it
            "proto-max-bulk-len": "1048576",  # also caps what APPEND may grow a string to
            "daemonize": "no",
            "logfile": "",  # to standard output, which goes to the log with what is said before the log is open
        }
        return Child(
            "redis",
            [str(self.binary.path), *(word for name, value in flags.items() for word in (f"--{name}", value))],
            env={**os.environ, "LC_ALL": "C"},  # some servers warn, some end, where the locale named is not installed
            stop_grace_s=_STOP_GRACE_S,
            ready=self.answers,
            ready_timeout_s=ready_timeout_s,
            log_path=self.log_path,
            pass_fds=(self._lock_fd,),
        )

    def stop(self) -> None:
        """End the server if it was started here (SIGTERM, after ten seconds SIGKILL); give the directory back.

        Harmless when repeated.
        """
        if self._supervisor is not None:
            self._supervisor.stop()
            self._supervisor = None
        if self._lock_fd >= 0:
            with contextlib.suppress(OSError):  # what cannot be cleared away now is at the next start
                _clear_socket(self.directory, self.socket_path)
            os.close(self._lock_fd)
            self._lock_fd = -1

    def __enter__(self) -> EmbeddedServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _url(socket_path: Path) -> str:
    return f"redis+socket://{socket_path}?virtual_host=0"


@contextlib.contextmanager
def _explained(directory: Path) -> Iterator[None]:
    """Turn an OSError into the ConfigError that says which directory, and what to do."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"cannot keep the embedded server's data in {directory}: {error.strerror}: {error.filename}; mend that, or "
            f"{_ELSEWHERE}"
        ) from error


def _make_private(directory: Path) -> None:
    """Make the directory, 0700, or see that it is so; an empty one of ours is made so."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = directory.stat()
    if found.st_uid != os.geteuid():
        raise ConfigError(
            f"{directory} belongs to uid {found.st_uid}, this is uid {os.geteuid()}: run as its owner, or {_ELSEWHERE}"
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        if any(directory.iterdir()):
            raise ConfigError(
                f"{directory} is open to others (mode {stat.S_IMODE(found.st_mode):04o}), and whoever reaches the "
                f"server in it commands it: run 'chmod 700' on it, or {_ELSEWHERE}"
            )
        directory.chmod(0o700)


def _lock(directory: Path) -> int:
    """The descriptor that holds the directory's lock."""
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline_s = time.monotonic() + _LOCK_WAIT_S
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline_s:
                    holder = os.pread(fd, 20, 0).decode(errors="replace").strip()
                    raise ConfigError(
                        f"{directory} is in use by another embedded server (of process {holder}): stop that one, or "
                        f"{_ELSEWHERE}"
                    ) from None
                time.sleep(0.05)
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _choose_socket(directory: Path) -> Path:
    """The socket's path, free to be bound: in the directory itself, or ``server.sock`` there links to it.

    What a killed server left is removed (the lock says that it is gone), its place elsewhere is used again.
    """
    name = directory / _SOCKET_NAME
    socket_path = _socket_of(directory)
    if not _fits(name) and socket_path is not None and socket_path != name and _fits(socket_path):
        socket_path.unlink(missing_ok=True)
        return socket_path
    name.unlink(missing_ok=True)
    if _fits(name):
        return name
    socket_path = _make_short_directory() / _SOCKET_NAME
    name.symlink_to(socket_path)
    return socket_path


def _socket_of(directory: Path) -> Path | None:
    """Where the socket of this directory is, running or not; None where it must not be trusted.

    A directory elsewhere may have been cleared away since, by a restart of the machine, and be someone else's now.
    """
    name = directory / _SOCKET_NAME
    if not name.is_symlink():
        return name
    try:
        socket_path = Path(os.readlink(name))
        elsewhere, home = socket_path.parent.lstat(), directory.stat()
    except OSError:
        return None
    private = stat.S_ISDIR(elsewhere.st_mode) and stat.S_IMODE(elsewhere.st_mode) == 0o700
    return socket_path if private and elsewhere.st_uid == home.st_uid else None


def _clear_socket(directory: Path, socket_path: Path) -> None:
    socket_path.unlink(missing_ok=True)
    if socket_path.parent != directory:
        (directory / _SOCKET_NAME).unlink(missing_ok=True)
        socket_path.parent.rmdir()


def _fits(socket_path: Path) -> bool:
    return len(os.fsencode(socket_path)) <= _MAX_SOCKET_PATH_BYTES and bool(_PLAIN_PATH.fullmatch(str(socket_path)))


def _make_short_directory() -> Path:
    # XDG_RUNTIME_DIR comes last: it vanishes when its user logs out, and a server may be left to run in a tmux.
    roots = [os.environ.get("TMPDIR", ""), "/tmp", "/var/tmp", os.environ.get("XDG_RUNTIME_DIR", "")]  # noqa: S108 - mkdtemp is safe there
    for root in roots:
        if os.access(root, os.W_OK | os.X_OK) and _fits(Path(os.path.abspath(root), "fsworker-01234567", _SOCKET_NAME)):
            return Path(tempfile.mkdtemp(prefix="fsworker-", dir=os.path.abspath(root)))
    raise ConfigError(
        f"no directory for the embedded server's socket: none of {', '.join(filter(None, roots))} is writable, plainly "
        "named and short enough (107 bytes with the socket's name): set TMPDIR to one"
    )
