"""An engine that does what its picture says: for tests of what a taken-over decoder can do, in a fork or by the server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from processes import children, eventually, is_alive, state

from fsworker.specification import Thumbnail
from fsworker.thumbnails import Limits
from fsworker.thumbnails.child import Run, collect, run_limited
from fsworker.thumbnails.forkserver import ForkServer
from fsworker.thumbnails.outcome import Report, Reporter

Limited = Callable[..., tuple[Report, str | None]]


def obey(fd: int, specifications: Mapping[str, Thumbnail], limits: Limits, reporter: Reporter) -> None:
    """Run the file behind ``fd`` as Python, with ``fd`` and ``reporter`` at hand."""
    exec(os.pread(fd, 2**16, 0), {"fd": fd, "reporter": reporter})


def ordered(code: str, limits: Limits | None = None, *, run: Run | None = None) -> tuple[Report, str | None]:
    """What becomes of a picture that says ``code``, with the wishes a and b."""
    wishes = {"a": Thumbnail("9x9"), "b": Thumbnail("8x8")}
    fd = os.memfd_create("picture", os.MFD_CLOEXEC)
    os.pwrite(fd, code.encode(), 0)
    try:
        if run is None:
            return run_limited(obey, fd, wishes, limits or Limits())
        return collect(run, fd, wishes, limits or Limits())
    finally:
        os.close(fd)


def waiting_spare(server: ForkServer) -> int:
    """The process that waits for the server's next picture: there is one a moment after a picture."""
    if not children(server.pid):
        ordered("", run=server.run)
    assert eventually(lambda: [state(child) for child in children(server.pid)] == ["S"]), "no spare"
    return children(server.pid)[0]


def by_spare(server: ForkServer) -> Limited:
    """As :func:`ordered`, in a process that was waiting for the picture."""

    def run(code: str, limits: Limits | None = None) -> tuple[Report, str | None]:
        spare = waiting_spare(server)
        result = ordered(code, limits, run=server.run)
        assert not is_alive(spare), "the spare was not used"
        return result

    return run


def by_fork(server: ForkServer) -> Limited:
    """As :func:`ordered`, in a process that the server forks for the picture."""

    def run(code: str, limits: Limits | None = None) -> tuple[Report, str | None]:
        ordered("", run=server.run)  # takes the spare, if one waits; there is another only after a pause
        return ordered(code, limits, run=server.run)

    return run


@contextmanager
def obedient_server() -> Iterator[ForkServer]:
    """A fork server of which the engine is :func:`obey`; stopped after."""
    server = ForkServer(f"{__name__}:obey")
    try:
        yield server
    finally:
        server.stop()
