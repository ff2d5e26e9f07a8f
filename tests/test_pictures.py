"""Thumbnails are made once, whoever asks; the memory of it is only a hint."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any

import fakeredis
import pytest
from PIL import Image

from fsworker.broker.kv import KV
from fsworker.config import load_settings
from fsworker.errors import RedisUnavailableError
from fsworker.jobs import pictures
from fsworker.jobs.pictures import Pictures, Seen
from fsworker.model import Hash
from fsworker.specification import Thumbnail
from fsworker.store.facade import Store
from fsworker.store.objects import ObjectStore

WISHES = {"small": Thumbnail("20x20"), "tiny": Thumbnail("5x5")}


class Studio:
    """A store with one picture in it, and how often something was decoded."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        Store.create(root, apps=["shop"]).close()
        self.store = ObjectStore(root)
        self.redis = fakeredis.FakeRedis()
        stream = io.BytesIO()
        Image.effect_noise((100, 60), 50).convert("RGB").save(stream, "JPEG")
        self.name: Hash = self.store.put(stream.getvalue()).hash
        self.decoded: list[list[str]] = []
        real = pictures.make_thumbnails

        def counted(fd: int, wishes: Any, limits: Any) -> Any:
            self.decoded.append(sorted(wishes))
            return real(fd, wishes, limits)

        monkeypatch.setattr(pictures, "make_thumbnails", counted)

    def pictures(self, **settings: Any) -> Pictures:
        kv = KV("redis://fake", client=self.redis)
        return Pictures(self.store, load_settings(environ={}, store=self.store.root, **settings), kv)

    def look(self, wishes: dict[str, Thumbnail], by: Pictures | None = None) -> Seen:
        with self.store.open_file(self.name) as stream:
            return (by or self.pictures()).look(stream.fileno(), self.name, wishes, None, self.store)


@pytest.fixture
def studio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Studio:
    return Studio(tmp_path / "store", monkeypatch)


def test_the_second_time_costs_no_decode(studio: Studio) -> None:
    first = studio.look(WISHES)
    assert first.size is not None
    assert (first.size.width, first.size.height) == (100, 60)
    assert studio.look(WISHES) == first
    assert studio.look({"other name": WISHES["small"]}).thumbnails["other name"] == first.thumbnails["small"]
    assert studio.look({}) == Seen(first.size, {}, {})
    assert studio.decoded == [["small", "tiny"]]


def test_only_what_is_missing_is_made(studio: Studio) -> None:
    first = studio.look({"small": WISHES["small"]})
    both = studio.look(WISHES)
    assert studio.decoded == [["small"], ["tiny"]]
    assert list(both.thumbnails) == ["small", "tiny"]
    assert both.thumbnails["small"] == first.thumbnails["small"]


def test_a_remembered_thumbnail_that_was_collected_is_made_again(studio: Studio) -> None:
    first = studio.look(WISHES)
    studio.store.location(first.thumbnails["small"].hash).unlink()
    assert studio.look(WISHES) == first
    assert first.thumbnails["small"].hash in studio.store
    assert studio.decoded == [["small", "tiny"], ["small"]]


def test_a_remembered_thumbnail_in_trash_is_brought_back(studio: Studio) -> None:
    first = studio.look(WISHES)
    name = first.thumbnails["small"].hash
    trash = studio.store.root / "Trash" / "20260101000000-00000000-00000000"
    trash.mkdir()
    studio.store.location(name).rename(trash / name)
    assert studio.look(WISHES) == first
    assert name in studio.store
    assert len(studio.decoded) == 1


@pytest.mark.parametrize("junk", [b"", b"{", b"[]", b'{"hash": "../../etc/passwd"}', b"x" * 10_000])
def test_junk_in_redis_is_no_memory(junk: bytes, studio: Studio) -> None:
    first = studio.look(WISHES)
    for key in studio.redis.keys("*"):
        studio.redis.set(key, junk)
    assert studio.look(WISHES) == first
    assert len(studio.decoded) == 2


def test_nothing_is_remembered_across_engine_versions(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    studio.look(WISHES)
    monkeypatch.setattr(pictures, "ENGINE_VERSION", "another")
    studio.look(WISHES)
    assert len(studio.decoded) == 2


def test_memory_expires_and_can_be_switched_off(studio: Studio) -> None:
    studio.look(WISHES, studio.pictures(thumbnail_recall="1h"))
    assert all(0 < studio.redis.ttl(key) <= 3600 for key in studio.redis.keys("*"))
    studio.redis.flushall()
    studio.look(WISHES, studio.pictures(thumbnail_recall="0s"))
    assert studio.redis.keys("*") == []


def test_redis_away_is_asked_once_and_costs_only_the_memory(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def away(*_args: Any) -> None:
        asked.append(1)
        raise RedisUnavailableError("away")

    monkeypatch.setattr(KV, "read_many", away)
    monkeypatch.setattr(KV, "write_many", away)
    by = studio.pictures()
    assert studio.look(WISHES, by).failed == {}
    assert studio.look(WISHES, by).failed == {}
    assert len(asked) == 1


def test_of_many_who_ask_at_once_one_makes_it(studio: Studio) -> None:
    start, found = threading.Barrier(6), []

    def ask() -> None:
        start.wait()
        found.append(studio.look(WISHES))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert all(seen == found[0] for seen in found)
    assert studio.decoded == [["small", "tiny"]]


def test_a_failed_thumbnail_is_not_remembered(studio: Studio) -> None:
    stream = io.BytesIO()
    Image.effect_noise((200, 200), 50).save(stream, "JPEG")
    studio.name = studio.store.put(stream.getvalue()[:5000]).hash
    for _ in range(2):
        seen = studio.look(WISHES)
        assert set(seen.failed) == {"small", "tiny"}
        assert seen.thumbnails == {}
    assert len(studio.decoded) == 2
