"""``fsworker verify`` as its operator meets it: on a terminal, in a pipe, refused, and summed up in ``stats``."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from damage import DAMAGES, Plant, sha1
from processes import ENVIRONMENT

from fsworker.cli import cli
from fsworker.store.create import create_store
from fsworker.store.locks import store_lock
from fsworker.store.objects import ObjectStore
from fsworker.verification.desk import Policy
from fsworker.verification.findings import KINDS, Action, Finding
from fsworker.verification.history import Limits
from fsworker.verification.part import coverage
from fsworker.verification.whole import Options, verify_all

BAR = "━"


def make(tmp_path: Path, count: int = 200) -> Plant:
    create_store(tmp_path / "store", apps=["shop"])
    plant = Plant(tmp_path / "store", tmp_path / "mirror")
    plant.fill(count)
    return plant


def on_a_terminal(words: str) -> tuple[int, str]:
    """Run a shell's line with a terminal for its input, output and errors; its exit code, and what was drawn."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(ENVIRONMENT, TERM="xterm", COLUMNS="60", LINES="24")
        os.execvp("sh", ["sh", "-c", words])
    drawn = b""
    while True:
        try:
            piece = os.read(terminal, 1 << 16)
        except OSError:  # EIO: nobody has the terminal open any more
            break
        if not piece:
            break
        drawn += piece
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), drawn.decode().replace("\r\n", "\n")


def line(plant: Plant, *arguments: str) -> str:
    """The command, slow enough that a bar is drawn."""
    code = "from fsworker.cli import main; main()"
    words = [sys.executable, "-c", code, "verify", "--store", str(plant.root), "--rate", "40kB", "--processes", "2"]
    return shlex.join([*words, *arguments])


def damaged(tmp_path: Path) -> tuple[Plant, set[str]]:
    plant = make(tmp_path)
    names = ("one_bit_flipped", "emptied", "writable", "a_file_in_a_shard", "with_a_suffix")
    return plant, {DAMAGES[name](plant).path for name in names}


# -- where it prints ---------------------------------------------------------------------------------------------------


def test_on_a_terminal_a_bar_is_drawn_and_findings_stand_above_it_in_whole_lines(tmp_path: Path) -> None:
    plant, paths = damaged(tmp_path)
    code, drawn = on_a_terminal(line(plant))
    assert code == 1
    assert BAR in drawn
    assert re.search(r"\d+/1\d\d", drawn), "directories of those that there are"
    assert re.search(r"\d:\d\d:\d\d.*\d:\d\d:\d\d", drawn), "how long, and how long still"
    said = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn)
    for path in paths:
        assert re.search(rf"(^|\n|\r){re.escape(path)}: [a-z-]+: .*\n    done: .*\n    to do: .*\n", said), path


def test_a_report_that_is_written_to_a_file_is_whole_while_the_bar_is_drawn(tmp_path: Path) -> None:
    plant, paths = damaged(tmp_path)
    target = tmp_path / "report.json"
    code, drawn = on_a_terminal(f"{line(plant, '--json')} > {shlex.quote(str(target))}")
    assert code == 1
    assert BAR in drawn
    assert not any(path in drawn for path in paths)
    report = json.loads(target.read_text())
    assert {finding["path"] for finding in report["findings"]} == paths
    assert report["complete"] is True


def test_in_a_pipe_there_is_no_bar(tmp_path: Path) -> None:
    plant, paths = damaged(tmp_path)
    done = subprocess.run(["sh", "-c", line(plant)], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 1
    assert BAR not in done.stdout + done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert all(f"{path}: " in done.stdout for path in paths)


def test_a_report_that_was_cut_short_is_json_and_says_so(tmp_path: Path) -> None:
    plant = make(tmp_path, 1)
    with ObjectStore(plant.root) as store, store_lock(store.fd, "verify", store.modes.lock_file):
        refused = CliRunner().invoke(cli, ["verify", "--json", "--store", str(plant.root)])
    assert refused.exit_code == 1
    assert json.loads(refused.stdout) == {"findings": [], "complete": False}
    assert "another verification" in refused.stderr


# -- what it says ------------------------------------------------------------------------------------------------------


def test_the_summary_says_how_much_is_left_to_do(tmp_path: Path) -> None:
    plant, _ = damaged(tmp_path)
    looked = CliRunner().invoke(cli, ["verify", "--store", str(plant.root)])
    assert "5 found; 5 left to do (5 reported)" in looked.stdout
    repaired = CliRunner().invoke(cli, ["verify", "--repair", "--store", str(plant.root)])
    assert "5 found; 2 left to do" in repaired.stdout, "two files are lost, as far as the store knows"
    assert "nothing is wrong" in CliRunner().invoke(cli, ["verify", "--store", str(plant.root)]).stdout


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_says_what_was_done_and_what_is_left(kind: str) -> None:
    actions: tuple[Action, ...] = (
        "reported",
        "healed",
        "quarantined",
        "mended",
        "replaced",
        "moved",
        "waits",
        "failed",
    )
    for action in actions:
        finding = Finding("Data/x", kind, action, kept="Error/s/x")
        assert "{" not in finding.done
        assert finding.advice
        settled = action in ("healed", "mended", "replaced", "moved") or (
            action == "quarantined" and kind not in ("rotten", "empty")
        )
        assert finding.is_open == (not settled and not finding.is_note)
        if action in ("healed", "quarantined", "replaced", "moved"):
            assert "Error/s/x" in finding.done


def test_progress_counts_a_directory_when_all_of_it_was_read(tmp_path: Path) -> None:
    plant = make(tmp_path, 0)
    first, second = (next(d for n in range(10**6) if sha1(d := b"%d" % n)[:2] == pair) for pair in ("11", "22"))
    plant.put(first)
    plant.put(second)
    seen: list[tuple[int, int]] = []
    with ObjectStore(plant.root) as store:
        for processes in (1, 2):
            seen.clear()
            verify_all(store, Options(processes=processes), print, on_progress=lambda *at: seen.append(at))
            assert seen[0] == (0, 2), "nothing is done when the first part of a directory was read"
            assert seen[-1] == (2, 2)
            assert seen == sorted(seen)


# -- what stays --------------------------------------------------------------------------------------------------------


def test_what_a_person_found_is_told_by_stats_too(tmp_path: Path) -> None:
    plant = make(tmp_path)
    damage = DAMAGES["one_bit_flipped"](plant)
    limits = Limits(30 * 86400.0, 50e6, 300.0, 30.0, 60.0)
    with ObjectStore(plant.root) as store:
        verify_all(store, Options(Policy(repair=True)), print)
        seen = coverage(store, limits)
    assert [(finding["path"], finding["action"]) for finding in seen.findings] == [(damage.path, "quarantined")]
    assert seen.quarantined == 1
    assert (seen.directories, seen.left_s) == (256, 0.0)
