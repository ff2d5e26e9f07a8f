"""Making a store, and registering applications in it.

Two set-ups. **The worker writes** (``writers="worker"``): a user of its own owns the store, its group reads (nginx, and
applications that read files themselves), each application writes to its own spool directory only::

    groupadd files; useradd --system --gid files fsworker         # the worker, and the store's group
    usermod -aG files www-data                                    # nginx reads Data
    groupadd shop; usermod -aG shop shopuser; usermod -aG shop fsworker
    install -d -o fsworker -g files /srv/files
    runuser -u fsworker -- fsworker init /srv/files --app shop:shop

**A group writes** (``writers="group"``), as in the original FileStruct, by mutual trust and without isolation: every
member of the store's group writes to it, whatever its umask::

    groupadd files; usermod -aG files shopuser; usermod -aG files bloguser
    install -d -g files -m 2775 /srv/files
"""

from __future__ import annotations

import grp
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fsworker import durable
from fsworker.errors import ConfigError, UploadRejectedError
from fsworker.model import check_app
from fsworker.spool.directory import SpoolDirectory
from fsworker.store import layout
from fsworker.store.handle import StoreHandle, explain
from fsworker.store.layout import GROUP_WRITES, WORKER_WRITES, Modes, StoreConfig
from fsworker.store.locks import store_lock
from fsworker.store.opening import read_config
from fsworker.store.owners import group_name, join_command, user_name
from fsworker.store.probe import check_filesystem

_SET_UPS = {"worker": WORKER_WRITES, "group": GROUP_WRITES}


def parse_app(text: str) -> tuple[str, str | None]:
    """Split ``NAME[:GROUP]``. Raises :class:`ConfigError` for a name that no application can have."""
    name, _, group = text.partition(":")
    try:
        return check_app(name), group or None
    except UploadRejectedError as error:
        raise ConfigError(str(error)) from error


def create_store(
    path: str | os.PathLike[str],
    *,
    apps: Iterable[str],
    grace_s: float = layout.DEFAULT_GRACE_S,
    writers: str = "worker",
    group: str | None = None,
) -> None:
    """Make a store at ``path`` for ``apps`` (each ``NAME`` or ``NAME:GROUP``).

    ``writers`` is ``worker`` (only the user who runs this writes) or ``group`` (every member of ``group``, as in
    FileStruct). ``group`` is the store's group, by default the directory's own. Running it again on a store adds what
    is missing and changes nothing else. Raises :class:`ConfigError`; a directory that holds anything else is refused,
    untouched. ``FileStruct.json`` is written last: a half-made store is not a store.
    """
    root = Path(os.path.abspath(path))
    if writers not in _SET_UPS:
        raise ConfigError(f"writers must be 'worker' or 'group', not {writers!r}")
    parsed = dict(parse_app(app) for app in apps)
    gid = None if group is None else find_group(group)
    try:
        _make_root(root)
        existing = os.listdir(root)
    except OSError as error:
        me = user_name(os.geteuid())
        fix = f". Let root make the directory: install -d -o {me} {root}" if isinstance(error, PermissionError) else ""
        raise ConfigError(f"cannot make a store at {root}: {error.strerror}{fix}") from error
    if existing and layout.CONFIG_FILE not in existing and not _looks_half_made(existing):
        raise ConfigError(f"{root} is not empty and not a store; choose an empty directory")
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if layout.CONFIG_FILE not in existing:
            _make_directories(fd, root, _SET_UPS[writers], gid)
            config = StoreConfig(store_id=layout.new_store_id(), apps={}, grace_s=grace_s)
            durable.replace_small_file(layout.CONFIG_FILE, config.dump().encode(), fd, 0o644)
    except PermissionError as error:
        raise ConfigError(
            f"cannot make a store at {root}: {error.strerror}. Run as the user the worker will run as, who must own "
            f"{root} and be a member of group {group or group_name(os.stat(root).st_gid)}"
        ) from error
    finally:
        os.close(fd)
    with StoreHandle(root) as handle:
        check_filesystem(handle)
        with handle.errors("Making what the store lacks"):
            handle.prepare()
        add_apps(handle, parsed)


def add_apps(handle: StoreHandle, apps: Mapping[str, str | None]) -> list[str]:
    """Register applications (name → group of the spool directory, or ``None``) and make their spool directories.

    Applications that are registered already keep their entry. Returns the names that are new. The spool directory is
    made first: an application that is registered can be heard.
    """
    groups = {name: None if group is None else find_group(group) for name, group in apps.items()}
    try:
        handle.ensure_directory(layout.SPOOL, handle.modes.spool)
        for name, gid in groups.items():
            _make_spool(handle, name, gid)
        with editing_config(handle) as edit:
            known = dict(edit.config.apps or {})
            new = [name for name in apps if name not in known]
            edit.config = edit.config.with_apps({**{name: {} for name in new}, **known})
        for name in apps:
            _note_store(handle, name)
    except OSError as error:
        raise explain(error, "Registering applications", handle) from error
    return new


class ConfigEdit:
    """The configuration inside :func:`editing_config`; assign to ``config``."""

    def __init__(self, config: StoreConfig) -> None:
        self.config = config


@contextmanager
def editing_config(handle: StoreHandle) -> Iterator[ConfigEdit]:
    """Change ``FileStruct.json`` atomically and durably; one editor at a time, others get :class:`ConfigError`."""
    handle.ensure_directory(layout.LOCK, handle.modes.private)
    with store_lock(handle.fd, "config", handle.modes.lock_file) as obtained:
        if not obtained:
            raise ConfigError(f"{handle.root / layout.CONFIG_FILE} is being changed by another command; try again")
        before = read_config(handle.fd, handle.root)
        edit = ConfigEdit(before)
        yield edit
        if edit.config != before:
            durable.replace_small_file(layout.CONFIG_FILE, edit.config.dump().encode(), handle.fd, 0o644)
        handle.reload()


def find_group(name: str) -> int:
    """The gid of a group named or numbered. Raises :class:`ConfigError` that tells how to make it."""
    try:
        return int(name) if name.isdigit() else grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigError(f"there is no group {name!r}; make it with: groupadd {name}") from None


def _make_root(root: Path) -> None:
    """Make the directory and those above it, each synced into its parent; what exists is left as it is."""
    missing = [root, *root.parents]
    missing = missing[: next(number for number, path in enumerate(missing) if path.exists())]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        durable.fsync_path(str(path.parent), -1)


def _looks_half_made(names: Iterable[str]) -> bool:
    ours = {layout.DATA, layout.TEMP, layout.ERROR, layout.TRASH, layout.SPOOL, layout.LOCK}
    return all(name in ours or (name.startswith(".") and name.endswith(".new")) for name in names)


def _make_directories(fd: int, root: Path, modes: Modes, gid: int | None) -> None:
    if gid is not None:
        os.fchown(fd, -1, gid)
    os.fchmod(fd, modes.root)
    private = (layout.TEMP, layout.ERROR, layout.LOCK)
    tree = dict.fromkeys(private, modes.private) | {
        layout.DATA: modes.data,
        layout.TRASH: modes.data,
        layout.SPOOL: modes.spool,
    }
    store_gid = os.fstat(fd).st_gid
    for name, mode in tree.items():
        try:
            os.mkdir(name, 0o700, dir_fd=fd)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                raise ConfigError(f"{root / name} is in the way: it is not a directory") from None
        os.chown(name, -1, store_gid, dir_fd=fd, follow_symlinks=False)
        os.chmod(name, mode, dir_fd=fd)
    for number in range(256):
        lock = os.open(
            f"{layout.LOCK}/{number:02x}", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, modes.lock_file, dir_fd=fd
        )
        os.fchmod(lock, modes.lock_file)
        os.close(lock)
    os.fsync(fd)


def _make_spool(handle: StoreHandle, app: str, gid: int | None) -> None:
    name = f"{layout.SPOOL}/{app}"
    handle.make_directory(name, handle.modes.spool_app)
    if gid is None:
        return
    try:
        os.chown(name, -1, gid, dir_fd=handle.fd, follow_symlinks=False)
    except PermissionError:
        me = user_name(os.geteuid())
        raise ConfigError(
            f"{handle.root / name} cannot be given to group {group_name(gid)}: {me} is not a member. "
            f"Run: {join_command(gid, me)}, log in again, and repeat"
        ) from None
    os.chmod(name, handle.modes.spool_app, dir_fd=handle.fd)  # chown clears setgid


def _note_store(handle: StoreHandle, app: str) -> None:
    """Tell the application's clients, who may see nothing but their spool directory, which store this is."""
    with SpoolDirectory(handle.root / layout.SPOOL / app, app) as spool:
        if spool.read_store_id() != handle.config.store_id or not spool.has_own_note():
            spool.write_store_note(handle.config.store_id)
