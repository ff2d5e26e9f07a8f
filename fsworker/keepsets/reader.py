"""Reading keep-sets from Redis, on the store's side: bounded, checked, one part at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fsworker.broker.kv import KV
from fsworker.broker.names import Names
from fsworker.keepsets.form import (
    MAX_MANIFEST_BYTES,
    MAX_PART_BYTES,
    BrokenKeepSetError,
    Manifest,
    check_parts,
    mark,
    parse_manifest,
)

_PARTS_AT_ONCE = 8


@dataclass(frozen=True)
class Found:
    """What Redis holds for an application: a manifest, or ``problem``, or neither when nothing was ever published."""

    app: str
    manifest: Manifest | None = None
    problem: str | None = None


class KeepReader:
    """The keep-sets of one namespace. Every method raises :class:`RedisUnavailableError` when Redis is away."""

    def __init__(self, kv: KV, names: Names) -> None:
        self._kv = kv
        self._names = names

    def time_s(self) -> float:
        """Redis's clock, by which snapshot times go."""
        return self._kv.time_s()

    def find(self, apps: list[str]) -> list[Found]:
        """What each application has committed, in the order given."""
        keys = [self._names.manifest_key(app) for app in apps]
        data = self._kv.read_many(keys, MAX_MANIFEST_BYTES) if keys else []
        return [_found(app, value) for app, value in zip(apps, data, strict=True)]

    def parts(self, manifest: Manifest, shard: int) -> Iterator[bytes]:
        """The parts of a shard, checked. Raises :class:`BrokenKeepSetError`, at the latest after the last part."""
        return check_parts(manifest, shard, self._raw_parts(manifest, shard))

    def marked(self, manifest: Manifest, shard: int, names: set[bytes]) -> set[bytes]:
        """Those of ``names`` that the application keeps. Raises :class:`BrokenKeepSetError`."""
        return mark(names, self.parts(manifest, shard))

    def _raw_parts(self, manifest: Manifest, shard: int) -> Iterator[bytes | None]:
        keys = [
            self._names.part_key(manifest.app, manifest.generation, shard, number)
            for number in range(len(manifest.part_sizes(shard)))
        ]
        for start in range(0, len(keys), _PARTS_AT_ONCE):
            yield from self._kv.read_many(keys[start : start + _PARTS_AT_ONCE], MAX_PART_BYTES)


def _found(app: str, data: bytes | None) -> Found:
    if data is None:
        return Found(app)
    try:
        manifest = parse_manifest(data)
    except BrokenKeepSetError as error:
        return Found(app, problem=str(error))
    if manifest.app != app:
        return Found(app, problem=f"its manifest is that of application {manifest.app!r}"[:200])
    return Found(app, manifest)
