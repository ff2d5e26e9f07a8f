"""Where an application's spool is, and which store it belongs to."""

from __future__ import annotations

import os

from fsworker.config import Settings
from fsworker.errors import ConfigError
from fsworker.spool.directory import STORE_NOTE, SpoolDirectory
from fsworker.store import layout
from fsworker.store.handle import StoreHandle


def find_spool(settings: Settings, app: str) -> SpoolDirectory:
    """The spool directory of an application, by ``FSWORKER_SPOOL`` or in the store. Raises :class:`ConfigError`."""
    if settings.spool is not None:
        path = settings.spool
        if not os.path.exists(path / STORE_NOTE) and os.path.isdir(path / app):
            path = path / app  # the spool of all applications was named
        return SpoolDirectory(path, app)
    if settings.store is None:
        raise ConfigError("neither FSWORKER_STORE (the store) nor FSWORKER_SPOOL (only the application's spool) is set")
    if not os.path.exists(settings.store / layout.CONFIG_FILE):
        StoreHandle(settings.store).close()  # raises, and says what is wrong with the path
    return SpoolDirectory(settings.store / layout.SPOOL / app, app)


def find_store_id(settings: Settings, spool: SpoolDirectory) -> str:
    """The id of the store that a spool belongs to; ``""`` where that cannot be known. Raises :class:`ConfigError`."""
    noted = spool.read_store_id()
    if noted:
        return noted
    if settings.store is None:
        return ""
    try:
        with StoreHandle(settings.store) as handle:
            return handle.config.store_id
    except ConfigError:
        if settings.spool is None:
            raise
        return ""
