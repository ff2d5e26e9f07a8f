"""How much one picture may cost, and the confinement of the process that decodes it.

Decoders are the largest attack surface of the project: C code that eats strangers' bytes. So a picture is decoded in a
process of its own that can lose little: its memory, processor time, output and descriptors are bounded, it can open
nothing and connect nowhere, and it dies with its parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import resource
import signal
import struct
from dataclasses import dataclass

from fsworker.thumbnails.seccomp import CallFilter

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_LAST_DESCRIPTOR = 2**31 - 1
_SYS_CLOSE_RANGE = 436  # these have the same number on every architecture
_SYS_LANDLOCK_CREATE_RULESET = 444
_SYS_LANDLOCK_RESTRICT_SELF = 446
_LANDLOCK_CREATE_RULESET_VERSION = 1

_THIS_PROCESS = struct.pack("=Ii", 0x20080522, 0)  # capabilities(7), version 3
_NO_CAPABILITIES = bytes(2 * 3 * 4)

_SIGSET_BYTES = 128
_ALL_SIGNALS, _NO_SIGNALS = b"\xff" * _SIGSET_BYTES, b"\0" * _SIGSET_BYTES
_FOR_THE_WORKER = tuple(int(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP))
_HANDLED_SIGNALS = tuple(
    int(number)
    for number in (
        *(signal.SIGALRM, signal.SIGCHLD, signal.SIGUSR1),
        *(signal.SIGUSR2, signal.SIGXCPU, signal.SIGPROF, signal.SIGVTALRM),
    )
)

_libc = ctypes.CDLL(None, use_errno=True)  # loaded in the parent: the child must not load anything


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on one picture; every thumbnail of it is made within them together.

    ``max_pixels`` bounds the decoded picture (a baseline JPEG that can be decoded at a quarter of its size or less may
    have eight times as many), each thumbnail, and the largest frame of an animation. ``memory_bytes`` is address space
    on top of what the process had before. ``cpu_s`` is processor time, rounded up to whole seconds, ``wall_s`` time by
    the clock. ``output_bytes`` bounds all thumbnails together. ``max_scans`` bounds the scans of a JPEG (a normal
    progressive one has 10), ``max_frames`` the frames of an animation, if one is asked for.
    """

    max_pixels: int = 50_000_000
    memory_bytes: int = 512 * 2**20
    cpu_s: float = 20.0
    wall_s: float = 60.0
    output_bytes: int = 64 * 2**20
    max_scans: int = 100
    max_frames: int = 500

    @property
    def cpu_whole_s(self) -> int:
        """``cpu_s`` as the kernel counts it: at least one second, whole ones."""
        return max(1, math.ceil(self.cpu_s))


@dataclass(frozen=True, slots=True)
class Renounced:
    """What a process has given up for itself and its forks, and further walls for each fork: Landlock's (or -1), seccomp's."""

    ruleset_fd: int
    calls: CallFilter


def renounce(keep: frozenset[int] = frozenset()) -> Renounced:
    """Take from this process what no fork of it needs for decoding, where that is handed down: signals, privileges, cores.

    Descriptors 0, 1 and 2 become ``/dev/null``, but those in ``keep``. What tells a worker to stop (a terminal's Ctrl-C,
    ``systemctl stop``) is ignored: it is the worker's to handle, and a picture that is being made is not broken.
    """
    _default_signals()
    _volunteer_for_the_oom_killer()
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for descriptor in (0, 1, 2):
        if descriptor not in keep:
            os.dup2(null, descriptor)
    if null > 2:
        os.close(null)
    _lower(resource.RLIMIT_CORE, 0, 0)
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if hasattr(_libc, "capset"):  # root in a container could raise its limits again
        _libc.capset(_THIS_PROCESS, _NO_CAPABILITIES)
    return Renounced(_landlock_ruleset(), CallFilter())


def confine(limits: Limits, keep: frozenset[int], parent: int, space_bytes: int, renounced: Renounced) -> None:
    """Take from this forked, single-threaded process all else that decoding does not need.

    ``keep`` are the descriptors that stay open, beside 0, 1 and 2; ``parent`` is the process it came from, and
    ``space_bytes`` the address space that it came with. Afterwards no descriptor can be made at all: no file, no socket,
    no pipe. Nor can a process be made, or another one be reached, or shared memory be left behind. Where the kernel has
    Landlock, the process can also change no directory (a file can be unlinked without a descriptor).
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
    if renounced.ruleset_fd >= 0:
        _libc.syscall(_SYS_LANDLOCK_RESTRICT_SELF, renounced.ruleset_fd, 0)
    close_descriptors(keep)
    _lower(resource.RLIMIT_AS, space_bytes + limits.memory_bytes, space_bytes + limits.memory_bytes)
    # The soft limit ends the process by SIGXCPU, which names the cause; the hard one is for whoever ignores that.
    _lower(resource.RLIMIT_CPU, limits.cpu_whole_s, limits.cpu_whole_s + 1)
    _lower(resource.RLIMIT_FSIZE, limits.output_bytes, limits.output_bytes)
    _lower(resource.RLIMIT_NOFILE, 0, 0)
    renounced.calls.apply()


class BlockedSignals:
    """The calling thread's signals, all blocked from here until :meth:`restore`.

    By the C library itself, as all that is done here with signals: Python's functions make an enumeration's member of
    each signal of each mask, which took longer than the fork.
    """

    def __init__(self) -> None:
        self._before = ctypes.create_string_buffer(_SIGSET_BYTES)
        _libc.pthread_sigmask(signal.SIG_SETMASK, _ALL_SIGNALS, self._before)

    def restore(self) -> None:
        """Unblock what was not blocked before; what has come meanwhile arrives now."""
        _libc.pthread_sigmask(signal.SIG_SETMASK, self._before, None)


def _default_signals() -> None:
    """A worker's handlers must not run here, and what ends the worker is its to handle."""
    signal.set_wakeup_fd(-1)
    for number in _HANDLED_SIGNALS:
        _libc.signal(number, None)  # SIG_DFL
    for number in _FOR_THE_WORKER:
        _libc.signal(number, ctypes.c_void_p(1))  # SIG_IGN
    _libc.pthread_sigmask(signal.SIG_SETMASK, _NO_SIGNALS, None)


def _volunteer_for_the_oom_killer() -> None:
    try:
        descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        os.write(descriptor, b"1000")
    except OSError:
        pass  # not allowed here: then the worker is as likely a victim as this process
    finally:
        os.close(descriptor)


def close_descriptors(keep: frozenset[int]) -> None:
    """Close all descriptors of this process from 3 on but those in ``keep``."""
    first = 3
    for kept in (*sorted(descriptor for descriptor in keep if descriptor > 2), _LAST_DESCRIPTOR + 1):
        if first < kept and _libc.syscall(_SYS_CLOSE_RANGE, first, ctypes.c_uint(kept - 1), 0) != 0:
            _close_one_by_one(first, kept)  # before Linux 5.9
        first = kept + 1


def _close_one_by_one(first: int, end: int) -> None:
    for name in os.listdir("/proc/self/fd"):
        if first <= int(name) < end:
            with contextlib.suppress(OSError):  # the listing's own descriptor
                os.close(int(name))


def address_space_bytes() -> int:
    """How much address space this process has; ask it before a fork, when it costs the child nothing."""
    descriptor = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return int(os.read(descriptor, 100).split()[0]) * resource.getpagesize()
    finally:
        os.close(descriptor)


def _lower(kind: int, soft: int, hard: int) -> None:
    """Set a limit, but never above the one that is in force."""
    _, old_hard = resource.getrlimit(kind)
    if old_hard != resource.RLIM_INFINITY:
        soft, hard = min(soft, old_hard), min(hard, old_hard)
    resource.setrlimit(kind, (soft, hard))


def _landlock_ruleset() -> int:
    """A ruleset that denies all that landlock(7) can deny (Linux 5.13), or -1. A kernel without it is no error."""
    version = _libc.syscall(_SYS_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_CREATE_RULESET_VERSION)
    if version < 1:
        return -1
    files = (1 << (13 + (version >= 2) + (version >= 3) + (version >= 5))) - 1
    network = 0b11 if version >= 4 else 0
    scoped = 0b11 if version >= 6 else 0
    size = 8 if version < 4 else 16 if version < 6 else 24
    attributes = struct.pack("=QQQ", files, network, scoped)
    return int(_libc.syscall(_SYS_LANDLOCK_CREATE_RULESET, attributes, size, 0))
