"""``fsworker trash``: what collections took, and how it comes back or goes for good."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.table import Table

from fsworker.cli.common import (
    fail,
    format_size,
    json_option,
    open_store,
    print_json,
    reporting,
    settings_for,
    stdout,
    store_option,
    warn_root,
)
from fsworker.cli.upkeep import opened, override_option, refusing, utc
from fsworker.collection.purge import purge as purge_trash
from fsworker.collection.turn import refuse_hold
from fsworker.collection.upkeep import note_last
from fsworker.errors import ConfigError
from fsworker.model import Hash, is_hash
from fsworker.store.layout import is_stamp
from fsworker.store.objects import ObjectStore
from fsworker.store.trash import restore
from fsworker.store.trashlist import names_of, runs, stamps


@click.group("trash")
def trash_group() -> None:
    """List, restore or purge what collections took."""


@trash_group.command("list")
@click.argument("run", required=False)
@store_option
@json_option
@reporting
def trash_list(run: str | None, store: Path | None, as_json: bool) -> None:
    """List the collections that have trash, or the hashes in the trash of one RUN."""
    with open_store(settings_for(store)) as handle:
        if run is not None:
            _check_run(handle, run)
            names = sorted(names_of(handle, run))
            if as_json:
                print_json({"run": run, "hashes": names})
            else:
                click.echo("\n".join(names))
            return
        found = runs(handle)
    if as_json:
        print_json(
            {"runs": [{"run": r.stamp, "time": utc(r.time_s), "files": r.files, "bytes": r.size_bytes} for r in found]}
        )
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("Run", "Time", "Files", "Size"):
        table.add_column(column, justify="right" if column in ("Files", "Size") else "left", no_wrap=True)
    for r in found:
        table.add_row(r.stamp, utc(r.time_s), f"{r.files:,}", format_size(r.size_bytes))
    stdout().print(table if found else "Trash is empty.")


@trash_group.command("restore")
@click.argument("what", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Everything in trash.")
@store_option
@json_option
@reporting
def trash_restore(what: tuple[str, ...], everything: bool, store: Path | None, as_json: bool) -> None:
    """Bring files back: each of WHAT is a hash, or a collection's RUN; or --all.

    Each file is verified on the way; a rotten one stays in trash. What comes back is as safe as a new file, for the grace:
    an application has to keep it by then, or the next collection takes it again.
    """
    warn_root()
    if bool(what) == everything:
        raise ConfigError("say what is to be restored: hashes, runs (see 'fsworker trash list'), or --all")
    restored: list[str] = []
    failed: list[str] = []
    with open_store(settings_for(store)) as handle, refusing(as_json=as_json):
        refuse_hold(handle)
        for name in _wanted(handle, what, everything=everything):
            (restored if restore(handle, name) else failed).append(name)
    if as_json:
        print_json({"restored": restored, "failed": failed})
    else:
        click.echo(f"{len(restored):,} restored")
        for missing in failed:
            click.echo(f"{missing}: not in trash, or rotten there", err=True)
    if failed:
        sys.exit(1)


def _wanted(handle: ObjectStore, what: tuple[str, ...], *, everything: bool) -> list[Hash]:
    names: dict[Hash, None] = {}
    for item in stamps(handle) if everything else what:
        if is_hash(item):
            names[Hash(item)] = None
        else:
            _check_run(handle, item)
            names.update(dict.fromkeys(names_of(handle, item)))
    return list(names)


def _check_run(handle: ObjectStore, run: str) -> None:
    if not is_stamp(run) or run not in stamps(handle):
        fail(f"{run!r} is neither a hash nor a run in trash; 'fsworker trash list' shows them", 1)


@trash_group.command("purge")
@click.option("--dry-run", is_flag=True, help="Say what would be deleted, and change nothing.")
@override_option
@store_option
@json_option
@reporting
def trash_purge(dry_run: bool, overrides: tuple[str, ...], store: Path | None, as_json: bool) -> None:
    """Delete for good what has been in trash for longer than FSWORKER_TRASH_RETENTION.

    Only what every application has said, in a keep-set read later than the trashing plus the grace, that it does not keep.
    Refuses for the same reasons as "fsworker gc".
    """
    warn_root()
    with opened(store, overrides) as collector:
        with refusing(as_json=as_json):
            done = purge_trash(collector, dry_run=dry_run)
        if not dry_run:
            note_last(collector.store, "purge", done.as_json())
    if as_json:
        print_json({"dry_run": dry_run, **done.as_json()})
        return
    verb = "would be deleted" if dry_run else "deleted"
    click.echo(f"{done.deleted:,} files ({format_size(done.deleted_bytes)}) {verb}")
    click.echo(f"{done.wanted:,} are kept by an application: the next collection restores them")
    click.echo(f"{done.young:,} are not due")
