"""What the store remembers of its upkeep: whole or not at all, for whoever works on the store, and safe when it is broken."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from keeping import DAY, HOUR, VirtualKV, World, world
from virtual_time import virtual_clock

from fsworker.errors import ConfigError
from fsworker.keepsets.accepted import Accepted, forget_accepted, note_accepted, read_accepted
from fsworker.store import clock, hold, notes
from fsworker.store.facade import Store

BROKEN = [b"", b"{", b"[]", b"null", b'"x"', b"\xff", b'{"shop": 1}', b'{"shop": {}}', b"[" * 100_000]


@pytest.fixture
def w(tmp_path: Path, redis_url: str) -> Iterator[World]:
    with virtual_clock() as virtual, world(tmp_path, VirtualKV(redis_url, virtual)) as made:
        yield made


def test_a_note_is_read_as_it_was_written(w: World) -> None:
    assert notes.read_note(w.store, "x.json") is None
    notes.write_note(w.store, "x.json", {"a": 1})
    assert notes.read_note(w.store, "x.json") == {"a": 1}
    assert notes.remove_note(w.store, "x.json")
    assert not notes.remove_note(w.store, "x.json")


@pytest.mark.parametrize(("writers", "mode"), [("worker", 0o600), ("group", 0o644)])
def test_whoever_works_on_the_store_can_read_it(tmp_path: Path, writers: str, mode: int) -> None:
    with Store.create(tmp_path / "store", apps=["shop"], writers=writers) as store:
        os.umask(os.umask(0o077))
        notes.write_note(store, "x.json", {})
        assert (store.root / "Lock/x.json").stat().st_mode & 0o777 == mode


def test_a_symbolic_link_is_not_followed(w: World, tmp_path: Path) -> None:
    (tmp_path / "target").write_text("{}")
    (w.store.root / "Lock/x.json").symlink_to(tmp_path / "target")
    with pytest.raises(OSError) as raised:
        notes.read_note(w.store, "x.json")
    assert raised.value.errno == errno.ELOOP


@pytest.mark.parametrize("broken", BROKEN, ids=lambda b: repr(b[:20]))
def test_a_broken_note_of_what_was_accepted_stops_collections(w: World, broken: bytes) -> None:
    w.put("garbage")
    w.clock.advance(5 * DAY)
    w.publish_all()
    (w.store.root / "Lock/accepted.json").write_bytes(broken)
    with pytest.raises(ConfigError, match=r"accepted.json is broken .*keep show"):
        w.collect()
    assert w.trashed() == []


@pytest.mark.parametrize(
    "broken", [*BROKEN, b'{"until": 1e99, "boot_until": NaN}', b'{"until": 0}'], ids=lambda b: repr(b[:20])
)
def test_a_broken_hold_holds_until_it_is_released(w: World, broken: bytes) -> None:
    w.publish_all()
    (w.store.root / "Lock/hold.json").write_bytes(broken)
    assert w.refusals() == ["hold"]
    w.clock.advance(365 * DAY)
    w.publish_all()
    assert w.refusals() == ["hold"]
    assert hold.release(w.store)
    assert w.refusals() == []


@pytest.mark.parametrize("broken", BROKEN, ids=lambda b: repr(b[:20]))
def test_a_broken_run_is_begun_anew(w: World, broken: bytes) -> None:
    w.put("garbage")
    w.clock.advance(5 * DAY)
    w.publish_all()
    w.collector().part(None, 0.0)
    (w.store.root / "Lock/collection.json").write_bytes(broken)
    assert w.collect().tally.trashed == 1


def test_a_hold_ends_by_itself(w: World) -> None:
    hold.set_hold(w.store, HOUR)
    w.clock.advance(HOUR - 5)
    assert hold.current(w.store) is not None
    w.clock.advance(10)
    assert hold.current(w.store) is None


def test_a_clock_that_is_set_forward_ends_no_hold(w: World) -> None:
    hold.set_hold(w.store, HOUR)
    w.clock.step(3 * DAY)
    assert hold.current(w.store) is not None
    w.clock.advance(HOUR + 5)
    assert hold.current(w.store) is None


def test_what_was_accepted_is_kept_for_each_application(w: World) -> None:
    w.publish_all()
    found = [each.manifest for each in w.collector().reader.find(["shop", "blog"])]
    shop, blog = (manifest for manifest in found if manifest is not None)
    note_accepted(w.store, [shop])
    note_accepted(w.store, [blog])
    assert read_accepted(w.store)["shop"] == Accepted(shop.snapshot_time, shop.count)
    forget_accepted(w.store, "shop")
    assert list(read_accepted(w.store)) == ["blog"]


def test_on_a_full_disk_the_clock_is_looked_at_all_the_same(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A purge is what makes room."""
    clock.observe(w.store)
    w.clock.advance(HOUR)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(clock, "write_note", full)
    clock.observe(w.store)
    w.clock.step(HOUR)
    with pytest.raises(OSError, match="full"):
        clock.observe(w.store)
