"""The supervisor starts, restarts and stops its children as it promises."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from processes import FORKING_PROCESSES, FORKING_PROGRAM, GUARD, SLEEP, background, eventually, marked, python
from processes import mark as mark  # a fixture

from fsworker.errors import ConfigError, UnavailableError
from fsworker.host.supervise import Child, Supervisor, restart_delay_s


def lines_with(log: list[str], text: str) -> list[str]:
    return [line for line in log if text in line]


def test_children_start_in_order_when_the_one_before_is_ready_and_stop_in_reverse(mark: Path) -> None:
    server = "import sys, time; time.sleep(0.3); open(sys.argv[1] + '/ready', 'w').close(); time.sleep(600)"
    worker = "import os, sys, time; os.stat(sys.argv[1] + '/ready'); time.sleep(600)"
    children = [
        Child("server", python(server, mark), ready=(mark / "ready").exists),
        Child("worker", python(worker, mark)),
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


def test_children_that_do_not_need_each_other_start_and_stop_together(mark: Path) -> None:
    """Each gets ready when the other has begun, and ends in its time when the other was told to stop, too."""
    code = """
import os, signal, sys, time
mark, mine, other = sys.argv[1:]
def meet(step):
    open(os.path.join(mark, step + mine), 'w').close()
    while not os.path.exists(os.path.join(mark, step + other)):
        time.sleep(0.01)
def stop(number, frame):
    meet('stopping-')
    sys.exit()
signal.signal(signal.SIGTERM, stop)
meet('starting-')
open(os.path.join(mark, 'ready-' + mine), 'w').close()
time.sleep(600)
"""
    log: list[str] = []
    children = [
        Child("server", python(SLEEP, mark)),
        Child("one", python(code, mark, "one", "two"), ready=(mark / "ready-one").exists, stop_grace_s=20),
        Child("two", python(code, mark, "two", "one"), ready=(mark / "ready-two").exists, stop_grace_s=20, beside=True),
    ]
    with Supervisor(children, log.append):
        pass
    assert log[3:] == ["two: stopped", "one: stopped", "server: stopped"]


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


def test_a_program_that_cannot_be_run_stops_the_start(mark: Path) -> None:
    children = [Child("server", python(SLEEP, mark)), Child("worker", [str(mark / "absent")])]
    with pytest.raises(ConfigError, match=r"worker cannot be started: No such file or directory: .*absent"):
        Supervisor(children, lambda line: None).start()
    assert marked(mark) == []


def test_a_child_that_dies_is_started_again_and_the_others_go_on(mark: Path) -> None:
    log: list[str] = []
    children = [Child("server", python(SLEEP, mark)), Child("worker", python(FORKING_PROGRAM, mark), stop_grace_s=0.1)]
    with Supervisor(children, log.append) as supervisor:
        first = supervisor.pids
        assert eventually(lambda: len(marked(mark)) == 1 + GUARD + FORKING_PROCESSES + GUARD)
        os.kill(first["worker"], signal.SIGKILL)
        assert eventually(lambda: supervisor.check() or lines_with(log, "again in"))
        assert log[-1].startswith("worker: ended with status 137 (SIGKILL) after ")
        assert log[-1].endswith(" s; starting it again in 1 s")
        assert len(marked(mark)) == 1 + GUARD  # nothing is left of the first one when the second starts
        supervisor.check()
        assert list(supervisor.pids) == ["server"]
        assert eventually(lambda: supervisor.check() or lines_with(log, "worker: started again"))
        assert supervisor.pids["server"] == first["server"]
        assert supervisor.pids["worker"] != first["worker"]


def test_a_child_whose_program_has_gone_is_tried_again_and_the_others_go_on(mark: Path) -> None:
    log: list[str] = []
    program = mark / "program"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o700)
    with Supervisor([Child("server", python(SLEEP, mark)), Child("worker", [str(program)])], log.append) as supervisor:
        program.rename(mark / "away")
        os.kill(supervisor.pids["worker"], signal.SIGKILL)
        assert eventually(lambda: supervisor.check() or lines_with(log, "cannot be started"))
        assert log[-1].endswith("No such file or directory: " + str(program) + "; starting it again in 2 s")
        (mark / "away").rename(program)
        assert eventually(lambda: supervisor.check() or lines_with(log, "worker: started again"))


def test_the_delay_before_a_restart_doubles_to_30_s_and_begins_anew_after_a_minute_of_life() -> None:
    delays_s = [0.0]
    for _ in range(7):
        delays_s.append(restart_delay_s(delays_s[-1], lived_s=0.1))
    assert delays_s == [0, 1, 2, 4, 8, 16, 30, 30]
    assert restart_delay_s(30, lived_s=59.9) == 30
    assert restart_delay_s(30, lived_s=60) == 1


RUN = """
import sys
from fsworker.host.supervise import Child, Supervisor
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


def test_run_says_once_when_all_are_ready(mark: Path) -> None:
    events: list[str] = []

    def on_ready() -> None:
        events.append(f"ready: {sorted(supervisor.pids)}")
        os.kill(os.getpid(), signal.SIGTERM)

    children = [Child("server", python(SLEEP, mark)), Child("worker", python(SLEEP, mark))]
    supervisor = Supervisor(children, lambda line: events.append(line.partition(" (")[0]))
    assert supervisor.run(on_ready) == 0
    started = ["server: started", "worker: started"]
    assert events == [*started, "ready: ['server', 'worker']", "worker: stopped", "server: stopped"]


def test_a_stop_signal_while_starting_stops_what_was_started_and_nothing_is_ready(mark: Path) -> None:
    def ask() -> bool:
        os.kill(os.getpid(), signal.SIGTERM)
        return False

    log: list[str] = []
    children = [Child("server", python(SLEEP, mark), ready=ask), Child("worker", python(SLEEP, mark))]
    assert Supervisor(children, log.append).run(lambda: log.append("ready")) == 0
    assert [line.partition(" (")[0] for line in log] == ["server: started", "server: stopped"]


def test_the_callers_signal_handlers_are_back_after_run(mark: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    Supervisor([], lambda line: None).run(lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_an_error_while_running_leaves_no_process(mark: Path) -> None:
    def log(line: str) -> None:
        if "ended" in line:
            raise OSError("the terminal is gone")

    children = [Child("server", python(SLEEP, mark)), Child("worker", python("", mark))]
    with pytest.raises(OSError, match="the terminal is gone"):
        Supervisor(children, log).run()
    assert marked(mark) == []


def test_a_hang_up_does_not_stop_what_nohup_started(mark: Path) -> None:
    (mark / "program").write_text(SLEEP)
    with background(f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n{RUN}", mark, 10) as supervisor:
        assert eventually(lambda: len(marked(mark)) == 1 + 2 * (1 + GUARD))
        supervisor.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        assert supervisor.poll() is None
        supervisor.terminate()
        assert supervisor.wait(20) == 0


def test_sigkill_of_the_supervisor_leaves_no_process(mark: Path) -> None:
    (mark / "program").write_text(FORKING_PROGRAM)
    with background(RUN, mark, 500) as supervisor:
        assert eventually(lambda: len(marked(mark)) == 1 + 2 * (FORKING_PROCESSES + GUARD))
        supervisor.kill()
        assert eventually(lambda: marked(mark) == [])
