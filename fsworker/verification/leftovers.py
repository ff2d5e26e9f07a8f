"""What dead processes and forgetful applications left in ``Temp/`` and in the spool.

Whatever is found here could be somebody's work of this very moment. So there are two looks, some time apart, and only
what both found, unchanged and unlocked, is a finding; what can wait, waits until it is old.
"""

from __future__ import annotations

import fcntl
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from fsworker.errors import ConfigError, FSWorkerError, UploadRejectedError
from fsworker.model import check_app, check_job_id
from fsworker.spool.directory import STORE_NOTE, Entry, SpoolDirectory, request_name
from fsworker.store import hold, layout
from fsworker.store.locks import job_in_flight
from fsworker.store.objects import ObjectStore
from fsworker.store.tempdirs import LEFTOVER_AGE_S
from fsworker.verification.findings import Finding
from fsworker.verification.judging import clock_of, opened_directory
from fsworker.verification.quarantine import quarantine

log = logging.getLogger(__name__)

RECENT_UPLOAD_S = 3600.0
"""A plain producer writes the file first and sends the task then, and the queue may be long."""


@dataclass(frozen=True)
class Leftover:
    """Something seen in one look: what it seems to be, and the inode."""

    path: str
    kind: str
    seen: os.stat_result

    @property
    def identity(self) -> tuple[str, int, int]:
        """What must be the same in the second look."""
        return self.path, self.seen.st_ino, self.seen.st_ctime_ns


def look(store: ObjectStore) -> list[Leftover]:
    """One look at ``Temp/`` and the spool. What this process may not list is not looked at."""
    now_s = clock_of(store)
    return [*_look_at_temp(store, now_s), *_look_at_spool(store, now_s)]


def settle(store: ObjectStore, first: list[Leftover], *, repair: bool, move_uploads: bool = True) -> Iterator[Finding]:
    """Look a second time, and report what was there both times. With ``repair`` it goes to ``Error/``.

    Uploads go only when their inode is a day old, and only if a person asked (``move_uploads``): messages may wait in the
    queue as long as no worker runs. ``first`` must be some time old: a temp directory is locked only after it was made.
    """
    before = {leftover.identity for leftover in first}
    for leftover in look(store):
        if leftover.identity in before:
            may_move = repair and (move_uploads or leftover.kind != "unrequested-upload")
            yield from _settle(store, leftover, may_move=may_move)


def _settle(store: ObjectStore, leftover: Leftover, *, may_move: bool) -> Iterator[Finding]:
    finding = Finding(leftover.path, leftover.kind, detail=_describe(leftover.seen))
    if not may_move or finding.is_note:
        yield finding
        return
    age_s = clock_of(store) - leftover.seen.st_ctime
    if leftover.kind == "unrequested-upload" and age_s < LEFTOVER_AGE_S:
        yield replace(finding, action="waits")
    elif hold.current(store) is not None:
        yield replace(finding, action="waits", detail=f"{finding.detail}; a hold is in force")
    else:
        try:
            kept = _move(store, leftover, finding.message)
        except (OSError, FSWorkerError) as error:
            yield replace(finding, action="failed", detail=f"{finding.detail}; it could not be moved: {error}")
        else:
            if kept is not None:
                yield replace(finding, action="quarantined", kept=kept)


def _move(store: ObjectStore, leftover: Leftover, message: str) -> str | None:
    reason = f"{leftover.path}: {message}"
    if leftover.kind == "temp-leftover" and stat.S_ISDIR(leftover.seen.st_mode):
        with opened_directory(store.fd, leftover.path) as fd:
            if not _try_lock(fd):
                return None
            return quarantine(store, leftover.path, leftover.seen, reason, finding=leftover.kind)  # closing unlocks
    return quarantine(store, leftover.path, leftover.seen, reason, finding=leftover.kind)


def _describe(seen: os.stat_result) -> str:
    if stat.S_ISREG(seen.st_mode):
        return f"{seen.st_size:,} bytes"
    return {stat.S_IFDIR: "a directory", stat.S_IFLNK: "a symbolic link"}.get(stat.S_IFMT(seen.st_mode), "no file")


# -- Temp --------------------------------------------------------------------------------------------------------------


def _look_at_temp(store: ObjectStore, now_s: float) -> Iterator[Leftover]:
    with suppress(FileNotFoundError, PermissionError), opened_directory(store.fd, layout.TEMP) as fd:
        for name in sorted(os.listdir(fd)):
            with suppress(FileNotFoundError):
                seen = os.stat(name, dir_fd=fd, follow_symlinks=False)
                kind = _temp_kind(store, fd, name, seen, now_s)
                if kind is not None:
                    yield Leftover(f"{layout.TEMP}/{name}", kind, seen)


def _temp_kind(store: ObjectStore, temp_fd: int, name: str, seen: os.stat_result, now_s: float) -> str | None:
    """What an entry of ``Temp/`` is; ``None`` for one that is, or may be, in use."""
    if name.startswith("."):
        return "temp-leftover" if now_s - max(seen.st_ctime, seen.st_mtime) > LEFTOVER_AGE_S else None
    if not (layout.is_stamp(name) and stat.S_ISDIR(seen.st_mode)):
        return "temp-stray"
    # Processes of the original do not lock. Where only the worker writes there are none.
    if store.modes is not layout.WORKER_WRITES and now_s - _made_s(name, seen) < LEFTOVER_AGE_S:
        return None
    try:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=temp_fd)
    except PermissionError:
        return None
    try:
        return "temp-leftover" if _try_lock(fd) else None
    finally:
        os.close(fd)


def _made_s(name: str, seen: os.stat_result) -> float:
    try:
        return layout.stamp_time(name)
    except ValueError:  # a thirteenth month
        return seen.st_ctime


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# -- spool -------------------------------------------------------------------------------------------------------------


def _look_at_spool(store: ObjectStore, now_s: float) -> Iterator[Leftover]:
    try:
        with opened_directory(store.fd, layout.SPOOL) as fd:
            apps = sorted(os.listdir(fd))
    except (FileNotFoundError, PermissionError):
        return
    except OSError as error:  # no reason to verify nothing
        log.warning("verification: %s cannot be looked at: %s", layout.SPOOL, error.strerror)
        return
    for app in apps:
        try:
            spool = SpoolDirectory(store.root / layout.SPOOL / check_app(app), app)
        except (UploadRejectedError, ConfigError):
            continue  # no directory of an application, or closed to us
        with spool:
            yield from _look_at_application(store, spool, now_s)


def _look_at_application(store: ObjectStore, spool: SpoolDirectory, now_s: float) -> Iterator[Leftover]:
    entries = sorted(spool.entries(), key=lambda entry: entry.name)
    try:
        requested = {upload for entry in entries if entry.kind == "json" for upload in _upload_of(spool, entry)}
    except OSError as error:
        log.warning("verification: uploads of %s are not looked at: a request cannot be read: %s", spool.app, error)
        requested = {entry.name for entry in entries if entry.kind == "upload"}  # any of them may be what it asks for
    for entry in entries:
        seen = spool.status(entry.name)
        if seen is not None:
            kind = _spool_kind(store, spool, entry, seen, requested, now_s)
            if kind is not None:
                yield Leftover(f"{layout.SPOOL}/{spool.app}/{entry.name}", kind, seen)


def _spool_kind(
    store: ObjectStore, spool: SpoolDirectory, entry: Entry, seen: os.stat_result, requested: set[str], now_s: float
) -> str | None:
    if not stat.S_ISREG(seen.st_mode):
        return "spool-stray" if entry.kind != "upload" or entry.name not in requested else None
    if entry.kind == "upload" and entry.name not in requested:
        return "recent-upload" if now_s - seen.st_mtime < RECENT_UPLOAD_S else "unrequested-upload"
    if entry.kind == "taken" and not spool.exists(request_name(entry.key)):
        in_flight = job_in_flight(store.fd, check_job_id(entry.key, spool.app), store.modes.lock_file)
        return None if in_flight else "orphaned-taken"
    if entry.kind == "other" and entry.name != STORE_NOTE:
        return "spool-stray"
    return None


def _upload_of(spool: SpoolDirectory, entry: Entry) -> list[str]:
    """The upload that a request is about, if there is one. Raises ``OSError`` when the request cannot be read."""
    try:
        request = spool.read_request(entry.key)
    except UploadRejectedError:  # its job will fail
        return []
    upload = request.request.get("upload") if request is not None else None
    return [upload] if isinstance(upload, str) else []
