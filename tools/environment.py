"""Make the virtual environment that the Makefile works in: ``python3 tools/environment.py DIRECTORY EXTRAS``.

Needs nothing but Python's standard library. Two at once wait for each other; a second run with nothing to do is instant.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 11)


def main() -> int:
    """Make or update the environment; the exit code is 0 when it is ready."""
    directory, extras = ROOT / sys.argv[1], sys.argv[2]
    if sys.version_info < OLDEST:
        return fail(
            f"this is Python {sys.version.split()[0]}; fsworker needs 3.11 or newer. Name one with: make PYTHON=python3.13 …"
        )
    if not sys.platform.startswith("linux"):
        return fail("fsworker works on Linux only")
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        return fail(
            f"this Python has no ensurepip; install it, on Debian and Ubuntu with: apt-get install python{version}-venv"
        )
    with (ROOT / f".{directory.name.strip('.')}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return make(directory, extras)


def make(directory: Path, extras: str) -> int:
    """Make the environment and install the package with its extras, unless that was done for this pyproject.toml."""
    python = directory / "bin" / "python"
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + sys.version.encode()).hexdigest()
    stamp = directory / f"installed-{extras.replace(',', '-')}"
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        return 0
    print(
        f"Making {directory.name} with {sys.executable} and installing fsworker[{extras}] …",
        file=sys.stderr,
        flush=True,
    )
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", directory], check=True)
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-e", f"{ROOT}[{extras}]"]
    code = subprocess.run(install, check=False).returncode
    if code != 0:
        return fail(
            "pip could not install the dependencies (see above); is there a network, or an index to install from?"
        )
    stamp.write_text(wanted)
    return 0


def fail(message: str) -> int:
    """Say what is wrong; the exit code of a failure."""
    print(f"fsworker: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
