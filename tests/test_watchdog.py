"""A worker that hangs or has gone deaf ends; one that is busy, idle or was stopped does not."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from live_worker import Server, StartWorker, nap
from processes import eventually

from fsworker.host.watchdog import EXIT_STATUS


def test_a_worker_whose_main_process_hangs_ends(start_worker: StartWorker, tmp_path: Path) -> None:
    worker = start_worker(JUDGED_WATCHED="1")
    (tmp_path / "hang").touch()
    assert eventually(lambda: not worker.is_alive(), 20)
    assert worker.process.returncode == EXIT_STATUS
    assert "neither listened nor worked" in worker.output
    assert "judged_app.py" in worker.output  # where it hung


def test_a_worker_that_no_longer_takes_messages_ends(start_worker: StartWorker, tmp_path: Path) -> None:
    worker = start_worker(JUDGED_WATCHED="1")
    (tmp_path / "deafen").touch()
    assert eventually(lambda: not worker.is_alive(), 20)
    assert worker.process.returncode == EXIT_STATUS


def test_busy_idle_and_stopped_workers_live(server: Server, start_worker: StartWorker) -> None:
    worker = start_worker(JUDGED_WATCHED="1")
    jobs = [nap(server, 4.5), nap(server, 4.5)]  # as many as it has processes: it asks for no message meanwhile
    assert eventually(lambda: all(worker.ends[job] for job in jobs), 20)
    worker.process.send_signal(signal.SIGSTOP)
    time.sleep(4)
    worker.process.send_signal(signal.SIGCONT)
    time.sleep(1)
    later = nap(server, 0)
    assert eventually(lambda: worker.ends[later]), worker.output


def test_a_worker_that_waits_for_redis_lives(server: Server, start_worker: StartWorker) -> None:
    worker = start_worker(JUDGED_WATCHED="1")
    with server.stopped():
        assert eventually(lambda: "Cannot connect" in worker.output)
        time.sleep(4)
    later = nap(server, 0)
    assert eventually(lambda: worker.ends[later], 20)
