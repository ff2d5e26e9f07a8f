"""What a power cut may leave: record the system calls of an operation, then replay every legal loss.

The model is harsher than any journalling filesystem. What was written and not synced may have reached the disk or not,
each effect for itself and in any order: the bytes of a file (whole, half, not at all), its mode and age, each entry of a
directory. ``fsync`` of a file settles its bytes, mode and age; of a directory, its entries; ``syncfs`` everything. A rename
is one effect: it happens or it does not.
"""

from __future__ import annotations

import itertools
import os
import random
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from . import tracer

_AT_FDCWD = -100


@dataclass(frozen=True)
class Effect:
    """One change of the filesystem. ``touches`` are the inodes whose sync settles it."""

    touches: frozenset[int]


@dataclass(frozen=True)
class Content(Effect):
    ino: int
    data: bytes


@dataclass(frozen=True)
class Attributes(Effect):
    ino: int
    mode: int
    """Set anew; the age becomes new, too."""


@dataclass(frozen=True)
class Enter(Effect):
    directory: int
    name: str
    ino: int


@dataclass(frozen=True)
class Leave(Effect):
    directory: int
    name: str


@dataclass(frozen=True)
class Move(Effect):
    source: tuple[int, str]
    target: tuple[int, str]
    ino: int


@dataclass(frozen=True)
class Sync:
    """``ino`` is ``None`` for a ``syncfs``."""

    ino: int | None
    path: str

    def settles(self, effect: Effect) -> bool:
        return self.ino is None or self.ino in effect.touches


@dataclass(frozen=True)
class Acknowledged:
    text: str


Event = Effect | Sync | Acknowledged


@dataclass
class Inode:
    mode: int
    data: bytes = b""
    fresh: bool = False
    entries: dict[str, int] = field(default_factory=dict)

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


@dataclass(frozen=True)
class Trace:
    """A recorded operation: the disk before it, and what happened. ``births`` are the inodes that it made."""

    root: int
    before: dict[int, Inode]
    births: dict[int, Inode]
    events: tuple[Event, ...]

    def without(self, index: int) -> Trace:
        """The same with one event left out."""
        return replace(self, events=self.events[:index] + self.events[index + 1 :])

    @property
    def syncs(self) -> list[int]:
        return [index for index, event in enumerate(self.events) if isinstance(event, Sync)]


@dataclass(frozen=True)
class Disk:
    """What a reboot finds."""

    root: int
    inodes: dict[int, Inode]

    def files(self, *path: str) -> Iterator[tuple[tuple[str, ...], Inode]]:
        """The files below a directory, each with its path."""
        number = self.root
        for name in path:
            number = self.inodes[number].entries.get(name, 0)
            if number not in self.inodes:
                return
        yield from self._below(number, path)

    def _below(self, number: int, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Inode]]:
        inode = self.inodes[number]
        if not inode.is_directory:
            yield path, inode
        for name, child in inode.entries.items():
            yield from self._below(child, (*path, name))

    def mode(self, *path: str) -> int:
        number = self.root
        for name in path:
            number = self.inodes[number].entries[name]
        return stat.S_IMODE(self.inodes[number].mode)


# -- recording ---------------------------------------------------------------------------------------------------------


def snapshot(root: Path) -> dict[int, Inode]:
    """The tree as it is, by inode."""
    inodes: dict[int, Inode] = {}
    for path in [root, *root.rglob("*")]:
        status = path.lstat()
        inode = inodes.setdefault(status.st_ino, Inode(status.st_mode))
        if path.is_dir():
            inode.entries = {child.name: child.lstat().st_ino for child in path.iterdir()}
        else:
            inode.data = path.read_bytes()
    return inodes


class Recorder:
    """A watcher for :func:`tracer.run` that turns calls into events.

    The kernel gives an inode number again when its file is gone, so what is born gets a number of our own.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.births: dict[int, Inode] = {}
        self.events: list[Event] = []
        self._numbers: dict[int, int] = {}

    def __call__(self, call: tracer.Call, result: int) -> None:
        handler = getattr(self, f"_{call.name}", None)
        if handler is not None and result >= 0:
            handler(call, result)

    def _openat(self, call: tracer.Call, result: int) -> None:
        flags = call.args[2]
        status = os.stat(f"/proc/{call.pid}/fd/{result}")
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            self._birth(status)
        elif flags & os.O_CREAT and status.st_size == 0:  # ours are always new
            self._birth(status)
            self._enter(self._path(call, 0, 1))

    def _mkdirat(self, call: tracer.Call, result: int) -> None:
        path = self._path(call, 0, 1)
        self._birth(path.lstat())
        self._enter(path)

    def _mkdir(self, call: tracer.Call, result: int) -> None:
        raise NotImplementedError("the store makes directories relative to a descriptor")

    def _linkat(self, call: tracer.Call, result: int) -> None:
        self._enter(self._path(call, 2, 3))

    def _unlinkat(self, call: tracer.Call, result: int) -> None:
        parent, name = self._place(self._path(call, 0, 1))
        self.events.append(Leave(frozenset({parent}), parent, name))

    def _renameat(self, call: tracer.Call, result: int) -> None:
        target = self._path(call, 2, 3)
        ends = self._place(self._path(call, 0, 1)), self._place(target)
        self.events.append(Move(frozenset({ends[0][0], ends[1][0]}), *ends, self._number(target.lstat())))

    _renameat2 = _renameat

    def _write(self, call: tracer.Call, result: int) -> None:
        path = Path(f"/proc/{call.pid}/fd/{call.args[0]}")
        if os.readlink(path).startswith("pipe:"):
            self.events.append(Acknowledged(self._memory(call, call.args[1], result).decode().strip()))
        else:
            number = self._number(path.stat())
            self.events.append(Content(frozenset({number}), number, path.read_bytes()))

    def _fchmod(self, call: tracer.Call, result: int) -> None:
        status = os.stat(f"/proc/{call.pid}/fd/{call.args[0]}")
        number = self._number(status)
        self.events.append(Attributes(frozenset({number}), number, status.st_mode))

    def _fsync(self, call: tracer.Call, result: int) -> None:
        path = f"/proc/{call.pid}/fd/{call.args[0]}"
        self.events.append(Sync(self._number(os.stat(path)), os.readlink(path).removeprefix(f"{self.root}/")))

    def _syncfs(self, call: tracer.Call, result: int) -> None:
        self.events.append(Sync(None, "everything"))

    def _birth(self, status: os.stat_result) -> None:
        number = -1 - len(self.births)
        self._numbers[status.st_ino] = number
        self.births[number] = Inode(status.st_mode, fresh=True)

    def _enter(self, path: Path) -> None:
        parent, name = self._place(path)
        self.events.append(Enter(frozenset({parent}), parent, name, self._number(path.lstat())))

    def _number(self, status: os.stat_result) -> int:
        return self._numbers.get(status.st_ino, status.st_ino)

    def _place(self, path: Path) -> tuple[int, str]:
        return self._number(path.parent.stat()), path.name

    def _path(self, call: tracer.Call, directory: int, name: int) -> Path:
        fd = call.args[directory] & 0xFFFFFFFF
        base = "cwd" if fd - (1 << 32) == _AT_FDCWD else f"fd/{fd}"
        return Path(os.readlink(f"/proc/{call.pid}/{base}"), self._string(call, name))

    def _string(self, call: tracer.Call, index: int) -> str:
        return self._memory(call, call.args[index], 4096).split(b"\0")[0].decode()

    def _memory(self, call: tracer.Call, address: int, size: int) -> bytes:
        fd = os.open(f"/proc/{call.pid}/mem", os.O_RDONLY)
        try:
            # not across a page's end, behind which there may be nothing
            data = os.pread(fd, min(size, 4096 - address % 4096), address)
            return (
                data
                if len(data) == size or b"\0" in data
                else data + os.pread(fd, size - len(data), address + len(data))
            )
        finally:
            os.close(fd)


def written_before(inodes: dict[int, Inode], directory: int) -> tuple[dict[int, Inode], list[Event]]:
    """Make what is below ``directory`` an unsynced past: the disk without it, and the effects that made it."""
    left = {number: replace(inode, entries=dict(inode.entries)) for number, inode in inodes.items()}
    events: list[Event] = []

    def forget(number: int) -> None:
        for name, child in inodes[number].entries.items():
            events.append(Attributes(frozenset({child}), child, inodes[child].mode))
            events.append(Content(frozenset({child}), child, inodes[child].data))
            events.append(Enter(frozenset({number}), number, name, child))
            forget(child)
            left[child].data = b""
        left[number].entries = {}

    forget(directory)
    return left, events


# -- replaying ---------------------------------------------------------------------------------------------------------


def crashes(trace: Trace, at_a_point: int, seed: int = 0) -> Iterator[tuple[Disk, tuple[str, ...], bool]]:
    """Every disk that a power cut may leave at any moment, what had been acknowledged by then, and if it was the end.

    Where there are more than ``at_a_point`` at one moment: those with at most one effect lost, or at most one kept, and
    a sample of the others.
    """
    chance = random.Random(seed)
    for moment in range(len(trace.events) + 1):
        past = trace.events[:moment]
        acknowledged = tuple(event.text for event in past if isinstance(event, Acknowledged))
        settled, open_ = [], []
        for index, event in enumerate(past):
            if isinstance(event, Effect):
                is_settled = any(isinstance(later, Sync) and later.settles(event) for later in past[index:])
                (settled if is_settled else open_).append(index)
        for chosen in _choices(past, open_, at_a_point, chance):
            yield _replay(trace, past, set(settled), chosen), acknowledged, moment == len(trace.events)


def _choices(
    past: tuple[Event, ...], open_: list[int], at_a_point: int, chance: random.Random
) -> Iterator[dict[int, float]]:
    """Which of the open effects happened, and how much of them: 1 for all, 0.5 for half of the bytes."""
    options = [(0.0, 0.5, 1.0) if isinstance(past[index], Content) else (0.0, 1.0) for index in open_]
    total = 1
    for option in options:
        total *= len(option)
    if total <= at_a_point:
        picks: Iterator[tuple[float, ...]] = itertools.product(*options)
    else:
        picks = _sample(options, at_a_point // 2, chance)
    for pick in picks:
        yield dict(zip(open_, pick, strict=True))


def _sample(options: list[tuple[float, ...]], count: int, chance: random.Random) -> Iterator[tuple[float, ...]]:
    size = len(options)
    for rest in (0.0, 1.0):
        yield (rest,) * size
        for index, option in enumerate(options):
            for value in option:
                yield (rest,) * index + (value,) + (rest,) * (size - index - 1)
    for _ in range(count):
        yield tuple(chance.choice(option) for option in options)


def _replay(trace: Trace, past: tuple[Event, ...], settled: set[int], chosen: dict[int, float]) -> Disk:
    inodes = {n: replace(inode, entries=dict(inode.entries)) for n, inode in (trace.before | trace.births).items()}
    for index, event in enumerate(past):
        share = 1.0 if index in settled else chosen.get(index, 0.0)
        if share and isinstance(event, Effect):
            _apply(inodes, event, share)
    return Disk(trace.root, inodes)


def _apply(inodes: dict[int, Inode], effect: Effect, share: float) -> None:
    match effect:
        case Content(ino=ino, data=data):
            inodes[ino].data = data[: int(len(data) * share)]
        case Attributes(ino=ino, mode=mode):
            inodes[ino].mode, inodes[ino].fresh = mode, True
        case Enter(directory=directory, name=name, ino=ino):
            inodes[directory].entries[name] = ino
        case Leave(directory=directory, name=name):
            inodes[directory].entries.pop(name, None)
        case Move(source=(directory, name), target=(target, new), ino=ino):
            if inodes[directory].entries.get(name) == ino:
                del inodes[directory].entries[name]
            inodes[target].entries[new] = ino
