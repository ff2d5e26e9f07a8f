"""Run a function as another user, for tests of who may do what. Needs root."""

from __future__ import annotations

import os
import pickle
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="CI-may-skip: only root can become another user")

WORKER, READER, STRANGER, WRITER = 41001, 41002, 41003, 41004
STORE_GROUP, OTHER_GROUP, SHOP_GROUP = 42001, 42002, 42003


def as_user(
    uid: int, gid: int, function: Callable[[], Any], *, groups: tuple[int, ...] = (), umask: int = 0o077
) -> Any:
    """What ``function`` returns, or raises, in a process of that user, primary group and supplementary groups."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read_fd)
            os.umask(umask)
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            try:
                answer = (True, function())
                data = pickle.dumps(answer)
            except BaseException as error:
                traceback.clear_frames(error.__traceback__)
                data = pickle.dumps((False, error))
            with os.fdopen(write_fd, "wb") as pipe:
                pipe.write(data)
        finally:
            os._exit(0)
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as pipe:
        data = pipe.read()
    os.waitpid(pid, 0)
    worked, value = pickle.loads(data)
    if not worked:
        raise value
    return value


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory that every user can reach, unlike ``tmp_path``."""
    with tempfile.TemporaryDirectory(prefix="fsworker-test-", ignore_cleanup_errors=True) as name:
        os.chmod(name, 0o755)
        yield Path(name)
