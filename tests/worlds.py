"""A world of one store for tests of jobs, in which nothing runs by itself; and a crash in it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import fakeredis
import pytest

from fsworker.broker.kv import KV
from fsworker.client import Client
from fsworker.config import Settings, load_settings
from fsworker.errors import RedisUnavailableError
from fsworker.jobs.service import Service
from fsworker.jobs.sweep import sweep
from fsworker.store.facade import Store
from fsworker.store.objects import ObjectStore


class World:
    """A store, a fake Redis, a client whose Redis is away, and a service; nothing runs by itself."""

    def __init__(self, root: Path, **settings: Any) -> None:
        Store.create(root, apps=["shop", "blog"]).close()
        self.root = root
        self.redis = fakeredis.FakeRedis()
        self.sent: list[tuple[str, dict[str, Any], str, str]] = []
        self.redis_is_away = False
        self.settings: Settings = load_settings(environ={}, store=root, **settings)
        self.object_store = ObjectStore(root)
        self.service = self.new_service()
        self.client = Client("shop", settings=load_settings(environ={}, store=root, redis_url="redis://127.0.0.1:1/0"))

    def new_service(self) -> Service:
        return Service(ObjectStore(self.root), self.kv(), self.send, self.settings)

    def kv(self) -> KV:
        return KV("redis://fake", client=self.redis)

    def send(self, task: str, kwargs: Mapping[str, Any], queue: str, task_id: str) -> None:
        if self.redis_is_away:
            raise RedisUnavailableError("away")
        self.sent.append((task, dict(kwargs), queue, task_id))

    def sweep(self, **options: Any) -> Any:
        return sweep(self.object_store, self.kv(), self.send, self.settings, **options)

    def spool(self) -> list[str]:
        return sorted(n for n in os.listdir(self.root / "Spool" / "shop") if n != ".store.json")

    def hashes(self) -> list[str]:
        return list(self.object_store)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "store")


class Crash(BaseException):
    """A SIGKILL, as far as the files are concerned."""


def crash(*_args: Any, **_kwargs: Any) -> NoReturn:
    """Put in the place of a function: the process ends there."""
    raise Crash
