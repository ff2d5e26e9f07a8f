"""Kernels and filesystems that lack a call, or do not keep a promise: the store works all the same, or refuses by name."""

from __future__ import annotations

import errno
import fcntl
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stores import assert_verifies, kept, sha1, spoil

from fsworker import durable
from fsworker.errors import ConfigError
from fsworker.store import tempdirs
from fsworker.store.batch import Batch
from fsworker.store.create import create_store
from fsworker.store.objects import ObjectStore
from fsworker.store.probe import check_filesystem
from fsworker.store.tempdirs import BaseTempDir


def refuse(code: int) -> Callable[..., Any]:
    def refusing(*args: object, **kwargs: object) -> Any:
        raise OSError(code, os.strerror(code))

    return refusing


def lack_unnamed_files(patch: pytest.MonkeyPatch) -> None:
    real = os.open

    def opening(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real(path, flags, *args, **kwargs)

    patch.setattr(os, "open", opening)


def lack_rename_without_replacing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(durable, "rename_new", refuse(errno.EINVAL))


def lack_leases(patch: pytest.MonkeyPatch) -> None:
    real = fcntl.fcntl

    def controlling(fd: int, command: int, argument: Any = 0) -> Any:
        if command == fcntl.F_SETLEASE:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(fd, command, argument)

    patch.setattr(fcntl, "fcntl", controlling)


def lack_links_to_foreign_files(patch: pytest.MonkeyPatch) -> None:
    """As ``fs.protected_hardlinks`` has it for the files of others."""
    real = os.link

    def linking(source: Any, target: Any, **kwargs: Any) -> None:
        if str(source).startswith("Data/"):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        real(source, target, **kwargs)

    patch.setattr(os, "link", linking)


def lack_everything(patch: pytest.MonkeyPatch) -> None:
    for lack in (lack_unnamed_files, lack_rename_without_replacing, lack_leases, lack_links_to_foreign_files):
        lack(patch)


@pytest.mark.parametrize(
    "lack",
    [lack_unnamed_files, lack_rename_without_replacing, lack_leases, lack_links_to_foreign_files, lack_everything],
)
@pytest.mark.parametrize("writers", ["worker", "group"])
def test_a_store_works_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lack: Callable[[pytest.MonkeyPatch], None], writers: str
) -> None:
    lack(monkeypatch)
    create_store(tmp_path, apps=["shop"], writers=writers)
    store = ObjectStore(tmp_path, durability="batch")
    store.put(b"one")
    assert store.put(b"one").duplicate
    store.put_reader(io.BytesIO(b"large" * 10**6))
    with BaseTempDir(store) as tmp:
        tmp.path("a").write_bytes(b"two")
        tmp.put_in("a")
    with Batch(store) as batch:
        batch.put(b"three")
    spoil(store, sha1(b"one"), b"rot")
    store.put(b"one")
    assert set(store) == {sha1(d) for d in (b"one", b"two", b"three", b"large" * 10**6)}
    assert_verifies(store)
    assert kept(store) == [b"rot"]
    assert os.listdir(tmp_path / "Temp") == []


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    create_store(tmp_path, apps=[])
    return ObjectStore(tmp_path)


def no_links(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(os, "link", refuse(errno.EPERM))


def links_that_replace(patch: pytest.MonkeyPatch) -> None:
    real = os.link

    def linking(source: Any, target: Any, **kwargs: Any) -> None:
        try:
            real(source, target, **kwargs)
        except FileExistsError:
            return

    patch.setattr(os, "link", linking)


def locks_that_do_not_lock(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fcntl, "flock", lambda fd, operation: None)


def no_locks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fcntl, "flock", refuse(errno.ENOLCK))


def chmod_that_ages_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(os, "fchmod", lambda fd, mode: None)


@pytest.mark.parametrize(
    ("break_", "says"),
    [
        (no_links, "cannot make hard links"),
        (links_that_replace, "lets link"),
        (locks_that_do_not_lock, "does not lock"),
        (no_locks, "has no flock"),
        (chmod_that_ages_nothing, "renew the ctime"),
    ],
)
def test_a_filesystem_that_does_not_keep_its_promises_is_refused(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, break_: Callable[[pytest.MonkeyPatch], None], says: str
) -> None:
    with monkeypatch.context() as patch:
        break_(patch)
        with pytest.raises(ConfigError, match=says) as caught:
            check_filesystem(store)
    assert "local filesystem" in str(caught.value)
    assert os.listdir(store.root / "Temp") == []


def test_temp_on_another_filesystem_is_a_matter_of_configuration(tmp_path: Path) -> None:
    if not os.access("/dev/shm", os.W_OK) or os.stat("/dev/shm").st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("CI-may-skip: there is one filesystem only")
    create_store(tmp_path, apps=[])
    (tmp_path / "Temp").rmdir()
    (tmp_path / "Temp").symlink_to("/dev/shm")
    with pytest.raises(ConfigError, match="one filesystem"):
        ObjectStore(tmp_path).put(b"x")


def test_the_lease_is_what_makes_a_move(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempdirs, "_is_ours_alone", lambda fd, status: False)
    with BaseTempDir(store) as tmp:
        tmp.path("a").write_bytes(b"a")
        inode = tmp.path("a").stat().st_ino
        assert store.location(tmp.put_in("a").hash).stat().st_ino != inode
