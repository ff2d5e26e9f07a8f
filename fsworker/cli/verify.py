"""``fsworker verify``: look at every byte of the store, of some hashes, or of a backup."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fsworker.cli.common import (
    format_size,
    json_option,
    open_store,
    reporting,
    settings_for,
    stderr,
    store_option,
    warn_root,
)
from fsworker.config import parse_size
from fsworker.errors import ConfigError, InvalidHashError
from fsworker.model import Hash, parse_hash
from fsworker.store.objects import ObjectStore
from fsworker.verification.copies import Mirror
from fsworker.verification.desk import Policy
from fsworker.verification.findings import Finding, printable
from fsworker.verification.history import PAIRS
from fsworker.verification.mirror import compare
from fsworker.verification.whole import OnProgress, Options, Report, no_progress, verify_all, verify_hashes


@dataclass
class Printer:
    """Prints findings as they come: lines for people, or one JSON document, never held in memory."""

    as_json: bool
    count: int = 0
    problems: int = 0
    reports: dict[str, Report] = field(default_factory=dict)

    def begin(self) -> None:
        """Open the document."""
        if self.as_json:
            sys.stdout.write('{"findings": [')

    def finding(self, finding: Finding) -> None:
        """Print one."""
        self.count += 1
        self.problems += not finding.is_note
        if self.as_json:
            sys.stdout.write(f"{',' if self.count > 1 else ''}\n  {json.dumps(finding.as_json(), ensure_ascii=False)}")
        else:
            click.echo(f"{printable(finding.path)}: {finding.kind}: {finding.message}")
            kept = "" if finding.kept is None else f", as {printable(finding.kept)}"
            click.echo(f"    {finding.action}{kept}; to do: {finding.advice}")

    def end(self) -> None:
        """Close the document, or sum up."""
        if self.as_json:
            rest = {name: report.as_json() for name, report in self.reports.items()}
            sys.stdout.write("\n" * bool(self.count) + f"], {json.dumps(rest)[1:]}\n")
        else:
            for name, report in self.reports.items():
                click.echo(_summary(name, report))


def _summary(name: str, report: Report) -> str:
    took_s = max(report.took_s, 1e-6)
    verdict = "nothing is wrong" if not report.problems else f"{report.problems:,} found"
    actions = ", ".join(f"{count:,} {action}" for action, count in sorted(report.actions.items()))
    return (
        f"{name}: {report.files:,} files, {format_size(report.size_bytes)} in {took_s:.1f} s "
        f"({format_size(int(report.size_bytes / took_s))}/s): {verdict}" + (f" ({actions})" if actions else "")
    )


@click.command()
@click.argument("hashes", nargs=-1, metavar="[HASH]...")
@click.option("--repair", is_flag=True, help="Mend what can be mended; move the rest to Error/. Nothing is deleted.")
@click.option("--shard", "shards", multiple=True, metavar="XX", help="Only Data/XX. Repeat for more.")
@click.option(
    "--mirror",
    type=click.Path(path_type=Path),
    help="A backup (rsync -a of the store): compare it with the store; with --repair, heal from it first.",
)
@click.option("--processes", type=click.IntRange(1, 256), help="How many processes read (default: one a core).")
@click.option("--rate", metavar="SIZE", help="Read at most so many bytes a second, as in 20MB (default: no limit).")
@store_option
@json_option
@reporting
def verify(
    hashes: tuple[str, ...],
    repair: bool,
    shards: tuple[str, ...],
    mirror: Path | None,
    processes: int | None,
    rate: str | None,
    store: Path | None,
    as_json: bool,
) -> None:
    """Re-hash stored files and look for what does not belong: the whole store, or only HASHes.

    \b
    fsworker verify                         look, and report
    fsworker verify --repair                mend what can be mended
    fsworker verify --mirror /backup/files  is the backup whole?

    Exit code 1 when something was found, mended or not. Needs no Redis, and may run beside everything else.
    """
    if hashes and shards:
        raise click.UsageError("name hashes or --shard, not both")
    settings = settings_for(store)
    names = _names(hashes)
    pairs = _pairs(shards)
    if repair:
        warn_root()
    printer = Printer(as_json)
    with open_store(settings) as handle, _mirror(mirror or settings.mirror, handle, needed=mirror) as copy:
        options = Options(
            policy=Policy(repair=repair),
            processes=processes or os.cpu_count() or 1,
            rate_bytes_s=_rate(rate),
        )
        printer.begin()
        try:
            if names:
                printer.reports["store"] = verify_hashes(handle, names, options.policy, printer.finding, mirror=copy)
            elif mirror is None or repair or pairs:
                with _progress("Verifying") as on_progress:
                    printer.reports["store"] = verify_all(
                        handle, options, printer.finding, pairs=pairs, mirror=copy, on_progress=on_progress
                    )
            if mirror is not None and copy is not None and not names and not pairs:
                with _progress("Comparing") as on_progress:
                    printer.reports["mirror"] = compare(handle, copy, options, printer.finding, on_progress=on_progress)
        finally:
            printer.end()
    if printer.problems:
        sys.exit(1)


def _names(hashes: tuple[str, ...]) -> list[Hash]:
    try:
        return [parse_hash(text) for text in hashes]
    except InvalidHashError as error:
        raise click.BadParameter(str(error), param_hint="HASH") from error


def _pairs(shards: tuple[str, ...]) -> list[str] | None:
    for shard in shards:
        if shard not in PAIRS:
            raise click.BadParameter(f"{shard!r}: write two of 0-9a-f, as in da", param_hint="--shard")
    return list(dict.fromkeys(shards)) or None


def _rate(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return max(1, parse_size(text))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--rate") from error


@contextmanager
def _mirror(path: Path | None, store: ObjectStore, *, needed: Path | None) -> Iterator[Mirror | None]:
    """The mirror to heal from. One that is only configured, and away, is warned of."""
    opened = None
    try:
        opened = None if path is None else Mirror(path, store)
    except ConfigError as error:
        if needed is not None:
            raise
        stderr.print(f"fsworker: {error}", soft_wrap=True, markup=False)
    with opened or nullcontext():
        yield opened


@contextmanager
def _progress(title: str) -> Iterator[OnProgress]:
    """A progress bar on a terminal; it starts with the first progress, when all processes are forked."""
    if not stderr.is_terminal:
        yield no_progress
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=stderr, transient=True)
    task = bar.add_task(title, total=None)
    begun_s = time.monotonic()
    started = False

    def on_progress(done: int, total: int) -> None:
        nonlocal started
        if not started and time.monotonic() - begun_s > 0.2:
            started = True
            bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield on_progress
    finally:
        if started:
            bar.stop()
