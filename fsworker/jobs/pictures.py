"""Thumbnails made once: the same content and specification cost one decode, whoever asks and however often.

What was made is remembered in Redis, by (engine version, content, canonical specification). The memory is a hint and no
more: a remembered thumbnail counts only if its file is in the store (or can be restored), and is freshened by being
named again. When many ask at once, one makes it and the others wait and are told (a lock by content, held at most as
long as one picture may take).
"""

from __future__ import annotations

import hashlib
import logging
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from pydantic import ValidationError

from fsworker.broker.kv import KV
from fsworker.config import Settings
from fsworker.copying import Reader
from fsworker.errors import RedisUnavailableError
from fsworker.model import Hash, PictureSize, ThumbnailResult
from fsworker.specification import Thumbnail
from fsworker.store.locks import picture_lock
from fsworker.store.objects import ObjectStore, Stored
from fsworker.store.trash import restore
from fsworker.thumbnails import ENGINE_VERSION, Limits, PictureOutcome, make_thumbnails, start_fork_server

log = logging.getLogger(__name__)

_OUTPUT_BYTES = 64 << 20
_MAX_NOTE_BYTES = 4096
_REDIS_AWAY_S = 5.0


class Putter(Protocol):
    """Where contents are put: an :class:`ObjectStore`, or a batch of one."""

    def put_reader(self, stream: Reader, max_bytes: int | None = None) -> Stored: ...

    def put_descriptor(
        self, fd: int, max_bytes: int | None = None, progress: Callable[[int], None] | None = None
    ) -> Stored: ...


@dataclass(frozen=True)
class Seen:
    """What a file turned out to be: ``size`` is ``None`` for what is no picture that we know."""

    size: PictureSize | None
    thumbnails: dict[str, ThumbnailResult]
    failed: dict[str, str]


class Pictures:
    """Makes and remembers the thumbnails of one store. ``kv`` may be away: then nothing is remembered."""

    def __init__(self, store: ObjectStore, settings: Settings, kv: KV) -> None:
        self._store = store
        self._settings = settings
        self._kv = kv
        self._ask_redis_at_s = 0.0
        start_fork_server()

    def look(
        self, fd: int, name: Hash, thumbnails: Mapping[str, Thumbnail], max_pixels: int | None, into: Putter
    ) -> Seen:
        """What the stored file ``name``, open as ``fd``, is, and its thumbnails, put ``into`` where they had to be made.

        Never raises for a hostile picture: that is a reason in ``failed``. Raises what ``into`` raises.
        """
        size, known = self._recall(name, thumbnails)
        missing = {label: wish for label, wish in thumbnails.items() if label not in known}
        if size is not None and not missing:
            return Seen(size, known, {})
        if not missing:
            return self._make(fd, name, {}, max_pixels, into)
        with picture_lock(self._store.fd, name, self._store.modes.lock_file):
            size, known = self._recall(name, thumbnails)  # by whoever held the lock before
            missing = {label: wish for label, wish in thumbnails.items() if label not in known}
            made = self._make(fd, name, missing, max_pixels, into) if missing or size is None else Seen(size, {}, {})
        found = {**known, **made.thumbnails}
        return Seen(made.size, {label: found[label] for label in thumbnails if label in found}, made.failed)

    def _make(
        self, fd: int, name: Hash, thumbnails: Mapping[str, Thumbnail], max_pixels: int | None, into: Putter
    ) -> Seen:
        settings = self._settings
        limits = Limits(
            max_pixels=min(settings.max_pixels, max_pixels or settings.max_pixels),
            memory_bytes=settings.thumbnail_memory,
            cpu_s=settings.thumbnail_cpu_time,
            wall_s=settings.thumbnail_cpu_time * 3,
            output_bytes=_OUTPUT_BYTES,
        )
        outcome = make_thumbnails(fd, thumbnails, limits)
        results = _put_all(outcome, into)
        picture = outcome.picture
        size = (
            None
            if picture is None
            else PictureSize(media_type=picture.media_type, width=picture.width, height=picture.height)
        )
        if size is not None:
            self._remember(name, size, {label: (thumbnails[label], result) for label, result in results.items()})
        return Seen(size, results, dict(outcome.failed))

    # -- memory ----------------------------------------------------------------------------------------------------

    def _recall(
        self, name: Hash, thumbnails: Mapping[str, Thumbnail]
    ) -> tuple[PictureSize | None, dict[str, ThumbnailResult]]:
        if time.monotonic() < self._ask_redis_at_s:
            return None, {}
        labels = list(thumbnails)
        keys = [self._key(name, None), *(self._key(name, thumbnails[label]) for label in labels)]
        try:
            first, *notes = self._kv.read_many(keys, _MAX_NOTE_BYTES)
        except RedisUnavailableError as error:
            self._pause(error)
            return None, {}
        try:
            size = PictureSize.model_validate_json(first) if first else None
            known = {
                label: ThumbnailResult.model_validate_json(note)
                for label, note in zip(labels, notes, strict=True)
                if note is not None
            }
        except ValidationError:
            return None, {}
        return size, {label: result for label, result in known.items() if restore(self._store, result.hash)}

    def _remember(self, name: Hash, size: PictureSize, made: Mapping[str, tuple[Thumbnail, ThumbnailResult]]) -> None:
        if time.monotonic() < self._ask_redis_at_s or self._settings.thumbnail_recall < 1:
            return
        notes = [(self._key(name, None), size.model_dump_json().encode())]
        notes += [(self._key(name, wish), result.model_dump_json().encode()) for wish, result in made.values()]
        try:
            self._kv.write_many(notes, int(self._settings.thumbnail_recall))
        except RedisUnavailableError as error:
            self._pause(error)

    def _key(self, name: Hash, wish: Thumbnail | None) -> str:
        """Short, because there are many; a digest of all that decides the bytes, and of the store that has them."""
        parts = (self._store.config.store_id, ENGINE_VERSION, name, "" if wish is None else wish.key)
        digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=16).digest()
        return f"{self._settings.namespace}:made:{urlsafe_b64encode(digest).decode().rstrip('=')}"

    def _pause(self, error: RedisUnavailableError) -> None:
        """A Redis that is away may take seconds to say so: no job waits for it twice."""
        self._ask_redis_at_s = time.monotonic() + _REDIS_AWAY_S
        log.debug("thumbnails are neither looked up nor remembered for now: %s", error)


def _put_all(outcome: PictureOutcome, into: Putter) -> dict[str, ThumbnailResult]:
    results = {}
    for label, made in outcome.made.items():
        stored = into.put_reader(made.open())
        results[label] = ThumbnailResult(
            hash=stored.hash, size=stored.size_bytes, media_type=made.media_type, width=made.width, height=made.height
        )
    return results
