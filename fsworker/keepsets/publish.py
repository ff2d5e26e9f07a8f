"""Publishing a keep-set: ``client.keep.publish(…)``.

In this order: note the snapshot time by Redis's clock; read the application's references; write them as the parts of a
new generation, which expire; commit by one ``MULTI`` that sets the manifest, keeps the new parts and lets the old ones
go after a while (a collection may be reading them). Whatever stops a publish leaves the old keep-set in force, and keys
that nobody reads, which expire.
"""

from __future__ import annotations

import inspect
import io
import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from fsworker.broker.kv import KV, Commit
from fsworker.broker.names import Names
from fsworker.errors import ConfigError, FSWorkerError, KeepSetError
from fsworker.keepsets.form import (
    MAX_HASHES,
    MAX_MANIFEST_BYTES,
    BrokenKeepSetError,
    Manifest,
    Packer,
    new_generation,
    parse_manifest,
)

log = logging.getLogger(__name__)

Source = Iterable[Any] | Callable[[], Iterable[Any]]
"""Hashes, as texts of 40 lower-case hexadecimal digits or as 20 raw bytes; or what returns them when it is called."""

UNFINISHED_S = 3600
"""What an unfinished publish leaves in Redis is gone after this; it is renewed while rows come."""
PREVIOUS_S = 6 * 3600
"""How long the parts of the previous generation stay: longer than a collection reads."""
_RENEW_AFTER_S = UNFINISHED_S / 6
_WRITE_AT_BYTES = 1 << 20
_PROGRESS_EVERY_S = 0.5

_BUILT_IN_ITERATORS = tuple(
    {type(iter(kind())) for kind in (list, tuple, set, frozenset, dict, str, bytes, bytearray)}
    | {type(iter({}.values())), type(iter({}.items())), type(reversed([])), type(reversed({}))}
)


@dataclass(frozen=True)
class Published:
    """A keep-set that is in force now. ``count`` includes duplicates; times are seconds since the epoch."""

    app: str
    count: int
    snapshot_time: float
    generation: str
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """For ``--json`` and task results."""
        return asdict(self)


class KeepSets:
    """An application's keep-set: what a :class:`fsworker.Client` has as ``keep``.

    ``connect`` gives the connection to Redis when it is needed; ``store_id`` says which store the set is for.
    """

    def __init__(self, app: str, names: Names, store_id: str, connect: Callable[[], KV]) -> None:
        self._app, self._names, self._store_id, self._connect = app, names, store_id, connect

    def now(self) -> float:
        """Redis's clock: note it before you read your references, if you give ``snapshot_time`` yourself."""
        return self._connect().time_s()

    def publish(
        self,
        hashes: Source,
        snapshot_time: float | datetime | None = None,
        allow_empty: bool = False,
        *,
        progress: Callable[[int], None] | None = None,
    ) -> Published:
        """Replace the keep-set by ``hashes``: every hash that the application refers to, those of thumbnails too.

        ``hashes`` is a lazy iterable (a queryset, a generator that has not begun) or a callable that returns one: it is
        read after the snapshot time was noted, in flat memory. What was read earlier (a list, a set, a file) needs
        ``snapshot_time``: a time by :meth:`now`, or a date with a time zone, at which reading had not begun. Read in a
        new transaction on the primary database. Duplicates do no harm. ``progress`` is told how many were read.

        Raises :class:`KeepSetError` (a malformed hash, an empty set without ``allow_empty``, a snapshot time that
        cannot be, a newer keep-set published meanwhile), :class:`RedisUnavailableError`, :class:`ConfigError`, and what
        reading raises. Then nothing has changed.
        """
        if not self._store_id:
            raise ConfigError(
                "the store has no id, so a keep-set could not say whom it is for; give it one with: fsworker app add "
                f"{self._app} (then start this process again)"
            )
        began_s = time.monotonic()
        kv = self._connect()
        now_s = kv.time_s()
        if snapshot_time is None:
            _refuse_what_was_read(hashes)
            snapshot_s = now_s
        else:
            snapshot_s = _checked_time(snapshot_time, now_s)
        writing = _Writing(kv, self._names, self._app, progress)
        try:
            manifest = writing.write(_opened(hashes), self._store_id, snapshot_s, allow_empty=allow_empty)
            renew(kv, writing.keys)
        except BaseException:
            writing.abandon()
            raise
        # Not abandoned when the commit fails: it may have been done all the same, and else the parts expire.
        _commit(kv, self._names, manifest, writing.keys)
        return Published(self._app, manifest.count, snapshot_s, manifest.generation, time.monotonic() - began_s)


def _refuse_what_was_read(hashes: Source) -> None:
    """Without a snapshot time, take only what is read from now on."""
    if isinstance(hashes, (Collection, io.IOBase, *_BUILT_IN_ITERATORS)):
        what = f"a {type(hashes).__name__}"
    elif getattr(hashes, "_result_cache", None) is not None:
        what = "a queryset that was evaluated"
    elif inspect.isgenerator(hashes) and inspect.getgeneratorstate(hashes) != inspect.GEN_CREATED:
        what = "a generator that has begun"
    else:
        return
    raise KeepSetError(
        f"{what} was read before this call, so snapshot_time must be given: the time (client.keep.now()) before the first "
        f"row was read. Or give a callable that reads when it is called: publish(lambda: …). Nothing was published"
    )


def _checked_time(given: float | datetime, now_s: float) -> float:
    if isinstance(given, datetime):
        if given.tzinfo is None:
            raise KeepSetError(f"snapshot_time {given} has no time zone; give one, or seconds since the epoch")
        given = given.timestamp()
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not math.isfinite(given) or given <= 0:
        raise KeepSetError(f"snapshot_time {given!r} is no time: give seconds since the epoch, or a datetime")
    if given > now_s:
        raise KeepSetError(
            f"snapshot_time {given:.3f} is {given - now_s:.3f} s in the future by Redis's clock; take the time from "
            f"client.keep.now() before reading"
        )
    return float(given)


def _opened(hashes: Source) -> Iterable[object]:
    """The hashes of a source; the lines of a file without their ends."""
    if callable(hashes) and not isinstance(hashes, Iterable):
        hashes = hashes()
    if isinstance(hashes, (str, bytes, bytearray, memoryview)) or not isinstance(hashes, Iterable):
        raise KeepSetError(f"a {type(hashes).__name__} is no collection of hashes. Nothing was published")
    return _lines(hashes) if isinstance(hashes, io.IOBase) else hashes


def _lines(stream: Iterable[Any]) -> Iterator[object]:
    for line in stream:
        if isinstance(line, bytes):
            yield line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8", "replace")
        else:
            yield line.removesuffix("\n").removesuffix("\r") if isinstance(line, str) else line


class _Writing:
    """The parts of a generation on their way into Redis. ``keys`` are those written."""

    def __init__(self, kv: KV, names: Names, app: str, progress: Callable[[int], None] | None) -> None:
        self._kv, self._names, self._app = kv, names, app
        self._progress = progress
        self._generation = new_generation()
        self._waiting: list[tuple[str, bytes]] = []
        self._waiting_bytes = 0
        self._renewed_s = self._told_s = time.monotonic()
        self.keys: list[str] = []

    def write(self, hashes: Iterable[object], store_id: str, snapshot_s: float, *, allow_empty: bool) -> Manifest:
        """Read and write everything; the manifest says what there is now. Not committed."""
        packer = Packer()
        for part in packer.pack(hashes):
            self._add(*part)
            self._tell(packer.count)
        for part in packer.finish():
            self._add(*part)
        self._flush()
        if not packer.count and not allow_empty:
            raise KeepSetError(
                f"application {self._app} would keep nothing at all; if that is meant, publish with allow_empty=True "
                f"(--allow-empty). Nothing was published"
            )
        if packer.count > MAX_HASHES:
            raise KeepSetError(f"{packer.count:,} hashes are too many for one keep-set ({MAX_HASHES:,})")
        if self._progress is not None:
            self._progress(packer.count)
        return Manifest(
            app=self._app,
            store=store_id,
            generation=self._generation,
            snapshot_time=snapshot_s,
            published_time=max(snapshot_s, self._kv.time_s()),
            count=packer.count,
            allow_empty=allow_empty,
            shards=packer.shards(),
        )

    def abandon(self) -> None:
        """Remove what was written; what cannot be reached now expires."""
        try:
            for start in range(0, len(self.keys), 1000):
                self._kv.remove_many(self.keys[start : start + 1000])
        except FSWorkerError as error:
            log.info("what an unfinished publish wrote expires in an hour: %s", error)

    def _add(self, shard: int, number: int, part: bytes) -> None:
        self._waiting.append((self._names.part_key(self._app, self._generation, shard, number), part))
        self._waiting_bytes += len(part)
        if self._waiting_bytes >= _WRITE_AT_BYTES:
            self._flush()

    def _flush(self) -> None:
        self.keys.extend(key for key, _ in self._waiting)
        self._kv.write_many(self._waiting, UNFINISHED_S)
        self._waiting, self._waiting_bytes = [], 0
        if time.monotonic() - self._renewed_s > _RENEW_AFTER_S:
            self._renewed_s = time.monotonic()
            renew(self._kv, self.keys)

    def _tell(self, count: int) -> None:
        if self._progress is not None and time.monotonic() - self._told_s > _PROGRESS_EVERY_S:
            self._told_s = time.monotonic()
            self._progress(count)


def renew(kv: KV, keys: list[str]) -> None:
    """Keep an unfinished publish alive. Raises :class:`KeepSetError` when Redis has lost some of it."""
    for start in range(0, len(keys), 1000):
        if not kv.expire_many(keys[start : start + 1000], UNFINISHED_S):
            raise KeepSetError(
                "Redis lost a part of the keep-set while it was being published (flushed, restarted, or evicting: it needs "
                "maxmemory-policy noeviction); the previous one stays in force. Publish again"
            )


def _commit(kv: KV, names: Names, manifest: Manifest, keys: list[str]) -> None:
    """Put the manifest in force, unless a keep-set with a later snapshot is."""
    now_s = manifest.published_time

    def decide(old: bytes | None) -> Commit:
        previous = _parsed(old)
        if previous is not None and manifest.snapshot_time < previous.snapshot_time <= now_s:
            raise KeepSetError(
                f"a keep-set with a later snapshot ({previous.snapshot_time:.3f}, this one {manifest.snapshot_time:.3f}) was "
                f"published meanwhile and stays in force"
            )
        drop = [] if previous is None or previous.app != manifest.app else part_keys(names, previous)
        return Commit(manifest.dump(), keys, drop, PREVIOUS_S)

    if not kv.commit(names.manifest_key(manifest.app), decide, MAX_MANIFEST_BYTES):
        raise KeepSetError(
            "Redis lost a part of the keep-set in the moment of its commit; no collection will accept it. Publish again"
        )


def _parsed(data: bytes | None) -> Manifest | None:
    try:
        return None if data is None else parse_manifest(data)
    except BrokenKeepSetError:
        return None  # whoever wrote that: it is replaced


def part_keys(names: Names, manifest: Manifest) -> list[str]:
    """The keys of all parts of a generation."""
    return [
        names.part_key(manifest.app, manifest.generation, shard, number)
        for shard in range(len(manifest.shards))
        for number in range(len(manifest.part_sizes(shard)))
    ]
