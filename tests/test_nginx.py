"""A real nginx with our configuration in front of a real application, reading a store through its group only."""

from __future__ import annotations

import grp
import hashlib
import http.client
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
from stores import CORPUS, sha1
from webservers import Reply, fetch, free_port, need_nginx, nginx, peak_kib, program

from fsworker.client import Client
from fsworker.config import Settings, load_settings
from fsworker.store import layout, trash
from fsworker.store.facade import Store
from fsworker.store.objects import ObjectStore

GIB_OF_ZEROS = "2a492f15396a6768bcbca016993f4b4c8b0b5307"
PICTURE = secrets.token_bytes(200_000)
PAGE = b"<!doctype html><script>alert(document.cookie)</script>"


@dataclass
class Site:
    """A store, an application and nginx before it."""

    store: Store
    url: str
    direct_url: str
    application_pid: int

    def settings(self) -> Settings:
        """Those of a client."""
        return load_settings(environ={}, store=self.store.root, redis_url="redis://localhost:1/0")

    def get(self, name: str, method: str = "GET", *, query: str = "", **headers: str) -> Reply:
        """A request for a stored file, through nginx."""
        return fetch(f"{self.url}/file/{name}{query}", method=method, **headers)


def reader_group() -> str:
    """A group that is not root's, for nginx; the test's own where it is not root."""
    if os.geteuid() != 0:
        return grp.getgrgid(os.getegid()).gr_name
    return next(group.gr_name for group in grp.getgrall() if group.gr_name in ("www-data", "nogroup", "nobody"))


@contextmanager
def site(**settings: str) -> Iterator[Site]:
    """The whole, in a directory that nginx's user can reach."""
    need_nginx()
    with tempfile.TemporaryDirectory(prefix="fsworker-test-", ignore_cleanup_errors=True) as name:
        os.chmod(name, 0o755)
        root, port = Path(name), free_port()
        group = reader_group()
        options = {"group": group} if os.geteuid() == 0 else {}
        environment = {
            "FSWORKER_STORE": str(root / "store"),
            "FSWORKER_REDIS_URL": "redis://localhost:1/0",
            "FSWORKER_STATE_DIR": str(root / "state"),
            "FSWORKER_SERVE_WITH": "nginx",
            **settings,
        }
        with (
            Store.create(root / "store", apps=["shop"], **options) as store,
            program(port, Path(__file__).with_name("file_application.py"), port, **environment) as pid,
            nginx(root / "nginx", port, {"/srv/files/": f"{store.root}/"}, user=f"nobody {group}") as url,
        ):
            yield Site(store, url, f"http://127.0.0.1:{port}", pid)


@pytest.fixture(scope="module")
def served() -> Iterator[Site]:
    with site() as made:
        yield made


@pytest.fixture(scope="module")
def picture(served: Site) -> str:
    return served.store.put_bytes(PICTURE)


def test_a_file_is_sent_by_nginx_whole(served: Site, picture: str) -> None:
    reply = served.get(picture, query="?filename=a.jpg&media_type=image/jpeg")
    assert (reply.status, reply.body) == (200, PICTURE)
    assert reply.headers["Content-Length"] == str(len(PICTURE))
    assert "X-Accel-Redirect" not in reply.headers
    assert fetch(f"{served.direct_url}/file/{picture}").body == b"", "the application has sent the bytes itself"


def test_the_headers_that_nginx_drops_are_there(served: Site, picture: str) -> None:
    query = f"?filename={quote('Füße €.jpg')}&media_type=image/jpeg&immutable=1"
    headers = served.get(picture, query=query).headers
    assert headers.get_all("ETag") == [f'"{picture}"']
    assert headers.get_all("X-Content-Type-Options") == ["nosniff"]
    (policy,) = headers.get_all("Content-Security-Policy")
    assert policy == "default-src 'none'; img-src 'self'; media-src 'self'; style-src 'unsafe-inline'; sandbox"
    assert headers.get_all("Content-Type") == ["image/jpeg"]
    assert headers.get_all("Cache-Control") == ["private, max-age=31536000, immutable"]
    assert headers["Content-Disposition"].endswith("filename*=UTF-8''F%C3%BC%C3%9Fe%20%E2%82%AC.jpg")


def test_what_browsers_would_execute_is_an_attachment_in_a_sandbox(served: Site) -> None:
    name = served.store.put_bytes(PAGE)
    headers = served.get(name, query="?filename=index.html&media_type=text/html&disposition=inline").headers
    assert headers["Content-Disposition"] == 'attachment; filename="index.html"'
    assert "sandbox" in headers["Content-Security-Policy"]
    assert "script-src" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_a_range_is_a_206(served: Site, picture: str) -> None:
    reply = served.get(picture, Range="bytes=1000-1999")
    assert (reply.status, reply.body) == (206, PICTURE[1000:2000])
    assert reply.headers["Content-Range"] == f"bytes 1000-1999/{len(PICTURE)}"
    assert served.get(picture, Range="bytes=-5").body == PICTURE[-5:]
    assert served.get(picture, Range=f"bytes={len(PICTURE)}-").status == 416


def test_a_range_of_an_older_version_is_the_whole_new_one(served: Site, picture: str) -> None:
    same = served.get(picture, Range="bytes=0-9", If_Range=f'"{picture}"')
    assert (same.status, same.body) == (206, PICTURE[:10])
    other = served.get(picture, Range="bytes=0-9", If_Range=f'"{"0" * 40}"')
    assert (other.status, other.body) == (200, PICTURE)


def test_who_has_the_file_is_told_304(served: Site, picture: str) -> None:
    reply = served.get(picture, If_None_Match=f'"{picture}"')
    assert (reply.status, reply.body) == (304, b"")
    assert reply.headers.get_all("ETag") == [f'"{picture}"']
    assert served.get(picture, If_None_Match=f'W/"{picture}", "x"').status == 304
    assert served.get(picture, If_None_Match=f'"{"0" * 40}"').status == 200


def test_time_does_not_make_two_files_of_one_url_the_same(served: Site, picture: str) -> None:
    """A URL may mean another file since, and that one be older: only the tag can tell."""
    modified = served.get(picture).headers["Last-Modified"]
    assert served.get(picture, If_Modified_Since=modified).status == 200


def test_head_has_the_headers_and_no_bytes(served: Site, picture: str) -> None:
    reply = served.get(picture, "HEAD", query="?media_type=image/jpeg")
    assert (reply.status, reply.body) == (200, b"")
    assert reply.headers["Content-Length"] == str(len(PICTURE))
    assert reply.headers["ETag"] == f'"{picture}"'


def test_nobody_reaches_the_internal_location_directly(served: Site, picture: str) -> None:
    uri = served.store.internal_uri(picture)
    for path in (
        uri,
        "/FileStruct/Data/",
        f"/x/..{uri}",
        uri.replace("/", "//", 1),
        "/FileStruct/Data../FileStruct.json",
    ):
        reply = fetch(served.url + path)
        assert reply.status in (403, 404), path
        assert PICTURE not in reply.body


def test_a_trashed_file_is_a_404_that_nobody_remembers(served: Site) -> None:
    name = served.store.put_bytes(b"soon in the trash")
    assert served.get(name, query="?immutable=1").status == 200
    move_away(served.store, name)
    reply = served.get(name, query="?immutable=1")
    assert reply.status == 404
    assert "no-store" in ", ".join(reply.headers.get_all("Cache-Control"))
    assert "ETag" not in reply.headers
    assert trash.restore(served.store, sha1(b"soon in the trash"))
    assert served.get(name).status == 200


def test_a_file_that_is_trashed_and_restored_while_it_is_sent_arrives_whole(served: Site) -> None:
    content = secrets.token_bytes(30_000_000)
    name = served.store.put_bytes(content)
    address = urlsplit(served.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
    connection.request("GET", f"/file/{name}")
    answer = connection.getresponse()
    received = bytearray(answer.read(100_000))  # more than the sockets hold is still to come
    move_away(served.store, name)
    assert served.get(name).status == 404
    received += answer.read(100_000)
    assert trash.restore(served.store, sha1(content))
    received += answer.read()
    connection.close()
    assert received == content
    assert served.get(name, "HEAD").status == 200


def test_a_gibibyte_costs_the_application_no_memory(served: Site) -> None:
    shard = served.store.root / layout.DATA / layout.shard(layout.Hash(GIB_OF_ZEROS))
    shard.mkdir(parents=True, mode=0o2750)
    for directory in (shard, shard.parent):
        os.chown(directory, -1, served.store.gid)
        directory.chmod(0o2750)
    with (shard / GIB_OF_ZEROS).open("wb") as sparse:
        sparse.truncate(1 << 30)
        os.fchmod(sparse.fileno(), 0o444)
    before = peak_kib(served.application_pid)
    address = urlsplit(served.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
    connection.request("GET", f"/file/{GIB_OF_ZEROS}")
    answer, digest, room = connection.getresponse(), hashlib.sha1(), bytearray(1 << 20)
    while count := answer.readinto(room):
        digest.update(memoryview(room)[:count])
    connection.close()
    assert digest.hexdigest() == GIB_OF_ZEROS
    assert peak_kib(served.application_pid) - before < 4 << 10, "KiB more than before"


@pytest.mark.parametrize("hostile", ["circle.svg", "sample.eps"])
def test_hostile_files_are_downloads(served: Site, hostile: str) -> None:
    source = CORPUS / "hostile" / hostile
    if not source.exists():
        pytest.skip("the shared corpus is not here")
    name = served.store.put_file(source)
    kind = "image/svg+xml" if hostile.endswith("svg") else "application/postscript"
    headers = served.get(name, query=f"?filename={hostile}&media_type={quote(kind)}").headers
    assert headers["Content-Disposition"].startswith("attachment")


def test_an_application_without_nginx_sends_the_same(served: Site, picture: str) -> None:
    """Development: the same call, the same headers, the bytes from the application, in flat memory."""
    query = "?filename=a.jpg&media_type=image/jpeg"
    behind = served.get(picture, query=query)
    with site(FSWORKER_SERVE_WITH="stream") as alone:
        alone.store.put_bytes(PICTURE)
        reply = fetch(f"{alone.direct_url}/file/{picture}{query}")
        assert (reply.status, reply.body) == (200, PICTURE)
        dull = {"Server", "Date", "Connection", "Last-Modified"}
        assert {k: v for k, v in reply.headers.items() if k not in dull} == {
            k: v for k, v in behind.headers.items() if k not in dull
        }
        direct = f"{alone.direct_url}/file/{picture}"
        part = fetch(direct, Range="bytes=10-19")
        assert (part.status, part.body) == (206, PICTURE[10:20])
        assert part.headers["Content-Range"] == f"bytes 10-19/{len(PICTURE)}"
        assert fetch(direct, Range="bytes=0-9", If_Range='"other"').status == 200
        assert fetch(direct, Range=f"bytes={len(PICTURE)}-").status == 416
        assert fetch(direct, If_None_Match=f'"{picture}"').status == 304
        head = fetch(direct, method="HEAD")
        assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", str(len(PICTURE)))
        assert fetch(f"{alone.direct_url}/file/{'0' * 40}").status == 404
        assert fetch(f"{alone.direct_url}/file/..%2f..%2fFileStruct.json").status == 404
        assert fetch(direct, method="POST", data=b"").status == 405


def move_away(store: ObjectStore, name: str) -> None:
    """What a collection does to a file that nobody keeps."""
    stamp = layout.stamp()
    trash.open_run(store, stamp)
    assert trash.move_to_trash(store, layout.Hash(name), stamp, cutoff_s=2**40)


# Uploads that nginx writes


@pytest.fixture(scope="module")
def receiving(served: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """nginx with our configuration for uploads; its URL. Its user has the group of the spool directory."""
    with tempfile.TemporaryDirectory(prefix="fsworker-test-", ignore_cleanup_errors=True) as name:
        os.chmod(name, 0o755)
        incoming = Path(name, "incoming")
        incoming.mkdir()
        if os.geteuid() == 0:
            shutil.chown(incoming, "nobody", reader_group())
        replace = {
            "/srv/files/": f"{served.store.root}/",
            "/srv/files-incoming": str(incoming),
            "127.0.0.1:8000": urlsplit(served.direct_url).netloc,
        }
        port = urlsplit(served.direct_url).port or 0
        user = f"nobody {reader_group()}"
        with nginx(Path(name, "nginx"), port, replace, user=user, include="fsworker-upload.conf") as url:
            yield url


def test_an_upload_that_nginx_writes_can_be_ingested(served: Site, receiving: str) -> None:
    name = "a" * 32
    reply = fetch(f"{receiving}/fsworker-upload/{name}", method="PUT", data=PICTURE)
    assert reply.status == 201
    written = served.store.root / "Spool" / "shop" / name
    assert written.read_bytes() == PICTURE
    assert oct(written.stat().st_mode & 0o777) == "0o640"
    assert written.stat().st_gid == written.parent.stat().st_gid, "the worker must be able to read it"
    with Client("shop", settings=served.settings()) as files:
        job = files.ingest(files.uploaded(name))
        assert job.state == "queued"


def test_an_upload_that_the_application_does_not_allow_is_not_written(served: Site, receiving: str) -> None:
    name = "f" * 32
    reply = fetch(f"{receiving}/fsworker-upload/{name}", method="PUT", data=b"x")
    assert reply.status == 403
    assert not (served.store.root / "Spool" / "shop" / name).exists()


@pytest.mark.parametrize("path", ["x", "..%2fx", ".store.json", "A" * 32, "a" * 33, "a" * 31 + "/x", ""])
def test_an_upload_has_a_random_name_or_none(receiving: str, path: str) -> None:
    assert fetch(f"{receiving}/fsworker-upload/{path}", method="PUT", data=b"x").status in (404, 405)


@pytest.mark.parametrize("method", ["GET", "DELETE", "MKCOL", "MOVE"])
def test_the_spool_can_only_be_written_to(receiving: str, method: str) -> None:
    assert fetch(f"{receiving}/fsworker-upload/{'a' * 32}", method=method).status in (403, 405)


def test_the_permission_is_not_for_browsers_to_ask(receiving: str) -> None:
    assert fetch(f"{receiving}/fsworker-upload-allowed").status == 404
