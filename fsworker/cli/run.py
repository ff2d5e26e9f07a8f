"""``fsworker up``, ``worker`` and ``beat``: processes that stay."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path

import click
from celery import Celery
from celery.platforms import SecurityWarning

from fsworker.celery import make_app
from fsworker.cli.common import json_option, open_store, reporting, settings_for, stderr, store_option, warn_root
from fsworker.config import Settings
from fsworker.host.checks import check_worker
from fsworker.host.state import make_state_directory, only_one
from fsworker.host.supervise import Supervisor
from fsworker.host.up import Stack, stack


@click.command()
@click.argument("store", type=click.Path(path_type=Path, readable=False), required=False)
@click.option("--concurrency", type=int, help="Processes of the ingest worker (default: one a core).")
@json_option
@reporting
def up(store: Path | None, concurrency: int | None, as_json: bool) -> None:
    """Run everything a small host needs, in the foreground: Redis, workers, beat.

    Redis is an embedded one unless FSWORKER_REDIS_URL is set. What dies is started again. Ctrl-C (or SIGTERM) stops
    everything in order; a second one at once. With --json, one line of JSON on standard output says when all is ready.
    """
    warn_root()
    with stack(settings_for(store, concurrency=concurrency)) as planned:
        supervisor = Supervisor(planned.children, _say)

        def ready() -> None:
            planned.sweep_at_once()
            _announce(planned, supervisor.pids, as_json=as_json)

        sys.exit(supervisor.run(ready))


@click.command()
@click.option("--role", type=click.Choice(["ingest", "maintenance"]), help="Default: FSWORKER_ROLE, else ingest.")
@click.option("--concurrency", type=int, help="Jobs at the same time (default: one a core; maintenance: one).")
@click.option(
    "--pool",
    type=click.Choice(["prefork", "threads", "solo"]),
    default="prefork",
    show_default=True,
    help="Only prefork has time limits; with solo there is no sign of life (fsworker health) during a job.",
)
@click.option("--loglevel", default="INFO", show_default=True)
@store_option
@reporting
def worker(role: str | None, concurrency: int | None, pool: str, loglevel: str, store: Path | None) -> None:
    """Run one Celery worker: for applications (ingest) or for beat (maintenance).

    The same as "celery -A fsworker worker" with FSWORKER_ROLE set, for those who run Celery their own way.
    """
    settings = settings_for(store, role=role, concurrency=concurrency)
    with open_store(settings) as handle:
        check_worker(handle)
    app = _celery(settings)
    warnings.filterwarnings("ignore", category=SecurityWarning)  # of running as root: warned of once, in our own words
    name = f"--hostname=fsworker-{settings.role}-{os.getpid()}@%h"
    processes = [f"--concurrency={concurrency}"] if concurrency else []
    app.worker_main(["--quiet", "worker", f"--pool={pool}", f"--loglevel={loglevel}", name, *processes])


@click.command()
@click.option("--loglevel", default="INFO", show_default=True)
@store_option
@reporting
def beat(loglevel: str, store: Path | None) -> None:
    """Run the clock that starts maintenance. One for a host and store; a second one elsewhere does no harm."""
    settings = settings_for(store, role="maintenance")
    with open_store(settings) as handle:
        directory = make_state_directory(settings, handle.config.store_id)
    app = _celery(settings)
    # A lock, not a pid file: what a killed beat leaves behind never stops the next one.
    with only_one(directory / "beat.lock", "a beat"):
        app.start(["--quiet", "beat", f"--loglevel={loglevel}", f"--schedule={directory / 'beat-schedule'}"])


def _celery(settings: Settings) -> Celery:
    """The app for these settings, which its processes read from the environment."""
    os.environ["FSWORKER_ROLE"] = settings.role
    if settings.store is not None:
        os.environ["FSWORKER_STORE"] = str(settings.store)
    return make_app(settings)


def _say(line: str) -> None:
    stderr.print(f"fsworker: {line}", soft_wrap=True, markup=False)


def _announce(planned: Stack, pids: dict[str, int], *, as_json: bool) -> None:
    where = planned.describe()
    if as_json:
        click.echo(json.dumps({**where, "ready": True, "pids": pids}))
        return
    lines = [
        f"Store    {where['store']}",
        *(f"Spool    {path}  (application {app})" for app, path in where["spool"].items()),
        f"Redis    {where['redis_url']}  ({where['redis']})",
        f"State    {where['state_dir']}",
        "Stop     Ctrl-C",
    ]
    _say("everything is running")
    for line in lines:
        stderr.print(f"  {line}", soft_wrap=True, markup=False)
