"""Publishing a keep-set: the snapshot is noted first, everything or nothing is committed, nothing is read too early."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from keeping import World, world

from fsworker.broker.kv import KV
from fsworker.client import Client
from fsworker.errors import ConfigError, KeepSetError, RedisUnavailableError
from fsworker.host.embedded import EmbeddedServer
from fsworker.keepsets import publish as publish_module
from fsworker.keepsets.publish import KeepSets
from fsworker.keepsets.reader import KeepReader

NAMES = [bytes([n % 256, n // 256]) * 10 for n in range(5000)]


@pytest.fixture
def w(tmp_path: Path, redis_url: str) -> Iterator[World]:
    with world(tmp_path, KV(redis_url)) as made:
        yield made


def in_force(w: World, app: str = "shop") -> set[bytes]:
    reader = KeepReader(w.kv, w.names)
    (found,) = reader.find([app])
    assert found.problem is None
    if found.manifest is None:
        return set()
    return set().union(
        *(reader.marked(found.manifest, shard, {n for n in NAMES if n[0] == shard}) for shard in range(256))
    )


def keys(w: World) -> list[bytes]:
    return list(w.redis.scan_iter(f"{w.names.namespace}:*", count=5000))


class LazyRows:
    """Like a queryset: has a length, is read when it is iterated, remembers what it read."""

    def __init__(self, rows: list[Any]) -> None:
        self._rows = rows
        self._result_cache: list[Any] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Any]:
        self._result_cache = self._rows
        return iter(self._rows)


@pytest.mark.parametrize(
    "source",
    [
        lambda: (name for name in NAMES),
        lambda: lambda: NAMES,
        lambda: lambda: iter(NAMES),
        lambda: LazyRows(NAMES),
        lambda: map(bytes.hex, NAMES),
        lambda: (name.hex() for name in NAMES),
    ],
    ids=["generator", "callable", "callable with iterator", "queryset", "map", "texts"],
)
def test_what_is_read_from_now_on_needs_no_time(w: World, source: Callable[[], Any]) -> None:
    before_s = w.kv.time_s()
    done = w.keep("shop").publish(source())
    assert before_s <= done.snapshot_time <= w.kv.time_s()
    assert done.count == len(NAMES)
    assert in_force(w) == set(NAMES)


def begun() -> Iterator[bytes]:
    generator = (name for name in NAMES)
    next(generator)
    return generator


def evaluated() -> LazyRows:
    rows = LazyRows(NAMES)
    list(rows)
    return rows


def lines() -> io.StringIO:
    return io.StringIO("".join(f"{name.hex()}\n" for name in NAMES))


READ_EARLIER = {
    "list": lambda: NAMES,
    "tuple": lambda: tuple(NAMES),
    "set": lambda: set(NAMES),
    "frozenset": lambda: frozenset(NAMES),
    "dict": lambda: dict.fromkeys(NAMES),
    "keys": lambda: dict.fromkeys(NAMES).keys(),
    "values": lambda: dict(enumerate(NAMES)).values(),
    "iterator of a list": lambda: iter(NAMES),
    "iterator of a set": lambda: iter(set(NAMES)),
    "reversed list": lambda: reversed(NAMES),
    "generator that has begun": begun,
    "evaluated queryset": evaluated,
    "file": lines,
    "binary file": lambda: io.BytesIO(lines().getvalue().encode()),
}


@pytest.mark.parametrize("source", READ_EARLIER.values(), ids=READ_EARLIER)
def test_what_was_read_earlier_needs_a_snapshot_time(w: World, source: Callable[[], Any]) -> None:
    keep = w.keep("shop")
    with pytest.raises(KeepSetError, match="was read before this call, so snapshot_time must be given"):
        keep.publish(source())
    assert keys(w) == []
    noted = keep.now()
    assert keep.publish(source(), snapshot_time=noted).snapshot_time == noted
    assert in_force(w) >= set(NAMES[1:])


def test_the_time_is_noted_before_the_first_row_is_read(w: World) -> None:
    read_at: list[float] = []

    def rows() -> Iterator[bytes]:
        read_at.append(w.kv.time_s())
        yield NAMES[0]

    assert w.keep("shop").publish(rows).snapshot_time < read_at[0]


@pytest.mark.parametrize(
    "wrong",
    [float("nan"), float("inf"), 0, -1, True, "now", 1e12, datetime(2020, 1, 1)],  # noqa: DTZ001 - that is what is wrong
    ids=repr,
)
def test_a_snapshot_time_that_cannot_be(w: World, wrong: Any) -> None:
    with pytest.raises(KeepSetError, match="snapshot_time"):
        w.keep("shop").publish(NAMES, snapshot_time=wrong)
    assert keys(w) == []


def test_a_snapshot_time_may_be_a_date(w: World) -> None:
    noted = datetime.fromtimestamp(w.keep("shop").now(), UTC)
    assert w.keep("shop").publish(NAMES, snapshot_time=noted).snapshot_time == noted.timestamp()


@pytest.mark.parametrize("source", ["da39a3ee5e6b4b0d3255bfef95601890afd80709", b"x" * 20, 5, None], ids=repr)
def test_what_is_no_collection_of_hashes(w: World, source: Any) -> None:
    with pytest.raises(KeepSetError, match="Nothing was published"):
        w.keep("shop").publish(source, snapshot_time=w.keep("shop").now())


def test_an_empty_set_must_be_meant(w: World) -> None:
    with pytest.raises(KeepSetError, match="allow_empty=True"):
        w.keep("shop").publish(list)
    assert keys(w) == []
    assert w.keep("shop").publish(list, allow_empty=True).count == 0
    assert w.manifest()["allow_empty"] is True


def test_a_malformed_hash_leaves_the_old_set_in_force(w: World) -> None:
    w.keep("shop").publish(lambda: NAMES[:10])
    before = sorted(keys(w))
    with pytest.raises(KeepSetError, match=r"^hash number 4,001 is 'oops'"):
        w.keep("shop").publish(lambda: [*NAMES[:4000], "oops", *NAMES])
    assert sorted(keys(w)) == before
    assert in_force(w) == set(NAMES[:10])


def test_an_error_of_the_application_is_raised_as_it_is(w: World) -> None:
    def rows() -> Iterator[bytes]:
        yield from NAMES
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        w.keep("shop").publish(rows)
    assert keys(w) == []


def test_the_old_generation_stays_for_a_while_and_the_new_one_for_good(w: World) -> None:
    w.keep("shop").publish(lambda: NAMES)
    old = w.part_keys()
    w.keep("shop").publish(lambda: NAMES[:100])
    assert all(0 < w.redis.ttl(key) <= publish_module.PREVIOUS_S for key in old)
    assert all(w.redis.ttl(key) == -1 for key in [*w.part_keys(), w.names.manifest_key("shop")])


def test_parts_expire_until_they_are_committed(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish_module, "_WRITE_AT_BYTES", 1)

    def rows() -> Iterator[bytes]:
        yield from [b"\x07" * 20] * 9000
        assert len(found := keys(w)) == 2
        assert all(0 < w.redis.ttl(key) <= publish_module.UNFINISHED_S for key in found)

    w.keep("shop").publish(rows)


def test_redis_that_loses_a_part_meanwhile_is_noticed(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish_module, "_WRITE_AT_BYTES", 1)
    w.keep("shop").publish(lambda: NAMES[:10])

    def rows() -> Iterator[bytes]:
        yield from [b"\x07" * 20] * 9000
        w.redis.delete(*[key for key in keys(w) if b":07:1" in key])

    with pytest.raises(KeepSetError, match="Redis lost a part of the keep-set while it was being published"):
        w.keep("shop").publish(rows)
    assert in_force(w) == set(NAMES[:10])


def test_of_two_publishers_the_later_snapshot_wins(w: World) -> None:
    keep = w.keep("shop")

    def slow() -> list[bytes]:
        keep.publish(lambda: NAMES[:5])
        return NAMES

    with pytest.raises(KeepSetError, match="a later snapshot .* was published meanwhile and stays in force"):
        keep.publish(slow)
    assert in_force(w) == set(NAMES[:5])
    assert len(keys(w)) == 1 + len(w.part_keys()) + sum(w.redis.ttl(key) > 0 for key in keys(w))


@pytest.mark.parametrize("broken", [b"", b"{", b"\xff" * 100], ids=repr)
def test_a_broken_manifest_is_replaced(w: World, broken: bytes) -> None:
    w.redis.set(w.names.manifest_key("shop"), broken)
    w.keep("shop").publish(lambda: NAMES)
    assert in_force(w) == set(NAMES)


def test_a_manifest_from_the_future_is_replaced(w: World) -> None:
    w.keep("shop").publish(lambda: NAMES[:5])
    w.set_manifest(snapshot_time=time.time() + 3 * 86400)
    w.keep("shop").publish(lambda: NAMES)
    assert in_force(w) == set(NAMES)


def test_a_store_without_an_id_is_told(w: World) -> None:
    with pytest.raises(ConfigError, match="the store has no id.*fsworker app add shop"):
        KeepSets("shop", w.names, "", lambda: w.kv).publish(lambda: NAMES)


def test_progress_is_told(w: World) -> None:
    told: list[int] = []
    w.keep("shop").publish(lambda: NAMES, progress=told.append)
    assert told[-1] == len(NAMES)


def test_a_client_publishes(w: World) -> None:
    with Client("shop", settings=w.settings) as client:
        done = client.keep.publish(name.hex() for name in NAMES)
        assert done.as_json()["count"] == len(NAMES)
    assert in_force(w) == set(NAMES)
    assert w.manifest()["store"] == w.store.config.store_id


def test_a_client_that_sees_only_its_spool_publishes(w: World) -> None:
    settings = w.settings.model_copy(update={"store": None, "spool": w.store.root / "Spool/shop"})
    with Client("shop", settings=settings) as client:
        client.keep.publish(lambda: NAMES)
    assert in_force(w) == set(NAMES)


def publish_in_child(w: World, hashes: list[bytes], kill_at: int) -> int:
    """Publish in a process of its own, killed before its ``kill_at``-th word to Redis; its exit status."""
    pid = os.fork()
    if pid == 0:
        try:
            calls = itertools.count(1)

            def before(original: Callable[..., Any]) -> Callable[..., Any]:
                def call(*args: Any, **kwargs: Any) -> Any:
                    if next(calls) == kill_at:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return original(*args, **kwargs)

                return call

            for name in ("time_s", "write_many", "expire_many", "commit", "remove_many"):
                setattr(KV, name, before(getattr(KV, name)))
            publish_module._WRITE_AT_BYTES = 10_000
            KeepSets("shop", w.names, w.store.config.store_id, lambda: KV(w.kv.url)).publish(lambda: hashes)
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_killed_at_every_step_the_old_set_or_the_new_is_in_force(w: World) -> None:
    w.keep("shop").publish(lambda: NAMES[:7])
    for step in range(1, 100):
        code = publish_in_child(w, NAMES, step)
        assert in_force(w) == (set(NAMES[:7]) if code else set(NAMES)), f"killed at step {step}"
        forever = [key for key in keys(w) if w.redis.ttl(key) == -1]
        assert len(forever) == 1 + len(w.part_keys())
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert step > 10


def test_redis_restarts_while_a_set_is_published(tmp_path: Path) -> None:
    server = EmbeddedServer.start(tmp_path / "redis")
    with contextlib.ExitStack() as servers, world(tmp_path, KV(server.url)) as w:
        w.keep("shop").publish(lambda: NAMES[:7])

        def rows() -> Iterator[bytes]:
            yield from NAMES[:4000]
            server.stop()
            servers.enter_context(EmbeddedServer.start(tmp_path / "redis"))
            yield from NAMES[4000:]

        with contextlib.suppress(KeepSetError, RedisUnavailableError):
            w.keep("shop").publish(rows)
        assert in_force(w) in (set(NAMES[:7]), set(NAMES))
        w.keep("shop").publish(lambda: NAMES)
        assert in_force(w) == set(NAMES)
