"""A real power cut: a filesystem on a loop device is shut down in the middle of the work, without its journal flushed.

Needs root, loop devices and the mkfs programs; skipped where one of them is missing. The workers' acknowledgements leave
through a pipe, so they survive.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import shutil
import signal
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from processes import ENVIRONMENT, eventually, python
from stores import assert_verifies

from fsworker.store.create import create_store
from fsworker.store.objects import ObjectStore

TORTURE = os.environ.get("FSWORKER_TORTURE") == "1"
CUTS = 12 if TORTURE else 2
_SHUTDOWN = 0x8004587D  # XFS_IOC_GOINGDOWN, EXT4_IOC_SHUTDOWN: _IOR('X', 125, __u32)
_NO_LOG_FLUSH = 2
_CLONE_NEWNS = 0x20000

FILESYSTEMS = {"ext4": ["mkfs.ext4", "-q", "-F"], "xfs": ["mkfs.xfs", "-q", "-f"]}

WORKER = """
import os, sys
from fsworker.store.batch import Batch
from fsworker.store.objects import ObjectStore
from fsworker.store.tempdirs import BaseTempDir
path, durability, seed = sys.argv[1:]
store = ObjectStore(path, durability=durability)
number = 0
while True:
    number += 1
    data = f"{seed} {number // 2}".encode() * (1 + number % 500)
    if durability == "batch":
        with Batch(store) as batch:
            names = [batch.put(data + b"%d" % n).hash for n in range(10)]
    elif number % 3 == 0:
        with BaseTempDir(store) as tmp:
            tmp.path("a").write_bytes(data)
            names = [tmp.put_in("a").hash]
    else:
        names = [store.put(data).hash]
    os.write(1, "".join(f"{name}\\n" for name in names).encode())
"""


def mount_for_ourselves() -> None:
    """From here on what this process mounts is seen by it and its children alone (mount_namespaces(7)).

    A container that somebody starts meanwhile would keep a copy of the mount, and what was cut off would go on.
    """
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS) != 0:
        pytest.skip(f"CI-may-skip: no mount namespace here: {os.strerror(ctypes.get_errno())}")
    subprocess.run(["mount", "--make-rslave", "/"], check=True)


@contextmanager
def mounted(image: Path) -> Iterator[Path]:
    mount = image.with_name("mount")
    mount.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-o", "loop", str(image), str(mount)], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"CI-may-skip: no such loop mounts here: {done.stderr.strip()}")
    try:
        yield mount
    finally:
        assert eventually(
            lambda: subprocess.run(["umount", str(mount)], check=False, capture_output=True).returncode == 0
        )


def cut_power(mount: Path) -> None:
    fd = os.open(mount, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
    finally:
        os.close(fd)


@pytest.fixture(params=FILESYSTEMS)
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An image of an empty filesystem."""
    command = FILESYSTEMS[request.param]
    if os.geteuid() != 0:
        pytest.skip("CI-may-skip: only root can mount")
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    mount_for_ourselves()
    (tmp_path / "image").write_bytes(b"")
    os.truncate(tmp_path / "image", 400 << 20)
    subprocess.run([*command, str(tmp_path / "image")], check=True)
    return tmp_path / "image"


def acknowledged_before_the_cut(store: Path, durability: str, cut: Callable[[], None], after: int) -> set[str]:
    """Start three workers, cut the power when they have given their word ``after`` times, and return what they said."""
    reader, writer = os.pipe()
    workers = [
        subprocess.Popen(
            python(WORKER, store, durability, seed), env=ENVIRONMENT, stdout=writer, stderr=subprocess.DEVNULL
        )
        for seed in range(3)
    ]
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = {pipe.readline().strip() for _ in range(after)}
        cut()
        said |= {line.strip() for line in pipe if len(line) == 41}  # to the last word: they die of the cut
    for worker in workers:
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    return said


@pytest.mark.parametrize("durability", ["full", "batch"])
def test_no_power_cut_loses_what_was_acknowledged(image: Path, durability: str) -> None:
    chance, promised = random.Random(1), set()
    with mounted(image) as mount:
        create_store(mount / "store", apps=[])
    for cut in range(CUTS):
        with mounted(image) as mount:
            promised |= acknowledged_before_the_cut(
                mount / "store", durability, lambda mount=mount: cut_power(mount), chance.randrange(20, 120)
            )
        with mounted(image) as mount, ObjectStore(mount / "store") as store:
            missing = promised - set(store)
            assert missing == set(), f"cut {cut}: {len(missing)} of {len(promised)} lost"
            assert_verifies(store)
    print(f"{CUTS} cuts, {len(promised)} promises")  # noqa: T201 - for pytest -s


def test_the_cut_is_real(image: Path) -> None:
    """Without syncs, words are broken: the check can fail. (The kernel may happen to have written all: then again.)"""
    with mounted(image) as mount:
        create_store(mount / "store", apps=[])
    for _ in range(5):
        with mounted(image) as mount:
            said = acknowledged_before_the_cut(mount / "store", "none", lambda: cut_power(mount), 50)
        with mounted(image) as mount, ObjectStore(mount / "store") as store:
            if said - set(store):
                return
    raise AssertionError("five cuts without syncs lost nothing")


@pytest.mark.parametrize("image", ["xfs"], indirect=True)
def test_where_blocks_can_be_shared_a_large_file_is_cloned(image: Path) -> None:
    with mounted(image) as mount:
        create_store(mount / "store", apps=[])
        (mount / "upload").write_bytes(os.urandom(64 << 20))
        os.sync()
        free = shutil.disk_usage(mount).free
        with ObjectStore(mount / "store") as store:
            name = store.put_path(mount / "upload").hash
            (mount / "upload").write_bytes(b"changed")
            assert_verifies(store)
            assert store.location(name).stat().st_size == 64 << 20
            os.sync()
        assert shutil.disk_usage(mount).free > free - (8 << 20), "it was copied, or the upload's own blocks are gone"
