"""``fsworker export``: stored files into a directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import click

from fsworker.adoption.exporting import export_files
from fsworker.adoption.manifest import read_manifest
from fsworker.cli.common import format_size, json_option, print_json, reporting, settings_for, store_option
from fsworker.cli.import_ import file_progress, tell_failures
from fsworker.config import Settings
from fsworker.errors import ConfigError
from fsworker.store.reading import ObjectReader

Wanted = tuple[str, str, int | None]


@click.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--manifest",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Of an import: write its files under their paths again, with their modification times.",
)
@click.option(
    "--hashes",
    type=click.File("r"),
    help="A file (- for standard input) with one hash a line; files are named by them.",
)
@click.option("--all", "everything", is_flag=True, help="The whole store, files named by their hashes.")
@store_option
@json_option
@reporting
def export(
    directory: Path,
    manifest: Path | None,
    hashes: TextIO | None,
    everything: bool,
    store: Path | None,
    as_json: bool,
) -> None:
    """Write stored files into DIRECTORY; only reading the store is needed, no worker and no Redis.

    Every file is checked against its hash on the way. What is there already is left alone: the same command goes on with
    an export that was stopped. Exit code 1: some could not be written.
    """
    if (manifest is not None) + (hashes is not None) + everything != 1:
        raise click.UsageError("say what to export: --manifest FILE, --hashes FILE or --all")
    with _open_reader(settings_for(store)) as reader:
        wanted, total_bytes = _wanted(reader, manifest, hashes)
        with file_progress("Exporting", 0, total_bytes) as on_file:
            report = export_files(reader, wanted, directory, on_file)
    if as_json:
        print_json(report.as_json())
    else:
        click.echo(f"{report.files:,} files written ({format_size(report.bytes)}), {report.done_before:,} were there")
    tell_failures(report)


def _open_reader(settings: Settings) -> ObjectReader:
    if settings.store is None:
        raise ConfigError("no store: set FSWORKER_STORE, or give --store")
    return ObjectReader(settings.store)


def _wanted(reader: ObjectReader, manifest: Path | None, hashes: TextIO | None) -> tuple[Iterator[Wanted], int]:
    """What to write, and how many bytes that is where it is known."""
    if manifest is not None:
        _, entries = read_manifest(manifest)
        return ((e.path, e.hash, e.mtime_ns) for e in entries.values()), sum(e.size for e in entries.values())
    if hashes is not None:
        names = (line.strip() for line in hashes if line.strip())
        return ((name, name, None) for name in names), 0
    return ((name, name, None) for name in reader), 0
