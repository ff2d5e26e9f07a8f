"""What all commands share: settings, the store, printing, and errors as exit codes."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar

import click
from rich.console import Console
from rich.markup import escape

from fsworker.config import Settings, load_settings
from fsworker.errors import ConfigError, FSWorkerError
from fsworker.store.objects import ObjectStore
from fsworker.store.owners import user_name

P = ParamSpec("P")
T = TypeVar("T")

json_option = click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
store_option = click.option(
    "--store", type=click.Path(path_type=Path, readable=False), help="The store's directory (default: FSWORKER_STORE)."
)

stderr = Console(stderr=True, highlight=False)


def stdout() -> Console:
    """A console on standard output; wide where that is no terminal, so that a pipe sees whole lines."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 160)


def fail(message: str, code: int) -> NoReturn:
    """Say what is wrong on standard error and exit."""
    click.echo(f"fsworker: {message}", err=True)
    sys.exit(code)


def reporting(command: Callable[P, T]) -> Callable[P, T]:
    """Turn errors into one clear line and an exit code: 2 for configuration and permissions, 1 for everything else."""

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except ConfigError as error:
            fail(str(error), 2)
        except FSWorkerError as error:
            fail(str(error), 1)
        except BrokenPipeError:
            # Whoever read our output has seen enough; nothing is wrong, and nothing more can be said.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except PermissionError as error:
            fail(f"{error}: {user_name(os.geteuid())} may not do that; run this as the store's user", 2)
        except OSError as error:
            fail(str(error), 1)

    return wrapper


def settings_for(store: Path | None = None, **overrides: Any) -> Settings:
    """The settings, with what the command line says on top."""
    return load_settings(store=store, **overrides)


def open_store(settings: Settings) -> ObjectStore:
    """The store that the settings name. Raises :class:`ConfigError`."""
    if settings.store is None:
        raise ConfigError("no store: set FSWORKER_STORE, or give --store")
    return ObjectStore(settings.store, durability=settings.durability, grace_s=settings.grace)


def print_json(tree: object) -> None:
    """One JSON document on standard output. A file name that is no UTF-8 becomes what JSON has for it: ``\\udcff``."""
    click.echo(json.dumps(tree, indent=2, ensure_ascii=False).encode(errors="backslashreplace"))


def plain(text: str) -> str:
    """``text`` for a table: no markup, nothing that moves the cursor, nothing that cannot be written."""
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return escape(shown)


def warn_root() -> None:
    """Warn that root is running this: what it makes belongs to root."""
    if os.geteuid() == 0:
        stderr.print(
            "[yellow]fsworker: running as root; files will belong to root. Use a user of its own (see README, "
            "“Two set-ups”)[/yellow]",
            soft_wrap=True,
        )


def program() -> str:
    """How this program is called from this shell: ``fsworker`` where that is on PATH, else its path."""
    here = Path(sys.argv[0])
    if here.name != "fsworker" or shutil.which("fsworker") == str(here.absolute()):
        return "fsworker"
    directory = Path.cwd()
    if here.is_absolute() and directory == Path("/"):
        return str(here)
    with contextlib.suppress(ValueError):
        return str(here.absolute().relative_to(directory))
    return str(here)


def format_size(size: int) -> str:
    """Bytes for people: ``352.7 kB``."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
