"""A name never means two things: rot is healed by a good copy, a true collision is refused, and nothing is thrown away."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stores import CORPUS, assert_verifies, kept, reasons, sha1, spoil

from fsworker.errors import HashCollisionError, NotStoredError, StoreUnavailableError
from fsworker.model import Hash
from fsworker.store import heal
from fsworker.store.batch import Batch
from fsworker.store.objects import ObjectStore

COLLISION = CORPUS / "collision"
SHATTERED = Hash("38762cf7f55934b34d179ae6a4c80cadccbb7f0a")

needs_collision = pytest.mark.skipif(not COLLISION.exists(), reason="the SHAttered pair is in the shared corpus only")


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    (tmp_path / "FileStruct.json").write_text('{"Version": 1}')
    return ObjectStore(tmp_path)


def put(store: ObjectStore, data: bytes) -> object:
    return store.put(data)


def put_large(store: ObjectStore, data: bytes) -> object:
    return store.put_reader(io.BytesIO(data))


def put_in_batch(store: ObjectStore, data: bytes) -> object:
    store.durability = "batch"
    with Batch(store) as batch:
        return batch.put(data)


@pytest.mark.parametrize("action", [put, put_large, put_in_batch])
@pytest.mark.parametrize("rot", [b"", b"good conten", b"good content, and more", b"bad! content"])
def test_a_rotten_file_is_replaced_by_the_good_copy_that_comes(
    store: ObjectStore, action: Callable[[ObjectStore, bytes], object], rot: bytes
) -> None:
    name = store.put(b"good content").hash
    spoil(store, name, rot)
    action(store, b"good content")
    assert store.location(name).read_bytes() == b"good content"
    assert store.location(name).stat().st_mode & 0o777 == 0o444
    assert kept(store) == [rot]
    reason = reasons(store)[0]
    assert (reason["kind"], reason["hash"], reason["found"]) == ("quarantined", name, sha1(rot))
    assert os.listdir(store.root / "Temp") == []


def test_healing_happens_once_when_many_come_at_once(store: ObjectStore) -> None:
    name = store.put(b"good").hash
    spoil(store, name, b"bad!")
    threads = [threading.Thread(target=store.put, args=(b"good",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.location(name).read_bytes() == b"good"
    assert kept(store) == [b"bad!"]


def test_a_reader_of_the_rotten_file_never_sees_the_name_absent(store: ObjectStore) -> None:
    name = store.put(b"good").hash
    absent, stop = [], threading.Event()

    def watch() -> None:
        while not stop.is_set():
            if not store.location(name).exists():
                absent.append(name)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for number in range(50):
        spoil(store, name, b"bad %d" % number)
        store.put(b"good")
    stop.set()
    watcher.join()
    assert absent == []


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/etc/passwd", path)])
def test_what_is_no_file_under_a_hash_name_is_neither_served_nor_replaced(
    store: ObjectStore, make: Callable[[Path], None]
) -> None:
    name = store.put(b"good").hash
    store.location(name).unlink()
    make(store.location(name))
    assert name not in store
    assert not store.freshen(name)
    with pytest.raises(NotStoredError):
        store.open_descriptor(name)
    with pytest.raises(StoreUnavailableError, match="in the way"):
        store.put(b"good")


@needs_collision
@pytest.mark.parametrize("durability", ["full", "batch", "none"])
def test_a_true_collision_is_refused_and_nothing_overwritten(store: ObjectStore, durability: str) -> None:
    store.durability = durability
    first, second = ((COLLISION / f"shattered-{n}.pdf").read_bytes() for n in (1, 2))
    assert store.put(first).hash == SHATTERED
    for action in (put, put_large, put_in_batch):
        with pytest.raises(HashCollisionError, match="two different contents"):
            action(store, second)
    assert store.location(SHATTERED).read_bytes() == first
    assert kept(store) == [second] * 3
    assert {r["kind"] for r in reasons(store)} == {"collision"}
    assert store.put(first).duplicate


@needs_collision
def test_a_collision_inside_one_batch_is_refused(store: ObjectStore) -> None:
    store.durability = "batch"
    with pytest.raises(HashCollisionError), Batch(store) as batch:
        batch.put_path(COLLISION / "shattered-1.pdf")
        batch.put_path(COLLISION / "shattered-2.pdf")
    assert store.location(SHATTERED).read_bytes() == (COLLISION / "shattered-1.pdf").read_bytes()


def test_a_file_of_another_owner_is_replaced_by_an_equal_copy(store: ObjectStore) -> None:
    name = store.put(b"x").hash
    before = store.location(name).stat().st_ino
    stored_fd, own_fd = store.open_descriptor(name), store.open_unnamed()
    os.write(own_fd, b"x")
    store.dress(own_fd)
    assert heal.replace_by_own(store, name, stored_fd, own_fd)
    assert not heal.replace_by_own(store, name, stored_fd, own_fd), "it is no longer the file that was compared"
    os.close(stored_fd)
    os.close(own_fd)
    assert store.location(name).stat().st_ino != before
    assert_verifies(store)


def test_an_interrupt_right_after_the_good_copy_is_in_place_is_not_hidden(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = store.put(b"x").hash
    own_fd = store.open_unnamed()
    os.write(own_fd, b"x")
    rename = os.rename

    def interrupted(*args: Any, **kwargs: Any) -> None:
        rename(*args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            heal.rename_over(store, name, own_fd)
    os.close(own_fd)
    assert os.listdir(store.root / "Temp") == []
