"""A short run of chaos.py: each kind of fault at least once. ``make chaos`` does it for ten minutes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_nothing_is_lost_while_everything_breaks(tmp_path: Path) -> None:
    command = [sys.executable, "chaos.py", "--seconds", "25", "--seed", "4", "--keep", str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout)
    assert figures["failed_but_kept"] == 0, figures
    assert figures["uploads"] > 50
    assert figures["callbacks_due"] > 10
