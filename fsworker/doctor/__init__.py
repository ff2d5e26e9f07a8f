"""A look at an installation: what is wrong, what will be, and what to do about it. Changes nothing."""

from __future__ import annotations

import contextlib
import os
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path

from fsworker.broker.kv import KV
from fsworker.broker.names import Names
from fsworker.config import Settings
from fsworker.doctor.broker import look_at_redis
from fsworker.doctor.findings import Finding, ok, problem, warning, worst
from fsworker.doctor.running import look_at_clocks_and_keep_sets, look_at_what_runs
from fsworker.doctor.storage import look_at_storage
from fsworker.errors import ConfigError, RedisUnavailableError
from fsworker.host.state import find_redis_url, state_directory
from fsworker.store.objects import ObjectStore

__all__ = ["Finding", "examine", "worst"]


def examine(store: ObjectStore, settings: Settings) -> Iterator[Finding]:
    """Look at everything, one thing after the other; what is away is a finding, and the rest is looked at all the same.

    Raises :class:`ConfigError` where there is no state directory to look into.
    """
    yield from look_at_storage(store)
    directory = state_directory(settings, store.config.store_id)
    yield from state(directory)
    yield from look_at_what_runs(store, directory, settings, all_here=not settings.redis_url)
    names = Names(settings.namespace)
    try:
        url = find_redis_url(settings, store.config.store_id)
    except ConfigError as error:
        yield problem("redis", str(error), f"fsworker up {shlex.quote(str(store.root))}")
        return
    with contextlib.closing(KV(url)) as kv:
        try:
            findings = list(look_at_redis(kv, names, store.config.app_names, private=not settings.redis_url))
            yield from findings
            if worst(f for f in findings if f.topic == "redis") == "ok":
                yield from look_at_clocks_and_keep_sets(store, kv, names, settings)
        except RedisUnavailableError as error:
            yield problem("redis", str(error), "look at the server; 'fsworker acl' has the rights that its users need")


def state(directory: Path) -> Iterator[Finding]:
    """The state directory: beat's schedule is in it, which beat unpickles, so nobody else may write there."""
    try:
        status = os.stat(directory)
    except FileNotFoundError:
        yield warning(
            "state", f"{directory} does not exist: no worker was started with it", "FSWORKER_STATE_DIR names it"
        )
        return
    except OSError as error:
        yield warning("state", f"{directory} cannot be looked at: {error.strerror}", "run this as the workers' user")
        return
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        said = (
            f"others may write to {directory} (mode {stat.S_IMODE(status.st_mode):04o}), and beat trusts what is in it"
        )
        yield problem("state", said, f"chmod 0700 {shlex.quote(str(directory))}")
    else:
        yield ok("state", str(directory))
