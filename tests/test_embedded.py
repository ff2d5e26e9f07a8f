"""The embedded server: private, durable, never orphaned, one to a directory, many to a machine."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from celery import Celery
from processes import ENVIRONMENT, background, eventually, marked, none_left, python

from fsworker.errors import ConfigError, UnavailableError
from fsworker.host.embedded import EmbeddedServer, running_url
from fsworker.host.serverbinary import ServerBinary
from fsworker.host.supervise import Child, Supervisor

AWKWARD = "Jürgen's 100% great files/" + "and-a-long-name-" * 7
# Root may write anywhere, so that a test of permissions has to take the power from it.
UNPRIVILEGED = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A server's directory, not made yet; in the end no process may have it in its command line."""
    with none_left(tmp_path / "state"):
        yield tmp_path / "state"


@contextmanager
def client(server: EmbeddedServer) -> Iterator[redis.Redis]:
    with redis.Redis(unix_socket_path=str(server.socket_path), decode_responses=True) as connection:
        yield connection


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def program(path: Path, script: str) -> ServerBinary:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)
    return ServerBinary(path, (7, 0, 0), "PATH")


# Serving


def test_celery_reaches_it_as_broker_and_as_result_backend(directory: Path) -> None:
    with EmbeddedServer.start(directory) as server:
        app = Celery(broker=server.url, backend=server.url, set_as_current=False)
        app.send_task("fsworker.ingest", queue="fsworker.ingest.shop", task_id="shop.1")
        app.backend.store_result("shop.1", {"hash": "da39"}, "SUCCESS")
        assert app.AsyncResult("shop.1").get(timeout=10) == {"hash": "da39"}
        with client(server) as connection:
            assert connection.llen("fsworker.ingest.shop") == 1
        app.backend.client.close()
        app.close()


def test_only_its_user_can_reach_it(directory: Path) -> None:
    with EmbeddedServer.start(directory) as server, client(server) as connection:
        assert connection.config_get("port") == {"port": "0"}
        assert (mode(directory), mode(server.socket_path)) == (0o700, 0o700)
        assert mode(directory / "server.log") == 0o600


def test_two_at_once_do_not_meet(tmp_path: Path) -> None:
    with (
        none_left(tmp_path),
        EmbeddedServer.start(tmp_path / "one") as one,
        EmbeddedServer.start(tmp_path / "two") as two,
        client(one) as in_one,
        client(two) as in_two,
    ):
        in_one.set("colour", "green")
        assert in_two.get("colour") is None


def test_it_starts_where_the_locale_is_not_installed(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "tlh_QO.UTF-8")
    with EmbeddedServer.start(directory):
        pass
    assert "LOCALE" not in (directory / "server.log").read_text()


def test_the_log_of_the_start_before_is_kept(directory: Path) -> None:
    with EmbeddedServer.start(directory) as server:
        first = server.pid
    with EmbeddedServer.start(directory):
        assert f"{first}:" in (directory / "server.log.1").read_text()
        assert f"{first}:" not in (directory / "server.log").read_text()


# Data


def test_data_outlives_a_stop(directory: Path) -> None:
    with EmbeddedServer.start(directory) as server, client(server) as connection:
        connection.set("colour", "green")
    with EmbeddedServer.start(directory) as server, client(server) as connection:
        assert connection.get("colour") == "green"


def test_data_that_was_acknowledged_outlives_sigkill_of_the_server(directory: Path) -> None:
    with EmbeddedServer.start(directory) as server, client(server) as connection:
        for number in range(1000):
            connection.rpush("queue", number)
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
    with EmbeddedServer.start(directory) as server, client(server) as connection:
        assert connection.lrange("queue", 0, -1) == [str(number) for number in range(1000)]


def test_a_server_of_another_make_can_read_the_data(directory: Path) -> None:
    with EmbeddedServer.start(directory) as server, client(server) as connection:
        connection.set("colour", "green")
        connection.bgrewriteaof()
        assert eventually(lambda: connection.info("persistence")["aof_rewrite_in_progress"] == 0)
        assert eventually(lambda: len(list((directory / "appendonlydir").glob("*.base.*"))) == 1)
    (base,) = (directory / "appendonlydir").glob("*.base.*")
    assert base.read_bytes().startswith(b"*2\r\n$6\r\nSELECT\r\n")  # commands, no snapshot


# Never orphaned

PARENT = """
import sys, time
from fsworker.host.embedded import EmbeddedServer
server = EmbeddedServer.start(sys.argv[1])
print(server.pid, server.url, flush=True)
time.sleep(600)
"""


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_dies_with_its_parent_and_keeps_its_data(number: int, directory: Path) -> None:
    with background(PARENT, directory) as parent:
        assert parent.stdout is not None
        pid, url = parent.stdout.readline().split()
        assert running_url(directory) == url
        with redis.Redis(unix_socket_path=str(directory / "server.sock")) as connection:
            connection.set("colour", "green")
        os.killpg(parent.pid, number)
        parent.wait(20)
        assert eventually(lambda: marked(directory) == [])
        assert not Path(f"/proc/{pid}").exists()
    assert running_url(directory) is None
    with EmbeddedServer.start(directory) as server, client(server) as connection:
        assert server.url == url
        assert connection.get("colour") == "green"


def test_a_dead_parents_directory_stays_locked_until_its_server_is_gone(directory: Path) -> None:
    with background(PARENT, directory) as parent:
        assert parent.stdout is not None
        guard = parent_of(int(parent.stdout.readline().split()[0]))
        os.kill(guard, signal.SIGSTOP)
        parent.kill()
        parent.wait(20)
        with pytest.raises(ConfigError, match=f"in use by another embedded server .of process {parent.pid}."):
            EmbeddedServer(directory)
        os.kill(guard, signal.SIGCONT)
        with EmbeddedServer.start(directory):
            pass


def test_stop_may_be_repeated(directory: Path) -> None:
    server = EmbeddedServer.start(directory)
    server.stop()
    server.stop()
    assert not server.answers()
    assert server.pid is None


# Under a supervisor


def test_a_supervisor_starts_it_again_with_its_data_at_the_same_place(directory: Path) -> None:
    log: list[str] = []
    worker = Child("worker", python("import time; time.sleep(600)", directory))
    with EmbeddedServer(directory) as server, Supervisor([server.child(), worker], log.append) as supervisor:
        with client(server) as connection:
            connection.set("colour", "green")
        before = supervisor.pids
        os.kill(before["redis"], signal.SIGKILL)
        assert eventually(lambda: supervisor.check() or "redis: started again" in log[-1])
        assert eventually(server.answers)
        with client(server) as connection:
            assert connection.get("colour") == "green"
        assert running_url(directory) == server.url
        assert supervisor.pids["worker"] == before["worker"]
    assert log[-2:] == ["worker: stopped", "redis: stopped"]
    assert sorted(os.listdir(directory)) == ["appendonlydir", "lock", "server.log"]


# Directories


def test_a_long_or_odd_directory_has_its_socket_elsewhere(tmp_path: Path) -> None:
    directory = tmp_path / AWKWARD
    with none_left(directory):
        with EmbeddedServer.start(directory) as server, client(server) as connection:
            connection.set("colour", "green")
            elsewhere = server.socket_path.parent
            assert directory not in server.socket_path.parents
            assert mode(elsewhere) == 0o700
            assert running_url(directory) == server.url
            app = Celery(broker=server.url, set_as_current=False)
            with app.connection_for_write() as broker:
                broker.ensure_connection(max_retries=1)
            app.close()
        assert not elsewhere.exists()
        with EmbeddedServer.start(directory) as server, client(server) as connection:
            assert connection.get("colour") == "green"


def test_a_killed_servers_place_elsewhere_is_used_again(tmp_path: Path) -> None:
    directory = tmp_path / AWKWARD
    with background(PARENT, directory) as parent:
        assert parent.stdout is not None
        url = parent.stdout.readline().split()[1]
        parent.kill()
    assert eventually(lambda: marked(directory) == [])
    with EmbeddedServer.start(directory) as server:
        assert server.url == url
        elsewhere = server.socket_path.parent
        server.stop()
        assert not elsewhere.exists()


def test_it_works_by_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("real")
    with none_left(tmp_path), EmbeddedServer.start(tmp_path / "link") as server:
        assert server.directory == tmp_path / "link"
        assert running_url(tmp_path / "real") is not None


def test_a_copy_of_a_directory_is_not_its_original(tmp_path: Path) -> None:
    with none_left(tmp_path), EmbeddedServer.start(tmp_path / "original"):
        subprocess.run(["cp", "-a", tmp_path / "original", tmp_path / "copy"], check=True)
        assert running_url(tmp_path / "copy") is None
        with EmbeddedServer.start(tmp_path / "copy") as copy:
            assert copy.url == running_url(tmp_path / "copy") != running_url(tmp_path / "original")


def test_another_process_finds_it(directory: Path) -> None:
    ask = python(
        "import sys; from fsworker.host.embedded import running_url; print(running_url(sys.argv[1]))", directory
    )

    def asked() -> str:
        return subprocess.run(ask, env=ENVIRONMENT, capture_output=True, text=True, check=True).stdout.strip()

    assert asked() == "None"
    assert not directory.exists()  # asking leaves nothing behind
    with EmbeddedServer.start(directory) as server:
        assert asked() == server.url
    assert asked() == "None"


def test_a_socket_elsewhere_is_not_trusted_once_its_directory_is_not_private(tmp_path: Path) -> None:
    (tmp_path / "long").mkdir(mode=0o700)
    with none_left(tmp_path), EmbeddedServer.start(tmp_path / "elsewhere") as server:
        (tmp_path / "long" / "server.sock").symlink_to(server.socket_path)
        assert running_url(tmp_path / "long") == server.url
        server.directory.chmod(0o755)
        assert running_url(tmp_path / "long") is None
        server.directory.rename(tmp_path / "moved")
        server.directory.symlink_to(tmp_path / "moved")
        (tmp_path / "moved").chmod(0o700)
        assert running_url(tmp_path / "long") is None
        server.directory.unlink()
        (tmp_path / "moved").rename(server.directory)


def test_a_second_server_in_the_same_directory_is_refused_and_the_first_goes_on(directory: Path) -> None:
    with EmbeddedServer.start(directory) as first:
        with pytest.raises(ConfigError) as caught:
            EmbeddedServer.start(directory)
        assert f"in use by another embedded server (of process {os.getpid()}): stop that one, or set" in str(
            caught.value
        )
        assert first.answers()
        with background(PARENT, directory) as second:
            assert second.stdout is not None
            assert f"ConfigError: {directory} is in use" in second.stdout.read()
        assert running_url(directory) == first.url


def test_an_open_directory_with_something_in_it_is_refused(directory: Path) -> None:
    directory.mkdir()
    directory.chmod(0o750)
    (directory / "appendonlydir").mkdir()
    with pytest.raises(ConfigError, match=r"open to others \(mode 0750\).*run 'chmod 700' on it"):
        EmbeddedServer(directory)
    assert os.listdir(directory) == ["appendonlydir"]


def test_an_open_directory_with_nothing_in_it_is_closed(directory: Path) -> None:
    directory.mkdir(mode=0o755)
    with EmbeddedServer(directory):
        assert mode(directory) == 0o700


def test_another_users_directory_is_refused(directory: Path) -> None:
    foreign = Path("/usr")
    if os.geteuid() == 0:
        foreign = directory
        foreign.mkdir(mode=0o700)
        os.chown(foreign, 65534, -1)
    with pytest.raises(ConfigError, match=r"belongs to uid \d+, this is uid \d+: run as its owner"):
        EmbeddedServer(foreign)


def refusal(directory: Path, *prefix: str) -> str:
    """What a process says that cannot take the directory, without root's power to write anywhere."""
    take = python(
        "import sys; from fsworker.host.embedded import EmbeddedServer; EmbeddedServer(sys.argv[1])", directory
    )
    answer = subprocess.run([*prefix, *take], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert answer.returncode == 1
    return answer.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", [".", "new"])
def test_a_directory_that_cannot_be_written_to_is_refused(name: str, directory: Path) -> None:
    directory.mkdir(mode=0o500)
    message = refusal(directory / name, *UNPRIVILEGED)
    assert message.startswith("fsworker.errors.ConfigError: cannot keep the embedded server's data in ")
    assert "Permission denied" in message
    assert "set FSWORKER_STATE_DIR to a directory of your own" in message


def test_a_file_in_the_way_is_refused(directory: Path) -> None:
    directory.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"cannot keep .* data in .*: File exists"):
        EmbeddedServer(directory)
    with pytest.raises(ConfigError, match=r"cannot keep .* data in .*: Not a directory"):
        EmbeddedServer(directory / "below")


# A server that will not


def test_a_server_that_ends_at_once_is_an_error_with_its_last_words(directory: Path, tmp_path: Path) -> None:
    binary = program(tmp_path / "server", "echo 'Bad file format reading the append only file' >&2; exit 1")
    with pytest.raises(ConfigError) as caught:
        EmbeddedServer.start(directory, binary=binary)
    message = str(caught.value)
    assert f"redis ended with status 1 while starting; mend what it says in {directory}/server.log:" in message
    assert message.endswith("Bad file format reading the append only file")
    with EmbeddedServer.start(directory):  # nothing of it is left in the way
        pass


def test_a_server_that_does_not_answer_in_time_is_stopped(directory: Path, tmp_path: Path) -> None:
    binary = program(tmp_path / "server", "exec sleep 600")
    with pytest.raises(UnavailableError, match=r"redis is not ready after 0\.3 s.*server\.log"):
        EmbeddedServer.start(directory, binary=binary, ready_timeout_s=0.3)
    assert marked(directory) == []
