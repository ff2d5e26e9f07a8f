"""Collections: exactly what nobody keeps goes, once it is old; everything that is doubtful refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from keeping import DAY, HOUR, VirtualKV, World, world
from virtual_time import virtual_clock

from fsworker.store.hold import release, set_hold


@pytest.fixture
def w(tmp_path: Path, redis_url: str) -> Iterator[World]:
    with virtual_clock() as clock, world(tmp_path, VirtualKV(redis_url, clock)) as made:
        yield made


def test_exactly_the_union_of_all_keep_sets_survives(w: World) -> None:
    shop, blog, both, nobody = w.put("shop", "blog", "both", "nobody")
    w.clock.advance(3 * DAY)
    w.publish_all(shop=[shop, both], blog=[blog, both])
    run = w.collect()
    assert set(w.store) == {shop, blog, both}
    assert w.trashed() == [nobody]
    assert run.tally.trashed == 1
    assert run.tally.kept == 3
    assert run.done


def test_what_is_younger_than_the_grace_stays(w: World) -> None:
    old, young = w.put("old")[0], ""
    w.clock.advance(20 * HOUR)
    (young,) = w.put("young")
    w.clock.advance(8 * HOUR)
    w.publish_all()
    run = w.collect()
    assert list(w.store) == [young]
    assert w.trashed() == [old]
    assert run.tally.young == 1


def test_the_grace_counts_from_the_oldest_snapshot_not_from_now(w: World) -> None:
    w.publish_all(shop=[])
    w.clock.advance(HOUR)
    (name,) = w.put("referenced after the snapshot, an hour before it was collected")
    w.clock.advance(40 * HOUR)
    w.publish("blog")
    assert w.collect().tally.trashed == 0
    assert w.has(name)
    w.publish("shop")
    assert w.collect().tally.trashed == 1


def test_a_dry_run_plans_what_a_run_does_and_changes_nothing(w: World) -> None:
    names = w.put(*map(str, range(20)))
    w.clock.advance(3 * DAY)
    w.publish_all(shop=names[:5], blog=names[3:8])
    before = w.state()
    planned: list[str] = []
    run = w.collector().dry_run(lambda plan: planned.extend(file.name for file in plan.trash))
    assert w.state() == before
    assert sorted(planned) == sorted(names[8:])
    done = w.collect()
    assert w.trashed() == sorted(planned)
    assert done.tally.trash == run.tally.trash == done.tally.trashed == 12


def test_a_newer_keep_set_brings_back_from_trash(w: World) -> None:
    (name,) = w.put("x")
    w.clock.advance(3 * DAY)
    w.publish_all()
    w.collect()
    assert not w.has(name)
    w.publish("blog", [name])
    assert w.collect().tally.restored == 1
    assert w.has(name)
    assert w.trashed() == []


def test_rot_in_trash_is_told_and_not_restored(w: World) -> None:
    (name,) = w.put("x")
    w.clock.advance(3 * DAY)
    w.publish_all()
    w.collect()
    (path,) = w.store.root.glob("Trash/*/*")
    path.chmod(0o644)
    path.write_bytes(b"rot")
    w.publish("blog", [name])
    tally = w.collect().tally
    assert (tally.restored, tally.rotten) == (0, 1)
    assert not w.has(name)


def test_a_claim_between_plan_and_move_saves_the_file(w: World) -> None:
    (name,) = w.put("x")
    w.clock.advance(3 * DAY)
    w.publish_all()
    collector = w.collector()
    basis = collector.basis()
    from fsworker.store.trashlist import TrashIndex

    plan = collector.plan_shard(basis, int(name[:2], 16), TrashIndex(w.store))
    assert [file.name for file in plan.trash] == [name]
    w.store.freshen(name)
    assert collector.act(plan, "20260101000000-00000000-00000000", basis.cutoff_s).spared == 1
    assert w.has(name)


def test_it_may_be_done_in_parts(w: World) -> None:
    names = w.put(*map(str, range(300)))
    w.clock.advance(3 * DAY)
    w.publish_all(shop=names[:100])
    parts = 1
    run = w.collector().part(None, 0.0)
    while run is not None and not run.done:
        run = w.collector().part(run.stamp, 0.05)
        parts += 1
    assert run is not None
    assert parts > 2
    assert run.tally.trashed == 200
    assert set(w.store) == set(names[:100])
    assert w.collector().part(run.stamp, 1.0) is None, "a part that is delivered again does nothing"


def test_a_part_of_a_superseded_run_does_nothing(w: World) -> None:
    w.put(*map(str, range(50)))
    w.clock.advance(3 * DAY)
    w.publish_all()
    first = w.collector().part(None, 0.0)
    assert first is not None
    w.publish_all()
    second = w.collector().part(None, 0.0)
    assert second is not None
    assert second.stamp != first.stamp
    assert w.collector().part(first.stamp, 9.0) is None
    assert len(w.store) == 50


def test_an_interrupted_run_is_taken_up(w: World) -> None:
    w.put(*map(str, range(50)))
    w.clock.advance(3 * DAY)
    w.publish_all()
    first = w.collector().part(None, 0.0)
    assert first is not None
    done = w.collect()
    assert done.stamp == first.stamp
    assert done.tally.trashed == 50


def test_an_application_that_is_registered_meanwhile_must_be_heard(w: World) -> None:
    from fsworker.store.create import add_apps

    w.put("x")
    w.clock.advance(3 * DAY)
    w.publish_all()
    run = w.collector().part(None, 0.0)
    assert run is not None
    add_apps(w.store, {"wiki": None})
    with pytest.raises(Exception, match="registered applications changed"):
        w.collector().part(run.stamp, 9.0)
    assert w.refusals() == ["no_keep_set:wiki"]


def test_two_at_once_one_is_refused(w: World) -> None:
    w.publish_all()
    with w.collector().alone():
        assert w.refusals() == ["running"]
        with pytest.raises(Exception, match="another collection or purge"):
            w.purge()
    assert w.refusals() == []


def test_a_hold_stops_every_move(w: World) -> None:
    kept, gone = w.put("kept", "gone")
    w.clock.advance(3 * DAY)
    w.publish_all()
    set_hold(w.store, 2 * HOUR)
    assert w.refusals() == ["hold"]
    with pytest.raises(Exception, match="a hold is in force until"):
        w.purge()
    w.clock.advance(3 * HOUR)
    w.publish_all(shop=[kept])
    assert w.collect().tally.trashed == 1
    set_hold(w.store, 2 * HOUR)
    assert release(w.store)
    assert not release(w.store)
    assert w.refusals() == []
    assert w.trashed() == [gone]


def test_a_hold_stops_a_collection_that_runs(w: World) -> None:
    names = w.put(*map(str, range(300)))
    w.clock.advance(3 * DAY)
    w.publish_all()
    moved: list[int] = []

    def on_progress(phase: str, done: int, total: int) -> None:
        if phase == "move" and not moved:
            moved.append(done)
            set_hold(w.store, HOUR)

    with pytest.raises(Exception, match="a hold is in force"):
        w.collector().collect(on_progress)
    assert 0 < len(w.trashed()) < 300
    release(w.store)
    assert w.collect().tally.trashed == 300
    assert len(w.trashed()) == len(names)


def test_while_a_hold_is_in_force_a_claim_copies_from_trash(w: World) -> None:
    from fsworker.store.trash import restore

    (name,) = w.put("x")
    w.clock.advance(3 * DAY)
    w.publish_all()
    w.collect()
    set_hold(w.store, HOUR)
    assert restore(w.store, name)
    assert w.has(name)
    assert w.trashed() == [name]


def test_a_large_plan_refuses_from_a_thousand_files_on(w: World) -> None:
    names = w.put(*map(str, range(1000)))
    w.clock.advance(3 * DAY)
    w.publish_all(shop=names[251:])
    assert w.refusals() == ["too_much"]
    assert w.refusals(max_trash=0.251) == []
    w.publish_all(shop=names[500:])
    assert w.refusals() == [], "999 files or fewer are never too much"


def test_a_large_plan_can_be_overridden_by_name(w: World) -> None:
    w.put(*map(str, range(1000)))
    w.clock.advance(3 * DAY)
    w.publish_all()
    assert w.refusals("max_shrink", "keep_set_max_age", "max_clock_skew") == ["too_much"]
    assert w.collect("max-trash").tally.trashed == 1000


def test_an_override_that_there_is_not(w: World) -> None:
    with pytest.raises(ValueError, match="'hold' cannot be overridden"):
        w.collect("hold")
