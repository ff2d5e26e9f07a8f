"""Many processes at once, any order of operations, and a backup in the middle of it: the store's word is kept."""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule
from processes import background, python
from stores import assert_verifies, kept, sha1, spoil

from fsworker.errors import InvalidHashError, NotStoredError
from fsworker.model import parse_hash
from fsworker.store import trash
from fsworker.store.create import create_store
from fsworker.store.facade import Store
from fsworker.store.tempdirs import sweep_leftovers

TORTURE = os.environ.get("FSWORKER_TORTURE") == "1"
PROCESSES, PUTS, CONTENTS = (8, 10_000, 5_000) if TORTURE else (4, 150, 80)

PUTTING = """
import random, sys
from fsworker.store.batch import Batch
from fsworker.store.objects import ObjectStore
from fsworker.store.tempdirs import BaseTempDir
path, seed, puts, contents, durability = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]
chance = random.Random(seed)
store = ObjectStore(path, durability=durability)
batch = Batch(store).__enter__()
for number in range(puts):
    data = b"content %d" % chance.randrange(contents)
    way = chance.randrange(3)
    if way == 0:
        print(store.put(data).hash)
    elif way == 1:
        batch.put(data)
    else:
        with BaseTempDir(store) as tmp:
            tmp.path("a").write_bytes(data)
            print(tmp.put_in("a").hash)
batch.__exit__(None, None, None)
"""


def test_many_processes_put_overlapping_content(tmp_path: Path) -> None:
    create_store(tmp_path / "store", apps=[])
    durabilities = ("full", "batch", "none")
    processes = [
        subprocess.Popen(
            python(PUTTING, tmp_path / "store", seed, PUTS, CONTENTS, durabilities[seed % 3]),
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in range(PROCESSES)
    ]
    said = set()
    for process in processes:
        output, _ = process.communicate()
        assert process.returncode == 0
        said |= set(output.split())
    store = Store(tmp_path / "store")
    assert said <= set(store)
    assert set(store) <= {sha1(b"content %d" % n) for n in range(CONTENTS)}
    assert_verifies(store)
    for directory in ("Temp", "Error"):
        assert os.listdir(tmp_path / "store" / directory) == []


def test_collections_beside_ingests_and_claims_lose_nothing(tmp_path: Path) -> None:
    """Two processes move everything older than a moment to trash, all the time, while a third puts and claims it."""
    create_store(tmp_path / "store", apps=[], grace_s=0)
    with background(COLLECTING, tmp_path / "store") as one, background(COLLECTING, tmp_path / "store") as two:
        for collector in (one, two):
            assert collector.stdout
            collector.stdout.readline()
        store = Store(tmp_path / "store", durability="none")
        chance, put = random.Random(1), set()
        for _ in range(20_000 if TORTURE else 2000):
            data = b"%d" % chance.randrange(200)
            if chance.random() < 0.5:
                put.add(store.put_bytes(data))
            else:
                trash.restore(store, sha1(data))
        assert (one.poll(), two.poll()) == (None, None)
    assert any((tmp_path / "store/Trash").glob("*/*")), "nothing was collected"
    everywhere = {p.name for p in (tmp_path / "store").rglob("*") if len(p.name) == 40}
    assert everywhere == put
    assert_verifies(store)


COLLECTING = """
import sys
from fsworker.store import layout, trash
from fsworker.store.objects import ObjectStore
store = ObjectStore(sys.argv[1], durability="none")
stamp = layout.stamp()
trash.open_run(store, stamp)
print("ready", flush=True)
while True:
    for name in list(store):
        trash.move_to_trash(store, name, stamp, store.probe_clock() - 0.005)
"""


# -- any order of operations -------------------------------------------------------------------------------------------

contents = st.one_of(st.binary(max_size=8), st.sampled_from([b"", b"a"]), st.none().map(lambda _: b"b" * 3_000_000))
durabilities = st.sampled_from(["full", "batch", "none"])


class StoreMachine(RuleBasedStateMachine):
    """The store beside a dictionary."""

    names = Bundle("names")

    @initialize(writers=st.sampled_from(["worker", "group"]))
    def create(self, writers: str) -> None:
        base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.root = Path(subprocess.check_output(["mktemp", "-d", *(["-p", base] if base else [])], text=True).strip())
        self.store = Store.create(self.root / "store", apps=["shop"], writers=writers, grace_s=0)
        self.model: dict[str, bytes] = {}
        self.trashed: dict[str, bytes] = {}
        self.errors = 0
        self.run = 0

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.root)

    @rule(target=names, data=contents)
    def put_bytes(self, data: bytes) -> str:
        return self.stored(self.store.put_bytes(data), data)

    @rule(target=names, data=contents)
    def put_stream(self, data: bytes) -> str:
        return self.stored(self.store.put_stream(io.BytesIO(data)), data)

    @rule(target=names, data=contents)
    def put_file(self, data: bytes) -> str:
        (self.root / "upload").write_bytes(data)
        return self.stored(self.store.put_file(self.root / "upload"), data)

    @rule(target=names, data=contents)
    def save(self, data: bytes) -> str:
        with self.store.tempdir() as tmp:
            tmp.path("a.b").write_bytes(data)
            return self.stored(tmp.save("a.b"), data)

    @rule(data=st.lists(contents, max_size=4), durability=durabilities)
    def put_batch(self, data: list[bytes], durability: str) -> None:
        with Store(self.store.root, durability=durability) as store, store.batch() as batch:
            names = [batch.put(content).hash for content in data]
        for name, content in zip(names, data, strict=True):
            self.stored(name, content)

    def stored(self, name: str, data: bytes) -> str:
        assert name == sha1(data)
        self.model[name] = data
        return name

    @rule(name=names)
    def trash(self, name: str) -> None:
        self.run += 1
        stamp = f"20200101000000-00000000-{self.run:08d}"
        trash.open_run(self.store, stamp)
        moved = trash.move_to_trash(self.store, parse_hash(name), stamp, 2.0**40)
        assert moved == (name in self.model)
        if moved:
            self.trashed[name] = self.model.pop(name)

    @rule(name=names)
    def restore(self, name: str) -> None:
        there = name in self.model or name in self.trashed
        assert trash.restore(self.store, parse_hash(name)) == there
        if there:
            self.model.setdefault(name, self.trashed.get(name, b""))

    @rule(name=names)
    def freshen(self, name: str) -> None:
        assert self.store.freshen(parse_hash(name)) == (name in self.model)

    @rule(name=names)
    def rot_and_heal(self, name: str) -> None:
        if name in self.model:
            spoil(self.store, parse_hash(name), b"rot" + self.model[name])
            self.store.put_bytes(self.model[name])
            self.errors += 1

    @rule(durability=durabilities)
    def open_again(self, durability: str) -> None:
        self.store.close()
        self.store = Store(self.store.root, durability=durability)

    @rule()
    def sweep(self) -> None:
        assert sweep_leftovers(self.store, min_age_s=0) == []

    @rule(text=st.one_of(st.text(max_size=45), st.text("0123456789abcdefABCDEF\n", min_size=39, max_size=41)))
    def ask_for_anything(self, text: str) -> None:
        assert (text in self.store) == (text in self.model)
        if text not in self.model:
            with pytest.raises((InvalidHashError, NotStoredError)):
                self.store.path(text)

    @invariant()
    def the_same(self) -> None:
        if not hasattr(self, "store"):
            return
        assert sorted(self.model) == list(self.store)
        assert len(self.store) == len(self.model)
        for name, data in self.model.items():
            with self.store.open(name) as stream:
                assert stream.read() == data
            assert self.store.path(name).stat().st_mode & 0o777 == 0o444
        assert os.listdir(self.store.root / "Temp") == []
        assert len(kept(self.store)) == self.errors


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=400 if TORTURE else 25, stateful_step_count=25, deadline=None)


# -- rsync -------------------------------------------------------------------------------------------------------------

needs_rsync = pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")


@needs_rsync
def test_a_backup_of_a_live_store_is_valid_and_works_at_once(tmp_path: Path) -> None:
    create_store(tmp_path / "store", apps=["shop"])
    early = Store(tmp_path / "store").put_bytes(b"early")
    with background(PUTTING, tmp_path / "store", 1, 10**6, 10**6, "none") as load:
        assert load.stdout
        seen = [load.stdout.readline().strip() for _ in range(100)]
        for _ in range(3):
            command = ["rsync", "-a", "--delete", f"{tmp_path}/store/", f"{tmp_path}/backup"]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode in (0, 24), done.stderr  # 24: something in Temp/ vanished meanwhile
        assert load.poll() is None
    backup = Store(tmp_path / "backup")
    assert {early, *seen} <= set(backup)
    assert_verifies(backup)
    assert backup.config == Store(tmp_path / "store").config
    assert backup.put(b"early").duplicate
    backup.put(b"something new")
    sweep_leftovers(backup, min_age_s=0)
    assert os.listdir(tmp_path / "backup/Temp") == []


@needs_rsync
def test_freshening_does_not_make_rsync_send_a_file_again(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", grace_s=0)
    name = parse_hash(store.put_bytes(b"x"))
    command = ["rsync", "-ai", f"{tmp_path}/store/Data/", f"{tmp_path}/backup"]
    subprocess.run(command, check=True)
    store.freshen(name)
    assert name not in subprocess.run(command, check=True, capture_output=True, text=True).stdout


@needs_rsync
def test_a_backup_of_data_and_configuration_alone_is_enough(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", apps=["shop"])
    name = store.put_bytes(b"x")
    (tmp_path / "restored").mkdir()
    for part in ("Data", "FileStruct.json"):
        subprocess.run(["rsync", "-a", f"{tmp_path}/store/{part}", f"{tmp_path}/restored/"], check=True)
    restored = Store(tmp_path / "restored")
    assert restored.path(name).read_bytes() == b"x"
    restored.put_bytes(b"y")
    with restored.tempdir() as tmp:
        tmp.path("a").write_bytes(b"a")
        tmp.save("a")
    assert len(restored) == 3
