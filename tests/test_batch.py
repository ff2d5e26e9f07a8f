"""A batch: many puts, one promise, given when it ends."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from stores import assert_verifies, sha1

from fsworker import durable
from fsworker.errors import StoreUnavailableError, UploadRejectedError
from fsworker.store.batch import Batch
from fsworker.store.objects import ObjectStore

DURABILITIES = ("full", "batch", "none")


@pytest.fixture(params=DURABILITIES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    return open_store(tmp_path, request.param)


def open_store(tmp_path: Path, durability: str) -> ObjectStore:
    (tmp_path / "FileStruct.json").write_text('{"Version": 1}')
    return ObjectStore(tmp_path, durability=durability)


def test_what_was_put_is_there_after_the_batch(store: ObjectStore, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"from a file")
    contents = [b"%d" % n for n in range(600)] + [b"", b"large" * 10**6]
    with Batch(store) as batch:
        stored = [batch.put(data) for data in contents]
        stored.append(batch.put_path(source))
        stored.append(batch.put_reader(io.BytesIO(b"from a stream")))
    assert [s.hash for s in stored] == [sha1(d) for d in [*contents, b"from a file", b"from a stream"]]
    assert set(store) == {s.hash for s in stored}
    assert_verifies(store)


def test_duplicates_are_seen_within_and_before_the_batch(store: ObjectStore) -> None:
    store.put(b"before")
    with Batch(store) as batch:
        assert batch.put(b"before").duplicate
        assert not batch.put(b"new").duplicate
        assert batch.put(b"new").duplicate


def test_what_another_put_stored_meanwhile_is_found_at_the_end(tmp_path: Path) -> None:
    """Rotten it may be, too: who loses the race for the name looks at what is there."""
    store = open_store(tmp_path, "batch")
    with Batch(store) as batch:
        equal, rotten = batch.put(b"equal"), batch.put(b"good")
        assert set(store) == set()
        store.put(b"equal")
        before = store.status(equal.hash)
        store.put(b"good")
        os.chmod(store.location(rotten.hash), 0o644)
        store.location(rotten.hash).write_bytes(b"evil")
    after = store.status(equal.hash)
    assert before is not None
    assert after is not None
    assert os.path.samestat(before, after)
    assert_verifies(store)
    assert set(store) == {equal.hash, rotten.hash}


def test_too_large_an_upload_does_not_end_the_batch(store: ObjectStore) -> None:
    with Batch(store) as batch:
        with pytest.raises(UploadRejectedError):
            batch.put_reader(io.BytesIO(b"12345"), max_bytes=4)
        with pytest.raises(FileNotFoundError):
            batch.put_path(store.root / "absent")
        batch.put(b"good")
    assert list(store) == [sha1(b"good")]


def test_leaving_by_an_exception_publishes_nothing_more(tmp_path: Path) -> None:
    store = open_store(tmp_path, "batch")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ZeroDivisionError), Batch(store) as batch:
        batch.put(b"flushed")
        batch.flush()
        batch.put(b"not flushed")
        raise ZeroDivisionError
    assert list(store) == [sha1(b"flushed")]
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_batch_syncs_data_before_names_and_names_before_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path, "batch")
    names_at_sync: list[int] = []
    real = durable.syncfs

    def counting(fd: int) -> None:
        names_at_sync.append(len(store))
        real(fd)

    monkeypatch.setattr(durable, "syncfs", counting)
    with Batch(store) as batch:
        for number in range(10):
            batch.put(b"%d" % number)
    assert names_at_sync == [0, 10]


def test_a_failed_sync_ends_the_batch_and_is_never_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path, "batch")
    calls = []

    def failing(fd: int) -> None:
        calls.append(fd)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(durable, "syncfs", failing)
    with pytest.raises(StoreUnavailableError), Batch(store) as batch:
        batch.put(b"x")
        with pytest.raises(StoreUnavailableError, match="Input/output error"):
            batch.flush()
        with pytest.raises(StoreUnavailableError, match="put all again"):
            batch.put(b"x")
    assert len(calls) == 1
    assert len(store) == 0
    assert (tmp_path / "Lock/sync-failed").exists()


def test_an_unfinished_batch_of_any_size_needs_few_descriptors(tmp_path: Path) -> None:
    store = open_store(tmp_path, "batch")
    with Batch(store) as batch:
        for number in range(1500):
            batch.put(b"%d" % number)
            assert len(os.listdir("/proc/self/fd")) < 1100
    assert len(store) == 1500
