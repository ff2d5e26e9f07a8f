"""A store, its applications and a Redis, for tests of keep-sets and collections."""

from __future__ import annotations

import itertools
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
from virtual_time import VirtualClock

from fsworker.broker.kv import KV, connect
from fsworker.broker.names import Names
from fsworker.collection.collector import Collector
from fsworker.collection.purge import Purged, purge
from fsworker.collection.runs import Run
from fsworker.config import Settings
from fsworker.errors import CollectionRefusedError
from fsworker.keepsets.publish import KeepSets, Published
from fsworker.keepsets.reader import KeepReader
from fsworker.model import Hash
from fsworker.store.facade import Store

HOUR = 3600.0
DAY = 24 * HOUR

_namespaces = (f"t{os.getpid()}-{n}" for n in itertools.count())


class VirtualKV(KV):
    """A real Redis whose clock is the virtual one, ``ahead_s`` fast."""

    def __init__(self, url: str, clock: VirtualClock) -> None:
        super().__init__(url)
        self.clock = clock
        self.ahead_s = 0.0

    def time_s(self) -> float:
        super().time_s()
        return self.clock.now() + self.ahead_s


class World:
    """A store with applications, whose grace is a day, in a namespace of its own."""

    def __init__(self, directory: Path, kv: KV, apps: Iterable[str] = ("shop", "blog"), grace_s: float = DAY) -> None:
        self.store = Store.create(directory / "store", apps=apps, grace_s=grace_s, durability="none")
        self.kv = kv
        self.redis: redis.Redis = connect(kv.url)
        self.names = Names(next(_namespaces))
        self.settings = Settings(store=self.store.root, redis_url=kv.url, namespace=self.names.namespace)

    @property
    def clock(self) -> VirtualClock:
        assert isinstance(self.kv, VirtualKV)
        return self.kv.clock

    def keep(self, app: str) -> KeepSets:
        return KeepSets(app, self.names, self.store.config.store_id, lambda: self.kv)

    def publish(self, app: str, hashes: Iterable[Any] = (), **options: Any) -> Published:
        return self.keep(app).publish(lambda: list(hashes), **{"allow_empty": True, **options})

    def publish_all(self, **sets: Iterable[Any]) -> None:
        for app in self.store.config.app_names:
            self.publish(app, sets.get(app, ()))

    def collector(self, *overrides: str, **settings: Any) -> Collector:
        changed = self.settings.model_copy(update=settings)
        return Collector(self.store, KeepReader(self.kv, self.names), changed, overrides)

    def collect(self, *overrides: str, **settings: Any) -> Run:
        return self.collector(*overrides, **settings).collect()

    def purge(self, *overrides: str, **settings: Any) -> Purged:
        return purge(self.collector(*overrides, **settings))

    def refusals(self, *overrides: str, **settings: Any) -> list[str]:
        """The reasons for which a collection refuses now: ``reason`` or ``reason:app``. It must change nothing."""
        before = self.state()
        try:
            self.collect(*overrides, **settings)
        except CollectionRefusedError as error:
            assert self.state() == before
            assert len(str(error)) > 20
            return [r.reason if r.app is None else f"{r.reason}:{r.app}" for r in error.refusals]
        return []

    def state(self) -> tuple[list[str], list[str], object]:
        note = self.store.root / "Lock/accepted.json"
        return sorted(self.store), self.trashed(), json.loads(note.read_bytes()) if note.exists() else None

    def trashed(self) -> list[str]:
        return sorted(path.name for path in self.store.root.glob("Trash/*/*"))

    def put(self, *contents: str) -> list[Hash]:
        return [self.store.put(content.encode()).hash for content in contents]

    def has(self, name: Hash) -> bool:
        return self.store.status(name) is not None

    def manifest(self, app: str = "shop") -> dict[str, Any]:
        data = self.redis.get(self.names.manifest_key(app))
        assert isinstance(data, bytes)
        return dict(json.loads(data))

    def set_manifest(self, **changes: Any) -> None:
        """Change what application ``shop`` has committed."""
        self.redis.set(self.names.manifest_key("shop"), json.dumps({**self.manifest(), **changes}))

    def part_keys(self, app: str = "shop") -> list[str]:
        pattern = f"{self.names.keep_prefix(app)}{self.manifest(app)['generation']}:*"
        return sorted(key.decode() for key in self.redis.scan_iter(pattern, count=1000))

    def close(self) -> None:
        self.store.close()
        self.redis.close()
        self.kv.close()


@contextmanager
def world(directory: Path, kv: KV, **options: Any) -> Iterator[World]:
    """A world for a block; in memory where that is possible, because there is much to sync, and no power cut."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else directory) as place:
        made = World(Path(place), kv, **options)
        try:
            yield made
        finally:
            made.close()
