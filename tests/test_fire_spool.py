"""An application that was broken into, as a real user, against the worker: what it does to its spool harms only itself."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import mmap
import multiprocessing
import os
import signal
import socket
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fakeredis
import pytest
from users import OTHER_GROUP, SHOP_GROUP, STORE_GROUP, WORKER, WRITER, as_user, needs_root

from fsworker.broker.kv import KV
from fsworker.broker.names import Names
from fsworker.client import Client
from fsworker.config import load_settings
from fsworker.jobs.service import Service
from fsworker.jobs.sweep import SweepReport, sweep
from fsworker.model import Outcome
from fsworker.openat2 import open_beneath
from fsworker.store.create import create_store
from fsworker.store.objects import ObjectStore

pytestmark = needs_root
SHOP = WRITER
RACES = int(os.environ.get("FSWORKER_RACES", "20000"))
"""Attempts in each race; the published figure was made with a million."""
_fork = multiprocessing.get_context("fork")


@pytest.fixture
def root(open_path: Path) -> Path:
    """A store of WORKER with a secret in ``Temp``; application shop is SHOP, blog somebody else."""
    path = open_path / "store"
    path.mkdir()
    os.chown(path, WORKER, STORE_GROUP)
    apps = [f"shop:{SHOP_GROUP}", f"blog:{OTHER_GROUP}"]
    worker(lambda: create_store(path, apps=apps, group=str(STORE_GROUP)))
    worker(lambda: (path / "Temp" / "secret").write_bytes(b"the worker's secret"))
    return path


@pytest.fixture(scope="module", autouse=True)
def _loaded(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Everything is imported before the user changes: the interpreter may lie where only root gets."""
    path = tmp_path_factory.mktemp("loaded") / "store"
    create_store(path, apps=["shop"])
    (path / "Spool" / "shop" / "upload").write_bytes(b"content")
    ingest(path, upload="upload", thumbnails={"t": "10x10"})


def worker(function: Callable[[], Any]) -> Any:
    return as_user(WORKER, STORE_GROUP, function, groups=(SHOP_GROUP, OTHER_GROUP))


def shop(function: Callable[[], Any], umask: int = 0o007) -> Any:
    return as_user(SHOP, SHOP_GROUP, function, umask=umask)


@contextmanager
def attacking(attack: Callable[[], Any]) -> Iterator[None]:
    """Run ``attack`` again and again as the application while the block runs."""

    def forever() -> None:
        os.umask(0o007)
        os.setgroups([])
        os.setresgid(SHOP_GROUP, SHOP_GROUP, SHOP_GROUP)
        os.setresuid(SHOP, SHOP, SHOP)
        attack()

    process = _fork.Process(target=forever, daemon=True)
    process.start()
    try:
        yield
        assert process.is_alive(), "the attack ended by itself"
    finally:
        process.kill()
        process.join()


def ingest(root: Path, job_id: str | None = None, **kwargs: Any) -> Outcome | None:
    """What a worker process does with one message."""
    with ObjectStore(root) as store:
        service = Service(store, kv(), lambda *_: None, load_settings(environ={}, store=root, max_bytes="1GB"))
        return service.run(job_id or f"shop.{uuid.uuid4()}", "ingest", kwargs)


def kv() -> KV:
    return KV("redis://fake", client=fakeredis.FakeRedis())


def swept(root: Path) -> tuple[SweepReport, list[str]]:
    """Sweep as the maintenance worker does, and the ids that it rang for."""
    rung: list[str] = []
    with ObjectStore(root) as store:
        settings = load_settings(environ={}, store=root)
        report = sweep(store, kv(), lambda _task, _kwargs, _queue, job_id: rung.append(job_id), settings, at_once=True)
    return report, rung


def stored(root: Path) -> list[bytes]:
    """The contents of the store; each must bear its name."""
    contents = []
    for path in (root / "Data").rglob("*"):
        if path.is_file():
            contents.append(path.read_bytes())
            assert hashlib.sha1(contents[-1]).hexdigest() == path.name
    return contents


def spool(root: Path, app: str = "shop") -> Path:
    return root / "Spool" / app


def new_job() -> str:
    return f"shop.{uuid.uuid4()}"


# Reaching further than its own spool

FORBIDDEN: dict[str, Callable[[Path], object]] = {
    "list the spools' contents of others": lambda root: os.listdir(spool(root, "blog")),
    "write to another's spool": lambda root: (spool(root, "blog") / "x").write_bytes(b""),
    "make a spool": lambda root: (root / "Spool" / "mine").mkdir(),
    "rename its own spool": lambda root: spool(root).rename(root / "Spool" / "x"),
    "remove its own spool": lambda root: spool(root).rmdir(),
    "replace its spool by a link": lambda root: (root / "Spool" / "x").symlink_to(root / "Data"),
    "open its spool to others": lambda root: spool(root).chmod(0o777),
    "give its spool away": lambda root: os.chown(spool(root), SHOP, SHOP_GROUP),
    "list Data": lambda root: os.listdir(root / "Data"),
    "write to Data": lambda root: (root / "Data" / "x").write_bytes(b""),
    "list Temp": lambda root: os.listdir(root / "Temp"),
    "read a worker's file": lambda root: (root / "Temp" / "secret").read_bytes(),
    "list Lock": lambda root: os.listdir(root / "Lock"),
    "lock a shard": lambda root: fcntl.flock(os.open(root / "Lock" / "da", os.O_RDONLY), fcntl.LOCK_EX),
    "make a lock": lambda root: os.open(root / "Lock" / "x", os.O_CREAT | os.O_RDWR),
    "list Trash": lambda root: os.listdir(root / "Trash"),
    "list Error": lambda root: os.listdir(root / "Error"),
    "write to Error": lambda root: (root / "Error" / "x").write_bytes(b""),
    "change the configuration": lambda root: (root / "FileStruct.json").write_text("{}"),
    "replace the configuration": lambda root: (root / "x").rename(root / "FileStruct.json"),
    "remove the configuration": lambda root: (root / "FileStruct.json").unlink(),
    "rename Data": lambda root: (root / "Data").rename(root / "x"),
    "replace the spool's note": lambda root: os.chown(spool(root) / ".store.json", SHOP, SHOP_GROUP),
    "link a worker's file": lambda root: os.link(root / "Temp" / "secret", spool(root) / "x"),
}


@pytest.mark.parametrize("attack", FORBIDDEN)
def test_an_application_may_not(attack: str, root: Path) -> None:
    before = sorted(os.listdir(root)), (root / "FileStruct.json").read_bytes()
    with pytest.raises(OSError) as caught:
        shop(lambda: FORBIDDEN[attack](root))
    assert caught.value.errno in (errno.EACCES, errno.EPERM, errno.ENOENT)
    assert (sorted(os.listdir(root)), (root / "FileStruct.json").read_bytes()) == before


# What is handed over


def hand_over(root: Path, kind: str) -> str:
    """Make something of that kind in the spool, as the application; gives its name."""
    path = spool(root) / "evil"
    if kind == "sparse terabyte":
        shop(lambda: os.truncate(os.open(path, os.O_CREAT | os.O_RDWR, 0o640), 1 << 40))
    elif kind == "symbolic link to itself":
        shop(lambda: path.symlink_to("evil"))
    elif kind == "symbolic link to a good file":
        shop(lambda: (spool(root) / "good").write_bytes(b"good"))
        shop(lambda: path.symlink_to("good"))
    elif kind == "symbolic link to a descriptor":
        shop(lambda: path.symlink_to("/proc/self/fd/0"))
    elif kind == "symbolic link to a directory":
        shop(lambda: path.symlink_to("/etc"))
    elif kind == "two links":
        shop(lambda: path.write_bytes(b"one of two"))
        shop(lambda: os.link(path, spool(root) / "other"))
    elif kind == "listening socket":
        shop(lambda: socket.socket(socket.AF_UNIX).bind(str(path)))
    elif kind == "FIFO":
        shop(lambda: os.mkfifo(path))
    elif kind == "full directory":
        shop(lambda: [(path / str(n)).mkdir(parents=True) for n in range(50)])
    elif kind == "unreadable":
        shop(lambda: path.write_bytes(b"mine"))
        shop(lambda: path.chmod(0o000))
    return path.name


KINDS = [
    "sparse terabyte",
    "symbolic link to itself",
    "symbolic link to a good file",
    "symbolic link to a descriptor",
    "symbolic link to a directory",
    "two links",
    "listening socket",
    "FIFO",
    "full directory",
    "unreadable",
]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_plain_file_fails_the_job_and_nothing_else(root: Path, kind: str) -> None:
    name = hand_over(root, kind)
    outcome = worker(lambda: ingest(root, upload=name))
    assert outcome.state == "failed"
    assert stored(root) == []
    shop(lambda: (spool(root) / "next").write_bytes(b"next"))
    assert worker(lambda: ingest(root, upload="next")).state == "done"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", ["json", "done", "taken"])
def test_the_workers_own_names_cannot_be_used_against_it(root: Path, kind: str, suffix: str) -> None:
    job_id = new_job()
    name = hand_over(root, kind)
    shop(lambda: (spool(root) / name).rename(spool(root) / f".{job_id}.{suffix}"))
    shop(lambda: (spool(root) / "upload").write_bytes(b"upload"))
    with suppress(OSError):  # its own job may fail so: Celery logs it, and goes on
        worker(lambda: ingest(root, job_id, upload="upload"))
    assert set(stored(root)) <= {b"upload"}
    assert (root / "Temp" / "secret").read_bytes() == b"the worker's secret"
    shop(lambda: (spool(root) / "next").write_bytes(b"next"))
    assert worker(lambda: ingest(root, upload="next")).state == "done"


def test_a_lease_on_the_upload_keeps_no_worker_waiting(root: Path) -> None:
    path = spool(root) / "leased"
    shop(lambda: path.write_bytes(b"leased"))

    def hold() -> None:
        fd = os.open(path, os.O_RDWR)
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        (spool(root) / "ready").touch()
        time.sleep(60)

    with attacking(hold):
        assert eventually_exists(spool(root) / "ready")
        worker(lambda: (signal.alarm(20), ingest(root, upload="leased")))  # the kernel would break the lease after 45 s


# Changing it meanwhile


def test_a_kept_descriptor_or_mapping_changes_nothing_that_is_stored(root: Path) -> None:
    path = spool(root) / "kept"
    path.write_bytes(b"before" * 10_000)
    os.chown(path, SHOP, SHOP_GROUP)
    fd = os.open(path, os.O_RDWR)
    mapped = mmap.mmap(fd, 0)
    assert worker(lambda: ingest(root, upload="kept")).state == "done"
    os.pwrite(fd, b"AFTER!", 0)
    mapped[6:12] = b"AFTER!"
    os.ftruncate(fd, 5)
    assert stored(root) == [b"before" * 10_000]


def test_modification_while_hashing_stores_what_was_hashed(root: Path) -> None:
    path = spool(root) / "changing"

    def write() -> None:
        number = 0
        while True:
            number += 1
            with suppress(OSError):
                fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o640)
                for _ in range(50):
                    os.pwrite(fd, number.to_bytes(4, "big") * 50_000, number % 7 * 100_000)
                os.ftruncate(fd, number % 5 * 200_000)
                os.close(fd)

    def many() -> int:
        return sum(
            outcome is not None and outcome.state == "done"
            for outcome in (ingest(root, upload="changing") for _ in range(100))
        )

    with attacking(write):
        assert eventually_exists(path)
        assert worker(many) > 10
    assert len(stored(root)) > 1


def test_an_upload_that_grows_for_ever_is_cut_off_at_the_limit(root: Path) -> None:
    path = spool(root) / "growing"

    def grow() -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        while os.fstat(fd).st_size < 400_000_000:
            os.write(fd, bytes(1 << 20))
        time.sleep(60)

    with attacking(grow):
        assert eventually_exists(path)
        outcome = worker(lambda: ingest(root, upload="growing", max_bytes=20_000_000))
    assert outcome.state == "failed"
    assert "20,000,000" in outcome.error.message
    assert stored(root) == []


def eventually_exists(path: Path) -> bool:
    deadline_s = time.monotonic() + 10
    while not path.exists():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.005)
    return True


# Races

_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


def swapper(one: Path, other: Path) -> Callable[[], None]:
    """Exchange two names as fast as the kernel can (``renameat2``: Linux 3.15)."""
    renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    first, second = os.fsencode(one), os.fsencode(other)

    def swap() -> None:
        while True:
            renameat2(_AT_FDCWD, first, _AT_FDCWD, second, _RENAME_EXCHANGE)

    return swap


@pytest.mark.parametrize("bait", ["symbolic link", "directory", "hard link"])
def test_a_name_that_is_swapped_while_it_is_opened_shows_no_secret(root: Path, bait: str) -> None:
    """The worker opens ``taken``, which is a good file and, half of the time, a way to its secret."""
    good, evil = spool(root) / "taken", spool(root) / "evil"
    shop(lambda: good.write_bytes(b"good"))
    if bait == "symbolic link":
        shop(lambda: evil.symlink_to(root / "Temp" / "secret"))
    elif bait == "directory":
        shop(lambda: evil.symlink_to(root / "Temp"))
    else:
        os.link(root / "Temp" / "secret", evil)  # what protected_hardlinks would refuse the application

    def open_many() -> tuple[int, int, int]:
        """How often it was opened, refused, and a secret."""
        directory = os.open(spool(root), os.O_RDONLY | os.O_DIRECTORY)
        opened = refused = secrets = 0
        for _ in range(RACES):
            try:
                fd = open_beneath(directory, "taken")
            except OSError:
                refused += 1
                continue
            status = os.fstat(fd)
            taken = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
            secrets += taken and os.read(fd, 100) != b"good"
            opened += 1
            os.close(fd)
        return opened, refused, secrets

    with attacking(swapper(good, evil)):
        opened, refused, secrets = worker(open_many)
    assert secrets == 0
    assert opened > RACES / 100
    if bait != "hard link":
        assert refused > RACES / 100


def test_a_worker_under_swapping_links_stores_only_what_is_the_applications(root: Path) -> None:
    good, evil = spool(root) / "upload", spool(root) / "evil"
    shop(lambda: evil.symlink_to(root / "Temp" / "secret"))

    def swap() -> None:
        while True:
            for step in (lambda: good.write_bytes(b"good"), lambda: good.unlink(), lambda: os.symlink(evil, good)):
                with suppress(OSError):
                    step()
            for name in os.listdir(spool(root)):
                if name.endswith((".taken", ".json", ".done", ".new")):
                    with suppress(OSError):
                        os.unlink(spool(root) / name)
                        os.symlink(root / "Temp" / "secret", spool(root) / name)

    def many() -> int:
        done = 0
        for _ in range(150):
            try:
                outcome = ingest(root, upload="upload")
            except OSError:
                continue
            done += outcome is not None and outcome.state == "done"
        return done

    with attacking(swap):
        worker(many)
    assert set(stored(root)) <= {b"good", b""}
    assert (root / "Temp" / "secret").read_bytes() == b"the worker's secret"


# The sweep, which goes through the spools of all


def test_whatever_lies_in_one_spool_the_sweep_reaches_the_next(root: Path) -> None:
    """``blog`` is swept first. Its requests are unreadable, not understood, leased, links, FIFOs and directories."""
    evil, waiting = spool(root, "blog"), new_job()

    def blog(function: Callable[[], Any]) -> Any:
        return as_user(SHOP, OTHER_GROUP, function, umask=0o007)

    def request(text: bytes, mode: int = 0o640) -> None:
        path = evil / f".blog.{uuid.uuid4()}.json"
        path.write_bytes(text)
        path.chmod(mode)

    deep = b'{"task": "ingest", "request": {"upload": ' + b"[" * 900 + b"]" * 900 + b"}}"
    for text in (b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, deep, b"x" * 600_000, b'{"task": "collect"}'):
        blog(lambda text=text: request(text))
    blog(lambda: request(b'{"task": "ingest", "request": {"upload": "x"}}', 0o000))
    blog(lambda: request(b'{"task": "ingest", "request": {"upload": "../shop/x"}}'))
    blog(lambda: request(b'{"task": "ingest", "request": {"upload": "\\ud800"}}'))
    blog(lambda: request(b'{"task": "ingest", "request": {}, "not_before": 1e308}'))
    blog(lambda: os.mkfifo(evil / f".{new_job()}.json".replace("shop", "blog")))
    blog(lambda: (evil / f".{new_job()}.json".replace("shop", "blog")).symlink_to(root / "Temp" / "secret"))
    blog(lambda: (evil / f".{new_job()}.json".replace("shop", "blog")).mkdir())
    for name in (b"\xff\xfe", b"new\nline", b".\xff.json", b"." + b"x" * 250, b"-rf", b"$(id)", b".blog.json"):
        blog(lambda name=name: os.close(os.open(os.fsencode(evil) + b"/" + name, os.O_CREAT | os.O_WRONLY, 0o640)))
    shop(lambda: (spool(root) / "upload").write_bytes(b"upload"))
    spooled = json.dumps({"task": "ingest", "request": {"upload": "upload"}})
    shop(lambda: (spool(root) / f".{waiting}.json").write_text(spooled))
    _, rung = worker(lambda: swept(root))
    assert waiting in rung
    assert all(job_id.startswith(("shop.", "blog.")) for job_id in rung)


def test_a_lease_on_a_request_does_not_stop_the_sweep(root: Path) -> None:
    leased, waiting = spool(root) / f".{new_job()}.json", new_job()
    request = json.dumps({"task": "ingest", "request": {"upload": "upload"}})
    shop(lambda: (spool(root) / "upload").write_bytes(b"upload"))
    for path in (leased, spool(root) / f".{waiting}.json"):
        shop(lambda path=path: path.write_text(request))

    def hold() -> None:
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        fcntl.fcntl(os.open(leased, os.O_RDWR), fcntl.F_SETLEASE, fcntl.F_WRLCK)
        (spool(root) / "ready").touch()
        time.sleep(60)

    with attacking(hold):
        assert eventually_exists(spool(root) / "ready")
        _, rung = worker(lambda: swept(root))
    assert waiting in rung


def test_a_request_for_another_store_or_queue_goes_nowhere_else(root: Path) -> None:
    """What the sweep rings for in one application's spool, it rings for on that application's queue."""
    job_id, rung = new_job(), []
    shop(lambda: (spool(root) / "upload").write_bytes(b"upload"))
    request = {"task": "ingest", "request": {"upload": "upload", "queue": "fsworker.maintenance"}, "queue": "x"}
    shop(lambda: (spool(root) / f".{job_id}.json").write_text(json.dumps(request)))
    for forged in (f".blog.{uuid.uuid4()}.json", ".shop.x.json", ".blog.json"):
        shop(lambda forged=forged: (spool(root) / forged).write_text(json.dumps(request)))
    with ObjectStore(root) as store:
        settings = load_settings(environ={}, store=root)
        sweep(store, kv(), lambda *sent: rung.append((sent[0], sent[2], sent[3])), settings, at_once=True)
    assert rung == [("fsworker.ingest", Names().ingest_queue("shop"), job_id)]


def test_a_client_cannot_be_fooled_by_another_application(root: Path) -> None:
    """Its results come from its own spool, which only it and the worker write to."""
    url = "redis://127.0.0.1:1/0"
    settings = load_settings(environ={}, spool=spool(root), redis_url=url)

    def fool() -> None:
        with Client("shop", settings=settings) as client:
            client.ingest(b"x")

    with pytest.raises(Exception, match="must be in the group"):
        as_user(SHOP, OTHER_GROUP, fool)
