"""The main job with real users: the worker, an application, and somebody else. Needs root."""

from __future__ import annotations

import os
import stat
import uuid
from pathlib import Path
from typing import Any

import fakeredis
import pytest
from users import (
    OTHER_GROUP,
    SHOP_GROUP,
    STORE_GROUP,
    STRANGER,
    WORKER,
    WRITER,
    as_user,
    needs_root,
    open_path,  # noqa: F401 - a fixture
)

from fsworker.broker.kv import KV
from fsworker.client import Client
from fsworker.config import load_settings
from fsworker.errors import ConfigError, UploadRejectedError
from fsworker.jobs.service import Service
from fsworker.model import Outcome
from fsworker.store.create import create_store
from fsworker.store.objects import ObjectStore

pytestmark = needs_root
SHOP = WRITER  # a user whose only tie to the store is the group of its spool directory


@pytest.fixture
def root(open_path: Path) -> Path:  # noqa: F811
    """A store of WORKER; the application shop is whoever is in SHOP_GROUP, blog whoever is in another."""
    path = open_path / "store"
    path.mkdir()
    os.chown(path, WORKER, STORE_GROUP)
    apps = [f"shop:{SHOP_GROUP}", f"blog:{OTHER_GROUP}"]
    worker(lambda: create_store(path, apps=apps, group=str(STORE_GROUP)))
    return path


@pytest.fixture(scope="module", autouse=True)
def _loaded(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Everything is imported before the user changes: the interpreter may lie where only root gets."""
    path = tmp_path_factory.mktemp("loaded") / "store"
    create_store(path, apps=["shop"])
    job_id = drop(path, b"content", thumbnails={"t": "10x10"})
    run(path, job_id)
    answer(path, job_id)


def worker(function: Any) -> Any:
    return as_user(WORKER, STORE_GROUP, function, groups=(SHOP_GROUP, OTHER_GROUP))


def shop(function: Any, umask: int = 0o077) -> Any:
    return as_user(SHOP, SHOP_GROUP, function, umask=umask)


def client(root: Path) -> Client:
    """A client whose Redis is away: what it drops has to be enough."""
    url = "redis://127.0.0.1:1/0"
    return Client("shop", settings=load_settings(environ={}, spool=root / "Spool" / "shop", redis_url=url))


def drop(root: Path, data: bytes, **options: Any) -> str:
    with client(root) as files:
        return files.ingest(data, **options).id


def run(root: Path, job_id: str, **kwargs: Any) -> Outcome | None:
    with ObjectStore(root) as store:
        kv = KV("redis://fake", client=fakeredis.FakeRedis())
        return Service(store, kv, lambda *_: None, load_settings(environ={}, store=root)).run(job_id, "ingest", kwargs)


def answer(root: Path, job_id: str) -> Any:
    with client(root) as files:
        return files.job(job_id).get(timeout=0)


@pytest.mark.parametrize("umask", [0o077, 0o022, 0o000])
def test_an_application_outside_the_stores_group_is_served(root: Path, umask: int) -> None:
    job_id = shop(lambda: drop(root, b"content", thumbnails={"t": "10x10"}), umask)
    outcome = worker(lambda: run(root, job_id))
    assert outcome.error is None
    result = shop(lambda: answer(root, job_id))
    assert result.size == 7
    stored = root / "Data" / result.hash[:2] / result.hash[2:4] / result.hash
    status = stored.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (WORKER, STORE_GROUP, 0o444)
    assert [n for n in os.listdir(root / "Spool" / "shop") if not n.endswith(".done")] == [".store.json"]


def test_others_see_nothing_of_a_spool(root: Path) -> None:
    job_id = shop(lambda: drop(root, b"secret"))
    for uid, gid in ((STRANGER, OTHER_GROUP), (STRANGER, STRANGER)):
        with pytest.raises(PermissionError):
            as_user(uid, gid, lambda: os.listdir(root / "Spool" / "shop"))
        with pytest.raises(PermissionError):
            as_user(uid, gid, lambda: (root / "Spool" / "shop" / f".{job_id}.json").read_bytes())
    with pytest.raises(ConfigError, match="must be in the group"):
        as_user(STRANGER, OTHER_GROUP, lambda: drop(root, b"x"))


def test_an_application_reaches_nothing_but_its_spool(root: Path) -> None:
    for name in ("Data", "Temp", "Error", "Lock", "Trash", "Spool/blog"):
        with pytest.raises(PermissionError):
            shop(lambda n=name: os.listdir(root / n))
    for name in ("Data/x", "Spool/x", "x", "Spool/blog/x"):
        with pytest.raises(PermissionError):
            shop(lambda n=name: (root / n).write_bytes(b""))


def test_an_upload_that_the_worker_may_not_read_is_named_with_its_fix(root: Path) -> None:
    job_id = f"shop.{uuid.uuid4()}"
    upload = root / "Spool" / "shop" / "private"
    shop(lambda: upload.write_bytes(b"mine"))
    os.chown(upload, SHOP, SHOP)
    outcome = worker(lambda: run(root, job_id, upload="private"))
    assert "cannot be read by uid 41001 (mode 0600" in outcome.error.message
    assert "chmod g+r" in outcome.error.message
    with pytest.raises(UploadRejectedError, match="chmod g"):
        shop(lambda: answer(root, job_id))
    (entry,) = os.listdir(root / "Error")
    assert (root / "Error" / entry / "private").read_bytes() == b"mine"


def test_uploads_wait_for_a_worker_that_was_not_given_the_group(root: Path) -> None:
    """It was forgotten, or the worker runs since before: nothing is wrong with the uploads."""
    job_ids = [shop(lambda: drop(root, b"content")), f"shop.{uuid.uuid4()}"]
    shop(lambda: (root / "Spool" / "shop" / "plain").write_bytes(b"mine"), 0o027)
    uploads = [{}, {"upload": "plain"}]  # with a request file, and of a plain producer

    def without() -> list[Outcome | None]:
        return [run(root, job_id, **upload) for job_id, upload in zip(job_ids, uploads, strict=True)]

    assert as_user(WORKER, STORE_GROUP, without, groups=(OTHER_GROUP,)) == [None, None]
    assert os.listdir(root / "Error") == []
    sizes = [
        worker(lambda i=job_id, u=upload: run(root, i, **u)) for job_id, upload in zip(job_ids, uploads, strict=True)
    ]
    assert [outcome.result["size"] for outcome in sizes] == [7, 4]


def test_an_application_cannot_forge_an_outcome(root: Path) -> None:
    job_id = shop(lambda: drop(root, b"true"))
    forged = Outcome.model_validate(
        {"job_id": job_id, "task": "ingest", "error": {"type": "ImageError", "message": "no"}}
    )
    shop(lambda: (root / "Spool" / "shop" / f".{job_id}.done").write_text(forged.model_dump_json()), umask=0)
    outcome = worker(lambda: run(root, job_id))
    assert outcome.error is None
    assert shop(lambda: answer(root, job_id)).size == 4


@pytest.mark.parametrize("kind", ["symlink", "hardlink", "fifo", "directory", "socket", "device", "taken-symlink"])
def test_what_is_no_file_of_the_applications_own_is_refused(root: Path, kind: str) -> None:
    secret = root / "Temp" / "secret"
    worker(lambda: secret.write_bytes(b"the worker's secret"))
    spool, job_id = root / "Spool" / "shop", f"shop.{uuid.uuid4()}"
    upload = spool / "evil"
    if kind == "symlink":
        shop(lambda: upload.symlink_to(secret))
    elif kind == "taken-symlink":
        shop(lambda: (spool / f".{job_id}.taken").symlink_to(secret))
    elif kind == "hardlink":
        os.link(secret, upload)  # what the kernel's protected_hardlinks would refuse the application
    elif kind == "fifo":
        shop(lambda: os.mkfifo(upload))
    elif kind == "directory":
        shop(lambda: (upload / "below").mkdir(parents=True))
    elif kind == "socket":
        shop(lambda: os.mknod(upload, stat.S_IFSOCK | 0o666))
    else:
        os.mknod(upload, stat.S_IFCHR | 0o666, os.makedev(1, 5))
    outcome = worker(lambda: run(root, job_id, upload="evil"))
    assert outcome.error.type == "UploadRejectedError", outcome
    assert not any(path.is_file() for path in (root / "Data").rglob("*"))
    assert secret.read_bytes() == b"the worker's secret"
    assert not (spool / f".{job_id}.json").exists()
