"""``fsworker ingest``: what an application does, from the command line."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fsworker.cli.common import (
    format_size,
    json_option,
    plain,
    print_json,
    reporting,
    settings_for,
    stderr,
    stdout,
    store_option,
)
from fsworker.client import Client
from fsworker.config import parse_duration
from fsworker.errors import FSWorkerError, ImageError, JobTimeoutError
from fsworker.jobs.job import Job
from fsworker.model import IngestResult
from fsworker.specification import Thumbnail


@dataclass(frozen=True)
class Finished:
    """One file of the command, at its end: a result, or an error (``queued`` where it has not ended)."""

    file: str
    job_id: str
    state: str
    result: IngestResult | None
    error: FSWorkerError | None
    took_s: float

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        tree: dict[str, Any] = {
            "file": self.file,
            "job_id": self.job_id,
            "state": self.state,
            "seconds": round(self.took_s, 3),
        }
        if self.result is not None:
            tree["result"] = self.result.model_dump(mode="json")
        if self.error is not None:
            tree["error"] = {"type": type(self.error).__name__, "message": str(self.error)}
        return tree

    @property
    def flawless(self) -> bool:
        """Stored, with every thumbnail."""
        return self.result is not None and not self.result.failed_thumbnails


def parse_thumbnails(values: tuple[str, ...]) -> dict[str, Thumbnail]:
    """``NAME=SPEC`` options as specifications. Raises ``click.BadParameter``."""
    thumbnails = {}
    for value in values:
        name, separator, specification = value.partition("=")
        if not separator or not name:
            raise click.BadParameter(f"{value!r}: write NAME=SPEC, as in small=100x100", param_hint="--thumbnail")
        try:
            thumbnails[name] = Thumbnail.parse(specification)
        except ImageError as error:
            raise click.BadParameter(str(error), param_hint="--thumbnail") from error
    return thumbnails


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--app", required=True, help="The application that the files belong to.")
@click.option(
    "--thumbnail", "thumbnails", multiple=True, metavar="NAME=SPEC", help="As in small=100x100. Repeat for more."
)
@click.option("--timeout", default="60s", show_default=True, help="How long to wait for the results.")
@store_option
@json_option
@reporting
def ingest(
    files: tuple[Path, ...], app: str, thumbnails: tuple[str, ...], timeout: str, store: Path | None, as_json: bool
) -> None:
    """Ingest FILES for an application through the running worker, and print their hashes.

    \b
    fsworker ingest photo.jpg --app shop --thumbnail small=100x100 --thumbnail hero=1600x
    """
    try:
        timeout_s = parse_duration(timeout)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--timeout") from error
    wanted = parse_thumbnails(thumbnails)
    files = tuple(dict.fromkeys(files))  # named twice, it is ingested once
    with Client(app, settings=settings_for(store)) as client:
        client.check_redis()
        started_s = time.monotonic()
        jobs = client.ingest_many(files, thumbnails=wanted)
        finished = wait_for(dict(zip(map(str, files), jobs, strict=True)), started_s, timeout_s)
    if as_json:
        print_json({"results": [item.as_json() for item in finished]})
    else:
        print_table(finished)
    if not all(item.flawless for item in finished):
        sys.exit(1)


def wait_for(jobs: dict[str, Job], started_s: float, timeout_s: float) -> list[Finished]:
    """Wait for all jobs, with a progress bar on a terminal."""
    finished: dict[str, Finished] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        task = bar.add_task("Ingesting", total=len(jobs))
        while len(finished) < len(jobs):
            late = time.monotonic() - started_s > timeout_s
            for file, job in jobs.items():
                if file not in finished and (item := _look(file, job, started_s, late=late)) is not None:
                    finished[file] = item
                    bar.advance(task)
            if len(finished) < len(jobs):
                time.sleep(0.02)
    return [finished[file] for file in jobs]


def _look(file: str, job: Job, started_s: float, *, late: bool) -> Finished | None:
    took_s = time.monotonic() - started_s
    try:
        result = job.get(timeout=0)
    except JobTimeoutError as error:
        return Finished(file, job.id, job.state, None, error, took_s) if late else None
    except FSWorkerError as error:
        return Finished(file, job.id, "failed", None, error, took_s)
    assert isinstance(result, IngestResult)
    return Finished(file, job.id, "done", result, None, took_s)


def print_table(finished: list[Finished]) -> None:
    """A table for people; what went wrong is told on standard error, in full."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("File", overflow="fold")
    table.add_column("Hash", no_wrap=True)
    table.add_column("Size", justify="right", no_wrap=True)
    table.add_column("Thumbnails", overflow="fold")
    table.add_column("", no_wrap=True)
    table.add_column("Time", justify="right", no_wrap=True)
    for item in finished:
        table.add_row(*row(item))
    stdout().print(table)
    for item in finished:
        if item.error is not None:
            stderr.print(f"fsworker: {item.file}: {item.error}", soft_wrap=True, markup=False)
        elif item.result is not None:
            for name, reason in item.result.failed_thumbnails.items():
                stderr.print(f"fsworker: {item.file}: thumbnail {name}: {reason}", soft_wrap=True, markup=False)


def row(item: Finished) -> list[str]:
    """One line of the table."""
    name, took = plain(Path(item.file).name), f"{item.took_s:.1f} s"
    if item.result is None:
        return [name, "–", "", "", f"[red]{item.state}[/red]", took]
    result = item.result
    thumbnails = ", ".join(f"{n} {t.width}×{t.height}" for n, t in result.thumbnails.items()) or "–"
    verdict = "[cyan]duplicate[/cyan]" if result.duplicate else "[green]new[/green]"
    return [name, result.hash, format_size(result.size), thumbnails, verdict, took]
