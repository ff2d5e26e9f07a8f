"""``compose.yaml`` and the image: what they name exists, and, where Docker is and ``FSWORKER_COMPOSE=1``, all of it runs.

The run builds the image, and pulls what the file names. It is a stack of its own, without published ports; of the host it
uses a directory that it makes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from processes import eventually

from fsworker.broker.acl import all_users
from fsworker.broker.names import Names
from fsworker.cli import cli

ROOT = Path(__file__).resolve().parents[1]
COMPOSE = (ROOT / "compose.yaml").read_text(encoding="utf-8")
ACL = (ROOT / "config/compose.acl.yaml").read_text(encoding="utf-8")
PHOTO = ROOT / "fsworker/demo_photos/portrait.jpg"
WORKER, SHOP = "10001:10001", "10002:10002"


def _lists(key: str) -> list[list[str]]:
    """The values of a key that are lists of strings."""
    return [json.loads(text) for text in re.findall(rf"\b{key}: (\[\"[^\]]*\])", COMPOSE)]


def test_the_commands_are_fsworkers() -> None:
    ours = [words for words in _lists("command") if words[0] != "valkey-server"]
    checks = [words[2:] for words in _lists("test") if words[1] == "fsworker"]
    assert len(ours) == 4
    assert len(checks) == 2
    for words in ours + checks:
        command = cli.get_command(click.Context(cli), words[0])
        assert command is not None, words
        command.make_context(words[0], words[1:])  # raises what the command line would


def test_the_image_is_made_of_what_the_context_has() -> None:
    dockerfile = (ROOT / "config/Dockerfile").read_text(encoding="utf-8")
    copied = {
        source for words in re.findall(r"^COPY (?!--from)(.+)$", dockerfile, re.M) for source in shlex.split(words)[:-1]
    }
    everything, *rest = [
        line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").split() if line[0] in "*!"
    ]
    assert everything == "*"
    assert {line[1:] for line in rest if line[0] == "!"} == copied
    assert all((ROOT / source).exists() for source in copied)


def test_no_missing_directory_is_made_by_docker_which_would_make_it_roots() -> None:
    sources = re.findall(r"source: (\./(?:files|users)\S*)\b", COMPOSE.split("\nservices:")[0] + COMPOSE + ACL)
    made_by_hand = [name for name in sources if "Spool" not in name]  # that of the example is in a comment
    assert len(made_by_hand) >= 3
    assert (COMPOSE + ACL).count("create_host_path: false") == len(set(made_by_hand))


def test_every_process_has_its_redis_user() -> None:
    users = {user.name for user in all_users(Names("fsworker"), ["shop"])}
    named = set(re.findall(r"redis://(fsworker-[a-z-]+):", ACL))
    assert named == users - {"fsworker-admin"}
    base, secured = (re.search(r'command: (\["valkey-server".*?\])', text, re.S) for text in (COMPOSE, ACL))
    assert base
    assert secured
    assert json.loads(secured[1]) == [*json.loads(base[1]), "--aclfile", "/etc/users.acl"]


# The run


class Stack:
    """A project of compose, in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.store = directory / "files"

    def __call__(self, *arguments: str, stdin: bytes | None = None) -> str:
        """Run ``docker compose``; it must succeed. Returns its standard output."""
        done = subprocess.run(
            ["docker", "compose", *arguments], cwd=self.directory, capture_output=True, timeout=900, input=stdin, check=False
        )  # fmt: skip
        assert done.returncode == 0, (arguments, done.stdout[-2000:], done.stderr[-2000:])
        return done.stdout.decode()

    def python(self, program: str, stdin: bytes = b"") -> str:
        """Run a program as the application ``shop``, which sees its spool directory and Redis."""
        return self("run", "--rm", "-T", "shop", "-c", program, stdin=stdin).strip()


IMAGE = f"fsworker-test-{os.getpid()}"
"""An image of our own: that of a stack which runs here stays what it is."""

_SHOP = f"""
services:
  shop:
    image: {IMAGE}
    pull_policy: never
    user: "10002:10002"
    read_only: true
    cap_drop: [ALL]
    environment: {{ FSWORKER_SPOOL: /spool, FSWORKER_REDIS_URL: "redis://redis:6379/0" }}
    volumes: [ {{ type: bind, source: ./files/Spool/shop, target: /spool }} ]
    networks: [queue, web]
    entrypoint: [python]
    profiles: [by-hand]
  nginx:
    ports: !reset []
    volumes: [ {{ type: bind, source: ./shop.conf, target: /etc/nginx/conf.d/default.conf, read_only: true }} ]
"""
_SHOP_CONF = """
server {
    listen 8080;
    include /etc/nginx/fsworker.conf;
    # In place of an application that lets everybody see everything.
    location ~ "^/(?<hash>(?<one>..)(?<two>..)[0-9a-f]{36})$" { rewrite ^ /FileStruct/Data/$one/$two/$hash last; }
}
"""


_FETCH = """
import hashlib, sys, urllib.error, urllib.request
try:
    print(hashlib.sha1(urllib.request.urlopen("http://nginx:8080/" + sys.stdin.read()).read()).hexdigest())
except urllib.error.HTTPError as error:
    print(error.code)
"""


@pytest.fixture
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The stack as compose.yaml's first lines say, with the application of its example."""
    directory = tmp_path_factory.mktemp("compose")
    for name in ("compose.yaml", ".dockerignore", "pyproject.toml", "README.md", "config", "fsworker"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, directory / name)
    (directory / "compose.yaml").write_text(COMPOSE.replace("image: fsworker\n", f"image: {IMAGE}\n"))
    (directory / "compose.override.yaml").write_text(_SHOP)
    (directory / "shop.conf").write_text(_SHOP_CONF)
    compose = Stack(directory)
    compose.store.mkdir()
    os.chown(compose.store, 10001, 10001)
    os.chmod(compose.store, 0o2751)
    try:
        compose("build", "init")
        compose("run", "--rm", "init")
        compose("up", "--detach")
        yield compose
    finally:
        compose("--profile", "*", "down", "--volumes", "--timeout", "20")
        subprocess.run(["docker", "image", "rm", IMAGE], capture_output=True, check=False)


def _docker_runs() -> bool:
    with contextlib.suppress(OSError):
        return subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0
    return False


@pytest.mark.skipif(os.environ.get("FSWORKER_COMPOSE") != "1", reason="CI-may-skip: make compose runs it")
@pytest.mark.skipif(os.geteuid() != 0, reason="CI-may-skip: root gives a directory to the worker's user")
def test_the_stack_takes_uploads_serves_them_and_loses_nothing_with_redis(stack: Stack) -> None:
    assert _docker_runs(), "FSWORKER_COMPOSE=1, and there is no docker compose"
    ask = 'import sys; from fsworker import Client; files = Client("shop"); '
    send = ask + 'print(files.ingest(sys.stdin.buffer, thumbnails={"small": "100x100"}).id)'
    get = ask + 'print(*files.job("{job}").get(timeout=120).hashes)'
    photo, small = stack.python(get.format(job=stack.python(send, PHOTO.read_bytes()))).split()

    for hash_ in (photo, small):
        assert stack.python(_FETCH, hash_.encode()) == hash_
    assert stack.python(_FETCH, b"0" * 40) == "404"

    # An upload while no worker runs; then Redis goes, with all that it has.
    stack("stop", "ingest")
    job = stack.python(send, PHOTO.read_bytes() + b"another")
    stack("rm", "--stop", "--force", "--volumes", "redis")
    subprocess.run(
        ["docker", "volume", "rm", "--force", f"{stack.directory.name}_redis"], check=True, capture_output=True
    )
    stack("up", "--detach")
    assert len(stack.python(get.format(job=job)).split()) == 2

    def all_healthy() -> bool:
        states = [json.loads(line) for line in stack("ps", "--format", "json").splitlines()]
        checked = {state["Service"]: state["Health"] for state in states if state["Health"]}
        return checked == dict.fromkeys(("redis", "ingest", "maintenance"), "healthy")

    assert eventually(all_healthy, timeout_s=90)
    findings = json.loads(stack("exec", "-T", "maintenance", "fsworker", "doctor", "--json"))
    assert findings["level"] != "problem"
    assert {(f.stat().st_uid, f.stat().st_gid, f.stat().st_mode & 0o7777) for f in stack.store.glob("Data/*/*/*")} == {
        (10001, 10001, 0o444)
    }
