"""The command line. A command parses, calls, prints; what it calls is what the tasks call.

Exit codes: 0 done; 1 found problems, refused, or something is away for now; 2 usage or configuration.
"""

from __future__ import annotations

import click

import fsworker
from fsworker.cli.acl import acl
from fsworker.cli.apps import app_group, init
from fsworker.cli.demo import demo
from fsworker.cli.errors import error_group
from fsworker.cli.export import export
from fsworker.cli.gc import gc
from fsworker.cli.hold import hold
from fsworker.cli.import_ import import_command
from fsworker.cli.ingest import ingest
from fsworker.cli.keep import keep_group, process_start_s
from fsworker.cli.run import beat, up, worker
from fsworker.cli.stats import stats
from fsworker.cli.trash import trash_group
from fsworker.cli.verify import verify
from fsworker.cli.why import why


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(fsworker.__version__, prog_name="fsworker")
def cli() -> None:
    """Uploads in, hashes and thumbnails out: a Celery worker around a FileStruct store.

    \b
    A first try:      fsworker demo
    A store:          fsworker init /srv/files --app shop
    Everything else:  fsworker up /srv/files

    Settings come from the environment (FSWORKER_STORE, FSWORKER_REDIS_URL, …) and from the TOML file named by
    FSWORKER_CONFIG; the README lists them. Every reporting command takes --json. Exit codes: 0 done, 1 found problems or
    refused, 2 usage or configuration.
    """


for _command in (
    *(init, app_group, up, demo, worker, beat, ingest, keep_group, gc, trash_group, error_group),
    *(verify, why, hold, stats, acl, import_command, export),
):
    cli.add_command(_command)


def main() -> None:
    """The entry point of the script ``fsworker``."""
    cli.main(prog_name="fsworker", obj=process_start_s())
