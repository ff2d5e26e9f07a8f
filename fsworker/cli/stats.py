"""``fsworker stats``: what is there, in numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fsworker.broker.kv import KV
from fsworker.broker.names import Names
from fsworker.broker.refusals import ROLES, refusals
from fsworker.cli.common import (
    format_size,
    json_option,
    open_store,
    print_json,
    reporting,
    settings_for,
    stdout,
    store_option,
)
from fsworker.cli.keep import describe
from fsworker.collection.basis import ageing
from fsworker.collection.runs import read_run
from fsworker.collection.upkeep import read_last
from fsworker.config import Settings, redact_url
from fsworker.host.state import find_redis_url, state_directory
from fsworker.keepsets.reader import KeepReader
from fsworker.spool.directory import SpoolDirectory
from fsworker.store import layout
from fsworker.store.objects import ObjectStore
from fsworker.verification.part import coverage, limits_of


@click.command()
@store_option
@json_option
@reporting
def stats(store: Path | None, as_json: bool) -> None:
    """Count files, uploads that wait, and messages; says which Redis is in use. Starts nothing."""
    settings = settings_for(store)
    with open_store(settings) as handle:
        url = find_redis_url(settings, handle.config.store_id)
        kv = KV(url)
        kv.ping()
        names = Names(settings.namespace)
        files, size_bytes = _count(handle)
        tree: dict[str, Any] = {
            "store": str(handle.root),
            "store_id": handle.config.store_id,
            "redis_url": redact_url(url),
            "state_dir": str(state_directory(settings, handle.config.store_id)),
            "files": files,
            "bytes": size_bytes,
            "apps": handle.config.app_names,
            "spool": {app: _spooled(handle, app) for app in handle.config.app_names},
            "queues": {
                queue: kv.queue_length(queue)
                for queue in [names.maintenance_queue, *(names.ingest_queue(app) for app in handle.config.app_names)]
            },
            "unacknowledged": {role: kv.hash_length(names.unacked_key(role)) for role in ROLES},
            "refused": refusals(kv, names),
            **_keep_sets(handle, kv, names, settings),
            "last_runs": read_last(handle),
            "verification": _verification(handle, settings),
            "collection": None if (run := read_run(handle)) is None else run.as_json(),
        }
    if as_json:
        print_json(tree)
        return
    out = stdout()
    out.print(f"Store    {tree['store']}", soft_wrap=True, markup=False)
    out.print(f"Files    {files:,} ({format_size(size_bytes)})")
    out.print(f"Redis    {tree['redis_url']}", soft_wrap=True, markup=False)
    for app, spooled in tree["spool"].items():
        out.print(f"Spool    {app}: {spooled['requests']} jobs wait, {spooled['done']} outcomes kept")
    for queue, length in tree["queues"].items():
        out.print(f"Queue    {queue}: {length}")
    for app, keep_set in tree["keep_sets"].items():
        said = (
            f"{keep_set['count']:,} hashes, {keep_set['age'] / 3600:.1f} h old"
            if "count" in keep_set
            else keep_set["state"]
        )
        out.print(f"Keep-set {app}: {said}")
    if (seen := tree["verification"]) is not None:
        out.print(
            f"Verified {seen['directories']} of 256 directories{_oldest(seen)}{_left(seen)}; "
            f"{len(seen['findings'])} found lately"
        )
        if seen["quarantined"]:
            out.print(f"Error    {seen['quarantined']:,} in quarantine: fsworker error list")
    for warning in tree["warnings"]:
        out.print(f"Warning  {warning}", soft_wrap=True, markup=False)
    for queue, reasons in tree["refused"].items():
        listed = ", ".join(f"{reason} {count:,}" for reason, count in sorted(reasons.items()))
        out.print(f"Refused  messages of {queue}: {listed}")


def _keep_sets(handle: ObjectStore, kv: KV, names: Names, settings: Settings) -> dict[str, Any]:
    found = KeepReader(kv, names).find(handle.config.app_names)
    now_s = kv.time_s()
    return {
        "keep_sets": {each.app: describe(each, now_s) for each in found},
        "warnings": [warning.message for warning in ageing(found, now_s, settings.keep_set_max_age)],
    }


def _count(handle: ObjectStore) -> tuple[int, int]:
    files = size_bytes = 0
    for name in handle:
        status = handle.status(name)
        if status is not None:
            files, size_bytes = files + 1, size_bytes + status.st_size
    return files, size_bytes


def _oldest(seen: dict[str, Any]) -> str:
    return "" if seen["oldest_age"] is None else f", the oldest {seen['oldest_age'] / 3600:.1f} h ago"


def _left(seen: dict[str, Any]) -> str:
    """The estimated end; an outage of the workers comes on top."""
    return "" if not seen["seconds_left"] else f"; what is due takes about {seen['seconds_left'] / 3600:.1f} h"


def _verification(handle: ObjectStore, settings: Settings) -> dict[str, Any] | None:
    """How far verification is; ``None`` where ``Lock/`` is closed to who asks."""
    try:
        return coverage(handle, limits_of(settings)).as_json()
    except PermissionError:
        return None


def _spooled(handle: ObjectStore, app: str) -> dict[str, int]:
    with SpoolDirectory(handle.root / layout.SPOOL / app, app) as spool:
        kinds = [entry.kind for entry in spool.entries()]
    return {"requests": kinds.count("json"), "uploads": kinds.count("upload"), "done": kinds.count("done")}
