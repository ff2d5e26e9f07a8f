"""The API of the original FileStruct, as its documentation gives it. Run it as an unprivileged user, too."""

from __future__ import annotations

import errno
import grp
import io
import os
import pwd
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from stores import CORPUS, sha1
from users import as_user, needs_root, open_path

import fsworker.filestruct as FileStruct  # noqa: N812 - as code written against it says
from fsworker.store.create import create_store

__all__ = ["open_path"]

ABCD = sha1(b"abcd")
ABSENT = sha1(b"abcde")
EMPTY = sha1(b"")
BAD_HASHES = [
    ABCD[:-1] + "\0",
    "x" + ABCD[1:],
    "123",
    "варвр",
    ABCD[2:],
    ABCD + "a123",
    ABCD[:-2] + "AB",
    ABCD + "\n",
    "",
]
NO_STRINGS = [None, object(), str, True, 5, ABCD.encode()]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A database as the original would begin: a directory and its configuration."""
    (tmp_path / "FileStruct.json").write_text('# ours\n{"Version": 1, "User": "www"}')
    return tmp_path


@pytest.fixture
def client(database: Path) -> FileStruct.Client:
    return FileStruct.Client(str(database), "/Whatever")


# -- opening -----------------------------------------------------------------------------------------------------------


def test_attributes(client: FileStruct.Client, database: Path) -> None:
    assert client.Path == str(database)
    for attribute in ("Data", "Error", "Temp", "Trash", "Static"):
        assert getattr(client, attribute + "Path") == str(database / attribute)
    assert client.ConfPath == str(database / "FileStruct.json")
    assert client.Conf == {"Version": 1, "User": "www"}
    assert client.Version == 1
    assert client.InternalLocation == "/Whatever"
    assert client.bin_convert == "/usr/bin/convert"
    assert client.DatabaseGroup == grp.getgrgid(database.stat().st_gid)
    assert client.EffectiveUser == pwd.getpwuid(os.geteuid())
    assert client.EffectiveGroup == grp.getgrgid(os.getegid())
    assert client
    assert FileStruct.Client(Path=str(database)).InternalLocation == "/FileStruct/Data"


def test_opening_makes_the_directories_as_the_original_does(client: FileStruct.Client, database: Path) -> None:
    for name in ("Data", "Error", "Temp", "Trash", "Static"):
        status = (database / name).stat()
        assert stat.S_IMODE(status.st_mode) == 0o775
        assert status.st_gid == database.stat().st_gid


def test_the_path_is_made_absolute(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(database.parent)
    assert FileStruct.Client(database.name).Path == str(database)


@pytest.mark.parametrize("text", ['{"Version": "1"}', '{\n  # Some comment\n"Version": 1}', '{"Version": 1\r#test}\n}'])
def test_configurations_that_open(database: Path, text: str) -> None:
    (database / "FileStruct.json").write_text(text, newline="")
    assert FileStruct.Client(str(database)).Version == 1


@pytest.mark.parametrize(
    "text", ["", "text {", '{"Version": 1', "{}", "null", "[1]", '{"Verson": 1}', '{"Version": 2}']
)
def test_configurations_that_do_not(database: Path, text: str) -> None:
    (database / "FileStruct.json").write_text(text)
    with pytest.raises(FileStruct.ConfigError):
        FileStruct.Client(str(database))


def test_a_directory_without_a_configuration_is_no_database(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(FileStruct.ConfigError):
            FileStruct.Client(str(path))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("path", [b"/srv", None, object(), Path("/srv")])
def test_the_path_is_a_str(path: object) -> None:
    with pytest.raises(TypeError):
        FileStruct.Client(path)  # type: ignore[arg-type]


def test_errors_are_one_family(database: Path) -> None:
    assert issubclass(FileStruct.ConfigError, FileStruct.Error)


def test_a_user_or_group_without_a_name_is_refused(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("geteuid", "getegid"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, lambda: 3_999_999_992)
            with pytest.raises(FileStruct.ConfigError):
                FileStruct.Client(str(database))


def test_the_directorys_group_decides_and_its_owner_does_not(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = {os.getegid(), *os.getgroups(), pwd.getpwuid(os.geteuid()).pw_gid}
    me = pwd.getpwuid(os.geteuid()).pw_name
    foreign = next(g.gr_gid for g in grp.getgrall() if g.gr_gid not in ours and me not in g.gr_mem)
    real = os.stat(database)

    def pretend(**changed: int) -> None:
        fields = {name: getattr(real, name) for name in dir(real) if name.startswith("st_")}
        monkeypatch.setattr(os, "stat", lambda path: SimpleNamespace(**(fields | changed)))

    pretend(st_uid=12345)
    FileStruct.Client(str(database))
    for gid in (foreign, 3_999_999_992):
        pretend(st_gid=gid)
        with pytest.raises(FileStruct.ConfigError):
            FileStruct.Client(str(database))


@needs_root
def test_only_members_of_the_databases_group_open_it(open_path: Path) -> None:
    (open_path / "FileStruct.json").write_text('{"Version": 1}')
    daemon, mail = grp.getgrnam("daemon").gr_gid, grp.getgrnam("mail").gr_gid
    os.chown(open_path, -1, mail)
    open_path.chmod(0o2775)
    user = pwd.getpwnam("daemon").pw_uid

    def use() -> str:
        return FileStruct.Client(str(open_path)).PutData(b"abcd")

    with pytest.raises(FileStruct.ConfigError, match="not a member"):
        as_user(user, daemon, use)
    assert as_user(user, daemon, use, groups=(mail,)) == ABCD
    path = open_path / f"Data/{ABCD[:2]}/{ABCD[2:4]}/{ABCD}"
    assert path.stat().st_gid == path.parent.stat().st_gid == mail


@needs_root
def test_where_only_the_worker_writes_the_group_reads(open_path: Path) -> None:
    daemon, mail = grp.getgrnam("daemon").gr_gid, grp.getgrnam("mail").gr_gid
    create_store(open_path / "store", apps=["shop"], group="mail")
    as_user(0, 0, lambda: FileStruct.Client(str(open_path / "store")).PutData(b"abcd"), groups=(mail,))
    user = pwd.getpwnam("daemon").pw_uid

    def look() -> bytes:
        return FileStruct.Client(str(open_path / "store"))[ABCD].GetData()

    def write() -> str:
        return FileStruct.Client(str(open_path / "store")).PutData(b"abcde")

    assert as_user(user, daemon, look, groups=(mail,)) == b"abcd"
    with pytest.raises(Exception, match="belongs to"):
        as_user(user, daemon, write, groups=(mail,))


# -- hashes ------------------------------------------------------------------------------------------------------------


def test_a_hash_is_in_the_client_or_not(client: FileStruct.Client) -> None:
    client.PutData(b"abcd")
    assert (ABCD in client) is True
    assert (ABSENT in client) is False
    for bad in BAD_HASHES:
        assert (bad in client) is False
    for bad in NO_STRINGS:
        with pytest.raises(TypeError):
            assert bad in client  # type: ignore[operator]


def test_a_stored_file(client: FileStruct.Client) -> None:
    client.PutData(b"abcd")
    file = client[ABCD]
    assert file.Hash == ABCD
    assert file.Path == client.HashToPath(ABCD)
    assert file.GetData() == b"abcd"
    with file.GetStream() as stream:
        assert stream.read(2) == b"ab"
    assert file.InternalURI == f"/Whatever/{ABCD[:2]}/{ABCD[2:4]}/{ABCD}"
    assert file.Client is client


def test_bad_hashes_raise_as_documented(client: FileStruct.Client) -> None:
    actions: list[Callable[..., object]] = [client.__getitem__, client.HashToPath, client.HashToInternalURI]
    for action in actions:
        for bad in BAD_HASHES:
            with pytest.raises(ValueError):
                action(bad)
        for wrong in NO_STRINGS:
            with pytest.raises(TypeError):
                action(wrong)
    with pytest.raises(KeyError):
        client[ABSENT]
    assert client.HashToPath(ABSENT).startswith(client.Path + "/")


@pytest.mark.parametrize(
    "location", ["/Whatever", "//some///broken/path/../whatever//./", "//a\0//b\n\n/../фывапр//./", ""]
)
def test_the_internal_location_is_used_as_given(database: Path, location: str) -> None:
    uri = FileStruct.Client(str(database), location).HashToInternalURI(ABCD)
    separator = "" if location.endswith("/") or not location else "/"
    assert uri == f"{location}{separator}{ABCD[:2]}/{ABCD[2:4]}/{ABCD}"


@pytest.mark.parametrize("location", [None, object(), b"/Whatever"])
def test_any_internal_location_opens(database: Path, location: object) -> None:
    assert FileStruct.Client(str(database), location).InternalLocation is location


# -- putting -----------------------------------------------------------------------------------------------------------


def test_put_data(client: FileStruct.Client) -> None:
    assert client.PutData(b"abcd") == client.PutData(b"abcd") == ABCD
    assert client.PutData(None) == client.PutData(b"") == EMPTY
    assert client[EMPTY].GetData() == b""
    for wrong in (object(), True, "text"):
        with pytest.raises(TypeError):
            client.PutData(wrong)  # type: ignore[arg-type]


def test_put_stream(client: FileStruct.Client) -> None:
    stream = io.BytesIO(b"xxabcd")
    stream.seek(2)
    assert client.PutStream(stream) == ABCD
    assert not stream.closed
    assert stream.tell() == 6
    for wrong in (object(), None, b""):
        with pytest.raises(AttributeError):
            client.PutStream(wrong)  # type: ignore[arg-type]


def test_a_stream_that_ignores_the_size_it_is_asked_for(client: FileStruct.Client) -> None:
    class Whole:
        def __init__(self) -> None:
            self.data = b"x" * 5_000_000

        def read(self, n: int) -> bytes:
            assert isinstance(n, int)
            data, self.data = self.data, b""
            return data

    assert client.PutStream(Whole()) == sha1(b"x" * 5_000_000)


def test_put_file_by_path_and_by_descriptor(client: FileStruct.Client, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"abcd")
    assert client.PutFile(str(source)) == ABCD
    assert source.read_bytes() == b"abcd"
    source.write_bytes(b"abcde")
    assert client.PutFile(os.open(source, os.O_RDONLY)) == ABSENT
    with pytest.raises(TypeError):
        client.PutFile(object())  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        client.PutFile(str(tmp_path / "absent"))


@pytest.mark.skipif(os.geteuid() == 0, reason="CI-may-skip: root may read what nobody may")
def test_a_file_that_may_not_be_read_is_a_permission_error(client: FileStruct.Client, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.touch()
    source.chmod(0)
    with pytest.raises(PermissionError):
        client.PutFile(str(source))


def test_stored_files_are_read_only_and_of_the_databases_group(client: FileStruct.Client, database: Path) -> None:
    path = Path(client[client.PutData(b"abcd")].Path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert path.stat().st_gid == database.stat().st_gid
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o775


def test_clients_are_thread_safe(client: FileStruct.Client) -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for number in range(30):
                data = b"%d" % number
                assert client[client.PutData(data)].GetData() == data
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


# -- temp directories --------------------------------------------------------------------------------------------------


def test_a_temp_directory_comes_and_goes(client: FileStruct.Client) -> None:
    with client.TempDir() as directory:
        assert directory.Client is client
        assert os.path.dirname(directory.Path) == client.TempPath
        assert directory.Retain is False
        assert os.path.isdir(directory.Path)
    assert not os.path.exists(directory.Path)


def test_a_temp_directory_that_was_removed_inside_is_not_found(client: FileStruct.Client) -> None:
    with pytest.raises(FileNotFoundError), client.TempDir() as directory:
        shutil.rmtree(directory.Path)
    with pytest.raises(FileNotFoundError), client.TempDir() as retained:
        retained.Retain = True
        shutil.rmtree(retained.Path)
    with pytest.raises(RuntimeError, match="mine"), client.TempDir() as failed:
        shutil.rmtree(failed.Path)
        raise RuntimeError("mine")


def test_retain_and_exceptions_keep_it_under_error(client: FileStruct.Client) -> None:
    with client.TempDir() as retained:
        retained["a"].PutData(b"a")
        retained.Retain = True
    with pytest.raises(ZeroDivisionError), client.TempDir() as failed:
        failed["a"].PutData(b"a")
        raise ZeroDivisionError
    kept = {name: sorted(os.listdir(os.path.join(client.ErrorPath, name))) for name in os.listdir(client.ErrorPath)}
    assert kept == {
        os.path.basename(retained.Path): ["a"],
        os.path.basename(failed.Path): ["Python-Exception.txt", "a"],
    }


@pytest.mark.parametrize("name", ["", "a/b", "../a", "a b", "ä", "x" * 256, "a\n"])
def test_names_of_files_are_plain(client: FileStruct.Client, name: str) -> None:
    with client.TempDir() as directory:
        actions: list[Callable[[str], object]] = [directory.__getitem__, directory.FilePath, directory.Save]
        for action in actions:
            with pytest.raises(ValueError):
                action(name)
        with pytest.raises(ValueError):
            directory.convert_resize(name, "b", "1x1")


def test_temp_files(client: FileStruct.Client, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"from a file")
    with client.TempDir() as directory:
        file = directory["a.txt"]
        assert file.Path == directory.FilePath("a.txt") == os.path.join(directory.Path, "a.txt")
        assert file.TempDir is directory
        file.PutData(b"from data")
        assert file.GetData() == b"from data"
        file.PutStream(io.BytesIO(b"from a stream"))
        with file.GetStream() as stream:
            assert stream.read() == b"from a stream"
        file.PutFile(str(source))
        assert file.GetData() == b"from a file"
        file.Delete()
        assert not os.path.exists(file.Path)


def test_ingest_moves_a_file_into_the_database(client: FileStruct.Client) -> None:
    with client.TempDir() as directory:
        for name, action in (("a", lambda: directory["a"].Ingest()), ("b", lambda: directory["b"].Save())):
            directory[name].PutData(name.encode())
            assert action() == sha1(name.encode())
            assert not os.path.exists(directory[name].Path)
        directory["c"].PutData(b"c")
        assert directory.Save("c") == sha1(b"c")
    assert client[sha1(b"c")].GetData() == b"c"


def test_a_link_leads_to_the_stored_file_and_never_changes_it(client: FileStruct.Client) -> None:
    client.PutData(b"abcd")
    with client.TempDir() as directory:
        directory["link"].Link(ABCD)
        assert os.readlink(directory["link"].Path) == client[ABCD].Path
        assert directory["link"].GetData() == b"abcd"
        directory["link"].PutData(b"other")
        assert directory["link"].GetData() == b"other"
        with pytest.raises(KeyError):
            directory["gone"].Link(ABSENT)
    assert client[ABCD].GetData() == b"abcd"


# -- pictures ----------------------------------------------------------------------------------------------------------


def picture(client: object, width: int, height: int, format: str = "JPEG") -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(out, format)
    return out.getvalue()


def size_of(data: bytes) -> tuple[int, int]:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return image.size


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_introduction_runs_as_written(client: FileStruct.Client) -> None:
    mydata = picture(client, 400, 200)
    with client.TempDir() as TempDir:  # noqa: N806
        open(TempDir.FilePath('upload.jpg'), 'wb').write(mydata)  # fmt: skip
        TempDir.ResizeImage('upload.jpg', 'resize.jpg', '100x100')  # fmt: skip
        hash1 = TempDir.Save('upload.jpg')  # fmt: skip
        hash2 = TempDir.Save('resize.jpg')  # fmt: skip
    assert client[hash1].GetData() == mydata
    assert size_of(client[hash2].GetData()) == (100, 50)


@pytest.mark.parametrize(
    ("geometry", "size"),
    [
        ("100x100", (100, 50)),
        ("800x800", (800, 400)),
        ("100x100!", (100, 100)),
        ("100x100^", (200, 100)),
        ("50%", (200, 100)),
    ],
)
def test_resize_takes_imagemagicks_geometry_and_enlarges(
    client: FileStruct.Client, geometry: str, size: tuple[int, int]
) -> None:
    with client.TempDir() as directory:
        directory["a.png"].PutData(picture(client, 400, 200, "PNG"))
        directory.convert_resize("a.png", "b.png", geometry)
        assert size_of(directory["b.png"].GetData()) == size


@pytest.mark.parametrize("size", [(100, 100), (30, 300), (800, 10)])
def test_normalize_gives_exactly_that_size(client: FileStruct.Client, size: tuple[int, int]) -> None:
    with client.TempDir() as directory:
        directory["a.png"].PutData(picture(client, 400, 200, "PNG"))
        directory.convert_normalize("a.png", "b.png", *size)
        assert size_of(directory["b.png"].GetData()) == size


def test_a_failed_conversion_is_an_error_and_leaves_no_target(client: FileStruct.Client) -> None:
    with client.TempDir() as directory:
        directory["a.jpg"].PutData(b"no picture")
        for convert in (
            lambda: directory.convert_resize("a.jpg", "b.jpg", "10x10"),
            lambda: directory.convert_normalize("a.jpg", "b.jpg", 10, 10),
            lambda: directory.convert_resize("absent.jpg", "b.jpg", "10x10"),
            lambda: directory.convert_resize("a.jpg", "b.jpg", "nonsense"),
        ):
            with pytest.raises(FileStruct.Error):
                convert()
        assert not os.path.exists(directory["b.jpg"].Path)


@pytest.mark.skipif(not CORPUS.exists(), reason="the original's own picture is in the shared corpus only")
def test_the_originals_own_picture(client: FileStruct.Client) -> None:
    with client.TempDir() as directory:
        directory["a.jpg"].PutFile(str(CORPUS / "images/phone-12mp-mpo.jpg"))
        directory.convert_resize("a.jpg", "b.jpg", "100x100")
        assert size_of(directory["b.jpg"].GetData()) == (100, 75)


def test_the_example_runs(database: Path, tmp_path: Path, client: FileStruct.Client) -> None:
    (tmp_path / "picture.jpg").write_bytes(picture(client, 400, 200))
    example = Path(__file__).parents[1] / "examples/filestruct_intro.py"
    command = [sys.executable, "-W", "ignore", str(example), str(database), str(tmp_path / "picture.jpg")]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert [line.split()[1] for line in output.splitlines()] == [
        f"/FileStruct/Data/{name[:2]}/{name[2:4]}/{name}" for name in (line.split()[0] for line in output.splitlines())
    ]
    assert all(line.split()[0] in client for line in output.splitlines())


def test_a_link_that_cannot_be_removed_is_not_written_through(
    client: FileStruct.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.PutData(b"abcd")
    os.chmod(client[ABCD].Path, 0o644)

    def refused(path: str, **_: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", path)

    with client.TempDir() as directory:
        directory["link"].Link(ABCD)
        with monkeypatch.context() as patched:
            patched.setattr(os, "unlink", refused)
            with pytest.raises(PermissionError):
                directory["link"].PutData(b"other")
            with pytest.raises(PermissionError):
                directory["link"].PutStream(io.BytesIO(b"other"))
    assert client[ABCD].GetData() == b"abcd"
