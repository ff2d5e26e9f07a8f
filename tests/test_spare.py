"""A process that waits for its picture is as good as one that is forked for it, and as little."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from engines import by_fork, by_spare, obedient_server, ordered, waiting_spare
from images import chart, encoded, thumbnails
from processes import background, children, eventually, is_alive

from fsworker.thumbnails import Limits, make
from fsworker.thumbnails.forkserver import ForkServer

SAY_PID = "import os; reporter.failed('a', str(os.getpid()))"
SLEEP = "import time; time.sleep(600)"


@pytest.fixture
def server() -> Iterator[ForkServer]:
    with obedient_server() as started:
        yield started


def descriptors(pid: int) -> set[str]:
    """What the descriptors of a process are: a path, or a kind."""
    kinds = set()
    with suppress(FileNotFoundError):  # it has closed one meanwhile, or has ended
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            kinds.add(os.readlink(entry).split(":")[0])
    return kinds


def test_it_takes_the_next_picture_and_then_another_waits(server: ForkServer) -> None:
    first = waiting_spare(server)
    assert ordered(SAY_PID, run=server.run)[0].failed["a"] == str(first)
    assert eventually(lambda: children(server.pid) and children(server.pid) != [first])
    second = waiting_spare(server)
    assert ordered(SAY_PID, run=server.run)[0].failed["a"] == str(second)


def test_there_is_none_while_a_picture_is_made(server: ForkServer) -> None:
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(ordered, f"import time; time.sleep(1); {SAY_PID}", run=server.run)
        ordered("", run=server.run)
        time.sleep(0.5)
        seen = children(server.pid)
        assert seen == [int(job.result(30)[0].failed["a"])]


def test_a_server_without_room_for_one_goes_on_without(server: ForkServer) -> None:
    ordered("", run=server.run)
    first = server.pid
    assert first is not None

    def processes_and_descriptors() -> tuple[int, int]:
        return len(children(first)), len(os.listdir(f"/proc/{first}/fd"))

    with ThreadPoolExecutor(1) as pool:
        for room in range(3):
            job = pool.submit(ordered, "import time; time.sleep(0.5)", run=server.run)
            assert eventually(lambda: [descriptors(child) for child in children(first)] == [{"/dev/null", "/memfd"}])
            resource.prlimit(first, resource.RLIMIT_NOFILE, (7 + room, 1024))
            job.result(30)
            time.sleep(0.5)
            without, one = (0, 7), (1, 9)
            assert eventually(lambda: processes_and_descriptors() in ((without, one) if room else (without,)))
            resource.prlimit(first, resource.RLIMIT_NOFILE, (1024, 1024))
    ordered("", run=server.run)
    assert waiting_spare(server)
    assert server.pid == first


def test_there_is_none_before_the_first_picture_nor_between_two(server: ForkServer) -> None:
    server.start()
    assert eventually(lambda: server._process)
    time.sleep(1)
    assert children(server.pid) == []
    pids = [ordered(SAY_PID, run=server.run)[0].failed["a"] for _ in range(20)]
    assert len(set(pids)) == 20
    assert eventually(lambda: len(children(server.pid)) == 1), "one, and not twenty"


def test_it_makes_the_same_thumbnails(monkeypatch: pytest.MonkeyPatch) -> None:
    server = ForkServer()
    data = [encoded(chart(width, 300), form) for width in (400, 900) for form in ("JPEG", "PNG", "WEBP")]
    wishes = {"a": "50x", "b": "300x200^", "c": "120x120!"}
    monkeypatch.setattr(make, "_server", server)
    try:
        for one in data:
            spare = waiting_spare_of_pictures(server, one)
            by_spare_made = {name: made.read() for name, made in thumbnails(one, **wishes).made.items()}
            assert not is_alive(spare)
            monkeypatch.setattr(make, "_server", None)
            forked = {name: made.read() for name, made in thumbnails(one, **wishes).made.items()}
            monkeypatch.setattr(make, "_server", server)
            assert by_spare_made == forked
            assert set(forked) == set(wishes)
    finally:
        server.stop()


def waiting_spare_of_pictures(server: ForkServer, data: bytes) -> int:
    if not children(server.pid):
        thumbnails(data, a="9x")
    return waiting_spare(server)


def test_it_has_only_its_end_of_a_socket_and_in_time_its_picture(server: ForkServer) -> None:
    spare = waiting_spare(server)
    # Landlock's rules, where the kernel has them, are anonymous.
    assert descriptors(spare) - {"anon_inode"} == {"/dev/null", "socket"}
    sockets = [entry for entry in Path(f"/proc/{spare}/fd").iterdir() if os.readlink(entry).startswith("socket")]
    assert len(sockets) == 1
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(ordered, SLEEP, Limits(wall_s=1.5), run=server.run)
        assert eventually(lambda: descriptors(spare) == {"/dev/null", "/memfd"})
        job.result(30)


def test_it_has_no_more_memory_than_another(server: ForkServer) -> None:
    """What a spare has taken before it has its picture counts as the picture's."""
    code = "import resource, os; reporter.failed('a', str(resource.getrlimit(resource.RLIMIT_AS)[0] >> 21))"
    limits = Limits(memory_bytes=2**29)
    spare, forked = (int(run(code, limits)[0].failed["a"]) for run in (by_spare(server), by_fork(server)))
    assert abs(spare - forked) <= 2


def test_a_picture_that_may_have_little_memory_does_not_get_it(server: ForkServer) -> None:
    spare = waiting_spare(server)
    assert ordered(SAY_PID, Limits(memory_bytes=2**25), run=server.run)[0].failed["a"] != str(spare)
    time.sleep(0.5)
    assert children(server.pid) == [spare], "one waits already"
    assert ordered(SAY_PID, run=server.run)[0].failed["a"] == str(spare)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_one_that_is_lost_is_no_pictures_fate(server: ForkServer, number: signal.Signals) -> None:
    spare = waiting_spare(server)
    os.kill(spare, number)
    if number == signal.SIGKILL:
        assert eventually(lambda: children(server.pid) == [])
        time.sleep(0.5)
        assert children(server.pid) == [], "what cannot live is not made again and again"
        report, why = ordered(SAY_PID, run=server.run)
        assert (set(report.failed), why) == ({"a"}, None)
        assert waiting_spare(server)
    else:  # it has said that it is ready: its picture waits for it, as long as pictures may take
        assert ordered(SAY_PID, Limits(wall_s=0.5), run=server.run)[1] == "took longer than 0.5 s"
        assert not is_alive(spare)
        assert ordered(SAY_PID, run=server.run)[1] is None


def test_one_that_is_killed_at_any_moment_costs_one_picture_at_most(server: ForkServer) -> None:
    for wait_ms in range(0, 60, 3):
        ordered("", run=server.run)
        assert eventually(lambda: children(server.pid))
        for spare in children(server.pid):
            with ThreadPoolExecutor(1) as pool:
                job = pool.submit(ordered, SAY_PID, run=server.run)
                time.sleep(wait_ms / 10_000)
                with suppress(ProcessLookupError):
                    os.kill(spare, signal.SIGKILL)
                report, why = job.result(30)
                assert why is None or "was killed" in why
                assert why is not None or set(report.failed) == {"a"}


def test_it_ends_with_its_server_and_with_the_worker(server: ForkServer) -> None:
    spare = waiting_spare(server)
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    assert eventually(lambda: not is_alive(spare))
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from engines import ForkServer, waiting_spare
server = ForkServer("engines:obey")
print(waiting_spare(server), server.pid, flush=True)
__import__("time").sleep(600)
"""
    with background(code) as worker:
        assert worker.stdout is not None
        both = [int(pid) for pid in worker.stdout.readline().split()]
        assert all(map(is_alive, both))
        worker.kill()
        worker.wait()
        assert eventually(lambda: not any(map(is_alive, both)))
