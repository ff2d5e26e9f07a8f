"""Making a store, its two permission set-ups, and who may do what in them: with real users."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stores import assert_verifies, sha1
from users import OTHER_GROUP, READER, SHOP_GROUP, STORE_GROUP, STRANGER, WORKER, WRITER, as_user, needs_root, open_path

from fsworker.errors import ConfigError, StoreUnavailableError
from fsworker.store.create import add_apps, create_store, editing_config, parse_app
from fsworker.store.objects import ObjectStore
from fsworker.store.probe import check_filesystem

__all__ = ["open_path"]


def tree(root: Path) -> dict[str, str]:
    names = ("", "Data", "Trash", "Temp", "Lock", "Error", "Spool", "Spool/shop")
    return {name: f"{stat.S_IMODE((root / name).stat().st_mode):o}" for name in names}


def test_worker_writes(tmp_path: Path) -> None:
    create_store(tmp_path / "store", apps=["shop"])
    assert tree(tmp_path / "store") == {
        "": "2751",
        "Data": "2750",
        "Trash": "2750",
        "Temp": "700",
        "Lock": "700",
        "Error": "700",
        "Spool": "755",
        "Spool/shop": "2770",
    }


def test_group_writes(tmp_path: Path) -> None:
    create_store(tmp_path / "store", apps=["shop"], writers="group")
    modes = tree(tmp_path / "store")
    assert modes.pop("Spool/shop") == "2770"
    assert set(modes.values()) == {"2775"}


def test_the_umask_never_matters(tmp_path: Path) -> None:
    create_store(tmp_path / "one", apps=["shop"])
    old = os.umask(0o077)
    try:
        create_store(tmp_path / "two/deep/down", apps=["shop"])
    finally:
        os.umask(old)
    assert tree(tmp_path / "one") == tree(tmp_path / "two/deep/down")


def test_the_configuration_is_filestructs_with_ours_beside(tmp_path: Path) -> None:
    create_store(tmp_path, apps=["shop", "blog"], grace_s=3600)
    config = json.loads((tmp_path / "FileStruct.json").read_text())
    assert config.pop("Id")
    assert config == {"Version": 1, "Apps": {"blog": {}, "shop": {}}, "Grace": "1h"}


def test_again_adds_what_is_missing_and_changes_nothing_else(tmp_path: Path) -> None:
    create_store(tmp_path, apps=["shop"], grace_s=3600)
    before = ObjectStore(tmp_path)
    name = before.put(b"x").hash
    create_store(tmp_path, apps=["shop", "blog"], grace_s=7200, writers="group")
    after = ObjectStore(tmp_path)
    assert after.config.store_id == before.config.store_id
    assert after.config.app_names == ["blog", "shop"]
    assert after.grace_s == 3600
    assert name in after
    assert tree(tmp_path)["Data"] == "2750"


def test_an_original_database_gets_applications_and_keeps_its_own(tmp_path: Path) -> None:
    (tmp_path / "FileStruct.json").write_text('{"Version": "1", "User": "www"}')
    create_store(tmp_path, apps=["shop"])
    config = json.loads((tmp_path / "FileStruct.json").read_text())
    assert config["User"] == "www"
    assert config["Apps"] == {"shop": {}}
    assert config["Id"]


def test_a_directory_with_anything_else_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"")
    with pytest.raises(ConfigError, match="not empty"):
        create_store(tmp_path, apps=["shop"])
    assert os.listdir(tmp_path) == ["precious"]


def test_a_half_made_store_is_finished(tmp_path: Path) -> None:
    for name in ("Data", "Temp"):
        (tmp_path / name).mkdir()
    (tmp_path / ".0123.new").touch()
    create_store(tmp_path, apps=["shop"])
    ObjectStore(tmp_path).put(b"x")


@pytest.mark.parametrize("app", ["", "Shop", "../x", "a/b", ".hidden", "x" * 33, "shop:nosuchgroup-at-all"])
def test_an_application_that_cannot_be_is_refused(tmp_path: Path, app: str) -> None:
    with pytest.raises(ConfigError):
        create_store(tmp_path / "store", apps=[app])


def test_wrong_words_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'worker' or 'group'"):
        create_store(tmp_path / "store", apps=[], writers="all")
    with pytest.raises(ConfigError, match="groupadd"):
        create_store(tmp_path / "store", apps=[], group="nosuchgroup-at-all")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError):
        create_store(tmp_path / "file/store", apps=[])


def test_names_and_groups_of_applications() -> None:
    assert parse_app("shop") == ("shop", None)
    assert parse_app("shop:www-data") == ("shop", "www-data")


def test_one_editor_at_a_time(tmp_path: Path) -> None:
    create_store(tmp_path, apps=[])
    one, two = ObjectStore(tmp_path), ObjectStore(tmp_path)
    with editing_config(one), pytest.raises(ConfigError, match="another command"), editing_config(two):
        pass
    assert add_apps(two, {"shop": None}) == ["shop"]
    assert add_apps(two, {"shop": None}) == []
    assert two.config.app_names == ["shop"]


def test_the_probe_passes_here_and_leaves_nothing(tmp_path: Path) -> None:
    create_store(tmp_path, apps=[])
    with ObjectStore(tmp_path) as store:
        check_filesystem(store)
    assert os.listdir(tmp_path / "Temp") == []


# -- real users --------------------------------------------------------------------------------------------------------


@pytest.fixture
def worker_store(open_path: Path) -> Path:
    """A store that WORKER made and writes; STORE_GROUP reads; application shop is of SHOP_GROUP."""
    root = open_path / "store"
    root.mkdir()
    os.chown(root, WORKER, STORE_GROUP)
    as_user(
        WORKER,
        OTHER_GROUP,
        lambda: create_store(root, apps=[f"shop:{SHOP_GROUP}"], group=str(STORE_GROUP)),
        groups=(STORE_GROUP, SHOP_GROUP),
    )
    return root


@pytest.fixture
def group_store(open_path: Path) -> Iterator[Path]:
    """A store that every member of STORE_GROUP writes."""
    root = open_path / "store"
    root.mkdir()
    os.chown(root, WORKER, STORE_GROUP)
    create = lambda: create_store(root, apps=["shop"], writers="group", grace_s=0)  # noqa: E731
    as_user(WORKER, OTHER_GROUP, create, groups=(STORE_GROUP,))
    yield root
    for path in (root / "Data").rglob("*"):
        assert path.stat().st_gid == STORE_GROUP, path
        expected = 0o2775 if path.is_dir() else 0o444
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


def put(root: Path, data: bytes) -> Any:
    with ObjectStore(root) as store:
        return store.put(data)


def read(root: Path, name: str) -> bytes:
    with ObjectStore(root) as store, store.open_file(name) as stream:
        return stream.read()


@needs_root
def test_worker_writes_group_reads_strangers_pass_by(worker_store: Path) -> None:
    name = as_user(WORKER, OTHER_GROUP, lambda: put(worker_store, b"x"), groups=(STORE_GROUP,)).hash
    path = worker_store / f"Data/{name[:2]}/{name[2:4]}/{name}"
    assert path.stat().st_gid == STORE_GROUP
    assert path.parent.stat().st_gid == path.parent.parent.stat().st_gid == STORE_GROUP
    assert as_user(READER, OTHER_GROUP, lambda: read(worker_store, name), groups=(STORE_GROUP,)) == b"x"
    with pytest.raises((ConfigError, PermissionError)):
        as_user(STRANGER, OTHER_GROUP, lambda: read(worker_store, name))


@needs_root
def test_a_reader_cannot_write_lock_or_look_into_others_work(worker_store: Path) -> None:
    with pytest.raises(ConfigError, match="belongs to"):
        as_user(READER, OTHER_GROUP, lambda: put(worker_store, b"x"), groups=(STORE_GROUP,))
    for path in ("Data/evil", "Trash/evil", "Temp/evil", "Lock/00", "Error/evil", "Spool/evil", "FileStruct.json"):
        with pytest.raises(PermissionError):
            as_user(
                READER,
                OTHER_GROUP,
                lambda: os.open(worker_store / path, os.O_WRONLY | os.O_CREAT),
                groups=(STORE_GROUP,),
            )
    for directory in ("Temp", "Lock", "Error", "Spool/shop"):
        with pytest.raises(PermissionError):
            as_user(READER, OTHER_GROUP, lambda: os.listdir(worker_store / directory), groups=(STORE_GROUP,))


@needs_root
def test_an_application_outside_the_stores_group_reaches_its_spool_and_nothing_else(worker_store: Path) -> None:
    def drop() -> None:
        (worker_store / "Spool/shop/upload").write_bytes(b"x")

    as_user(WRITER, SHOP_GROUP, drop)
    assert (worker_store / "Spool/shop/upload").stat().st_gid == SHOP_GROUP
    for directory in ("", "Data", "Trash", "Temp"):
        with pytest.raises(PermissionError):
            as_user(WRITER, SHOP_GROUP, lambda: os.listdir(worker_store / directory))
    with pytest.raises(PermissionError):
        as_user(STRANGER, OTHER_GROUP, drop)


@needs_root
def test_members_of_the_group_share_a_store_whatever_their_umask(group_store: Path) -> None:
    names = set()
    for uid, umask in ((WRITER, 0o077), (READER, 0), (WORKER, 0o027)) * 3:
        data = b"%d" % (len(names) // 2)
        names.add(as_user(uid, OTHER_GROUP, lambda: put(group_store, data), groups=(STORE_GROUP,), umask=umask).hash)
        names.add(
            as_user(uid, OTHER_GROUP, lambda: put(group_store, b"%d" % uid), groups=(STORE_GROUP,), umask=umask).hash
        )
    store = ObjectStore(group_store)
    assert set(store) == names
    assert_verifies(store)


@needs_root
def test_who_does_not_own_a_file_freshens_it_by_a_copy_of_his_own(group_store: Path) -> None:
    name = as_user(WORKER, OTHER_GROUP, lambda: put(group_store, b"x"), groups=(STORE_GROUP,)).hash
    path = group_store / f"Data/{name[:2]}/{name[2:4]}/{name}"
    assert path.stat().st_uid == WORKER
    assert as_user(WRITER, OTHER_GROUP, lambda: put(group_store, b"x"), groups=(STORE_GROUP,)).duplicate
    assert path.stat().st_uid == WRITER
    assert as_user(READER, OTHER_GROUP, lambda: ObjectStore(group_store).freshen(name), groups=(STORE_GROUP,))
    assert path.stat().st_uid == READER
    assert path.read_bytes() == b"x"
    assert os.listdir(group_store / "Temp") == []


@needs_root
def test_who_does_not_own_a_rotten_file_heals_it(group_store: Path) -> None:
    name = as_user(WORKER, OTHER_GROUP, lambda: put(group_store, b"good"), groups=(STORE_GROUP,)).hash
    path = group_store / f"Data/{name[:2]}/{name[2:4]}/{name}"
    path.write_bytes(b"bad!")
    with pytest.raises(StoreUnavailableError, match="rotten"):
        as_user(READER, OTHER_GROUP, lambda: ObjectStore(group_store).freshen(name), groups=(STORE_GROUP,))
    as_user(WRITER, OTHER_GROUP, lambda: put(group_store, b"good"), groups=(STORE_GROUP,))
    assert path.read_bytes() == b"good"
    assert [p.read_bytes() for p in group_store.glob(f"Error/*/{name}")] == [b"bad!"]


@needs_root
def test_one_who_is_no_member_is_told_what_to_do(group_store: Path) -> None:
    with pytest.raises(ConfigError, match="members of group"):
        as_user(STRANGER, OTHER_GROUP, lambda: put(group_store, b"x"))


@needs_root
def test_a_worker_outside_the_stores_group_is_told_before_it_makes_a_store(open_path: Path) -> None:
    root = open_path / "store"
    root.mkdir()
    os.chown(root, WORKER, OTHER_GROUP)
    with pytest.raises(ConfigError, match="member of group"):
        as_user(WORKER, OTHER_GROUP, lambda: create_store(root, apps=[], group=str(STORE_GROUP)))


@needs_root
def test_a_spool_for_a_group_one_is_not_in_names_the_command(worker_store: Path) -> None:
    def add() -> None:
        with ObjectStore(worker_store) as store:
            add_apps(store, {"blog": str(OTHER_GROUP + 500)})

    # The group has no name, as those of containers: usermod alone would not do.
    with pytest.raises(
        ConfigError, match=rf"groupadd --gid {OTHER_GROUP + 500} NAME && usermod -aG NAME uid {WORKER} "
    ):
        as_user(WORKER, OTHER_GROUP, add, groups=(STORE_GROUP,))
    assert "blog" not in (worker_store / "FileStruct.json").read_text()


@needs_root
def test_an_application_that_gets_its_group_later_reads_what_is_there(worker_store: Path) -> None:
    """Registered without its group, by mistake, and once more with it."""

    def add(app: str, group: str | None) -> None:
        with ObjectStore(worker_store) as store:
            add_apps(store, {app: group})

    for group in (None, str(OTHER_GROUP)):
        as_user(WORKER, OTHER_GROUP, lambda: add("blog", group), groups=(STORE_GROUP, SHOP_GROUP))
    note = worker_store / "Spool/blog/.store.json"
    assert note.stat().st_gid == OTHER_GROUP
    assert as_user(WRITER, OTHER_GROUP, note.read_text) == note.read_text()


def test_content_survives_all_that(tmp_path: Path) -> None:
    create_store(tmp_path, apps=[])
    assert put(tmp_path, b"x").hash == sha1(b"x")
