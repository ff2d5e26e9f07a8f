"""Why is a file here, or not?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from keeping import DAY, HOUR, VirtualKV, World, world
from virtual_time import virtual_clock

from fsworker.collection.why import Why, why
from fsworker.model import Hash
from fsworker.store import errordir


@pytest.fixture
def w(tmp_path: Path, redis_url: str) -> Iterator[World]:
    with virtual_clock() as virtual, world(tmp_path, VirtualKV(redis_url, virtual)) as made:
        yield made


def ask(w: World, name: Hash) -> Why:
    return why(w.store, name, w.collector())


def test_kept(w: World) -> None:
    (name,) = w.put("x")
    w.clock.advance(5 * DAY)
    w.publish_all(blog=[name])
    answer = ask(w, name)
    assert (answer.state, answer.kept_by) == ("present", {"blog": True, "shop": False})
    assert answer.next_collection == "would keep it, for blog"


def test_young_and_until_when(w: World) -> None:
    (name,) = w.put("x")
    w.clock.advance(20 * HOUR)
    w.publish_all()
    answer = ask(w, name)
    assert answer.stored is not None
    assert answer.stored.safe_until_s == pytest.approx(w.clock.now() + 7 * HOUR, abs=5)
    assert answer.next_collection.startswith(
        "would leave it: no application keeps it, but it is too young; a snapshot 7h later"
    )
    w.clock.advance(7 * HOUR + 5)
    w.publish_all()
    assert ask(w, name).next_collection == "would trash it: no application keeps it"
    assert w.collect().tally.trashed == 1


def test_trashed_and_wanted_again(w: World) -> None:
    (name,) = w.put("x")
    w.clock.advance(5 * DAY)
    w.publish_all()
    run = w.collect()
    answer = ask(w, name)
    assert (answer.state, [stamp for stamp, _ in answer.trashed]) == ("trashed", [run.stamp])
    assert answer.next_collection == "would leave it in trash"
    w.publish("shop", [name])
    assert ask(w, name).next_collection == "would restore it, for shop"


def test_quarantined(w: World) -> None:
    (name,) = w.put("x")
    w.store.location(name).unlink()
    with errordir.new_entry(w.store, errordir.QUARANTINED, "rotten", hash=name) as (stamp, _):
        pass
    w.publish_all()
    answer = ask(w, name)
    assert (answer.state, answer.quarantined) == ("quarantined", (stamp,))


def test_the_floor_counts(w: World) -> None:
    w.collector().clocks()
    (name,) = w.put("x")
    w.clock.advance(5 * DAY)
    w.clock.step(HOUR)
    w.publish_all()
    assert ask(w, name).next_collection.startswith("would leave it")


def test_who_cannot_say(w: World) -> None:
    (name,) = w.put("x")
    w.publish_all(shop=[name])
    w.redis.delete(*w.part_keys("shop"), w.names.manifest_key("blog"))
    answer = ask(w, name)
    assert answer.kept_by["blog"] == "it has no keep-set"
    assert "is missing (evicted, expired or flushed)" in str(answer.kept_by["shop"])
    assert answer.next_collection == "would be refused"


def test_without_redis(w: World) -> None:
    (name,) = w.put("x")
    answer = why(w.store, name, None)
    assert (answer.state, answer.next_collection) == ("present", "not known: no Redis")
    assert answer.known
