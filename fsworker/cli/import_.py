"""``fsworker import``: a directory of files into the store."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from fsworker.adoption.importing import import_tree, measure
from fsworker.adoption.manifest import OnFile, Report, printable
from fsworker.cli.common import (
    format_size,
    json_option,
    open_store,
    print_json,
    reporting,
    settings_for,
    stderr,
    store_option,
    warn_root,
)

_SHOWN_FAILURES = 20


@click.command("import")
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--manifest",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("fsworker-import.jsonl"),
    show_default=True,
    help="Where to write which path has which hash. An import that was stopped goes on from it.",
)
@store_option
@json_option
@reporting
def import_command(directory: Path, manifest: Path, store: Path | None, as_json: bool) -> None:
    """Store every file below DIRECTORY, which stays as it is, and write a manifest: path and hash of each.

    Run it as the worker's user; no worker and no Redis are needed. Files share their blocks with the source where the
    filesystem can. What no application keeps is collected after the grace: have the application refer to the hashes
    and publish its keep-set by then, or begin with "fsworker hold". Exit code 1: some files could not be read.
    """
    warn_root()
    settings = settings_for(store, durability="batch")  # the same promise, and several times faster
    with open_store(settings) as handle, file_progress("Importing", *measure(directory)) as on_file:
        report = import_tree(handle, directory, manifest, on_file)
    if as_json:
        print_json({**report.as_json(), "manifest": str(manifest)})
    else:
        stored = (
            f"{report.files:,} files stored ({format_size(report.bytes)}), {report.duplicates:,} of them duplicates"
        )
        click.echo(f"{stored}; {report.done_before:,} were done before, {report.skipped:,} are no regular files")
        click.echo(f"Paths and hashes are in {manifest}")
    tell_failures(report)


def tell_failures(report: Report) -> None:
    """Name what failed on standard error, and exit with 1 if anything did."""
    for number, (path, reason) in enumerate(report.failed.items()):
        if number == _SHOWN_FAILURES:
            click.echo(f"fsworker: and {len(report.failed) - number:,} more", err=True)
            break
        click.echo(f"fsworker: {printable(path)}: {reason}", err=True)
    if report.failed:
        sys.exit(1)


@contextmanager
def file_progress(what: str, _files: int, total_bytes: int) -> Iterator[OnFile]:
    """A progress bar in bytes on a terminal; gives what to call for each file."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        task = bar.add_task(what, total=total_bytes)

        def on_file(_path: str, size_bytes: int) -> None:
            bar.advance(task, size_bytes)

        yield on_file
