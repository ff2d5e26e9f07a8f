"""kill -9 of a collection and of a purge at every step; two at once; Redis that restarts or forgets; the clock, really set."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from keeping import World, world
from processes import ENVIRONMENT

from fsworker.broker.kv import KV
from fsworker.collection.collector import Collector
from fsworker.collection.purge import purge
from fsworker.errors import CollectionRefusedError, RedisUnavailableError
from fsworker.host.embedded import EmbeddedServer
from fsworker.keepsets.reader import KeepReader
from fsworker.model import Hash
from fsworker.store import clock
from fsworker.store.facade import Store

CALLS = ("rename", "link", "unlink", "mkdir", "rmdir", "fsync", "fchmod", "write")
"""System calls that change something, before each of which the process is killed, one after the other."""


@pytest.fixture
def w(tmp_path: Path, redis_url: str) -> Iterator[World]:
    with world(tmp_path, KV(redis_url), grace_s=0.0) as made:
        yield made


def in_child(w: World, act: Callable[[Collector], object], kill_at: int | None = None) -> int:
    """Do something in a process of its own, killed before its ``kill_at``-th system call; its exit status."""
    pid = os.fork()
    if pid == 0:
        try:
            if kill_at is not None:
                _kill_at(kill_at)
            with Store(w.store.root, durability="none") as store:
                act(Collector(store, KeepReader(KV(w.kv.url), w.names), w.settings))
            os._exit(0)
        except CollectionRefusedError as error:
            os._exit(3 if error.refusals[0].reason == "running" else 4)
        except BaseException:
            traceback.print_exc()
            os._exit(5)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _kill_at(step: int) -> None:
    calls = 0

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return call

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))


def killed_at_every_step(w: World, act: Callable[[Collector], object], around: Callable[[], Callable[[], None]]) -> int:
    """Kill ``act`` before its first change, before its second, and so on. ``around`` prepares, and returns the check."""
    step, code = 0, -signal.SIGKILL
    while code == -signal.SIGKILL:
        step += 1
        check = around()
        code = in_child(w, act, step)
        assert code in (0, -signal.SIGKILL)
        check()
    return step


def test_a_collection_that_is_killed_loses_nothing_and_the_next_completes(w: World) -> None:
    """Each time there are three files to take and one to bring back."""
    kept: list[Hash] = []
    everything: list[Hash] = []

    def around() -> Callable[[], None]:
        trashed = [name for name in everything if not w.has(name)]
        kept.extend(w.put(f"kept {len(everything)}") + trashed[:1])
        everything.extend([kept[-1], *w.put(*(f"{len(everything)} {n}" for n in range(3)))])
        w.publish_all(shop=kept)
        had = [name for name in kept if w.has(name)]

        def check() -> None:
            assert all(map(w.has, had))
            trash = set(w.trashed())
            assert all(w.has(name) or name in trash for name in everything)

        return check

    assert killed_at_every_step(w, Collector.collect, around) > 20
    assert w.collect().done
    assert set(w.store) == set(kept)


def test_a_purge_that_is_killed_deletes_nothing_wanted_and_the_next_completes(w: World) -> None:
    settings = w.settings.model_copy(update={"trash_retention": 0.0})
    (wanted,) = w.put("wanted")
    numbers = itertools.count()

    def around() -> Callable[[], None]:
        w.put(*(str(next(numbers)) for _ in range(3)))
        w.publish_all()
        w.collect()
        w.publish_all(shop=[wanted])
        return check

    def check() -> None:
        assert wanted in w.trashed()
        w.purge(trash_retention=0.0)

    def act(collector: Collector) -> None:
        collector.settings = settings
        purge(collector)

    assert killed_at_every_step(w, act, around) > 5
    assert w.trashed() == [wanted]


def test_two_collections_that_start_together(w: World) -> None:
    kept, garbage = w.put("kept"), w.put(*map(str, range(200)))
    w.publish_all(shop=kept)
    pids = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            os._exit(in_child(w, Collector.collect))
        pids.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert set(codes) <= {0, 3}
    assert 0 in codes
    assert list(w.store) == kept
    assert sorted(w.trashed()) == sorted(garbage)


def test_three_applications_with_hundreds_of_thousands_of_hashes(tmp_path: Path, redis_url: str) -> None:
    source = random.Random(5)
    with world(tmp_path, KV(redis_url), apps=("shop", "blog", "wiki"), grace_s=0.0) as w:
        names = w.put(*map(str, range(300)))
        sets = {app: set(source.sample(names, 80)) for app in ("shop", "blog", "wiki")}
        for app, kept in sets.items():
            mixed = [*map(bytes.fromhex, kept), *(source.randbytes(20) for _ in range(200_000))]
            source.shuffle(mixed)
            assert w.publish(app, mixed).count == 200_080
        w.collect()
        assert set(w.store) == set().union(*sets.values())
        assert len(w.store) + len(w.trashed()) == 300


@pytest.mark.parametrize("restarts", [True, False], ids=["restarted", "flushed"])
def test_redis_goes_away_in_the_middle(tmp_path: Path, restarts: bool) -> None:
    server = EmbeddedServer.start(tmp_path / "redis")
    with world(tmp_path, KV(server.url), grace_s=0.0) as w:
        kept, garbage = w.put("kept"), w.put(*map(str, range(300)))
        w.publish_all(shop=[*kept, *(bytes([shard]) * 20 for shard in range(256))])
        moved: list[str] = []

        def on_progress(phase: str, done: int, total: int) -> None:
            if phase == "move" and not moved:
                moved.extend(w.trashed())
                if restarts:
                    server.stop()
                else:
                    w.redis.flushall()

        with pytest.raises((CollectionRefusedError, RedisUnavailableError)):
            w.collector().collect(on_progress)
        assert 0 < len(w.trashed()) < 300
        assert w.has(kept[0])
        if restarts:
            with EmbeddedServer.start(tmp_path / "redis"):
                assert w.collect().done
        else:
            assert w.refusals() == ["no_keep_set:blog", "no_keep_set:shop"]
            w.publish_all(shop=kept)
            assert w.collect().done
        assert list(w.store) == kept
        assert sorted(w.trashed()) == sorted(garbage)
    server.stop()


IN_ANOTHER_TIME = """
import sys
from fsworker.store import clock
from fsworker.store.handle import StoreHandle
with StoreHandle(sys.argv[1]) as handle:
    before = clock.read_record(handle)
    print(before.floor_s, clock.observe(handle).floor_s, handle.probe_clock())
"""


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare"), reason="CI-may-skip: needs root, for a time namespace"
)
@pytest.mark.parametrize("days", [-3, 3])
def test_a_real_kernel_whose_clocks_disagree(w: World, days: int) -> None:
    """In a time namespace the time since boot is three days off, as if the wall clock had been set."""
    clock.observe(w.store)
    uptime = clock.boot_time_s()
    offset = f"--boottime={max(days * 86400, -int(uptime // 2))}"  # a boot in the future cannot be
    command = ["unshare", "--time", offset, "--fork", sys.executable, "-c", IN_ANOTHER_TIME, str(w.store.root)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    if "unshare" in done.stderr:
        pytest.skip(f"CI-may-skip: no time namespaces here: {done.stderr}")
    before_s, floor_s, now_s = map(float, done.stdout.split())
    assert before_s < floor_s
    assert floor_s == pytest.approx(now_s, abs=5)
