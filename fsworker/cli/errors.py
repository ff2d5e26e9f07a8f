"""``fsworker error``: what was refused or found broken, and what to do with it."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from fsworker.cli.common import (
    json_option,
    open_store,
    plain,
    print_json,
    reporting,
    settings_for,
    stdout,
    store_option,
)
from fsworker.jobs.rejected import discard, retry
from fsworker.store import errordir
from fsworker.store.errordir import ErrorEntry
from fsworker.store.layout import stamp_time


@click.group("error")
def error_group() -> None:
    """List, retry or discard what lies under Error/."""


@error_group.command("list")
@store_option
@json_option
@reporting
def error_list(store: Path | None, as_json: bool) -> None:
    """List everything under Error/, oldest first, with the reason."""
    with open_store(settings_for(store)) as handle:
        entries = list(errordir.entries(handle))
    if as_json:
        print_json({"entries": [_as_json(entry) for entry in entries]})
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("Stamp", "Kind", "Application", "Reason"):
        table.add_column(column, overflow="fold", no_wrap=column == "Stamp")
    for entry in entries:
        reason = entry.reason
        said = str(reason.get("message", ", ".join(entry.files)))
        table.add_row(entry.stamp, *map(plain, (entry.kind, str(reason.get("app", "–")), said)))
    out = stdout()
    out.print(table if entries else "Error/ is empty.")


@error_group.command("retry")
@click.argument("stamps", nargs=-1, required=True)
@store_option
@json_option
@reporting
def error_retry(stamps: tuple[str, ...], store: Path | None, as_json: bool) -> None:
    """Put refused uploads back into their spool, under their old job ids; the next sweep rings for them."""
    jobs = {}
    with open_store(settings_for(store)) as handle:
        for stamp in stamps:
            jobs[stamp] = retry(handle, stamp)
            if not as_json:
                click.echo(f"{stamp}: job {jobs[stamp]} is queued again")
    if as_json:
        print_json({"retried": jobs})


@error_group.command("discard")
@click.argument("stamps", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask, at a terminal, whether that is meant.")
@store_option
@json_option
@reporting
def error_discard(stamps: tuple[str, ...], yes: bool, store: Path | None, as_json: bool) -> None:
    """Delete entries for good. At a terminal it asks first."""
    with open_store(settings_for(store)) as handle:
        if not yes and sys.stdin.isatty():
            click.confirm("Delete these entries for good?", abort=True, err=True)
        for stamp in stamps:
            discard(handle, stamp)
            if not as_json:
                click.echo(f"{stamp}: deleted")
    if as_json:
        print_json({"discarded": list(stamps)})


def _as_json(entry: ErrorEntry) -> dict[str, Any]:
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(stamp_time(entry.stamp)))
    return {
        "stamp": entry.stamp,
        "time": when,
        "kind": entry.kind,
        "files": list(entry.files),
        "reason": dict(entry.reason),
    }
