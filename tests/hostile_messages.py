"""Messages that must not run, by family; written by structure, so that a new field or rule is met by many of them.

:func:`refused` gives messages with the reason for which each must be refused. :func:`defused` gives messages that steer
by fields which stock producers send as well: they run, but exactly like the plain message. Both are deterministic.
"""

from __future__ import annotations

import base64
import bz2
import gzip
import itertools
import json
import pickle
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from fsworker.broker.judge import MAX_DEPTH, Reason

QUEUE = "fsworker.ingest.shop"
TASK = "fsworker.ingest"
KWARGS: dict[str, Any] = {"upload": "0123456789abcdef", "thumbnails": {"small": "100x100"}}
EMBED: dict[str, Any] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}

JUNK: list[Any] = [None, True, False, 0, -1, 1.5, "", "x", [], [1], [[]], {}, {"a": 1}, {"a": {"b": []}}]
COLLECT = {
    "task": "fsworker.collect",
    "args": [],
    "kwargs": {},
    "options": {"queue": "fsworker.maintenance"},
    "immutable": True,
}


@dataclass(frozen=True)
class Hostile:
    """Raw bytes of one message, and why they must be refused."""

    family: str
    name: str
    raw: bytes
    reason: Reason


@dataclass(frozen=True)
class Defused:
    """Raw bytes of one message whose steering fields must have no effect."""

    name: str
    raw: bytes


def base64_json(value: object) -> str:
    """A body as stock producers send it."""
    return base64.b64encode(json.dumps(value).encode()).decode()


def plain(
    job_id: str = "shop.00000000-0000-4000-8000-000000000000",
    *,
    task: str = TASK,
    kwargs: dict[str, Any] | None = None,
    queue: str = QUEUE,
) -> dict[str, Any]:
    """A message as a stock Celery 5.7 producer pushes it, before it becomes JSON."""
    return {
        "body": base64_json([[], KWARGS if kwargs is None else kwargs, EMBED]),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py",
            "task": task,
            "id": job_id,
            "shadow": None,
            "eta": None,
            "expires": None,
            "group": None,
            "group_index": None,
            "retries": 0,
            "timelimit": [None, None],
            "root_id": job_id,
            "parent_id": None,
            "argsrepr": "()",
            "kwargsrepr": "{}",
            "origin": "gen1@web",
            "ignore_result": False,
            "replaced_task_nesting": 0,
            "stamped_headers": None,
            "stamps": {},
        },
        "properties": {
            "correlation_id": job_id,
            "reply_to": "9f1c2d3e-0000-3000-8000-000000000000",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": "11111111-2222-4333-8444-555555555555",
        },
    }


def plain_bytes(job_id: str, **changes: Any) -> bytes:
    """:func:`plain` as bytes on a queue."""
    return json.dumps(plain(job_id, **changes)).encode()


_numbers = itertools.count(1)


def _fresh_id() -> str:
    """An own job id for each message, so that no two of them share a result."""
    return f"shop.hostile-{next(_numbers):08d}"


def _with(path: str, value: object) -> bytes:
    """The plain message with one field, ``headers/task``, set."""
    message = plain(_fresh_id())
    *parents, last = path.split("/")
    target = message
    for parent in parents:
        target = target[parent]
    target[last] = value
    return json.dumps(message).encode()


def _without(path: str) -> bytes:
    message = plain(_fresh_id())
    *parents, last = path.split("/")
    target = message
    for parent in parents:
        target = target[parent]
    del target[last]
    return json.dumps(message).encode()


def _body(raw: bytes | str) -> bytes:
    """The plain message around these bytes as its body."""
    encoded = base64.b64encode(raw.encode() if isinstance(raw, str) else raw).decode()
    return _with("body", encoded)


def _kwargs(kwargs: object) -> bytes:
    return _body(json.dumps([[], kwargs, EMBED]))


def _replaced(old: str, new: str) -> bytes:
    """The plain message with a piece of its JSON text exchanged."""
    text = json.dumps(plain(_fresh_id()))
    assert old in text
    return text.replace(old, new, 1).encode("utf-8", "surrogatepass")


@cache
def refused() -> tuple[Hostile, ...]:
    """Every message that must be refused on :data:`QUEUE`, more than 500."""
    return tuple(
        Hostile(family.__name__.strip("_"), name, raw, reason) for family in _FAMILIES for name, raw, reason in family()
    )


Case = tuple[str, bytes, Reason]


def _not_json() -> Iterator[Case]:
    raw = json.dumps(plain(_fresh_id())).encode()
    for length in range(0, len(raw), len(raw) // 25):
        yield f"cut at {length}", raw[:length], Reason.NOT_JSON
    dice = random.Random(1)
    for number in range(20):
        yield f"random bytes {number}", dice.randbytes(dice.randint(1, 2000)), Reason.NOT_JSON
    for number in range(20):
        # A quotation mark or bracket more changes the grammar wherever it falls outside a string.
        position = raw.index(b'"headers"') + dice.choice([-1, 0, 10, 11])
        yield (
            f"inserted {number}",
            raw[:position] + dice.choice([b'"', b"]", b"}", b"\0"]) + raw[position:],
            Reason.NOT_JSON,
        )
    for name, junk in {
        "white space": b" \n\t",
        "nul": b"\0",
        "byte order mark": b"\xef\xbb\xbf" + raw,
        "utf-16": raw.decode().encode("utf-16"),
        "utf-32": raw.decode().encode("utf-32"),
        "latin-1": raw.replace(b"gen1", b"g\xe9n1"),
        "overlong utf-8": raw.replace(b"gen1", b"g\xc0\xafn1"),
        "utf-8 surrogate": raw.replace(b"gen1", b"g\xed\xa0\x80n1"),
        "beyond unicode": raw.replace(b"gen1", b"g\xf4\x90\x80\x80n1"),
        "two messages": raw + raw,
        "trailing garbage": raw + b"x",
        "comment": b"/* */" + raw,
        "single quotes": raw.replace(b'"', b"'"),
        "trailing comma": raw[:-1] + b",}",
        "control character": raw.replace(b"gen1", b"g\nn1"),
        "bad escape": raw.replace(b"gen1", rb"g\xn1"),
        "half escape": raw.replace(b"gen1", rb"g\u12"),
        "pickle": pickle.dumps(plain()),
        "pickle protocol 0": pickle.dumps(plain(), protocol=0),
        "gzip": gzip.compress(raw),
        "zlib": zlib.compress(raw),
        "gzip bomb": gzip.compress(bytes(50_000_000)),
        "yaml": b"!!python/object/apply:os.system ['id']",
        "redis protocol": b"*1\r\n$8\r\nFLUSHALL\r\n",
        "rq": zlib.compress(pickle.dumps(("os.system", None, ("id",), {}))),
        "html": b"<html></html>",
    }.items():
        yield name, junk, Reason.NOT_JSON


def _ambiguous_json() -> Iterator[Case]:
    """What two parsers read in two ways."""
    for number in ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 400, "9" * 5000, "-" + "1" * 25):
        yield f"{number[:20]} in headers", _replaced('"retries": 0', f'"retries": {number}'), Reason.NOT_JSON
        yield (
            f"{number[:20]} in kwargs",
            _body(f'[[], {{"upload": "x", "max_bytes": {number}}}, {{}}]'),
            Reason.NOT_JSON,
        )
    for old, new in [
        ('"headers": {', '"headers": {}, "headers": {'),
        ('"properties": {', '"properties": {}, "properties": {'),
        ('"task": ', '"task": "fsworker.collect", "task": '),
        ('"id": ', '"id": "blog.12345678", "id": '),
        ('"group": null', '"group": null, "group": "g"'),
        ('"body_encoding": ', '"body_encoding": "utf-8", "body_encoding": '),
        ('"content-type": ', '"content-type": "application/x-python-serialize", "content-type": '),
        ('"priority": 0', '"priority": 0, "priority": 0'),
        ('"stamps": {}', '"stamps": {"\\u0061": 1, "a": 2}'),
    ]:
        yield f"twice {old}", _replaced(old, new), Reason.NOT_JSON
    for body in [
        '[[], {"upload": "a", "upload": "../b"}, {}]',
        '[[], {"upload": "a", "\\u0075pload": "b"}, {}]',
        '[[], {}, {"chain": null, "chain": [1]}]',
    ]:
        yield f"twice in body {body}", _body(body), Reason.NOT_JSON
    for text in ("\\ud800", "\\udfff", "\\udc00\\ud800", "a\\uDBFFb"):
        yield f"surrogate {text} in origin", _replaced("gen1", text), Reason.NOT_JSON
        yield f"surrogate {text} in task", _replaced(TASK, TASK + text), Reason.NOT_JSON
        yield f"surrogate {text} in id", _replaced("shop.host", "shop.host" + text), Reason.NOT_JSON
        yield f"surrogate {text} as key", _replaced('"stamps": {}', f'"stamps": {{"{text}": 1}}'), Reason.NOT_JSON
        yield f"surrogate {text} in kwargs", _body(f'[[], {{"upload": "{text}"}}, {{}}]'), Reason.NOT_JSON
    for typed in [
        {"__type__": "uuid", "__value__": {"hex": "0" * 32}},
        {"__type__": "datetime", "__value__": "9999-12-31T23:59:59"},
        {"__type__": "decimal", "__value__": "1e999999"},
        {"__type__": "bytes", "__value__": "../x"},
        {"__type__": "base64", "__value__": "!"},
        {"__type__": "no such type", "__value__": []},
        {"__type__": [], "__value__": []},
        {"__type__": "uuid"},
    ]:
        for path in ("headers/id", "headers/task", "headers/stamps", "properties/priority", "extra"):
            yield f"typed {typed['__type__']} as {path}", _with(path, typed), Reason.NOT_JSON
        yield f"typed {typed['__type__']} in kwargs", _kwargs({"upload": typed}), Reason.NOT_JSON
        yield f"typed {typed['__type__']} as kwargs", _kwargs(typed), Reason.NOT_JSON


def _too_deep() -> Iterator[Case]:
    for depth in (MAX_DEPTH + 1, 100, 1_000, 5_000):
        for opening, closing in (("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")):
            nested = opening * depth + "1" + closing * depth
            yield f"{depth} {opening} alone", nested.encode(), Reason.TOO_DEEP
            yield f"{depth} {opening} unclosed", (opening * depth).encode(), Reason.TOO_DEEP
            yield f"{depth} {opening} in headers", _replaced('"stamps": {}', f'"stamps": {nested}'), Reason.TOO_DEEP
            yield f"{depth} {opening} in kwargs", _body(f'[[], {{"thumbnails": {nested}}}, {{}}]'), Reason.TOO_DEEP
            yield f"{depth} {opening} in embed", _body(f'[[], {{}}, {{"x": {nested}}}]'), Reason.TOO_DEEP


def _too_large() -> Iterator[Case]:
    raw = json.dumps(plain(_fresh_id())).encode()
    yield "white space", raw + b" " * 600_000, Reason.TOO_LARGE
    yield "zeros", bytes(600_000), Reason.TOO_LARGE
    yield "long kwargs", _kwargs({"upload": "x" * 500_000}), Reason.TOO_LARGE
    yield "many kwargs", _kwargs({str(number): number for number in range(40_000)}), Reason.TOO_LARGE
    yield "many headers", _with("headers/stamps", {str(number): number for number in range(50_000)}), Reason.TOO_LARGE
    yield "long task", _with("headers/task", "x" * 600_000), Reason.TOO_LARGE
    yield "long id", _with("headers/id", "shop." + "x" * 600_000), Reason.TOO_LARGE
    yield "many brackets", b"[" * 600_000, Reason.TOO_LARGE
    yield "many quotation marks", b'"' * 600_000, Reason.TOO_LARGE
    yield "a number", b"1" * 600_000, Reason.TOO_LARGE
    # 350,000 bytes that would be 1,200,000 when written again
    yield "numbers that grow", _body('[[], {"x": [' + ",".join(["1e15"] * 50_000) + "]}, {}]"), Reason.TOO_LARGE


def _shape() -> Iterator[Case]:
    for value in JUNK:
        if not isinstance(value, dict):
            yield f"message is {value}", json.dumps(value).encode(), Reason.SHAPE
            yield f"headers are {value}", _with("headers", value), Reason.SHAPE
            yield f"properties are {value}", _with("properties", value), Reason.SHAPE
            yield f"embed is {value}", _body(json.dumps([[], KWARGS, value])), Reason.SHAPE
            yield f"kwargs are {value}", _kwargs(value), Reason.SHAPE
        if not isinstance(value, str):
            yield f"body is {value}", _with("body", value), Reason.SHAPE
        yield f"body holds {value}", _body(json.dumps(value)), Reason.SHAPE
    for field in ("body", "headers", "properties"):
        yield f"no {field}", _without(field), Reason.SHAPE
    for items in ([], [[]], [[], KWARGS], [[], KWARGS, EMBED, None], [[], KWARGS, EMBED, {"utc": True}]):
        yield f"body of {len(items)}", _body(json.dumps(items)), Reason.SHAPE
    yield "protocol 1 with headers", _with("body", base64_json({"task": TASK, "args": [], "kwargs": {}})), Reason.SHAPE
    yield "empty object", b"{}", Reason.SHAPE
    yield "json-rpc", b'{"jsonrpc": "2.0", "method": "shutdown", "id": 1}', Reason.SHAPE
    yield "pidbox", b'{"method": "shutdown", "arguments": {}, "destination": null, "pattern": null}', Reason.SHAPE
    yield "dramatiq", b'{"queue_name": "default", "actor_name": "x", "args": [], "kwargs": {}}', Reason.SHAPE


def _encoding() -> Iterator[Case]:
    for content_type in (
        "application/x-python-serialize",
        "application/x-yaml",
        "application/x-msgpack",
        "application/data",
        "application/text",
        "text/plain",
        "application/json; charset=utf-8",
        "Application/JSON",
        "application/json\n",
        "pickle",
        "json",
        *(value for value in JUNK if value != "x"),
    ):
        yield f"content-type {content_type!r}", _with("content-type", content_type), Reason.ENCODING
    for content_encoding in ("binary", "utf-16", "utf_8", "UTF-8", "us-ascii", "idna", "zlib", "hex", "rot13", *JUNK):
        yield f"content-encoding {content_encoding!r}", _with("content-encoding", content_encoding), Reason.ENCODING
    for body_encoding in ("utf-8", "BASE64", "hex", "base85", "quopri", *JUNK):
        yield f"body_encoding {body_encoding!r}", _with("properties/body_encoding", body_encoding), Reason.ENCODING
    for field in ("content-type", "content-encoding", "properties/body_encoding"):
        yield f"no {field}", _without(field), Reason.ENCODING
    for evil in (pickle.dumps(plain()), b"cos\nsystem\n(S'id'\ntR.", b"\x80\x04\x95"):
        message = plain(_fresh_id())
        message["content-type"] = "application/x-python-serialize"
        message["content-encoding"] = "binary"
        message["body"] = base64.b64encode(evil).decode()
        yield f"pickled {evil[:8]!r}", json.dumps(message).encode(), Reason.ENCODING
    bomb = gzip.compress(bytes(100_000_000))
    for compression, body in {
        "application/x-gzip": bomb,
        "gzip": bomb,
        "application/x-bz2": bz2.compress(bytes(100_000_000)),
        "application/x-lzma": b"\xfd7zXZ\x00",
        "application/zstd": b"\x28\xb5\x2f\xfd",
        "x": b"",
    }.items():
        message = plain(_fresh_id())
        message["headers"]["compression"] = compression
        message["body"] = base64.b64encode(body).decode()
        yield f"compressed {compression}", json.dumps(message).encode(), Reason.ENCODING
    for compression in (True, 1, ["gzip"], {"a": 1}):
        yield f"compression {compression!r}", _with("headers/compression", compression), Reason.ENCODING
    good = plain(_fresh_id())["body"]
    for name, body in {
        "spaced": f"{good[:20]} {good[20:]}",
        "broken into lines": f"{good[:20]}\n{good[20:]}",
        "url-safe": "_-" + good[2:],
        "padded in the middle": f"{good[:20]}={good[20:]}",
        "short": good[:-1] if good.endswith("=") else good[:-3],
        "not ascii": "é" + good,
        "plain json": json.dumps([[], KWARGS, EMBED]),
    }.items():
        yield f"body {name}", _with("body", body), Reason.ENCODING


def _bodies() -> Iterator[Case]:
    """Bodies that are base64 of something else than JSON."""
    dice = random.Random(2)
    good = json.dumps([[], KWARGS, EMBED])
    yield "empty", _with("body", ""), Reason.NOT_JSON
    for number in range(20):
        yield f"random {number}", _body(dice.randbytes(dice.randint(1, 500))), Reason.NOT_JSON
    for length in range(1, len(good), len(good) // 15):
        yield f"cut at {length}", _body(good[:length]), Reason.NOT_JSON
    yield "pickle", _body(pickle.dumps([[], KWARGS, EMBED])), Reason.NOT_JSON
    yield "gzip", _body(gzip.compress(good.encode())), Reason.NOT_JSON
    yield "utf-16", _body(good.encode("utf-16")), Reason.NOT_JSON
    yield "yaml", _body("!!python/object/apply:os.system ['id']"), Reason.NOT_JSON
    yield "byte order mark", _body("\ufeff" + good), Reason.NOT_JSON


def _canvas() -> Iterator[Case]:
    group = {"task": "celery.group", "args": [], "kwargs": {"tasks": [COLLECT, COLLECT]}, "options": {}}
    chord = {"task": "celery.chord", "kwargs": {"header": [COLLECT], "body": COLLECT}, "subtask_type": "chord"}
    loads: list[Any] = [
        [COLLECT],
        COLLECT,
        [COLLECT, COLLECT],
        group,
        [group],
        chord,
        [[COLLECT]],
        "x",
        "null",
        1,
        True,
        [None],
        [0],
    ]
    for part, load in itertools.product(("callbacks", "errbacks", "chain", "chord"), loads):
        yield f"{part} {json.dumps(load)[:40]}", _body(json.dumps([[], KWARGS, {**EMBED, part: load}])), Reason.CANVAS
        yield f"only {part} {json.dumps(load)[:40]}", _body(json.dumps([[], KWARGS, {part: load}])), Reason.CANVAS
    for load in ("group-1", "", 0, False, [], {}, group):
        yield f"group {json.dumps(load)[:30]}", _with("headers/group", load), Reason.CANVAS


def _tasks() -> Iterator[Case]:
    for task in (
        "fsworker.collect",
        "fsworker.purge",
        "fsworker.verify",
        "fsworker.sweep",
        "celery.backend_cleanup",
        "celery.chain",
        "celery.group",
        "celery.chord",
        "celery.chord_unlock",
        "celery.map",
        "celery.starmap",
        "celery.chunks",
        "celery.accumulate",
        "os.system",
        "fsworker.Ingest",
        "FSWORKER.INGEST",
        "fsworker.ingest ",
        " fsworker.ingest",
        "fsworker.ingest\n",
        "fsworker.ingest\0",
        "fsworker.ingest\u200b",
        "fsworker.\u0456ngest",
        "fsworker.ingest.shop",
        "fsworker",
        "staging.ingest",
        "fsworker.*",
        "x" * 5000,
        *(value for value in JUNK if value is not None),
    ):
        yield f"task {task!r:.60}", _with("headers/task", task), Reason.TASK_NOT_ALLOWED


def _protocol() -> Iterator[Case]:
    yield "no task", _without("headers/task"), Reason.PROTOCOL
    yield "task null", _with("headers/task", None), Reason.PROTOCOL
    yield "no headers at all", _with("headers", {}), Reason.PROTOCOL
    for number, body in enumerate(
        (
            {"task": TASK, "id": "shop.12345678", "args": [], "kwargs": KWARGS},
            {"task": TASK, "id": "shop.12345678", "args": [], "kwargs": KWARGS, "callbacks": [COLLECT]},
            {"task": TASK, "id": "blog.12345678", "args": [], "kwargs": KWARGS, "chord": COLLECT},
            {"task": "fsworker.collect", "id": "shop.12345678", "args": [], "kwargs": {}, "eta": "9999-01-01T00:00:00"},
            {"task": TASK},
            {},
        )
    ):
        message = plain(_fresh_id())
        message["headers"] = {}
        message["body"] = base64_json(body)
        yield f"protocol 1, {number}", json.dumps(message).encode(), Reason.PROTOCOL
    message = plain(_fresh_id())
    del message["headers"]["task"]
    message["body"] = base64_json({"args": [], "kwargs": KWARGS, "task": TASK})
    yield "hybrid of 1 and 2", json.dumps(message).encode(), Reason.PROTOCOL


def _foreign_ids() -> Iterator[Case]:
    uuid = "0123abcd-0000-4000-8000-0123456789ab"
    for job_id in (
        f"blog.{uuid}",
        f"sho.{uuid}",
        f"shopp.{uuid}",
        f"SHOP.{uuid}",
        f"Shop.{uuid}",
        f" shop.{uuid}",
        f"shop{uuid}",
        f"shop-{uuid}",
        f"shop/{uuid}",
        f"shop_{uuid}",
        f"{uuid}",
        "shop.",
        "shop",
        "shop.1234567",
        "shop." + "a" * 65,
        "shop." + "a" * 5000,
        f"shop.{uuid}\n",
        f"shop.{uuid}\0",
        f"shop.{uuid} ",
        f"shop.{uuid}/../blog.{uuid}",
        f"shop.../blog.{uuid}",
        f"shop.blog.{uuid}",
        "shop.********",
        "shop.????????",
        "shop.[a-z][a-z]",
        "shop.${jndi:ldap}",
        "shop.%2e%2e%2f%2e",
        "shop.١٢٣٤٥٦٧٨",
        "shop.ａｂｃｄｅｆｇｈ",
        "shop.12345678é",
        "celery-task-meta-shop.12345678",
        "fsworker:keep:shop",
        ".shop.12345678",
        "shop\\.12345678",
        *JUNK,
    ):
        yield f"id {job_id!r:.60}", _with("headers/id", job_id), Reason.FOREIGN_ID
    yield "no id", _without("headers/id"), Reason.FOREIGN_ID


def _times() -> Iterator[Case]:
    moments = (
        "9999-12-31T23:59:59",
        "9999-12-31T23:59:59+00:00",
        "9999-12-31T23:59:59-14:00",
        "2026-11-22T00:00:00",
        "0001-01-01T00:00:00",
        "1970-01-01",
        "tomorrow",
        "",
        0,
        1,
        -1,
        1e18,
        True,
        False,
        [],
        {},
        ["2026-11-22"],
    )
    for moment in moments:
        yield f"eta {moment!r}", _with("headers/eta", moment), Reason.ETA
        yield f"expires {moment!r}", _with("headers/expires", moment), Reason.ETA
    for limits in (
        [1, 1],
        [None, 1e9],
        [0, None],
        [None],
        [None, None, None],
        [],
        {},
        "",
        0,
        1,
        True,
        False,
        "[null, null]",
        ["a", "b"],
    ):
        yield f"time limits {limits!r}", _with("headers/timelimit", limits), Reason.ETA


def _arguments() -> Iterator[Case]:
    """Needs the rules of the real task, :class:`fsworker.model.IngestRequest`."""
    for args in ([1], ["0123456789abcdef"], [None], [[]], [{}], "x", "", {}, {"upload": "x"}, None, True, 0):
        yield f"args {args!r}", _body(json.dumps([args, KWARGS, EMBED])), Reason.ARGUMENTS
    for upload in (
        "../blog/x",
        "..",
        ".",
        "/etc/passwd",
        "a/b",
        "a\\..\\b/",
        ".request.json",
        ".0123456789abcdef.done",
        "a\0b",
        "a\n",
        "é",
        "a b",
        "x" * 201,
        "~root",
        "$(id)",
        "*",
        *(value for value in JUNK if value != "x"),
    ):
        yield f"upload {upload!r:.60}", _kwargs({"upload": upload}), Reason.ARGUMENTS
    for extra in ("app", "spool", "job_id", "self", "store", "__class__", "path", "task_id"):
        yield f"extra {extra}", _kwargs({**KWARGS, extra: "blog"}), Reason.ARGUMENTS
    for field, values in {
        "max_bytes": (-1, 1.5, "1", True, [], {}, 2**63),
        "max_pixels": (-1, 1.5, "1", True, [], {}, 2**63),
        "media_types": ("image/png", 1, {}, [1], ["image"], ["image/png\n"], ["*/*/*"], ["image/png"] * 101),
        "on_done": (1, True, [], {}, "", "a b", "x" * 201, "a\n", COLLECT, "fsworker.collect;"),
        "thumbnails": (
            "100x100",
            1,
            [],
            ["100x100"],
            {"a/b": "1x1"},
            {"": "1x1"},
            {"a": 1},
            {"a": "-1x1"},
            {"a": "@/etc/passwd"},
        ),
    }.items():
        for value in values:
            yield f"{field} {value!r:.60}", _kwargs({**KWARGS, field: value}), Reason.ARGUMENTS
    yield "nothing", _kwargs({}), Reason.ARGUMENTS
    yield "many thumbnails", _kwargs({**KWARGS, "thumbnails": {f"t{n}": "1x1" for n in range(21)}}), Reason.ARGUMENTS


_FAMILIES = (
    _not_json,
    _ambiguous_json,
    _too_deep,
    _too_large,
    _shape,
    _encoding,
    _bodies,
    _canvas,
    _tasks,
    _protocol,
    _foreign_ids,
    _times,
    _arguments,
)


@cache
def defused() -> tuple[Defused, ...]:
    """Messages that are accepted, and lose what they tried to steer with."""
    steering = {
        "properties/reply_to": ["celery@victim", "fsworker.maintenance", *JUNK],
        "properties/correlation_id": ["blog.12345678", *JUNK],
        "properties/delivery_info": [
            {"exchange": "", "routing_key": "fsworker.maintenance"},
            {"exchange": "celery", "routing_key": "fsworker.maintenance", "consumer_tag": "None1"},
            {"exchange": [], "routing_key": {}},
            *JUNK,
        ],
        "properties/delivery_tag": ["x", *JUNK],
        "properties/priority": [9, -(2**40), "9", *JUNK],
        "properties/delivery_mode": JUNK,
        "properties/expiration": ["1", *JUNK],
        "properties/headers": JUNK,
        "headers/root_id": ["blog.12345678", *JUNK],
        "headers/parent_id": ["blog.12345678", *JUNK],
        "headers/retries": [10**6, "many", *JUNK],
        "headers/shadow": ["fsworker.collect", "%s" * 100, *JUNK],
        "headers/lang": ["c", *JUNK],
        "headers/origin": JUNK,
        "headers/argsrepr": ["\x1b[2J", *JUNK],
        "headers/kwargsrepr": ["x" * 10_000, *JUNK],
        "headers/stamps": JUNK,
        "headers/stamped_headers": [["a"], *JUNK],
        "headers/group_index": [1, *JUNK],
        "headers/ignore_result": [True, *JUNK],
        "headers/replaced_task_nesting": [10**9, *JUNK],
        "headers/meth": JUNK,
        "headers/redelivered": JUNK,
        "headers/chord": [COLLECT],
        "headers/callbacks": [[COLLECT]],
        "headers/link": [[COLLECT]],
        "redelivered": JUNK,
        "extra": JUNK,
    }
    cases = [
        Defused(f"{path} {value!r:.60}", _with(path, value)) for path, values in steering.items() for value in values
    ]
    cases += [
        Defused(f"no {path}", _without(path))
        for path in (
            *(f"headers/{name}" for name in plain()["headers"] if name not in ("task", "id")),
            *(f"properties/{name}" for name in plain()["properties"] if name != "body_encoding"),
        )
    ]
    cases.append(Defused("brackets in a string", _with("headers/origin", "[" * 1000)))
    cases.append(Defused("escaped quotation marks", _with("headers/origin", '\\"[[[' * 100)))
    cases.append(Defused("empty canvas", _body(json.dumps([[], KWARGS, {part: [] for part in EMBED}]))))
    cases.append(Defused("unknown embed", _body(json.dumps([[], KWARGS, {**EMBED, "link": [COLLECT]}]))))
    return tuple(cases)
