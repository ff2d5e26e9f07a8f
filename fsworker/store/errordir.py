"""Entries of ``Error/``: what was refused or found broken, kept with a machine-readable reason.

An entry is a directory ``Error/<stamp>/`` with the bytes and ``Reason.json``. Only entries with a reason of kind
``rejected`` (an upload that its application sent, and was told about) ever expire; quarantined store content and the
temp directories that failed are removed by hand only.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from fsworker import durable
from fsworker.store import layout
from fsworker.store.handle import StoreHandle

REASON_FILE = "Reason.json"
MAX_REASON_BYTES = 1 << 20

REJECTED = "rejected"
QUARANTINED = "quarantined"
COLLISION = "collision"


@dataclass(frozen=True)
class ErrorEntry:
    """One directory under ``Error/``. ``reason`` is empty for what the original FileStruct left there."""

    stamp: str
    reason: Mapping[str, Any]
    files: tuple[str, ...]

    @property
    def kind(self) -> str:
        """``rejected``, ``quarantined``, ``collision``, or ``retained`` for a temp directory kept after a failure."""
        return str(self.reason.get("kind", "retained"))


@contextmanager
def new_entry(handle: StoreHandle, kind: str, message: str, **details: Any) -> Iterator[tuple[str, int]]:
    """Make ``Error/<stamp>/`` with its reason, and yield the stamp and a descriptor to put bytes into.

    The directory is on disk before the block, so that a file may be moved into it; the reason and what the block put
    there are at the end. If the block fails the entry stays, with its reason, and without the bytes.
    """
    handle.prepare()
    now_s = handle.recent_clock()
    name = layout.stamp(now_s)
    while not handle.make_directory(f"{layout.ERROR}/{name}", handle.modes.private):
        name = layout.stamp(now_s)
    fd = os.open(f"{layout.ERROR}/{name}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=handle.fd)
    try:
        handle.fsync_directory(layout.ERROR)
        _write_reason(handle, fd, {"kind": kind, "message": message, "time": now_s, **details})
        yield name, fd
        handle.fsync(fd)
    finally:
        os.close(fd)


def _write_reason(handle: StoreHandle, entry_fd: int, reason: Mapping[str, Any]) -> None:
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
    fd = os.open(REASON_FILE, flags, 0o600, dir_fd=entry_fd)
    try:
        durable.write_all(fd, json.dumps(reason, indent=2).encode())
        os.fchmod(fd, 0o640)
        handle.fsync(fd)
    finally:
        os.close(fd)


def stamps(handle: StoreHandle) -> list[str]:
    """The names of all entries of ``Error/``, oldest first."""
    try:
        return sorted(name for name in os.listdir(handle.root / layout.ERROR) if layout.is_stamp(name))
    except FileNotFoundError:
        return []


def read_entry(handle: StoreHandle, stamp: str) -> ErrorEntry:
    """The entry ``stamp``, which must come from :func:`stamps`. ``OSError`` when it is gone, or no directory."""
    directory = handle.root / layout.ERROR / stamp
    files = tuple(sorted(name for name in os.listdir(directory) if name != REASON_FILE))
    return ErrorEntry(stamp, _read_reason(directory / REASON_FILE), files)


def entries(handle: StoreHandle, *, after: str = "") -> Iterator[ErrorEntry]:
    """Every entry of ``Error/`` whose stamp is greater than ``after``, oldest first."""
    for stamp in stamps(handle):
        if stamp > after:
            with suppress(FileNotFoundError, NotADirectoryError):  # removed meanwhile; a stray file
                yield read_entry(handle, stamp)


def remove(handle: StoreHandle, stamp: str) -> None:
    """Delete the entry ``stamp`` with all that is in it. ``stamp`` must come from :func:`entries`."""
    shutil.rmtree(handle.root / layout.ERROR / stamp)


def _read_reason(path: os.PathLike[str]) -> dict[str, Any]:
    try:
        with open(path, "rb") as stream:
            reason = json.loads(stream.read(MAX_REASON_BYTES))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return reason if isinstance(reason, dict) else {}
