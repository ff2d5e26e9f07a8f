"""A guarded program and all that it starts never outlive the process that started it."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import threading
from pathlib import Path

import pytest
from processes import (
    ENVIRONMENT,
    FORKING_PROCESSES,
    FORKING_PROGRAM,
    GUARD,
    SLEEP,
    background,
    eventually,
    marked,
    python,
)
from processes import mark as mark  # a fixture

from fsworker.host.guard import GuardedProcess, describe_status
from fsworker.host.supervise import tail


@pytest.mark.parametrize(("code", "status"), [("", 0), ("exit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137)])
def test_exit_status_is_that_of_a_shell(code: str, status: int, mark: Path) -> None:
    process = GuardedProcess(python(code, mark))
    assert process.wait(10) == status
    assert process.poll() == status
    assert process.kill() == status


def test_a_program_that_cannot_be_run_is_the_error_that_popen_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        GuardedProcess([str(tmp_path / "absent")], log_path=tmp_path / "log")
    with pytest.raises(PermissionError, match=tmp_path.name):
        GuardedProcess([str(tmp_path)])
    assert tail(tmp_path / "log") == ""


def test_a_log_that_cannot_be_written_is_an_error_and_nothing_runs(mark: Path) -> None:
    with pytest.raises(FileNotFoundError, match="log"):
        GuardedProcess(python(SLEEP, mark), log_path=mark / "absent" / "log")
    assert marked(mark) == []


def test_environment_descriptors_and_log_are_those_that_were_asked_for(tmp_path: Path) -> None:
    code = """
import os, sys
print(os.environ["COLOUR"], os.read(int(sys.argv[1]), 9), repr(sys.stdin.read()), "HOME" in os.environ)
"""
    reader, writer = os.pipe()
    os.write(writer, b"given")
    process = GuardedProcess(
        python(code, reader), env={"COLOUR": "green"}, log_path=tmp_path / "log", pass_fds=(reader,)
    )
    assert process.wait(10) == 0
    process.kill()
    os.close(reader)
    os.close(writer)
    assert tail(tmp_path / "log") == "green b'given' '' False"
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o600


def test_output_goes_to_standard_error_so_that_reports_stand_alone() -> None:
    code = """
import sys
from fsworker.host.guard import GuardedProcess
process = GuardedProcess([sys.executable, "-c", "import os; os.write(1, b'said '); os.write(2, b'and warned')"])
process.wait(10)
process.kill()
"""
    done = subprocess.run(python(code), capture_output=True, text=True, check=True, timeout=60)
    assert (done.stdout, done.stderr) == ("", "said and warned")


def test_program_starts_with_default_signals_in_a_session_of_its_own(tmp_path: Path) -> None:
    code = "import os, signal; print(os.getsid(0) == os.getpid(), signal.getsignal(15) == signal.SIG_DFL)"
    process = GuardedProcess(python(code), log_path=tmp_path / "log")
    assert process.wait(10) == 0
    process.kill()
    assert tail(tmp_path / "log") == "True True"


def test_a_signal_reaches_the_program_and_not_its_descendants(mark: Path) -> None:
    code = """
import os, signal, sys, time
pid = os.fork()
if pid == 0:
    time.sleep(600)
def stop(number, frame):
    time.sleep(0.3)
    sys.exit(7 if os.waitpid(pid, os.WNOHANG) == (0, 0) else 8)
signal.signal(signal.SIGTERM, stop)
open(sys.argv[1] + '/ready', 'w').close()
time.sleep(600)
"""
    process = GuardedProcess(python(code, mark))
    assert eventually((mark / "ready").exists)
    assert process.stop(signal.SIGTERM, grace_s=10) == 7


def test_when_the_program_dies_its_descendants_die(mark: Path) -> None:
    process = GuardedProcess(python(FORKING_PROGRAM, mark))
    assert eventually(lambda: len(marked(mark)) == FORKING_PROCESSES + GUARD)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(10) == 137
    assert marked(mark) == []
    process.kill()


def test_stop_kills_what_does_not_stop_in_time(mark: Path) -> None:
    process = GuardedProcess(python(FORKING_PROGRAM, mark))
    assert eventually(lambda: len(marked(mark)) == FORKING_PROCESSES + GUARD)
    assert process.stop(signal.SIGTERM, grace_s=0.2) == 137
    assert marked(mark) == []


def test_sigkill_of_the_guard_takes_the_program_along(mark: Path) -> None:
    process = GuardedProcess(python(SLEEP, mark))
    os.kill(process.guard_pid, signal.SIGKILL)
    assert eventually(lambda: marked(mark) == [])  # by the kernel: the parent has done nothing yet
    assert process.kill() == 137


def test_sigkill_of_the_guard_takes_the_programs_group_along_when_it_is_noticed(mark: Path) -> None:
    code = "import os, time; os.fork(); time.sleep(600)"
    process = GuardedProcess(python(code, mark))
    assert eventually(lambda: len(marked(mark)) == 2 + GUARD)
    os.kill(process.guard_pid, signal.SIGKILL)
    assert process.wait(10) == 137
    assert eventually(lambda: marked(mark) == [])
    process.kill()


def test_no_descendant_can_become_another_user_whom_the_guard_may_not_kill(tmp_path: Path) -> None:
    process = GuardedProcess(["grep", "NoNewPrivs", "/proc/self/status"], log_path=tmp_path / "log")
    assert process.wait(10) == 0
    process.kill()
    assert tail(tmp_path / "log").split() == ["NoNewPrivs:", "1"]


def test_a_guard_stays_when_its_whole_control_group_is_told_to_stop(mark: Path) -> None:
    process = GuardedProcess(python(SLEEP, mark))
    os.kill(process.guard_pid, signal.SIGTERM)
    assert process.wait(0.3) is None
    assert process.kill() == 137


def test_the_program_lives_on_when_the_thread_that_started_it_ends(mark: Path) -> None:
    started: list[GuardedProcess] = []
    thread = threading.Thread(target=lambda: started.append(GuardedProcess(python(SLEEP, mark))))
    thread.start()
    thread.join()
    assert started[0].wait(0.5) is None
    started[0].kill()


PARENT = """
import os, sys, threading, time
from fsworker.host.guard import GuardedProcess
def die():
    time.sleep(float(sys.argv[2]))
    os.kill(os.getpid(), 9)
if len(sys.argv) > 2:
    threading.Thread(target=die).start()
process = GuardedProcess([sys.executable, "-c", open(sys.argv[1] + "/program").read(), sys.argv[1]])
print("ready", flush=True)
if len(sys.argv) == 2 and os.fork() == 0:  # a copy of the parent keeps its descriptors open
    time.sleep(600)
time.sleep(600)
"""


def test_sigkill_of_the_parent_leaves_no_process_even_if_a_fork_holds_its_descriptors(mark: Path) -> None:
    (mark / "program").write_text(FORKING_PROGRAM)
    with background(PARENT, mark) as parent:
        parents_and_program = 2 + FORKING_PROCESSES + GUARD
        assert eventually(lambda: len(marked(mark)) == parents_and_program)
        os.kill(parent.pid, signal.SIGKILL)
        assert eventually(lambda: len(marked(mark)) == 1)
        os.kill(marked(mark)[0], signal.SIGKILL)
        assert eventually(lambda: marked(mark) == [])


@pytest.mark.parametrize("delay_s", [0.0, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08])
def test_a_parent_that_dies_while_it_starts_a_program_leaves_none(delay_s: float, mark: Path) -> None:
    (mark / "program").write_text(SLEEP)
    with background(PARENT, mark, delay_s) as parent:
        assert parent.wait(20) == -signal.SIGKILL
    assert eventually(lambda: marked(mark) == [])


def test_statuses_are_told_in_words() -> None:
    assert describe_status(3) == "status 3"
    assert describe_status(143) == "status 143 (SIGTERM)"
    assert describe_status(255) == "status 255"


def test_descendants_that_cannot_be_looked_for_are_killed_as_soon_as_they_can() -> None:
    """A host without a free descriptor: who is not seen is not gone."""
    code = """
import errno, os, subprocess, sys
from fsworker.host import guard
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
refusals = iter([errno.ENFILE, errno.EMFILE])
def full(path, *args):
    if path == f"/proc/{child.pid}/stat" and (number := next(refusals, 0)):
        raise OSError(number, os.strerror(number), path)
    return open(path, *args)
guard._children.__globals__["open"] = full
guard._kill_descendants()
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("none is left")
else:
    child.kill()
"""
    done = subprocess.run(python(code), env=ENVIRONMENT, capture_output=True, text=True)
    assert done.stdout == "none is left\n", done.stderr
