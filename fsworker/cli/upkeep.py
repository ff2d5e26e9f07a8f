"""What the commands about keep-sets and collections share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.progress import BarColumn, Progress, TextColumn

from fsworker.broker.kv import KV
from fsworker.broker.names import Names
from fsworker.cli.common import open_store, print_json, settings_for, stderr
from fsworker.collection.basis import OVERRIDES
from fsworker.collection.collector import Collector
from fsworker.config import Settings
from fsworker.errors import CollectionRefusedError, ConfigError
from fsworker.host.state import find_redis_url
from fsworker.keepsets.reader import KeepReader
from fsworker.store.objects import ObjectStore

_NAMES = [*OVERRIDES, *(name.replace("_", "-") for name in OVERRIDES)]
override_option = click.option(
    "--override",
    "overrides",
    multiple=True,
    type=click.Choice(_NAMES),
    metavar="NAME",
    help=f"Run once though this would refuse: {', '.join(OVERRIDES)}. Repeat for more.",
)


def make_reader(store: ObjectStore, settings: Settings) -> KeepReader:
    """The keep-sets of a store. Raises :class:`ConfigError` when there is no Redis."""
    return KeepReader(KV(find_redis_url(settings, store.config.store_id)), Names(settings.namespace))


@contextmanager
def opened(path: Path | None, overrides: tuple[str, ...] = ()) -> Iterator[Collector]:
    """The store that is meant, and its keep-sets. Raises :class:`ConfigError`."""
    settings = settings_for(path)
    with open_store(settings) as store:
        yield Collector(store, make_reader(store, settings), settings, overrides)


@contextmanager
def refusing(*, as_json: bool) -> Iterator[None]:
    """Print a refusal, each reason with whom it concerns, and exit with 1."""
    try:
        yield
    except CollectionRefusedError as error:
        if as_json:
            print_json({"refused": [refusal.as_json() for refusal in error.refusals]})
        else:
            stderr.print("fsworker: refused; nothing was changed" if len(error.refusals) > 1 else "fsworker: refused")
            for refusal in error.refusals:
                stderr.print(f"  {refusal.message}", soft_wrap=True, markup=False)
        sys.exit(1)


@contextmanager
def progress_bar(*, quiet: bool) -> Iterator[Callable[[str, int, int], None] | None]:
    """A bar on standard error, where that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    columns = (TextColumn("{task.description:6}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, console=stderr, transient=True) as bar:
        task = bar.add_task("plan", total=256)
        yield lambda phase, done, total: bar.update(task, description=phase, completed=done, total=total)


def utc(seconds: float) -> str:
    """A time for people and for ``--json``: ``2026-11-22T19:30:05Z``."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: str) -> float:
    """Seconds since the epoch from such a number, or from ISO 8601 with a time zone. Raises :class:`ConfigError`."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        when = None
    if when is None or when.tzinfo is None:
        raise ConfigError(
            f"{text!r} is no time: give seconds since the epoch (date +%s), or ISO 8601 with a zone (date -Is)"
        )
    return when.timestamp()
