"""The clock floor: no file counts as older than the last step of the clock that was seen.

Age is judged by the wall clock, and wall clocks get set. A file that was written while the clock was three days slow looks
three days older, once the clock is right, than it is. So the store notes how its clock stands against the time since
boot (``CLOCK_BOOTTIME``, which nobody can set). When the two move against each other by more than slewing explains, the
clock was stepped, and every file there is counts as made now: ``max(ctime, floor)``. Either way this only ever keeps.

A boot that begins with an earlier time than was last noted, or with a clock that no time source disciplines
(``STA_UNSYNC``, adjtimex(2)), counts as a step. At first sight the floor is the time of boot. The note is
``Lock/clock.json``; without it (a backup without ``Lock/``) the floor begins anew, and with that of a backup the boot is
another one. It is looked at by every sweep and collection and by running workers every few seconds: a clock that goes
wrong and right again between two looks is not seen.
"""

from __future__ import annotations

import ctypes
import logging
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fsworker.store.handle import StoreHandle
from fsworker.store.notes import BrokenNoteError, read_note, write_note

log = logging.getLogger(__name__)

NOTE = "clock.json"

_STEP_S = 5.0
_SLEW = 0.001  # the kernel slews by at most 500 ppm (adjtimex(2)); twice that
_RECORD_AFTER_S = 60.0
_STA_UNSYNC = 0x0040


@dataclass(frozen=True)
class Reading:
    """One look at the clocks: the store's wall clock, the time since boot, which boot, and whether NTP holds the clock."""

    wall_s: float
    boot_s: float
    boot_id: str
    synchronised: bool


@dataclass(frozen=True)
class ClockRecord:
    """What is noted: the last look, and the floor (seconds since the epoch) with the reason for it."""

    wall_s: float
    boot_s: float
    boot_id: str
    floor_s: float
    reason: str


def advance(record: ClockRecord | None, now: Reading) -> ClockRecord:
    """What to note after a look. Pure.

    The floor moves to the wall clock at a step, also when that is earlier than an old floor: every file that exists
    counts as made now, by the clock that goes on from here.
    """

    def noted(floor_s: float, reason: str) -> ClockRecord:
        return ClockRecord(now.wall_s, now.boot_s, now.boot_id, floor_s, reason)

    if record is None:
        return noted(
            now.wall_s - now.boot_s, "the clock was looked at for the first time; this is when the host started"
        )
    if now.boot_id != record.boot_id:
        if now.wall_s < record.wall_s:
            return noted(
                now.wall_s, f"the host started with a clock {record.wall_s - now.wall_s:.0f} s behind the last one"
            )
        if not now.synchronised:
            return noted(now.wall_s, "the host started, and no time source holds its clock")
        return noted(record.floor_s, record.reason)
    elapsed_s = now.boot_s - record.boot_s
    step_s = (now.wall_s - record.wall_s) - elapsed_s
    if abs(step_s) > _STEP_S + _SLEW * abs(elapsed_s):
        return noted(now.wall_s, f"the clock was set {'forward' if step_s > 0 else 'back'} by {abs(step_s):.0f} s")
    return noted(record.floor_s, record.reason)


def observe(handle: StoreHandle) -> ClockRecord:
    """Look at the clocks, note what has to be noted, and return the record as it is now.

    A broken note counts as a step. Raises ``OSError`` when a new floor cannot be noted: then nothing may be collected.
    """
    now = look(handle)
    try:
        record = read_record(handle)
    except BrokenNoteError as error:
        log.warning("%s; the clock floor is now", error)
        changed = replace(advance(None, now), floor_s=now.wall_s, reason="the note of the clock was broken")
        write_note(handle, NOTE, asdict(changed))
        return changed
    changed = advance(record, now)
    stepped = record is None or (record.floor_s, record.reason) != (changed.floor_s, changed.reason)
    if stepped and record is not None:
        log.warning("%s: no file counts as older than that", changed.reason)
    if record is None or stepped or now.boot_id != record.boot_id:
        write_note(handle, NOTE, asdict(changed))
    elif now.wall_s - record.wall_s > _RECORD_AFTER_S:
        try:
            write_note(handle, NOTE, asdict(changed), sync=False)
        except OSError as error:  # on a full disk a purge has to be possible; the old record still tells a step
            log.warning("the clock cannot be noted: %s", error)
    return changed


def read_record(handle: StoreHandle) -> ClockRecord | None:
    """The note, or ``None``. Raises :class:`BrokenNoteError`."""
    tree = read_note(handle, NOTE)
    if tree is None:
        return None
    try:
        record = ClockRecord(
            float(tree["wall_s"]),
            float(tree["boot_s"]),
            str(tree["boot_id"]),
            float(tree["floor_s"]),
            str(tree["reason"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenNoteError(f"the note of the clock is broken ({error!r})") from None
    if not all(map(math.isfinite, (record.wall_s, record.boot_s, record.floor_s))):
        raise BrokenNoteError("the note of the clock is broken (a time is not finite)")
    return record


def look(handle: StoreHandle) -> Reading:
    """Read the clocks; the wall clock is that of the store's filesystem."""
    for _ in range(10):
        before_s = boot_time_s()
        wall_s = handle.probe_clock()
        after_s = boot_time_s()
        if after_s - before_s < 1.0:  # else this process was stopped in between
            break
    return Reading(wall_s, (before_s + after_s) / 2, boot_id(), is_synchronised())


def boot_time_s() -> float:
    """Seconds since boot, suspension included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """A name of this boot of this host (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def is_synchronised() -> bool:
    """Whether a time source holds the kernel's clock; False where that cannot be told."""
    timex = (ctypes.c_char * 512)()  # struct timex is 208 bytes; modes = 0 only reads
    if ctypes.CDLL(None, use_errno=True).adjtimex(timex) < 0:
        return False
    status = ctypes.c_int.from_buffer(
        timex, 40
    ).value  # modes 0, offset 8, freq 16, maxerror 24, esterror 32, status 40
    return not status & _STA_UNSYNC
