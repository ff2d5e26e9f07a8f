"""Run the gallery with one command: a store, ``fsworker up``, the application, and nginx before it if asked.

python examples/gallery/run.py [--nginx] [--port 8000] [--directory gallery-data]

Everything lies in the directory; the same command goes on where the last one stopped. Ctrl-C ends all of it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from fsworker import Store

HERE = Path(__file__).resolve().parent
NGINX_SNIPPET = HERE.parents[1] / "config" / "nginx" / "fsworker.conf"
NGINX = """\
daemon off; {user} pid {directory}/nginx.pid; error_log {directory}/nginx.log;
events {{}}
http {{
    access_log off;
    {temporary}
    server {{
        listen 127.0.0.1:{port};
        client_max_body_size 50m;
        location / {{
            proxy_pass http://127.0.0.1:{upstream};
            proxy_request_buffering off;  # an upload goes through to the spool as it comes
        }}
        include {directory}/fsworker.conf;
    }}
}}
"""


def main() -> None:
    """Start everything, wait for Ctrl-C, stop everything."""
    parser = argparse.ArgumentParser(description="A photo gallery on fsworker.")
    parser.add_argument("--directory", type=Path, default=Path("gallery-data"))
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--nginx", action="store_true", help="let nginx send the files")
    parser.add_argument("--grace", default="1h", help="how long a new file is safe that is not kept (new stores only)")
    given = parser.parse_args()
    directory = given.directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell in the background has had the first ignored
        signal.signal(number, signal.default_int_handler)
    with ExitStack() as running:
        try:
            where = running.enter_context(workers(directory, given.grace))
            upstream = free_port() if given.nginx else given.port
            environment = {
                "FSWORKER_STORE": where["store"],
                "FSWORKER_REDIS_URL": where["redis_url"],
                "FSWORKER_SERVE_WITH": "nginx" if given.nginx else "stream",
                "GALLERY_DATABASE": str(directory / "gallery.sqlite3"),
            }
            command = [
                sys.executable,
                "-m",
                "uvicorn",
                "gallery:app",
                "--port",
                str(upstream),
                "--log-level",
                "warning",
            ]
            application = running.enter_context(child(command, cwd=HERE, env={**os.environ, **environment}))
            wait_for(upstream, application)
            if given.nginx:
                web = running.enter_context(nginx(directory, Path(where["store"]), given.port, upstream))
                wait_for(given.port, web)
            print(f"The gallery is at http://127.0.0.1:{given.port}/ (its files in {directory})", flush=True)
            application.wait()
        except KeyboardInterrupt:
            pass


@contextmanager
def workers(directory: Path, grace: str) -> Iterator[dict[str, Any]]:
    """``fsworker up`` on a store in the directory; where things are."""
    store = directory / "store"
    if not (store / "FileStruct.json").exists():
        init = [sys.executable, "-m", "fsworker", "init", str(store), "--app", "gallery", "--grace", grace, "--json"]
        subprocess.run(init, check=True, stdout=subprocess.DEVNULL)
    Store(store).close()
    environment = {**os.environ, "FSWORKER_STATE_DIR": str(directory / "state")}
    command = [sys.executable, "-m", "fsworker", "up", str(store), "--json"]
    with (
        (directory / "fsworker.log").open("a") as log,
        child(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            sys.exit(f"fsworker did not start; see {directory / 'fsworker.log'}")
        yield json.loads(line)


@contextmanager
def nginx(directory: Path, store: Path, port: int, upstream: int) -> Iterator[subprocess.Popen[Any]]:
    """nginx with fsworker's configuration, for this store."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        sys.exit("nginx is not installed; run without --nginx")
    (directory / "fsworker.conf").write_text(NGINX_SNIPPET.read_text().replace("/srv/files/Data/", f"{store}/Data/"))
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    text = NGINX.format(
        directory=directory,
        port=port,
        upstream=upstream,
        user="user root;" if os.geteuid() == 0 else "",  # who reads a store that root has made
        temporary=" ".join(f"{kind}_temp_path {directory}/nginx-{kind};" for kind in kinds),
    )
    (directory / "nginx.conf").write_text(text)
    log = str(directory / "nginx.log")
    with child([program, "-e", log, "-c", str(directory / "nginx.conf")]) as process:
        yield process


@contextmanager
def child(command: list[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A program in a session of its own (Ctrl-C is ours to pass on), ended in order."""
    process = subprocess.Popen(command, start_new_session=True, **options)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait()


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_for(port: int, process: subprocess.Popen[Any]) -> None:
    """Wait until a program listens."""
    while True:
        with socket.socket() as connection:
            if connection.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None:
            sys.exit("the gallery did not start; is another program on that port?")
        time.sleep(0.05)


if __name__ == "__main__":
    main()
