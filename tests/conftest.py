"""What all tests share: skips that count as failures in CI, a real Redis, a store, and a running stack."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from stacks import RunningStack, running_stack
from users import open_path as open_path  # a fixture

from fsworker.host.embedded import EmbeddedServer
from fsworker.store.facade import Store

pytest_plugins = ["live_worker"]

ALLOWED_IN_CI = ("CI-may-skip:",)
"""A skip whose reason begins so is no failure in CI: what no package can give (a kernel feature, root)."""


def pytest_configure() -> None:
    """Ctrl-C and a hang-up reach the programs that tests start: who runs the tests in the background has them ignored."""
    # The first draw in a fresh clone makes Hypothesis's table of characters, which takes seconds. (Its own profile for CI knows.)
    if os.environ.get("CI") != "true":
        settings.register_profile("fsworker", deadline=None, suppress_health_check=[HealthCheck.too_slow])
        settings.load_profile("fsworker")
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
    """In CI a skip is a failure: a program that is missing there was not installed, and nobody would notice."""
    report = yield
    if report.skipped and os.environ.get("CI") == "true" and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not reason.removeprefix("Skipped: ").startswith(ALLOWED_IN_CI):
            report.outcome = "failed"
            report.longrepr = f"skipped in CI, where nothing may be missing: {reason}"
    return report


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No setting of the machine reaches a test, and no test writes to the user's state directory."""
    for name in list(os.environ):
        if name.startswith("FSWORKER_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.getbasetemp() / "state-home"))


@pytest.fixture
def no_fork_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode in forks of this process: what a test patches is not in a server that a service of another test started."""
    monkeypatch.setattr("fsworker.thumbnails.make._server", None)


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Redis for the whole session; tests use names of their own in it."""
    with EmbeddedServer.start(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A new store with the applications ``shop`` and ``blog``."""
    with Store.create(tmp_path / "store", apps=["shop", "blog"]) as made:
        yield made


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """What ``fsworker up`` runs, for all tests of a module: real Redis, real workers, real beat."""
    directory = tmp_path_factory.mktemp("stack")
    with running_stack(directory) as running:
        yield running
    shutil.rmtree(directory, ignore_errors=True)
