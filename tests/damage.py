"""Damage of every kind to plant in a store, and what verification has to make of each. By hand: nothing of fsworker's."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

STAMP = "20200101000000-00000000-00000001"
OLD_S = 1_600_000_000


def sha1(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def content(number: int, size: int = 300) -> bytes:
    """The content of the healthy file of that number."""
    return (b"content %d " % number * size)[:size]


class Plant:
    """A store's directory to damage. Files are taken in turn, so that no two damages meet."""

    def __init__(self, root: Path, mirror: Path) -> None:
        self.root = root
        self.mirror = mirror
        self.next = 0
        self.touched: set[str] = set()

    def path(self, name: str) -> Path:
        return self.root / "Data" / name[:2] / name[2:4] / name

    def relative(self, path: Path) -> str:
        return str(path.relative_to(self.root))

    def fill(self, count: int) -> None:
        """Put so many healthy files, in the cheapest way."""
        for number in range(count):
            self.put(content(number))

    def put(self, data: bytes) -> Path:
        path = self.path(sha1(data))
        for directory in (path.parent.parent, path.parent):
            if not directory.exists():
                directory.mkdir()
                os.chmod(directory, 0o2750)
        path.write_bytes(data)
        path.chmod(0o444)
        return path

    def victim(self) -> tuple[bytes, Path]:
        """A healthy file to be damaged."""
        data = content(self.next)
        self.next += 1
        self.touched.add(sha1(data))
        return data, self.path(sha1(data))

    def rot(self, path: Path, data: bytes) -> None:
        path.chmod(0o644)
        path.write_bytes(data)
        path.chmod(0o444)

    def trash(self, data: bytes, copy: bytes | None = None) -> None:
        directory = self.root / "Trash" / STAMP
        directory.mkdir(exist_ok=True, mode=0o750)
        (directory / sha1(data)).write_bytes(data if copy is None else copy)

    def back_up(self, data: bytes, copy: bytes | None = None) -> None:
        path = self.mirror / "Data" / sha1(data)[:2] / sha1(data)[2:4] / sha1(data)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if copy is None else copy)


@dataclass(frozen=True)
class Damage:
    """A planted damage: where it is, what it is, what a repair does, and the bytes that must still be somewhere."""

    name: str
    path: str
    kind: str
    action: str
    bytes_kept: bytes | None = None
    restored: bytes | None = None
    """What the store must have, good, after the repair."""


Planter = Callable[[Plant], Damage]
DAMAGES: dict[str, Planter] = {}
AS_ROOT: dict[str, Planter] = {}


def damage(planter: Planter) -> Planter:
    DAMAGES[planter.__name__] = planter
    return planter


def damage_by_root(planter: Planter) -> Planter:
    AS_ROOT[planter.__name__] = planter
    return planter


def rotten(plant: Plant, bad: Callable[[bytes], bytes], kind: str = "rotten", copies: str = "") -> Damage:
    data, path = plant.victim()
    plant.rot(path, bad(data))
    if "bad trash" in copies:
        plant.trash(data, b"this rotted too")
    elif "trash" in copies:
        plant.trash(data)
    if "mirror" in copies:
        plant.back_up(data)
    healed = copies and copies != "bad trash"
    action = "healed" if healed else "quarantined"
    return Damage(copies, plant.relative(path), kind, action, bad(data), data if healed else None)


@damage
def one_bit_flipped(plant: Plant) -> Damage:
    return rotten(plant, lambda data: bytes([data[0] ^ 1]) + data[1:])


@damage
def flipped_with_a_copy_in_trash(plant: Plant) -> Damage:
    return rotten(plant, lambda data: data[:-1] + b"?", copies="trash")


@damage
def flipped_with_a_copy_in_the_mirror(plant: Plant) -> Damage:
    return rotten(plant, lambda data: b"?" + data[1:], copies="mirror")


@damage
def rotten_in_trash_too_and_good_in_the_mirror(plant: Plant) -> Damage:
    return rotten(plant, lambda data: b"!" + data[1:], copies="bad trash, mirror")


@damage
def rotten_in_trash_too(plant: Plant) -> Damage:
    return rotten(plant, lambda data: b"#" + data[1:], copies="bad trash")


@damage
def emptied(plant: Plant) -> Damage:
    return rotten(plant, lambda data: b"", "empty")


@damage
def emptied_with_a_copy(plant: Plant) -> Damage:
    return rotten(plant, lambda data: b"", "empty", copies="mirror")


@damage
def cut_short(plant: Plant) -> Damage:
    return rotten(plant, lambda data: data[:100], copies="mirror")


@damage
def longer_than_it_was(plant: Plant) -> Damage:
    return rotten(plant, lambda data: data + b"\n")


@damage
def never_written(plant: Plant) -> Damage:
    _, path = plant.victim()
    path.unlink()
    with path.open("wb") as stream:
        stream.truncate(4096)
    path.chmod(0o444)
    return Damage("", plant.relative(path), "rotten", "quarantined", bytes(4096))


@damage
def another_files_content(plant: Plant) -> Damage:
    return rotten(plant, lambda data: content(5000))


@damage
def writable(plant: Plant) -> Damage:
    data, path = plant.victim()
    path.chmod(0o644)
    return Damage("", plant.relative(path), "wrong-mode", "mended", restored=data)


@damage
def closed(plant: Plant) -> Damage:
    data, path = plant.victim()
    path.chmod(0)
    return Damage("", plant.relative(path), "wrong-mode", "mended", restored=data)


@damage
def with_a_set_id_bit(plant: Plant) -> Damage:
    data, path = plant.victim()
    path.chmod(0o4444)
    return Damage("", plant.relative(path), "wrong-mode", "mended", restored=data)


def misnamed(plant: Plant, rename: Callable[[Path], Path], kind: str, action: str) -> Damage:
    data, path = plant.victim()
    target = rename(path)
    path.rename(target)
    restored = data if action == "moved" else None
    return Damage("", plant.relative(target), kind, action, data, restored)


@damage
def in_capital_letters(plant: Plant) -> Damage:
    return misnamed(plant, lambda path: path.with_name(path.name.upper()), "wrong-name", "moved")


@damage
def with_a_suffix(plant: Plant) -> Damage:
    return misnamed(plant, lambda path: path.with_name(f"{path.name}.jpg"), "wrong-name", "moved")


@damage
def under_the_name_of_an_unfinished_rsync(plant: Plant) -> Damage:
    return misnamed(plant, lambda path: path.with_name(f".{path.name}.Xy1z2A"), "wrong-name", "moved")


@damage
def cut_off_under_the_name_of_an_unfinished_rsync(plant: Plant) -> Damage:
    data, path = plant.victim()
    path.unlink()
    return stray(plant, path.with_name(f".{path.name}.Zz9y8B"), "wrong-name", data[:50])


@damage
def in_another_shard(plant: Plant) -> Damage:
    def elsewhere(path: Path) -> Path:
        other = plant.root / "Data" / path.parent.parent.name / f"{int(path.parent.name, 16) ^ 1:02x}"
        if not other.exists():
            other.mkdir()
            os.chmod(other, 0o2750)
        return other / path.name

    return misnamed(plant, elsewhere, "wrong-place", "moved")


@damage
def directly_in_data(plant: Plant) -> Damage:
    return misnamed(plant, lambda path: plant.root / "Data" / path.name, "wrong-place", "moved")


@damage
def misplaced_and_rotten(plant: Plant) -> Damage:
    _, path = plant.victim()
    target = path.parent.parent / path.name
    path.rename(target)
    plant.rot(target, b"gone bad")
    return Damage("", plant.relative(target), "wrong-place", "quarantined", b"gone bad")


def stray(plant: Plant, path: Path, kind: str, data: bytes | None = b"stray") -> Damage:
    if data is not None:
        path.write_bytes(data)
    return Damage("", plant.relative(path), kind, "quarantined", data)


@damage
def a_file_in_data(plant: Plant) -> Damage:
    return stray(plant, plant.root / "Data" / "README.txt", "stray-file")


@damage
def a_file_in_a_shard(plant: Plant) -> Damage:
    return stray(plant, plant.victim()[1].with_name("Thumbs.db"), "stray-file", b"thumbs")


@damage
def a_name_that_is_no_text(plant: Plant) -> Damage:
    path = plant.victim()[1].parent / os.fsdecode(b"\xff\x1b[31m\n")
    return stray(plant, path, "stray-file", b"escaped")


@damage
def a_directory_in_data(plant: Plant) -> Damage:
    path = plant.root / "Data" / "Data"
    (path / "da").mkdir(parents=True)
    (path / "da" / "nested").write_bytes(b"nested twice")
    return stray(plant, path, "stray-directory", None)


@damage
def a_directory_where_files_are(plant: Plant) -> Damage:
    path = plant.victim()[1].with_name("aa")
    path.mkdir()
    return stray(plant, path, "stray-directory", None)


@damage
def a_directory_with_the_name_of_a_file(plant: Plant) -> Damage:
    data, path = plant.victim()
    path.unlink()
    path.mkdir()
    plant.back_up(data)
    return Damage("", plant.relative(path), "stray-directory", "healed", restored=data)


@damage
def a_link_in_the_place_of_a_file(plant: Plant) -> Damage:
    data, path = plant.victim()
    outside = plant.mirror.parent / "outside"
    outside.write_bytes(data)
    path.unlink()
    path.symlink_to(outside)
    plant.trash(data)
    return Damage("", plant.relative(path), "symlink", "healed", restored=data)


@damage
def a_link_that_leads_nowhere(plant: Plant) -> Damage:
    path = plant.root / "Data" / "latest"
    path.symlink_to("/nonexistent/place")
    return stray(plant, path, "symlink", None)


@damage
def a_fifo(plant: Plant) -> Damage:
    path = plant.victim()[1].with_name("fifo")
    os.mkfifo(path)
    return stray(plant, path, "special-file", None)


@damage
def a_socket(plant: Plant) -> Damage:
    path = plant.root / "Data" / "s"
    with socket.socket(socket.AF_UNIX) as made:
        here = os.getcwd()
        os.chdir(path.parent)  # the name of a socket is short
        try:
            made.bind(path.name)
        finally:
            os.chdir(here)
    return stray(plant, path, "special-file", None)


def mode_of_directory(plant: Plant, path: Path, mode: int) -> Damage:
    os.chmod(path, mode)
    return Damage("", plant.relative(path), "directory-mode", "mended")


@damage
def a_shard_that_all_may_write(plant: Plant) -> Damage:
    return mode_of_directory(plant, plant.victim()[1].parent, 0o2777)


@damage
def a_shard_closed_to_readers(plant: Plant) -> Damage:
    return mode_of_directory(plant, plant.victim()[1].parent, 0o700)


@damage
def a_dead_process_in_temp(plant: Plant) -> Damage:
    path = plant.root / "Temp" / STAMP
    path.mkdir()
    (path / "upload.jpg").write_bytes(b"half an upload")
    return Damage("", plant.relative(path), "temp-leftover", "quarantined", b"half an upload")


@damage
def a_stray_in_temp(plant: Plant) -> Damage:
    return stray(plant, plant.root / "Temp" / "core.1234", "temp-stray", b"dumped")


@damage
def an_upload_that_nobody_asked_for(plant: Plant) -> Damage:
    path = plant.root / "Spool/shop/forgotten.jpg"
    path.write_bytes(b"forgotten")
    os.utime(path, (OLD_S, OLD_S))
    return Damage("", plant.relative(path), "unrequested-upload", "waits", b"forgotten")


@damage
def a_taken_upload_without_a_job(plant: Plant) -> Damage:
    path = plant.root / "Spool/shop/.shop.0f5b1d3e-0000-4000-8000-000000000000.taken"
    return stray(plant, path, "orphaned-taken", b"taken")


@damage_by_root
def of_another_group(plant: Plant) -> Damage:
    data, path = plant.victim()
    os.chown(path, -1, 12345)
    return Damage("", plant.relative(path), "wrong-group", "mended", restored=data)


@damage_by_root
def of_another_owner(plant: Plant) -> Damage:
    data, path = plant.victim()
    os.chown(path, 12345, -1)
    return Damage("", plant.relative(path), "wrong-owner", "mended", restored=data)


@damage_by_root
def a_shard_of_another_group(plant: Plant) -> Damage:
    path = plant.victim()[1].parent
    os.chown(path, -1, 12345)
    return Damage("", plant.relative(path), "directory-group", "mended")


def plant_all(plant: Plant) -> list[Damage]:
    """Plant one of each kind that this user can plant."""
    planters = DAMAGES | (AS_ROOT if os.geteuid() == 0 else {})
    return [Damage(**{**vars(planter(plant)), "name": name}) for name, planter in planters.items()]


def all_bytes(root: Path) -> set[bytes]:
    """Every content anywhere in the store."""
    found = set()
    for directory, _, names in os.walk(root):
        for name in names:
            path = Path(directory) / name
            if path.is_file() and not path.is_symlink():
                found.add(path.read_bytes())
    return found


def copy(source: Path, target: Path) -> Path:
    """A backup, as ``rsync -a`` makes it."""
    shutil.copytree(source, target, symlinks=True)
    return target


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """A directory on tmpfs, where syncs and many files cost nothing."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="fsworker-test-") as name:
        yield Path(name)
