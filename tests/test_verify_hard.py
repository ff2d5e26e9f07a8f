"""Verification where it is hard: bad disks, other users, kills at every call, caches, other set-ups; and who is told."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crash import tracer
from damage import DAMAGES, STAMP, Plant, all_bytes, content, memory_path, sha1
from processes import eventually
from stacks import running_stack
from users import OTHER_GROUP, READER, STORE_GROUP, STRANGER, WORKER, as_user, needs_root, open_path

from fsworker.broker.kv import KV, connect
from fsworker.broker.names import Names
from fsworker.keepsets.reader import KeepReader
from fsworker.model import Hash
from fsworker.store.create import create_store
from fsworker.store.objects import ObjectStore
from fsworker.verification import history as histories
from fsworker.verification.copies import Mirror
from fsworker.verification.desk import Policy
from fsworker.verification.findings import Finding
from fsworker.verification.kindly import cached_windows, drop_cache
from fsworker.verification.telling import tell
from fsworker.verification.whole import Options, verify_all, verify_hashes

__all__ = ["memory_path", "open_path"]


def make(root: Path, count: int = 20) -> Plant:
    create_store(root / "store", apps=["shop"])
    (root / "mirror/Data").mkdir(parents=True)
    plant = Plant(root / "store", root / "mirror")
    plant.fill(count)
    return plant


def verify(plant: Plant, *, repair: bool = False) -> list[Finding]:
    found: list[Finding] = []
    with ObjectStore(plant.root) as store, Mirror(plant.mirror, store) as mirror:
        verify_all(store, Options(Policy(repair=repair)), found.append, mirror=mirror)
    return found


def kinds(found: list[Finding]) -> list[tuple[str, str]]:
    return sorted((finding.kind, finding.action) for finding in found)


# -- a bad disk --------------------------------------------------------------------------------------------------------


def break_disk(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """The disk cannot read this file any more."""
    inode, preadv = path.stat().st_ino, os.preadv

    def failing(fd: int, *arguments: Any) -> int:
        if os.fstat(fd).st_ino == inode:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return preadv(fd, *arguments)

    monkeypatch.setattr(os, "preadv", failing)


def test_what_the_disk_cannot_read_is_reported_and_left_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant = make(tmp_path)
    _, path = plant.victim()
    break_disk(monkeypatch, path)
    for _ in range(2):
        (finding,) = verify(plant, repair=True)
        assert (finding.kind, finding.action, finding.hash) == ("unreadable", "reported", path.name)
        assert "kernel's log" in finding.advice
    assert path.exists()
    assert os.listdir(plant.root / "Error") == []


def test_what_the_disk_cannot_read_is_healed_from_a_backup_and_its_inode_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant = make(tmp_path)
    data, path = plant.victim()
    plant.back_up(data)
    inode = path.stat().st_ino
    break_disk(monkeypatch, path)
    (finding,) = verify(plant, repair=True)
    assert (finding.kind, finding.action) == ("unreadable", "healed")
    assert path.read_bytes() == data
    assert finding.kept is not None
    assert (plant.root / finding.kept).stat().st_ino == inode
    assert verify(plant) == []


def test_a_full_disk_fails_a_repair_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant = make(tmp_path)
    data, path = plant.victim()
    plant.rot(path, b"rot")
    plant.back_up(data)

    def full(*_: Any, **__: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        (finding,) = verify(plant, repair=True)
        assert finding.action == "failed"
        assert "No space left" in finding.message
        assert path.read_bytes() == b"rot"
    assert kinds(verify(plant, repair=True)) == [("rotten", "healed")]
    assert verify(plant) == []


# -- kills at every call -----------------------------------------------------------------------------------------------

SCENARIOS = (
    "one_bit_flipped",
    "flipped_with_a_copy_in_trash",
    "flipped_with_a_copy_in_the_mirror",
    "in_capital_letters",
    "directly_in_data",
    "a_directory_in_data",
    "a_link_in_the_place_of_a_file",
    "closed",
)


@pytest.mark.skipif(not tracer.SUPPORTED, reason="CI-may-skip: the tracer writes registers of x86-64")
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_killed_before_any_call_of_a_repair_nothing_is_lost_and_the_next_run_ends_it(
    scenario: str, memory_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("CRITICAL")
    plant = make(memory_path / "template", 3)
    damage = DAMAGES[scenario](plant)

    def at(root: Path) -> Plant:
        return Plant(root / "store", root / "mirror")

    def run(root: Path, kill_at: int) -> tracer.Outcome:
        return tracer.run(
            lambda _: verify(at(root), repair=True), lambda call: tracer.KILL if call.index == kill_at else None
        )

    def fresh() -> Path:
        shutil.rmtree(memory_path / "copy", ignore_errors=True)
        return Path(shutil.copytree(memory_path / "template", memory_path / "copy", symlinks=True))

    first = at(fresh())
    changing = points_of(lambda note: tracer.run(lambda _: verify(first, repair=True), note))
    assert 5 < len(changing) < 60
    for point in changing:
        root = fresh()
        run(root, point)  # logging makes a call more the first time: the last points may not be reached
        copy = at(root)
        verify(copy, repair=True)
        assert verify(copy) == [], point
        everywhere = all_bytes(copy.root)
        assert damage.bytes_kept is None or damage.bytes_kept in everywhere, point
        if damage.restored is not None:
            name = Hash(sha1(damage.restored))
            if not copy.path(name).exists():  # killed between taking away what stood there and storing the copy
                with ObjectStore(copy.root) as store, Mirror(copy.mirror, store) as mirror:
                    verify_hashes(store, [name], Policy(repair=True), lambda _: None, mirror=mirror)
            assert copy.path(name).read_bytes() == damage.restored, point
        for number in range(3):
            if sha1(content(number)) not in plant.touched:
                assert copy.path(sha1(content(number))).read_bytes() == content(number)


def points_of(traced: Callable[[tracer.Policy], tracer.Outcome]) -> list[int]:
    """Where a kill can matter: before calls that change the store. (All would take minutes, and look the same.)"""
    points: list[int] = []
    changing = {"write", "linkat", "renameat", "renameat2", "unlinkat", "mkdirat", "fsync", "fchmod", "chmod", "rmdir"}

    def note(call: tracer.Call) -> None:
        if call.name in changing:
            points.append(call.index)

    assert traced(note).error is None
    return points


# -- other users, other set-ups ----------------------------------------------------------------------------------------


@needs_root
def test_the_worker_replaces_a_strangers_file_by_its_own_copy(open_path: Path) -> None:
    root = open_path / "w"
    root.mkdir()
    os.chown(root, WORKER, STORE_GROUP)
    plant = as_user(WORKER, STORE_GROUP, lambda: make(root))
    data, path = plant.victim()
    os.chown(path, STRANGER, OTHER_GROUP)
    other, closed = plant.victim()
    closed.chmod(0)
    found = as_user(WORKER, STORE_GROUP, lambda: verify(plant, repair=True))
    assert {(f.kind, f.action) for f in found} == {
        ("wrong-mode", "mended"),
        ("wrong-owner", "replaced"),
        ("wrong-group", "failed"),
    }
    assert (path.stat().st_uid, path.stat().st_gid, path.read_bytes()) == (WORKER, STORE_GROUP, data)
    assert closed.read_bytes() == other
    assert as_user(WORKER, STORE_GROUP, lambda: verify(plant)) == []


@needs_root
def test_a_reader_may_look_and_is_told_what_he_cannot_mend(open_path: Path) -> None:
    root = open_path / "w"
    root.mkdir()
    os.chown(root, WORKER, STORE_GROUP)
    plant = as_user(WORKER, STORE_GROUP, lambda: make(root))
    _, path = plant.victim()
    plant.rot(path, b"rot")
    os.chmod(plant.mirror, 0o755)
    os.chmod(plant.mirror / "Data", 0o755)
    found = as_user(READER, OTHER_GROUP, lambda: verify(plant), groups=(STORE_GROUP,))
    assert kinds(found) == [("rotten", "reported")]


def test_a_database_of_the_original_is_clean(tmp_path: Path) -> None:
    root = tmp_path / "store"
    root.mkdir(mode=0o775)
    (root / "FileStruct.json").write_text('{"Version": 1}')
    for name in ("Data", "Temp", "Error", "Trash", "Static"):
        (root / name).mkdir()
        os.chmod(root / name, 0o775)
    for number in range(20):
        data = content(number)
        path = root / "Data" / sha1(data)[:2] / sha1(data)[2:4] / sha1(data)
        path.parent.mkdir(parents=True)
        os.chmod(path.parent.parent, 0o775)
        os.chmod(path.parent, 0o775)
        path.write_bytes(data)
        path.chmod(0o444)
    found: list[Finding] = []
    with ObjectStore(root) as store:
        report = verify_all(store, Options(Policy(repair=True)), found.append)
    assert (report.files, found) == (20, [])


def test_a_store_where_the_group_writes_is_clean(tmp_path: Path) -> None:
    create_store(tmp_path / "store", apps=["shop"], writers="group")
    found: list[Finding] = []
    with ObjectStore(tmp_path / "store") as store:
        for number in range(20):
            store.put(content(number))
        assert verify_all(store, Options(Policy(repair=True)), found.append).files == 20
    assert found == []


# -- kindness ----------------------------------------------------------------------------------------------------------


def is_cached(path: Path) -> bool:
    fd = os.open(path, os.O_RDONLY)
    try:
        return any(cached_windows(fd, 0, os.fstat(fd).st_size))
    finally:
        os.close(fd)


def test_what_others_have_in_the_page_cache_stays_and_what_was_read_for_verification_goes(tmp_path: Path) -> None:
    plant = make(tmp_path, 2)
    large = [plant.put(os.urandom(20 << 20)) for _ in range(2)]
    small = [plant.path(sha1(content(number))) for number in range(2)]
    os.sync()

    def kept_and_dropped() -> bool:
        for path in (large[0], small[0]):
            path.read_bytes()
        for path in (large[1], small[1]):
            fd = os.open(path, os.O_RDONLY)
            drop_cache(fd)
            os.close(fd)
        if is_cached(large[1]) or is_cached(small[1]):
            pytest.skip("CI-may-skip: a filesystem whose cache cannot be dropped")
        assert verify(plant) == []
        return [is_cached(path) for path in (*large, *small)] == [True, False, True, False]

    assert any(kept_and_dropped() for _ in range(5)), "other processes may drop the cache now and then, not five times"


def test_looking_does_not_touch_access_times(tmp_path: Path) -> None:
    plant = make(tmp_path, 1)
    path = plant.path(sha1(content(0)))
    os.utime(path, ns=(1, 1))
    verify(plant)
    assert path.stat().st_atime_ns == 1


# -- who is told -------------------------------------------------------------------------------------------------------


def want_to_know(root: Path, app: str, task: str) -> None:
    path = root / "FileStruct.json"
    tree = json.loads(path.read_text())
    tree["Apps"][app]["on_quarantine"] = task
    path.write_text(json.dumps(tree))


def test_an_application_that_keeps_a_lost_file_is_told_once(tmp_path: Path) -> None:
    with running_stack(tmp_path, verify_every="1s", namespace="told") as stack:
        plant = Plant(stack.store_path, tmp_path / "mirror")
        want_to_know(plant.root, "shop", "shop.tasks.file_lost")
        kept, healed, unkept = content(1), content(2), content(3)
        stack.client("shop", namespace="told").keep.publish(lambda: [sha1(kept), sha1(healed)])
        stack.client("blog", namespace="told").keep.publish(lambda: [sha1(unkept)])
        for data in (kept, healed, unkept):
            plant.rot(plant.put(data), b"rot of " + data)
        plant.trash(healed)
        (plant.root / "Lock/verify.json").unlink(missing_ok=True)
        assert eventually(
            lambda: plant.path(sha1(healed)).exists() and plant.path(sha1(healed)).read_bytes() == healed, 60
        )
        assert eventually(lambda: not plant.path(sha1(kept)).exists() and not plant.path(sha1(unkept)).exists(), 60)
        redis = connect(stack.redis_url)
        queue = Names("told").done_queue("shop")
        assert eventually(lambda: redis.llen(queue) > 0, 60), stack.log()[-3000:]
        message = json.loads(redis.lrange(queue, 0, -1)[0])
        assert message["headers"]["task"] == "shop.tasks.file_lost"
        assert sha1(kept) in message["headers"]["kwargsrepr"]
        sent: list[Any] = []
        with ObjectStore(plant.root) as store:
            reader = KeepReader(KV(stack.redis_url), Names("told"))
            assert eventually(lambda: histories.load(store, store.probe_clock()).told, 20), "noted, after it was sent"
            assert tell(store, reader, Names("told"), lambda *message: sent.append(message)) == 0
            (plant.root / "Lock/verify.json").unlink()
            assert tell(store, reader, Names("told"), lambda *message: sent.append(message)) == 1, "at least once"
        assert sent[0][0] == "shop.tasks.file_lost"
        assert sent[0][1]["hash"] == sha1(kept)
        assert (plant.root / sent[0][1]["kept"] / sha1(kept)).read_bytes() == b"rot of " + kept
        assert redis.llen(queue) == 1
        assert redis.llen(Names("told").done_queue("blog")) == 0
    assert STAMP in os.listdir(plant.root / "Trash")
