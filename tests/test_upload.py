"""Uploads that come piece by piece, straight into the spool."""

from __future__ import annotations

import gc
import os
import stat

import pytest

from fsworker.broker.kv import KV
from fsworker.client import Client
from fsworker.config import load_settings
from fsworker.errors import StoreUnavailableError, UploadNotFoundError, UploadRejectedError
from fsworker.store.facade import Store


@pytest.fixture
def files(store: Store) -> Client:
    return Client("shop", settings=load_settings(environ={}, store=store.root, redis_url="redis://localhost:1/0"))


def names(store: Store) -> list[str]:
    return sorted(name for name in os.listdir(store.root / "Spool" / "shop") if name != ".store.json")


def test_bytes_go_to_the_spool_as_they_come_and_are_not_copied(store: Store, files: Client) -> None:
    with files.open_upload() as upload:
        upload.write(b"first, ")
        (part,) = names(store)
        inode = (store.root / "Spool" / "shop" / part).stat().st_ino
        upload.write(memoryview(b"second"))
        job = files.ingest(upload)
        assert job.id == upload.job_id
        assert job.state == "queued"
    status = (store.root / "Spool" / "shop" / upload.upload).stat()
    assert (status.st_ino, stat.S_IMODE(status.st_mode), status.st_size) == (inode, 0o640, 13)
    assert names(store) == sorted([upload.upload, f".{job.id}.json"])


def test_what_is_not_ingested_leaves_nothing(store: Store, files: Client) -> None:
    with files.open_upload() as upload:
        upload.write(b"x")
    forgotten = files.open_upload()
    forgotten.write(b"y")
    assert len(names(store)) == 1
    del forgotten
    gc.collect()
    assert names(store) == []


def test_it_is_a_file(files: Client) -> None:
    with files.open_upload() as upload:
        upload.write(b"0123456789")
        assert upload.seek(3) == 3
        assert upload.read(4) == b"3456"
        assert upload.read() == b"789"
        assert upload.tell() == upload.size_bytes == 10
        files.ingest(upload)
        upload.seek(0)
        assert upload.read() == b"0123456789", "whoever shows a preview may still read it"


def test_no_byte_too_many_is_written(store: Store, files: Client) -> None:
    with files.open_upload(max_bytes=10) as upload:
        upload.write(b"0123456789")
        with pytest.raises(UploadRejectedError, match="10 bytes"):
            upload.write(b"x")
        assert upload.size_bytes == 10


def test_it_is_ingested_once_and_does_not_change_then(files: Client) -> None:
    with files.open_upload() as upload:
        upload.write(b"x")
        files.ingest(upload)
        with pytest.raises(ValueError, match="does not change"):
            upload.write(b"y")
        with pytest.raises(UploadRejectedError, match=upload.job_id):
            files.ingest(upload)


def test_an_upload_that_was_swept_away_says_so(store: Store, files: Client) -> None:
    with files.open_upload() as upload:
        upload.write(b"x")
        (part,) = names(store)
        (store.root / "Spool" / "shop" / part).unlink()
        with pytest.raises(StoreUnavailableError, match="again"):
            files.ingest(upload)
    assert names(store) == []


def test_what_nginx_wrote_is_ingested_where_it_is(store: Store, files: Client) -> None:
    path = store.root / "Spool" / "shop" / "0123456789abcdef"
    path.write_bytes(b"by nginx")
    job = files.ingest(files.uploaded(path.name))
    assert names(store) == sorted([path.name, f".{job.id}.json"])
    for name, error in (
        ("missing", UploadNotFoundError),
        ("../x", UploadRejectedError),
        (".hidden", UploadRejectedError),
    ):
        with pytest.raises(error):
            files.uploaded(name)


def test_a_job_can_be_rung_for_later(store: Store, redis_url: str) -> None:
    settings = load_settings(environ={}, store=store.root, redis_url=redis_url, namespace="later")
    with Client("shop", settings=settings) as files:
        job = files.ingest(b"x", ring=False)
        assert _queued(redis_url) == 0
        files.ring(job)
        assert _queued(redis_url) == 1


def _queued(redis_url: str) -> int:
    kv = KV(redis_url)
    try:
        return kv.queue_length("later.ingest.shop")
    finally:
        kv.close()
