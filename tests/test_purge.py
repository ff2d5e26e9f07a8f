"""Purging: only what has been in trash for long, and what every application has since said that it does not keep."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from keeping import DAY, HOUR, VirtualKV, World, world
from virtual_time import virtual_clock

from fsworker.collection.basis import Basis
from fsworker.collection.purge import Trashed, is_due, purge, purge_before
from fsworker.errors import CollectionRefusedError
from fsworker.model import EMPTY_HASH, Hash


@pytest.fixture
def w(tmp_path: Path, redis_url: str) -> Iterator[World]:
    with virtual_clock() as clock, world(tmp_path, VirtualKV(redis_url, clock)) as made:
        yield made


def trash_one(w: World, content: str = "x") -> Hash:
    (name,) = w.put(content)
    w.clock.advance(3 * DAY)
    w.publish_all()
    assert w.collect().tally.trashed == 1
    return name


def test_it_goes_after_the_retention(w: World) -> None:
    trash_one(w)
    w.clock.advance(29 * DAY)
    w.publish_all()
    assert w.purge().young == 1
    w.clock.advance(2 * DAY)
    w.publish_all()
    done = w.purge()
    assert (done.deleted, done.deleted_bytes) == (1, 1)
    assert w.trashed() == []
    assert list(w.store.root.glob("Trash/*")) == [], "the empty directory is gone, too"


def test_what_an_application_keeps_stays(w: World) -> None:
    name = trash_one(w)
    w.clock.advance(40 * DAY)
    w.publish_all(blog=[name])
    assert w.purge().wanted == 1
    assert w.trashed() == [name]


def test_every_application_must_have_spoken_since(w: World) -> None:
    """A keep-set whose snapshot is not later than the trashing plus the grace says nothing of what was done since."""
    trash_one(w)
    w.clock.advance(HOUR)
    w.publish("blog")
    w.clock.advance(40 * DAY)
    w.publish("shop")
    assert w.purge("keep_set_max_age").young == 1
    w.publish("blog")
    assert w.purge().deleted == 1


def test_the_snapshot_must_be_later_than_trashing_plus_grace(w: World) -> None:
    trash_one(w)
    w.clock.advance(DAY)
    w.publish_all()
    assert w.purge(trash_retention=0.0).young == 1
    w.clock.advance(4 * HOUR)
    w.publish_all()
    assert w.purge(trash_retention=0.0).deleted == 1


@pytest.mark.parametrize("app", ["shop", "blog"])
def test_it_refuses_as_a_collection_does(w: World, app: str) -> None:
    trash_one(w)
    w.clock.advance(40 * DAY)
    w.publish_all()
    w.redis.delete(w.names.manifest_key(app))
    with pytest.raises(CollectionRefusedError, match=f"application {app} has no keep-set"):
        w.purge()
    assert len(w.trashed()) == 1


def test_a_broken_shard_refuses_before_the_first_deletion(w: World) -> None:
    names = w.put(*map(str, range(50)))
    w.clock.advance(3 * DAY)
    w.publish_all()
    w.collect()
    w.clock.advance(40 * DAY)
    w.publish_all(shop=[b"\xff" * 20])
    w.redis.delete(*w.part_keys())
    with pytest.raises(CollectionRefusedError, match="shard ff is missing"):
        w.purge()
    assert len(w.trashed()) == len(names)


def test_a_step_of_the_clock_makes_trash_young(w: World) -> None:
    trash_one(w)
    w.clock.advance(DAY)
    w.clock.step(60 * DAY)
    w.publish_all()
    assert w.purge().young == 1


def test_a_dry_run_deletes_nothing(w: World) -> None:
    trash_one(w)
    w.clock.advance(40 * DAY)
    w.publish_all()
    assert purge(w.collector(), dry_run=True).deleted == 1
    assert len(w.trashed()) == 1


def test_it_may_be_done_in_parts(w: World) -> None:
    w.put(*map(str, range(100)))
    w.clock.advance(3 * DAY)
    w.publish_all()
    w.collect()
    w.clock.advance(40 * DAY)
    w.publish_all()
    deleted = parts = shard = 0
    while shard < 256:
        done = purge(w.collector(), first_shard=shard, budget_s=0)
        deleted, parts, shard = done.deleted, parts + 1, done.shard
    assert (deleted, w.trashed()) == (100, [])
    assert parts == 256


def test_what_is_no_hash_and_no_run_is_left_alone(w: World) -> None:
    trash_one(w)
    (run,) = w.store.root.glob("Trash/*")
    (run / "notes.txt").write_text("by hand")
    (w.store.root / "Trash/mine").mkdir()
    w.clock.advance(40 * DAY)
    w.publish_all()
    w.purge()
    assert sorted(path.name for path in w.store.root.glob("Trash/**/*")) == sorted([run.name, "mine", "notes.txt"])


def test_the_rule_by_itself() -> None:
    basis = Basis((), cutoff_s=500.0, floor_s=0.0, floor_reason="")
    assert purge_before(basis, now_s=1000.0, retention_s=600.0) == 400.0
    assert purge_before(basis, now_s=1000.0, retention_s=100.0) == 500.0
    file = Trashed("", EMPTY_HASH, since_s=399.0, size_bytes=0)
    assert is_due(file, 400.0, floor_s=0.0)
    assert not is_due(file, 399.0, floor_s=0.0)
    assert not is_due(file, 400.0, floor_s=400.0)


def test_parts_that_cannot_be_added_up_are_told(
    w: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_args: Any, **_kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    w.clock.advance(40 * DAY)
    w.publish_all()
    monkeypatch.setattr("fsworker.collection.purge.write_note", full)
    assert purge(w.collector(), budget_s=0).shard == 1
    assert "will count less than it removed: [Errno 28]" in caplog.text
