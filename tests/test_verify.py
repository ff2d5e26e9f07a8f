"""Verification finds every kind of damage, heals what can be healed, keeps the rest, and takes nothing healthy for bad."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from damage import STAMP, Damage, Plant, all_bytes, content, memory_path, plant_all, sha1
from processes import ENVIRONMENT, background

from fsworker.cli import cli
from fsworker.errors import ConfigError, VerificationRunningError
from fsworker.model import Hash, new_job_id
from fsworker.spool.directory import SpoolDirectory
from fsworker.store import hold
from fsworker.store.create import create_store
from fsworker.store.handle import SYNC_FAILED_MARK
from fsworker.store.locks import store_lock
from fsworker.store.objects import ObjectStore
from fsworker.store.tempdirs import BaseTempDir
from fsworker.verification import content as contents
from fsworker.verification import strays
from fsworker.verification.copies import Mirror
from fsworker.verification.desk import Policy
from fsworker.verification.findings import KINDS, Finding
from fsworker.verification.judging import Judge
from fsworker.verification.quarantine import quarantine
from fsworker.verification.whole import Options, verify_all, verify_hashes

__all__ = ["memory_path"]

CHURN = """
import os, random, sys
from fsworker.store import layout, trash
from fsworker.store.objects import ObjectStore
store = ObjectStore(sys.argv[1], durability="none")
chance, number = random.Random(int(sys.argv[2])), 0
stamp = layout.stamp()
trash.open_run(store, stamp)
print("ready", flush=True)
while True:
    number += 1
    data = b"churn %s %d " % (sys.argv[2].encode(), number % 500) * (1 if number % 50 else 40_000)
    name = store.put(data).hash
    match chance.randrange(4):
        case 0: trash.move_to_trash(store, name, stamp, 2.0**40)
        case 1: trash.move_to_trash(store, name, stamp, 2.0**40), trash.restore(store, name)
        case 2: trash.move_to_trash(store, name, stamp, 2.0**40), trash.delete_from_trash(store, stamp, name, 2.0**40)
        case 3: store.freshen(name)
"""


def make(tmp_path: Path, count: int = 200) -> Plant:
    create_store(tmp_path / "store", apps=["shop"])
    plant = Plant(tmp_path / "store", tmp_path / "mirror")
    (tmp_path / "mirror/Data").mkdir(parents=True)
    plant.fill(count)
    return plant


def verify(plant: Plant, *, repair: bool = False, mirror: bool = True, processes: int = 1) -> list[Finding]:
    found: list[Finding] = []
    with ObjectStore(plant.root) as store, Mirror(plant.mirror, store) as copies:
        options = Options(policy=Policy(repair=repair), processes=processes)
        verify_all(store, options, found.append, mirror=copies if mirror else None)
    return found


def kinds(found: list[Finding]) -> list[tuple[str, str, str]]:
    return sorted((finding.path, finding.kind, finding.action) for finding in found)


def assert_healthy(plant: Plant, count: int, *, but: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """Every file that was not damaged is what it was."""
    for number in range(count):
        name = sha1(content(number))
        if name not in but:
            path = plant.path(name)
            assert path.read_bytes() == content(number)
            assert path.stat().st_mode & 0o7777 == 0o444


def test_a_healthy_store_is_clean(tmp_path: Path) -> None:
    assert verify(make(tmp_path), repair=True) == []
    assert not list((tmp_path / "store/Error").iterdir())


def test_every_kind_of_damage_in_a_store_of_ten_thousand_files_in_use(memory_path: Path) -> None:
    count = 10_000
    plant = make(memory_path, count)
    damages = plant_all(plant)
    assert len(damages) >= 20
    assert len({damage.kind for damage in damages}) >= 15
    waiting = sorted((d.path, d.kind, d.action) for d in damages if d.action == "waits")
    with background(CHURN, plant.root, 1) as first, background(CHURN, plant.root, 2) as second:
        assert all(process.stdout and process.stdout.readline() == "ready\n" for process in (first, second))
        looked = verify(plant, processes=2)
        repaired = verify(plant, repair=True, processes=2)
        again = verify(plant, repair=True, processes=2)
        assert first.poll() is None
        assert second.poll() is None
    assert kinds(looked) == sorted((d.path, d.kind, "reported") for d in damages)
    assert kinds(repaired) == sorted((d.path, d.kind, d.action) for d in damages)
    assert kinds(again) == waiting
    assert_settled(plant, damages, count)


def assert_settled(plant: Plant, damages: list[Damage], count: int) -> None:
    assert_healthy(plant, count, but=plant.touched)
    everywhere = all_bytes(plant.root)
    for damage in damages:
        if damage.bytes_kept is not None:
            assert damage.bytes_kept in everywhere, damage.name
        if damage.restored is not None:
            path = plant.path(sha1(damage.restored))
            assert path.read_bytes() == damage.restored, damage.name
            assert path.stat().st_mode & 0o7777 == 0o444, damage.name
    for entry in (plant.root / "Error").iterdir():
        assert json.loads((entry / "Reason.json").read_bytes())["kind"] == "quarantined"


def test_looking_changes_nothing(tmp_path: Path) -> None:
    plant = make(tmp_path)
    plant_all(plant)
    before = tree(plant.root)
    verify(plant)
    assert tree(plant.root) == before


def tree(root: Path) -> list[tuple[str, int, int, int]]:
    """Every name, its mode, size and inode; not the notes that verification writes for itself."""
    paths = [p for p in sorted(root.rglob("*")) if "Lock" not in p.relative_to(root).parts]
    return [(str(p), s.st_mode, s.st_size, s.st_ino) for p in paths for s in [p.lstat()]]


def test_no_false_finding_while_files_come_go_and_come_back(tmp_path: Path) -> None:
    plant = make(tmp_path, 300)
    with background(CHURN, plant.root, 1) as first, background(CHURN, plant.root, 2) as second:
        assert all(process.stdout and process.stdout.readline() == "ready\n" for process in (first, second))
        until_s = time.monotonic() + 3
        rounds = 0
        while time.monotonic() < until_s:
            assert verify(plant, repair=True, processes=1 + rounds % 2) == []
            rounds += 1
        assert first.poll() is None
        assert second.poll() is None
    assert rounds > 2


def test_each_kind_says_what_to_do() -> None:
    for name, kind in KINDS.items():
        finding = Finding("Data/x", name)
        assert kind.meaning in finding.message
        assert len(finding.advice) > 5
        assert set(finding.as_json()) >= {"path", "kind", "message", "action", "advice"}


# -- what is believed --------------------------------------------------------------------------------------------------


def test_a_mismatch_that_is_not_there_at_the_second_reading_moves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant = make(tmp_path, 5)
    data, path = plant.victim()
    plant.rot(path, b"a bit flips in memory")
    mended = contents.drop_cache

    def mend(fd: int) -> None:
        plant.rot(path, data)
        mended(fd)

    monkeypatch.setattr(contents, "drop_cache", mend)
    (finding,) = verify(plant, repair=True)
    assert (finding.kind, finding.action) == ("unstable", "reported")
    assert path.read_bytes() == data


def test_a_file_that_an_ingest_heals_meanwhile_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant = make(tmp_path, 5)
    data, path = plant.victim()
    plant.rot(path, b"rot")
    drop = contents.drop_cache

    def heal_first(fd: int) -> None:
        with ObjectStore(plant.root) as other:
            other.put(data)
        drop(fd)

    monkeypatch.setattr(contents, "drop_cache", heal_first)
    assert verify(plant, repair=True) == []
    assert path.read_bytes() == data


def test_when_everything_seems_rotten_it_is_not_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "MAX_ROTTEN", 10)
    plant = make(tmp_path, 100)
    for _ in range(60):
        _, path = plant.victim()
        plant.rot(path, b"rot %d" % plant.next)
    found = verify(plant, repair=True)
    actions = [finding.action for finding in found]
    assert len(found) == 60
    assert 10 <= actions.count("quarantined") < 60
    assert actions.count("waits") > 0
    assert "test the disk" in next(f.message for f in found if f.action == "waits")


def test_rot_in_a_large_file_is_found(tmp_path: Path) -> None:
    plant = make(tmp_path, 0)
    data = bytearray(os.urandom(17 << 20))
    path = plant.put(bytes(data))
    assert verify(plant) == []
    data[9 << 20] ^= 1
    plant.rot(path, bytes(data))
    assert [finding.kind for finding in verify(plant)] == ["rotten"]


def test_what_is_another_inode_by_now_is_not_taken_away(tmp_path: Path) -> None:
    plant = make(tmp_path, 3)
    data, path = plant.victim()
    _, other = plant.victim()
    with ObjectStore(plant.root) as store:
        assert quarantine(store, plant.relative(path), other.stat(), "bad", name=Hash(path.name)) is None
        assert quarantine(store, "Data/zz", other.stat(), "bad") is None
    assert path.read_bytes() == data
    assert os.listdir(plant.root / "Error") == []


# -- healing -----------------------------------------------------------------------------------------------------------


def test_the_reason_of_a_quarantine_can_be_read_by_a_machine(tmp_path: Path) -> None:
    plant = make(tmp_path, 5)
    data, path = plant.victim()
    plant.rot(path, b"rot")
    (finding,) = verify(plant, repair=True)
    assert finding.kept is not None
    assert (plant.root / finding.kept).read_bytes() == b"rot"
    reason = json.loads((plant.root / finding.kept).with_name("Reason.json").read_bytes())
    assert reason["kind"] == "quarantined"
    assert (reason["hash"], reason["found"], reason["finding"]) == (sha1(data), sha1(b"rot"), "rotten")
    assert sha1(data) in reason["message"]


def test_the_name_is_free_for_a_later_upload(tmp_path: Path) -> None:
    plant = make(tmp_path, 5)
    data, path = plant.victim()
    plant.rot(path, b"rot")
    verify(plant, repair=True)
    assert not path.exists()
    with ObjectStore(plant.root) as store:
        assert not store.put(data).duplicate
    assert verify(plant) == []


def test_a_cut_off_file_is_said_to_be_one(tmp_path: Path) -> None:
    plant = make(tmp_path, 5)
    data, path = plant.victim()
    plant.rot(path, data[:100])
    plant.back_up(data)
    (finding,) = verify(plant, repair=True)
    assert "cut off: 100 of 300 bytes" in finding.message


def test_a_copy_that_rotted_too_heals_nothing(tmp_path: Path) -> None:
    plant = make(tmp_path, 5)
    data, path = plant.victim()
    plant.rot(path, b"rot")
    plant.trash(data, b"rot in trash")
    plant.back_up(data, b"rot in the mirror")
    (finding,) = verify(plant, repair=True)
    assert finding.action == "quarantined"
    assert not path.exists()
    assert {b"rot", b"rot in trash"} <= all_bytes(plant.root)


def test_a_healed_files_copy_in_trash_stays(tmp_path: Path) -> None:
    plant = make(tmp_path, 5)
    data, path = plant.victim()
    plant.rot(path, b"rot")
    plant.trash(data)
    verify(plant, repair=True)
    assert path.read_bytes() == data
    assert (plant.root / "Trash" / STAMP / sha1(data)).read_bytes() == data


def test_a_mirror_that_is_no_copy_of_a_store_is_refused(tmp_path: Path) -> None:
    plant = make(tmp_path, 1)
    with ObjectStore(plant.root) as store:
        for path in (tmp_path / "absent", tmp_path, plant.root):
            with pytest.raises(ConfigError, match="mirror"):
                Mirror(path, store)


def test_a_hold_stops_every_move_but_that_of_rot(tmp_path: Path) -> None:
    plant = make(tmp_path, 20)
    _, path = plant.victim()
    plant.rot(path, b"rot")
    (plant.root / "Data/README").write_bytes(b"stray")
    (plant.root / "Temp/core").write_bytes(b"stray")
    with ObjectStore(plant.root) as store:
        hold.set_hold(store, 3600)
        found = verify(plant, repair=True)
        assert {(f.kind, f.action) for f in found} == {
            ("rotten", "quarantined"),
            ("stray-file", "waits"),
            ("temp-stray", "waits"),
        }
        hold.release(store)
    assert {f.action for f in verify(plant, repair=True)} == {"quarantined"}
    assert verify(plant, repair=True) == []


# -- leftovers ---------------------------------------------------------------------------------------------------------


def test_what_is_in_use_is_no_leftover(tmp_path: Path) -> None:
    plant = make(tmp_path, 1)
    with ObjectStore(plant.root) as store, BaseTempDir(store) as temp:
        temp.path("a").write_bytes(b"x")
        assert verify(plant) == []
        assert verify(plant, repair=True) == []
    assert verify(plant, repair=True) == []


def test_an_upload_that_just_came_is_only_noted(tmp_path: Path) -> None:
    plant = make(tmp_path, 1)
    (plant.root / "Spool/shop/photo.jpg").write_bytes(b"x")
    (finding,) = verify(plant, repair=True)
    assert (finding.kind, finding.action, finding.is_note) == ("recent-upload", "reported", True)


# -- hashes, locks, marks ----------------------------------------------------------------------------------------------


def test_hashes_can_be_verified_alone(tmp_path: Path) -> None:
    plant = make(tmp_path, 10)
    (data, path), (healthy, _), (gone, gone_path) = plant.victim(), plant.victim(), plant.victim()
    plant.rot(path, b"rot")
    plant.back_up(gone)
    gone_path.unlink()
    names = [Hash(sha1(each)) for each in (data, healthy, gone, b"never was")]
    found: list[Finding] = []
    with ObjectStore(plant.root) as store, Mirror(plant.mirror, store) as mirror:
        verify_hashes(store, names, Policy(), found.append)
        assert [f.kind for f in found] == ["rotten", "missing", "missing"]
        found.clear()
        verify_hashes(store, names, Policy(repair=True), found.append, mirror=mirror)
        assert [f.action for f in found] == ["quarantined", "healed", "reported"]
    assert gone_path.read_bytes() == gone


def test_a_second_verification_says_so_and_stops(tmp_path: Path) -> None:
    plant = make(tmp_path, 1)
    with ObjectStore(plant.root) as store, store_lock(store.fd, "verify", store.modes.lock_file):
        with pytest.raises(VerificationRunningError, match="another verification"):
            verify(plant)
        assert command(plant, "verify").exit_code == 1


def test_a_whole_verification_removes_the_mark_of_a_failed_sync(tmp_path: Path) -> None:
    plant = make(tmp_path, 1)
    mark = plant.root / SYNC_FAILED_MARK
    with ObjectStore(plant.root) as store:
        store.prepare()
    mark.touch()
    verify(plant)
    assert not mark.exists()


def test_a_killed_scanner_is_an_error_not_a_clean_store(tmp_path: Path) -> None:
    plant = make(tmp_path, 2000)
    code = (
        "import os, sys, threading, time\n"
        "from fsworker.store.objects import ObjectStore\n"
        "from fsworker.verification.whole import Options, verify_all\n"
        "def killer():\n"
        "    while True:\n"
        "        for pid in open(f'/proc/self/task/{os.getpid()}/children').read().split(): os.kill(int(pid), 9)\n"
        "        time.sleep(0.001)\n"
        "threading.Thread(target=killer, daemon=True).start()\n"
        "verify_all(ObjectStore(sys.argv[1]), Options(processes=2, rate_bytes_s=100_000), print)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, plant.root], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "was killed" in done.stderr


# -- the command -------------------------------------------------------------------------------------------------------


def command(plant: Plant, *arguments: str) -> Result:
    """Run the command in this process (``test_ctrl_c_leaves_no_process`` runs a real one)."""
    return CliRunner().invoke(cli, [*arguments, "--store", str(plant.root)])


def test_the_command_reports_repairs_and_is_clean_then(tmp_path: Path) -> None:
    plant = make(tmp_path)
    _, path = plant.victim()
    plant.rot(path, b"rot")
    looked = command(plant, "verify")
    assert looked.exit_code == 1
    assert f"{path.name}: rotten" in looked.stdout
    assert "fsworker verify --repair" in looked.stdout
    repaired = command(plant, "verify", "--repair", "--json")
    assert repaired.exit_code == 1
    document = json.loads(repaired.stdout)
    assert [(f["hash"], f["kind"], f["action"]) for f in document["findings"]] == [(path.name, "rotten", "quarantined")]
    assert document["store"]["files"] == 200
    clean = command(plant, "verify", "--json")
    assert clean.exit_code == 0
    assert json.loads(clean.stdout)["findings"] == []


def test_the_command_takes_hashes_and_shards(tmp_path: Path) -> None:
    plant = make(tmp_path)
    _, path = plant.victim()
    plant.rot(path, b"rot")
    assert command(plant, "verify", path.name).exit_code == 1
    assert command(plant, "verify", "--shard", path.name[:2]).exit_code == 1
    assert command(plant, "verify", "--shard", f"{int(path.name[:2], 16) ^ 1:02x}").exit_code == 0
    assert command(plant, "verify", "--shard", "xy").exit_code == 2
    assert command(plant, "verify", "da39").exit_code == 2


def test_the_command_compares_a_backup(tmp_path: Path) -> None:
    plant = make(tmp_path, 50)
    for number in range(50):
        plant.back_up(content(number))
    same = command(plant, "verify", "--mirror", str(plant.mirror), "--json")
    assert (same.exit_code, json.loads(same.stdout)["findings"]) == (0, [])
    missing, extra, bad = content(1), b"collected since", content(2)
    (plant.mirror / plant.path(sha1(missing)).relative_to(plant.root)).unlink()
    plant.back_up(extra)
    plant.back_up(bad, b"rotten backup")
    before = tree(plant.mirror)
    compared = command(plant, "verify", "--mirror", str(plant.mirror), "--json")
    assert compared.exit_code == 1
    assert sorted((f["hash"], f["kind"]) for f in json.loads(compared.stdout)["findings"]) == sorted(
        [(sha1(missing), "mirror-missing"), (sha1(extra), "mirror-extra"), (sha1(bad), "mirror-rotten")]
    )
    assert tree(plant.mirror) == before
    assert command(plant, "verify", "--mirror", str(tmp_path / "unmounted")).exit_code == 2


def test_ctrl_c_leaves_no_process(tmp_path: Path) -> None:
    plant = make(tmp_path, 300)
    code = (
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it from birth\n"
        "from fsworker.cli import main\n"
        "main()\n"
    )
    words = [sys.executable, "-c", code, "verify", "--store", str(plant.root), "--rate", "1kB", "--processes", "2"]
    process = subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until_s = time.monotonic() + 20
    while not (pids := children.read_text().split()) and time.monotonic() < until_s:
        time.sleep(0.05)
    assert pids
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_what_is_raised_in_a_scanner_comes_with_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NotPicklableError(Exception):
        """Like many an exception of a C library's binding."""

    plant = make(tmp_path, 20)
    for error in (MemoryError("no room"), NotPicklableError("no way")):

        def broken(_judge: Judge, _tally: object, _pair: str, _second: str, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(Judge, "judge_second", broken)
        with pytest.raises((MemoryError, RuntimeError), match=str(error)) as caught:
            verify(plant, processes=2)
        assert "in broken" in "".join(caught.value.__notes__)


def test_a_request_that_cannot_be_read_leaves_all_uploads_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plant = make(tmp_path, 1)
    request = plant.root / f"Spool/shop/.{new_job_id('shop')}.json"
    request.write_text('{"task": "ingest", "request": {"upload": "photo.jpg"}}')
    (plant.root / "Spool/shop/photo.jpg").write_bytes(b"x")
    assert verify(plant) == []

    def broken(*_args: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(SpoolDirectory, "read_request", broken)
    assert verify(plant, repair=True) == []
    assert "a request cannot be read" in caplog.text


def test_a_spool_that_cannot_be_listed_is_told_and_all_else_is_verified(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plant = make(tmp_path, 3)
    plant.rot(plant.victim()[1], b"rot")
    (plant.root / "Spool").rename(plant.root / "away")
    (plant.root / "Spool").touch()
    assert [finding.kind for finding in verify(plant)] == ["rotten"]
    assert "Spool cannot be looked at: Not a directory" in caplog.text


def test_a_link_to_what_cannot_be_looked_at_is_left_to_a_person(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory of the store on a disk that fails."""
    plant = make(tmp_path, 1)
    link = plant.root / "Data/fe"
    link.symlink_to(tmp_path / "disk")
    look = os.stat

    def fails(path: object, **how: Any) -> os.stat_result:
        if path == "Data/fe" and how.get("follow_symlinks", True):
            raise OSError(errno.EIO, "Input/output error", path)
        return look(path, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", fails)
    (finding,) = verify(plant, repair=True)
    assert "left to a person" in finding.detail
    assert link.is_symlink()


def test_a_stray_directory_that_cannot_be_listed_is_not_called_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant = make(tmp_path, 1)
    (plant.root / "Data/stray").mkdir()

    def broken(*_args: object) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(strays, "opened_directory", broken)
    (finding,) = verify(plant)
    assert finding.detail == "entries: unknown (Input/output error)"
