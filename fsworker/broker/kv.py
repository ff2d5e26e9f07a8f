"""Redis, as fsworker uses it: the only module that imports redis-py."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from fsworker.broker.redisurl import client_url
from fsworker.broker.resultmeta import RESULT_PREFIX, TaskMeta, decode_meta, encode_meta
from fsworker.config import redact_url
from fsworker.errors import ConfigError, RedisUnavailableError

_CONNECT_TIMEOUT_S = 3.0
_TIMEOUT_S = 15.0


def connect(url: str) -> redis.Redis:
    """A client for ``url``. No connection is made yet. Raises :class:`ConfigError` for what is not a Redis URL."""
    address = client_url(url)
    try:
        return redis.Redis.from_url(
            address,
            socket_connect_timeout=_CONNECT_TIMEOUT_S,
            socket_timeout=_TIMEOUT_S,
            health_check_interval=30,
            retry=Retry(ConstantBackoff(0.05), 1),  # a connection that Redis closed while idle, no more
        )
    except ValueError as error:
        raise ConfigError(f"FSWORKER_REDIS_URL {redact_url(url)!r}: {error}") from error


class KV:
    """One Redis. Every method raises :class:`RedisUnavailableError` when it cannot be reached or refuses."""

    def __init__(self, url: str, client: redis.Redis | None = None) -> None:
        self.url = url
        self._redis = connect(url) if client is None else client

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn redis-py's errors into ours."""
        try:
            yield
        except (redis.RedisError, OSError) as error:
            raise unavailable(self.url, error) from error

    def ping(self) -> None:
        """Ask whether it answers."""
        with self.errors():
            self._redis.ping()

    def time_s(self) -> float:
        """Redis's own clock, in seconds since the epoch."""
        with self.errors():
            seconds, microseconds = self._redis.time()
            return seconds + microseconds / 10**6

    def queue_length(self, queue: str) -> int:
        """Messages that wait in a queue."""
        with self.errors():
            return self._redis.llen(queue)

    def hash_length(self, key: str) -> int:
        """Fields of a hash; 0 when there is none. (Celery's unacknowledged messages are one.)"""
        with self.errors():
            return self._redis.hlen(key)

    def task_meta(self, job_id: str) -> TaskMeta | None:
        """What the result backend says of a task; ``None`` when it says nothing (readable)."""
        with self.errors():
            raw = cast("bytes | None", self._redis.get(RESULT_PREFIX + job_id))
        return decode_meta(raw)

    def set_results(self, metas: Iterable[tuple[str, TaskMeta]], expires_s: float, *, overwrite: bool = True) -> None:
        """Store results, and tell those who wait for them, in one round trip.

        ``overwrite=False`` leaves a result that is there as it is.
        """
        with self.errors(), self._redis.pipeline(transaction=False) as pipe:
            for job_id, meta in metas:
                key = RESULT_PREFIX + job_id
                text = encode_meta(job_id, meta)
                pipe.set(key, text, ex=max(1, int(expires_s)), nx=not overwrite)
                pipe.publish(key, text)
            pipe.execute()

    def count(self, key: str, field: str) -> None:
        """Add one to a field of a hash of numbers."""
        with self.errors():
            self._redis.hincrby(key, field, 1)

    def counts(self, key: str) -> dict[str, int]:
        """A hash of numbers; empty when there is none."""
        with self.errors():
            found = cast("dict[bytes, bytes]", self._redis.hgetall(key))
        return {field.decode(errors="replace"): int(value) for field, value in found.items()}

    # -- keep-sets -------------------------------------------------------------------------------------------------

    def read_many(self, keys: Sequence[str], max_bytes: int) -> list[bytes | None]:
        """The strings under several keys, in one round trip; ``None`` for a key that is missing or holds no string.

        One that is longer than ``max_bytes`` is cut after one byte more: a stranger's key cannot fill our memory.
        """
        with self.errors(), self._redis.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.getrange(key, 0, max_bytes)
            found = pipe.execute(raise_on_error=False)
            for value in found:
                if isinstance(value, Exception) and not str(value).startswith("WRONGTYPE"):
                    raise value
        return [value if isinstance(value, bytes) and value else None for value in found]

    def write_many(self, items: Iterable[tuple[str, bytes]], expires_s: int) -> None:
        """Set strings that expire, in one round trip."""
        with self.errors(), self._redis.pipeline(transaction=False) as pipe:
            for key, value in items:
                pipe.set(key, value, ex=expires_s)
            pipe.execute()

    def expire_many(self, keys: Sequence[str], expires_s: int) -> bool:
        """Let keys live so much longer. False when one of them is gone."""
        with self.errors(), self._redis.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.expire(key, expires_s)
            return all(pipe.execute())

    def remove_many(self, keys: Sequence[str]) -> None:
        """Remove keys; the server frees them in the background."""
        if keys:
            with self.errors():
                self._redis.unlink(*keys)

    def commit(self, key: str, decide: Callable[[bytes | None], Commit], max_bytes: int) -> bool:
        """Replace the string ``key``, and change what lives how long, in one ``MULTI``; others see all of it or nothing.

        ``decide`` is given the old value (at most ``max_bytes`` and one more of it), and again when somebody else was
        faster; what it raises ends the attempt, with nothing changed. False when a key to be kept was gone.
        """
        with self.errors(), self._redis.pipeline(transaction=True) as pipe:
            while True:
                try:
                    cast("Any", pipe).watch(key)  # untyped in redis-py
                    commit = decide(_string_at(pipe, key, max_bytes))
                    pipe.multi()
                    for keep in commit.keep:
                        pipe.persist(keep)
                    for drop in commit.drop:
                        pipe.expire(drop, commit.drop_after_s)
                    pipe.set(key, commit.value)
                    return all(pipe.execute()[: len(commit.keep)])
                except redis.WatchError:
                    continue

    def memory_bytes(self, key: str) -> int:
        """What a key costs the server (``MEMORY USAGE``); 0 for none."""
        with self.errors():
            return int(self._redis.memory_usage(key) or 0)

    # -- looking at the server itself ------------------------------------------------------------------------------

    def info(self) -> dict[str, Any]:
        """What the server says of itself (``INFO``)."""
        with self.errors():
            return self._redis.info()

    def is_refused(self, *command: str) -> bool:
        """Run a command that does no harm; whether this user may not (``NOPERM``)."""
        with self.errors():
            try:
                cast("Any", self._redis).execute_command(*command)
            except redis.exceptions.NoPermissionError:
                return True
            except redis.ResponseError:
                return False  # it may; it came to nothing
        return False

    def takes_argument(self, size_bytes: int) -> bool:
        """Whether an argument of so many bytes is taken (``proto-max-bulk-len``): tried, since few may read settings."""
        try:
            cast("Any", self._redis).execute_command("PING", b"." * size_bytes)
        except (redis.ConnectionError, redis.ResponseError):
            self.ping()  # it hung up on us, and not because it is away
            return False
        except redis.RedisError as error:
            raise unavailable(self.url, error) from error
        return True

    def user_names(self) -> list[str] | None:
        """All users of the server, or ``None`` where this one may not know."""
        with self.errors():
            try:
                return [str(name) for name in cast("list[object]", self._redis.acl_users())]  # redis-py decodes them
            except redis.ResponseError:
                return None

    def would_allow(self, user: str, *command: str) -> bool:
        """Whether a user may run a command, without running it (``ACL DRYRUN``). False also for who may not ask."""
        with self.errors():
            try:
                return bool(
                    cast("Any", self._redis).execute_command("ACL DRYRUN", user, *command) in (b"OK", "OK", True)
                )
            except redis.ResponseError:
                return False

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()


@dataclass(frozen=True)
class Commit:
    """What :meth:`KV.commit` does: the new ``value``; keys that no longer expire; keys that do, ``drop_after_s`` on."""

    value: bytes
    keep: Sequence[str] = ()
    drop: Sequence[str] = ()
    drop_after_s: int = 0


def _string_at(pipe: Any, key: str, max_bytes: int) -> bytes | None:
    try:
        return cast("bytes", pipe.getrange(key, 0, max_bytes)) or None
    except redis.ResponseError as error:
        if str(error).startswith("WRONGTYPE"):
            return None
        raise


def unavailable(url: str, error: BaseException) -> RedisUnavailableError:
    """The error for a Redis that cannot be used now; the password never shows."""
    return RedisUnavailableError(
        f"Redis at {redact_url(url)} does not answer or refuses ({error}). Uploads are safe in the spool and go on when it is "
        f"back; check FSWORKER_REDIS_URL and the server"
    )
