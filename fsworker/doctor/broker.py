"""Redis: is it there, and set so that nothing is lost and nobody is starved?"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

from fsworker.broker.acl import admin_user, maintenance_user
from fsworker.broker.kv import KV
from fsworker.broker.names import Names
from fsworker.broker.resultmeta import RESULT_PREFIX
from fsworker.config import redact_url
from fsworker.doctor.findings import Finding, ok, problem, warning
from fsworker.errors import RedisUnavailableError

BULK_BYTES = 1 << 20
"""What one argument of a command may be (``proto-max-bulk-len``); fsworker's own need is half of it."""

_FULL_SHARE = 0.9
_SHIPPED = "config/redis/redis.conf has all that matters"
_LOAD = "fsworker acl --passwords DIRECTORY > users.acl, then ACL LOAD"


def look_at_redis(kv: KV, names: Names, apps: Sequence[str], *, private: bool) -> Iterator[Finding]:
    """Everything about Redis. ``private``: the embedded server, which only its own user reaches.

    Raises :class:`RedisUnavailableError` when it goes away meanwhile.
    """
    try:
        kv.ping()
    except RedisUnavailableError as error:
        yield problem("redis", str(error), "start the server, or correct FSWORKER_REDIS_URL")
        return
    yield ok("redis", f"answers at {redact_url(kv.url)}")
    try:
        info = kv.info()
    except RedisUnavailableError as error:
        yield warning(
            "redis",
            f"INFO is refused, so much cannot be looked at ({error})",
            f"connect as {maintenance_user(names).name}",
        )
    else:
        yield from version(info)
        yield from memory(info)
        yield from persistence(info)
    yield from bulk(kv)
    yield from rights(kv, names, apps, private=private)


def version(info: Mapping[str, Any]) -> Iterator[Finding]:
    """Redis 7 (the first with ACL selectors), or any Valkey."""
    valkey = info.get("valkey_version")
    text = str(valkey or info.get("redis_version", "unknown"))
    major = re.match(r"\d+", text)
    if valkey is None and (major is None or int(major[0]) < 7):
        yield problem("redis version", f"Redis {text} is too old", "install Redis 7.0 or newer, or Valkey")
    else:
        yield ok("redis version", f"{'Valkey' if valkey else 'Redis'} {text}")


def memory(info: Mapping[str, Any]) -> Iterator[Finding]:
    """Nothing may be evicted: a keep-set that went is a collection that cannot run, a message that went is a delay."""
    policy, limit, used = (
        str(info.get("maxmemory_policy")),
        int(info.get("maxmemory", 0)),
        int(info.get("used_memory", 0)),
    )
    fix = f"CONFIG SET maxmemory-policy noeviction, and the same in its configuration; {_SHIPPED}"
    if policy != "noeviction":
        say = problem if limit else warning
        yield say("redis memory", f"maxmemory-policy is {policy}: a full Redis throws away what fsworker needs", fix)
    elif limit and used > limit * _FULL_SHARE:
        said = f"{used:,} of {limit:,} bytes (maxmemory) are used; a full Redis refuses messages and keep-sets"
        yield problem(
            "redis memory", said, "CONFIG SET maxmemory with more, or find what fills it: redis-cli --bigkeys"
        )
    else:
        yield ok(
            "redis memory",
            f"{used / 1e6:.1f} MB used, {f'limit {limit / 1e6:.1f} MB' if limit else 'no limit'}, {policy}",
        )


def persistence(info: Mapping[str, Any]) -> Iterator[Finding]:
    """A restart should not lose keep-sets and messages (nothing else would be lost: the spool is the truth)."""
    failed = [key for key in ("aof_last_write_status", "rdb_last_bgsave_status") if info.get(key, "ok") != "ok"]
    if failed:
        said = f"Redis cannot write to its disk ({', '.join(failed)}); it may refuse every write"
        yield problem("redis persistence", said, "look at Redis's log and at the room on its disk")
    elif not int(info.get("aof_enabled", 0)):
        yield warning(
            "redis persistence",
            "appendonly is off: a restart loses keep-sets, and messages, which the sweep has to ring again",
            f"CONFIG SET appendonly yes, and the same in its configuration; {_SHIPPED}",
        )
    else:
        yield ok("redis persistence", "appendonly")


def bulk(kv: KV) -> Iterator[Finding]:
    """The guard against huge messages: without it one command of an application makes Redis, and a worker, hold 512 MB."""
    if kv.takes_argument(BULK_BYTES + 1):
        yield warning(
            "redis messages",
            f"an argument of more than {BULK_BYTES:,} bytes is taken (proto-max-bulk-len): an application can fill the "
            f"memory of Redis and of the workers with few messages",
            f"CONFIG SET proto-max-bulk-len {BULK_BYTES}, and the same in its configuration; {_SHIPPED}",
        )
    else:
        yield ok("redis messages", f"at most {BULK_BYTES:,} bytes each")


def rights(kv: KV, names: Names, apps: Sequence[str], *, private: bool) -> Iterator[Finding]:
    """Who we are on the broker, and, for who may ask, what each application could do."""
    user = unquote(urlsplit(kv.url).username or "") or "default"
    commands_it = not kv.is_refused("CONFIG", "GET", "maxmemory")
    if private:
        yield ok("redis users", "the embedded server: whoever may open its socket is this user")
    elif user == "default" and commands_it:
        yield warning(
            "redis users", "user default commands this Redis: every application that reaches it can, too", _LOAD
        )
    elif commands_it and user != admin_user(names).name:
        yield problem("redis users", f"user {user} may run CONFIG: it has more rights than it needs", _LOAD)
    else:
        yield ok("redis users", user)
    known = None if private else kv.user_names()
    if known is None or (user == "default" and not any(name.startswith(f"{names.namespace}-") for name in known)):
        return
    if not kv.would_allow("default", "SET", "x", "x"):
        yield problem(
            "redis users",
            "user default may not write, not even when he is off: many a Redis reads its append-only file with his rights, and "
            "loses at its next start what was written in transactions, as keep-sets are",
            _LOAD,
        )
    wrong = list(_wrong_users(kv, names, apps, known))
    yield from wrong
    if not wrong:
        yield ok("redis users", f"{len(apps)} applications may do what they need, and nothing of the others")


def _wrong_users(kv: KV, names: Names, apps: Sequence[str], known: Sequence[str]) -> Iterator[Finding]:
    for app in apps:
        user = f"{names.namespace}-app-{app}"
        if user not in known:
            yield problem("redis users", f"application {app} has no user {user}", _LOAD)
            continue
        others = [other for other in apps if other != app] or ["another"]
        for command, may in _expected(names, app, others[0]):
            if kv.would_allow(user, *command) != may:
                said = f"user {user} {'cannot' if may else 'may'} run {' '.join(command)}"
                yield problem("redis users", said, _LOAD)


def _expected(names: Names, app: str, other: str) -> list[tuple[tuple[str, ...], bool]]:
    """Commands, and whether an application may run them."""
    return [
        (("LPUSH", names.ingest_queue(app), "x"), True),
        (("GET", f"{RESULT_PREFIX}{app}.x"), True),
        (("SET", names.manifest_key(app), "x"), True),
        (("LPUSH", names.ingest_queue(other), "x"), False),
        (("LPUSH", names.maintenance_queue, "x"), False),
        (("RPOP", names.ingest_queue(app)), False),
        (("GET", f"{RESULT_PREFIX}{other}.x"), False),
        (("SET", f"{RESULT_PREFIX}{app}.x", "x"), False),
        (("SET", names.manifest_key(other), "x"), False),
        (("KEYS", "*"), False),
        (("FLUSHALL",), False),
        (("CONFIG", "GET", "*"), False),
        (("EVAL", "return 1", "0"), False),
    ]
