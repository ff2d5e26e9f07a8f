"""Temp directories: gone on success, kept on failure, and what leaves them for the store is nobody else's."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path

import pytest
from processes import background
from stores import sha1

from fsworker.errors import FSWorkerError
from fsworker.store.objects import ObjectStore
from fsworker.store.tempdirs import EXCEPTION_FILE, BaseTempDir, sweep_leftovers


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    (tmp_path / "FileStruct.json").write_text('{"Version": 1}')
    return ObjectStore(tmp_path)


def entries(store: ObjectStore, name: str) -> list[str]:
    return sorted(os.listdir(store.root / name))


def test_on_success_nothing_is_left(store: ObjectStore) -> None:
    with BaseTempDir(store) as tmp:
        tmp.path("a").write_bytes(b"a")
        (tmp.directory / "deeper").mkdir()
        assert entries(store, "Temp") == [tmp.name]
    assert entries(store, "Temp") == entries(store, "Error") == []


def test_on_failure_it_is_kept_whole_with_the_traceback(store: ObjectStore) -> None:
    with pytest.raises(ZeroDivisionError), BaseTempDir(store) as tmp:
        tmp.path("a").write_bytes(b"a")
        raise ZeroDivisionError("the reason \udcff")
    assert entries(store, "Temp") == []
    assert entries(store, "Error") == [tmp.name]
    kept = store.root / "Error" / tmp.name
    assert sorted(os.listdir(kept)) == [EXCEPTION_FILE, "a"]
    text = (kept / EXCEPTION_FILE).read_text()
    assert "the reason" in text
    assert "ZeroDivisionError" in text


def test_retained_it_is_kept_without_a_traceback(store: ObjectStore) -> None:
    with BaseTempDir(store) as tmp:
        tmp.path("a").write_bytes(b"a")
        tmp.retain = True
    assert os.listdir(store.root / "Error" / tmp.name) == ["a"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc/passwd", "a\0", "a\n", "ä", "a b", "x" * 256])
def test_only_plain_names_are_paths(store: ObjectStore, name: str) -> None:
    with BaseTempDir(store) as tmp:
        with pytest.raises(ValueError):
            tmp.path(name)
        with pytest.raises(ValueError):
            tmp.put_in(name)


@pytest.mark.parametrize("name", [None, 5, b"a"])
def test_a_name_of_another_type_is_a_type_error(store: ObjectStore, name: object) -> None:
    with BaseTempDir(store) as tmp, pytest.raises(TypeError):
        tmp.path(name)  # type: ignore[arg-type]


# -- into the store ----------------------------------------------------------------------------------------------------


def test_a_file_moves_into_the_store(store: ObjectStore) -> None:
    with BaseTempDir(store) as tmp:
        tmp.path("a").write_bytes(b"content")
        inode = tmp.path("a").stat().st_ino
        stored = tmp.put_in("a")
        assert not tmp.path("a").exists()
    assert (stored.hash, stored.size_bytes, stored.duplicate) == (sha1(b"content"), 7, False)
    status = store.location(stored.hash).stat()
    assert status.st_ino == inode, "it was moved, not copied"
    assert stat.S_IMODE(status.st_mode) == 0o444
    assert status.st_nlink == 1


def test_a_duplicate_is_recognised(store: ObjectStore) -> None:
    store.put(b"content")
    with BaseTempDir(store) as tmp:
        tmp.path("a").write_bytes(b"content")
        assert tmp.put_in("a").duplicate
        assert not tmp.path("a").exists()
    assert len(store) == 1


def test_a_file_that_somebody_still_writes_is_copied(store: ObjectStore) -> None:
    with BaseTempDir(store) as tmp, tmp.path("a").open("w+b", buffering=0) as writer:
        writer.write(b"content")
        stored = tmp.put_in("a")
        writer.write(b"and more")
    assert store.location(stored.hash).read_bytes() == b"content"


def test_a_file_that_is_mapped_for_writing_is_copied(store: ObjectStore) -> None:
    import mmap

    with BaseTempDir(store) as tmp:
        tmp.path("a").write_bytes(b"content")
        fd = os.open(tmp.path("a"), os.O_RDWR)
        view = mmap.mmap(fd, 7)
        os.close(fd)
        stored = tmp.put_in("a")
        view[0:1] = b"X"
        view.close()
    assert store.location(stored.hash).read_bytes() == b"content"


def test_a_file_with_a_second_name_is_copied(store: ObjectStore, tmp_path: Path) -> None:
    with BaseTempDir(store) as tmp:
        tmp.path("a").write_bytes(b"content")
        os.link(tmp.path("a"), tmp_path / "second")
        stored = tmp.put_in("a")
    (tmp_path / "second").write_bytes(b"changed")
    assert store.location(stored.hash).read_bytes() == b"content"


def test_a_writer_that_comes_while_it_is_stored_does_no_harm(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever opens the file for writing breaks the lease, and the signal for that must not kill us."""
    real = store.publish

    def slow_publish(name: object, fd: int, *, sync: bool) -> bool:
        with pytest.raises((BlockingIOError, PermissionError)):  # root meets the lease, others the mode
            os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK)
        return real(name, fd, sync=sync)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "publish", slow_publish)
    assert signal.getsignal(signal.SIGIO) == signal.SIG_DFL
    with BaseTempDir(store) as tmp:
        tmp.path("a").write_bytes(b"content")
        stored = tmp.put_in("a")
    assert store.location(stored.hash).read_bytes() == b"content"


def test_a_link_to_a_stored_file_may_be_stored_again(store: ObjectStore) -> None:
    name = store.put(b"content").hash
    with BaseTempDir(store) as tmp:
        tmp.path("a").symlink_to(store.location(name))
        assert tmp.put_in("a").hash == name
    assert store.location(name).read_bytes() == b"content"


def test_what_is_no_file_is_refused_and_stays(store: ObjectStore) -> None:
    with BaseTempDir(store) as tmp:
        os.mkfifo(tmp.path("pipe"))
        tmp.path("directory").mkdir()
        for name in ("pipe", "directory"):
            with pytest.raises(ValueError, match="not a regular file"):
                tmp.put_in(name)
            assert tmp.path(name).exists()
        with pytest.raises(FileNotFoundError):
            tmp.put_in("absent")


def test_the_traceback_is_never_written_through_a_link_to_a_stored_file(store: ObjectStore) -> None:
    name = store.put(b"content").hash
    with pytest.raises(ZeroDivisionError), BaseTempDir(store) as tmp:
        tmp.path(EXCEPTION_FILE).symlink_to(store.location(name))
        raise ZeroDivisionError
    assert store.location(name).read_bytes() == b"content"


def test_a_directory_that_cannot_be_kept_does_not_hide_the_error(store: ObjectStore) -> None:
    store.prepare()
    with pytest.raises(ZeroDivisionError), BaseTempDir(store):
        (store.root / "Error").rmdir()
        raise ZeroDivisionError


def test_a_directory_that_cannot_be_removed_says_so(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FSWorkerError), BaseTempDir(store) as tmp:
        os.rename(tmp.directory, store.root / "elsewhere")


# -- leftovers ---------------------------------------------------------------------------------------------------------

DYING = """
import sys, time
from fsworker.store.objects import ObjectStore
from fsworker.store.tempdirs import BaseTempDir
store = ObjectStore(sys.argv[1])
tmp = BaseTempDir(store)
tmp.__enter__()
if sys.argv[2] == "full":
    tmp.path("a").write_bytes(b"a")
print(tmp.name, flush=True)
time.sleep(600)
"""


def test_what_a_dead_process_left_goes_to_error_and_a_living_ones_stays(store: ObjectStore) -> None:
    with background(DYING, store.root, "full") as dead, background(DYING, store.root, "full") as living:
        assert dead.stdout
        assert living.stdout
        dead_name, living_name = (p.stdout.readline().strip() for p in (dead, living) if p.stdout)
        dead.kill()
        dead.wait()
        assert sweep_leftovers(store, min_age_s=0) == [f"Temp/{dead_name}"]
        assert entries(store, "Error") == [dead_name]
        assert entries(store, "Temp") == [living_name]


def test_an_empty_leftover_is_just_removed(store: ObjectStore) -> None:
    with background(DYING, store.root, "empty") as dead:
        assert dead.stdout
        dead.stdout.readline()
        dead.kill()
        dead.wait()
    sweep_leftovers(store, min_age_s=0)
    assert entries(store, "Error") == entries(store, "Temp") == []


def test_unfinished_files_of_ours_are_removed_and_strangers_left(store: ObjectStore) -> None:
    store.prepare()
    for name in ("Temp/.0123", ".0123.new", "Lock/.0123.new"):
        (store.root / name).touch()
    (store.root / "Temp/.4567").mkdir()
    (store.root / "Temp/somebody's").touch()
    (store.root / ".hidden").touch()
    assert sorted(sweep_leftovers(store, min_age_s=0)) == [".0123.new", "Lock/.0123.new", "Temp/.0123", "Temp/.4567"]
    assert (store.root / "Temp/somebody's").exists()
    assert (store.root / ".hidden").exists()


def test_what_is_young_is_left_alone(store: ObjectStore) -> None:
    store.prepare()
    (store.root / "Temp/.0123").touch()
    (store.root / "Temp/20200101000000-00000000-00000001").mkdir()
    os.utime(store.root / "Temp/20200101000000-00000000-00000001", (1, 1))
    assert sweep_leftovers(store) == []


def test_one_leftover_that_cannot_be_cleared_keeps_no_other(
    store: ObjectStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.prepare()
    for name in (".1", ".3"):
        (store.root / "Temp" / name / "with things in it").mkdir(parents=True)
    (store.root / "Temp/.2").touch()
    (store.root / "Temp/.4").mkdir()
    assert sweep_leftovers(store, min_age_s=0) == ["Temp/.2", "Temp/.4"]
    assert entries(store, "Temp") == [".1", ".3"]
    assert [record.getMessage() for record in caplog.records] == [
        "'Temp/.1', left by a dead process, cannot be cleared: Directory not empty"
    ]
