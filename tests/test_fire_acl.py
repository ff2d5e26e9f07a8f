"""Redis users as ``fsworker.broker.acl`` writes them: the whole of fsworker works under them, and an application does no more."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from hostile_messages import plain_bytes
from kombu import Exchange, Queue
from PIL import Image
from processes import eventually
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError
from redis.retry import Retry
from stores import sha1

from fsworker.broker.acl import acl_file, all_users, digest
from fsworker.broker.kv import KV, connect
from fsworker.broker.names import Names
from fsworker.client import Client
from fsworker.config import load_settings
from fsworker.host.guard import GuardedProcess
from fsworker.host.serverbinary import find_server
from fsworker.keepsets.publish import KeepSets
from fsworker.store.facade import Store

NAMES = Names()
APPS = ["shop", "blog", "shop-2"]
USERS = all_users(NAMES, APPS)
PASSWORDS = {user.name: f"secret-of-{user.name}" for user in USERS}
UUID = "0123abcd-0000-4000-8000-0123456789ab"


class Guarded:
    """A Redis that reads the generated file, and its URL for each user."""

    def __init__(self, directory: Path, *more_flags: str) -> None:
        self.socket = directory / "s"
        acl = directory / "users.acl"
        acl.write_text(acl_file(USERS, PASSWORDS))
        self.log = directory / "redis.log"
        flags = ["--port", "0", "--unixsocket", str(self.socket), "--aclfile", str(acl), "--logfile", str(self.log)]
        flags += ["--dir", str(directory), "--save", "", *more_flags]
        self.process = GuardedProcess([str(find_server().path), *flags])
        assert eventually(self._answers), self.log.read_text()
        self.admin = self.connect("fsworker-admin")

    def _answers(self) -> bool:
        try:
            return bool(self.connect("fsworker-admin").ping())
        except redis.ConnectionError:
            return False

    def url(self, user: str) -> str:
        return f"redis+socket://{user}:{PASSWORDS[user]}@{self.socket}?virtual_host=0"

    def connect(self, user: str) -> redis.Redis:
        return connect(self.url(user))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    server = Guarded(tmp_path_factory.mktemp("acl"))
    yield server
    server.admin.close()
    server.process.stop(signal.SIGTERM, 5)


@contextmanager
def process(log: Path, environment: dict[str, str], *arguments: str) -> Iterator[None]:
    with log.open("w") as output:
        started = subprocess.Popen(
            [sys.executable, "-m", "fsworker", *arguments],
            env={**os.environ, **environment},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield
        assert started.poll() is None, log.read_text()
    finally:
        started.terminate()
        started.wait(60)


@pytest.fixture(scope="module")
def installation(guarded: Guarded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store, its two workers and beat, each as its own Redis user; gives the store's directory."""
    directory = tmp_path_factory.mktemp("installation")
    Store.create(directory / "store", apps=APPS, grace_s=0).close()
    config = directory / "store/FileStruct.json"
    tree = json.loads(config.read_text())
    tree["Apps"]["shop"]["on_quarantine"] = "shop.lost"
    config.write_text(json.dumps(tree))
    common = {
        "FSWORKER_STORE": str(directory / "store"),
        "FSWORKER_STATE_DIR": str(directory / "state"),
        "FSWORKER_SWEEP_EVERY": "1s",
        "FSWORKER_VISIBILITY_TIMEOUT": "5s",
        "FSWORKER_CONCURRENCY": "1",
        "FSWORKER_COLLECT_EVERY": "1s",
        "FSWORKER_PURGE_EVERY": "1s",
        "FSWORKER_VERIFY_EVERY": "1s",
        "FSWORKER_TRASH_RETENTION": "0s",
    }
    with ExitStack() as running:
        for user, arguments in {
            "fsworker-ingest": ["worker", "--role=ingest"],
            "fsworker-maintenance": ["worker", "--role=maintenance"],
            "fsworker-beat": ["beat"],
        }.items():
            environment = {**common, "FSWORKER_REDIS_URL": guarded.url(user)}
            running.enter_context(process(directory / f"{user}.log", environment, *arguments))
        for user in ("fsworker-ingest", "fsworker-maintenance"):
            assert eventually(lambda user=user: " ready." in (directory / f"{user}.log").read_text(), 30)  # type: ignore[misc]
        yield directory
    for log in directory.glob("*.log"):
        assert "secret-of-" not in log.read_text(), log.name
        assert "NOPERM" not in log.read_text(), log.read_text()
        assert "Traceback" not in log.read_text(), log.read_text()


@pytest.fixture
def client(guarded: Guarded, installation: Path) -> Iterator[Client]:
    url = guarded.url("fsworker-app-shop")
    with Client("shop", settings=load_settings(environ={}, store=installation / "store", redis_url=url)) as made:
        yield made


def denied(guarded: Guarded) -> list[str]:
    """What Redis refused since the last look, but for what redis-py asks without need."""
    entries = [(entry["object"], entry["username"]) for entry in guarded.admin.acl_log()]
    guarded.admin.acl_log_reset()
    return [f"{user}: {name}" for name, user in entries if not name.startswith(("client|setinfo", "client|maint"))]


# What works


def test_the_main_job_works_under_the_rules(guarded: Guarded, client: Client) -> None:
    guarded.admin.acl_log_reset()
    picture = io.BytesIO()
    Image.new("RGB", (20, 20)).save(picture, "PNG")
    small = client.ingest(picture.getvalue(), thumbnails={"small": "10x10"}).get(timeout=30)
    assert client.thumbnail(small.hash, "10x10").get(timeout=30).thumbnails
    jobs = [client.ingest(b"one"), *client.ingest_many([b"two", b"three"])]
    hashes = [job.get(timeout=30).hash for job in jobs]
    assert client.claim(hashes).get(timeout=30)["present"] == hashes
    # Results came through Redis as well as through the spool.
    assert eventually(lambda: all(guarded.admin.exists(f"celery-task-meta-{job.id}") for job in jobs))
    assert denied(guarded) == []


def test_the_sweep_works_under_the_rules(guarded: Guarded, client: Client) -> None:
    """A job that Redis never heard of is rung for by beat, maintenance and ingest together."""
    guarded.admin.acl_log_reset()
    assert client.ingest(b"silent", ring=False).get(timeout=60).size == 6
    assert denied(guarded) == []


def test_a_stock_producer_works_under_the_rules(guarded: Guarded, installation: Path) -> None:
    guarded.admin.acl_log_reset()
    url = guarded.url("fsworker-app-shop")
    queue = "fsworker.ingest.shop"
    producer = Celery(broker=url, backend=url, set_as_current=False)
    producer.conf.task_queues = [Queue(queue, Exchange(""), queue, no_declare=True)]
    (installation / "store/Spool/shop/photo").write_bytes(b"stock")
    answer = producer.send_task("fsworker.ingest", kwargs={"upload": "photo"}, queue=queue, task_id=f"shop.{UUID}")
    assert answer.get(timeout=30)["size"] == 5
    assert denied(guarded) == []
    producer.close()


def test_publishing_a_keep_set_works_under_the_rules(guarded: Guarded) -> None:
    guarded.admin.acl_log_reset()
    kv = KV(guarded.url("fsworker-app-shop"))
    keep = KeepSets("shop", NAMES, "an-id", lambda: kv)
    keep.publish(lambda: (f"{number:040x}" for number in range(1000)))
    keep.publish(lambda: (f"{number:040x}" for number in range(2000)))
    kv.close()
    assert guarded.connect("fsworker-maintenance").getrange(NAMES.manifest_key("shop"), 0, 10)
    assert denied(guarded) == []


def test_callbacks_are_taken_by_a_stock_worker_under_the_rules(
    guarded: Guarded, client: Client, tmp_path: Path
) -> None:
    guarded.admin.acl_log_reset()
    (tmp_path / "callbacks.py").write_text(
        f"""
from celery import Celery
from kombu import Exchange, Queue
app = Celery(broker={guarded.url("fsworker-app-shop")!r})
app.conf.update(
    task_queues=[Queue("fsworker.done.shop", Exchange(""), "fsworker.done.shop", no_declare=True)],
    task_create_missing_queues=False, task_ignore_result=True, worker_enable_remote_control=False,
    broker_transport_options={{"ack_emulation": False}},
)
@app.task(name="shop.attach")
def attach(job_id, state, result=None, error=None):
    open({str(tmp_path / "attached")!r}, "a").write(f"{{job_id}} {{state}}\\n")
"""
    )
    command = [sys.executable, "-m", "celery", "-A", "callbacks", "worker", "--pool=solo", "--without-gossip"]
    worker = subprocess.Popen(
        [*command, "--without-mingle", "--without-heartbeat"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        job = client.ingest(b"attach me", on_done="shop.attach")
        attached = tmp_path / "attached"
        assert eventually(lambda: attached.exists() and attached.read_text() == f"{job.id} done\n", 30)
    finally:
        worker.terminate()
        worker.wait(30)
    assert denied(guarded) == []


def command(guarded: Guarded, installation: Path, user: str, *arguments: str, status: int = 0, **options: Any) -> str:
    """A command as one of the users; gives its standard output."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        env={
            **os.environ,
            "FSWORKER_STORE": str(installation / "store"),
            "FSWORKER_STATE_DIR": str(installation / "state"),
            "FSWORKER_ROLE": "maintenance",
            "FSWORKER_REDIS_URL": guarded.url(user),
        },
        capture_output=True,
        text=True,
        check=False,
        **options,
    )
    assert done.returncode == status, f"{arguments}: {done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


def test_all_maintenance_works_under_the_rules(guarded: Guarded, installation: Path, client: Client) -> None:
    guarded.admin.acl_log_reset()
    garbage, kept, lost = (client.ingest(text).get(timeout=30).hash for text in (b"garbage", b"kept", b"lost"))
    data = installation / "store/Data"

    def publish() -> bool:
        for app in APPS:
            settings = load_settings(
                environ={}, store=installation / "store", redis_url=guarded.url(f"fsworker-app-{app}")
            )
            with Client(app, settings=settings) as files:
                files.keep.publish(lambda app=app: [kept, lost] if app == "shop" else [], allow_empty=True)  # type: ignore[misc]
        return True

    assert list(data.glob(f"*/*/{garbage}")), "nobody has published: nothing is collected"
    assert eventually(lambda: publish() and not list(data.glob(f"*/*/{garbage}")), 30)
    assert eventually(lambda: publish() and not list(installation.glob("store/Trash/*/*")), 30)
    claim = client.claim([kept, garbage]).get(timeout=30)
    assert (claim["present"], claim["missing"]) == ([kept], [garbage])
    path = data / lost[:2] / lost[2:4] / lost
    path.chmod(0o644)
    path.write_bytes(b"rotten")
    (installation / "store/Lock/sync-failed").touch()
    assert eventually(lambda: guarded.admin.delete("fsworker.done.shop") > 0, 30), "shop is told that it is lost"
    assert denied(guarded) == []


def test_every_command_works_under_the_rules(guarded: Guarded, installation: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"by command")
    shop, maintenance = "fsworker-app-shop", "fsworker-maintenance"
    guarded.admin.acl_log_reset()
    assert json.loads(command(guarded, installation, maintenance, "fsworker", "stats", "--json"))["refused"] == {}
    name = sha1(b"by command")
    command(guarded, installation, shop, "fsworker", "ingest", str(tmp_path / "file"), "--app", "shop")
    command(guarded, installation, shop, "fsworker", "keep", "publish", "-", "--app", "shop", input=f"{name}\n")
    for arguments in (
        ["why", name],
        ["app", "retire", "shop-2", "--yes"],
        ["app", "add", "shop-2"],
    ):
        command(guarded, installation, maintenance, "fsworker", *arguments)
    assert denied(guarded) == []


def test_who_sends_a_maintenance_task_by_hand_gets_its_report_under_the_rules(
    guarded: Guarded, installation: Path
) -> None:
    guarded.admin.acl_log_reset()
    maintenance, queue = "fsworker-maintenance", "fsworker.maintenance"
    command(guarded, installation, maintenance, "celery", "-A", "fsworker", "call", "fsworker.sweep", "--queue", queue)
    url = guarded.url(maintenance)
    with Celery("a person's", broker=url, backend=url, set_as_current=False) as person:
        person.conf.task_queues = [Queue(queue, Exchange(""), queue, no_declare=True)]
        assert person.send_task("fsworker.sweep", queue=queue).get(timeout=30)["failed"] == 0
    assert denied(guarded) == []


# What does not

KEEP = "fsworker:keep:blog:"
BLOG_RESULT = f"celery-task-meta-blog.{UUID}"
OWN_RESULT = f"celery-task-meta-shop.{UUID}"
COMMANDS: list[tuple[Any, ...]] = [
    # others' queues, and reading its own
    ("LPUSH", "fsworker.ingest.blog", "x"),
    ("LPUSH", "fsworker.ingest.shop-2", "x"),
    ("LPUSH", "fsworker.ingest.shop\x06\x163", "x"),
    ("LPUSH", "fsworker.maintenance", "x"),
    ("LPUSH", "fsworker.done.blog", "x"),
    ("LPUSH", "fsworker.done.shop-2", "x"),
    ("LPUSH", "celery", "x"),
    ("RPUSH", "fsworker.ingest.shop", "x"),
    ("LRANGE", "fsworker.ingest.shop", "0", "-1"),
    ("RPOP", "fsworker.ingest.shop"),
    ("BRPOP", "fsworker.ingest.blog", "1"),
    ("BRPOP", "fsworker.done.shop", "fsworker.ingest.shop", "1"),
    ("LMOVE", "fsworker.done.shop", "fsworker.maintenance", "LEFT", "LEFT"),
    ("RPOPLPUSH", "fsworker.done.shop", "fsworker.maintenance"),
    ("LTRIM", "fsworker.ingest.shop", "1", "0"),
    ("DEL", "fsworker.ingest.shop"),
    ("DEL", "fsworker.ingest.blog"),
    ("RENAME", "fsworker.done.shop", "fsworker.maintenance"),
    ("COPY", BLOG_RESULT, "fsworker:keep:shop:stolen"),
    # others' results, and writing its own
    ("GET", BLOG_RESULT),
    ("MGET", OWN_RESULT, BLOG_RESULT),
    ("GET", f"celery-task-meta-shop-2.{UUID}"),
    ("GET", "celery-task-meta-*"),
    ("SET", OWN_RESULT, "x"),
    ("SET", BLOG_RESULT, "x"),
    ("GETDEL", OWN_RESULT),
    ("EXPIRE", OWN_RESULT, "1"),
    ("DEL", OWN_RESULT),
    ("SUBSCRIBE", BLOG_RESULT),
    ("SUBSCRIBE", "celery-task-meta-*"),
    ("PSUBSCRIBE", "*"),
    ("PSUBSCRIBE", "celery-task-meta-shop.*"),
    ("PUBLISH", OWN_RESULT, "x"),
    ("PUBLISH", "/0.celery.pidbox", "x"),
    # others' keep-sets
    ("GET", f"{KEEP}manifest"),
    ("SET", f"{KEEP}manifest", "x"),
    ("SET", "fsworker:keep:shop-2:manifest", "x"),
    ("SET", "fsworker:keep:shop", "x"),
    ("APPEND", f"{KEEP}manifest", "x"),
    ("DEL", f"{KEEP}manifest"),
    ("UNLINK", f"{KEEP}manifest"),
    ("EXPIRE", f"{KEEP}manifest", "1"),
    ("SORT", "fsworker:keep:shop:x", "GET", f"{KEEP}manifest"),
    # the workers' notes
    ("SET", "fsworker:made:x", "x"),
    ("GETRANGE", "fsworker:made:x", "0", "1"),
    ("HGETALL", "fsworker:ingest:unacked"),
    ("HSET", "fsworker:ingest:unacked", "a", "x"),
    ("ZADD", "fsworker:ingest:unacked_index", "1", "a"),
    ("DEL", "fsworker:maintenance:unacked"),
    ("SET", "fsworker:ingest:unacked_mutex", "x"),
    ("SADD", "_kombu.binding.celery", "x"),
    # the server
    ("KEYS", "*"),
    ("SCAN", "0"),
    ("RANDOMKEY",),
    ("DBSIZE",),
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("SWAPDB", "0", "1"),
    ("MOVE", "fsworker:keep:shop:x", "1"),
    ("CONFIG", "GET", "*"),
    ("CONFIG", "SET", "dir", "/"),
    ("EVAL", "return 1", "0"),
    ("EVALSHA", "0" * 40, "0"),
    ("SCRIPT", "LOAD", "return 1"),
    ("FUNCTION", "LIST"),
    ("ACL", "LIST"),
    ("ACL", "WHOAMI"),
    ("ACL", "SETUSER", "fsworker-app-shop", "+@all"),
    ("CLIENT", "LIST"),
    ("CLIENT", "KILL", "TYPE", "normal"),
    ("CLIENT", "PAUSE", "1000"),
    ("CLIENT", "NO-EVICT", "on"),
    ("INFO",),
    ("MONITOR",),
    ("SHUTDOWN",),
    ("SAVE",),
    ("BGREWRITEAOF",),
    ("REPLICAOF", "127.0.0.1", "1"),
    ("SYNC",),
    ("DUMP", "fsworker:keep:shop:x"),
    ("RESTORE", "fsworker:keep:shop:x", "0", "x"),
    ("MIGRATE", "127.0.0.1", "1", "x", "0", "1"),
    ("OBJECT", "ENCODING", "fsworker.ingest.blog"),
    ("MEMORY", "USAGE", "fsworker.ingest.blog"),
    ("MEMORY", "DOCTOR"),
    ("SLOWLOG", "GET"),
    ("LATENCY", "LATEST"),
    ("MODULE", "LIST"),
    ("WAIT", "0", "0"),
    ("XADD", "fsworker:keep:shop:x", "*", "a", "b"),
    ("SETBIT", "fsworker:keep:shop:x", "4294967295", "1"),
    ("SETRANGE", "fsworker:keep:shop:x", "500000000", "x"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command)[:50])
def test_an_application_may_not(command: tuple[str, ...], guarded: Guarded) -> None:
    with guarded.connect("fsworker-app-shop") as attacker, pytest.raises(NoPermissionError):
        attacker.execute_command(*command)
    assert guarded.admin.ping()


def test_a_transaction_opens_nothing(guarded: Guarded) -> None:
    with guarded.connect("fsworker-app-shop") as attacker, attacker.pipeline() as pipe:
        pipe.lpush("fsworker.done.shop", "x")
        pipe.lpush("fsworker.maintenance", "x")
        with pytest.raises(redis.ResponseError):
            pipe.execute()
    assert not guarded.admin.exists("fsworker.done.shop")
    assert b"x" not in guarded.admin.lrange("fsworker.maintenance", 0, -1)


@pytest.mark.parametrize(
    ("user", "command"),
    [
        ("fsworker-ingest", ("LPUSH", "fsworker.maintenance", "x")),
        ("fsworker-ingest", ("GET", f"{KEEP}manifest")),
        ("fsworker-ingest", ("SET", f"{KEEP}manifest", "x")),
        ("fsworker-ingest", ("HSET", "fsworker:maintenance:unacked", "a", "x")),
        ("fsworker-ingest", ("EVAL", "return redis.call('SET', KEYS[1], 'x')", "1", f"{KEEP}manifest")),
        ("fsworker-ingest", ("KEYS", "*")),
        ("fsworker-ingest", ("CONFIG", "SET", "dir", "/")),
        ("fsworker-ingest", ("BRPOP", "fsworker.done.shop", "1")),
        ("fsworker-maintenance", ("SET", f"{KEEP}manifest", "x")),
        ("fsworker-maintenance", ("DEL", f"{KEEP}manifest")),
        ("fsworker-maintenance", ("BRPOP", "fsworker.ingest.shop", "1")),
        ("fsworker-maintenance", ("HSET", "fsworker:ingest:unacked", "a", "x")),
        ("fsworker-maintenance", ("FLUSHALL",)),
        ("fsworker-beat", ("LPUSH", "fsworker.ingest.shop", "x")),
        ("fsworker-beat", ("BRPOP", "fsworker.maintenance", "1")),
        ("fsworker-beat", ("GET", OWN_RESULT)),
    ],
)
def test_neither_may_our_own(user: str, command: tuple[str, ...], guarded: Guarded) -> None:
    with guarded.connect(user) as connection, pytest.raises(NoPermissionError):
        connection.execute_command(*command)


def test_a_script_may_not_do_what_its_user_may_not(guarded: Guarded) -> None:
    with guarded.connect("fsworker-ingest") as connection:
        script = connection.register_script("return redis.call('SET', KEYS[1], 'x')")
        with pytest.raises(NoPermissionError):
            script(keys=[f"{KEEP}manifest"])
        script = connection.register_script("return redis.call('SET', ARGV[1], 'x')")
        with pytest.raises(redis.ResponseError, match="permission|ACL"):
            script(keys=["fsworker:ingest:x"], args=[f"{KEEP}manifest"])


def test_nobody_gets_in_without_a_password(guarded: Guarded) -> None:
    for credentials in ({}, {"username": "fsworker-app-shop", "password": "x"}, {"password": "x"}):
        at_once = Retry(NoBackoff(), 0)
        with (
            redis.Redis(unix_socket_path=str(guarded.socket), retry=at_once, **credentials) as stranger,
            pytest.raises(redis.AuthenticationError),
        ):
            stranger.ping()


def test_redis_itself_may_read_back_what_was_written_in_transactions(guarded: Guarded, tmp_path: Path) -> None:
    """It does so as user default, whom nobody else can be (the test above). Tried after a restart, and by his rights.

    The server of this test may be one that asks for no rights then; the rights are looked at for those that do.
    """
    changes = [("SET", "a", "b"), ("HSET", "a", "b", "c"), ("LPUSH", "a", "b"), ("ZADD", "a", "1", "b"), ("DEL", "a")]
    for change in [*changes, ("SETEX", "a", "1", "b"), ("PERSIST", "a"), ("APPEND", "a", "b"), ("SELECT", "1")]:
        assert guarded.admin.execute_command("ACL DRYRUN", "default", *change) in (b"OK", "OK", True), change
    for look in (("GET", "a"), ("KEYS", "*"), ("CONFIG", "GET", "*"), ("EVAL", "return 1", "0"), ("PUBLISH", "a", "b")):
        assert guarded.admin.execute_command("ACL DRYRUN", "default", *look) not in (b"OK", "OK", True), look
    for times in range(2):
        server = Guarded(tmp_path, "--appendonly", "yes")
        with server.connect("fsworker-maintenance") as worker, server.admin:
            if times == 0:
                worker.pipeline(transaction=True).set("celery-task-meta-shop.x", "1").execute()
            assert server.admin.get("celery-task-meta-shop.x") == b"1"
        server.process.stop(signal.SIGTERM, 5)


def test_the_file_shows_no_password() -> None:
    text = acl_file(USERS, PASSWORDS)
    assert "secret-of-" not in text
    assert all(digest(password) in text for password in PASSWORDS.values())


def test_a_message_onto_its_own_queue_is_all_that_an_application_can_forge(
    guarded: Guarded, installation: Path, client: Client
) -> None:
    with guarded.connect("fsworker-app-shop") as attacker:
        attacker.lpush("fsworker.ingest.shop", plain_bytes(f"blog.{UUID}"), b"[]", b"{")
    assert client.ingest(b"still there").get(timeout=30).size == 11
    assert not guarded.admin.exists(BLOG_RESULT)


# The file and the command


def test_the_example_file_is_what_is_generated() -> None:
    """For an application named shop; nobody can log in with it, as it has no passwords."""
    example = Path(__file__).parents[1] / "config/redis/users.acl"
    assert example.read_text() == acl_file(all_users(NAMES, ["shop"]), {})


def run_acl(store: Store, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fsworker", "acl", "--store", str(store.root), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_makes_passwords_once(store: Store, tmp_path: Path) -> None:
    passwords = tmp_path / "passwords"
    first = run_acl(store, "--passwords", str(passwords))
    assert first.returncode == 0, first.stderr
    assert run_acl(store, "--passwords", str(passwords)).stdout == first.stdout
    users = all_users(NAMES, ["blog", "shop"])
    assert {path.name for path in passwords.iterdir()} == {user.name for user in users}
    known = {path.name: path.read_text().strip() for path in passwords.iterdir()}
    assert first.stdout == acl_file(users, known)
    assert not any(password in first.stdout for password in known.values())
    assert {path.stat().st_mode & 0o777 for path in passwords.iterdir()} == {0o600}


def test_the_command_refuses_a_password_that_is_none(store: Store, tmp_path: Path) -> None:
    (tmp_path / "fsworker-app-shop").write_text("\n")
    done = run_acl(store, "--passwords", str(tmp_path))
    assert done.returncode == 2
    assert "too short" in done.stderr


def test_the_command_lists_users_as_json(store: Store) -> None:
    listed = json.loads(run_acl(store, "--json").stdout)
    assert [user["name"] for user in listed] == [user.name for user in all_users(NAMES, ["blog", "shop"])]
