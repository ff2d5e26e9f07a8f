"""The state directory, and finding a running ``fsworker up`` through it.

It holds what belongs to this host and not to the store: the embedded server's data, beat's schedule, heartbeats. There is
one for each store, so two stores on one host never meet.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fsworker.config import Settings
from fsworker.errors import ConfigError
from fsworker.host.embedded import running_url

UP_FILE = "up.json"
REDIS_DIRECTORY = "redis"


def state_directory(settings: Settings, store_id: str) -> Path:
    """Where the state of a store's workers is: ``FSWORKER_STATE_DIR``, else under ``$XDG_STATE_HOME``. Not made here.

    Raises :class:`ConfigError` where there is no home directory.
    """
    if settings.state_dir is not None:
        return settings.state_dir
    try:
        home = os.environ.get("XDG_STATE_HOME") or str(Path("~/.local/state").expanduser())
    except RuntimeError:  # a user without an entry in the password file, and without $HOME
        raise ConfigError("this user has no home directory to keep state in; set FSWORKER_STATE_DIR") from None
    return Path(home) / "fsworker" / (store_id or "no-id")


def make_state_directory(settings: Settings, store_id: str) -> Path:
    """:func:`state_directory`, made if need be. Raises :class:`ConfigError`."""
    directory = state_directory(settings, store_id)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the state directory {directory} cannot be made ({error.strerror}); set FSWORKER_STATE_DIR to one that this "
            f"user can write to"
        ) from error
    return directory


def find_redis_url(settings: Settings, store_id: str) -> str:
    """The Redis to use: the configured one, else that of a running ``fsworker up`` on this store.

    A configured URL is never passed over, reachable or not. Raises :class:`ConfigError` when there is none.
    """
    if settings.redis_url:
        return settings.redis_url
    directory = state_directory(settings, store_id)
    url = running_url(directory / REDIS_DIRECTORY)
    if url is None:
        raise ConfigError(
            f"no Redis: FSWORKER_REDIS_URL is not set, and no 'fsworker up' runs for this store (looked in {directory}). Set "
            f"the URL, or start 'fsworker up STORE'"
        )
    return url


def write_up_file(directory: Path, content: Mapping[str, Any]) -> None:
    """Note what a running ``fsworker up`` runs."""
    partial = directory / f".{UP_FILE}"
    partial.write_text(json.dumps(dict(content), indent=2) + "\n", encoding="utf-8")
    partial.replace(directory / UP_FILE)


@contextlib.contextmanager
def only_one(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file ``path`` for the block. Raises :class:`ConfigError` naming ``what`` when it is held."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{what} runs already for this store ({path} is held); stop it first") from None
        yield
    finally:
        os.close(fd)
