"""The command line: what a person types, sees and gets wrong."""

from __future__ import annotations

import grp
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest
from celery import Celery
from celery.result import AsyncResult
from stacks import RunningStack
from users import needs_root

from fsworker.store.facade import Store

NOBODY = 65534


def fsworker(*arguments: object, check: int | None = 0, env: dict[str, str] | None = None, **options):  # type: ignore[no-untyped-def]
    """Run the command; its exit code must be ``check``."""
    done = subprocess.run(
        [sys.executable, "-m", "fsworker", *map(str, arguments)],
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        **options,
    )
    assert check is None or done.returncode == check, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    """A new store with the application ``shop``."""
    Store.create(tmp_path / "store", apps=["shop"]).close()
    return tmp_path / "store"


def no_redis(tmp_path: Path) -> dict[str, str]:
    """Settings that point at a server that is not there."""
    return {"FSWORKER_REDIS_URL": f"redis+socket://{tmp_path}/nothing.sock?virtual_host=0"}


# Help


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["init"],
        ["up"],
        ["worker"],
        ["beat"],
        ["ingest"],
        ["demo"],
        ["stats"],
        ["app"],
        ["app", "add"],
        ["error", "retry"],
    ],
)
def test_help_reads_well(command: list[str]) -> None:
    text = fsworker(*command, "--help").stdout
    assert text.startswith("Usage: fsworker")
    assert max(map(len, text.splitlines())) <= 110
    assert ":class:" not in text


# init and app


def test_init_makes_a_store_and_says_what_is_next(tmp_path: Path) -> None:
    path = tmp_path / "files"
    done = fsworker("init", path, "--app", "shop", "--app", "blog", "--grace", "12h")
    assert f"fsworker up {path}" in done.stdout
    config = json.loads((path / "FileStruct.json").read_text())
    assert (config["Version"], sorted(config["Apps"]), config["Grace"]) == (1, ["blog", "shop"], "12h")
    tree = json.loads(fsworker("init", path, "--app", "wiki", "--json").stdout)
    assert sorted(tree["apps"]) == ["blog", "shop", "wiki"]
    assert tree["id"] == config["Id"]
    assert tree["grace"] == "12h"


def test_with_a_redis_of_ones_own_the_next_step_is_not_up(tmp_path: Path) -> None:
    env = {"FSWORKER_REDIS_URL": "redis://redis:6379/0"}
    done = fsworker("init", tmp_path / "files", "--app", "shop", env=env)
    assert f"fsworker doctor --store {tmp_path / 'files'}" in done.stdout
    assert "fsworker up" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--app", "Not An App"], "cannot name an application"),
        (["--app", "shop:no-such-group"], "groupadd no-such-group"),
        (["--app", "shop", "--grace", "soon"], "is not a duration"),
        ([], "--app"),
    ],
)
def test_init_refuses_nonsense(arguments: list[str], said: str, tmp_path: Path) -> None:
    assert said in fsworker("init", tmp_path / "new", *arguments, check=2).stderr


def test_init_refuses_a_directory_with_other_things_in_it(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    assert "not empty and not a store" in fsworker("init", tmp_path, "--app", "shop", check=2).stderr
    assert sorted(os.listdir(tmp_path)) == ["thesis.tex"]


def test_app_add_and_list(store_path: Path) -> None:
    fsworker("app", "add", "blog", "--store", store_path)
    tree = json.loads(fsworker("app", "list", "--store", store_path, "--json").stdout)
    assert tree["apps"]["blog"]["spool"] == str(store_path / "Spool" / "blog")
    assert (store_path / "Spool" / "blog").is_dir()


@needs_root
def test_init_for_another_owner(open_path: Path) -> None:
    path = open_path / "files"
    fsworker("init", path, "--app", "shop", "--owner", "nobody")
    assert {os.stat(path / name).st_uid for name in os.listdir(path)} == {NOBODY}


# What may be wrong


def test_no_store(tmp_path: Path) -> None:
    assert "FSWORKER_STORE" in fsworker("up", check=2).stderr
    for command in (["worker"], ["up"], ["beat"], ["stats"]):
        message = fsworker(*command, *([] if command == ["up"] else ["--store"]), tmp_path, check=2).stderr
        assert "has no FileStruct.json" in message
        assert "fsworker init" in message


def test_unknown_setting_is_refused(store_path: Path) -> None:
    done = fsworker("stats", "--store", store_path, check=2, env={"FSWORKER_GRAEC": "24h"})
    assert "unknown setting FSWORKER_GRAEC; did you mean grace" in done.stderr


def test_unreachable_redis(store_path: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    done = fsworker(
        "ingest", tmp_path / "a.txt", "--app", "shop", "--store", store_path, check=1, env=no_redis(tmp_path)
    )
    assert "does not answer" in done.stderr
    assert "FSWORKER_REDIS_URL" in done.stderr
    assert "does not answer" in fsworker("stats", "--store", store_path, check=1, env=no_redis(tmp_path)).stderr


def test_no_redis_at_all(store_path: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    done = fsworker("ingest", tmp_path / "a.txt", "--app", "shop", "--store", store_path, check=2)
    assert "no 'fsworker up' runs for this store" in done.stderr


def test_a_password_is_never_shown(store_path: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    secret = {"FSWORKER_REDIS_URL": "redis://user:s3cret@127.0.0.1:1/0"}
    done = fsworker("ingest", tmp_path / "a.txt", "--app", "shop", "--store", store_path, check=1, env=secret)
    assert "s3cret" not in done.stdout + done.stderr
    assert "***" in done.stderr


def test_wrong_redis_url(store_path: Path) -> None:
    done = fsworker("stats", "--store", store_path, check=2, env={"FSWORKER_REDIS_URL": "amqp://localhost"})
    assert "is not a Redis URL" in done.stderr


def test_unknown_application(store_path: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    done = fsworker(
        "ingest", tmp_path / "a.txt", "--app", "nope", "--store", store_path, check=2, env=no_redis(tmp_path)
    )
    assert "fsworker app add nope" in done.stderr


def test_file_that_is_not_there(store_path: Path) -> None:
    assert "does not exist" in fsworker("ingest", "/no/such", "--app", "shop", "--store", store_path, check=2).stderr


@needs_root
@pytest.mark.parametrize("command", [["worker"], ["up"]])
def test_a_worker_without_write_permission(command: list[str], open_path: Path) -> None:
    store_path = open_path / "files"
    Store.create(store_path, apps=["shop"]).close()
    os.chmod(store_path, 0o755)
    said = _refused_as_nobody(*command, *([store_path] if command == ["up"] else ["--store", store_path]))
    assert "nobody cannot write to" in said
    assert "chown -R nobody" in said


@needs_root
def test_a_closed_store_names_the_group_to_join(open_path: Path) -> None:
    Store.create(open_path / "files", apps=["shop"]).close()
    group = grp.getgrgid((open_path / "files").stat().st_gid).gr_name
    assert f"usermod -aG {group} nobody" in _refused_as_nobody("verify", "--store", open_path / "files")


@needs_root
def test_init_where_nothing_may_be_made_names_the_fix(open_path: Path) -> None:
    said = _refused_as_nobody("init", open_path / "new", "--app", "shop")
    assert f"install -d -o nobody {open_path / 'new'}" in said


def _refused_as_nobody(*arguments: object) -> str:
    """What the command says to a user who has no rights; it must exit with 2."""
    done = subprocess.run(
        [sys.executable, "-c", _AS_NOBODY, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "FSWORKER_STATE_DIR": "/tmp", "HOME": "/tmp"},
    )
    assert done.returncode == 2, done.stderr
    return done.stderr


# The interpreter may lie where only root gets, so everything is loaded before the user changes.
_AS_NOBODY = """
import os, sys
from fsworker.cli import cli, main
dict(cli.commands)
os.setgroups([]); os.setgid(65534); os.setuid(65534)
main()
"""


# With a running stack


def test_ingest_prints_hashes(stack: RunningStack, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("from the command line")
    environment = {**stack.environment, "FSWORKER_STORE": str(stack.store_path)}
    done = fsworker("ingest", tmp_path / "note.txt", "--app", "shop", env=environment)
    name = hashlib.sha1(b"from the command line").hexdigest()
    assert name in done.stdout
    tree = json.loads(fsworker("ingest", tmp_path / "note.txt", "--app", "shop", "--json", env=environment).stdout)
    (item,) = tree["results"]
    assert (item["state"], item["result"]["hash"], item["result"]["duplicate"]) == ("done", name, True)


def test_ingest_exits_1_when_a_thumbnail_fails(stack: RunningStack, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("no picture")
    environment = {**stack.environment, "FSWORKER_STORE": str(stack.store_path)}
    arguments = [tmp_path / "note.txt", "--app", "shop", "--thumbnail", "small=100x100"]
    done = fsworker("ingest", *arguments, check=1, env=environment)
    assert "thumbnail small:" in done.stderr
    wrong = fsworker("ingest", *arguments[:-1], "small=huge", check=2, env=environment)
    assert "'huge' is not" in wrong.stderr
    assert "NAME=SPEC" in fsworker("ingest", *arguments[:-1], "100x100", check=2, env=environment).stderr


def test_stats_says_where_redis_is(stack: RunningStack) -> None:
    tree = json.loads(fsworker("stats", "--json", "--store", stack.store_path, env=stack.environment).stdout)
    assert tree["redis_url"] == stack.redis_url
    assert tree["store"] == str(stack.store_path)
    assert set(tree["queues"]) == {"fsworker.maintenance", "fsworker.ingest.shop", "fsworker.ingest.blog"}


def test_a_second_up_on_the_same_store_is_refused(stack: RunningStack) -> None:
    done = fsworker("up", stack.store_path, check=2, env=stack.environment)
    assert "an 'fsworker up' runs already for this store" in done.stderr


def send(stack: RunningStack, upload: str, **arguments: object) -> AsyncResult:
    """What a plain producer sends for a file that it has written."""
    producer = Celery(broker=stack.redis_url, backend=stack.redis_url)
    kwargs = {"upload": upload, **arguments}
    return producer.send_task("fsworker.ingest", kwargs=kwargs, queue="fsworker.ingest.shop", task_id=f"shop.{uuid4()}")


def entries_of(stack: RunningStack) -> dict[str, dict[str, object]]:
    """What lies under ``Error/``, by job id."""
    listed = json.loads(fsworker("error", "list", "--json", "--store", stack.store_path).stdout)["entries"]
    return {entry["reason"]["job_id"]: entry for entry in listed}


def test_refused_uploads_are_listed_retried_and_discarded(stack: RunningStack) -> None:
    names, path = ("retried", "discarded"), stack.store_path
    for name in names:
        (stack.spool() / name).write_text(name)
        os.link(stack.spool() / name, stack.directory / name)  # which could change it while it is read
    answers = [send(stack, name) for name in names]
    for answer in answers:
        with pytest.raises(Exception, match="hard link"):
            answer.get(timeout=30)
    entries = entries_of(stack)
    assert {entries[answer.id]["kind"] for answer in answers} == {"rejected"}
    retried, discarded = (str(entries[answer.id]["stamp"]) for answer in answers)
    fsworker("error", "discard", discarded, "--store", path)  # asks nobody where no person sits
    assert "no entry" in fsworker("error", "discard", "--yes", discarded, "--store", path, check=1).stderr
    (stack.directory / "retried").unlink()  # a person has mended the cause
    said = json.loads(fsworker("error", "retry", "--json", retried, "--store", path).stdout)
    assert said == {"retried": {retried: answers[0].id}}
    assert not entries_of(stack).keys() & {answer.id for answer in answers}
    assert stack.client().job(answers[0].id).get().hash == hashlib.sha1(b"retried").hexdigest()


def test_an_upload_named_like_our_reason_does_not_replace_it(stack: RunningStack) -> None:
    (stack.spool() / "Reason.json").write_bytes(b'{"kind": "retained"}')
    answer = send(stack, "Reason.json", max_bytes=1)
    with pytest.raises(Exception, match="more than the 1 allowed"):
        answer.get(timeout=30)
    entry = entries_of(stack)[answer.id]
    assert (entry["kind"], entry["files"]) == ("rejected", ["upload-Reason.json"])
