"""The command line. A command parses, calls, prints; what it calls is what the tasks call.

Exit codes: 0 done; 1 found problems, refused, or something is away for now; 2 usage or configuration.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, MutableMapping
from pathlib import Path

import click

import fsworker

_HOMES = {
    "init": "apps:init",
    "app": "apps:app_group",
    "up": "run:up",
    "demo": "demo:demo",
    "worker": "run:worker",
    "beat": "run:beat",
    "ingest": "ingest:ingest",
    "keep": "keep:keep_group",
    "gc": "gc:gc",
    "trash": "trash:trash_group",
    "error": "errors:error_group",
    "verify": "verify:verify",
    "why": "why:why",
    "hold": "hold:hold",
    "stats": "stats:stats",
    "doctor": "doctor:doctor",
    "health": "health:health",
    "acl": "acl:acl",
    "import": "import_:import_command",
    "export": "export:export",
}
"""Each command's module in this package, and its name there."""


class Commands(MutableMapping[str, click.Command]):
    """The commands by name, each loaded when it is asked for: ``health``, which is asked for all day, needs no Celery."""

    def __init__(self) -> None:
        self._loaded: dict[str, click.Command] = {}

    def __getitem__(self, name: str) -> click.Command:
        if name not in self._loaded:
            module, _, attribute = _HOMES[name].partition(":")
            self._loaded[name] = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
        return self._loaded[name]

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        raise TypeError("commands stay")

    def __contains__(self, name: object) -> bool:
        return name in self._loaded or name in _HOMES

    def __iter__(self) -> Iterator[str]:
        return iter({**_HOMES, **self._loaded})

    def __len__(self) -> int:
        return len({**_HOMES, **self._loaded})


@click.group(commands=Commands(), context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
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


def main() -> None:
    """The entry point of the script ``fsworker``."""
    cli.main(prog_name="fsworker", obj=process_start_s())


def process_start_s() -> float:
    """When this process was started, in seconds since boot (field 22 of ``/proc/self/stat``, proc_pid_stat(5)).

    That field is cut to a hundredth of a second; this is the end of that hundredth.
    """
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return (int(fields[19]) + 1) / os.sysconf("SC_CLK_TCK")
