"""Import and export: a directory into a store, files out of it, and an existing FileStruct database."""

from __future__ import annotations

import json
import os
import signal
import stat
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from processes import background, eventually
from stores import assert_verifies, sha1, spoil

from fsworker.adoption import exporting
from fsworker.adoption import importing as adopt
from fsworker.adoption.manifest import Report, read_manifest
from fsworker.cli import cli
from fsworker.errors import ConfigError, StoreUnavailableError
from fsworker.model import Hash
from fsworker.store.facade import Store


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tree with what trees have: duplicates, empty files, odd names, links, a FIFO."""
    root = tmp_path / "source"
    for directory in ("", "a", "a/b"):
        (root / directory).mkdir(exist_ok=True)
    (root / "one.txt").write_bytes(b"one")
    (root / "a" / "again.txt").write_bytes(b"one")
    (root / "a" / "b" / "empty").touch()
    (root / "a" / "large.bin").write_bytes(os.urandom(3_000_000))
    (root / "new\nline").write_bytes(b"an odd name")
    Path(os.fsdecode(os.fsencode(root) + b"/not-utf8-\xff")).write_bytes(b"an odder name")
    (root / "link").symlink_to("one.txt")
    (root / "directory-link").symlink_to("a")
    os.mkfifo(root / "fifo")
    os.utime(root / "one.txt", ns=(10**18, 1_234_567_890_123_456_789))
    return root


def snapshot(root: Path) -> dict[str, tuple[Any, ...]]:
    """Everything about a tree that an import could change."""
    found = {}
    for path in [root, *sorted(root.rglob("*"))]:
        s = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(s.st_mode) else b""
        found[str(path)] = (s.st_ino, s.st_mode, s.st_nlink, s.st_size, s.st_mtime_ns, s.st_ctime_ns, content)
    return found


def do_import(store: Store, source: Path, manifest: Path) -> Report:
    with Store(store.root, durability="batch") as handle:  # as the command does
        return adopt.import_tree(handle, source, manifest)


def test_every_file_is_stored_and_the_source_is_not_touched(store: Store, source: Path, tmp_path: Path) -> None:
    before = snapshot(source)
    report = do_import(store, source, tmp_path / "m.jsonl")
    assert snapshot(source) == before
    assert (report.files, report.duplicates, report.done_before, report.failed) == (6, 1, 0, {})
    assert report.skipped == 3, "two links and a FIFO"
    assert report.bytes == sum(p.stat().st_size for p in source.rglob("*") if p.is_file() and not p.is_symlink()
                               and "directory-link" not in str(p))  # fmt: skip
    assert len(store) == 5
    assert_verifies(store)


def test_the_manifest_says_which_path_has_which_hash(store: Store, source: Path, tmp_path: Path) -> None:
    do_import(store, source, tmp_path / "m.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    head, *entries = lines
    assert head == {"fsworker": "import", "version": 1, "store": store.config.store_id, "source": str(source)}
    one = sha1(b"one")
    assert {"path": "one.txt", "hash": one, "size": 3, "mtime_ns": 1_234_567_890_123_456_789} in entries
    by_path = {entry["path"]: entry["hash"] for entry in entries}
    assert by_path["a/again.txt"] == one
    assert by_path["new\nline"] == sha1(b"an odd name")
    assert by_path[os.fsdecode(b"not-utf8-\xff")] == sha1(b"an odder name")
    assert set(by_path.values()) == set(store)


def test_a_second_import_does_only_what_is_new_or_changed(store: Store, source: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "m.jsonl"
    do_import(store, source, manifest)
    (source / "one.txt").write_bytes(b"two")
    (source / "later").write_bytes(b"later")
    report = do_import(store, source, manifest)
    assert (report.files, report.done_before) == (2, 5)
    _, entries = read_manifest(manifest)
    assert entries["one.txt"].hash == sha1(b"two")


def test_what_was_done_before_and_is_gone_from_the_store_is_stored_again(
    store: Store, source: Path, tmp_path: Path
) -> None:
    manifest = tmp_path / "m.jsonl"
    do_import(store, source, manifest)
    store.path(sha1(b"an odd name")).unlink()
    report = do_import(store, source, manifest)
    assert (report.files, report.done_before) == (1, 5)
    assert sha1(b"an odd name") in store


def test_an_import_that_is_killed_goes_on_where_it_stopped(store: Store, tmp_path: Path) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for number in range(1500):
        (many / f"{number:04}").write_bytes(str(number).encode() * 50)
    manifest = tmp_path / "m.jsonl"
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from fsworker import Store\nfrom fsworker.adoption.importing import import_tree\n"
        "import_tree(Store(sys.argv[1], durability='batch'), Path(sys.argv[2]), Path(sys.argv[3]))"
    )
    with background(code, store.root, many, manifest) as process:
        assert eventually(lambda: manifest.exists() and manifest.read_bytes().count(b"\n") > 200)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    with manifest.open("ab") as torn:
        torn.write(b'{"path": "cut o')
    _, noted = read_manifest(manifest)
    assert all(entry.hash in store for entry in noted.values()), "a line was written before its file was stored"
    report = do_import(store, many, manifest)
    assert report.done_before == len(noted)
    assert report.files == 1500 - len(noted)
    _, entries = read_manifest(manifest)
    assert {path: entry.hash for path, entry in entries.items()} == {
        p.name: sha1(p.read_bytes()) for p in many.iterdir()
    }


def test_a_full_disk_stops_an_import_which_can_be_taken_up(
    store: Store, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = tmp_path / "m.jsonl"
    with monkeypatch.context() as broken:
        broken.setattr("fsworker.durable.link_unnamed", _no_room)
        with pytest.raises(StoreUnavailableError, match="No space"):
            do_import(store, source, manifest)
    assert do_import(store, source, manifest).files == 6


def _no_room(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_file_that_changes_while_it_is_read_is_not_believed(store: Store, source: Path, tmp_path: Path) -> None:
    changed = source / "a" / "large.bin"

    class Changing(adopt.Batch):
        def put_source(self, fd: int) -> Any:
            stored = super().put_source(fd)
            if stored.size_bytes > 1_000_000:
                with changed.open("ab") as writer:
                    writer.write(b"more")
            return stored

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adopt, "Batch", Changing)
        report = do_import(store, source, tmp_path / "m.jsonl")
    assert list(report.failed) == ["a/large.bin"]
    assert "changed" in report.failed["a/large.bin"]
    assert "a/large.bin" not in read_manifest(tmp_path / "m.jsonl")[1]


def test_senseless_imports_are_refused(store: Store, source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="contain one another"):
        do_import(store, store.root / "Data", tmp_path / "m")
    with pytest.raises(ConfigError, match="contain one another"):
        do_import(store, tmp_path, Path("/nowhere/m"))
    with pytest.raises(ConfigError, match="leaves alone"):
        do_import(store, source, source / "m.jsonl")
    (tmp_path / "letter").write_text("Dear reader\n")
    with pytest.raises(ConfigError, match="no manifest"):
        do_import(store, source, tmp_path / "letter")
    assert (tmp_path / "letter").read_text() == "Dear reader\n"
    do_import(store, source / "a", tmp_path / "m.jsonl")
    with pytest.raises(ConfigError, match="another import"):
        do_import(store, source, tmp_path / "m.jsonl")


# Export


def test_an_export_gives_back_what_was_imported(store: Store, source: Path, tmp_path: Path) -> None:
    do_import(store, source, tmp_path / "m.jsonl")
    _, entries = read_manifest(tmp_path / "m.jsonl")
    target = tmp_path / "target"
    wanted = [(entry.path, entry.hash, entry.mtime_ns) for entry in entries.values()]
    report = exporting.export_files(store, wanted, target)
    assert (report.files, report.failed) == (6, {})
    for path in entries:
        assert (target / path).read_bytes() == (source / path).read_bytes()
        assert (target / path).stat().st_mtime_ns == (source / path).stat().st_mtime_ns
        assert (target / path).stat().st_nlink == 1, "whoever writes to it must not write to the store"
    (target / "one.txt").write_bytes(b"mine")
    (target / "a" / "large.bin").unlink()
    again = exporting.export_files(store, wanted, target)
    assert (again.files, again.done_before, list(again.failed)) == (1, 4, ["one.txt"])
    assert (target / "one.txt").read_bytes() == b"mine", "it was somebody's"


@pytest.mark.parametrize("path", ["../escape", "/escape", "a/../../escape", "", ".", "a//b", "link/escape", "x\0y"])
def test_an_export_stays_where_it_is(store: Store, tmp_path: Path, path: str) -> None:
    name = store.put_bytes(b"content")
    target = tmp_path / "inside" / "target"
    target.mkdir(parents=True)
    (target / "link").symlink_to(tmp_path)
    report = exporting.export_files(store, [(path, name, None), ("fine", name, None)], target)
    assert list(report.failed) == [path]
    assert (target / "fine").read_bytes() == b"content"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["inside", "store"]
    assert sorted(p.name for p in target.iterdir()) == ["fine", "link"]


def test_rot_is_not_exported(store: Store, tmp_path: Path) -> None:
    name = Hash(store.put_bytes(b"good"))
    spoil(store, name, b"rotten")
    report = exporting.export_files(
        store, [("x", name, None), ("y", "0" * 40, None), ("z", "no hash", None)], tmp_path / "t"
    )
    assert "rotten" in report.failed["x"]
    assert sorted(report.failed) == ["x", "y", "z"]
    assert list((tmp_path / "t").iterdir()) == []


# Commands


def run(*arguments: object, check: int = 0) -> Any:
    """A command, in this process: another one takes a second to start."""
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert done.exit_code == check, f"{done.output}{done.exception}"
    return done


def test_the_commands(store: Store, source: Path, tmp_path: Path) -> None:
    manifest, target = tmp_path / "m.jsonl", tmp_path / "target"
    said = json.loads(run("import", source, "--store", store.root, "--manifest", manifest, "--json").stdout)
    assert (said["files"], said["duplicates"], said["skipped"], said["failed"]) == (6, 1, 3, {})
    assert "6 were done before" in run("import", source, "--store", store.root, "--manifest", manifest).stdout
    assert "6 files written" in run("export", target, "--store", store.root, "--manifest", manifest).stdout
    assert (target / "a" / "again.txt").read_bytes() == b"one"
    run("export", tmp_path / "all", "--store", store.root, "--all")
    assert {path.name for path in (tmp_path / "all").iterdir()} == set(store)
    (tmp_path / "hashes").write_text(f"{sha1(b'one')}\n{'0' * 40}\n")
    failed = run("export", tmp_path / "some", "--store", store.root, "--hashes", tmp_path / "hashes", check=1)
    assert "is not in the store" in failed.stderr
    assert [path.name for path in (tmp_path / "some").iterdir()] == [sha1(b"one")]
    run("export", tmp_path / "none", "--store", store.root, check=2)
    run("import", tmp_path, "--store", store.root, check=2)


def test_an_existing_filestruct_database_is_opened_served_and_adopted(tmp_path: Path) -> None:
    """docs/adoption.md: as the original made it, with no id, no applications, no setgid bits."""
    root, name = tmp_path / "old", sha1(b"from 2013")
    for directory in (
        "",
        "Data",
        "Temp",
        "Error",
        "Trash",
        "Static",
        f"Data/{name[:2]}",
        f"Data/{name[:2]}/{name[2:4]}",
    ):
        (root / directory).mkdir()
        (root / directory).chmod(0o775)
    (root / "FileStruct.json").write_text('# a comment\n{"Version": 1, "Mine": true}\n')
    stored = root / "Data" / name[:2] / name[2:4] / name
    stored.write_bytes(b"from 2013")
    stored.chmod(0o444)
    with Store(root) as store:
        with store.open(name) as stream:
            assert stream.read() == b"from 2013"
        assert store.internal_uri(name).endswith(name)
    run("app", "add", "--store", root, "shop")
    config = json.loads((root / "FileStruct.json").read_text())
    assert config["Mine"] is True
    assert list(config["Apps"]) == ["shop"]
    with Store(root) as store:
        assert list(store) == [name]
        assert store.put_bytes(b"new") in store
