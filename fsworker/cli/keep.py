"""``fsworker keep``: publish an application's keep-set, and show what is in force."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from fsworker.cli.common import (
    json_option,
    open_store,
    print_json,
    reporting,
    settings_for,
    stderr,
    stdout,
    store_option,
)
from fsworker.cli.upkeep import make_reader, parse_time, utc
from fsworker.client import Client
from fsworker.collection.basis import ageing
from fsworker.errors import ConfigError
from fsworker.keepsets.reader import Found
from fsworker.store.clock import boot_time_s


@click.group("keep")
def keep_group() -> None:
    """Publish keep-sets, and show what is published."""


@keep_group.command("publish")
@click.option("--app", required=True, help="The application whose keep-set this is.")
@click.argument("source", type=click.Path(allow_dash=True, dir_okay=False))
@click.option(
    "--snapshot-time", metavar="T",
    help="When reading the references began: seconds since the epoch, or ISO 8601 with a zone. Needed for a file.",
)  # fmt: skip
@click.option("--allow-empty", is_flag=True, help="An empty keep-set is meant: the application keeps nothing.")
@store_option
@json_option
@reporting
def publish(
    app: str, source: str, snapshot_time: str | None, allow_empty: bool, store: Path | None, as_json: bool
) -> None:
    """Replace an application's keep-set by the hashes in SOURCE, one a line ("-": standard input).

    \b
    psql -At -c "SELECT hash FROM photos" | fsworker keep publish --app shop -

    From standard input the snapshot time is the start of this command: what feeds it must not have begun to read before. A
    file was written earlier, so --snapshot-time has to say when reading began.
    """
    if source != "-" and snapshot_time is None:
        raise ConfigError(
            "a file was written earlier: give --snapshot-time, the time before the first reference was read (date +%s), or "
            "pipe the hashes into 'fsworker keep publish -'"
        )
    noted = None if snapshot_time is None else parse_time(snapshot_time)
    with Client(app, settings=settings_for(store)) as client:
        if noted is None:
            noted = client.keep.now() - _running_for_s()
        stream = sys.stdin.buffer if source == "-" else _open(source)
        with stream:
            done = client.keep.publish(stream, noted, allow_empty, progress=_progress(as_json=as_json))
    if as_json:
        print_json(done.as_json())
    else:
        click.echo(f"{done.count:,} hashes of {app} are in force, as of {utc(done.snapshot_time)}")


def _running_for_s() -> float:
    """How long ago the command was started, the interpreter's own start included; 0 when it is not a process of its own."""
    started_s = click.get_current_context().find_root().obj
    return max(0.0, boot_time_s() - started_s) if isinstance(started_s, float) else 0.0


def _open(path: str) -> Any:
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def _progress(*, as_json: bool) -> Any:
    if as_json or not sys.stderr.isatty():
        return None
    return lambda count: click.echo(f"\r{count:,} hashes", err=True, nl=False)


@keep_group.command("show")
@store_option
@json_option
@reporting
def show(store: Path | None, as_json: bool) -> None:
    """Show the keep-set of each application: how many hashes, and how old. Exit 1 when one is missing, broken or ageing."""
    settings = settings_for(store)
    with open_store(settings) as handle:
        reader = make_reader(handle, settings)
        found = reader.find(handle.config.app_names)
        now_s = reader.time_s()
    warnings = [warning.message for warning in ageing(found, now_s, settings.keep_set_max_age)]
    if as_json:
        print_json({"keep_sets": {each.app: describe(each, now_s) for each in found}, "warnings": warnings})
    else:
        _print_table(found, now_s)
        for warning in warnings:
            stderr.print(f"fsworker: {warning}", soft_wrap=True, markup=False)
    if warnings or any(each.manifest is None for each in found):
        sys.exit(1)


def _print_table(found: list[Found], now_s: float) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("Application", "Hashes", "Snapshot", "Age", "Problem"):
        table.add_column(column, justify="right" if column == "Hashes" else "left")
    for each in found:
        if each.manifest is None:
            table.add_row(each.app, "–", "–", "–", escape(each.problem or "never published, or flushed"))
        else:
            age_h = max(0.0, now_s - each.manifest.snapshot_time) / 3600
            table.add_row(each.app, f"{each.manifest.count:,}", utc(each.manifest.snapshot_time), f"{age_h:.1f} h", "")
    stdout().print(table if found else "No application is registered.")


def describe(found: Found, now_s: float) -> dict[str, Any]:
    """A keep-set for ``--json``. Times are seconds since the epoch, ages seconds."""
    if found.manifest is None:
        return {"state": "missing" if found.problem is None else "broken", "problem": found.problem}
    manifest = found.manifest
    return {
        "state": "in force",
        "count": manifest.count,
        "snapshot_time": manifest.snapshot_time,
        "age": round(now_s - manifest.snapshot_time, 3),
        "published_time": manifest.published_time,
        "generation": manifest.generation,
        "store_id": manifest.store,
    }
