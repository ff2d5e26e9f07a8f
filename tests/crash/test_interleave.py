"""Ingests, claims and collections at once, any of which may die: nothing lost, nothing absent for a moment."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from fsworker.model import parse_hash
from fsworker.store import heal, objects, trash
from fsworker.store.objects import ObjectStore

from .interleave import Explored, Operation, explore
from .scenarios import NEIGHBOUR, Scenario, sha1

TORTURE = os.environ.get("FSWORKER_TORTURE") == "1"
NAME = parse_hash(sha1(NEIGHBOUR))
STAMPS = ("20200101000000-00000000-00000001", "20210101000000-00000000-00000002")
CUTOFF = 1.0  # what has age 0 goes, what was touched since (age 2) stays
GRACE_S = 8.0  # what has age 2 now, at 2, is younger than an eighth of it
PRESENT = Scenario("", lambda store, acknowledge: None)
ROTTEN = Scenario("", lambda store, acknowledge: None, stored=(), rotten=((NEIGHBOUR, b"rot"),))


@pytest.fixture
def base() -> Iterator[Path]:
    directory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=directory, prefix="fsworker-test-") as name:
        yield Path(name)


def ingest(store: ObjectStore) -> Operation:
    def act(acknowledge) -> None:  # type: ignore[no-untyped-def]
        store.put(NEIGHBOUR)
        acknowledge()

    return act


def claim(store: ObjectStore) -> Operation:
    def act(acknowledge) -> None:  # type: ignore[no-untyped-def]
        if trash.restore(store, NAME):
            acknowledge()

    return act


def collect(store: ObjectStore, stamp: str) -> Operation:
    return lambda acknowledge: trash.move_to_trash(store, NAME, stamp, CUTOFF) and None


WORDS = {
    "ingest": ingest,
    "claim": claim,
    "collect": lambda store: collect(store, STAMPS[0]),
    "collect again": lambda store: collect(store, STAMPS[1]),
}


def run(
    base: Path, words: list[str], scenario: Scenario = PRESENT, grace_s: float = GRACE_S, **bounds: int
) -> Explored:
    template = base / "template"
    if not template.exists():
        scenario.prepare(template)
        with ObjectStore(template) as store:
            for stamp in STAMPS:
                trash.open_run(store, stamp)
            store.put(b"makes the lock file of another shard")
        (template / "Lock" / NAME[:2]).touch()
    stores: list[ObjectStore] = []

    def prepare() -> Path:
        while stores:
            stores.pop().close()
        shutil.rmtree(base / "store", ignore_errors=True)
        shutil.copytree(template, base / "store")
        return base / "store"

    def operations(root: Path) -> dict[str, Operation]:
        made = {}
        for number, word in enumerate(words):
            store = ObjectStore(root, durability="none")
            store.config = replace(store.config, grace_s=grace_s)
            store.prepare()
            store.recent_clock = lambda: 2.0  # type: ignore[method-assign] - in the steps of the scheduler's ages
            stores.append(store)
            made[f"{word} {number}"] = WORDS[word](store)
        return made

    def check(root: Path, acknowledged: list[str]) -> None:
        if acknowledged:
            data = read(root / f"Data/{NAME[:2]}/{NAME[2:4]}/{NAME}")
            assert data == NEIGHBOUR, f"{acknowledged} had its word, and there is {data!r}"

    def finish(root: Path, acknowledged: list[str]) -> None:
        check(root, acknowledged)
        copies = [read(path) for path in root.rglob(NAME)]
        assert (scenario.rotten and copies) or NEIGHBOUR in copies, "it is gone from Data and Trash"

    explored = explore(prepare, operations, check, finish, **bounds)
    print(f"{' + '.join(words)} {bounds}: {explored}")  # noqa: T201 - for pytest -s
    return explored


def read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


@pytest.mark.parametrize(
    "words", [["ingest", "collect"], ["claim", "collect"], ["ingest", "ingest"], ["ingest", "claim"]]
)
@pytest.mark.parametrize("grace_s", [0.0, GRACE_S])
def test_two_at_once_in_every_order_with_every_death(base: Path, words: list[str], grace_s: float) -> None:
    explored = run(base, words, grace_s=grace_s, preemptions=100 if TORTURE else 1, kills=1, at_most=100_000)
    assert explored.complete
    assert explored.schedules > 30


@pytest.mark.parametrize(
    "words",
    [
        ["ingest", "ingest", "collect", "collect again"],
        ["ingest", "claim", "collect", "collect again"],
        ["claim", "claim", "collect", "collect again"],
    ],
)
def test_two_ingests_and_two_collections(base: Path, words: list[str]) -> None:
    run(base, words, preemptions=20, kills=1, at_most=8000 if TORTURE else 150, seed=len(words[1]))


def test_healing_at_once(base: Path) -> None:
    words = ["ingest", "ingest", "collect"]
    run(base, words, ROTTEN, preemptions=20, kills=1, at_most=4000 if TORTURE else 100, seed=1)


# -- the check can fail ------------------------------------------------------------------------------------------------


@contextmanager
def no_lock(*args: object, **kwargs: object) -> Iterator[None]:
    yield


def test_without_the_lock_a_loss_is_found(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (objects, heal, trash):
        monkeypatch.setattr(module, "shard_lock", no_lock)
    with pytest.raises(AssertionError, match="had its word"):
        run(base, ["ingest", "collect"], preemptions=2, kills=0, at_most=5000)


def test_without_freshening_a_loss_is_found(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ObjectStore, "_touch", lambda self, name, fd: objects.Touch.FRESH)
    with pytest.raises(AssertionError, match="had its word"):
        run(base, ["ingest", "collect"], preemptions=2, kills=0, at_most=5000)


def test_without_looking_again_under_the_lock_a_loss_is_found(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ObjectStore, "_is_current", lambda self, name, status: True)
    with pytest.raises(AssertionError, match="had its word"):
        run(base, ["ingest", "collect"], preemptions=2, kills=0, at_most=5000)
