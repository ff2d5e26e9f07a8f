"""Redis users: who may do what on the broker, as Redis 7 (or Valkey) ACL rules. Pure; ``fsworker acl`` prints them.

Everybody who reaches a Redis without ACLs commands it. With them an application that was broken into can do what it could
before through fsworker, and nothing else: send to its own queue, read its own results, publish its own keep-set, take
its own callbacks. It cannot read what it sent, or list keys, or run scripts.

Rules are written with *selectors* (Redis 7.0): each command is allowed on the keys that it is needed for, and on no
other. ``CLIENT SETINFO``, which redis-py sends unasked and whose refusal it ignores, is left out: Redis 7.0 does not know
it, and would refuse the whole file.

Source of the rules: what kombu 5.7 and :mod:`fsworker.broker.kv` send; https://redis.io/docs/latest/operate/oss_and_stack/management/security/acl/
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fsworker.broker.names import Names
from fsworker.broker.resultmeta import RESULT_PREFIX

NOBODY_WRITES = ("~*", "resetchannels", "-@all", "+@write", "+select")
"""Rules of the user ``default``, who is off: nobody can be him but Redis itself, when it reads its append-only file.

Most servers in use (seen with Redis 7.0.15) hold each transaction in that file against his rights, and leave out what he may not
do, with nothing but a line in their log: after a restart keep-sets would be missing, and results. See
https://github.com/redis/redis/issues/14541 and https://github.com/valkey-io/valkey/issues/3983.
"""

_CONNECT = ("+hello", "+auth", "+ping", "+select", "+client|setname", "+client|id")
_TRANSACTION = ("+multi", "+exec", "+discard", "+unwatch")
# kombu keeps messages of priority 3, 6 and 9 in lists named queue, \x06\x16, number: see its redis transport, ``sep``.
# No name of an application has such a character, so this is none of another's. (The hyphen stands first, because
# Redis reads any later one as a range.)
_PRIORITIES = "[^-a-z0-9_]*"


@dataclass(frozen=True)
class RedisUser:
    """One user: ``rules`` as ``ACL SETUSER`` takes them, without its password. ``purpose`` says who uses it."""

    name: str
    purpose: str
    rules: tuple[str, ...]


def application_user(names: Names, app: str) -> RedisUser:
    """What an application's processes connect as."""
    results = f"{RESULT_PREFIX}{app}.*"
    done = names.done_queue(app)
    return RedisUser(
        f"{names.namespace}-app-{app}",
        f"application {app}",
        (
            *_only(*_CONNECT, *_TRANSACTION, "+time", "+subscribe", "+unsubscribe"),
            f"&{results}",
            _selector("+lpush", f"%W~{names.ingest_queue(app)}"),
            _selector("+get +mget", f"%R~{results}"),
            _selector(
                "+get +getrange +strlen +set +append +expire +persist +del +unlink +watch +memory|usage",
                f"~{names.keep_prefix(app)}*",
            ),
            # Callbacks: a stock Celery worker needs these with ack_emulation=False, see the documentation.
            _selector("+brpop +rpop +lpush +llen", f"~{done} ~{done}{_PRIORITIES}"),
        ),
    )


def ingest_user(names: Names) -> RedisUser:
    """What workers of the ingest role connect as."""
    return RedisUser(
        f"{names.namespace}-ingest",
        "workers, role ingest",
        (
            *_worker(names, "ingest"),
            _selector(
                "+getrange +set", f"~{names.namespace}:made:*"
            ),  # which thumbnails were made: fsworker.jobs.pictures
            _selector("+brpop +rpop +lpush +rpush +llen", f"~{names.ingest_queue('*')}"),
            _selector("+lpush", f"%W~{names.done_queue('*')}"),
        ),
    )


def maintenance_user(names: Names) -> RedisUser:
    """What workers of the maintenance role, and a person's commands, connect as."""
    return RedisUser(
        f"{names.namespace}-maintenance",
        "workers, role maintenance, and commands",
        (
            *_worker(names, "maintenance"),
            "+subscribe",  # to wait for the report of a task that was sent by hand
            "+unsubscribe",
            "+time",
            "+info",
            _selector(
                "+brpop +rpop +lpush +rpush +llen",
                f"~{names.maintenance_queue} ~{names.maintenance_queue}{_PRIORITIES}",
            ),
            _selector("+lpush +llen", f"~{names.ingest_queue('*')}"),
            _selector("+lpush", f"%W~{names.done_queue('*')}"),
            _selector("+hlen +hgetall", f"%R~{names.unacked_key('ingest')} %R~{names.refused_key('ingest')}"),
            _selector("+get +getrange +strlen +memory|usage", f"%R~{names.keep_prefix('*')}*"),
        ),
    )


def beat_user(names: Names) -> RedisUser:
    """What beat connects as."""
    return RedisUser(
        f"{names.namespace}-beat",
        "beat",
        (*_only(*_CONNECT), _selector("+lpush", f"%W~{names.maintenance_queue}")),
    )


def admin_user(names: Names) -> RedisUser:
    """Who may do everything: for the person who runs Redis. No process of fsworker connects as this."""
    return RedisUser(f"{names.namespace}-admin", "the person who runs Redis", ("~*", "&*", "+@all"))


def all_users(names: Names, apps: Sequence[str]) -> list[RedisUser]:
    """Every user that an installation needs."""
    workers = [ingest_user(names), maintenance_user(names), beat_user(names)]
    return [admin_user(names), *workers, *(application_user(names, app) for app in apps)]


def acl_file(users: Sequence[RedisUser], passwords: Mapping[str, str]) -> str:
    """The text of an ACL file (``aclfile``): these users by their passwords' SHA-256, and nobody without a password.

    Redis reads such a file strictly: a user a line, no comments. A user who has none in ``passwords`` (by name) cannot
    log in.
    """
    lines = [f"user default reset off {' '.join(NOBODY_WRITES)}"]
    for user in users:
        password = passwords.get(user.name)
        secret = "resetpass" if password is None else digest(password)
        lines.append(f"user {user.name} reset on {secret} {' '.join(user.rules)}")
    return "\n".join(lines) + "\n"


def digest(password: str) -> str:
    """A password as an ACL rule that does not show it."""
    return "#" + hashlib.sha256(password.encode()).hexdigest()


def _worker(names: Names, role: str) -> tuple[str, ...]:
    unacked = names.unacked_prefix(role)
    return (
        *_only(*_CONNECT, *_TRANSACTION, "+script|load"),
        f"&{RESULT_PREFIX}*",
        # evalsha: redis-py's lock is released by a script; what that does is held against these rules as well.
        _selector(
            "+zadd +zrem +zrange +hset +hdel +hget +hlen +hincrby +hgetall +set +get +del +watch +evalsha",
            f"~{unacked}*",
        ),
        _selector("+get +set +setex +publish", f"~{RESULT_PREFIX}* &{RESULT_PREFIX}*"),
    )


def _only(*commands: str) -> tuple[str, ...]:
    return ("resetchannels", "-@all", *commands)


def _selector(commands: str, keys: str) -> str:
    return f"({commands} {keys})"
