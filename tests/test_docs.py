"""What the documents show is what the program does: commands, settings, messages, examples, units, nginx."""

from __future__ import annotations

import http.server
import importlib.resources
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import pytest
from processes import eventually
from stacks import RunningStack

import fsworker
from fsworker import errors, model
from fsworker.celery import make_app
from fsworker.cli import cli
from fsworker.config import Settings, load_settings
from fsworker.errors import FSWorkerError
from fsworker.store.facade import Store

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DESIGN = (ROOT / "DESIGN.md").read_text(encoding="utf-8")

_BLOCK = re.compile(r"^(?:<!-- (?P<mark>[^\n]+) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)^```$", re.M | re.S)


def blocks(language: str, text: str = README) -> list[tuple[str, str]]:
    """Code blocks of a language, each with the mark in the comment above it."""
    found = [(match["mark"] or "", match["text"]) for match in _BLOCK.finditer(text) if match["language"] == language]
    assert found, f"no {language} block: is this test looking at the right text?"
    return found


def section(title: str, text: str = README) -> str:
    """A section, without its heading, up to the next of its level or above."""
    (level, body) = re.search(rf"^(#+) {re.escape(title)}\n(.*)", text, re.M | re.S).groups()  # type: ignore[union-attr]
    return re.split(rf"^#{{1,{len(level)}}} ", body, maxsplit=1, flags=re.M)[0]


def rows(title: str, text: str = README) -> list[list[str]]:
    """The cells of all tables in a section, headings left out."""
    lines = [line for line in section(title, text).splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    headings = {number - 1 for number, row in enumerate(cells) if _is_rule(row)}
    return [row for number, row in enumerate(cells) if not _is_rule(row) and number not in headings]


def _is_rule(row: list[str]) -> bool:
    return bool(row) and set("".join(row)) <= set("-| ")


def commands(group: click.Group = cli, before: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Every command that can be typed, by its words."""
    for name, command in group.commands.items():
        words = (*before, name)
        if isinstance(command, click.Group):
            yield from commands(command, words)
        else:
            yield " ".join(words), command


COMMANDS = dict(commands())


def shown_commands() -> list[str]:
    """Every line in a console block that calls fsworker, from that word on and without its comment."""
    lines = [line[2:].split("  #")[0] for _, text in blocks("console") for line in text.splitlines()]
    found = [match[1].strip() for line in lines if (match := re.search(r"(?:^|-- )(fsworker .*)", line))]
    assert len(found) >= 6
    return found


@pytest.mark.parametrize("line", shown_commands())
def test_commands_in_the_readme_exist_with_their_options(line: str) -> None:
    words = line.split()[1:]
    name = next((n for n in (" ".join(words[:2]), words[0]) if n in COMMANDS), None)
    assert name is not None, f"there is no command for: {line}"
    options = {option for parameter in COMMANDS[name].params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options


def test_the_command_table_is_complete() -> None:
    listed = [
        re.sub(r"[A-Z\[<—-].*", "", row[0].strip("`").removeprefix("fsworker ")).strip() for row in rows("Command line")
    ]
    listed = [name for name in listed if not name.isdigit()]
    assert sorted(set(listed)) == sorted(COMMANDS), "the README's command table and 'fsworker --help' differ"


def test_the_settings_table_is_complete_and_its_defaults_are_true() -> None:
    table = {row[0].strip("`").removeprefix("FSWORKER_").lower(): row[1].strip("`") for row in rows("Settings")}
    assert sorted(table) == sorted(Settings.model_fields), "the README's settings table and config.Settings differ"
    environment = {f"FSWORKER_{name.upper()}": value for name, value in table.items() if value != "not set"}
    assert load_settings(environ=environment) == Settings()
    assert {name for name, value in table.items() if value == "not set"} == {
        name for name, value in Settings().model_dump().items() if value is None
    }


@pytest.mark.parametrize(
    "document", ["README.md", "DESIGN.md", "compose.yaml", "config/compose.acl.yaml", "config/fsworker.env"]
)
def test_every_setting_that_is_named_exists(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    named = {name.lower() for name in re.findall(r"\bFSWORKER_([A-Z][A-Z_]*[A-Z])\b", text)} - {"config"}
    assert named <= set(Settings.model_fields)


def test_the_errors_table_names_every_error() -> None:
    listed = {name for row in section("Errors").splitlines() if row.startswith("| `") for name in _names(row)}
    ours = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, FSWorkerError) and value.__module__ == errors.__name__
    }
    assert ours <= listed, "the README's table of errors lacks some"
    assert {name for name in listed if name.endswith("Error")} <= ours | {"ValueError", "KeyError"}


def _names(row: str) -> list[str]:
    return re.findall(r"`(\w+)`", row)


@pytest.mark.parametrize(("mark", "text"), blocks("json"))
def test_messages_and_results_are_what_the_models_say(mark: str, text: str) -> None:
    assert mark.startswith("model: "), "say which model this JSON is, in a comment above it"
    kind = getattr(model, mark.removeprefix("model: "))
    kind.model_validate_json(text)
    json.loads(text)


def test_the_ingest_message_shows_every_argument() -> None:
    (text,) = [text for mark, text in blocks("json") if mark == "model: IngestRequest"]
    assert set(json.loads(text)) == set(model.IngestRequest.model_fields)


def test_tasks_and_queues_are_called_as_the_readme_says(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store", apps=["shop"]) as store:
        environ = {"FSWORKER_STORE": str(store.root), "FSWORKER_STATE_DIR": str(tmp_path / "state")}
        app = make_app(load_settings(environ={**environ, "FSWORKER_REDIS_URL": "redis://localhost:1/0"}))
    tasks = {name for name in app.tasks if name.startswith("fsworker.")}
    described = set(re.findall(r"^`(fsworker\.\w+)`", section("Tasks"), re.M))
    assert described == tasks
    assert [queue.name for queue in app.conf.task_queues] == ["fsworker.ingest.shop"]


@pytest.mark.parametrize("text", [text for _, text in blocks("python")])
def test_python_in_the_readme_compiles(text: str) -> None:
    compile(text, "README.md", "exec")


def test_every_module_has_its_line_in_the_design() -> None:
    package = Path(fsworker.__file__).parent
    layered = re.findall(r'containers = \["fsworker\.(\w+)"\]', (ROOT / "pyproject.toml").read_text())
    modules = {path.stem for path in package.glob("*.py")}
    modules |= {path.parent.name for path in package.glob("*/__init__.py")}
    modules |= {path.stem for name in layered for path in (package / name).glob("*.py")}
    modules -= {"__init__", "__main__"}
    described = set(re.findall(r"`(\w+)`", " ".join("".join(row[:2]) for row in rows("Modules and layers", DESIGN))))
    assert modules - described == set(), "not in DESIGN.md, 'Modules and layers'"
    assert described - modules == set(), "in DESIGN.md, but there is no such module"


@pytest.mark.parametrize("document", ["README.md", "DESIGN.md", "CHANGELOG.md"])
def test_links_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    headings = {
        re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", text, re.M)
    }
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif not target.startswith("https://"):
            assert (ROOT / target).exists(), target


# What is shown is run


@pytest.fixture
def terminal(stack: RunningStack, tmp_path: Path) -> dict[str, Any]:
    """Where the first steps are taken: a directory with a photograph, and the store as ``files``."""
    photo = importlib.resources.files("fsworker").joinpath("demo_photos", "people.jpg")
    (tmp_path / "photo.jpg").write_bytes(photo.read_bytes())
    (tmp_path / "files").symlink_to(stack.store_path)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FSWORKER_")}
    return {
        "cwd": tmp_path,
        "env": {**environment, "FSWORKER_STATE_DIR": str(stack.where["state_dir"])},
        "capture_output": True,
        "text": True,
        "timeout": 60,
    }


def test_the_first_steps_work_as_they_are_shown(terminal: dict[str, Any]) -> None:
    steps = [text for _, text in blocks("console", section("First steps"))]
    shown = [line[2:].split() for text in steps for line in text.splitlines() if line.startswith("$ fsworker")]
    assert [words[1] for words in shown] == ["init", "up", "ingest", "stats"]
    for words in shown:
        if words[1] == "up":
            continue  # that is the fixture
        done = subprocess.run([sys.executable, "-m", *words], check=False, **terminal)
        assert done.returncode == 0, f"{' '.join(words)}:\n{done.stdout}{done.stderr}"
        if words[1] == "ingest":
            assert done.stdout.splitlines()[0].split() == ["File", "Hash", "Size", "Thumbnails", "Time"]
            assert re.search(r"photo\.jpg +[0-9a-f]{40} .*small 200×", done.stdout)


def test_python_that_is_marked_runs(terminal: dict[str, Any]) -> None:
    marked = [text for mark, text in blocks("python") if mark == "run"]
    assert marked
    for text in marked:
        done = subprocess.run([sys.executable, "-c", text], check=False, **terminal)
        assert done.returncode == 0, done.stderr
        assert len(re.findall(r"[0-9a-f]{40}", done.stdout)) == 2


def test_the_plain_producer_gets_its_result(stack: RunningStack, terminal: dict[str, Any]) -> None:
    example = ROOT / "examples" / "plain_producer.py"
    assert "import fsworker" not in example.read_text()
    arguments = [sys.executable, str(example), stack.redis_url, str(stack.spool("shop")), "shop"]
    done = subprocess.run([*arguments, "photo.jpg"], check=False, **terminal)
    assert done.returncode == 0, done.stderr
    result = model.IngestResult.model_validate_json(done.stdout)
    assert result.thumbnails["small"].width == 100
    with stack.store() as store:
        assert all(name in store for name in result.hashes)


def test_a_plain_producer_may_leave_a_request_file_in_place_of_a_message(stack: RunningStack) -> None:
    job = stack.client("blog").job(model.new_job_id("blog"))
    spool = stack.spool("blog")
    (spool / "by-file.txt").write_bytes(b"rung for by the sweep")
    note = spool / ".on-its-way.new"
    note.write_text(json.dumps({"task": "ingest", "request": {"upload": "by-file.txt"}}))
    note.rename(spool / f".{job.id}.json")
    assert eventually(lambda: job.state == "done", timeout_s=30)


# What is shipped beside the package


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    units = []
    for source in sorted((ROOT / "config" / "systemd").iterdir()):
        text = source.read_text().replace("/opt/fsworker/bin/fsworker", sys.executable)
        (tmp_path / source.name).write_text(text)
        units.append(str(tmp_path / source.name))
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if "fsworker" in line]
    assert (done.returncode, ours) == (0, [])


def test_units_run_commands_that_exist_without_privileges() -> None:
    for source in sorted((ROOT / "config" / "systemd").glob("*.service")):
        text = source.read_text()
        words = re.search(r"^ExecStart=/opt/fsworker/bin/fsworker (.*)$", text, re.M)[1].split()  # type: ignore[index]
        assert words[0] in COMMANDS
        for line in ("User=fsworker", "NoNewPrivileges=yes", "ProtectSystem=strict", "KillMode=mixed"):
            assert f"\n{line}\n" in text, f"{source.name} lacks {line}"
        # It would forbid the setgid bit, and with it every new directory of the store.
        assert "\nRestrictSUIDSGID=yes" not in text
        # It would forbid to ask whether a time source holds the clock: each start of the host would count as a step of it.
        assert "\nProtectClock=yes" not in text
        allowed = re.search(r"^SystemCallFilter=(.*)$", text, re.M)[1].split()  # type: ignore[index]
        assert {"landlock_create_ruleset", "landlock_restrict_self", "adjtimex", "clock_adjtime", "cachestat"} <= {
            *allowed
        }


@contextmanager
def _application(hash_of_file: str) -> Iterator[int]:
    """A web application that sends every visitor to a stored file; its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            elsewhere = self.path.removeprefix("/to:") if self.path.startswith("/to:") else None
            self.send_header("X-Accel-Redirect", elsewhere or f"/FileStruct/Data/{hash_of_file}")
            self.send_header("Content-Type", "text/plain")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def _nginx(directory: Path, data: Path, upstream: int) -> Iterator[str]:
    """A real nginx with our snippet; its URL."""
    snippet = (ROOT / "config" / "nginx" / "fsworker.conf").read_text()
    assert "/srv/files/Data/" in snippet
    (directory / "fsworker.conf").write_text(snippet.replace("/srv/files/Data/", f"{data}/"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    temporary = "".join(f"{kind}_temp_path {directory}/{kind};\n" for kind in ("client_body", "proxy"))
    others = "".join(f"{kind}_temp_path {directory}/{kind};\n" for kind in ("fastcgi", "uwsgi", "scgi"))
    (directory / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {directory}/pid; error_log stderr;\nevents {{}}\n"
        f"http {{ access_log off; {temporary}{others}\nserver {{ listen 127.0.0.1:{port};\n"
        f"location / {{ proxy_pass http://127.0.0.1:{upstream}; }}\ninclude {directory}/fsworker.conf;\n}} }}\n"
    )
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    process = subprocess.Popen([program, "-e", "stderr", "-c", str(directory / "nginx.conf")], stderr=subprocess.PIPE)
    try:
        assert eventually(lambda: process.poll() is None and _connects(port)), process.stderr
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.communicate(timeout=10)


def _connects(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def _get(url: str) -> tuple[int, bytes, Any]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), error.headers


def test_nginx_serves_what_the_application_sends_it_to_and_nothing_else(store: Store, tmp_path: Path) -> None:
    if shutil.which("nginx") is None and not Path("/usr/sbin/nginx").exists():
        pytest.skip("nginx is not installed")
    name = store.put_bytes(b"<script>alert(1)</script>")
    inside = store.internal_uri(name).removeprefix("/FileStruct/Data/")
    with _application(inside) as upstream, _nginx(tmp_path, store.root / "Data", upstream) as url:
        status, body, headers = _get(f"{url}/view")
        assert (status, body) == (200, b"<script>alert(1)</script>")
        assert headers["Content-Type"] == "text/plain"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "sandbox" in headers["Content-Security-Policy"]
        assert _get(f"{url}/FileStruct/Data/{inside}")[0] == 404
        assert _get(f"{url}/to:/FileStruct/Data/../FileStruct.json")[0] != 200
        assert _get(f"{url}/to:/FileStruct/Data/{'0' * 40}")[0] == 404
