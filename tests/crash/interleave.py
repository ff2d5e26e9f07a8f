"""Run several operations at once, one shared-state call at a time, in every order within a bound.

Each operation is a thread that stops before each call that others could notice: opening, asking after, linking, renaming
or freshening a stored file, taking and releasing a lock. A scheduler lets one go on. A schedule is a list of choices; the
explorer runs one, changes its last choice that has an alternative, and so on until none is left (CHESS, Musuvathi and
Qadeer, 2007). Going on with the operation that ran last is free, a switch away from it costs one *preemption*, of which
there is a bound; an operation may also be killed, at any call.
"""

from __future__ import annotations

import fcntl
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

Operation = Callable[[Callable[[], None]], None]
"""Does its work, and calls its argument when it has given its word."""


class Killed(BaseException):
    """Ends an operation that is killed. What it does on its way out does not happen, but for closing descriptors."""


@dataclass
class Actor:
    """An operation on its way. ``wants`` describes the call that it stands before; ``None``: it has ended."""

    name: str
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    wants: tuple[str, str, int] | None = ("start", "", 0)
    killed: bool = False
    error: BaseException | None = None


@dataclass(frozen=True)
class Choice:
    """Let an actor make its next call, or kill it before."""

    actor: int
    kill: bool = False


class Run:
    """One schedule. ``pick`` is asked at each step which of so many choices to take; ``taken`` is what it said."""

    def __init__(
        self,
        operations: dict[str, Operation],
        check: Callable[[list[str]], None],
        pick: Callable[[int, int], int],
        preemptions: int,
        kills: int,
    ) -> None:
        self.actors = [Actor(name) for name in operations]
        self.operations = list(operations.values())
        self.check = check
        self.pick = pick
        self.preemptions, self.kills = preemptions, kills
        self.taken: list[tuple[int, int]] = []  # which choice, of how many
        self.log: list[str] = []
        self.acknowledged: list[str] = []
        self.ages: dict[int, int] = {}
        self._locks: dict[str, dict[int, int]] = {}
        self._fds: dict[int, str] = {}
        self._back = threading.Semaphore(0)
        self._here = threading.local()

    def run(self) -> None:
        threads = [threading.Thread(target=self._act, args=(n,), daemon=True) for n in range(len(self.actors))]
        with self._patched():
            for thread in threads:
                thread.start()
            self._schedule()
            for thread in threads:
                thread.join()
        for actor in self.actors:
            if actor.error is not None:
                raise AssertionError(f"{actor.name} failed: {actor.error!r}\n" + self.story()) from actor.error

    def story(self) -> str:
        """The schedule in words."""
        return "\n".join(self.log)

    def _act(self, number: int) -> None:
        actor = self.actors[number]
        self._here.actor = number
        actor.go.acquire()
        try:
            if not actor.killed:
                self.operations[number](lambda: self.acknowledged.append(actor.name))
        except Killed:
            pass
        except BaseException as error:
            actor.error = error
        actor.wants = None
        for holders in self._locks.values():
            holders.pop(number, None)
        self._back.release()

    def _schedule(self) -> None:
        current = -1
        while any(actor.wants for actor in self.actors):
            choices = self._choices(current)
            assert choices, "deadlock\n" + self.story()
            index = self.pick(len(self.taken), len(choices))
            self.taken.append((index, len(choices)))
            choice = choices[index]
            actor = self.actors[choice.actor]
            if choice.kill:
                self.kills -= 1
                actor.killed = True
            elif current not in (-1, choice.actor) and self._enabled(current):
                self.preemptions -= 1
            current = choice.actor
            self.log.append(f"{'kill ' if choice.kill else ''}{actor.name}: {actor.wants}")
            actor.go.release()
            self._back.acquire()
            try:
                self.check(self.acknowledged)
            except AssertionError as error:
                self._abandon()
                raise AssertionError(f"{error}, after:\n{self.story()}") from error

    def _choices(self, current: int) -> list[Choice]:
        able = [n for n in range(len(self.actors)) if self._enabled(n)]
        if current in able:
            others = [n for n in able if n != current] if self.preemptions > 0 else []
            able = [current, *others]
        choices = [Choice(n) for n in able]
        if self.kills > 0 and current >= 0 and self.actors[current].wants:
            choices.append(Choice(current, kill=True))
        return choices

    def _enabled(self, number: int) -> bool:
        wants = self.actors[number].wants
        if wants is None:
            return False
        kind, path, mode = wants
        if kind != "flock":
            return True
        others = {n: m for n, m in self._locks.get(path, {}).items() if n != number}
        return not others or (mode == fcntl.LOCK_SH and set(others.values()) == {fcntl.LOCK_SH})

    def _abandon(self) -> None:
        for actor in self.actors:
            actor.killed = True
        for actor in self.actors:
            while actor.wants:
                actor.go.release()
                self._back.acquire()

    # -- the calls ---------------------------------------------------------------------------------------------------

    def _stop(self, kind: str, path: str, mode: int = 0) -> None:
        """Stand before a call until the scheduler says go. Threads that are no actors pass."""
        number = getattr(self._here, "actor", None)
        if number is None:
            return
        actor = self.actors[number]
        if actor.killed:
            raise Killed
        actor.wants = (kind, path, mode)
        self._back.release()
        actor.go.acquire()
        if actor.killed:
            raise Killed

    @contextmanager
    def _patched(self) -> Iterator[None]:
        real = SimpleNamespace(
            **{
                name: getattr(os, name)
                for name in ("open", "stat", "link", "rename", "fchmod", "unlink", "close", "fstat")
            },
            flock=fcntl.flock,
        )

        def open_(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if str(path).startswith("Data/") and str(path).count("/") == 3:
                self._stop("open", path)
            fd: int = real.open(path, flags, *args, **kwargs)
            if str(path).startswith("Lock/"):
                self._fds[fd] = path
            return fd

        def close(fd: int) -> None:
            self._release(fd)
            self._fds.pop(fd, None)
            real.close(fd)

        def stat_(path: Any, **kwargs: Any) -> Any:
            if str(path).startswith(("Data/", "Trash/")):
                self._stop("stat", path)
            return self._aged(real.stat(path, **kwargs))

        def fstat(fd: int) -> Any:
            return self._aged(real.fstat(fd))

        def link(source: Any, target: Any, **kwargs: Any) -> None:
            self._stop("link", target)
            real.link(source, target, **kwargs)
            status = real.stat(target, dir_fd=kwargs["dst_dir_fd"], follow_symlinks=False)
            self.ages[status.st_ino] = 2

        def rename(source: Any, target: Any, **kwargs: Any) -> None:
            self._stop("rename", f"{source} → {target}")
            real.rename(source, target, **kwargs)
            status = real.stat(target, dir_fd=kwargs["dst_dir_fd"], follow_symlinks=False)
            self.ages[status.st_ino] = 2  # as on ext4 and xfs: what was moved to trash looks young, too

        def unlink(path: Any, **kwargs: Any) -> None:
            self._stop("unlink", path)
            real.unlink(path, **kwargs)

        def fchmod(fd: int, mode: int) -> None:
            self._stop("fchmod", "")
            real.fchmod(fd, mode)
            self.ages[real.fstat(fd).st_ino] = 2

        def flock(fd: int, operation: int) -> None:
            number = getattr(self._here, "actor", None)
            if number is None or fd not in self._fds:
                real.flock(fd, operation)
            elif operation == fcntl.LOCK_UN:
                if not self.actors[number].killed:
                    self._stop("unlock", self._fds[fd])
                real.flock(fd, operation)
                self._release(fd)
            else:
                self._stop("flock", self._fds[fd], operation)
                real.flock(fd, operation | fcntl.LOCK_NB)  # the scheduler knows that it is free
                self._locks.setdefault(self._fds[fd], {})[number] = operation

        patches = {"open": open_, "close": close, "stat": stat_, "fstat": fstat, "link": link}
        patches |= {"rename": rename, "fchmod": fchmod, "unlink": unlink}
        for name, patch in patches.items():
            setattr(os, name, patch)
        fcntl.flock = flock
        try:
            yield
        finally:
            for name in patches:
                setattr(os, name, getattr(real, name))
            fcntl.flock = real.flock

    def _release(self, fd: int) -> None:
        number = getattr(self._here, "actor", None)
        if number is not None and fd in self._fds:
            self._locks.get(self._fds[fd], {}).pop(number, None)

    def _aged(self, status: os.stat_result) -> Any:
        """The age in whole steps: 0 from before, 2 freshened meanwhile; the cutoff is 1."""
        fields = {name: getattr(status, name) for name in dir(status) if name.startswith("st_")}
        return SimpleNamespace(**(fields | {"st_ctime": float(self.ages.get(status.st_ino, 0))}))


@dataclass
class Explored:
    """How many schedules were run, and whether that was all of them within the bounds."""

    schedules: int
    complete: bool


def explore(
    prepare: Callable[[], Path],
    operations: Callable[[Path], dict[str, Operation]],
    check: Callable[[Path, list[str]], None],
    finish: Callable[[Path, list[str]], None],
    *,
    preemptions: int,
    kills: int,
    at_most: int,
    seed: int | None = None,
) -> Explored:
    """Run schedules until all within the bounds are done, or ``at_most``; with a seed, that many at random.

    ``check`` runs after every single call, ``finish`` after the last.
    """
    prefix: list[int] = []
    chance = None if seed is None else random.Random(seed)

    def pick(step: int, choices: int) -> int:
        if chance is not None:
            return chance.randrange(choices)
        return prefix[step] if step < len(prefix) else 0

    for schedules in range(1, at_most + 1):
        root = prepare()
        run = Run(operations(root), lambda acks, root=root: check(root, acks), pick, preemptions, kills)
        run.run()
        try:
            finish(root, run.acknowledged)
        except AssertionError as error:
            raise AssertionError(f"{error}, after:\n{run.story()}") from error
        taken = run.taken
        while taken and taken[-1][0] + 1 >= taken[-1][1]:
            taken.pop()
        if not taken and chance is None:
            return Explored(schedules, complete=True)
        prefix = [index for index, _ in taken[:-1]] + ([taken[-1][0] + 1] if taken else [])
    return Explored(at_most, complete=False)
