"""An explicit clock for tests of what depends on age: days pass, or the clock is set, at once.

The kernel makes ctimes, so they cannot be chosen. Here real time is cut into epochs, each some milliseconds long, and each
has an offset; ``os.stat`` and ``os.fstat``, as the store's modules see them, add the offset of the epoch that a time lies
in. Everything else is real: the files, their locks, the moves.
"""

from __future__ import annotations

import os
import tempfile
import time
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest

from fsworker.store import clock as clock_module
from fsworker.store import handle, heal, hold, objects, reading, staging, trash, trashlist

_TICK_S = time.clock_getres(5)  # CLOCK_REALTIME_COARSE, which Python has no name for
_MODULES: tuple[ModuleType, ...] = (handle, reading, staging, objects, heal, trash, trashlist)


class VirtualClock:
    """``advance`` lets time pass; ``step`` sets the wall clock, forward or back, while no time passes."""

    def __init__(self) -> None:
        self._starts = [0.0]
        self._offsets = [0.0]
        self._boot_offset_s = 0.0
        self.boot_id = clock_module.boot_id()
        self.synchronised = True

    def advance(self, seconds: float) -> None:
        self._boot_offset_s += seconds
        self.step(seconds)

    def step(self, seconds: float) -> None:
        now_s = time.time()  # no ctime is later by now, and those to come have to be
        with tempfile.TemporaryFile() as probe:
            while os.fstat(probe.fileno()).st_ctime <= now_s:  # it comes from a clock that ticks, late on a busy host
                time.sleep(_TICK_S / 2)
                os.fchmod(probe.fileno(), 0o600)
        self._starts.append(now_s)
        self._offsets.append(self._offsets[-1] + seconds)

    def translate(self, real_s: float) -> float:
        return real_s + self._offsets[bisect_right(self._starts, real_s) - 1]

    def now(self) -> float:
        return self.translate(time.time())

    def boot_s(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME) + self._boot_offset_s


class _Os:
    """The module ``os`` with translated times."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def stat(self, *args: Any, **kwargs: Any) -> os.stat_result:
        return self._translated(os.stat(*args, **kwargs))

    def fstat(self, fd: int) -> os.stat_result:
        return self._translated(os.fstat(fd))

    def _translated(self, status: os.stat_result) -> os.stat_result:
        times = {name: self._clock.translate(getattr(status, name)) for name in ("st_ctime", "st_mtime")}
        return os.stat_result(tuple(status), {"st_nlink": status.st_nlink, **times})


@contextmanager
def virtual_clock() -> Iterator[VirtualClock]:
    """Put a virtual clock in the place of the real one, for this process."""
    clock = VirtualClock()
    with pytest.MonkeyPatch.context() as patch:
        for module in _MODULES:
            if hasattr(module, "os"):
                patch.setattr(module, "os", _Os(clock))
        patch.setattr(handle, "_CLOCK_FRESH_S", -1.0)
        for module in (clock_module, hold):
            patch.setattr(module, "boot_time_s", clock.boot_s)
            patch.setattr(module, "boot_id", lambda: clock.boot_id)
        patch.setattr(clock_module, "is_synchronised", lambda: clock.synchronised)
        yield clock
