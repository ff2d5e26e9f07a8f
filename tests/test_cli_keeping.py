"""The commands about keep-sets, collections, trash, holds: as a person runs them, against a real store and Redis."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from keeping import World, world
from processes import ENVIRONMENT

from fsworker.broker.kv import KV
from fsworker.cli import cli
from fsworker.model import Hash

KEPT, GARBAGE = "kept by shop", "kept by nobody"


class Shell:
    """Runs ``fsworker`` on a store whose grace is nothing: in this process, or in one of its own."""

    def __init__(self, w: World, directory: Path) -> None:
        self.w = w
        self.directory = directory
        self.kept, self.garbage = w.put(KEPT, GARBAGE)
        self.environment = {
            "FSWORKER_STORE": str(w.store.root),
            "FSWORKER_REDIS_URL": w.kv.url,
            "FSWORKER_NAMESPACE": w.names.namespace,
            "FSWORKER_STATE_DIR": str(directory / "state"),
        }

    def __call__(self, *arguments: str, code: int = 0, stdin: str = "", **settings: str) -> str:
        done = CliRunner().invoke(cli, arguments, env={**self.environment, **settings}, input=stdin)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
        assert done.exit_code == code, done.output
        return done.output

    def process(self, *arguments: str, stdin: str = "") -> str:
        command = [sys.executable, "-m", "fsworker", *arguments]
        environment = {**ENVIRONMENT, **self.environment}
        return subprocess.run(
            command, env=environment, input=stdin, stdout=subprocess.PIPE, text=True, check=True
        ).stdout

    def json(self, *arguments: str, code: int = 0, stdin: str = "", **settings: str) -> Any:
        environment_output = self(*arguments, "--json", code=code, stdin=stdin, **settings)
        start = environment_output.index("{")
        return json.JSONDecoder().raw_decode(environment_output[start:])[0]

    def publish_all(self, *kept: Hash) -> None:
        self("keep", "publish", "--app", "shop", "-", "--allow-empty", stdin="".join(f"{name}\n" for name in kept))
        self("keep", "publish", "--app", "blog", "-", "--allow-empty")


@pytest.fixture
def sh(tmp_path: Path, redis_url: str) -> Iterator[Shell]:
    with world(tmp_path, KV(redis_url), grace_s=0.0) as w:
        yield Shell(w, tmp_path)


def test_from_publish_to_purge(sh: Shell) -> None:
    report = sh.json("gc", code=1)
    assert [refusal["reason"] for refusal in report["refused"]] == ["no_keep_set", "no_keep_set"]
    assert "fsworker keep publish --app blog" in report["refused"][0]["message"]

    sh.publish_all(sh.kept)
    plan = sh.json("gc", "--dry-run")
    assert [file["hash"] for file in plan["plan"]["trash"]] == [sh.garbage]
    assert plan["trash"] == 1
    assert sh.garbage in sh("gc", "--dry-run")
    assert sh.w.has(sh.garbage)

    done = sh.json("gc")
    assert (done["trashed"], done["kept"], done["phase"]) == (1, 1, "done")
    listed = sh.json("trash", "list")["runs"]
    assert [(run["run"], run["files"]) for run in listed] == [(done["run"], 1)]
    assert sh.json("trash", "list", done["run"])["hashes"] == [sh.garbage]

    answer = sh.json("why", sh.garbage)
    assert (answer["state"], answer["trashed"][0]["run"]) == ("trashed", done["run"])
    assert sh.json("trash", "restore", sh.garbage)["restored"] == [sh.garbage]
    assert sh.w.has(sh.garbage)

    sh.publish_all(sh.kept)
    assert "Trashed   1" in sh("gc")
    assert sh.json("trash", "purge")["deleted"] == 0
    sh.publish_all(sh.kept)
    assert sh.json("trash", "purge", FSWORKER_TRASH_RETENTION="0s")["deleted"] == 1
    assert sh.json("why", sh.garbage, code=1)["state"] == "unknown"
    assert sh.json("trash", "restore", sh.garbage, code=1)["failed"] == [sh.garbage]
    assert sh("trash", "list").strip() == "Trash is empty."
    assert sh.json("stats")["last_runs"]["purge"]["deleted"] == 1


def test_keep_publish_and_show(sh: Shell) -> None:
    assert sh.json("keep", "show", code=1)["keep_sets"]["shop"]["state"] == "missing"
    hashes = sh.directory / "hashes"
    hashes.write_text(f"{sh.kept}\n")
    assert "give --snapshot-time" in sh("keep", "publish", "--app", "shop", str(hashes), code=2)
    assert "is no time" in sh("keep", "publish", "--app", "shop", str(hashes), "--snapshot-time", "yesterday", code=2)
    now = sh.w.kv.time_s()
    done = sh.json("keep", "publish", "--app", "shop", str(hashes), "--snapshot-time", str(now))
    assert done["snapshot_time"] == now
    sh("keep", "publish", "--app", "blog", "-", code=1)
    assert "hash number 2 is 'oops'" in sh("keep", "publish", "--app", "shop", "-", stdin=f"{sh.kept}\noops\n", code=1)
    sh("keep", "publish", "--app", "wiki", "-", code=2)
    sh("keep", "publish", "--app", "blog", "-", "--allow-empty")
    shown = sh.json("keep", "show")
    assert shown["keep_sets"]["shop"]["count"] == 1
    assert shown["keep_sets"]["blog"]["count"] == 0
    assert shown["warnings"] == []
    assert "shop" in sh("keep", "show")
    old = sh("keep", "show", code=1, FSWORKER_KEEP_SET_MAX_AGE="10ms")
    assert "Does its publishing still run?" in old
    stats = sh.json("stats", FSWORKER_KEEP_SET_MAX_AGE="10ms")
    assert stats["keep_sets"]["shop"]["count"] == 1
    assert len(stats["warnings"]) == 2


def test_from_standard_input_the_snapshot_is_the_start_of_the_command(sh: Shell) -> None:
    before_s = sh.w.kv.time_s()
    done = json.loads(sh.process("keep", "publish", "--app", "shop", "-", "--json", stdin=f"{sh.kept}\n"))
    a_python_needs_s = 0.05
    assert before_s <= done["snapshot_time"] <= sh.w.kv.time_s() - a_python_needs_s


def test_why(sh: Shell) -> None:
    sh.publish_all(sh.kept)
    kept = sh.json("why", sh.kept)
    assert kept["kept_by"] == {"blog": False, "shop": True}
    assert kept["next_collection"] == "would keep it, for shop"
    garbage = sh.json("why", sh.garbage)
    assert garbage["state"] == "present"
    assert garbage["next_collection"] == "would trash it: no application keeps it"
    assert "does not keep it" in sh("why", sh.garbage)
    young = sh.json("why", sh.garbage, FSWORKER_GRACE="24h")
    assert "too young" in young["next_collection"]
    assert young["stored"]["safe_until_s"] > young["stored"]["born_s"] + 86400
    sh.w.redis.delete(sh.w.names.manifest_key("blog"))
    refused = sh.json("why", sh.garbage)
    assert refused["next_collection"] == "would be refused"
    assert "application blog has no keep-set" in refused["problems"][0]
    away = sh.json("why", sh.garbage, FSWORKER_REDIS_URL="redis://127.0.0.1:1/0")
    assert away["next_collection"] == "not known: Redis is away"
    assert "is not a hash" in sh("why", "xyz", code=2)


def test_hold(sh: Shell) -> None:
    sh.publish_all(sh.kept)
    assert sh.json("hold", "2h")["quiet"] is True
    assert sh.json("gc", code=1)["refused"][0]["reason"] == "hold"
    assert "a hold is in force until" in sh("trash", "restore", "--all", code=1)
    assert "a hold is in force until" in sh("trash", "purge", code=1)
    assert sh.json("hold", "release") == {"held": False, "was_held": True}
    assert "there was no hold" in sh("hold", "release")
    assert sh.json("gc")["trashed"] == 1
    for wrong in ("soon", "0s", "99d"):
        sh("hold", wrong, code=2)


def test_overrides(sh: Shell) -> None:
    sh.publish_all(sh.kept)
    assert sh.json("gc", code=1, FSWORKER_KEEP_SET_MAX_AGE="10ms")["refused"][0]["override"] == "keep_set_max_age"
    assert sh.json("gc", "--override", "keep-set-max-age", FSWORKER_KEEP_SET_MAX_AGE="10ms")["trashed"] == 1
    assert sh.json("gc", "--override", "max_trash", "--override", "max_shrink")["trashed"] == 0, (
        "an unneeded one is accepted"
    )
    sh("gc", "--override", "hold", code=2)


def test_retire(sh: Shell) -> None:
    sh.publish_all(sh.kept)
    refused = sh("app", "retire", "shop", code=1, stdin="blog\n")
    assert "1 stored files (12 B) are kept by it alone and become collectable" in refused
    assert sh.json("app", "list")["apps"].keys() == {"shop", "blog"}
    assert "is not registered" in sh("app", "retire", "wiki", "--yes", code=2)
    sh("app", "retire", "shop", stdin="shop\n")
    assert sh.json("app", "list")["apps"].keys() == {"blog"}
    assert sh.json("gc")["trashed"] == 2
    assert "no application is left" in sh("app", "retire", "blog", "--yes")
    assert sh.json("gc", code=1)["refused"][0]["reason"] == "no_apps"
    assert (sh.w.store.root / "Spool/shop").is_dir()


def test_retire_without_redis(sh: Shell) -> None:
    done = sh.json("app", "retire", "shop", "--yes", FSWORKER_REDIS_URL="redis://127.0.0.1:1/0")
    assert "Redis is away" in done["consequence"]


def test_trash_needs_no_redis(sh: Shell) -> None:
    sh.publish_all(sh.kept)
    run = sh.json("gc")["run"]
    nowhere = {"FSWORKER_REDIS_URL": ""}
    assert sh.json("trash", "list", **nowhere)["runs"][0]["files"] == 1
    assert sh.json("trash", "restore", run, **nowhere)["restored"] == [sh.garbage]
    sh("trash", "restore", "20200101000000-00000000-00000000", code=1, **nowhere)
    sh("trash", "restore", code=2, **nowhere)
    sh("gc", code=2, **nowhere)
