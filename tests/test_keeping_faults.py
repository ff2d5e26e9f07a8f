"""Planted faults: each breaks one rule of the protocol, and some promise must notice it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from keeping import VirtualKV, World, world
from keeping_scenarios import SCENARIOS
from virtual_time import virtual_clock

from fsworker.collection import basis, purge, turn
from fsworker.collection import collector as collecting
from fsworker.collection.plan import plan_collection
from fsworker.errors import FSWorkerError
from fsworker.keepsets import form as keepsets
from fsworker.keepsets import publish
from fsworker.keepsets import reader as reader_module
from fsworker.store import clock, hold, objects, trash, trashlist
from fsworker.store.objects import ObjectStore, Touch

Fault = Callable[[], AbstractContextManager[Any]]

FAULTS: dict[str, tuple[str, Fault]] = {}
"""What is broken: the promise that must notice, and how it is broken."""


def fault(name: str, noticed_by: Callable[..., object] | str) -> Callable[[Fault], Fault]:
    def add(make: Fault) -> Fault:
        FAULTS[name] = (str(noticed_by), make)
        return make

    return add


def breaks(name: str, noticed_by: str, target: Any, attribute: str, broken: Any) -> None:
    FAULTS[name] = (noticed_by, lambda: mock.patch.object(target, attribute, broken))


@contextmanager
def _nothing(*args: object, **kwargs: object) -> Iterator[bool]:
    yield True


def _both(*faults: Fault) -> Fault:
    """Where two rules guard against the same thing, both have to be broken."""

    @contextmanager
    def together() -> Iterator[None]:
        with ExitStack() as stack:
            for each in faults:
                stack.enter_context(each())
            yield

    return together


def _deaf() -> AbstractContextManager[Any]:
    """Not comparing the keep-sets in hand with the registry."""
    return mock.patch.object(collecting.Collector, "_refuse_changed_registry", return_value=None)


def _without(*reasons: str) -> Fault:
    """A judge that passes over these refusals."""
    of_keep_set = basis._of_keep_set

    def lenient(found: Any, *args: Any) -> list[Any]:
        return [refusal for refusal in of_keep_set(found, *args) if refusal.reason not in reasons]

    return lambda: mock.patch.object(basis, "_of_keep_set", lenient)


# -- age and freshening

breaks("no freshen", "claimed_file_survives", ObjectStore, "_touch", lambda self, name, fd: Touch.FRESH)
breaks(
    "a duplicate is not freshened", "duplicate_upload_survives", ObjectStore, "try_duplicate",
    lambda self, candidate, sync: True if self.status(candidate.hash) else None,
)  # fmt: skip
breaks("no debounce in the cutoff", "committed_at_the_end_of_the_grace_survives", basis, "DEBOUNCE", 0.0)


@fault("a debounce of the whole grace", "claimed_late_survives")
def _() -> AbstractContextManager[Any]:
    touch = ObjectStore._touch

    def lazy(self: ObjectStore, name: Any, fd: int) -> Touch:
        if self.recent_clock() - objects.os.fstat(fd).st_ctime < self.grace_s:
            return Touch.FRESH
        return touch(self, name, fd)

    return mock.patch.object(ObjectStore, "_touch", lazy)


@fault("unsynced freshen", "freshened_is_on_disk")
def _() -> AbstractContextManager[Any]:
    freshen = ObjectStore.freshen
    return mock.patch.object(ObjectStore, "freshen", lambda self, name: freshen(self, name, sync=False))


@fault("age by mtime", "old_looking_young_file_survives")
def _() -> AbstractContextManager[Any]:
    status = ObjectStore.status

    def by_mtime(self: ObjectStore, name: Any) -> Any:
        found = status(self, name)
        return found and os.stat_result(tuple(found), {"st_ctime": found.st_mtime, "st_mtime": found.st_mtime})

    return mock.patch.object(ObjectStore, "status", by_mtime)


# -- the move


def _move_anyway(store: Any, name: Any, stamp: str, cutoff_s: float) -> bool:
    os.rename(store.location(name), store.root / "Trash" / stamp / name)
    return True


breaks("no second look at the age", "claim_between_plan_and_move_survives", collecting, "move_to_trash", _move_anyway)


@fault("no shard lock", "claim_in_the_middle_of_the_move_is_not_told_a_lie")
def _() -> AbstractContextManager[Any]:
    return mock.patch.multiple("fsworker.store.trash", shard_lock=_nothing)


breaks("no lock between collections", "two_at_once_are_refused", turn, "store_lock", _nothing)
breaks("holds are ignored by collections", "hold_stops_a_collection", turn, "current_hold", lambda store: None)
breaks("holds are ignored by purges", "hold_stops_a_purge", collecting.Collector, "refuse_hold", lambda self: None)
breaks("a hold never began", "hold_stops_a_collection", hold, "write_note", lambda *args, **kwargs: None)
FAULTS["new applications are not heard"] = ("an_application_registered_meanwhile_is_heard", _deaf)


@fault("moves while it plans", "nothing_moves_before_everything_is_checked")
def _() -> AbstractContextManager[Any]:
    plan_shard = collecting.Collector.plan_shard

    def at_once(self: Any, found: Any, shard: int, index: Any) -> Any:
        plan = plan_shard(self, found, shard, index)
        self.act(plan, "20260101000000-00000000-00000000", found.cutoff_s)
        return plan

    return mock.patch.object(collecting.Collector, "plan_shard", at_once)


# -- the cutoff


def _cutoff(change: Callable[[list[float], Any, float], float]) -> Fault:
    def cutoff_of(manifests: Iterable[Any], clocks: Any, grace_s: float) -> float:
        return change([manifest.snapshot_time for manifest in manifests], clocks, grace_s)

    return lambda: mock.patch.object(basis, "cutoff_of", cutoff_of)


FAULTS["max instead of min"] = (
    "referenced_after_the_older_snapshot_survives",
    _cutoff(lambda times, clocks, grace: max(times) - grace * 9 / 8),
)
FAULTS["cutoff from now"] = (
    "referenced_after_the_older_snapshot_survives",
    _cutoff(lambda times, clocks, grace: clocks.now_s - grace * 9 / 8),
)
FAULTS["no grace"] = ("young_file_survives", _cutoff(lambda times, clocks, grace: min(times)))
FAULTS["skew is not subtracted"] = (
    "redis_that_is_ahead_takes_nothing",
    _cutoff(lambda times, clocks, grace: min(times) - grace * 9 / 8),
)
breaks(
    "the floor is not looked at", "forward_step_takes_nothing", collecting, "plan_collection",
    lambda files, keep, cutoff_s, floor_s: plan_collection(files, keep, cutoff_s),
)  # fmt: skip


@fault("a step is not seen", "forward_step_takes_nothing")
def _() -> AbstractContextManager[Any]:
    return mock.patch.object(clock, "_STEP_S", 1e9)


@fault("the floor moves only for steps back", "forward_step_takes_nothing")
def _() -> AbstractContextManager[Any]:
    advance = clock.advance

    def backwards_only(record: Any, now: Any) -> Any:
        moved = advance(record, now)
        forward = record is not None and now.wall_s - record.wall_s > now.boot_s - record.boot_s
        return replace(moved, floor_s=record.floor_s) if forward else moved

    return mock.patch.object(clock, "advance", backwards_only)


# -- refusals

FAULTS["a missing application is read as empty"] = (
    "silent_application_keeps_everything",
    _both(_deaf, _without("no_keep_set")),
)
FAULTS["a broken manifest is read as empty"] = ("broken_manifest_keeps_everything", _both(_deaf, _without("broken")))
FAULTS["stale keep-sets are accepted"] = ("stale_keep_set_keeps_everything", _without("stale"))
FAULTS["keep-sets of the future are accepted"] = ("future_keep_set_keeps_everything", _without("future"))
FAULTS["old keep-sets are accepted again"] = ("old_redis_dump_keeps_everything", _without("going_back"))
FAULTS["keep-sets of other stores are accepted"] = ("another_store_keeps_everything", _without("other_store"))
FAULTS["half keep-sets are accepted"] = ("half_a_keep_set_keeps_everything", _without("shrunk"))
FAULTS["unannounced emptiness is accepted"] = ("unannounced_emptiness_keeps_everything", _without("empty"))
breaks(
    "what was accepted is forgotten", "half_a_keep_set_keeps_everything", collecting, "read_accepted", lambda store: {}
)
breaks("any plan is accepted", "too_large_a_plan_keeps_everything", collecting, "judge_plan", lambda *args: None)


# -- reading keep-sets


def _parts(check: Callable[[Any, int, Iterable[Any]], Iterator[bytes]]) -> Fault:
    return lambda: mock.patch.object(reader_module, "check_parts", check)


def _trusting(manifest: Any, shard: int, parts: Iterable[Any]) -> Iterator[bytes]:
    yield from (part[: len(part) // 20 * 20] for part in parts if part is not None)


def _no_digest(manifest: Any, shard: int, parts: Iterable[Any]) -> Iterator[bytes]:
    try:
        yield from keepsets.check_parts(manifest, shard, parts)
    except keepsets.BrokenKeepSetError as error:
        if "digest" not in str(error):
            raise


def _any_shard(manifest: Any, shard: int, parts: Iterable[Any]) -> Iterator[bytes]:
    yield from parts


def _first_part(manifest: Any, shard: int, parts: Iterable[Any]) -> Iterator[bytes]:
    for part in parts:
        yield part
        return


FAULTS["missing parts are read as empty"] = ("flushed_redis_keeps_everything", _parts(_trusting))
FAULTS["lengths are not checked"] = ("truncated_part_keeps_everything", _parts(_trusting))
FAULTS["digests are not checked"] = ("bit_rot_in_redis_keeps_everything", _parts(_no_digest))
FAULTS["swapped shards are accepted"] = ("swapped_shards_keep_everything", _parts(_any_shard))
FAULTS["only the first part is read"] = ("large_shards_count_to_the_end", _parts(_first_part))


@fault("only the first application counts", "every_application_counts")
def _() -> AbstractContextManager[Any]:
    judge = basis.judge_keep_sets

    def first_only(*args: Any) -> Any:
        found = judge(*args)
        return replace(found, manifests=found.manifests[:1])

    return _both(_deaf, lambda: mock.patch.object(collecting, "judge_keep_sets", first_only))()


breaks(
    "nothing is kept", "exactly_the_garbage_goes", reader_module, "mark", lambda names, parts: (list(parts), set())[1]
)
breaks(
    "everything is kept",
    "exactly_the_garbage_goes",
    reader_module,
    "mark",
    lambda names, parts: (list(parts), names)[1],
)


# -- publishing


@fault("the snapshot is noted after reading", "what_is_committed_while_rows_are_read_survives")
def _() -> AbstractContextManager[Any]:
    write = publish._Writing.write

    def late(self: Any, hashes: Any, store_id: str, snapshot_s: float, *, allow_empty: bool) -> Any:
        read = list(hashes)
        return write(self, read, store_id, self._kv.time_s(), allow_empty=allow_empty)

    return mock.patch.object(publish._Writing, "write", late)


breaks(
    "lists need no time",
    "a_list_that_was_read_earlier_is_refused",
    publish,
    "_refuse_what_was_read",
    lambda hashes: None,
)


@fault("an empty set needs no announcement", "empty_publish_is_refused")
def _() -> AbstractContextManager[Any]:
    write = publish._Writing.write
    return mock.patch.object(
        publish._Writing, "write", lambda self, *args, allow_empty: write(self, *args, allow_empty=True)
    )


# -- trash


@fault("restored without a look", "rot_is_not_restored")
def _() -> AbstractContextManager[Any]:
    def blindly(store: Any, name: Any) -> bool:
        for relative in trash.trashed_names(store, name):
            os.rename(store.root / relative, store.location(name))
        return True

    return mock.patch.object(trash, "restore", blindly)


breaks(
    "claims do not look into trash",
    "claim_of_a_trashed_file_brings_it_back",
    trash,
    "trashed_names",
    lambda *args: iter(()),
)
breaks("a purge does not read keep-sets", "wanted_trash_is_not_purged", purge, "_kept", lambda *args: set())
breaks(
    "a purge knows no retention",
    "young_trash_is_not_purged",
    purge,
    "purge_before",
    lambda found, now, keep: found.cutoff_s,
)
breaks(
    "a purge waits for nobody", "trash_is_not_purged_before_everybody_spoke", purge, "purge_before",
    lambda found, now, keep: now - keep,
)  # fmt: skip


@fault("collections do not restore", "kept_again_comes_back")
def _() -> AbstractContextManager[Any]:
    plan_shard = collecting.Collector.plan_shard
    return mock.patch.object(collecting.Collector, "plan_shard", lambda *args: replace(plan_shard(*args), restore=()))


@fault("a purge goes by the run's stamp", "trash_of_a_run_that_took_long_is_as_young_as_its_moves")
def _() -> AbstractContextManager[Any]:
    def status(handle: Any, stamp: str, name: Any) -> Any:
        found = trashlist.trash_status(handle, stamp, name)
        return found and os.stat_result(tuple(found), {"st_ctime": 0.0, "st_mtime": 0.0})

    return mock.patch.multiple("fsworker.collection.purge", trash_status=status, delete_from_trash=_delete_anyway)


def _delete_anyway(store: Any, stamp: str, name: Any, before_s: float) -> int:
    (store.root / "Trash" / stamp / name).unlink()
    return 1


@pytest.fixture
def w(tmp_path: Path, redis_url: str) -> Iterator[World]:
    with virtual_clock() as virtual, world(tmp_path, VirtualKV(redis_url, virtual)) as made:
        yield made


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_promise(w: World, scenario: str) -> None:
    SCENARIOS[scenario](w)


def test_there_are_at_least_thirty_faults() -> None:
    assert len(FAULTS) >= 30


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_noticed(w: World, name: str) -> None:
    noticed_by, make = FAULTS[name]
    with make(), pytest.raises((AssertionError, FSWorkerError)):
        SCENARIOS[noticed_by](w)
