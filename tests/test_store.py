"""The store's contract: what goes in comes out, under its hash, once, unchangeable, and nothing else reaches a path."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from users import needs_root

from fsworker.errors import ConfigError, InvalidHashError, NotStoredError, StoreUnavailableError, UploadRejectedError
from fsworker.model import EMPTY_HASH, parse_hash
from fsworker.store import errordir, layout
from fsworker.store.facade import Store
from fsworker.store.objects import ObjectStore

KIB64 = 1 << 16
MIB = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store", apps=["shop"])


def sha1(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def test_content_comes_back_under_its_hash(store: Store) -> None:
    name = store.put_bytes(b"hello")
    assert name == sha1(b"hello")
    assert name in store
    assert store.path(name).read_bytes() == b"hello"
    with store.open(name) as stream:
        assert stream.read() == b"hello"
    assert store.internal_uri(name) == f"/FileStruct/Data/{name[:2]}/{name[2:4]}/{name}"


def test_a_new_store_is_empty_yet_true(store: Store) -> None:
    assert len(store) == 0
    assert list(store) == []
    assert store


def test_the_empty_file_is_a_file(store: Store) -> None:
    assert store.put_bytes(b"") == EMPTY_HASH
    assert store.path(EMPTY_HASH).read_bytes() == b""


def test_iteration_yields_every_hash_once_in_order(store: Store) -> None:
    names = {store.put_bytes(b"%d" % number) for number in range(50)}
    assert list(store) == sorted(names)
    assert len(store) == 50


def test_iteration_leaves_strays_alone(store: Store) -> None:
    name = store.put_bytes(b"x")
    for stray in ("Data/zz", f"Data/{name[:2]}/{name[2:4]}/x.part", "Data/README"):
        path = store.root / stray
        path.mkdir() if stray == "Data/zz" else path.write_bytes(b"")
    assert list(store) == [name]


@pytest.mark.parametrize("size", [0, 1, KIB64 - 1, KIB64, KIB64 + 1, MIB - 1, MIB, MIB + 1, 3 * MIB + 7])
def test_every_way_in_gives_the_same(store: Store, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    source = tmp_path / "upload"
    source.write_bytes(data)
    assert {store.put_bytes(data), store.put_stream(io.BytesIO(data)), store.put_file(source)} == {sha1(data)}
    assert store.path(sha1(data)).read_bytes() == data
    assert source.read_bytes() == data
    assert len(store) == 1


def test_a_stream_may_yield_little_at_a_time(store: Store) -> None:
    class Drip:
        def __init__(self) -> None:
            self.left = [b"x" * 7919] * 200

        def read(self, size: int, /) -> bytes:
            return self.left.pop() if self.left else b""

    assert store.put_stream(Drip()) == sha1(b"x" * 7919 * 200)


@pytest.mark.parametrize("max_bytes", [None, 5 * 1000, 4999])
def test_a_descriptor_may_yield_little_at_a_time(store: Store, max_bytes: int | None) -> None:
    parts = [bytes([n]) * 1000 for n in range(5)]
    with subprocess.Popen(
        [sys.executable, "-c", SLOW_WRITER, str(len(parts))], stdout=subprocess.PIPE, bufsize=0
    ) as writer:
        assert writer.stdout is not None
        if max_bytes == 4999:
            with pytest.raises(UploadRejectedError):
                store.put_descriptor(writer.stdout.fileno(), max_bytes)
            assert len(store) == 0
        else:
            stored = store.put_descriptor(writer.stdout.fileno(), max_bytes)
            assert (stored.hash, stored.size_bytes) == (sha1(b"".join(parts)), 5000)


SLOW_WRITER = """
import os, sys, time
for n in range(int(sys.argv[1])):
    os.write(1, bytes([n]) * 1000)
    time.sleep(0.02)
"""


def test_a_stream_is_read_from_where_it_stands_and_stays_open(store: Store) -> None:
    stream = io.BytesIO(b"headbody")
    stream.seek(4)
    assert store.put_stream(stream) == sha1(b"body")
    assert not stream.closed
    assert stream.tell() == 8


def test_a_stream_may_store_something_itself_while_it_is_read(store: Store) -> None:
    class Nested:
        def __init__(self) -> None:
            self.parts = [b"a" * 1000, b"b" * 1000]

        def read(self, size: int, /) -> bytes:
            store.put_stream(io.BytesIO(b"noise" * 100_000))
            return self.parts.pop(0) if self.parts else b""

    assert store.put_stream(Nested()) == sha1(b"a" * 1000 + b"b" * 1000)


def test_errors_of_the_callers_own_stream_and_file_are_the_callers(store: Store, tmp_path: Path) -> None:
    class Broken:
        def read(self, size: int, /) -> bytes:
            raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError):
        store.put_stream(Broken())
    with pytest.raises(FileNotFoundError):
        store.put_file(tmp_path / "absent")
    with pytest.raises(IsADirectoryError):
        store.put_file(tmp_path)
    assert len(store) == 0


@pytest.mark.parametrize("wrong", [None, 5, True, "text", object()])
def test_what_are_no_bytes_is_a_type_error(store: Store, wrong: object) -> None:
    with pytest.raises(TypeError):
        store.put_bytes(wrong)  # type: ignore[arg-type]
    with pytest.raises((TypeError, AttributeError)):
        store.put_stream(wrong)  # type: ignore[arg-type]


def test_a_text_stream_is_refused_with_the_remedy(store: Store) -> None:
    with pytest.raises(TypeError, match="binary mode"):
        store.put_stream(io.StringIO("text"))  # type: ignore[arg-type]


def test_what_can_change_is_copied_before_it_is_hashed(store: Store) -> None:
    data = bytearray(b"before")
    name = store.put_bytes(data)  # type: ignore[arg-type]
    data[:] = b"after!"
    assert store.path(name).read_bytes() == b"before"


def test_too_large_a_stream_is_refused_and_leaves_nothing(store: Store) -> None:
    for size, limit in ((10, 9), (3 * MIB, 2 * MIB)):
        with pytest.raises(UploadRejectedError, match="allowed"):
            store.put_reader(io.BytesIO(b"x" * size), max_bytes=limit)
    assert store.put_reader(io.BytesIO(b"x" * 10), max_bytes=10).size_bytes == 10
    assert len(store) == 1
    assert os.listdir(store.root / "Temp") == []


# -- immutable, once ---------------------------------------------------------------------------------------------------


def test_stored_files_are_read_only_and_have_one_link(store: Store) -> None:
    old = os.umask(0o077)
    try:
        status = store.path(store.put_bytes(b"x")).stat()
    finally:
        os.umask(old)
    assert stat.S_IMODE(status.st_mode) == 0o444
    assert status.st_nlink == 1
    assert status.st_gid == store.root.stat().st_gid


def test_the_umask_never_matters_to_directories(store: Store) -> None:
    for umask, data in ((0o077, b"a"), (0, b"b")):
        old = os.umask(umask)
        try:
            path = store.path(store.put_bytes(data))
        finally:
            os.umask(old)
        assert [stat.S_IMODE(p.stat().st_mode) for p in (path.parent, path.parent.parent)] == [0o2750, 0o2750]


def test_an_application_that_kept_its_file_open_cannot_change_what_was_stored(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "upload"
    source.write_bytes(b"x" * 2 * MIB)
    with source.open("r+b") as kept:
        name = store.put_file(source)
        kept.write(b"evil")
        kept.flush()
        assert store.path(name).read_bytes() == b"x" * 2 * MIB


def test_a_duplicate_is_not_written_again(store: Store) -> None:
    assert not store.put(b"same").duplicate
    inode = store.path(sha1(b"same")).stat().st_ino
    assert store.put(b"same").duplicate
    assert store.path(sha1(b"same")).stat().st_ino == inode


@pytest.mark.parametrize(
    "name", ["", "da39", EMPTY_HASH.upper(), EMPTY_HASH + "\n", "../" * 10 + "etc/passwd", "g" * 40]
)
def test_what_is_no_hash_reaches_no_path(store: Store, name: str) -> None:
    assert name not in store
    actions: list[Callable[[str], object]] = [store.path, store.open, store.internal_uri]
    for action in actions:
        with pytest.raises(InvalidHashError):
            action(name)
        with pytest.raises(ValueError):
            action(name)


def test_a_hash_of_another_type_is_a_type_error(store: Store) -> None:
    with pytest.raises(TypeError):
        assert EMPTY_HASH.encode() in store  # type: ignore[operator]


def test_an_absent_hash_is_a_key_error_that_names_it(store: Store) -> None:
    for action in (store.path, store.open):
        with pytest.raises(NotStoredError, match=EMPTY_HASH):
            action(EMPTY_HASH)
        with pytest.raises(KeyError):
            action(EMPTY_HASH)


def test_a_directory_under_a_hash_name_is_no_stored_file(store: Store) -> None:
    store.location(EMPTY_HASH).mkdir(parents=True)
    assert EMPTY_HASH not in store


# -- age ---------------------------------------------------------------------------------------------------------------


def test_a_duplicate_makes_the_stored_file_young_and_leaves_mtime_alone(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", grace_s=0)  # nothing is fresh enough: always renewed
    path = store.path(store.put_bytes(b"x"))
    os.utime(path, (1, 1))
    before = path.stat()
    wait_for_tick(path)
    later(store)
    store.put_bytes(b"x")
    assert path.stat().st_ctime_ns > before.st_ctime_ns
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def test_a_file_that_is_fresh_enough_is_not_touched(store: Store) -> None:
    path = store.path(store.put_bytes(b"x"))
    before = path.stat().st_ctime_ns
    wait_for_tick(path)
    store.put_bytes(b"x")
    assert store.freshen(parse_hash(sha1(b"x")))
    assert path.stat().st_ctime_ns == before


def test_only_the_stores_own_grace_decides_what_is_fresh_enough(tmp_path: Path) -> None:
    """A longer one that this process was told is not known to the collection of another."""
    Store.create(tmp_path / "store", grace_s=0)
    store = Store(tmp_path / "store", grace_s=10**6)
    assert store.grace_s == 10**6
    path = store.path(store.put_bytes(b"x"))
    before = path.stat().st_ctime_ns
    wait_for_tick(path)
    later(store)
    store.put_bytes(b"x")
    assert path.stat().st_ctime_ns > before


def test_a_clock_that_was_stepped_back_makes_no_file_older(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", grace_s=0)
    path = store.path(store.put_bytes(b"x"))
    before = path.stat().st_ctime_ns
    wait_for_tick(path)
    later(store, -3600)
    store.put_bytes(b"x")
    store.freshen(parse_hash(sha1(b"x")))
    assert path.stat().st_ctime_ns == before


def later(store: Store, seconds: float = 60) -> None:
    store.recent_clock = lambda: time.time() + seconds  # type: ignore[method-assign]


def test_freshen_says_whether_the_file_is_there(store: Store) -> None:
    assert not store.freshen(EMPTY_HASH)
    store.put_bytes(b"")
    assert store.freshen(EMPTY_HASH)


def wait_for_tick(path: Path) -> None:
    """Until the filesystem's clock has moved on from the file's ctime."""
    probe = path.parent.parent / "probe"
    for _ in range(1000):
        probe.touch()
        os.chmod(probe, 0o600)
        now = probe.stat().st_ctime_ns
        probe.unlink()
        if now > path.stat().st_ctime_ns:
            return
    raise AssertionError("the clock stands still")


# -- opening -----------------------------------------------------------------------------------------------------------


def test_what_is_no_store_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fsworker init"):
        Store(tmp_path)
    with pytest.raises(ConfigError, match="does not exist"):
        Store(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="not a directory"):
        Store(tmp_path / "file")
    assert os.listdir(tmp_path) == ["file"]


def test_opening_and_reading_create_nothing(tmp_path: Path) -> None:
    (tmp_path / "FileStruct.json").write_text('{"Version": 1}')
    store = ObjectStore(tmp_path)
    assert list(store) == []
    assert EMPTY_HASH not in store
    assert os.listdir(tmp_path) == ["FileStruct.json"]


def test_an_original_database_is_written_to_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "FileStruct.json").write_text('# ours\n{"Version": "1", "User": "www"}')
    store = ObjectStore(tmp_path)
    path = store.path_of(store.put(b"x").hash)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o775
    assert store.config.apps is None
    assert store.config.other == {"User": "www"}


def test_an_unknown_durability_is_refused(store: Store) -> None:
    with pytest.raises(ConfigError, match="full, batch, none"):
        Store(store.root, durability="some")


def test_a_handle_follows_its_store_when_that_is_moved(store: Store) -> None:
    store.root.rename(store.root.with_name("moved"))
    name = store.put_bytes(b"x")
    assert (store.root.with_name("moved") / layout.data_name(parse_hash(name))).read_bytes() == b"x"


def test_closing_twice_is_harmless_and_leaks_nothing(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for durability in ("full", "batch", "none"):
        with Store.create(tmp_path / "store", durability=durability) as store:
            store.put_bytes(b"x" * 3 * MIB)
            store.put_bytes(b"x")
            store.freshen(EMPTY_HASH)
            with store.tempdir() as tmp:
                tmp.path("a").write_bytes(b"a")
                tmp.save("a")
            with store.batch() as batch:
                batch.put(b"b")
        store.close()
    assert len(os.listdir("/proc/self/fd")) == before


@needs_root
def test_a_full_disk_says_try_later_and_leaves_nothing(tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)], check=False)
    if mounted.returncode != 0:
        pytest.skip("CI-may-skip: no mounts here")
    try:
        with Store.create(tmp_path / "store", apps=["shop"]) as store, store.open(store.put_bytes(b"before")) as before:
            for size in (5 * MIB, 900_000):
                for _ in range(5):  # until it is full
                    with contextlib.suppress(StoreUnavailableError):
                        store.put_bytes(os.urandom(900_000))
                with pytest.raises(StoreUnavailableError, match="No space left"):
                    store.put_stream(io.BytesIO(os.urandom(size)))
            assert os.listdir(store.root / "Temp") == []
            for name in store:
                assert sha1(store.path(name).read_bytes()) == name
            assert before.read() == b"before"
            next(p for p in (store.root / "Data").glob("*/*/*") if p.stat().st_size > 1000).unlink()
            store.put_bytes(b"after")
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


# -- threads -----------------------------------------------------------------------------------------------------------


def test_threads_may_share_a_store(store: Store) -> None:
    errors = []

    def work(seed: int) -> None:
        try:
            for number in range(60):
                data = b"%d" % (number * 7 % 40)
                assert store.put_bytes(data) == sha1(data)
                assert store.put_stream(io.BytesIO(data * 1000)) == sha1(data * 1000)
        except BaseException as error:
            errors.append((seed, error))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for name in store:
        assert sha1(store.path(name).read_bytes()) == name


@pytest.mark.parametrize("failed", ["open", "fsync"])
def test_only_a_sync_that_failed_marks_the_store(failed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No free descriptor says nothing of the disk; the mark has the whole store verified."""
    (tmp_path / "FileStruct.json").write_text('{"Version": 1}')

    works = os.open

    def fails(path: object, *args: Any, **kwargs: Any) -> int:
        if failed == "fsync" or path == "Data":
            raise OSError(errno.EIO if failed == "fsync" else errno.EMFILE, "it fails")
        return works(path, *args, **kwargs)  # type: ignore[arg-type]

    with ObjectStore(tmp_path) as store:
        store.prepare()
        monkeypatch.setattr(os, failed, fails)
        with pytest.raises(OSError, match="it fails"):
            store.fsync_directory("Data")
    assert (tmp_path / "Lock/sync-failed").exists() == (failed == "fsync")


def test_a_reason_that_cannot_be_read_is_none(store: Store) -> None:
    """``Error/`` has what FileStruct's users left there, too."""
    entry = store.root / "Error/20130220151717-86718750-24386270"
    entry.mkdir(parents=True)
    (entry / "Reason.json").write_text("[" * 10_000)
    assert [found.reason for found in errordir.entries(store)] == [{}]
