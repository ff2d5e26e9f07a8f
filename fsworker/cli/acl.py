"""``fsworker acl``: the Redis users of an installation."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

import click

from fsworker.broker.acl import RedisUser, acl_file, all_users
from fsworker.broker.names import Names
from fsworker.cli.common import json_option, open_store, print_json, reporting, settings_for, store_option
from fsworker.errors import ConfigError


@click.command()
@store_option
@click.option(
    "--passwords",
    type=click.Path(path_type=Path, file_okay=False),
    help="A directory of one file for each user, named like him; those that are missing are made.",
)
@json_option
@reporting
def acl(store: Path | None, passwords: Path | None, as_json: bool) -> None:
    """Print the Redis users that the workers and the registered applications need, as an ACL file.

    \b
    fsworker acl --passwords /etc/fsworker/redis > /etc/redis/users.acl
    redis-cli --user fsworker-admin --askpass ACL LOAD

    The first time, restart Redis instead, with "aclfile /etc/redis/users.acl" in its configuration: that also ends the
    connections of those who needed no password until then.

    The file has the passwords' SHA-256 only. Without --passwords nobody can log in with it. Connects to nothing. Each
    process gets a URL of its own: redis://fsworker-app-shop:PASSWORD@host/0 for application shop, fsworker-ingest,
    fsworker-maintenance and fsworker-beat for the workers and beat.
    """
    settings = settings_for(store)
    with open_store(settings) as handle:
        users = all_users(Names(settings.namespace), handle.config.app_names)
    known = {} if passwords is None else _passwords(passwords, users)
    if as_json:
        print_json([{"name": user.name, "purpose": user.purpose, "rules": user.rules} for user in users])
    else:
        click.echo(acl_file(users, known), nl=False)


def _passwords(directory: Path, users: Sequence[RedisUser]) -> dict[str, str]:
    """Each user's password from his file; 256 random bits into a new one, which only we may read."""
    known: dict[str, str] = {}
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        for user in users:
            path = directory / user.name
            if not path.exists():
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                with open(fd, "w", encoding="ascii") as file:
                    file.write(secrets.token_urlsafe(32) + "\n")
            known[user.name] = path.read_text(encoding="utf-8").strip()
            if len(known[user.name]) < 16:
                raise ConfigError(f"the password in {path} is too short; remove the file, and a new one is made")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the passwords in {directory} cannot be read or made: {error}") from error
    return known
