"""Real web servers for tests: nginx with our configuration, applications in processes of their own, and requests."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

import pytest
from processes import ENVIRONMENT, eventually

CONFIG = Path(__file__).parents[1] / "config" / "nginx"


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    body: bytes
    headers: Message


def fetch(url: str, *, method: str = "GET", data: bytes | None = None, **headers: str) -> Reply:
    """One request, no redirects followed on errors; header names are written with ``_`` for ``-``."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, data=data, headers=names, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return Reply(answer.status, answer.read(), answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return Reply(error.code, error.read(), error.headers)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def listens(port: int) -> bool:
    """Whether somebody answers on this port."""
    with socket.socket() as connection:
        connection.settimeout(1)
        return connection.connect_ex(("127.0.0.1", port)) == 0


def need_nginx() -> str:
    """nginx's path; a skip (a failure in CI) without one."""
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if found is None:
        pytest.skip("nginx is not installed")
    return found


@contextmanager
def nginx(
    directory: Path, upstream: int, replace: Mapping[str, str], *, user: str = "", include: str = "fsworker.conf"
) -> Iterator[str]:
    """nginx in front of the application on port ``upstream``; its URL. ``replace`` turns paths of ours into the test's.

    ``user`` is the ``user`` directive (root only): who reads the store.
    """
    program = need_nginx()
    directory.mkdir(exist_ok=True)
    for source in CONFIG.glob("*.conf"):
        text = source.read_text()
        for old, new in replace.items():
            text = text.replace(old, new)
        (directory / source.name).write_text(text)
    port = free_port()
    temporary = "".join(
        f"{kind}_temp_path {directory}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    run_as = f"user {user};" if user and os.geteuid() == 0 else ""
    (directory / "nginx.conf").write_text(
        f"daemon off; {run_as} worker_processes 1; pid {directory}/pid; error_log {directory}/error.log;\n"
        f"events {{}}\nhttp {{ access_log off; {temporary}\n"
        f"server {{ listen 127.0.0.1:{port};\n"
        f"location / {{ proxy_pass http://127.0.0.1:{upstream}; proxy_set_header Host $http_host; }}\n"
        f"include {directory}/{include};\n}} }}\n"
    )
    with subprocess.Popen(
        [program, "-e", f"{directory}/error.log", "-c", f"{directory}/nginx.conf"], stderr=subprocess.PIPE
    ) as process:
        try:
            started = eventually(lambda: process.poll() is not None or listens(port))
            assert started, "nginx did not start"
            assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(timeout=10)


@contextmanager
def program(port: int, *arguments: object, cwd: Path | None = None, **environment: str) -> Iterator[int]:
    """A Python program that serves HTTP on ``port``; its process id. Killed after the block."""
    clean = {name: value for name, value in ENVIRONMENT.items() if not name.startswith("FSWORKER_")}
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env={**clean, **environment},
            cwd=cwd,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        try:
            started = eventually(lambda: process.poll() is not None or listens(port), timeout_s=30)
            if not started or process.poll() is not None:
                log.seek(0)
                raise AssertionError(f"the application did not listen:\n{log.read()}")
            yield process.pid
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def peak_kib(pid: int) -> int:
    """The largest resident memory that a process has had."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1])  # type: ignore[index]
