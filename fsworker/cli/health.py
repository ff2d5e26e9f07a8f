"""``fsworker health``: is the worker alive? Asked every few seconds, so it imports next to nothing."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import NoReturn

import click

from fsworker.host.alive import MAX_AGE_S, ROLES, silent_for_s


@click.command()
@click.option("--role", type=click.Choice(ROLES), help="Default: FSWORKER_ROLE; else both have to be alive.")
@click.option("--max-age", default="10s", show_default=True, help="How old the last sign of life may be.")
@click.option(
    "--store", type=click.Path(), help="The store whose workers are meant, where FSWORKER_STATE_DIR is not set."
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def health(role: str | None, max_age: str, store: str | None, as_json: bool) -> None:
    """Say whether the workers on this host are alive: connected to Redis, and turning. One line; exit 0 or 1.

    Looks at nothing but the age of a file in FSWORKER_STATE_DIR, which a worker touches every second. It stays alive
    while it works, and does not while Redis is away: give it some tries before you start it again.
    """
    roles = [role] if role else [os.environ["FSWORKER_ROLE"]] if os.environ.get("FSWORKER_ROLE") else list(ROLES)
    if set(roles) - set(ROLES):
        _end(f"fsworker: FSWORKER_ROLE is {roles[0]!r}; write ingest or maintenance", 2)
    limit_s = MAX_AGE_S if max_age == "10s" else _seconds(max_age)
    directory = _state_directory(store)
    try:
        silent = {name: silent_for_s(directory, name) for name in roles}
    except OSError as error:
        _end(f"not alive: {directory} cannot be looked at: {error.strerror}", 1)
    alive = all(age_s is not None and age_s <= limit_s for age_s in silent.values())
    if as_json:
        _end(json.dumps({"alive": alive, "silent_for": silent, "state_dir": str(directory)}), 0 if alive else 1)
    said = ", ".join(
        f"{name}: never seen in {directory}" if age_s is None else f"{name}: last sign {age_s:.1f} s ago"
        for name, age_s in silent.items()
    )
    _end(f"{'alive' if alive else 'not alive'} ({said})", 0 if alive else 1)


def _state_directory(store: str | None) -> Path:
    """As :func:`fsworker.host.state.state_directory` finds it; straight from the environment where it is named there."""
    named = os.environ.get("FSWORKER_STATE_DIR")
    if named:
        return Path(os.path.abspath(os.path.expanduser(named)))
    # Imported here and nowhere else in fsworker, because settings take ten times as long to load as all the rest of this
    # command, and containers and units, which ask every few seconds, name the directory.
    from fsworker.config import load_settings
    from fsworker.errors import ConfigError
    from fsworker.host.state import state_directory
    from fsworker.store.handle import StoreHandle

    try:
        settings = load_settings(store=store)
        if settings.state_dir is not None:
            return settings.state_dir
        if settings.store is None:
            raise ConfigError(
                "no state directory: set FSWORKER_STATE_DIR, which says where workers tell, or FSWORKER_STORE, or give --store"
            )
        with StoreHandle(settings.store) as handle:
            return state_directory(settings, handle.config.store_id)
    except ConfigError as error:
        _end(f"fsworker: {error}", 2)


def _seconds(text: str) -> float:
    from fsworker.config import parse_duration  # see above

    try:
        return parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--max-age") from None


def _end(said: str, code: int) -> NoReturn:
    click.echo(said, err=code == 2)
    sys.exit(code)
