"""FileStruct.json and the names in a store: read as the original reads them, and nothing lost by an edit."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsworker.errors import ConfigError
from fsworker.model import EMPTY_HASH
from fsworker.store import layout


def parse(text: str) -> layout.StoreConfig:
    return layout.parse_config(text, "FileStruct.json")


@pytest.mark.parametrize(
    "text",
    [
        '{"Version": 1}',
        '{"Version": "1"}',
        '# a comment\n  # another\n{"Version": 1}',
        '{"Version": 1\r#comment}\n}',
        '{"Version": 1, "User": "www", "Group": 5, "Other": [null]}',
        '{"Version": 1, "Motto": "a\u2028b"}',
    ],
)
def test_what_the_original_opens_opens(text: str) -> None:
    config = parse(text)
    assert config.apps is None
    assert config.store_id == ""
    assert config.grace_s == layout.DEFAULT_GRACE_S


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"version": 1}', '#{"Version": 1}', '{"Version": 1 # no\n}', "[" * 100_000]
    + [f'{{"Version": {v}}}' for v in ("0", "-1", "2", '"1a"', '"2"', "[]", "[1]", "true", "1.0", "null", "{}")]
    + [f'{{"Version": 1, {k}}}' for k in ('"Id": 5', '"Apps": []', '"Apps": {"shop": 1}', '"Apps": {"../x": {}}')]
    + ['{"Version": 1, "Grace": "soon"}', '{"Version": 1, "Grace": -5}', '{"Version": 1, "Grace": "-5s"}'],
)
def test_anything_else_is_a_config_error_that_names_the_file(text: str) -> None:
    with pytest.raises(ConfigError, match="FileStruct.json"):
        parse(text)


def test_unknown_keys_survive_an_edit() -> None:
    config = parse('{"Version": "1", "User": "www", "Apps": {"shop": {"Colour": "red"}}, "Nested": {"a": [1]}}')
    again = parse(config.with_apps({**(config.apps or {}), "blog": {}}).dump())
    assert again.app_names == ["blog", "shop"]
    assert again.apps == {"shop": {"Colour": "red"}, "blog": {}}
    assert again.other == {"User": "www", "Nested": {"a": [1]}}
    assert len(again.store_id) == 32


def test_an_id_once_given_stays() -> None:
    config = layout.StoreConfig(store_id="abc")
    assert config.with_apps({"shop": {}}).store_id == "abc"


def test_no_grace_at_all_is_legal() -> None:
    assert parse('{"Version": 1, "Grace": "0s"}').grace_s == 0
    assert parse('{"Version": 1, "Grace": 0}').grace_s == 0


@given(st.integers(0, 10 * 365 * 86400))
def test_a_grace_comes_back_as_it_was(seconds: int) -> None:
    assert parse(layout.StoreConfig(apps={}, grace_s=float(seconds)).dump()).grace_s == seconds


def test_the_dump_is_json_that_a_person_can_read() -> None:
    text = layout.StoreConfig(store_id="id", apps={"shop": {}}, grace_s=86400).dump()
    assert json.loads(text) == {"Version": 1, "Id": "id", "Apps": {"shop": {}}, "Grace": "1d"}
    assert text.count("\n") > 5


def test_paths() -> None:
    assert layout.data_name(EMPTY_HASH) == f"Data/da/39/{EMPTY_HASH}"
    assert layout.shard(EMPTY_HASH) == "da/39"


def test_stamps_are_the_originals_and_sort_by_time() -> None:
    stamp = layout.stamp(1361375833.62109375)
    assert stamp.startswith("20130220155713-62109375-")
    assert layout.is_stamp(stamp)
    assert layout.stamp_time(stamp) == 1361375833
    assert layout.stamp(1361375834.0) > stamp
    for other in ("20130220155713", "20130220155713-6210937-21427441", stamp + "x", "../" + stamp):
        assert not layout.is_stamp(other)
