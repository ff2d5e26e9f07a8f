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
from rich.text import Text

from fsworker.cli.common import (
    format_size,
    json_option,
    open_store,
    reporting,
    settings_for,
    stderr,
    stdout,
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
    bar: Progress | None = None
    """A progress bar that is being drawn where the findings go: they are printed above it."""
    count: int = 0
    problems: int = 0
    reports: dict[str, Report] = field(default_factory=dict)

    @contextmanager
    def document(self) -> Iterator[None]:
        """Open the document; close it, whatever happens, and say in it whether everything was looked at."""
        complete = False
        if self.as_json:
            self._line('{"findings": [', end="")
        try:
            yield
            complete = True
        finally:
            if self.as_json:
                rest = {"complete": complete, **{name: report.as_json() for name, report in self.reports.items()}}
                self._line("\n" * bool(self.count) + f"], {json.dumps(rest)[1:]}")
            else:
                for name, report in self.reports.items():
                    self._line(_summary(name, report))

    def finding(self, finding: Finding) -> None:
        """Print one."""
        self.count += 1
        self.problems += not finding.is_note
        if self.as_json:
            tree = json.dumps(finding.as_json(), ensure_ascii=False)
            self._line(f"{',' if self.count > 1 else ''}\n  {tree}", end="")
        else:
            note = "note: " if finding.is_note else ""
            said = f"{printable(finding.path)}: {note}{finding.kind}: {finding.message}"
            self._line(f"{said}\n    done: {printable(finding.done)}\n    to do: {finding.advice}")

    def _line(self, text: str, end: str = "\n") -> None:
        if self.bar is None:
            click.echo(text + end, nl=False)
        else:
            self.bar.console.print(Text(text), end=end, soft_wrap=True)


def _summary(name: str, report: Report) -> str:
    took_s = max(report.took_s, 1e-6)
    actions = ", ".join(f"{count:,} {action}" for action, count in sorted(report.actions.items()))
    verdict = "nothing is wrong"
    if report.problems:
        left = f"{report.left_to_do:,} left to do" if report.left_to_do else "nothing left to do"
        verdict = f"{report.problems:,} found; {left}"
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
        with printer.document():
            if names:
                printer.reports["store"] = verify_hashes(handle, names, options.policy, printer.finding, mirror=copy)
            elif mirror is None or repair or pairs:
                with _progress("Verifying", printer) as on_progress:
                    printer.reports["store"] = verify_all(
                        handle, options, printer.finding, pairs=pairs, mirror=copy, on_progress=on_progress
                    )
            if mirror is not None and copy is not None and not names and not pairs:
                with _progress("Comparing", printer) as on_progress:
                    printer.reports["mirror"] = compare(handle, copy, options, printer.finding, on_progress=on_progress)
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
def _progress(title: str, printer: Printer) -> Iterator[OnProgress]:
    """A progress bar on a terminal; it starts with the first progress, when all processes are forked.

    It is drawn on standard output if that is a terminal, so that findings go above it, else on standard error. Rich must
    not redirect standard output by itself: a report that is written to a file would be drawn on the terminal instead.
    """
    console = stdout() if sys.stdout.isatty() else stderr
    if not console.is_terminal:
        yield no_progress
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    bar = Progress(
        *columns,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=sys.stderr.isatty(),
    )
    task = bar.add_task(title, total=None)
    begun_s = time.monotonic()
    started = False

    def on_progress(done: int, total: int) -> None:
        nonlocal started
        if not started and time.monotonic() - begun_s > 0.2:
            started = True
            bar.start()
            printer.bar = bar if sys.stdout.isatty() else None
        bar.update(task, completed=done, total=total)

    try:
        yield on_progress
    finally:
        if started:
            printer.bar = None
            bar.stop()
