"""What must be right before a worker starts: found at once, with a fix, instead of in the first job at night."""

from __future__ import annotations

import os

from fsworker.errors import ConfigError
from fsworker.store import layout
from fsworker.store.objects import ObjectStore
from fsworker.store.owners import user_name
from fsworker.store.probe import check_filesystem


def check_worker(store: ObjectStore) -> None:
    """Check that this process can write to the store and that the spools are on its filesystem.

    Raises :class:`ConfigError` that names the directory and the fix.
    """
    directories = [layout.DATA, layout.TEMP, layout.ERROR, layout.TRASH, layout.LOCK]
    for name in directories:
        _check_writable(store, name)
    check_filesystem(store)
    device = os.fstat(store.fd).st_dev
    for name in [*directories, *(f"{layout.SPOOL}/{app}" for app in store.config.app_names)]:
        try:
            status = os.stat(name, dir_fd=store.fd)
        except FileNotFoundError:
            raise ConfigError(
                f"{store.root / name} is missing; make it again with: fsworker init {store.root} "
                f"{' '.join(f'--app {app}' for app in store.config.app_names)}"
            ) from None
        if status.st_dev != device:
            raise ConfigError(
                f"{store.root / name} is on another filesystem than {store.root}; files are moved by rename, so all of the "
                f"store and its spool must be on one: mount the filesystem at {store.root} itself"
            )
    for app in store.config.app_names:
        _check_writable(store, f"{layout.SPOOL}/{app}")


def _check_writable(store: ObjectStore, name: str) -> None:
    if os.access(name, os.R_OK | os.W_OK | os.X_OK, dir_fd=store.fd, effective_ids=True):
        return
    try:
        status = os.stat(name, dir_fd=store.fd)
    except OSError:
        return  # reported as missing, with its fix
    me = user_name(os.geteuid())
    if name.startswith(layout.SPOOL):
        fix = f"add {me} to its group (usermod -aG <group> {me}) and start again"
    else:
        fix = f"run the worker as {user_name(status.st_uid)}, or give the store to {me}: chown -R {me} {store.root}"
    raise ConfigError(
        f"{me} cannot write to {store.root / name} (mode {status.st_mode & 0o7777:04o}, of {user_name(status.st_uid)}); {fix}"
    )
