"""``fsworker gc``: move to trash what no application keeps."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from fsworker.cli.common import format_size, json_option, print_json, reporting, stdout, store_option, warn_root
from fsworker.cli.upkeep import opened, override_option, progress_bar, refusing, utc
from fsworker.collection.collector import Collector
from fsworker.collection.plan import Plan
from fsworker.collection.runs import Run
from fsworker.collection.upkeep import note_last
from fsworker.config import format_duration
from fsworker.errors import CollectionRefusedError


@click.command()
@click.option("--dry-run", is_flag=True, help="Print the plan that a run would carry out, and change nothing.")
@override_option
@store_option
@json_option
@reporting
def gc(dry_run: bool, overrides: tuple[str, ...], store: Path | None, as_json: bool) -> None:
    """Collect: move files that no application keeps, and that are older than the grace, to trash.

    What is in trash and is kept again is restored. Refuses (exit 1) when a keep-set is missing, broken or too old, and says
    which and why. Nothing is deleted: see "fsworker trash purge".
    """
    warn_root()
    with opened(store, overrides) as collector:
        if dry_run:
            _dry_run(collector, as_json=as_json)
            return
        with refusing(as_json=as_json), progress_bar(quiet=as_json) as progress:
            run = collector.collect(progress)
        note_last(collector.store, "collect", run.as_json())
        if as_json:
            print_json({"dry_run": False, **run.as_json()})
        else:
            _report(run, collector)
        if run.tally.rotten:
            sys.exit(1)


def _dry_run(collector: Collector, *, as_json: bool) -> None:
    trash: list[dict[str, Any]] = []
    restore: list[str] = []

    def on_plan(plan: Plan) -> None:
        for file in plan.trash:
            if as_json:
                trash.append({"hash": file.name, "size": file.size_bytes, "changed": utc(file.ctime_s)})
            else:
                click.echo(f"trash    {file.name}  {format_size(file.size_bytes):>9}  {utc(file.ctime_s)}")
        for name in plan.restore:
            if as_json:
                restore.append(name)
            else:
                click.echo(f"restore  {name}")

    refusals: list[dict[str, Any]] = []
    report: dict[str, Any] = {}
    try:
        with progress_bar(quiet=as_json) as progress:
            run = collector.dry_run(on_plan, progress)
        report = run.as_json()
    except CollectionRefusedError as error:
        if not as_json:
            with refusing(as_json=False):
                raise
        refusals = [refusal.as_json() for refusal in error.refusals]
    if as_json:
        print_json({"dry_run": True, **report, "plan": {"trash": trash, "restore": restore}, "refused": refusals})
        sys.exit(1 if refusals else 0)
    _report(run, collector)


def _report(run: Run, collector: Collector) -> None:
    tally, out = run.tally, stdout()
    oldest = min(run.manifests, key=lambda manifest: manifest.snapshot_time)
    out.print(f"Files     {tally.files:,}, of which {tally.kept:,} are kept")
    out.print(
        f"Cutoff    {utc(run.cutoff_s)}: the snapshot of {oldest.app} ({utc(oldest.snapshot_time)}), less a grace of "
        f"{format_duration(collector.store.grace_s)} and an eighth",
        soft_wrap=True,
    )
    if run.done:
        out.print(
            f"Trashed   {tally.trashed:,} ({format_size(tally.trashed_bytes)}), as run {run.stamp}", soft_wrap=True
        )
        out.print(f"Restored  {tally.restored:,}")
    else:
        out.print(f"Plan      trash {tally.trash:,} ({format_size(tally.trash_bytes)}), restore {tally.restore:,}")
    out.print(f"Young     {tally.young:,} ({format_size(tally.young_bytes)}) are in no keep-set, but not old enough")
    if tally.young_linked:
        out.print(
            f"          {tally.young_linked:,} of them have a second link: a backup by hard links (cp -l, rsync --link-dest) "
            f"renews a file's age each time; copy instead",
            soft_wrap=True,
        )
    if tally.young_changed > tally.young_linked:
        out.print(
            f"          {tally.young_changed:,} of them were stored long ago: claimed again since, or made young by chown -R, "
            f"chmod -R or a restore",
            soft_wrap=True,
        )
    if tally.spared:
        out.print(f"Spared    {tally.spared:,} that somebody took up in the meantime")
    if tally.rotten:
        out.print(
            f"Rotten    {tally.rotten:,} files that are kept are only in trash, and rotten: fsworker verify --repair"
        )
