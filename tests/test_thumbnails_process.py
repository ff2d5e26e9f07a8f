"""Thumbnails can be made wherever a worker runs: in pool processes, in threads, again and again, and by strangers' bytes."""

from __future__ import annotations

import errno
import gc
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from images import chart, encoded, thumbnails, with_orientation
from PIL import Image

from fsworker.specification import Thumbnail
from fsworker.thumbnails import Limits, PictureOutcome, child, make_thumbnails
from fsworker.thumbnails.child import run_limited
from fsworker.thumbnails.render import reason_of

pytestmark = pytest.mark.usefixtures("no_fork_server")

FUZZED = 2000
"""Mutated pictures in a normal run; the long one is ``benchmarks/fuzz_thumbnails.py``."""


def _children() -> set[str]:
    """The processes that this one has; the test session has a Redis of its own."""
    lists = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return {pid for text in lists for pid in text.read_text().split()}


def _open_descriptors() -> list[str]:
    gc.collect()
    return sorted(os.listdir("/proc/self/fd"), key=int)


def _bytes_of(outcome: PictureOutcome) -> dict[str, bytes]:
    return {name: made.read() for name, made in outcome.made.items()}


class TestProcesses:
    """Where the caller is a process of Celery's pool."""

    def test_in_a_daemonic_process(self) -> None:
        def work(connection: Connection) -> None:
            connection.send(_bytes_of(thumbnails(encoded(chart(), "JPEG"), a="50x")))

        context = multiprocessing.get_context("fork")
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(sending,), daemon=True)
        process.start()
        assert receiving.poll(30)
        assert receiving.recv() == _bytes_of(thumbnails(encoded(chart(), "JPEG"), a="50x"))
        process.join(10)
        assert process.exitcode == 0

    def test_with_children_reaped_by_the_kernel(self) -> None:
        before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        try:
            assert thumbnails(encoded(chart(), "JPEG"), a="50x").failed == {}
        finally:
            signal.signal(signal.SIGCHLD, before)

    def test_a_time_limit_raised_into_the_waiting_leaves_no_process(self) -> None:
        children = _children()

        class SoftLimitError(Exception):
            pass

        def on_alarm(*_: object) -> None:
            raise SoftLimitError

        before = signal.signal(signal.SIGALRM, on_alarm)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(SoftLimitError):
                run_limited(lambda *_: time.sleep(60), 0, {}, Limits())
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert _children() == children

    def test_signals_that_come_while_forking_stay_the_parents(self) -> None:
        seen: list[int] = []
        before = signal.signal(signal.SIGALRM, lambda *_: seen.append(os.getpid()))
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        try:
            for _ in range(10):
                assert thumbnails(encoded(chart(), "JPEG"), a="50x").failed == {}
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert set(seen) == {os.getpid()}


class TestThreads:
    """Where the caller is a thread among others."""

    def test_many_at_once_while_others_hold_locks(self) -> None:
        data = encoded(chart(400, 300), "JPEG")
        expected = _bytes_of(thumbnails(data, a="50x", b={"geometry": "90x", "format": "webp"}))
        stop = threading.Event()

        def hold_locks() -> None:
            while not stop.is_set():
                sys.stdout.write("")
                sys.stdout.flush()
                _ = [bytearray(100_000) for _ in range(50)]

        holders = [threading.Thread(target=hold_locks) for _ in range(3)]
        for holder in holders:
            holder.start()
        try:
            with ThreadPoolExecutor(8) as pool:
                jobs = [
                    pool.submit(thumbnails, data, Limits(wall_s=30), a="50x", b={"geometry": "90x", "format": "webp"})
                    for _ in range(60)
                ]
                assert all(_bytes_of(job.result()) == expected for job in jobs)
        finally:
            stop.set()
            for holder in holders:
                holder.join()


class TestLeaks:
    """Nothing is left behind, whatever happens."""

    def test_no_descriptor_and_no_process(self) -> None:
        data = encoded(chart(), "JPEG")
        thumbnails(data, a="50x")
        before, children = _open_descriptors(), _children()
        for _ in range(15):
            thumbnails(data, a="50x", b="60x")
            thumbnails(data[:500], a="50x")
            thumbnails(b"no picture", a="50x")
            run_limited(lambda *_: signal.raise_signal(signal.SIGSEGV), 0, {}, Limits())
        run_limited(lambda *_: time.sleep(60), 0, {}, Limits(wall_s=0.05))
        assert _open_descriptors() == before
        assert _children() == children

    def test_no_descriptor_where_there_can_be_no_more(self) -> None:
        before, children = _open_descriptors(), _children()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        fd = os.memfd_create("picture")
        os.pwrite(fd, encoded(chart(), "JPEG"), 0)
        try:
            for room in (0, 1, 2):
                resource.setrlimit(resource.RLIMIT_NOFILE, (fd + 1 + room, hard))
                with pytest.raises(OSError):
                    make_thumbnails(fd, {"a": Thumbnail("50x")})
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            os.close(fd)
        assert _open_descriptors() == before
        assert _children() == children

    def test_the_descriptor_is_left_open_where_it_was(self, tmp_path: Path) -> None:
        (tmp_path / "a.jpg").write_bytes(encoded(chart(), "JPEG"))
        with (tmp_path / "a.jpg").open("rb", buffering=0) as stream:
            stream.seek(7)
            assert make_thumbnails(stream.fileno(), {"a": Thumbnail("50x")}).failed == {}
            assert stream.tell() == 7

    def test_the_parents_memory_stays_flat(self) -> None:
        data = encoded(chart(1500, 1000), "PNG")

        def resident_bytes() -> int:
            return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

        thumbnails(data, a="1500x")
        before = resident_bytes()
        for _ in range(12):
            thumbnails(data, a="1500x", b={"geometry": "1500x", "format": "png"})
        assert resident_bytes() - before < 4 * 2**20


class TestFuzz:
    """Mutated pictures: each outcome is a thumbnail or a named refusal."""

    def test_every_mutation_has_a_verdict(self, tmp_path: Path) -> None:
        program = Path(__file__).parents[1] / "benchmarks" / "fuzz_thumbnails.py"
        run = subprocess.run(  # beside this process, which is large, so that forking costs half
            [sys.executable, program, "--count", str(FUZZED), "--seed", "20261122", "--json"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.stdout, run.stderr
        tally = json.loads(run.stdout)
        assert tally["kept_all_promises"], tally
        assert tally["pictures"] == FUZZED
        assert tally["made"] + tally["refused"] == 3 * FUZZED
        # Else the mutations are too weak, or too strong, to say anything.
        assert min(tally["made"], tally["refused"]) > 3 * FUZZED // 10


class TestNotThePicturesFault:
    """What keeps this host from making a process is no verdict on a picture, which would be stored with the upload."""

    def test_a_process_that_cannot_be_given_its_limits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refused(*_: object) -> None:
            raise OSError(errno.ENFILE, "Too many open files in system")

        monkeypatch.setattr(child, "renounce", refused)
        before, children = _open_descriptors(), _children()
        with pytest.raises(OSError, match="could not be given its limits"):
            thumbnails(encoded(chart(), "JPEG"), a="50x")
        assert (_open_descriptors(), _children()) == (before, children)

    @pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory")])
    def test_memory_that_is_short_is_called_so(self, error: Exception) -> None:
        assert reason_of(error, Limits(memory_bytes=2**20)) == "needs more than 1 MiB of memory"

    def test_memory_that_is_short_while_exif_is_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def short(_image: Image.Image) -> None:
            raise MemoryError

        stored, exif = with_orientation(chart(), 6)
        data = encoded(stored, "WEBP", exif=exif)
        monkeypatch.setattr(Image.Image, "getexif", short)
        outcome = thumbnails(data, a="50x")
        assert outcome.made == {}
        assert "memory" in outcome.failed["a"]
