"""System calls that a decoding process is refused, by seccomp(2): those that reach other processes, or make new ones.

A decoder that was taken over could otherwise signal its parent, read the memory of another process of its user where the
kernel has no Landlock, lower the limits of the process that waits for the next picture, and leave a child, or shared
memory, that outlives every limit. Where the machine or the kernel is not known here, nothing is filtered; the other walls
stand.
"""

from __future__ import annotations

import ctypes
import os
import struct

_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_LOAD, _EQUAL, _AT_LEAST, _HAS_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # of classic BPF, on 32-bit words
_EPERM, _ENOSYS, _ALLOW = 0x00050001, 0x00050026, 0x7FFF0000
_CLONE_THREAD = 0x10000
_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16  # in struct seccomp_data
_X32 = 0x40000000

# fork vfork, kill tkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_send_signal, ptrace, process_vm_readv process_vm_writev,
# execve execveat;
# setpriority sched_setparam sched_setscheduler sched_setaffinity sched_setattr ioprio_set migrate_pages move_pages;
# shmget shmat shmctl, semget semop semctl semtimedop, msgget msgsnd msgrcv msgctl, add_key request_key keyctl.
_X86_64 = (
    *(57, 58, 62, 200, 129, 297, 424, 101, 310, 311, 59, 322),
    *(141, 142, 144, 203, 314, 251, 256, 279),
    *(29, 30, 31, 64, 65, 66, 220, 68, 69, 70, 71, 248, 249, 250),
)
_AARCH64 = (
    *(129, 130, 138, 240, 424, 117, 270, 271, 221, 281),  # without fork and vfork
    *(140, 118, 119, 122, 274, 30, 238, 239),
    *(194, 196, 195, 190, 193, 191, 192, 186, 189, 188, 187, 217, 218, 219),
)
# Audit architecture, those numbers, and those of clone, prlimit64 and tgkill.
_MACHINES = {
    "x86_64": (0xC000003E, _X86_64, 56, 302, 234),
    "aarch64": (0xC00000B7, _AARCH64, 220, 261, 131),
}
_CLONE3 = 435

_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))


class CallFilter:
    """The filter, made ready before a fork, for the fork to apply to itself."""

    def __init__(self) -> None:
        steps, self._pid_at = _steps()
        self._code = ctypes.create_string_buffer(b"".join(steps))
        self._program = _Program(len(steps), ctypes.addressof(self._code))

    def apply(self) -> None:
        """From now on this process, which may gain no privileges, can start no other, and signal only itself (``abort``)."""
        if self._program.length:
            struct.pack_into("=I", self._code, self._pid_at, os.getpid())
            none = ctypes.c_ulong(0)
            mode = ctypes.c_ulong(_SECCOMP_MODE_FILTER)
            _libc.prctl(_PR_SET_SECCOMP, mode, ctypes.byref(self._program), none, none)


def _steps() -> tuple[list[bytes], int]:
    """The program, and where in it this process's id is to be written."""
    known = _MACHINES.get(os.uname().machine)
    if known is None or ctypes.sizeof(ctypes.c_void_p) != 8:
        return [], 0
    architecture, refused, clone, prlimit, tgkill = known
    refuse, allow = _step(_RETURN, 0, 0, _EPERM), _step(_RETURN, 0, 0, _ALLOW)
    first_argument = _step(_LOAD, 0, 0, _FIRST_ARGUMENT_AT)
    steps = [_step(_LOAD, 0, 0, _ARCHITECTURE_AT), _step(_EQUAL, 1, 0, architecture), refuse]
    steps += [_step(_LOAD, 0, 0, _NUMBER_AT), _step(_AT_LEAST, 0, 1, _X32), refuse]
    for number in refused:
        steps += [_step(_EQUAL, 0, 1, number), refuse]
    # A thread dies with its process (libheif wants one). What clone3 is to make cannot be seen: the C library then asks clone.
    steps += [_step(_EQUAL, 0, 1, _CLONE3), _step(_RETURN, 0, 0, _ENOSYS)]
    steps += [_step(_EQUAL, 0, 4, clone), first_argument, _step(_HAS_BIT, 1, 0, _CLONE_THREAD), refuse, allow]
    steps += [_step(_EQUAL, 0, 4, prlimit), first_argument, _step(_EQUAL, 1, 0, 0), refuse, allow]  # its own is 0
    steps += [_step(_EQUAL, 0, 3, tgkill), first_argument]
    pid_at = sum(map(len, steps)) + 4
    return [*steps, _step(_EQUAL, 1, 0, 0), refuse, allow], pid_at


def _step(code: int, if_true: int, if_false: int, value: int) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
