"""The fork server lives as long as its worker and no longer, shares no picture's fate, and is no way to lose one."""

from __future__ import annotations

import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from engines import by_spare, obedient_server, ordered, waiting_spare
from images import chart, encoded, thumbnails
from processes import background, children, eventually, is_alive

from fsworker.specification import Thumbnail
from fsworker.thumbnails import Limits, PictureOutcome, forkserver, make
from fsworker.thumbnails.forkserver import ForkServer, ServerDiedError, ServerGoneError

SLEEP = "import time; time.sleep(600)"
SECRET = ["hunter", 3]


@pytest.fixture
def server() -> Iterator[ForkServer]:
    with obedient_server() as started:
        yield started


@pytest.fixture
def own_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ForkServer]:
    """The server that ``make_thumbnails`` uses."""
    started = ForkServer()
    monkeypatch.setattr(make, "_server", started)
    yield started
    started.stop()


def bytes_of(outcome: PictureOutcome) -> dict[str, bytes]:
    return {name: made.read() for name, made in outcome.made.items()}


def test_it_makes_what_a_fork_of_the_worker_makes(own_server: ForkServer, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(chart(400, 300), "JPEG")
    wishes = {
        "a": Thumbnail("50x"),
        "b": Thumbnail("90x", format="webp", quality=40),
        "c": Thumbnail("9x9!", crop=False),
    }
    made = thumbnails(data, **wishes)
    assert own_server.processor_s > 0, "the server was not asked"
    monkeypatch.setattr(make, "_server", None)
    here = thumbnails(data, **wishes)
    assert (bytes_of(made), made.failed, made.picture) == (bytes_of(here), here.failed, here.picture)
    assert set(made.made) == set(wishes)


def test_pictures_of_many_threads_do_not_mix(server: ForkServer) -> None:
    def one(number: int) -> None:
        report, why = ordered(f"reporter.failed('a', {number})", run=server.run)
        assert (report.failed, why) == ({"a": str(number)}, None)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(200)))
    by_spare(server)("")  # what is left is the spare, and it alone


def test_one_that_dies_is_not_the_others_fate(server: ForkServer) -> None:
    with ThreadPoolExecutor(6) as pool:
        codes = ["import os; os.abort()", "import time; time.sleep(0.3); reporter.failed('a', 'well')", SLEEP] * 2
        jobs = [pool.submit(ordered, code, Limits(wall_s=1), run=server.run) for code in codes]
        assert [job.result()[1] for job in jobs] == ["the decoder crashed (SIGABRT)", None, "took longer than 1 s"] * 2
        assert [job.result()[0].failed for job in jobs] == [{}, {"a": "well"}, {}] * 2
    by_spare(server)("")  # what is left is the spare, and it alone


def test_a_time_limit_raised_into_the_waiting_leaves_no_process(server: ForkServer) -> None:
    class SoftLimitError(Exception):
        pass

    def on_alarm(*_: object) -> None:
        raise SoftLimitError

    ordered("", run=server.run)
    before = signal.signal(signal.SIGALRM, on_alarm)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(SoftLimitError):
            ordered(SLEEP, run=server.run)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    by_spare(server)("")  # as above
    assert ordered("reporter.failed('a', 'next')", run=server.run)[0].failed == {"a": "next"}


@pytest.mark.parametrize("how", ["between", "at once", "meanwhile"])
def test_a_server_that_is_killed_costs_no_picture(own_server: ForkServer, how: str) -> None:
    data = encoded(chart(400, 300), "JPEG")
    expected = bytes_of(thumbnails(data, a="50x"))
    first = own_server.pid
    assert first is not None
    if how == "between":
        os.kill(first, signal.SIGKILL)
        os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    elif how == "at once":
        os.kill(first, signal.SIGKILL)
    else:
        os.kill(first, signal.SIGSTOP)  # so that it has the wish, and has not begun
        threading.Timer(0.3, os.kill, (first, signal.SIGKILL)).start()
    assert bytes_of(thumbnails(data, a="50x")) == expected
    assert bytes_of(thumbnails(data, a="50x")) == expected
    assert own_server.pid not in (None, first)
    assert not is_alive(first)


def test_a_server_that_hangs_is_replaced(server: ForkServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forkserver, "_KILLED_WITHIN_S", 0.2)
    ordered("", run=server.run)
    first = server.pid
    assert first is not None
    os.kill(first, signal.SIGSTOP)
    with pytest.raises(ServerDiedError, match="hung"):
        ordered(SLEEP, Limits(wall_s=0.2), run=server.run)
    assert not is_alive(first)
    assert ordered("reporter.failed('a', 'next')", run=server.run)[0].failed == {"a": "next"}


def test_what_a_killed_server_has_forked_dies_with_it(server: ForkServer) -> None:
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(ordered, SLEEP, run=server.run)
        assert eventually(lambda: server.pid and children(server.pid))
        (child,) = children(server.pid)
        time.sleep(0.1)  # it has asked the kernel for this by now
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(ServerDiedError, match="ended"):
            job.result(30)
    assert eventually(lambda: not is_alive(child))


def test_it_ends_with_its_worker_and_so_does_what_it_forked() -> None:
    code = f"""
import sys, threading; sys.path.insert(0, {str(Path(__file__).parent)!r})
from engines import ForkServer, ordered
server = ForkServer("engines:obey")
ordered("", run=server.run)
threading.Thread(target=ordered, args=({SLEEP!r},), kwargs={{"run": server.run}}, daemon=True).start()
print(server.pid, flush=True)
threading.Event().wait()
"""
    with background(code) as worker:
        assert worker.stdout is not None
        server = int(worker.stdout.readline())
        assert eventually(lambda: children(server))
        time.sleep(0.1)
        forked = children(server)
        worker.kill()
        worker.wait()
        assert eventually(lambda: not any(map(is_alive, [server, *forked])))


def test_a_fork_of_the_worker_has_a_server_of_its_own(server: ForkServer) -> None:
    ordered("", run=server.run)
    first = server.pid
    reading, writing = os.pipe()
    fork = os.fork()
    if fork == 0:
        try:
            assert server.pid is None
            failed = ordered("reporter.failed('a', 'theirs')", run=server.run)[0].failed
            os.write(writing, f"{failed} {server.pid != first}".encode())
            server.stop()
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(fork, 0)
    assert os.read(reading, 100) == b"{'a': 'theirs'} True"
    os.close(reading)
    assert server.pid == first
    assert ordered("reporter.failed('a', 'ours')", run=server.run)[0].failed == {"a": "ours"}


def test_it_has_nothing_of_the_workers(server: ForkServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that was taken over can write what it finds in its memory into a thumbnail, for all to see."""
    monkeypatch.setenv("FSWORKER_REDIS_URL", "redis://:hunter2@localhost")
    look = """
import gc
seen = [one for one in gc.get_objects() if type(one) is list and tuple(one) == ("hunter", 3)]
reporter.failed("a", len(seen))
"""
    assert ordered(look)[0].failed["a"] == "1", "a fork of this process has its memory"
    assert ordered(look, run=server.run)[0].failed["a"] == "0"
    process = Path(f"/proc/{server.pid}")
    assert b"hunter2" not in (process / "environ").read_bytes()

    def sockets_and_others() -> tuple[int, set[str]]:
        kinds = [os.readlink(entry).split(":")[0] for entry in (process / "fd").iterdir()]
        return kinds.count("socket"), set(kinds) - {"socket"}

    # The worker's and the spare's; the last picture's own is closed. The pidfds and Landlock's are anonymous.
    assert eventually(lambda: sockets_and_others() == (2, {"/dev/null", "anon_inode"})), sockets_and_others()


def test_descriptors_do_not_add_up(server: ForkServer) -> None:
    def counts() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), len(os.listdir(f"/proc/{server.pid}/fd"))

    waiting_spare(server)
    before = counts()
    for _ in range(15):
        ordered("", run=server.run)
        ordered("import os; os.abort()", run=server.run)
        ordered(SLEEP, Limits(wall_s=0.02), run=server.run)
    for _ in range(3):
        os.kill(waiting_spare(server), signal.SIGKILL)
        assert eventually(lambda: children(server.pid) == [])
    waiting_spare(server)
    assert eventually(lambda: counts() == before), (counts(), before)


def test_a_server_without_room_for_descriptors_is_passed_over(own_server: ForkServer) -> None:
    data = encoded(chart(), "JPEG")
    expected = bytes_of(thumbnails(data, a="50x"))
    assert own_server.pid is not None
    count = len(os.listdir(f"/proc/{own_server.pid}/fd"))
    for room in range(6):
        if own_server.pid is not None:
            resource.prlimit(own_server.pid, resource.RLIMIT_NOFILE, (count + room, 1024))
        assert bytes_of(thumbnails(data, a="50x")) == expected


def test_more_wishes_than_a_message_holds(own_server: ForkServer) -> None:
    wishes = {"n" * 60 + str(number): f"{number + 1}x" for number in range(2000)}
    outcome = thumbnails(encoded(chart(20, 20), "PNG"), Limits(wall_s=200, cpu_s=100), **wishes)
    assert set(outcome.made) == set(wishes), "no wish is forgotten"
    assert own_server.processor_s == 0


def test_a_server_that_does_not_start_is_told_and_passed_over(
    own_server: ForkServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data = encoded(chart(), "JPEG")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with caplog.at_level(logging.WARNING):
        assert thumbnails(data, a="50x").failed == {}
        assert thumbnails(data, a="50x").failed == {}
    assert ["not start" in record.getMessage() for record in caplog.records] == [True, True]
    for broken in ("/nowhere/python", ""):
        monkeypatch.setattr(forkserver, "_TRY_AGAIN_AFTER_S", 0.0)
        monkeypatch.setattr(own_server, "_not_before_s", 0.0)
        monkeypatch.setattr(sys, "executable", broken)
        assert thumbnails(data, a="50x").failed == {}
    monkeypatch.undo()
    assert own_server.pid is None


def test_it_is_found_wherever_the_package_is(tmp_path: Path) -> None:
    """Started from anywhere, with a path of modules that only this process has."""
    (tmp_path / "elsewhere").mkdir()
    root = Path(make.__file__).parents[2]
    code = f"""
import sys; sys.path.insert(0, {str(root)!r})
from fsworker.thumbnails.forkserver import ForkServer
server = ForkServer(); server.start(); server._ready_server(); print("ready")
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "elsewhere",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.stdout, run.returncode) == ("ready\n", 0), run.stderr


def test_a_picture_that_loses_two_servers_is_not_decoded_in_the_worker(
    own_server: ForkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be the picture that did it, and a fork of the worker has the worker's memory."""
    asked: list[int] = []

    def run(*_: object) -> tuple[int | None, bool]:
        asked.append(1)
        raise ServerDiedError("it ended")

    monkeypatch.setattr(own_server, "run", run)
    monkeypatch.setattr(make, "run_limited", None)
    outcome = thumbnails(encoded(chart(), "JPEG"), a="50x")
    assert list(outcome.failed) == ["a"]
    assert "the decoder was killed" in outcome.failed["a"]
    assert len(asked) == 2


def test_a_server_that_died_is_not_taken_for_the_one_after_it(server: ForkServer) -> None:
    """Another thread may have replaced it: its picture would come to the worker, as if there had only been no room."""
    ordered("", run=server.run)
    first, died = server.pid, server._socket
    assert first is not None
    assert died is not None
    assert server._lives(died)
    os.kill(first, signal.SIGKILL)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    ordered("", run=server.run)
    assert server.pid != first
    assert not server._lives(died)


def test_a_shortage_in_the_server_is_not_the_others_fate(server: ForkServer) -> None:
    ordered("", run=server.run)
    assert server.pid is not None
    first = server.pid
    assert eventually(lambda: len(os.listdir(f"/proc/{first}/fd")) == 7)
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(ordered, "import time; time.sleep(1); reporter.failed('a', 'well')", run=server.run)
        assert eventually(lambda: len(os.listdir(f"/proc/{first}/fd")) == 9)
        refused = 0
        for room in range(7):
            resource.prlimit(first, resource.RLIMIT_NOFILE, (7 + room, 1024))
            try:
                ordered("", run=server.run)
            except ServerGoneError as error:
                assert "no room" in str(error)
                refused += 1
        assert refused >= 4
        assert job.result(30)[0].failed == {"a": "well"}
    resource.prlimit(first, resource.RLIMIT_NOFILE, (1024, 1024))
    assert ordered("reporter.failed('a', 'next')", run=server.run)[0].failed == {"a": "next"}
    assert server.pid == first


def test_a_process_that_cannot_be_watched_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its picture goes elsewhere, and nothing would end it or reap it."""
    (tmp_path / "unwatched.py").write_text("""
import os
from engines import obey

def pidfd_open(*_):
    raise OSError(23, "too many open files in system")

os.pidfd_open = pidfd_open
""")
    monkeypatch.syspath_prepend(tmp_path)
    server = ForkServer("unwatched:obey")
    try:
        with pytest.raises(ServerGoneError, match="no room"):
            ordered(SLEEP, run=server.run)
        assert server.pid is not None
        assert children(server.pid) == []
    finally:
        server.stop()


def test_it_starts_where_the_worker_has_no_output(tmp_path: Path) -> None:
    code = f"""
import os, sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from engines import ForkServer, ordered
for closed in (0, 1, 2):
    os.close(closed)
server = ForkServer("engines:obey")
said = ordered("reporter.failed('a', 'here')", run=server.run)[0].failed["a"]
open({str(tmp_path / "said")!r}, "w").write(said)
server.stop()
"""
    with background(code) as worker:
        worker.wait(60)
    assert (tmp_path / "said").read_text() == "here"


def test_a_fork_may_come_while_the_lock_is_held(server: ForkServer) -> None:
    with server._lock:
        fork = os.fork()
        if fork == 0:
            try:
                server.begin_anew()
                said = ordered("reporter.failed('a', 'theirs')", run=server.run)[0].failed
                server.stop()
                os._exit(0 if said == {"a": "theirs"} else 1)
            finally:
                os._exit(2)
        assert os.waitpid(fork, 0)[1] == 0


def test_modules_are_looked_for_where_the_worker_does_and_in_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    here = str(Path(make.__file__).parents[2])
    monkeypatch.setattr(sys, "path", ["", "/first", here, "/last"])
    assert forkserver._module_path() == ["/first", here, "/last"]
    monkeypatch.setattr(sys, "path", ["", "/first"])
    assert forkserver._module_path() == [here, "/first"]
