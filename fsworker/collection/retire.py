"""Retiring an application: from then on nobody waits for its keep-set, and what only it kept can be collected."""

from __future__ import annotations

from dataclasses import dataclass

from fsworker.errors import ConfigError
from fsworker.keepsets.accepted import forget_accepted
from fsworker.keepsets.form import BrokenKeepSetError, Manifest
from fsworker.keepsets.reader import KeepReader
from fsworker.model import Hash
from fsworker.store.create import editing_config
from fsworker.store.handle import StoreHandle, explain
from fsworker.store.objects import ObjectStore


@dataclass(frozen=True)
class Exclusive:
    """The stored files that an application keeps, and nobody else."""

    files: int
    size_bytes: int


def only_kept_by(store: ObjectStore, reader: KeepReader, app: str) -> Exclusive:
    """What would become collectable if ``app`` were retired.

    Raises :class:`BrokenKeepSetError` when its keep-set cannot be read. Another's that cannot be read counts as empty: then
    no collection runs anyway. Raises :class:`RedisUnavailableError`.
    """
    found = {each.app: each for each in reader.find(store.reload().app_names)}
    mine = found.pop(app).manifest
    if mine is None:
        raise BrokenKeepSetError(f"application {app} has no keep-set that can be read")
    others = [each.manifest for each in found.values() if each.manifest is not None]
    files = size_bytes = 0
    for shard in range(256):
        names = {bytes.fromhex(name) for name in store.names_in(f"{shard:02x}")}
        if not names:
            continue
        only = reader.marked(mine, shard, names)
        for other in others:
            only -= _marked(reader, other, shard, only)
        for raw in only:
            status = store.status(Hash(raw.hex()))
            if status is not None:
                files, size_bytes = files + 1, size_bytes + status.st_size
    return Exclusive(files, size_bytes)


def _marked(reader: KeepReader, manifest: Manifest, shard: int, names: set[bytes]) -> set[bytes]:
    try:
        return reader.marked(manifest, shard, names)
    except BrokenKeepSetError:
        return set()


def check_registered(handle: StoreHandle, app: str) -> None:
    """Raise :class:`ConfigError` when the store knows no such application."""
    known = handle.reload().app_names
    if app not in known:
        raise ConfigError(
            f"application {app!r} is not registered with this store; registered: {', '.join(known) or 'none'}"
        )


def retire(handle: StoreHandle, app: str) -> None:
    """Take an application from the registry, durably. Its spool directory, and what is in Redis, stay.

    Raises :class:`ConfigError`. A crash in between leaves it either registered, or retired with a note of its last
    keep-set, which matters only if it comes back.
    """
    check_registered(handle, app)
    with editing_config(handle) as edit:
        edit.config = edit.config.with_apps(
            {name: entry for name, entry in (edit.config.apps or {}).items() if name != app}
        )
    try:
        forget_accepted(handle, app)
    except OSError as error:
        raise explain(error, "Retiring an application", handle) from error
