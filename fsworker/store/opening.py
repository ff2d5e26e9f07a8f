"""What a directory has to show to be opened as a store: its root, its configuration, its set-up. Changes nothing."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from fsworker.errors import ConfigError
from fsworker.store import layout
from fsworker.store.layout import Modes, StoreConfig
from fsworker.store.owners import join_command, user_name


def open_root(path: Path) -> int:
    """A descriptor of the root of the store at ``path``. Raises :class:`ConfigError` that names the fix."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; make a store with 'fsworker init {path} --app NAME'") from None
    except NotADirectoryError:
        raise ConfigError(f"{path} is not a directory; a store is one") from None
    except PermissionError:
        me = user_name(os.geteuid())
        raise ConfigError(
            f"{path} is closed to {me}; to read a store, be a member of its group: {_join_command(path, me)}, then log in again"
        ) from None


def _join_command(path: Path, user: str) -> str:
    """What makes ``user`` a member of a directory's group, for a message, as far as that can be seen."""
    try:
        return join_command(os.stat(path).st_gid, user)
    except OSError:
        return f"usermod -aG <group of {path}> {user}"


def read_config(root_fd: int, path: Path) -> StoreConfig:
    """Read ``FileStruct.json`` of the store at ``path``. Raises :class:`ConfigError` when there is no valid one."""
    where = path / layout.CONFIG_FILE
    try:
        fd = os.open(layout.CONFIG_FILE, os.O_RDONLY | os.O_CLOEXEC, dir_fd=root_fd)
    except FileNotFoundError:
        raise ConfigError(
            f"{path} has no {layout.CONFIG_FILE}, so it is no store; is it the right directory, is its disk mounted? "
            f"A new store is made with 'fsworker init {path} --app NAME'"
        ) from None
    except OSError as error:
        raise ConfigError(f"{where} cannot be read: {error.strerror}") from error
    with os.fdopen(fd, "rb") as stream:
        data = stream.read(1 << 20)
    try:
        return layout.parse_config(data.decode(), str(where))
    except UnicodeDecodeError:
        raise ConfigError(f"{where} is not UTF-8 text; restore it from a backup") from None


def detect_modes(root_fd: int, config: StoreConfig) -> Modes:
    """The set-up is read off ``Data``: writable by the group or not, setgid (ours) or not (an original database)."""
    try:
        fd = os.open(layout.DATA, os.O_PATH | os.O_CLOEXEC, dir_fd=root_fd)
    except FileNotFoundError:
        if not config.store_id:
            return layout.FILESTRUCT
        fd = os.dup(root_fd)
    except PermissionError:
        fd = os.dup(root_fd)
    try:
        mode = os.fstat(fd).st_mode
    finally:
        os.close(fd)
    if not mode & stat.S_IWGRP:
        return layout.WORKER_WRITES
    return layout.GROUP_WRITES if mode & stat.S_ISGID else layout.FILESTRUCT
