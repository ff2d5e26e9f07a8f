"""``fsworker doctor`` and ``fsworker health``: each trouble is planted, and has to be found, with a way out of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis
from click.testing import CliRunner
from keeping import HOUR, World, world
from processes import ENVIRONMENT, eventually
from stacks import RunningStack
from users import READER, STORE_GROUP, WORKER, as_user, needs_root, open_path

from fsworker.broker.acl import acl_file, all_users
from fsworker.broker.kv import KV, connect
from fsworker.broker.names import Names
from fsworker.cli import cli
from fsworker.collection.upkeep import last_sweep_s, note_last, note_sweep
from fsworker.config import Settings
from fsworker.doctor import broker, examine, running, state, storage
from fsworker.doctor.findings import Finding
from fsworker.host.alive import alive_file
from fsworker.host.embedded import EmbeddedServer
from fsworker.keepsets.accepted import note_accepted
from fsworker.keepsets.form import parse_manifest
from fsworker.store import layout
from fsworker.store.facade import Store
from fsworker.store.handle import SYNC_FAILED_MARK
from fsworker.store.hold import set_hold
from fsworker.store.objects import ObjectStore

__all__ = ["open_path"]

NOW_S = 1_800_000_000.0


def levels(findings: Iterable[Finding]) -> list[str]:
    """The levels, each with its topic. Whatever is not well has to say what to do."""
    found = list(findings)
    for finding in found:
        assert finding.what
        assert bool(finding.fix) == (finding.level != "ok"), finding
    return [f"{finding.level} {finding.topic}" for finding in found]


def only(findings: Iterable[Finding]) -> Finding:
    (finding,) = [finding for finding in findings if finding.level != "ok"]
    assert finding.fix
    return finding


@pytest.fixture
def w(tmp_path: Path, redis_url: str) -> Iterator[World]:
    with world(tmp_path, KV(redis_url)) as made:
        yield made


# The store's directories


def test_a_new_store_is_well(store: Store) -> None:
    assert levels(storage.modes(store)) == ["ok modes"]
    assert levels(storage.writing(store)) == ["ok filesystem"]
    assert levels(storage.sync_failure(store)) == ["ok fsync"]
    assert levels(storage.look_at_storage(store))[2:] != []


@pytest.mark.parametrize(
    ("directory", "mode", "level"),
    [
        (".", 0o2755, "problem"),
        ("Data", 0o2777, "problem"),
        ("Data", 0o0750, "warning"),  # without setgid new directories get another group
        ("Temp", 0o0755, "problem"),
        ("Lock", 0o0770, "problem"),
        ("Error", 0o0600, "problem"),  # its owner cannot enter it
        ("Spool", 0o0711, "warning"),
        ("Spool/shop", 0o2777, "problem"),
    ],
)
def test_a_wrong_mode_is_named_with_the_command_that_mends_it(
    store: Store, directory: str, mode: int, level: str
) -> None:
    path = store.root if directory == "." else store.root / directory
    right = path.stat().st_mode & 0o7777
    path.chmod(mode)
    # The set-up was read when the store was opened: Data that lets its group write is not taken for the other set-up.
    found = only(storage.modes(store))
    assert (found.level, found.fix) == (level, f"chmod {right:04o} {path}")
    subprocess.run(found.fix, shell=True, check=True)
    assert levels(storage.modes(store)) == ["ok modes"]


def test_a_missing_directory_comes_back_by_the_fix(store: Store) -> None:
    (store.root / "Trash").rmdir()
    found = only(storage.modes(store))
    assert found.fix == f"fsworker init {store.root} --app blog --app shop"
    assert CliRunner().invoke(cli, found.fix.split()[1:]).exit_code == 0
    assert levels(storage.modes(store)) == ["ok modes"]


def test_a_database_that_the_original_made_lacks_what_it_never_had(tmp_path: Path, redis_url: str) -> None:
    for name in ("Data", "Temp", "Error"):
        (tmp_path / "old" / name).mkdir(parents=True)
        (tmp_path / "old" / name).chmod(0o775)
    (tmp_path / "old").chmod(0o775)
    (tmp_path / "old/FileStruct.json").write_text('{"Version": 1}')
    with ObjectStore(tmp_path / "old") as store:
        found = list(examine(store, Settings(store=store.root, redis_url=redis_url, state_dir=tmp_path)))
        assert {"warning applications", "problem modes"} <= set(levels(found))
        fix = next(f.fix for f in found if f.topic == "modes").replace("NAME", "shop")
        assert CliRunner().invoke(cli, fix.split()[1:]).exit_code == 0
        store.reload()
        assert levels(storage.modes(store)) == ["ok modes"]


def test_a_directory_that_is_a_link_is_no_directory(store: Store, tmp_path: Path) -> None:
    (store.root / "Error").rmdir()
    (store.root / "Error").symlink_to(tmp_path)
    assert only(storage.modes(store)).level == "problem"


def test_a_failed_fsync_is_remembered(store: Store) -> None:
    (store.root / SYNC_FAILED_MARK).touch()
    found = only(storage.sync_failure(store))
    assert found.level == "problem"
    assert "fsworker verify --repair" in found.fix


class Room(NamedTuple):
    f_frsize: int = 4096
    f_blocks: int = 10**8
    f_bavail: int = 5 * 10**7
    f_files: int = 10**8
    f_favail: int = 5 * 10**7


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        (Room(), ["ok space", "ok inodes"]),
        (Room(f_bavail=4 * 10**6), ["warning space", "ok inodes"]),
        (Room(f_bavail=1000), ["problem space", "ok inodes"]),
        (Room(f_favail=4 * 10**6), ["ok space", "warning inodes"]),
        (Room(f_favail=9_999), ["ok space", "problem inodes"]),
        (Room(f_files=0, f_favail=0), ["ok space", "ok inodes"]),  # btrfs
    ],
)
def test_room(room: Room, expected: list[str]) -> None:
    assert levels(storage.room(room, Path("/srv/files"))) == expected


@pytest.mark.parametrize(
    ("mask", "expected"), [(0o027, "ok umask"), (0o777, "problem umask"), (0o100, "problem umask")]
)
def test_umask(mask: int, expected: str) -> None:
    assert levels(storage.umask(mask)) == [expected]


def test_who_runs_it(store: Store) -> None:
    assert levels(storage.user(store, 0)) == ["warning user"]
    if store.owner_uid:
        assert levels(storage.user(store, store.owner_uid)) == ["ok user"]
    stranger = only(storage.user(store, store.owner_uid + 4711))
    assert (stranger.level, stranger.fix.startswith("sudo -u ")) == ("problem", True)


@needs_root
def test_the_worker_has_to_be_in_the_group_of_each_spool(open_path: Path) -> None:
    root = open_path / "store"

    def make() -> None:
        Store.create(root, apps=["shop", "blog"], group=str(STORE_GROUP)).close()

    os.chmod(open_path, 0o777)
    as_user(WORKER, STORE_GROUP, make)
    os.chown(root / "Spool/shop", -1, READER)
    os.chmod(root / "Spool/shop", 0o2770)
    os.chown(root / "Spool/shop", READER, -1)

    def look(groups: tuple[int, ...]) -> list[Finding]:
        def inside() -> list[Finding]:
            with ObjectStore(root) as store:
                return list(storage.look_at_storage(store))

        return list(as_user(WORKER, STORE_GROUP, inside, groups=groups))

    outside = [f for f in look(()) if f.topic == "groups"]
    assert levels(outside)[0] == "problem groups"
    assert outside[0].fix.startswith(f"groupadd --gid {READER} NAME && usermod -aG NAME ")
    assert "problem groups" not in levels(look((READER,)))


def test_applications_that_share_a_group_are_warned_of(store: Store) -> None:
    assert only(storage.groups(store, set(os.getgroups()), 0)).level == "warning"


@pytest.mark.parametrize(
    ("mode", "expected"), [(0o700, "ok state"), (0o770, "problem state"), (0o702, "problem state")]
)
def test_nobody_else_may_write_to_the_state_directory(tmp_path: Path, mode: int, expected: str) -> None:
    directory = tmp_path / "state"
    assert levels(state(directory)) == ["warning state"]
    directory.mkdir()
    directory.chmod(mode)
    assert levels(state(directory)) == [expected]


# Redis

GOOD = {"redis_version": "7.0.0", "maxmemory_policy": "noeviction", "maxmemory": 0, "used_memory": 1, "aof_enabled": 1}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"redis_version": "6.2.14"}, ["problem redis version"]),
        ({"redis_version": "6.9", "valkey_version": "9.1.0"}, []),
        ({"redis_version": "10.0"}, []),
        ({"maxmemory_policy": "allkeys-lru"}, ["warning redis memory"]),
        ({"maxmemory_policy": "volatile-lru", "maxmemory": 100}, ["problem redis memory"]),
        ({"maxmemory": 100, "used_memory": 95}, ["problem redis memory"]),
        ({"aof_enabled": 0}, ["warning redis persistence"]),
        ({"aof_last_write_status": "err"}, ["problem redis persistence"]),
        ({"rdb_last_bgsave_status": "err"}, ["problem redis persistence"]),
    ],
)
def test_what_redis_says_of_itself(changes: dict[str, Any], expected: list[str]) -> None:
    info = {**GOOD, **changes}
    found = [*broker.version(info), *broker.memory(info), *broker.persistence(info)]
    assert [each for each in levels(found) if not each.startswith("ok")] == expected


def test_the_embedded_server_is_well(redis_url: str) -> None:
    found = broker.look_at_redis(KV(redis_url), Names("fsworker"), ["shop"], private=True)
    assert {each.split()[0] for each in levels(found)} == {"ok"}


def test_redis_that_is_away_is_one_problem(tmp_path: Path) -> None:
    away = KV(f"redis+socket://{tmp_path}/nothing.sock?virtual_host=0")
    assert levels(broker.look_at_redis(away, Names("fsworker"), [], private=False)) == ["problem redis"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A Redis of the test's own, to be set badly."""
    with EmbeddedServer.start(tmp_path / "redis") as started:
        yield started


def _set(server: EmbeddedServer, name: str, value: str) -> None:
    with connect(server.url) as client:
        client.config_set(name, value)


def test_a_server_that_is_set_badly(server: EmbeddedServer) -> None:
    _set(server, "maxmemory-policy", "allkeys-lru")
    _set(server, "maxmemory", "1gb")
    _set(server, "appendonly", "no")
    _set(server, "proto-max-bulk-len", "512mb")
    found = levels(broker.look_at_redis(KV(server.url), Names("fsworker"), ["shop"], private=False))
    assert [each for each in found if not each.startswith("ok")] == [
        "problem redis memory",
        "warning redis persistence",
        "warning redis messages",
        "warning redis users",  # nobody is kept from anything
    ]


class Users:
    """A server with the users of ``fsworker acl``."""

    def __init__(self, server: EmbeddedServer, names: Names, apps: list[str]) -> None:
        self.names, self.apps = names, apps
        users = all_users(names, apps)
        self.passwords = {user.name: f"secret of {user.name}" for user in users}
        self.admin: redis.Redis = connect(server.url)
        for line in acl_file(users, self.passwords).splitlines():
            _, name, *rules = line.split(" ")
            if name != "default":
                self.admin.execute_command("ACL", "SETUSER", name, *_joined(rules))
        self.path = server.socket_path

    def url(self, user: str) -> str:
        password = self.passwords[user].replace(" ", "%20")
        return f"redis+socket://{user}:{password}@{self.path}?virtual_host=0"

    def look(self, user: str) -> list[str]:
        kv = KV(self.url(user))
        found = broker.look_at_redis(kv, self.names, self.apps, private=False)
        return [f"{f.level} {f.what}" for f in found if f.level != "ok"]


def _joined(rules: list[str]) -> list[str]:
    """Selectors are one argument each, spaces and all."""
    text = " ".join(rules)
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text + " "):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == " " and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    return parts


def test_the_users_that_fsworker_makes_have_the_rights_that_doctor_expects(server: EmbeddedServer) -> None:
    users = Users(server, Names("fsworker"), ["blog", "shop"])
    assert users.look("fsworker-maintenance") == []
    assert users.look("fsworker-admin") == []


def test_rights_that_are_too_wide_or_too_narrow_are_named(server: EmbeddedServer) -> None:
    users = Users(server, Names("fsworker"), ["blog", "shop"])
    users.admin.execute_command("ACL", "SETUSER", "fsworker-app-shop", "(+lpush ~fsworker.ingest.blog)")
    users.admin.execute_command("ACL", "DELUSER", "fsworker-app-blog")
    assert users.look("fsworker-admin") == [
        "problem application blog has no user fsworker-app-blog",
        "problem user fsworker-app-shop may run LPUSH fsworker.ingest.blog x",
    ]
    users.admin.execute_command("ACL", "SETUSER", "fsworker-maintenance", "+config")
    (found,) = users.look("fsworker-maintenance")
    assert "more rights than it needs" in found


def test_a_default_user_without_rights_is_named(server: EmbeddedServer) -> None:
    """Redis 7.0 reads transactions in its append-only file with them."""
    users = Users(server, Names("fsworker"), ["shop"])
    users.admin.execute_command("ACL", "SETUSER", "default", "-set")
    (found,) = users.look("fsworker-admin")
    assert found.startswith("problem user default may not write")


def test_a_user_who_may_not_even_look_is_told_whom_to_be(server: EmbeddedServer) -> None:
    users = Users(server, Names("fsworker"), ["shop"])
    found = users.look("fsworker-app-shop")
    assert len(found) == 1
    assert "INFO is refused" in found[0]
    assert "secret" not in found[0]


# Clocks, workers, beat, queues


@pytest.mark.parametrize(
    ("host_s", "redis_s", "expected"),
    [
        (0.0, 0.0, "ok clocks"),
        (5.0, 0.0, "warning clocks"),
        (0.0, -5.0, "warning clocks"),
        (-61.0, 0.0, "problem clocks"),
        (0.0, 61.0, "problem clocks"),
    ],
)
def test_clocks_that_differ(host_s: float, redis_s: float, expected: str) -> None:
    times = running.Times(NOW_S, NOW_S + 0.01, NOW_S + host_s, NOW_S + redis_s)
    assert levels(running.clocks(times, Settings(), synchronised=True)) == [expected]


def test_a_slow_answer_of_redis_is_no_skew() -> None:
    times = running.Times(NOW_S, NOW_S + 90, NOW_S + 90, NOW_S + 45)
    assert levels(running.clocks(times, Settings(), synchronised=True)) == ["ok clocks"]


def test_a_clock_that_nobody_holds_is_warned_of() -> None:
    times = running.Times(NOW_S, NOW_S, NOW_S, None)
    assert levels(running.clocks(times, Settings(), synchronised=False)) == ["warning clocks"]


def _sign(directory: Path, role: str, age_s: float) -> None:
    path = alive_file(directory, role)
    path.touch()
    os.utime(path, (time.time() - age_s,) * 2)


def test_signs_of_life(tmp_path: Path) -> None:
    assert levels(running.workers(tmp_path, all_here=True)) == ["problem workers"] * 2
    assert levels(running.workers(tmp_path, all_here=False)) == ["warning workers"] * 2
    _sign(tmp_path, "ingest", 0)
    _sign(tmp_path, "maintenance", 3600)
    assert levels(running.workers(tmp_path, all_here=False)) == ["ok workers", "problem workers"]


@pytest.mark.parametrize(
    ("ago_s", "expected"),
    [(None, "warning beat"), (30.0, "ok beat"), (400.0, "ok beat"), (421.0, "problem beat"), (-5.0, "ok beat")],
)
def test_beat_is_seen_by_the_sweeps_that_it_starts(ago_s: float | None, expected: str) -> None:
    swept_s = None if ago_s is None else NOW_S - ago_s
    assert levels(running.beat(swept_s, NOW_S, Settings())) == [expected]


def test_a_sweep_is_noted(store: Store) -> None:
    assert last_sweep_s(store) is None
    note_sweep(store)
    swept_s = last_sweep_s(store)
    assert swept_s is not None
    assert 0 <= store.probe_clock() - swept_s < 60
    (store.root / "Lock/swept.json").write_text("{")
    assert last_sweep_s(store) is None


def test_long_queues_and_refused_messages(w: World) -> None:
    assert levels(running.queues(w.kv, w.names, ["shop"])) == ["ok queues"]
    w.redis.lpush(w.names.ingest_queue("shop"), *(["x"] * 1001))
    w.kv.count(w.names.refused_key("ingest"), f"{w.names.ingest_queue('shop')} size")
    found = list(running.queues(w.kv, w.names, ["shop"]))
    assert levels(found) == ["warning queues", "warning refusals"]
    assert "--role ingest" in found[0].fix
    w.redis.delete(w.names.ingest_queue("shop"))


@pytest.mark.parametrize(
    ("age_s", "expected"), [(60.0, "ok spool"), (1000.0, "warning spool"), (4000.0, "problem spool")]
)
def test_requests_that_wait_too_long(store: Store, age_s: float, expected: str) -> None:
    for app in ("shop", "blog"):
        (store.root / layout.SPOOL / app / f".{app}.00000000-0000-4000-8000-000000000000.json").write_text("{}")
    found = list(running.spools(store, time.time() + age_s))
    assert levels(found) == [expected] * 2
    assert "shop: 1 jobs wait" in found[1].what


# Keep-sets and collections


def keep_sets(w: World, **settings: Any) -> list[Finding]:
    times = running.read_times(w.store, w.kv)
    found = running.keep_sets(w.store, w.kv, w.names, times, w.settings.model_copy(update=settings))
    return list(found)


def test_applications_that_never_published_are_named(w: World) -> None:
    w.publish("shop")
    found = only(keep_sets(w))
    assert found.level == "warning"
    assert "application blog" in found.what


def test_a_keep_set_that_was_there_and_is_gone_is_a_problem(w: World) -> None:
    w.publish_all()
    assert levels(keep_sets(w)) == ["ok keep-sets"]
    data = w.redis.get(w.names.manifest_key("shop"))
    assert isinstance(data, bytes)
    note_accepted(w.store, [parse_manifest(data)])
    w.redis.delete(w.names.manifest_key("shop"))
    assert only(keep_sets(w)).level == "problem"


def test_an_old_keep_set_warns_before_it_stops_collections(w: World) -> None:
    w.publish_all()
    age_s = w.kv.time_s() - w.manifest()["snapshot_time"] + 1
    w.set_manifest(snapshot_time=w.manifest()["snapshot_time"] - 37 * HOUR)
    assert 36 * HOUR < age_s + 37 * HOUR < 48 * HOUR
    warned = only(keep_sets(w))
    assert (warned.level, warned.fix) == ("warning", "fsworker keep publish --app shop -, as a cron job does it")
    w.set_manifest(snapshot_time=w.manifest()["snapshot_time"] - 12 * HOUR)
    assert only(keep_sets(w)).level == "problem"


def test_a_broken_keep_set_and_a_broken_note_are_problems(w: World) -> None:
    w.publish_all()
    w.redis.set(w.names.manifest_key("shop"), b"{")
    assert only(keep_sets(w)).level == "problem"
    (w.store.root / "Lock/accepted.json").write_text("[")
    assert only(keep_sets(w)).level == "problem"


def test_a_hold_is_mentioned(store: Store) -> None:
    assert levels(running.collections(store)) == []
    set_hold(store, 3600)
    assert "fsworker hold release" in only(running.collections(store)).fix


def test_what_is_unreferenced_but_young_is_told(w: World) -> None:
    w.put("kept by nobody, and made just now")
    w.publish_all()
    note_last(w.store, "collect", w.collect().as_json())
    (found,) = running.collections(w.store)
    assert found.level == "ok"
    assert "the last one left 1 unreferenced" in found.what


def test_a_purge_that_never_comes_to_its_end_is_told(w: World) -> None:
    note_last(w.store, "purge", {"deleted": 0})
    now_s = w.store.probe_clock()
    assert levels(running.lateness(w.store, now_s + 48 * 3600, w.settings)) == []
    assert "the last purge ended 2.1 d ago" in only(running.lateness(w.store, now_s + 50 * 3600, w.settings)).what
    off = w.settings.model_copy(update={"purge_every": None})
    assert levels(running.lateness(w.store, now_s + 50 * 3600, off)) == []


def test_the_maintenance_user_may_look_at_everything(w: World, server: EmbeddedServer) -> None:
    users = Users(server, w.names, ["blog", "shop"])
    kv = KV(users.url(f"{w.names.namespace}-maintenance"))
    found = levels(running.look_at_clocks_and_keep_sets(w.store, kv, w.names, w.settings))
    kv.close()
    assert [each for each in found if each.startswith("problem")] == []
    assert "ok queues" in found
    assert found.count("warning keep-sets") == 2  # nobody has published


# As it is typed


def doctor(stack: RunningStack, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "fsworker", "doctor", "--store", str(stack.store_path), *arguments]
    done = subprocess.run(command, env=stack.environment, capture_output=True, text=True, check=False, timeout=60)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout


def test_a_running_stack_has_no_problems(stack: RunningStack) -> None:
    def swept() -> bool:
        with stack.store() as store:
            return last_sweep_s(store) is not None

    assert eventually(swept, timeout_s=30)
    code, text = doctor(stack, "--json")
    report = json.loads(text)
    assert [f for f in report["findings"] if f["level"] == "problem"] == []
    assert (code, report["level"]) == (0, "warning")  # two applications share a group, and none has published
    topics = {finding["topic"] for finding in report["findings"] if finding["level"] == "ok"}
    assert {"modes", "space", "redis memory", "workers", "beat", "queues", "filesystem", "state"} <= topics
    for client in (stack.client("shop"), stack.client("blog")):
        client.keep.publish(list, allow_empty=True)
    code, text = doctor(stack)
    assert code == 0
    assert "all 2 are in force" in text


def test_problems_are_told_with_their_fix_and_by_the_exit_code(store: Store, tmp_path: Path) -> None:
    environment = {"FSWORKER_STORE": str(store.root), "FSWORKER_STATE_DIR": str(tmp_path / "state")}
    (store.root / "Temp").chmod(0o777)
    done = CliRunner().invoke(cli, ["doctor"], env=environment)
    assert done.exit_code == 1
    assert "chmod 0700" in done.output
    assert "fsworker up" in done.output
    done = CliRunner().invoke(cli, ["doctor"], env={"FSWORKER_STORE": str(tmp_path)})
    assert done.exit_code == 2


def test_examining_changes_nothing(w: World) -> None:
    w.publish_all()
    before = _tree(w.store.root)
    levels(examine(w.store, w.settings))
    assert _tree(w.store.root) == before


def _tree(root: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mode, p.stat().st_size) for p in root.rglob("*")}


# fsworker health


def health(*arguments: str, **environment: object) -> tuple[int, str]:
    done = CliRunner().invoke(cli, ["health", *arguments], env={k: str(v) for k, v in environment.items()})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    assert len(done.output.splitlines()) == 1 or done.exit_code == 2
    return done.exit_code, done.output


def test_health_of_a_running_stack(stack: RunningStack) -> None:
    directory = stack.where["state_dir"]
    for arguments in ([], ["--role", "ingest"], ["--role", "maintenance", "--max-age", "9s"]):
        code, said = health(*arguments, FSWORKER_STATE_DIR=directory)
        assert (code, said.startswith("alive")) == (0, True)


def test_health_fails_for_who_is_silent_or_was_never_there(tmp_path: Path) -> None:
    assert health(FSWORKER_STATE_DIR=tmp_path)[0] == 1
    _sign(tmp_path, "ingest", 0)
    assert health("--role=ingest", FSWORKER_STATE_DIR=tmp_path)[0] == 0
    assert health(FSWORKER_ROLE="ingest", FSWORKER_STATE_DIR=tmp_path)[0] == 0
    assert health(FSWORKER_STATE_DIR=tmp_path)[0] == 1  # the other role
    _sign(tmp_path, "ingest", 30)
    assert health("--role=ingest", FSWORKER_STATE_DIR=tmp_path)[0] == 1
    assert health("--role=ingest", "--max-age=1m", FSWORKER_STATE_DIR=tmp_path)[0] == 0
    _sign(tmp_path, "ingest", -3600)  # the clock was set back, and nobody has touched it since
    assert health("--role=ingest", FSWORKER_STATE_DIR=tmp_path)[0] == 1


def test_health_as_json(tmp_path: Path) -> None:
    _sign(tmp_path, "ingest", 0)
    code, said = health("--json", FSWORKER_STATE_DIR=tmp_path)
    tree = json.loads(said)
    assert (code, tree["alive"], tree["silent_for"]["maintenance"]) == (1, False, None)
    assert tree["silent_for"]["ingest"] < 10
    code, said = health("--json", "--role=ingest", FSWORKER_STATE_DIR=tmp_path)
    assert (code, json.loads(said)["alive"]) == (0, True)


def test_health_finds_the_state_directory_as_workers_do(store: Store, tmp_path: Path) -> None:
    directory = tmp_path / "home" / "fsworker" / store.config.store_id
    directory.mkdir(parents=True)
    _sign(directory, "ingest", 0)
    found = health("--role=ingest", FSWORKER_STORE=store.root, XDG_STATE_HOME=tmp_path / "home")
    assert found[0] == 0
    assert health("--role=ingest", f"--store={store.root}", XDG_STATE_HOME=tmp_path / "home")[0] == 0
    settings = tmp_path / "fsworker.toml"
    settings.write_text(f'state_dir = "{directory}"\n')
    assert health("--role=ingest", FSWORKER_CONFIG=settings)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        ([], {}),
        (["--max-age", "10"], {"FSWORKER_STATE_DIR": "/tmp"}),
        ([], {"FSWORKER_STATE_DIR": "/tmp", "FSWORKER_ROLE": "../x"}),
        ([], {"FSWORKER_STORE": "/nowhere"}),
    ],
)
def test_health_calls_a_wrong_setting_what_it_is(arguments: list[str], environment: dict[str, str]) -> None:
    assert health(*arguments, **environment)[0] == 2


def test_health_loads_nothing_that_takes_time() -> None:
    code = """
import sys
from fsworker.cli import cli
try:
    cli.main(["health"])
except SystemExit:
    pass
print([name for name in ("celery", "redis", "pydantic", "PIL", "rich", "fsworker.config") if name in sys.modules])
"""
    environment = {**ENVIRONMENT, "FSWORKER_STATE_DIR": "/nowhere"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
