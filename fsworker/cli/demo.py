"""``fsworker demo``: the whole thing, for real, in half a minute."""

from __future__ import annotations

import contextlib
import importlib.resources
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from fsworker.cli.common import json_option, print_json, program, reporting, stderr, stdout
from fsworker.cli.ingest import Finished, print_table, wait_for
from fsworker.client import Client
from fsworker.config import Settings, load_settings
from fsworker.copying import hash_descriptor
from fsworker.errors import ConfigError
from fsworker.host.supervise import Supervisor
from fsworker.host.up import Stack, stack
from fsworker.store.facade import Store
from fsworker.thumbnails.upright import is_upright

_APP = "demo"
_THUMBNAILS = {"small": "100x100", "hero": "640x"}
_TIMEOUT_S = 60.0


@click.command()
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where to make the store (default: a new one).",
)
@json_option
@reporting
def demo(directory: Path | None, as_json: bool) -> None:
    """Ingest a handful of photographs through a real worker and a real Redis, and check every result.

    Makes a new store, runs what "fsworker up" runs, and leaves the store to look at. Needs no settings and no root.
    """
    root = Path(tempfile.mkdtemp(prefix="fsworker-demo-")) if directory is None else directory
    settings = _settings(root)
    if settings.store is not None and settings.store.exists() and any(settings.store.iterdir()):
        raise ConfigError(f"{settings.store} is not empty; give --directory a new one")
    store = Store.create(root / "store", apps=[_APP])
    with store, _photographs() as photographs:
        _say(f"A new store in {store.root}; starting Redis, two workers and beat …")
        with stack(settings, log_dir=_made(root / "log")) as planned, Supervisor(planned.children, lambda _line: None):
            finished = _ingest(planned, photographs)
        problems = check(store, photographs, finished)
        _report(root, store, finished, problems, as_json=as_json)
    if problems:
        sys.exit(1)


def _settings(root: Path) -> Settings:
    """The demo's own: what the environment says of another store, or of its Redis, must not touch it."""
    return load_settings(environ={}, store=root / "store", state_dir=root / "state")


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory


@contextlib.contextmanager
def _photographs() -> Iterator[dict[str, Path]]:
    """The shipped photographs by name, and one of them a second time under another name."""
    with contextlib.ExitStack() as held:
        found: dict[str, Path] = {}
        for item in sorted(
            importlib.resources.files("fsworker").joinpath("demo_photos").iterdir(), key=lambda i: i.name
        ):
            if not item.name.endswith(".md"):
                found[item.name] = held.enter_context(importlib.resources.as_file(item))
        yield {**found, "people-again.jpg": found["people.jpg"]}


def _ingest(planned: Stack, photographs: dict[str, Path]) -> list[Finished]:
    settings = planned.settings.model_copy(update={"redis_url": planned.redis_url})
    with Client(_APP, settings=settings) as client:
        started_s = time.monotonic()
        *first, again = photographs
        jobs = {name: client.ingest(photographs[name], thumbnails=_THUMBNAILS) for name in first}
        finished = wait_for(jobs, started_s, _TIMEOUT_S)
        # Sent when its twin is stored, so that the verdict "duplicate" is certain.
        started_s = time.monotonic()
        return finished + wait_for(
            {again: client.ingest(photographs[again], thumbnails=_THUMBNAILS)}, started_s, _TIMEOUT_S
        )


def check(store: Store, photographs: dict[str, Path], finished: list[Finished]) -> list[str]:
    """Check every result against the photographs themselves; what is wrong, in words."""
    problems = []
    for item in finished:
        result = item.result
        if result is None:
            problems.append(f"{item.file}: {item.state}: {item.error}")
            continue
        if result.hash != _sha1(photographs[item.file]):
            problems.append(f"{item.file}: its hash is not its SHA-1")
        problems += [f"{item.file}: {name}: {why}" for name, why in result.failed_thumbnails.items()]
        for name in result.hashes:
            if name not in store:
                problems.append(f"{item.file}: {name} is not in the store")
            elif _sha1(store.path(name)) != name:
                problems.append(f"{item.file}: stored file {name} does not hash to its name")
        for label, thumbnail in result.thumbnails.items():
            if thumbnail.hash in store and not is_upright(photographs[item.file], store.path(thumbnail.hash)):
                problems.append(f"{item.file}: thumbnail {label} is not upright")
        if result.duplicate != (item.file == "people-again.jpg"):
            problems.append(f"{item.file}: reported as {'duplicate' if result.duplicate else 'new'}")
    return problems


def _sha1(path: Path) -> str:
    with path.open("rb") as stream:
        return hash_descriptor(stream.fileno()).sha1


def _report(root: Path, store: Store, finished: list[Finished], problems: list[str], *, as_json: bool) -> None:
    if as_json:
        tree: dict[str, Any] = {
            "store": str(store.root),
            "directory": str(root),
            "results": [item.as_json() for item in finished],
            "problems": problems,
        }
        print_json(tree)
        return
    print_table(finished)
    for problem in problems:
        stderr.print(f"fsworker: {problem}", soft_wrap=True, markup=False)
    if problems:
        stderr.print(f"fsworker: the workers' logs are in {root / 'log'}", soft_wrap=True, markup=False)
        return
    out = stdout()
    out.print("\n[green]All checked:[/green] each stored file hashes to its name, each thumbnail opens and is upright.")
    out.print(f"\nThe store     {store.root}", soft_wrap=True, markup=False)
    first = finished[0].result
    if first is not None:
        out.print(f"A thumbnail   {store.path(first.thumbnails['hero'].hash)}", soft_wrap=True, markup=False)
    out.print("Try next      " + f"{program()} up {store.root}   (in one terminal)", soft_wrap=True, markup=False)
    out.print(
        f"              {program()} ingest --store {store.root} --app {_APP} --thumbnail small=200x200 YOUR.jpg",
        soft_wrap=True,
        markup=False,
    )
    out.print(f"Tidy up       rm -r {root}", soft_wrap=True, markup=False)


def _say(text: str) -> None:
    stderr.print(text, soft_wrap=True, markup=False)
