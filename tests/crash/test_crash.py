"""A store that is killed, or whose system calls fail, at any point keeps its word.

The whole enumeration takes minutes: ``FSWORKER_TORTURE=1`` runs it. Otherwise every scenario is killed at each of its
calls all the same, but only each third call is made to fail, in one way instead of seven, and only some wrecks are put
to use again.
"""

from __future__ import annotations

import errno
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsworker.errors import FSWorkerError
from fsworker.store.objects import ObjectStore

from . import tracer
from .scenarios import Scenario, all_scenarios, check, check_recovery, fresh_copy

TORTURE = os.environ.get("FSWORKER_TORTURE") == "1"
ERRNOS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.EROFS, errno.EACCES, errno.EINTR)
SYNCS = ("fsync", "fdatasync", "syncfs")

pytestmark = pytest.mark.skipif(not tracer.SUPPORTED, reason="CI-may-skip: the tracer writes registers of x86-64")
scenarios = pytest.mark.parametrize("scenario", all_scenarios(), ids=lambda s: s.name)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL")


def trace(scenario: Scenario, root: Path, policy: tracer.Policy) -> tracer.Outcome:
    store = scenario.open(root)
    try:
        return tracer.run(lambda child: scenario.act(store, child.acknowledge), policy)
    finally:
        store.close()


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """A directory on tmpfs, where a sync costs nothing: a dying process does not care what the disk does."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="fsworker-test-") as name:
        yield Path(name)


def template_of(scenario: Scenario, tmp_path: Path) -> Path:
    template = tmp_path / "template"
    scenario.prepare(template)
    return template


@scenarios
def test_killed_before_any_system_call_it_keeps_its_word(scenario: Scenario, memory_path: Path) -> None:
    template = template_of(scenario, memory_path)
    whole = trace(scenario, fresh_copy(template, memory_path / "store"), lambda call: None)
    assert whole.error is None or isinstance(whole.error, scenario.raises)
    assert whole.calls > 5
    for point in range(whole.calls):
        root = fresh_copy(template, memory_path / "store")
        outcome = trace(scenario, root, lambda call: tracer.KILL if call.index == point else None)
        # (a second formatting of a traceback reads fewer source files)
        assert outcome.killed or outcome.calls <= point, f"call {point} was not reached, nor was it the end"
        check(root, scenario, outcome.acknowledged)
        if TORTURE or point % 3 == 0:
            check_recovery(root, scenario)


@scenarios
def test_whatever_system_call_fails_nothing_is_lost_and_nothing_swallowed(
    scenario: Scenario, memory_path: Path
) -> None:
    template = template_of(scenario, memory_path)
    calls = trace(scenario, fresh_copy(template, memory_path / "store"), lambda call: None).calls
    for point in range(calls) if TORTURE else range(len(scenario.name) % 3, calls, 3):
        for code in ERRNOS if TORTURE else (ERRNOS[point % len(ERRNOS)],):
            root = fresh_copy(template, memory_path / "store")
            failed: list[tracer.Call] = []

            def policy(call: tracer.Call, point: int = point, code: int = code) -> int | None:
                if call.index == point:
                    failed.append(call)
                    return code
                return None

            outcome = trace(scenario, root, policy)
            if not failed:
                assert point >= outcome.calls  # one call fewer this time
                continue
            where = f"{failed[0].name} ({point}) failing with {errno.errorcode[code]}"
            judge(scenario, outcome, failed[0], code, where)
            check(root, scenario, outcome.acknowledged)
            if TORTURE or point % 2 == 0:
                check_recovery(root, scenario)
    print(f"{calls} calls")  # noqa: T201 - for pytest -s


def judge(scenario: Scenario, outcome: tracer.Outcome, call: tracer.Call, code: int, where: str) -> None:
    """Either it worked all the same, or it says so in its own words."""
    if outcome.error is None:
        # Python itself repeats an interrupted call (PEP 475); that is no failed sync
        assert call.name not in SYNCS or code == errno.EINTR, f"{where} was swallowed"
    elif not (isinstance(outcome.error, OSError) and (scenario.own_calls or call.name == "write")):
        # (the last write is the acknowledgement, the scenario's own)
        assert isinstance(outcome.error, (FSWorkerError, *scenario.raises)), f"{where}: {outcome.error!r}"


def test_children_are_reaped_and_descriptors_closed(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    scenario = all_scenarios()[0]
    root = template_of(scenario, tmp_path)
    for policy in (lambda call: None, lambda call: tracer.KILL, lambda call: errno.EIO):
        trace(scenario, root, policy)
    assert len(os.listdir("/proc/self/fd")) == before
    children = subprocess.run(["ps", "-o", "stat=", "--ppid", str(os.getpid())], capture_output=True, text=True)
    assert "Z" not in children.stdout
    ObjectStore(root).close()
