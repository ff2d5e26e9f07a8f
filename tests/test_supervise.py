"""Children never outlive their parent; the supervisor starts, restarts and stops them as it promises."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import FORKING_PROCESSES, FORKING_PROGRAM, background, eventually, marked, python

from fsworker.errors import ConfigError, UnavailableError
from fsworker.supervise import Child, GuardedProcess, Supervisor, describe_status, tail

SLEEP = "import time; time.sleep(600)"
# A guard bears its program's command line too, so one more process carries the mark.
GUARD = 1


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """A path that no other process has in its command line; at the end, none may have it."""
    yield tmp_path
    left = marked(tmp_path)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


# One program under its guard


@pytest.mark.parametrize(("code", "status"), [("", 0), ("exit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137)])
def test_exit_status_is_that_of_a_shell(code: str, status: int, mark: Path) -> None:
    process = GuardedProcess(python(code, mark))
    assert process.wait(10) == status
    assert process.poll() == status
    assert process.kill() == status


def test_a_program_that_cannot_be_run_ends_with_126_and_says_why(tmp_path: Path) -> None:
    process = GuardedProcess([str(tmp_path / "absent")], log_path=tmp_path / "log")
    assert (process.wait(10), process.pid) == (126, 0)
    assert f"cannot run {tmp_path / 'absent'}: No such file or directory" in tail(tmp_path / "log")
    process.kill()


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


def test_sigkill_of_the_guard_takes_the_program_and_its_group_along(mark: Path) -> None:
    code = "import os, time; os.fork(); time.sleep(600)"
    process = GuardedProcess(python(code, mark))
    assert eventually(lambda: len(marked(mark)) == 2 + GUARD)
    os.kill(process.guard_pid, signal.SIGKILL)
    assert process.wait(10) == 137
    assert eventually(lambda: marked(mark) == [])
    process.kill()


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
from fsworker.supervise import GuardedProcess
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


@pytest.mark.parametrize("delay_s", [0.0, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08])
def test_a_parent_that_dies_while_it_starts_a_program_leaves_none(delay_s: float, mark: Path) -> None:
    (mark / "program").write_text(SLEEP)
    with background(PARENT, mark, delay_s) as parent:
        assert parent.wait(20) == -signal.SIGKILL
    assert eventually(lambda: marked(mark) == [])


# The supervisor


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def lines_with(log: list[str], text: str) -> list[str]:
    return [line for line in log if text in line]


def test_children_start_in_order_when_the_one_before_is_ready_and_stop_in_reverse(mark: Path) -> None:
    server = "import sys, time; time.sleep(0.3); open(sys.argv[1] + '/ready', 'w').close(); time.sleep(600)"
    worker = "import os, sys, time; os.stat(sys.argv[1] + '/ready'); time.sleep(600)"
    children = [
        Child("server", python(server, mark), ready=(mark / "ready").exists),
        Child("worker", python(worker, mark), restart=False),
        Child("beat", python(SLEEP, mark)),
    ]
    log: list[str] = []
    with Supervisor(children, log.append) as supervisor:
        assert list(supervisor.pids) == ["server", "worker", "beat"]
        time.sleep(0.2)
        supervisor.check()
    assert [line.partition(" (")[0] for line in log] == [
        "server: started",
        "worker: started",
        "beat: started",
        "beat: stopped",
        "worker: stopped",
        "server: stopped",
    ]


def test_each_child_is_gone_before_the_one_it_needs_is_told_to_stop(mark: Path) -> None:
    code = """
import os, signal, sys, time
def stop(number, frame):
    time.sleep(float(sys.argv[3]))
    with open(sys.argv[1] + '/order', 'a') as order:
        order.write(sys.argv[2] + ' ')
    sys.exit()
signal.signal(signal.SIGTERM, stop)
open(sys.argv[1] + '/' + sys.argv[2], 'w').close()
time.sleep(600)
"""
    children = [
        Child(name, python(code, mark, name, delay_s), ready=(mark / name).exists)
        for name, delay_s in (("server", 0), ("worker", 0.3), ("beat", 0.6))
    ]
    with Supervisor(children, lambda line: None):
        pass
    assert (mark / "order").read_text() == "beat worker server "


def test_a_child_that_ends_before_it_is_ready_stops_the_start_with_its_last_words(mark: Path) -> None:
    children = [
        Child("server", python(SLEEP, mark)),
        Child("worker", python("exit('no such queue')", mark), ready=lambda: False, log_path=mark / "worker.log"),
    ]
    with pytest.raises(ConfigError, match=r"(?s)worker ended with status 1 while starting.*no such queue"):
        Supervisor(children, lambda line: None).start()
    assert marked(mark) == []


def test_a_child_that_does_not_get_ready_stops_the_start(mark: Path) -> None:
    child = Child("worker", python(SLEEP, mark), ready=lambda: False, ready_timeout_s=0.2)
    with pytest.raises(UnavailableError, match=r"worker is not ready after 0\.2 s"):
        Supervisor([child], lambda line: None).start()
    assert marked(mark) == []


def test_a_child_that_dies_is_started_again_and_the_others_go_on(mark: Path) -> None:
    clock, log = Clock(), []
    children = [Child("server", python(SLEEP, mark)), Child("worker", python(FORKING_PROGRAM, mark), stop_grace_s=0.1)]
    with Supervisor(children, log.append, clock=clock) as supervisor:
        first = supervisor.pids
        assert eventually(lambda: len(marked(mark)) == 1 + GUARD + FORKING_PROCESSES + GUARD)
        os.kill(first["worker"], signal.SIGKILL)
        assert eventually(lambda: supervisor.check() or lines_with(log, "again in"))
        assert log[-1] == "worker: ended with status 137 (SIGKILL) after 0.0 s; starting it again in 1 s"
        assert len(marked(mark)) == 1 + GUARD  # nothing is left of the first one when the second starts
        supervisor.check()
        assert list(supervisor.pids) == ["server"]
        clock.now_s += 1
        supervisor.check()
        assert supervisor.pids["server"] == first["server"]
        assert supervisor.pids["worker"] not in (first["worker"], 0)
        clock.now_s += 1
        supervisor._sleep = lambda s: setattr(clock, "now_s", clock.now_s + s)


def test_back_off_doubles_to_30_s_and_begins_anew_after_60_s_of_life(mark: Path) -> None:
    clock, log = Clock(), []
    code = "import os, sys; [] if os.path.exists(sys.argv[1] + '/live') else exit(5); import time; time.sleep(600)"
    supervisor = Supervisor([Child("worker", python(code, mark))], log.append, clock=clock)
    with supervisor:
        for delay_s in (1, 2, 4, 8, 16, 30, 30):
            log.clear()
            assert eventually(lambda: supervisor.check() or log)
            assert log == [f"worker: ended with status 5 after 0.0 s; starting it again in {delay_s} s"]
            clock.now_s += delay_s - 0.01
            supervisor.check()
            assert supervisor.pids == {}
            if delay_s == 30:
                (mark / "live").touch()
            clock.now_s += 0.01
            supervisor.check()
            if (mark / "live").exists():
                break
        clock.now_s += 60
        log.clear()
        os.kill(supervisor.pids["worker"], signal.SIGKILL)
        assert eventually(lambda: supervisor.check() or log)
        assert log == ["worker: ended with status 137 (SIGKILL) after 60.0 s; starting it again in 1 s"]


def test_check_raises_when_a_child_ends_that_must_not_be_restarted(mark: Path) -> None:
    child = Child("worker", python("exit('out of luck')", mark), restart=False, log_path=mark / "log")

    def ended() -> bool:
        supervisor.check()
        return False

    with (
        pytest.raises(UnavailableError, match=r"(?s)worker ended with status 1.*out of luck"),
        Supervisor([child], lambda line: None) as supervisor,
    ):
        eventually(ended)


def test_run_returns_the_status_of_a_child_that_must_not_be_restarted(mark: Path) -> None:
    children = [Child("server", python(SLEEP, mark)), Child("demo", python("exit(4)", mark), restart=False)]
    assert Supervisor(children, lambda line: None).run() == 4
    assert marked(mark) == []


RUN = """
import sys
from fsworker.supervise import Child, Supervisor
program = open(sys.argv[1] + "/program").read()
children = [
    Child(name, [sys.executable, "-c", program, sys.argv[1]], stop_grace_s=float(sys.argv[2]))
    for name in ("server", "worker")
]
sys.exit(Supervisor(children, lambda line: print(line, flush=True)).run())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_run_stops_its_children_when_told_and_returns_0(number: int, mark: Path) -> None:
    (mark / "program").write_text(SLEEP)
    with background(RUN, mark, 10) as supervisor:
        assert supervisor.stdout is not None
        assert [supervisor.stdout.readline()[:16], supervisor.stdout.readline()[:16]] == [
            "server: started ",
            "worker: started ",
        ]
        os.killpg(supervisor.pid, number)  # the foreground group, as a terminal does it
        assert supervisor.wait(20) == 0
        assert supervisor.stdout.read() == "worker: stopped\nserver: stopped\n"


def test_ctrl_c_in_the_terminal_does_not_reach_the_children(mark: Path) -> None:
    (mark / "program").write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, lambda *_: open(sys.argv[1] + '/interrupted', 'w').close())\n"
        "time.sleep(600)"
    )
    with background(RUN, mark, 10) as supervisor:
        assert eventually(lambda: len(marked(mark)) == 1 + 2 * (1 + GUARD))
        os.killpg(supervisor.pid, signal.SIGINT)
        assert supervisor.wait(20) == 0
    assert not (mark / "interrupted").exists()


def test_a_child_that_had_to_be_killed_makes_the_exit_status_1(mark: Path) -> None:
    (mark / "program").write_text(FORKING_PROGRAM)
    with background(RUN, mark, 0.2) as supervisor:
        assert eventually(lambda: len(marked(mark)) == 1 + 2 * (FORKING_PROCESSES + GUARD))
        supervisor.terminate()
        assert supervisor.wait(20) == 1
    assert marked(mark) == []


def test_a_second_ctrl_c_kills_at_once(mark: Path) -> None:
    (mark / "program").write_text(FORKING_PROGRAM)
    with background(RUN, mark, 500) as supervisor:
        assert eventually(lambda: len(marked(mark)) == 1 + 2 * (FORKING_PROCESSES + GUARD))
        supervisor.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert supervisor.poll() is None
        supervisor.send_signal(signal.SIGINT)
        assert supervisor.wait(20) == 1
    assert marked(mark) == []


def test_sigkill_of_the_supervisor_leaves_no_process(mark: Path) -> None:
    (mark / "program").write_text(FORKING_PROGRAM)
    with background(RUN, mark, 500) as supervisor:
        assert eventually(lambda: len(marked(mark)) == 1 + 2 * (FORKING_PROCESSES + GUARD))
        supervisor.kill()
        assert eventually(lambda: marked(mark) == [])


def test_statuses_are_told_in_words() -> None:
    assert describe_status(3) == "status 3"
    assert describe_status(143) == "status 143 (SIGTERM)"
    assert describe_status(255) == "status 255"
