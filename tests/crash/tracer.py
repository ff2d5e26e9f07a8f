"""Stop a child process before each of its system calls, to kill it there, to make the call fail, or to watch it.

ptrace(2) through ctypes: no privileges, no other program, about 50 µs a call, so that thousands of crash points fit into
a test run. A child is forked from the warm test process, which is what makes a point cheap. x86-64 only: to make a call
fail one has to write registers, and those differ.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import pickle
import platform
import signal
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SUPPORTED = platform.machine() == "x86_64"

_TRACEME, _CONT, _KILL, _SYSCALL, _POKEUSER = 0, 7, 8, 24, 6
_SETOPTIONS, _GET_SYSCALL_INFO = 0x4200, 0x420E
_O_TRACESYSGOOD, _O_EXITKILL = 1, 1 << 20
_ORIG_RAX, _RAX = 120, 80  # offsets in struct user, <sys/user.h>
_ENTRY, _EXIT = 1, 2

NAMES = {
    0: "read", 1: "write", 3: "close", 5: "fstat", 8: "lseek", 16: "ioctl", 17: "pread64", 18: "pwrite64", 19: "readv",
    72: "fcntl", 73: "flock", 74: "fsync", 75: "fdatasync", 77: "ftruncate", 89: "readlink", 91: "fchmod",
    93: "fchown", 110: "getppid", 217: "getdents64", 257: "openat", 258: "mkdirat", 260: "fchownat", 262: "newfstatat",
    263: "unlinkat", 264: "renameat", 265: "linkat", 266: "symlinkat", 267: "readlinkat", 268: "fchmodat",
    269: "faccessat", 295: "preadv", 306: "syncfs", 316: "renameat2", 332: "statx", 82: "rename", 83: "mkdir",
    84: "rmdir", 86: "link", 87: "unlink", 90: "chmod", 92: "chown", 2: "open", 4: "stat", 6: "lstat", 318: "getrandom",
}  # fmt: skip
NUMBERS = {name: number for number, name in NAMES.items()}
_MARK = NUMBERS["getppid"]  # asks nothing of anybody: marks the beginning and the end of what is traced

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


@dataclass(frozen=True)
class Call:
    """A system call at its entry: its place among those traced, its name, its six arguments."""

    index: int
    name: str
    args: tuple[int, ...]
    pid: int


@dataclass(frozen=True)
class Outcome:
    """How a traced function ended. ``killed``: where it was told to. Else ``value``, or the exception it raised."""

    calls: int
    killed: bool
    value: Any = None
    error: BaseException | None = None
    acknowledged: tuple[str, ...] = ()


KILL = -1
"""What a policy returns to kill the child before the call. A positive number is the errno the call fails with."""

Policy = Callable[[Call], int | None]
Watcher = Callable[[Call, int], None]


class Child:
    """What the traced function gets: a way to say that it has given something its word."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def acknowledge(self, text: str) -> None:
        """Tell the outside world; from here on a crash must not lose it. Survives the child's death."""
        os.write(self._fd, text.encode() + b"\n")


def run(
    function: Callable[[Child], Any], policy: Policy = lambda call: None, watcher: Watcher | None = None
) -> Outcome:
    """Run ``function`` in a traced child. ``policy`` judges each call at its entry, ``watcher`` sees its result."""
    answer_r, answer_w = os.pipe()
    acks_r, acks_w = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(function, answer_w, acks_w, (answer_r, acks_r))
    os.close(answer_w)
    os.close(acks_w)
    try:
        calls, killed = _trace(pid, policy, watcher)
        with os.fdopen(acks_r, "rb") as pipe:
            acknowledged = tuple(pipe.read().decode().split())
        with os.fdopen(answer_r, "rb") as pipe:
            answer = pipe.read()
    finally:
        _reap(pid)
    if killed:
        return Outcome(calls, True, acknowledged=acknowledged)
    worked, value = pickle.loads(answer)
    if worked:
        return Outcome(calls, False, value=value, acknowledged=acknowledged)
    return Outcome(calls, False, error=value, acknowledged=acknowledged)


def _child(function: Callable[[Child], Any], answer_w: int, acks_w: int, others: tuple[int, ...]) -> None:
    try:
        for fd in others:
            os.close(fd)
        gc.disable()
        _libc.ptrace(_TRACEME, 0, None, None)
        os.kill(os.getpid(), signal.SIGSTOP)
        os.getppid()
        try:
            answer = (True, function(Child(acks_w)))
        except BaseException as error:
            answer = (False, error)
        os.getppid()
        os.write(answer_w, pickle.dumps(answer))
    finally:
        os._exit(0)


def _trace(pid: int, policy: Policy, watcher: Watcher | None) -> tuple[int, bool]:
    _, status = os.waitpid(pid, 0)
    assert os.WIFSTOPPED(status), "the child could not be traced"
    _ptrace(_SETOPTIONS, pid, 0, _O_TRACESYSGOOD | _O_EXITKILL)
    inside = False
    index = -1
    current: Call | None = None
    failing: int | None = None
    pending_signal = 0
    while True:
        _ptrace(_SYSCALL, pid, 0, pending_signal)
        pending_signal = 0
        _, status = os.waitpid(pid, 0)
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            return index + 1, False
        stopped_by = os.WSTOPSIG(status)
        if stopped_by != signal.SIGTRAP | 0x80:
            pending_signal = stopped_by
            continue
        kind, number, args, result = _syscall_info(pid)
        if kind == _ENTRY:
            if number == _MARK:
                inside = not inside
                if not inside:
                    _ptrace(_CONT, pid, 0, 0)
                    return index + 1, False
                continue
            if not inside or number not in NAMES:
                continue
            index += 1
            current = Call(index, NAMES[number], args, pid)
            failing = policy(current)
            if failing == KILL:
                os.kill(pid, signal.SIGKILL)
                return index + 1, True
            if failing is not None:
                _ptrace(_POKEUSER, pid, _ORIG_RAX, (1 << 64) - 1)  # no such call: it is skipped
        elif kind == _EXIT and current is not None:
            if failing is not None:
                _ptrace(_POKEUSER, pid, _RAX, (1 << 64) - failing)
                result = -failing
            if watcher is not None:
                watcher(current, result)
            current, failing = None, None


def _syscall_info(pid: int) -> tuple[int, int, tuple[int, ...], int]:
    # struct ptrace_syscall_info, ptrace(2): op, pad[3], arch, ip, sp, then nr and args[6], or rval and is_error
    buffer = ctypes.create_string_buffer(88)
    _ptrace(_GET_SYSCALL_INFO, pid, len(buffer), ctypes.addressof(buffer))
    kind = buffer.raw[0]
    if kind == _ENTRY:
        number, *args = struct.unpack_from("<7Q", buffer.raw, 24)
        return kind, number, tuple(args), 0
    if kind == _EXIT:
        return kind, -1, (), struct.unpack_from("<q", buffer.raw, 24)[0]
    return kind, -1, (), 0


def _ptrace(request: int, pid: int, address: int, data: int) -> None:
    if _libc.ptrace(request, pid, address, data) < 0:
        code = ctypes.get_errno()
        if code != errno.ESRCH:
            raise OSError(code, os.strerror(code), f"ptrace {request}")


def _reap(pid: int) -> None:
    try:
        while True:
            os.kill(pid, signal.SIGKILL)
            if os.waitpid(pid, 0)[1] is not None:
                pass
    except (ProcessLookupError, ChildProcessError):
        return
