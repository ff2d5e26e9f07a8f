"""No damaged or hostile keep-set is ever acted on, and each refusal says whose it is and why."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hostile_keepsets import Case, cases
from keeping import DAY, HOUR, VirtualKV, World, world
from virtual_time import virtual_clock

from fsworker.errors import CollectionRefusedError
from fsworker.keepsets.reader import Found, KeepReader

CASES = list(cases())
_source = random.Random(1)
SHOP = [_source.randbytes(20) for _ in range(1500)] + [bytes([shard]) * 20 for shard in range(256)]
BLOG = [_source.randbytes(20) for _ in range(1500)]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[World]:
    with virtual_clock() as clock, world(tmp_path_factory.mktemp("hostile"), VirtualKV(redis_url, clock)) as made:
        made.put("trashed, and to be purged")
        clock.advance(3 * DAY)
        made.publish_all(shop=SHOP, blog=BLOG)
        assert made.collect().tally.trashed == 1
        made.put("garbage that every accepted collection would take")
        clock.advance(60 * HOUR)
        yield made


@pytest.fixture
def w(shared: World) -> World:
    shared.publish_all(shop=SHOP, blog=BLOG)
    return shared


def test_there_are_more_than_a_hundred() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 100


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_is_refused(w: World, case: Case) -> None:
    case.damage(w)
    assert w.refusals() == case.reason.split()
    with pytest.raises(CollectionRefusedError, match="application shop"):
        w.purge()


def test_no_override_helps_a_broken_one(w: World) -> None:
    w.redis.delete(w.part_keys()[0])
    assert w.refusals("max_trash", "max_shrink", "keep_set_max_age", "max_clock_skew") == ["broken:shop"]


def test_the_undamaged_one_is_accepted(w: World) -> None:
    w.publish_all(shop=SHOP, blog=BLOG)
    assert w.collector().dry_run().tally.trash + len(w.trashed()) == 2


class _Interrupted(KeepReader):
    """A reader to which something happens between the manifests and the first shard."""

    def __init__(self, w: World, event: object) -> None:
        super().__init__(w.kv, w.names)
        self.event = event

    def find(self, apps: list[str]) -> list[Found]:
        found = super().find(apps)
        self.event()  # type: ignore[operator]
        return found


def test_redis_is_flushed_between_manifest_and_read(w: World) -> None:
    def flush() -> None:
        w.redis.delete(*w.part_keys("shop"), *w.part_keys("blog"), *map(w.names.manifest_key, ("shop", "blog")))

    collector = w.collector()
    collector.reader = _Interrupted(w, flush)
    before = w.state()
    with pytest.raises(CollectionRefusedError, match=r"is missing \(evicted, expired or flushed\)"):
        collector.collect()
    assert w.state() == before
    assert w.refusals() == ["no_keep_set:blog", "no_keep_set:shop"]


def test_a_new_keep_set_between_manifest_and_read_does_no_harm(w: World) -> None:
    collector = w.collector()
    collector.reader = _Interrupted(w, lambda: w.publish_all(shop=SHOP, blog=BLOG))
    assert collector.dry_run().tally.trash + len(w.trashed()) == 2


def test_an_old_redis_dump_comes_back(w: World) -> None:
    """Snapshot times of what was accepted are in the store: a Redis of yesterday is told."""
    dump = {
        key: w.redis.dump(key) for app in ("shop", "blog") for key in (w.names.manifest_key(app), *w.part_keys(app))
    }
    w.clock.advance(3600)
    name = w.put("kept by the newer keep-set")[0]
    w.publish_all(shop=[*SHOP, name], blog=BLOG)
    w.collect()
    for key, value in dump.items():
        w.redis.restore(key, 0, value, replace=True)  # type: ignore[arg-type]
    assert w.refusals() == ["going_back:blog", "going_back:shop"]


def test_what_another_namespace_published_counts_for_nothing(w: World) -> None:
    for app in ("shop", "blog"):
        w.redis.delete(w.names.manifest_key(app))
        w.redis.set(f"other{w.names.manifest_key(app)}", b"{}")
    assert w.refusals() == ["no_keep_set:blog", "no_keep_set:shop"]
