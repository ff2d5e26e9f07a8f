"""Whose turn it is to move files: one collection or purge of a store at a time, and nobody while a hold is in force."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from fsworker.errors import CollectionRefusedError, Refusal
from fsworker.store.handle import StoreHandle, explain
from fsworker.store.hold import current as current_hold
from fsworker.store.locks import store_lock

LOCK_NAME = "collection"


@contextmanager
def alone(store: StoreHandle) -> Iterator[None]:
    """Hold the lock of collections and purges; it dies with its process.

    Raises :class:`CollectionRefusedError` when it is taken, and what :func:`explain` makes of an ``OSError`` inside.
    """
    try:
        store.prepare()
        with store_lock(store.fd, LOCK_NAME, store.modes.lock_file) as obtained:
            if not obtained:
                raise CollectionRefusedError(Refusal("running", "another collection or purge of this store is running"))
            yield
    except OSError as error:
        raise explain(error, "Collecting", store) from error


def is_free(store: StoreHandle) -> bool:
    """Whether nobody collects or purges at this moment. Raises ``OSError``."""
    with store_lock(store.fd, LOCK_NAME, store.modes.lock_file) as obtained:
        return obtained


def refuse_hold(store: StoreHandle) -> None:
    """Raise :class:`CollectionRefusedError` while a hold is in force."""
    hold = current_hold(store)
    if hold is None:
        return
    endless = hold.until_s == float("inf")
    until = "until it is released (its note cannot be read)" if endless else f"until {_time(hold.until_s)}"
    raise CollectionRefusedError(
        Refusal(
            "hold",
            f"a hold is in force {until}: no file is moved, for a backup; end it with: fsworker hold release",
            numbers={} if endless else {"until": hold.until_s},
        )
    )


def quiesce(store: StoreHandle, timeout_s: float) -> bool:
    """Wait until no collection and no purge runs: after a hold was set, until the last move has ended. False: too long."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        with store_lock(store.fd, LOCK_NAME, store.modes.lock_file) as obtained:
            if obtained:
                return True
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.05)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
