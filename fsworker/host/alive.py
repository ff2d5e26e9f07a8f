"""Signs of life: the file that a worker touches every second, and how old it is. Imports nothing that takes time."""

from __future__ import annotations

import os
import time
from pathlib import Path

ROLES = ("ingest", "maintenance")
MAX_AGE_S = 10.0
"""A worker whose last sign of life is older than this, hangs or has lost its connection: it gives one a second."""


def alive_file(state_dir: Path, role: str) -> Path:
    """The file that a role's workers touch (the newest sign of life of any of them on this host)."""
    return state_dir / f"{role}.alive"


def silent_for_s(state_dir: Path, role: str) -> float | None:
    """Seconds since a role's last sign of life; ``None`` when there never was one. Raises ``OSError``.

    A sign from the future counts by its distance: the clock was set back, and nobody has touched the file since.
    """
    try:
        status = os.stat(alive_file(state_dir, role))
    except FileNotFoundError:
        return None
    return abs(time.time() - status.st_mtime)
