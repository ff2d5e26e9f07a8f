"""What a store may be doing when it is interrupted, and what must be true of it afterwards, whatever happened."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsworker.errors import HashCollisionError
from fsworker.model import parse_hash
from fsworker.store import layout, trash
from fsworker.store.batch import Batch
from fsworker.store.layout import data_name
from fsworker.store.objects import ObjectStore
from fsworker.store.tempdirs import BaseTempDir, sweep_leftovers

COLLISION = Path(__file__).parents[3] / "shared/corpus/collision"
NEIGHBOUR = b"was there before"
STAMP = "20200101000000-00000000-00000001"


def sha1(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def same_shard(other: bytes) -> bytes:
    """Content that lands in the shard directory of ``other``: its name is what is synced, not the directories."""
    prefix = sha1(other)[:4]
    return next(d for n in range(10**7) if sha1(d := b"neighbour %d" % n)[:4] == prefix)


NEW = b"new content"
COMPANION = same_shard(NEW)
LARGE = b"large" * 250_000
GOOD, ROT = b"good content", b"rotten, alas"


@dataclass(frozen=True)
class Scenario:
    """Something done to a store. ``act`` acknowledges each hash that its caller could rely on from then on."""

    name: str
    act: Callable[[ObjectStore, Callable[[str], None]], Any]
    stored: tuple[bytes, ...] = (NEIGHBOUR,)
    trashed: tuple[bytes, ...] = ()
    rotten: tuple[tuple[bytes, bytes], ...] = ()  # what it should be, and what it is
    may_leave: tuple[bytes, ...] = ()  # what may go from Data to Trash
    durability: str = "full"
    bare: bool = False
    raises: tuple[type[Exception], ...] = ()
    own_calls: bool = (
        False  # some calls are of ``act`` or on files of its own, so that their errors come out as they are
    )
    synced: bool = True
    """Whether what lies there at the start is on disk; else its writer died before it synced."""
    kept: tuple[bytes, ...] = ()
    """What is in ``Error/`` at the end, with a reason."""

    def prepare(self, root: Path) -> None:
        """Lay out the store by hand, so that nothing depends on the code under test."""
        root.mkdir(mode=0o755)
        (root / "FileStruct.json").write_text(
            '{"Version": 1}' if self.bare else json.dumps({"Version": 1, "Id": "i", "Apps": {}, "Grace": "0s"})
        )
        if self.bare:
            return
        for name in ("Data", "Temp", "Error", "Trash", "Lock"):
            (root / name).mkdir()
            os.chmod(root / name, 0o2750 if name in ("Data", "Trash") else 0o700)
        for data in self.stored:
            place(root, data, data)
        for good, bad in self.rotten:
            place(root, good, bad)
        for data in self.trashed:
            directory = root / "Trash" / STAMP
            directory.mkdir(exist_ok=True)
            write_stored(directory / sha1(data), data)

    def open(self, root: Path) -> ObjectStore:
        store = ObjectStore(root, durability=self.durability)
        store.recent_clock = lambda: time.time() + 60  # type: ignore[method-assign] - what was laid out is old
        return store


def place(root: Path, named: bytes, content: bytes) -> None:
    path = root / data_name(parse_hash(sha1(named)))
    for directory in (path.parent.parent, path.parent):
        if not directory.exists():
            directory.mkdir()
            os.chmod(directory, 0o2750)
    write_stored(path, content)


def write_stored(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o444)


# -- what is done ------------------------------------------------------------------------------------------------------


def put(*contents: bytes) -> Callable[[ObjectStore, Callable[[str], None]], Any]:
    def act(store: ObjectStore, acknowledge: Callable[[str], None]) -> None:
        for data in contents:
            acknowledge(store.put(data).hash)

    return act


def put_under_umask(store: ObjectStore, acknowledge: Callable[[str], None]) -> None:
    before = os.umask(0o077)
    try:
        acknowledge(store.put(NEW).hash)
    finally:
        os.umask(before)


def put_stream(store: ObjectStore, acknowledge: Callable[[str], None]) -> None:
    acknowledge(store.put_reader(io.BytesIO(LARGE)).hash)


def batch(store: ObjectStore, acknowledge: Callable[[str], None]) -> None:
    with Batch(store) as puts:
        names = [puts.put(data).hash for data in (NEW, b"second", NEIGHBOUR, NEW)]
    for name in names:
        acknowledge(name)


def tempdir(*contents: bytes) -> Callable[[ObjectStore, Callable[[str], None]], Any]:
    def act(store: ObjectStore, acknowledge: Callable[[str], None]) -> None:
        with BaseTempDir(store) as tmp:
            for number, data in enumerate(contents):
                with open(tmp.path(f"file{number}"), "wb") as target:
                    target.write(data)
            acknowledge(tmp.put_in("file0").hash)

    return act


class Planned(Exception):
    """Raised inside a temp directory's block."""


def tempdir_failing(store: ObjectStore, acknowledge: Callable[[str], None]) -> None:
    with BaseTempDir(store) as tmp:
        tmp.path("kept").write_bytes(b"for a look")
        raise Planned


def to_trash(store: ObjectStore, acknowledge: Callable[[str], None]) -> None:
    trash.open_run(store, STAMP)
    assert trash.move_to_trash(store, parse_hash(sha1(NEIGHBOUR)), STAMP, 2.0**40)


def restore(store: ObjectStore, acknowledge: Callable[[str], None]) -> None:
    assert trash.restore(store, parse_hash(sha1(NEW)))
    acknowledge(sha1(NEW))


def freshen(store: ObjectStore, acknowledge: Callable[[str], None]) -> None:
    assert store.freshen(parse_hash(sha1(NEIGHBOUR)))
    acknowledge(sha1(NEIGHBOUR))


def collide(store: ObjectStore, acknowledge: Callable[[str], None]) -> None:
    store.put_path(COLLISION / "shattered-2.pdf")


def all_scenarios() -> list[Scenario]:
    scenarios = [
        Scenario("new", put(NEW), stored=(NEIGHBOUR, COMPANION)),
        Scenario("new, first in its shard", put(NEW)),
        Scenario("new, first in its shard, strict umask", put_under_umask),
        Scenario("new, database with nothing but its configuration", put(NEW), stored=(), bare=True),
        Scenario("new, from a large stream", put_stream),
        Scenario("duplicate", put(NEIGHBOUR)),
        Scenario("duplicate of what was never synced", put(NEIGHBOUR), synced=False),
        Scenario("duplicate and new", put(NEIGHBOUR, NEW)),
        Scenario("rotten", put(GOOD), rotten=((GOOD, ROT),), kept=(ROT,)),
        Scenario("batch", batch, durability="batch"),
        Scenario("temp directory", tempdir(NEW, b"scratch"), own_calls=True),
        Scenario("temp directory, duplicate", tempdir(NEIGHBOUR), own_calls=True),
        Scenario("temp directory, failing", tempdir_failing, raises=(Planned,), own_calls=True),
        Scenario("move to trash", to_trash, may_leave=(NEIGHBOUR,)),
        Scenario("restore", restore, trashed=(NEW,)),
        Scenario("freshen", freshen),
        Scenario("freshen what was never synced", freshen, synced=False),
    ]
    if COLLISION.exists():
        first = (COLLISION / "shattered-1.pdf").read_bytes()
        second = (COLLISION / "shattered-2.pdf").read_bytes()
        scenarios.append(
            Scenario(
                "collision",
                collide,
                stored=(NEIGHBOUR, first),
                raises=(HashCollisionError,),
                own_calls=True,
                kept=(second,),
            )
        )
    return scenarios


# -- what must be true -------------------------------------------------------------------------------------------------


def check(root: Path, scenario: Scenario, acknowledged: tuple[str, ...]) -> None:
    """Raise ``AssertionError`` unless the store is whole and keeps its word."""
    in_data = {name: path.read_bytes() for name, path in stored_files(root)}
    rot = {sha1(good): bad for good, bad in scenario.rotten}
    for name, content in in_data.items():
        assert sha1(content) == name or content == rot.get(name), f"{name} holds {content[:40]!r}"
    for name in acknowledged:
        assert sha1(in_data.get(name, b"absent")) == name, f"{name} was acknowledged and is gone"
    in_trash = {p.name: p.read_bytes() for p in root.glob("Trash/*/*")}
    for data in scenario.stored:
        if data in scenario.may_leave:
            assert data in (in_data.get(sha1(data)), in_trash.get(sha1(data))), "lost on the way to trash"
        else:
            assert in_data.get(sha1(data)) == data, f"{data[:40]!r} was there before and is gone"
    for data in scenario.trashed:
        assert data in (in_data.get(sha1(data)), in_trash.get(sha1(data))), "lost on the way back from trash"
    quarantined = [p.read_bytes() for p in root.glob("Error/*/*")]
    for good, bad in scenario.rotten:
        assert bad in quarantined or in_data.get(sha1(good)) == bad, "the rotten bytes are lost"


def stored_files(root: Path) -> list[tuple[str, Path]]:
    """Everything in ``Data/``; modes are checked on the way."""
    found = []
    for path in root.glob("Data/*/*/*"):
        status = path.lstat()
        assert stat.S_ISREG(status.st_mode)
        assert stat.S_IMODE(status.st_mode) == layout.FILE_MODE, f"{path} has mode {status.st_mode:o}"
        for directory in (path.parent, path.parent.parent):
            assert stat.S_IMODE(directory.stat().st_mode) in (0o2750, 0o775), f"{directory} has a wrong mode"
        found.append((path.name, path))
    return found


def check_recovery(root: Path, scenario: Scenario) -> None:
    """What was interrupted can be done again, and the sweep clears what the dead process left."""
    store = scenario.open(root)
    acknowledged: list[str] = []
    if scenario.name != "move to trash":
        try:
            scenario.act(store, acknowledged.append)
        except Exception as error:
            assert isinstance(error, scenario.raises), repr(error)
    check(root, scenario, tuple(acknowledged))
    store.prepare()
    sweep_leftovers(store, min_age_s=0)
    store.close()
    assert os.listdir(root / "Temp") == []
    assert not [n for n in [*os.listdir(root), *os.listdir(root / "Lock")] if n.startswith(".")]
    check(root, scenario, tuple(acknowledged))


def fresh_copy(template: Path, target: Path) -> Path:
    """A store to break: modes survive, owners are ours."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(template, target)
    return target
