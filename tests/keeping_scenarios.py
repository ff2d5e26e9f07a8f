"""What a collection promises, as short histories. Each ends in an assertion; ``test_keeping_faults`` breaks the code to see
that it can fail."""

from __future__ import annotations

import json
import os
import threading
from contextlib import suppress
from typing import Any
from unittest import mock

from keeping import DAY, HOUR, VirtualKV, World

from fsworker.collection.plan import Plan
from fsworker.errors import CollectionRefusedError, FSWorkerError, KeepSetError
from fsworker.model import Hash
from fsworker.store import trash
from fsworker.store.create import add_apps
from fsworker.store.facade import Store
from fsworker.store.hold import set_hold


def collect(w: World, *overrides: str) -> None:
    with suppress(CollectionRefusedError):
        w.collect(*overrides)


def old_file(w: World, content: str = "old") -> Hash:
    (name,) = w.put(content)
    w.clock.advance(5 * DAY)
    return name


def claimed_file_survives(w: World) -> None:
    name = old_file(w)
    assert w.store.freshen(name)
    w.publish_all()
    collect(w)
    assert w.has(name)


def duplicate_upload_survives(w: World) -> None:
    name = old_file(w)
    w.put("old")
    w.publish_all()
    collect(w)
    assert w.has(name)


def committed_at_the_end_of_the_grace_survives(w: World) -> None:
    """Claimed just inside the debounce, committed just inside the grace, published only a moment before that."""
    (name,) = w.put("x")
    w.clock.advance(DAY / 8 - 60)
    w.store.freshen(name)
    w.clock.advance(DAY - 60)
    w.publish_all()
    collect(w)
    assert w.has(name)


def claimed_late_survives(w: World) -> None:
    """A file that is not fresh enough is freshened: not only after the whole grace."""
    (name,) = w.put("x")
    w.clock.advance(DAY / 2)
    w.store.freshen(name)
    w.clock.advance(DAY - 60)
    w.publish_all()
    collect(w)
    assert w.has(name)


def young_file_survives(w: World) -> None:
    (name,) = w.put("x")
    w.clock.advance(HOUR)
    w.publish_all()
    collect(w)
    assert w.has(name)


def old_looking_young_file_survives(w: World) -> None:
    w.clock.advance(5 * DAY)
    (name,) = w.put("x")
    os.utime(w.store.location(name), (1, 1))
    w.publish_all()
    collect(w)
    assert w.has(name)


def claim_between_plan_and_move_survives(w: World) -> None:
    name = old_file(w)
    w.publish_all()
    collector = w.collector()
    plan_shard = collector.plan_shard
    planned_before: list[Hash] = []

    def planned(*args: Any) -> Plan:
        plan = plan_shard(*args)
        if plan.trash and planned_before:  # the plan that is carried out next
            w.store.freshen(name)
        planned_before.extend(file.name for file in plan.trash)
        return plan

    with mock.patch.object(collector, "plan_shard", planned):
        collector.collect()
    assert planned_before == [name, name]
    assert w.has(name)


def claim_in_the_middle_of_the_move_is_not_told_a_lie(w: World) -> None:
    """Between the second look at the age and the rename: whoever is told that it is there finds it there."""
    name = old_file(w)
    told: list[bool] = []
    other = Store(w.store.root, durability="none")
    thread = threading.Thread(target=lambda: told.append(other.freshen(name)))

    class _Slow:
        def __getattr__(self, attribute: str) -> object:
            return getattr(real, attribute)

        def rename(self, *args: object, **kwargs: object) -> None:
            thread.start()
            thread.join(0.3)
            real.rename(*args, **kwargs)

    real = trash.os
    w.publish_all()
    with mock.patch.object(trash, "os", _Slow()):
        collect(w)
    if thread.ident is not None:
        thread.join()
    other.close()
    assert told
    assert told == [False] or w.has(name)


def freshened_is_on_disk(w: World) -> None:
    name = old_file(w)
    store = Store(w.store.root)
    synced: list[int] = []
    with mock.patch.object(Store, "fsync", lambda self, fd: synced.append(os.fstat(fd).st_ino)):
        store.freshen(name)
    assert w.store.location(name).stat().st_ino in synced
    store.close()


def referenced_after_the_older_snapshot_survives(w: World) -> None:
    w.publish("shop")
    w.clock.advance(HOUR)
    (name,) = w.put("shop committed it after its snapshot")
    w.clock.advance(40 * HOUR)
    w.publish("blog")
    collect(w)
    assert w.has(name)


def redis_that_is_ahead_takes_nothing(w: World) -> None:
    assert isinstance(w.kv, VirtualKV)
    (name,) = w.put("x")
    w.clock.advance(DAY * 9 / 8 - 20)
    w.kv.ahead_s = 50.0
    w.publish_all()
    collect(w)
    assert w.has(name)


def forward_step_takes_nothing(w: World) -> None:
    w.collector().clocks()
    (name,) = w.put("x")
    w.clock.step(3 * DAY)
    w.publish_all()
    collect(w)
    assert w.has(name)


def silent_application_keeps_everything(w: World) -> None:
    name = old_file(w)
    w.publish("blog")
    collect(w, "keep_set_max_age", "max_trash", "max_shrink")
    assert w.has(name)


def flushed_redis_keeps_everything(w: World) -> None:
    name = old_file(w)
    w.publish_all(shop=[name])
    w.redis.delete(*w.part_keys("shop"))
    collect(w)
    assert w.has(name)


def broken_manifest_keeps_everything(w: World) -> None:
    name = old_file(w)
    w.publish_all(shop=[name])
    w.redis.set(w.names.manifest_key("shop"), b"{")
    collect(w)
    assert w.has(name)


def bit_rot_in_redis_keeps_everything(w: World) -> None:
    name = old_file(w)
    w.publish_all(shop=[name])
    (key,) = w.part_keys("shop")
    w.redis.setbit(key, 159, not w.redis.getbit(key, 159))
    collect(w)
    assert w.has(name)


def truncated_part_keeps_everything(w: World) -> None:
    name = old_file(w)
    w.publish_all(shop=[bytes([int(name[:2], 16)]) * 20, name])
    (key,) = w.part_keys("shop")
    data = w.redis.get(key)
    assert isinstance(data, bytes)
    w.redis.set(key, data[:20])
    collect(w)
    assert w.has(name)


def swapped_shards_keep_everything(w: World) -> None:
    name = old_file(w)
    other = bytes([int(name[:2], 16) ^ 1]) * 20
    w.publish_all(shop=[name, other])
    first, second = w.part_keys("shop")
    values = w.redis.mget(first, second)
    assert isinstance(values, list)
    w.redis.mset({first: values[1], second: values[0]})
    manifest = w.manifest()
    shards = manifest["shards"]
    i, j = int(name[:2], 16), other[0]
    shards[i], shards[j] = shards[j], shards[i]
    w.set_manifest(shards=shards)
    collect(w)
    assert w.has(name)


def every_application_counts(w: World) -> None:
    first, second = w.put("first", "second")
    w.clock.advance(5 * DAY)
    w.publish_all(shop=[first], blog=[second])
    collect(w)
    assert w.has(first)
    assert w.has(second)


def large_shards_count_to_the_end(w: World) -> None:
    name = old_file(w)
    filler = bytes([int(name[:2], 16)]) * 20
    w.publish_all(shop=[*[filler] * 9000, name])
    collect(w)
    assert w.has(name)


def stale_keep_set_keeps_everything(w: World) -> None:
    (name,) = w.put("x")
    w.publish_all()
    w.clock.advance(5 * DAY)
    assert w.refusals() == ["stale:blog", "stale:shop"]
    assert w.has(name)


def future_keep_set_keeps_everything(w: World) -> None:
    (name,) = w.put("claimed now")
    w.publish_all()
    for app in ("shop", "blog"):
        tree = w.manifest(app)
        tree["snapshot_time"] += 3 * DAY
        w.redis.set(w.names.manifest_key(app), json.dumps(tree))
    collect(w)
    assert w.has(name)


def old_redis_dump_keeps_everything(w: World) -> None:
    w.publish_all()
    dump = {key: w.redis.get(key) for key in map(w.names.manifest_key, ("shop", "blog"))}
    name = old_file(w)
    w.publish_all(shop=[name])
    collect(w)
    for key, value in dump.items():
        assert isinstance(value, bytes)
        w.redis.set(key, value)
    assert w.refusals("keep_set_max_age") == ["going_back:blog", "going_back:shop"]


def another_store_keeps_everything(w: World) -> None:
    name = old_file(w)
    w.publish_all()
    w.set_manifest(store="0" * 32)
    collect(w)
    assert w.has(name)


def half_a_keep_set_keeps_everything(w: World) -> None:
    name = old_file(w)
    w.publish_all(shop=[name, *(bytes([n % 256, n // 256]) * 10 for n in range(1200))])
    collect(w)
    w.publish_all(shop=[bytes([n % 256]) * 20 for n in range(500)])
    collect(w)
    assert w.has(name)


def unannounced_emptiness_keeps_everything(w: World) -> None:
    name = old_file(w)
    w.publish_all()
    w.set_manifest(allow_empty=False)
    collect(w)
    assert w.has(name)


def empty_publish_is_refused(w: World) -> None:
    name = old_file(w)
    w.publish_all(shop=[name])
    with suppress(KeepSetError):
        w.keep("shop").publish(list)
    collect(w)
    assert w.has(name)


def too_large_a_plan_keeps_everything(w: World) -> None:
    names = w.put(*map(str, range(1000)))
    w.clock.advance(5 * DAY)
    w.publish_all()
    collect(w)
    assert w.has(names[0])


def hold_stops_a_collection(w: World) -> None:
    name = old_file(w)
    w.publish_all()
    set_hold(w.store, HOUR)
    collect(w)
    assert w.has(name)


def hold_stops_a_purge(w: World) -> None:
    old_file(w)
    w.publish_all()
    collect(w)
    w.clock.advance(40 * DAY)
    w.publish_all()
    set_hold(w.store, HOUR)
    with suppress(CollectionRefusedError):
        w.purge()
    assert len(w.trashed()) == 1


def what_is_committed_while_rows_are_read_survives(w: World) -> None:
    """The application reads for a day and a half; a reference is committed right after its row would have been read."""
    (name,) = w.put("x")
    w.publish("blog")

    def rows() -> list[str]:
        w.clock.advance(HOUR)  # the reference to ``name`` is committed now, and missed by this read
        w.clock.advance(35 * HOUR)
        return []

    w.keep("shop").publish(rows, allow_empty=True)
    w.publish("blog")
    collect(w)
    assert w.has(name)


def a_list_that_was_read_earlier_is_refused(w: World) -> None:
    listed: list[str] = []
    w.publish_all()
    name = old_file(w)
    w.store.freshen(name)  # referenced now, and not in the list
    w.clock.advance(3 * DAY)
    w.publish("blog")
    with suppress(KeepSetError):
        w.keep("shop").publish(listed, allow_empty=True)
    collect(w)
    assert w.has(name)


def rot_is_not_restored(w: World) -> None:
    name = old_file(w)
    w.publish_all()
    collect(w)
    (path,) = w.store.root.glob("Trash/*/*")
    path.chmod(0o644)
    path.write_bytes(b"rot")
    trash.restore(w.store, name)
    assert not w.has(name)


def claim_of_a_trashed_file_brings_it_back(w: World) -> None:
    name = old_file(w)
    w.publish_all()
    collect(w)
    assert trash.restore(w.store, name) == w.has(name) is True


def kept_again_comes_back(w: World) -> None:
    name = old_file(w)
    w.publish_all()
    collect(w)
    w.publish_all(shop=[name])
    collect(w)
    assert w.has(name)


def wanted_trash_is_not_purged(w: World) -> None:
    name = old_file(w)
    w.publish_all()
    collect(w)
    w.clock.advance(40 * DAY)
    w.publish_all(shop=[name])
    w.purge()
    assert w.trashed() == [name]


def young_trash_is_not_purged(w: World) -> None:
    old_file(w)
    w.publish_all()
    collect(w)
    w.clock.advance(5 * DAY)
    w.publish_all()
    w.purge()
    assert len(w.trashed()) == 1


def trash_is_not_purged_before_everybody_spoke(w: World) -> None:
    old_file(w)
    w.publish_all()
    collect(w)
    w.clock.advance(40 * DAY)
    w.publish("shop")
    with suppress(CollectionRefusedError):
        w.purge("keep_set_max_age")
    assert len(w.trashed()) == 1


def trash_of_a_run_that_took_long_is_as_young_as_its_moves(w: World) -> None:
    old_file(w)
    w.publish_all()
    run = w.collector().part(None, 0.0)
    assert run is not None
    w.clock.advance(20 * DAY)
    w.collector("keep_set_max_age").part(run.stamp, float("inf"))
    assert len(w.trashed()) == 1
    w.clock.advance(15 * DAY)
    w.publish_all()
    w.purge()
    assert len(w.trashed()) == 1


def two_at_once_are_refused(w: World) -> None:
    w.publish_all()
    with w.collector().alone():
        assert w.refusals() == ["running"]


def an_application_registered_meanwhile_is_heard(w: World) -> None:
    name = old_file(w)
    w.publish_all()
    run = w.collector().part(None, 0.0)
    assert run is not None
    add_apps(w.store, {"wiki": None})
    with suppress(FSWorkerError):
        w.collector().part(run.stamp, float("inf"))
    assert w.has(name)


def nothing_moves_before_everything_is_checked(w: World) -> None:
    names = w.put(*map(str, range(30)))
    w.clock.advance(5 * DAY)
    w.publish_all(shop=[b"\xff" * 20])
    w.redis.delete(*w.part_keys("shop"))
    collect(w)
    assert set(w.store) == set(names)


def exactly_the_garbage_goes(w: World) -> None:
    kept, garbage = w.put("kept", "garbage")
    w.clock.advance(5 * DAY)
    w.publish_all(blog=[kept])
    w.collect()
    assert list(w.store) == [kept]
    assert w.trashed() == [garbage]


SCENARIOS = {
    name: value
    for name, value in list(globals().items())
    if callable(value) and getattr(value, "__module__", "") == __name__ and value.__code__.co_varnames[:1] == ("w",)
    if name not in ("collect", "old_file")
}
