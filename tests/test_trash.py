"""Moving to trash and back: never from under an ingest, never rot, never lost."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from stores import sha1, spoil

from fsworker.model import EMPTY_HASH
from fsworker.store import layout, trash
from fsworker.store.objects import ObjectStore

FIRST, SECOND = "20200101000000-00000000-00000001", "20210101000000-00000000-00000002"
NEVER, ALWAYS = 0.0, 2.0**40


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    (tmp_path / "FileStruct.json").write_text('{"Version": 1, "Apps": {}, "Grace": "0s"}')
    store = ObjectStore(tmp_path)
    for stamp in (FIRST, SECOND):
        trash.open_run(store, stamp)
    return store


def test_an_old_file_moves_to_trash_whole(store: ObjectStore) -> None:
    name = store.put(b"x").hash
    assert trash.move_to_trash(store, name, FIRST, ALWAYS)
    assert name not in store
    assert (store.root / "Trash" / FIRST / name).read_bytes() == b"x"


def test_a_file_younger_than_the_cutoff_stays(store: ObjectStore) -> None:
    name = store.put(b"x").hash
    born_s = store.location(name).stat().st_ctime
    assert not trash.move_to_trash(store, name, FIRST, NEVER)
    assert not trash.move_to_trash(store, name, FIRST, born_s)
    assert name in store


def test_a_run_may_be_opened_again(store: ObjectStore) -> None:
    trash.open_run(store, FIRST)
    assert sorted(os.listdir(store.root / "Trash")) == [FIRST, SECOND]


def test_an_absent_file_is_no_error(store: ObjectStore) -> None:
    store.prepare()
    assert not trash.move_to_trash(store, EMPTY_HASH, FIRST, ALWAYS)
    assert not trash.restore(store, EMPTY_HASH)


def test_restore_brings_it_back_fresh(store: ObjectStore) -> None:
    name = store.put(b"x").hash
    trash.move_to_trash(store, name, FIRST, ALWAYS)
    os.chmod(store.root / "Trash" / FIRST / name, 0o600)
    before_s = store.probe_clock()
    assert trash.restore(store, name)
    status = store.location(name).stat()
    assert status.st_ctime >= before_s
    assert status.st_mode & 0o777 == 0o444
    assert os.listdir(store.root / "Trash" / FIRST) == []
    assert trash.restore(store, name), "it is there already"


def test_restore_takes_the_good_copy_and_leaves_the_rotten(store: ObjectStore) -> None:
    name = store.put(b"x").hash
    trash.move_to_trash(store, name, FIRST, ALWAYS)
    store.put(b"x")
    spoil(store, name, b"rot")
    trash.move_to_trash(store, name, SECOND, ALWAYS)
    assert [Path(n).parent.name for n in trash.trashed_names(store, name)] == [SECOND, FIRST]
    assert trash.restore(store, name)
    assert store.location(name).read_bytes() == b"x"
    assert (store.root / "Trash" / SECOND / name).read_bytes() == b"rot"


def test_nothing_but_rot_is_not_restored(store: ObjectStore) -> None:
    name = store.put(b"x").hash
    trash.move_to_trash(store, name, FIRST, ALWAYS)
    (store.root / "Trash" / FIRST / name).chmod(0o644)
    (store.root / "Trash" / FIRST / name).write_bytes(b"rot")
    assert not trash.restore(store, name)
    assert name not in store
    assert (store.root / "Trash" / FIRST / name).exists()


def test_strays_in_trash_are_passed_over(store: ObjectStore) -> None:
    store.prepare()
    name = sha1(b"x")
    (store.root / "Trash" / "README").write_bytes(b"")
    (store.root / "Trash" / FIRST / name).symlink_to("/etc/passwd")
    assert not trash.restore(store, name)


def test_a_put_needs_no_trash(store: ObjectStore) -> None:
    name = store.put(b"x").hash
    trash.move_to_trash(store, name, FIRST, ALWAYS)
    assert not store.put(b"x").duplicate
    assert name in store
    assert (store.root / "Trash" / FIRST / name).exists()
    assert trash.restore(store, name)


def test_the_trash_directory_has_the_mode_of_data(store: ObjectStore) -> None:
    name = store.put(b"x").hash
    trash.move_to_trash(store, name, FIRST, ALWAYS)
    assert (store.root / "Trash" / FIRST).stat().st_mode & 0o7777 == layout.FILESTRUCT.data
