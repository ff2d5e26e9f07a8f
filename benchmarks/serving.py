"""Requests a second and memory for a file of 200 kB: the application's bytes, X-Accel-Redirect, and nginx alone.

python benchmarks/serving.py [--seconds 5] [--connections 16]

Needs nginx, uvicorn and Starlette. Client, nginx and application share the machine: read the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fsworker.store.facade import Store

ROOT = Path(__file__).resolve().parents[1]
SIZE_BYTES = 200_000
APPLICATION = """
from starlette.applications import Starlette
from starlette.routing import Route
from fsworker.contrib.starlette import Files

files = Files("shop")

async def show(request):
    return await files.serve(request, request.path_params["hash"], filename="a.jpg", media_type="image/jpeg")

app = Starlette(routes=[Route("/{hash}", show)])
"""


def main() -> None:
    """Measure the three ways and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--connections", type=int, default=16)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, Store.create(Path(name, "store"), apps=["shop"]) as store:
        directory = Path(name)
        (directory / "application.py").write_text(APPLICATION)
        stored = store.put_bytes(os.urandom(SIZE_BYTES))
        print(
            f"{SIZE_BYTES:,} bytes, {given.connections} connections, {given.seconds:g} s each, {os.cpu_count()} cores\n"
        )
        print("| way | requests a second | MB/s | most memory of the application |\n|---|---|---|---|")
        with application(directory, store, "stream") as (port, pid):
            report("the application sends the bytes", measure(port, f"/{stored}", given), peak_mib(pid))
        with application(directory, store, "nginx") as (port, pid), nginx(directory, store, port) as front:
            report("the application decides, nginx sends", measure(front, f"/{stored}", given), peak_mib(pid))
            path = store.internal_uri(stored).replace("/FileStruct/Data", "/open")
            report("nginx alone", measure(front, path, given), None)


def report(way: str, rate: float, memory_mib: float | None) -> None:
    """One line of the table."""
    memory = "–" if memory_mib is None else f"{memory_mib:.0f} MiB"
    print(f"| {way} | {rate:,.0f} | {rate * SIZE_BYTES / 1e6:,.0f} | {memory} |", flush=True)


def measure(port: int, path: str, given: argparse.Namespace) -> float:
    """Requests a second, after a second to warm up; every answer is checked for its length."""
    asyncio.run(drive(port, path, given.connections, 1.0))
    return asyncio.run(drive(port, path, given.connections, given.seconds))


async def drive(port: int, path: str, connections: int, seconds: float) -> float:
    """Ask on several connections at once; requests a second."""
    until_s = time.monotonic() + seconds
    started_s = time.monotonic()
    counts = await asyncio.gather(*(ask(port, path, until_s) for _ in range(connections)))
    return sum(counts) / (time.monotonic() - started_s)


async def ask(port: int, path: str, until_s: float) -> int:
    """Ask again and again on one connection; how often."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    count = 0
    while time.monotonic() < until_s:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        assert head.startswith(b"HTTP/1.1 200"), head
        assert length is not None, head
        assert int(length[1]) == SIZE_BYTES, head
        await reader.readexactly(SIZE_BYTES)
        count += 1
    writer.close()
    return count


@contextmanager
def application(directory: Path, store: Store, serve_with: str) -> Iterator[tuple[int, int]]:
    """One uvicorn process; its port and process id."""
    port = free_port()
    environment = {
        **os.environ,
        "FSWORKER_STORE": str(store.root),
        "FSWORKER_REDIS_URL": "redis://localhost:1/0",
        "FSWORKER_SERVE_WITH": serve_with,
    }
    command = [sys.executable, "-m", "uvicorn", "application:app", "--port", str(port), "--log-level", "warning"]
    with running(command, port, cwd=directory, env=environment) as pid:
        yield port, pid


@contextmanager
def nginx(directory: Path, store: Store, upstream: int) -> Iterator[int]:
    """nginx with our configuration and, at ``/open/``, the store's data for everybody; its port."""
    port = free_port()
    snippet = (ROOT / "config" / "nginx" / "fsworker.conf").read_text().replace("/srv/files/", f"{store.root}/")
    (directory / "fsworker.conf").write_text(snippet)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = " ".join(f"{kind}_temp_path {directory}/{kind};" for kind in kinds)
    user = "user root;" if os.geteuid() == 0 else ""
    (directory / "nginx.conf").write_text(
        f"daemon off; {user} worker_processes 1; pid {directory}/pid; error_log {directory}/error.log;\n"
        f"events {{}}\nhttp {{ access_log off; keepalive_requests 1000000; {temporary}\n"
        f"upstream application {{ server 127.0.0.1:{upstream}; keepalive 32; }}\nserver {{ listen 127.0.0.1:{port};\n"
        'location / { proxy_pass http://application; proxy_http_version 1.1; proxy_set_header Connection ""; }\n'
        f"location /open/ {{ alias {store.root}/Data/; sendfile on; }}\ninclude {directory}/fsworker.conf;\n}} }}\n"
    )
    command = ["/usr/sbin/nginx", "-e", f"{directory}/error.log", "-c", f"{directory}/nginx.conf"]
    with running(command, port):
        yield port


@contextmanager
def running(command: list[str], port: int, **options: object) -> Iterator[int]:
    """A program that listens on a port; its process id."""
    process = subprocess.Popen(command, start_new_session=True, **options)  # type: ignore[call-overload]
    try:
        while socket.socket().connect_ex(("127.0.0.1", port)) != 0:
            if process.poll() is not None:
                sys.exit(f"{command[0]} did not start")
            time.sleep(0.05)
        yield process.pid
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def peak_mib(pid: int) -> float:
    """The most resident memory that a process has had."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024  # type: ignore[index]


if __name__ == "__main__":
    main()
