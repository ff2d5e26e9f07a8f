"""The directory layout of a FileStruct database (version 1) and fsworker's additions to it. Pure: no I/O.

``FileStruct.json`` is a safeguard and a small registry. Lines whose first non-blank character is ``#`` are comments, as
in the original; keys that we do not know survive every edit, because another program may own them.
"""

from __future__ import annotations

import calendar
import json
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fsworker.config import format_duration, parse_duration
from fsworker.errors import ConfigError, UploadRejectedError
from fsworker.model import Hash, check_app

VERSION = 1
CONFIG_FILE = "FileStruct.json"

DATA = "Data"
TEMP = "Temp"
ERROR = "Error"
TRASH = "Trash"
STATIC = "Static"  # made by the original, used by nobody
SPOOL = "Spool"
LOCK = "Lock"

FILE_MODE = 0o444
DEFAULT_GRACE_S = 24 * 3600.0

_STAMP = re.compile(r"\d{14}-\d{8}-\d{8}\Z")


@dataclass(frozen=True)
class Modes:
    """Directory modes of one permission set-up.

    ``root`` lets everybody pass but not list: an application that is not in the store's group still has to reach
    ``Spool/<app>``. Directories carry setgid, so that what is made in them gets the store's group whatever the umask.
    """

    root: int
    data: int
    private: int  # Temp, Lock, Error
    spool: int
    spool_app: int
    lock_file: int


WORKER_WRITES = Modes(root=0o2751, data=0o2750, private=0o700, spool=0o755, spool_app=0o2770, lock_file=0o600)
"""Only the worker's user writes; the store's group (nginx, readers) reads. The default."""

GROUP_WRITES = Modes(root=0o2775, data=0o2775, private=0o2775, spool=0o2775, spool_app=0o2770, lock_file=0o660)
"""FileStruct's way: every member of the store's group writes. Mutual trust, no isolation between applications."""

FILESTRUCT = replace(GROUP_WRITES, root=0o775, data=0o775, private=0o775, spool=0o775)
"""The same in a database that the original made, whose directories have no setgid bit: we make more of its kind."""


def shard(name: Hash) -> str:
    """The directory of a hash, relative to ``Data``: ``da/39``."""
    return f"{name[:2]}/{name[2:4]}"


def data_name(name: Hash) -> str:
    """The path of a stored file relative to the store: ``Data/da/39/da39…``."""
    return f"{DATA}/{name[:2]}/{name[2:4]}/{name}"


def stamp(now_s: float | None = None) -> str:
    """A directory name for one operation: date-fraction-random in UTC, as ``20130220151713-62109375-21427441``."""
    now_s = time.time() if now_s is None else now_s
    date = time.strftime("%Y%m%d%H%M%S", time.gmtime(now_s))
    return f"{date}-{int(now_s % 1 * 10**8):08d}-{secrets.randbelow(10**8):08d}"


def is_stamp(name: str) -> bool:
    """Tell whether ``name`` has the form of :func:`stamp`."""
    return _STAMP.match(name) is not None


def stamp_time(name: str) -> float:
    """The UTC time of a stamp, in seconds since the epoch, to the second. ``name`` must satisfy :func:`is_stamp`."""
    return float(calendar.timegm(time.strptime(name[:14], "%Y%m%d%H%M%S")))


@dataclass(frozen=True)
class StoreConfig:
    """The content of ``FileStruct.json``.

    ``store_id`` is empty and ``apps`` is ``None`` for a database that the original FileStruct made: it opens and
    serves, but nothing is ever collected from it until applications are registered.
    """

    store_id: str = ""
    apps: Mapping[str, Mapping[str, Any]] | None = None
    grace_s: float = DEFAULT_GRACE_S
    other: Mapping[str, Any] = field(default_factory=dict)

    @property
    def app_names(self) -> list[str]:
        """Registered applications, sorted."""
        return sorted(self.apps or {})

    def with_apps(self, apps: Mapping[str, Mapping[str, Any]]) -> StoreConfig:
        """The same configuration with another registry; gives the store an id if it had none."""
        return replace(self, apps=dict(apps), store_id=self.store_id or new_store_id())

    def dump(self) -> str:
        """The text of ``FileStruct.json``."""
        tree: dict[str, Any] = {"Version": VERSION}
        if self.store_id:
            tree["Id"] = self.store_id
        if self.apps is not None:
            tree["Apps"] = {name: dict(self.apps[name]) for name in self.app_names}
            tree["Grace"] = format_duration(self.grace_s)
        tree.update({k: v for k, v in self.other.items() if k not in tree})
        return json.dumps(tree, indent=2) + "\n"


def new_store_id() -> str:
    """128 random bits that tell one store from another (a staging Redis must not speak for a production store)."""
    return secrets.token_hex(16)


def parse_config(text: str, where: str) -> StoreConfig:
    """Read the text of ``FileStruct.json``; ``where`` names the file in errors.

    Raises :class:`ConfigError` for anything that is not a version 1 FileStruct database.
    """
    lines = re.split("\r\n|\r|\n", text)  # not splitlines(): it also splits at U+2028, which JSON strings may contain
    body = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    try:
        tree = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not valid JSON ({error}); restore it from a backup") from error
    if not isinstance(tree, dict) or "Version" not in tree:
        raise ConfigError(f'{where} has no "Version"; is this a FileStruct database?')
    version = tree.pop("Version")
    if version not in (VERSION, str(VERSION)) or isinstance(version, (bool, float)):
        raise ConfigError(f"{where} has Version {version!r}; this program knows version 1 only")
    return StoreConfig(
        store_id=_text(tree.pop("Id", ""), "Id", where),
        apps=_apps(tree.pop("Apps", None), where),
        grace_s=_grace(tree.pop("Grace", None), where),
        other=tree,
    )


def _text(value: object, key: str, where: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(f'{where}: "{key}" must be a string')
    return value


def _apps(value: object, where: str) -> dict[str, dict[str, Any]] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not all(isinstance(v, dict) for v in value.values()):
        raise ConfigError(f'{where}: "Apps" must map each application to an object, as in {{"shop": {{}}}}')
    try:
        return {check_app(name): dict(entry) for name, entry in value.items()}
    except UploadRejectedError as error:
        raise ConfigError(f'{where}: "Apps": {error}') from error


def _grace(value: object, where: str) -> float:
    if value is None:
        return DEFAULT_GRACE_S
    try:
        return parse_duration(value)
    except ValueError as error:
        raise ConfigError(f'{where}: "Grace": {error}') from error
