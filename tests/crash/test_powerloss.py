"""After a power cut at any moment, everything that was acknowledged is there, whole; and each sync is needed for that.

Losses are replayed in a model (:mod:`powerloss`) from the system calls of the real code.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fsworker.store.errordir import REASON_FILE

from . import tracer
from .powerloss import Disk, Recorder, Sync, Trace, crashes, snapshot, written_before
from .scenarios import Scenario, all_scenarios, sha1

pytestmark = pytest.mark.skipif(not tracer.SUPPORTED, reason="CI-may-skip: the tracer writes registers of x86-64")

STATES_AT_A_POINT = 2000 if os.environ.get("FSWORKER_TORTURE") == "1" else 40
RECORDED = [s for s in all_scenarios() if not s.name.startswith("temp directory, failing")]
scenarios = pytest.mark.parametrize("scenario", RECORDED, ids=lambda s: s.name)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL")


def record(scenario: Scenario, root: Path) -> Trace:
    scenario.prepare(root)
    before = snapshot(root)
    past = []
    if not scenario.synced:
        before, past = written_before(before, root.stat().st_ino)
    store = scenario.open(root)
    recorder = Recorder(root)
    tracer.run(lambda child: scenario.act(store, child.acknowledge), watcher=recorder)
    store.close()
    return Trace(root.stat().st_ino, before, recorder.births, (*past, *recorder.events))


def judge(
    disk: Disk, scenario: Scenario, acknowledged: tuple[str, ...], initial: set[int], *, at_end: bool
) -> str | None:
    """What is wrong with this disk, if anything."""
    rot = {sha1(good): bad for good, bad in scenario.rotten}
    in_data = {path[-1]: inode for path, inode in disk.files("Data") if len(path) == 4}
    numbers = {id(inode): number for number, inode in disk.inodes.items()}
    if scenario.synced:
        for name, inode in in_data.items():
            if sha1(inode.data) != name and inode.data != rot.get(name):
                return f"{name} has wrong content"
    for name in acknowledged:
        if name not in in_data or sha1(in_data[name].data) != name:
            return f"{name} was acknowledged and is gone, or broken"
        if in_data[name].mode & 0o7777 != 0o444:
            return f"{name} was acknowledged and has a wrong mode"
        for depth in (1, 2):
            if disk.mode("Data", *(name[:2], name[2:4])[:depth]) not in (0o2750, 0o775):
                return f"{name} was acknowledged and its directory has a wrong mode"
        if numbers[id(in_data[name])] in initial and not in_data[name].fresh:
            return f"{name} was acknowledged and is old"
    trash = [inode.data for _, inode in disk.files("Trash")]
    for data in (*scenario.stored, *scenario.trashed) if scenario.synced else ():
        present = sha1(data) in in_data and in_data[sha1(data)].data == data
        if not present and not (data in (*scenario.may_leave, *scenario.trashed) and data in trash):
            return f"{data[:20]!r} was there before and is gone"
    kept = {path[1]: inode.data for path, inode in disk.files("Error") if path[-1] != REASON_FILE}
    reasons = {path[1]: inode.data for path, inode in disk.files("Error") if path[-1] == REASON_FILE}
    for good, bad in scenario.rotten:
        if bad not in kept.values() and not (sha1(good) in in_data and in_data[sha1(good)].data == bad):
            return "the rotten bytes are gone"
    for data in scenario.kept if at_end else ():
        entry = next((stamp for stamp, content in kept.items() if content == data), None)
        if entry is None:
            return f"{data[:20]!r} is not kept"
        if not reasons.get(entry, b"").endswith(b"}"):
            return f"{data[:20]!r} is kept without a reason"
    return None


def first_fault(trace: Trace, scenario: Scenario) -> tuple[str | None, int]:
    """The first wrong disk, in words, and how many were looked at."""
    states = 0
    for disk, acknowledged, at_end in crashes(trace, STATES_AT_A_POINT):
        states += 1
        fault = judge(disk, scenario, acknowledged, set(trace.before), at_end=at_end)
        if fault is not None:
            return fault, states
    return None, states


@scenarios
def test_no_power_cut_loses_what_was_acknowledged(scenario: Scenario, tmp_path: Path) -> None:
    fault, states = first_fault(record(scenario, tmp_path / "store"), scenario)
    assert fault is None
    print(f"{states} states")  # noqa: T201 - for pytest -s
    assert states > 10


def test_every_sync_is_needed(tmp_path: Path) -> None:
    """Leaving out any one sync is caught, if not by the scenario it comes from, then by one where it matters.

    Where the directories were on disk before, their sync adds nothing; but only their maker could know.
    """
    caught: dict[str, set[bool]] = {}
    for number, scenario in enumerate(RECORDED):
        root = tmp_path / str(number)
        trace = record(scenario, root)
        for index in trace.syncs:
            event = trace.events[index]
            assert isinstance(event, Sync)
            fault, _ = first_fault(trace.without(index), scenario)
            kind = kind_of(event.path, root)
            caught.setdefault(kind, set()).add(fault is not None)
            print(f"{scenario.name}: without the sync of {event.path} ({kind}): {fault or 'nothing'}")  # noqa: T201 - for pytest -s
    assert {kind for kind, results in caught.items() if True not in results} == set()
    assert {kind for kind, results in caught.items() if False in results} <= {"root", "Data", "parent", "shard"}


def kind_of(path: str, root: Path) -> str:
    parts = path.split("/")
    if path == str(root):
        return "root"
    if path.startswith("Data/"):
        return {2: "parent", 3: "shard", 4: "stored file"}[len(parts)]
    if parts[0] in ("Error", "Trash") and len(parts) > 1:
        return f"{parts[0]} entry" if len(parts) == 2 else f"file in {parts[0]}"
    return "unpublished file" if parts[0] == "Temp" else path
