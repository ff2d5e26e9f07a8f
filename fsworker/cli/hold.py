"""``fsworker hold``: no file is moved for a while."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from fsworker.cli.common import (
    json_option,
    open_store,
    print_json,
    reporting,
    settings_for,
    stderr,
    store_option,
    warn_root,
)
from fsworker.cli.upkeep import utc
from fsworker.collection.turn import quiesce
from fsworker.config import format_duration, parse_duration
from fsworker.errors import ConfigError
from fsworker.store.hold import MAX_HOLD_S, release, set_hold

_WAIT_S = 60.0


@click.command()
@click.argument("duration", metavar="DURATION|release")
@store_option
@json_option
@reporting
def hold(duration: str, store: Path | None, as_json: bool) -> None:
    """Move nothing for DURATION (2h, 90m): no collection, restore or purge. "release" ends it.

    \b
    fsworker hold 2h  &&  pg_dump …  &&  rsync -a /srv/files/ backup:files/  &&  fsworker hold release

    Uploads go on. When the command returns, the last move has ended. A hold ends by itself.
    """
    warn_root()
    with open_store(settings_for(store)) as handle:
        if duration == "release":
            was = release(handle)
            if as_json:
                print_json({"held": False, "was_held": was})
            else:
                click.echo("released" if was else "there was no hold")
            return
        held = set_hold(handle, _seconds(duration))
        quiet = quiesce(handle, _WAIT_S)
    if as_json:
        print_json({"held": True, "until": utc(held.until_s), "quiet": quiet})
    else:
        click.echo(f"nothing is moved until {utc(held.until_s)}")
    if not quiet:
        stderr.print(
            "fsworker: a collection or purge that was running has not ended yet; it stops at its next file. Wait, and "
            "give this command again"
        )
        sys.exit(1)


def _seconds(text: str) -> float:
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise ConfigError(f"{error}; or 'release'") from None
    if not 0 < seconds <= MAX_HOLD_S:
        raise ConfigError(f"a hold lasts more than nothing and at most {format_duration(MAX_HOLD_S)}")
    return seconds
