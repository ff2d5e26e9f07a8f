"""``fsworker init`` and ``fsworker app``: making a store, and registering applications."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import click

from fsworker.cli.common import (
    fail,
    format_size,
    json_option,
    open_store,
    print_json,
    program,
    reporting,
    settings_for,
    stdout,
    store_option,
    warn_root,
)
from fsworker.cli.upkeep import make_reader
from fsworker.collection.retire import check_registered, only_kept_by, retire
from fsworker.config import Settings, format_duration, parse_duration
from fsworker.errors import ConfigError, RedisUnavailableError
from fsworker.keepsets.form import BrokenKeepSetError
from fsworker.store.create import add_apps, create_store, parse_app
from fsworker.store.handle import StoreHandle
from fsworker.store.layout import GROUP_WRITES, SPOOL
from fsworker.store.objects import ObjectStore
from fsworker.store.owners import group_name, user_name


class Duration(click.ParamType[float]):
    """``90s``, ``24h``, ``30d``."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds."""
        try:
            return parse_duration(value) if isinstance(value, str) else float(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command()
@click.argument("store", type=click.Path(path_type=Path, readable=False))
@click.option(
    "--app", "apps", multiple=True, required=True, metavar="NAME[:GROUP]",
    help="An application of the store, and the group of its spool directory. Repeat for more.",
)  # fmt: skip
@click.option(
    "--grace",
    type=Duration(),
    default="24h",
    show_default=True,
    help="How long a new file is safe though no keep-set has it.",
)
@click.option(
    "--writers", type=click.Choice(["worker", "group"]), default="worker", show_default=True,
    help="Who writes to the store: only this user, or every member of its group (FileStruct's way, no isolation).",
)  # fmt: skip
@click.option("--group", help="The store's group, which reads it (default: the directory's own).")
@click.option("--owner", help="For root: the user that the worker will run as, who will own the store.")
@json_option
@reporting
def init(
    store: Path, apps: tuple[str, ...], grace: float, writers: str, group: str | None, owner: str | None, as_json: bool
) -> None:
    """Make a store at STORE, or add to one what it lacks.

    \b
    fsworker init /srv/files --app shop --app blog
    sudo fsworker init /srv/files --owner fsworker --group www-data --app shop:shop
    """
    settings = settings_for()
    if owner is not None:
        _become(owner, store, group)
    else:
        warn_root()
    create_store(store, apps=apps, grace_s=grace, writers=writers, group=group)
    _report(store, settings, as_json)


@click.group("app")
def app_group() -> None:
    """Register applications with a store, and list them."""


@app_group.command("add")
@click.argument("names", nargs=-1, required=True, metavar="NAME[:GROUP]...")
@store_option
@json_option
@reporting
def app_add(names: tuple[str, ...], store: Path | None, as_json: bool) -> None:
    """Register applications; a running worker notices within seconds."""
    settings = settings_for(store)
    with open_store(settings) as handle:
        add_apps(handle, dict(parse_app(name) for name in names))
        _report(handle.root, settings, as_json)


@app_group.command("list")
@store_option
@json_option
@reporting
def app_list(store: Path | None, as_json: bool) -> None:
    """List the registered applications and their spool directories."""
    settings = settings_for(store)
    with open_store(settings) as handle:
        _report(handle.root, settings, as_json)


@app_group.command("retire")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask for the name again.")
@store_option
@json_option
@reporting
def app_retire(name: str, yes: bool, store: Path | None, as_json: bool) -> None:
    """Take an application from the registry: its references count no longer.

    Says first what would become collectable, and asks for the name again. Its spool directory stays.
    """
    settings = settings_for(store)
    with open_store(settings) as handle:
        check_registered(handle, name)
        consequence = _consequence(handle, settings, name)
        if not yes:
            click.echo(f"{name}: {consequence}", err=True)
            if click.prompt("Type its name again to retire it", err=True) != name:
                fail("that was another name; nothing was changed", 1)
        retire(handle, name)
        if as_json:
            print_json({"retired": name, "consequence": consequence, "apps": handle.config.app_names})
            return
        click.echo(f"{name} is retired: {consequence}")
        click.echo(
            f"Its spool directory {handle.root / SPOOL / name} stays; remove it when nobody writes there any more"
        )


def _consequence(handle: ObjectStore, settings: Settings, app: str) -> str:
    """What becomes collectable, for people."""
    try:
        only = only_kept_by(handle, make_reader(handle, settings), app)
    except BrokenKeepSetError:
        return "it has no keep-set, so nobody can say which files only it refers to; all of them become collectable"
    except (ConfigError, RedisUnavailableError):
        return "Redis is away, so nobody can say which files only it refers to; all of them become collectable"
    last = "; no application is left then, and nothing is collected" if handle.config.app_names == [app] else ""
    return f"{only.files:,} stored files ({format_size(only.size_bytes)}) are kept by it alone and become collectable{last}"


def _become(owner: str, store: Path, group: str | None) -> None:
    """As root: make the directory, give it to ``owner``, and go on as ``owner``."""
    try:
        user = pwd.getpwnam(owner)
    except KeyError:
        raise ConfigError(f"there is no user {owner!r}; make it with: useradd --system --user-group {owner}") from None
    if os.geteuid() != 0:
        if os.geteuid() == user.pw_uid:
            return
        raise ConfigError("--owner needs root; or run this as that user")
    store.mkdir(parents=True, exist_ok=True)
    if store.stat().st_uid != user.pw_uid:
        if any(store.iterdir()):
            raise ConfigError(
                f"{store} belongs to {user_name(store.stat().st_uid)} and is not empty; give it to {owner} first"
            )
        os.chown(store, user.pw_uid, user.pw_gid)
    os.initgroups(owner, user.pw_gid)
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
    del group  # a member of it, or create_store says what to do


def _report(path: Path, settings: Settings, as_json: bool) -> None:
    with StoreHandle(path) as handle:
        spools = {app: str(handle.root / SPOOL / app) for app in handle.config.app_names}
        if as_json:
            print_json(
                {
                    "store": str(handle.root),
                    "id": handle.config.store_id,
                    "grace": format_duration(handle.config.grace_s),
                    "writers": "group" if handle.modes is GROUP_WRITES else "worker",
                    "apps": {app: {"spool": spool} for app, spool in spools.items()},
                }
            )
            return
        out = stdout()
        out.print(
            f"Store    {handle.root}  (grace {format_duration(handle.config.grace_s)})", soft_wrap=True, markup=False
        )
        out.print(f"Owner    {user_name(handle.owner_uid)}:{group_name(handle.gid)}", markup=False)
        for app, spool in spools.items():
            gid = os.stat(spool).st_gid
            out.print(
                f"App      {app}: writes to {spool} (members of group {group_name(gid)})", soft_wrap=True, markup=False
            )
        # Who has a Redis of his own starts the processes by systemd or in containers, and "up" would be one more of each.
        next_step = f"{program()} up {handle.root}"
        if settings.redis_url:
            next_step = f"start workers and beat, then: {program()} doctor --store {handle.root}"
        out.print(f"Next     {next_step}", soft_wrap=True, markup=False)
