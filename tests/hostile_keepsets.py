"""Keep-sets that must never be acted on: each damages what application ``shop`` published, and says what is to be found."""

from __future__ import annotations

import gzip
import json
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from keeping import DAY, HOUR, World

from fsworker.keepsets.form import new_digest
from fsworker.model import EMPTY_HASH

Damage = Callable[[World], object]


@dataclass(frozen=True)
class Case:
    name: str
    damage: Damage
    reason: str = "broken:shop"  # several are joined by a space


def cases() -> Iterator[Case]:
    yield from _not_manifests()
    yield from _wrong_fields()
    yield from _wrong_shard_lists()
    yield from _times()
    yield from _damaged_parts()
    yield from _others()


def _raw(data: bytes | str) -> Damage:
    return lambda w: w.redis.set(w.names.manifest_key("shop"), data)


def _text(change: Callable[[str], str | bytes]) -> Damage:
    return lambda w: w.redis.set(w.names.manifest_key("shop"), change(json.dumps(w.manifest())))


def _fields(**changes: Any) -> Damage:
    return lambda w: w.set_manifest(**changes)


def _not_manifests() -> Iterator[Case]:
    texts: dict[str, bytes | str] = {
        "space": " ", "null": "null", "list": "[]", "object": "{}", "string": '"x"', "number": "1", "NaN": "NaN",
        "not UTF-8": b"\xff\xfe{}", "zero bytes": bytes(100), "deep": "[" * 20_000, "deep objects": '{"a":' * 9_000,
        "pickle": pickle.dumps({"version": 1}), "a hash": EMPTY_HASH,
        "megabyte": b"[" + b" " * 10**6 + b"]",
    }  # fmt: skip
    for name, text in texts.items():
        yield Case(f"manifest: {name}", _raw(text))
    changes: dict[str, Callable[[str], str | bytes]] = {
        "truncated": lambda t: t[:-1],
        "half": lambda t: t[: len(t) // 2],
        "garbage after": lambda t: t + "x",
        "twice": lambda t: t + t,
        "byte order mark": lambda t: "\ufeff" + t,
        "gzip": lambda t: gzip.compress(t.encode()),
        "UTF-16": lambda t: t.encode("utf-16"),
        "in a list": lambda t: f"[{t}]",
        "a key twice": lambda t: t[:-1] + ', "count": 0}',
        "padded to a megabyte": lambda t: t + " " * 10**6,
    }
    for name, change in changes.items():
        yield Case(f"manifest: {name}", _text(change))
    fill: dict[str, Callable[[World, str], object]] = {
        "a list": lambda w, key: w.redis.rpush(key, "x"),
        "a set": lambda w, key: w.redis.sadd(key, "x"),
        "a hash": lambda w, key: w.redis.hset(key, "x", "y"),
        "a stream": lambda w, key: w.redis.xadd(key, {"x": "y"}),
    }
    for name, make in fill.items():
        yield Case(
            f"manifest: {name} in Redis", _replaced(lambda w: w.names.manifest_key("shop"), make), "no_keep_set:shop"
        )
    yield Case("manifest: empty", _raw(""), "no_keep_set:shop")


def _replaced(key_of: Callable[[World], str], make: Callable[[World, str], object]) -> Damage:
    def damage(w: World) -> None:
        key = key_of(w)
        w.redis.delete(key)
        make(w, key)

    return damage


def _wrong_fields() -> Iterator[Case]:
    names = ("version", "app", "store", "generation", "snapshot_time", "published_time", "count", "shards")
    for name in names:
        if name != "version":
            yield Case(f"{name}: missing", _without(name))
        yield Case(f"{name}: null", _fields(**{name: None}))
        yield Case(f"{name}: a list", _fields(**{name: [[]]}))
        yield Case(
            f"{name}: a text", _fields(**{name: "\x00"}), "other_store:shop" if name == "store" else "broken:shop"
        )
    wrong: dict[str, list[Any]] = {
        "version": [0, 2, "1", True, 1.5],
        "generation": ["0" * 31, "0" * 33, "A" * 32, "../" + "0" * 29, "0" * 31 + "\n", 5],
        "count": [-1, 0, 1, 10**12, 1.5, "600", True],
        "published_time": ["x", -1, 1e300, True],
        "per_part": [0, 1, -1, 10**9, 1.5, "3276", None],
        "allow_empty": [1, "yes", None],
        "app": ["blog", "Shop", "shop ", "", 1],
    }
    for name, values in wrong.items():
        for value in values:
            yield Case(f"{name}: {value!r}", _fields(**{name: value}))
    yield Case("a field too many", _fields(trust_me=True))
    yield Case("generation of nobody", _fields(generation="0" * 32))
    yield Case(
        "generation of another application", lambda w: w.set_manifest(generation=w.manifest("blog")["generation"])
    )
    yield Case("store: another", _fields(store="f" * 32), "other_store:shop")
    yield Case("store: empty", _fields(store=""), "other_store:shop")


def _without(name: str) -> Damage:
    def damage(w: World) -> None:
        tree = w.manifest()
        del tree[name]
        w.redis.set(w.names.manifest_key("shop"), json.dumps(tree))

    return damage


def _shards(change: Callable[[list[Any]], object]) -> Damage:
    def damage(w: World) -> None:
        shards = w.manifest()["shards"]
        change(shards)
        w.set_manifest(shards=shards)

    return damage


def _wrong_shard_lists() -> Iterator[Case]:
    changes: dict[str, Callable[[list[Any]], object]] = {
        "none": lambda s: s.clear(),
        "one missing": lambda s: s.pop(),
        "one too many": lambda s: s.append([0, "0" * 32]),
        "backwards": lambda s: s.reverse(),
        "two swapped": lambda s: s.__setitem__(slice(0, 2), [s[1], s[0]]),
        "a count of -1": lambda s: s.__setitem__(0, [-1, s[0][1]]),
        "a count of 0": lambda s: s.__setitem__(0, [0, s[0][1]]),
        "a true count": lambda s: s.__setitem__(0, [True, s[0][1]]),
        "a count as text": lambda s: s.__setitem__(0, [str(s[0][0]), s[0][1]]),
        "one entry moved to the next": lambda s: (s[0].__setitem__(0, s[0][0] - 1), s[1].__setitem__(0, s[1][0] + 1)),
        "a huge count": lambda s: s.__setitem__(0, [10**18, s[0][1]]),
        "a short digest": lambda s: s.__setitem__(0, [s[0][0], "0"]),
        "no digest": lambda s: s.__setitem__(0, [s[0][0]]),
        "a null digest": lambda s: s.__setitem__(0, [s[0][0], None]),
        "digest in capitals": lambda s: s.__setitem__(0, [s[0][0], "A" * 32]),
        "another digest": lambda s: s.__setitem__(0, [s[0][0], "0" * 32]),
        "a dictionary": lambda s: s.__setitem__(0, {"count": 1}),
        "a number": lambda s: s.__setitem__(0, 1),
        "three fields": lambda s: s[0].append(1),
    }
    for name, change in changes.items():
        yield Case(f"shards: {name}", _shards(change))


def _times() -> Iterator[Case]:
    for value in (float("nan"), float("inf"), -1.0, 1e300, True):
        yield Case(f"snapshot_time: {value}", _fields(snapshot_time=value))
    yield Case("snapshot a second ahead", lambda w: w.set_manifest(snapshot_time=w.kv.time_s() + 1), "future:shop")
    yield Case("snapshot in a day", lambda w: w.set_manifest(snapshot_time=w.kv.time_s() + DAY), "future:shop")
    yield Case("snapshot 49 hours old", lambda w: w.set_manifest(snapshot_time=w.kv.time_s() - 49 * HOUR), "stale:shop")
    yield Case("snapshot of long ago", lambda w: w.set_manifest(snapshot_time=0.0), "stale:shop going_back:shop")
    yield Case(
        "snapshot before the accepted one",
        lambda w: w.set_manifest(snapshot_time=w.manifest()["snapshot_time"] - 61 * HOUR),
        "stale:shop going_back:shop",
    )


def _largest(w: World) -> str:
    return max(w.part_keys(), key=w.redis.strlen)


def _part(change: Callable[[bytes], bytes]) -> Damage:
    def damage(w: World) -> None:
        key = _largest(w)
        data = w.redis.get(key)
        assert isinstance(data, bytes)
        w.redis.set(key, change(data))

    return damage


def _damaged_parts() -> Iterator[Case]:
    changes: dict[str, Callable[[bytes], bytes]] = {
        "a byte short": lambda p: p[:-1],
        "a hash short": lambda p: p[:-20],
        "a byte long": lambda p: p + b"\0",
        "a hash long": lambda p: p + p[:20],
        "a bit": lambda p: p[:5] + bytes([p[5] ^ 1]) + p[6:],
        "the first bit": lambda p: bytes([p[0] ^ 1]) + p[1:],
        "zeros": lambda p: bytes(len(p)),
        "in hex": lambda p: p.hex().encode(),
        "in hex, cut": lambda p: p.hex().encode()[: len(p)],
        "as lines": lambda p: b"\n".join(p[i : i + 20].hex().encode() for i in range(0, len(p), 20)),
        "empty": lambda _: b"",
        "a megabyte": lambda p: p * (10**6 // len(p)),
        "its first hash again": lambda p: p[:20] * (len(p) // 20),
        "another order": lambda p: p[20:] + p[:20],
        "JSON": lambda p: json.dumps([p.hex()]).encode(),
    }
    for name, change in changes.items():
        yield Case(f"part: {name}", _part(change))
    fill: dict[str, Callable[[World, str], object]] = {
        "a list": lambda w, key: w.redis.rpush(key, "x"),
        "a set": lambda w, key: w.redis.sadd(key, "x"),
        "a bitmap": lambda w, key: w.redis.setbit(key, 7, 1),
        "gone": lambda w, key: None,
    }
    for name, make in fill.items():
        yield Case(f"part: {name}", _replaced(lambda w: _largest(w), make))
    yield Case("half of the parts are gone", lambda w: w.redis.delete(*w.part_keys()[::2]))
    yield Case("all parts are gone", lambda w: w.redis.delete(*w.part_keys()))
    yield Case("two parts swapped", lambda w: _swap(w, digests=False))
    yield Case("two parts swapped, digests too", lambda w: _swap(w, digests=True))
    yield Case("a part of another application", _foreign_part)


def _swap(w: World, *, digests: bool) -> None:
    """Two shards in each other's place; with ``digests`` the manifest agrees with it."""
    manifest = w.manifest()
    shards = manifest["shards"]
    first, second = next((i, j) for i in range(256) for j in range(i + 1, 256) if shards[i][0] == shards[j][0] > 0)
    keys = [w.names.part_key("shop", manifest["generation"], shard, 0) for shard in (first, second)]
    data = w.redis.mget(keys)
    assert isinstance(data, list)
    w.redis.mset({keys[0]: data[1], keys[1]: data[0]})
    if digests:
        shards[first], shards[second] = shards[second], shards[first]
        w.set_manifest(shards=shards)


def _foreign_part(w: World) -> None:
    """The shard of another application, as long, with the digest that the manifest has for ours."""
    shards = [w.manifest(app)["shards"] for app in ("shop", "blog")]
    shard = next(i for i in range(256) if shards[0][i][0] == shards[1][i][0] > 0)
    keys = [w.names.part_key(app, w.manifest(app)["generation"], shard, 0) for app in ("shop", "blog")]
    w.redis.copy(keys[1], keys[0], replace=True)


def _others() -> Iterator[Case]:
    def unannounced(w: World) -> None:
        empty = new_digest().hexdigest()
        w.set_manifest(count=0, shards=[[0, empty]] * 256, allow_empty=False)

    yield Case("zero entries unannounced", unannounced, "empty:shop shrunk:shop")
    yield Case("no manifest", lambda w: w.redis.delete(w.names.manifest_key("shop")), "no_keep_set:shop")
    yield Case("half as many", lambda w: w.publish("shop", [bytes([i]) * 20 for i in range(256)]), "shrunk:shop")
    yield Case("none at all", lambda w: w.publish("shop", [], allow_empty=True), "shrunk:shop")
