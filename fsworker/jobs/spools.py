"""The spool directories of all applications of a store, as a worker uses them, and whose outcomes it believes there."""

from __future__ import annotations

import os

from fsworker.errors import ConfigError
from fsworker.model import Outcome
from fsworker.spool.directory import SpoolDirectory
from fsworker.store import layout
from fsworker.store.handle import StoreHandle


class Spools:
    """The spools of one store, each opened once, and again when it was replaced. Safe to share between threads."""

    def __init__(self, store: StoreHandle) -> None:
        self._store = store
        self._open: dict[str, SpoolDirectory] = {}
        # The outcome of another user is no outcome: the application can write to its spool directory, too.
        trusted = frozenset({os.geteuid(), store.owner_uid})
        self._outcome_owners = trusted if store.modes is layout.WORKER_WRITES else None

    def of(self, app: str) -> SpoolDirectory:
        """The spool of an application. Raises :class:`ConfigError` when it cannot be used."""
        spool = self._open.get(app)
        if spool is None or not spool.is_in_place():
            root = self._store.root / layout.SPOOL
            spool = SpoolDirectory(root / app, app)
            if os.fstat(spool.fd).st_dev != os.fstat(self._store.fd).st_dev:
                spool.close()
                raise ConfigError(
                    f"{root / app} is on another filesystem than the store {self._store.root}; uploads are kept by "
                    f"rename, so both must be on one: mount the store's filesystem above both"
                )
            self._open[app] = spool
        return spool

    def outcome(self, spool: SpoolDirectory, job_id: str) -> Outcome | None:
        """The outcome that a worker wrote for a job, if there is one."""
        return spool.read_outcome(job_id, owners=self._outcome_owners)
