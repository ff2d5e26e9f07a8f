"""``fsworker why``: where a hash is, who keeps it, what becomes of it."""

from __future__ import annotations

import sys
from pathlib import Path

import click

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
from fsworker.cli.upkeep import make_reader, utc
from fsworker.collection.collector import Collector
from fsworker.collection.why import Why
from fsworker.collection.why import why as look_up
from fsworker.errors import ConfigError, InvalidHashError
from fsworker.model import parse_hash


@click.command()
@click.argument("hash_", metavar="HASH")
@store_option
@json_option
@reporting
def why(hash_: str, store: Path | None, as_json: bool) -> None:
    """Say where HASH lies, who keeps it, and what the next collection would do. Exit 1 when the store knows nothing of it."""
    try:
        name = parse_hash(hash_)
    except InvalidHashError as error:
        raise click.BadParameter(str(error), param_hint="HASH") from error
    settings = settings_for(store)
    with open_store(settings) as handle:
        try:
            collector = Collector(handle, make_reader(handle, settings), settings)
        except ConfigError:
            collector = None  # no Redis is configured, and none runs: say what the store knows
        found = look_up(handle, name, collector)
    if as_json:
        print_json(found.as_json())
    else:
        _print(found)
    if not found.known:
        sys.exit(1)


def _print(found: Why) -> None:
    out = stdout()
    out.print(f"{found.hash}: {found.state}", soft_wrap=True)
    if found.stored is not None:
        out.print(
            f"  stored       {format_size(found.stored.size_bytes)}; its age counts from {utc(found.stored.born_s)}"
        )
        out.print(f"  grace        safe from snapshots before {utc(found.stored.safe_until_s)}")
    for stamp, time_s in found.trashed:
        out.print(f"  trashed      {utc(time_s)}, by run {stamp}", soft_wrap=True)
    for stamp in found.quarantined:
        out.print(f"  quarantined  Error/{stamp}", soft_wrap=True)
    for app, kept in found.kept_by.items():
        said = {True: "keeps it", False: "does not keep it"}[kept] if isinstance(kept, bool) else f"cannot say: {kept}"
        out.print(f"  {app:12} {said}", soft_wrap=True, markup=False)
    out.print(f"  collection   {found.next_collection}", soft_wrap=True)
    for problem in found.problems:
        out.print(f"               {problem}", soft_wrap=True, markup=False)
