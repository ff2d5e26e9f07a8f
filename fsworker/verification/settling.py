"""A second look at what raised suspicion, and, if asked, the repair. Nothing is ever deleted.

A mismatch is believed when a second reading, past the page cache, gives the same wrong hash: otherwise memory, cable or
disk are to be tested, not the file moved. What is wrong is confirmed on an open descriptor or an inode that was seen, and
every move makes sure that it moves that one: an ingest may heal the file, a collection take it, at any moment.

A hold stops every move but that of rotten content, which nobody may be served. Should much of what is read be rotten, it
is not the files: from then on nothing is taken away any more (:data:`MAX_ROTTEN`).
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from fsworker import durable, heal, hold, layout
from fsworker.errors import FSWorkerError
from fsworker.handle import log
from fsworker.model import Hash, is_hash
from fsworker.objects import ObjectStore
from fsworker.staging import Candidate
from fsworker.verification.copies import Mirror, good_copy
from fsworker.verification.findings import CONTENT_KINDS, Finding, Suspicion
from fsworker.verification.judging import Judge, opened_directory
from fsworker.verification.kindly import drop_cache
from fsworker.verification.quarantine import is_same, quarantine

MAX_ROTTEN = 100
MAX_ROTTEN_SHARE = 0.25
"""More than so many, and than this share of what was read: the disk or the memory is at fault."""
_SETTLE_S = 1.0
"""A directory that was just made may not have its mode yet."""
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True)
class Policy:
    """What may be done. ``min_stray_age_s``: younger strays may be somebody's unfinished work, and wait."""

    repair: bool = False
    min_stray_age_s: float = 0.0


class Settler:
    """Confirms and settles suspicions about ``Data/``, one at a time, in one process.

    ``files_read`` is to be kept up to date by whoever reads: the share of rot is taken of it.
    """

    def __init__(self, store: ObjectStore, judge: Judge, policy: Policy, mirror: Mirror | None = None) -> None:
        self.store = store
        self.judge = judge
        self.policy = policy
        self.mirror = mirror
        self.files_read = 0
        self._rotten = 0
        self._handlers: dict[str, Callable[[Suspicion], Finding | None]] = {
            "rotten": self._content,
            "empty": self._content,
            "unreadable": self._unreadable,
            "wrong-mode": self._inode,
            "wrong-group": self._inode,
            "wrong-owner": self._inode,
            "wrong-place": self._misplaced,
            "wrong-name": self._misplaced,
            "directory-mode": self._directory,
            "directory-group": self._directory,
            "unreadable-directory": self._reported,
        }

    def settle(self, suspicion: Suspicion) -> list[Finding]:
        """What is really wrong, and what was done. Empty when it was nothing, or is no longer."""
        handler = self._handlers.get(suspicion.kind, self._stray)
        try:
            finding = handler(suspicion)
        except (OSError, FSWorkerError) as error:
            log.warning("verification: %s (%s): %s", suspicion.path, suspicion.kind, error)
            problem = error.strerror or str(error) if isinstance(error, OSError) else str(error)
            detail = f"{suspicion.detail}; it could not be mended: {problem}".removeprefix("; ")
            return [self._finding(suspicion, action="failed", detail=detail)]
        if finding is None:
            return []
        if finding.kind == "wrong-mode" and finding.action == "mended":
            return [finding, *self._newly_readable(finding.path)]
        return [finding]

    def _newly_readable(self, path: str) -> Iterator[Finding]:
        """A file whose mode closed it could not be read before."""
        for suspicion in self.judge.judge_path(path).suspicions:
            if suspicion.kind in (*CONTENT_KINDS, "unreadable"):
                yield from self.settle(suspicion)

    def _finding(self, suspicion: Suspicion, **changes: object) -> Finding:
        base = suspicion.path.rpartition("/")[2]
        finding = Finding(
            suspicion.path,
            suspicion.kind,
            detail=suspicion.detail,
            hash=base if is_hash(base) else None,
            found=suspicion.found,
        )
        return replace(finding, **changes)  # type: ignore[arg-type]

    def _reported(self, suspicion: Suspicion) -> Finding:
        return self._finding(suspicion)

    # -- content ---------------------------------------------------------------------------------------------------

    def _content(self, suspicion: Suspicion) -> Finding | None:
        fd = self._open(suspicion.path)
        if fd is None:
            return None
        try:
            return self._rot(suspicion, fd)
        finally:
            os.close(fd)

    def _rot(self, suspicion: Suspicion, fd: int) -> Finding | None:
        name = _name_of(suspicion.path)
        drop_cache(fd)
        second = heal.hash_or_none(fd)
        if second is None:
            return self._unreadable(replace(suspicion, kind="unreadable", found=None))
        if not heal.is_still(self.store, name, fd):
            return self._again(suspicion)
        if second != suspicion.found:
            return self._finding(suspicion, kind="unstable", detail=f"{suspicion.found}, then {second}")
        finding = self._finding(suspicion, detail=_shape(fd))
        self._rotten += 1
        if not self.policy.repair:
            return finding
        log.error("stored file %s is rotten: its content hashes to %s", name, second)
        healed = self._heal(finding, fd)
        if healed is not None:
            return healed
        if self._rotten > MAX_ROTTEN and self._rotten > MAX_ROTTEN_SHARE * self.files_read:
            detail = f"{self._rotten} of {self.files_read} files read are rotten: test the disk and the memory first"
            return replace(finding, action="waits", detail=detail)
        return self._take_away(finding, os.fstat(fd), f"{name} is rotten: its content hashes to {second}")

    def _again(self, suspicion: Suspicion) -> Finding | None:
        """The file was replaced while it was looked at: judge what is there now."""
        for again in self.judge.judge_path(suspicion.path).suspicions:
            if again.kind in CONTENT_KINDS:
                return self._content(again)
        return None

    def _heal(self, finding: Finding, fd: int) -> Finding | None:
        """Put a good copy in the place of the bad file. ``None`` when there is none, or the file is another by now."""
        name = _name_of(finding.path)
        with good_copy(self.store, name, self.mirror) as copy:
            if copy is None:
                return None
            where, candidate = copy
            message = f"{name} is bad ({finding.message}); the copy from {where} took its place"
            details = {"found": finding.found, "healed_from": where}
            cut = _how_cut(fd, candidate)
            stamp = heal.put_in_place(self.store, name, fd, candidate.file, message, **details)
        if stamp is None:
            return None
        detail = "; ".join(filter(None, (finding.detail, cut, f"the copy from {where} took its place")))
        return replace(finding, action="healed", detail=detail, kept=f"{layout.ERROR}/{stamp}/{name}")

    def _unreadable(self, suspicion: Suspicion) -> Finding | None:
        """``EIO`` or no right to read: reported, and left where it is, unless a good copy can take its place."""
        fd = None
        with suppress(OSError):
            fd = self._open(suspicion.path)
        if fd is None:
            return self._reported(suspicion) if self._is_there(suspicion.path) else None
        try:
            if heal.hash_or_none(fd) is not None:
                return self._finding(suspicion, kind="unstable", detail="it could be read the second time")
            finding = self._reported(suspicion)
            return (self._heal(finding, fd) or finding) if self.policy.repair else finding
        finally:
            os.close(fd)

    def _take_away(self, finding: Finding, seen: os.stat_result, message: str) -> Finding | None:
        name = Hash(finding.hash) if finding.hash and finding.path == layout.data_name(Hash(finding.hash)) else None
        details = {"finding": finding.kind, "found": finding.found, "size": seen.st_size}
        kept = quarantine(self.store, finding.path, seen, message, name=name, **details)
        return None if kept is None else replace(finding, action="quarantined", kept=kept)

    # -- the inode -------------------------------------------------------------------------------------------------

    def _inode(self, suspicion: Suspicion) -> Finding | None:
        fd = self._open_path(suspicion.path)
        if fd is None:
            return None
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                return None
            problems = dict(self.judge.expected.file_problems(status))
            if suspicion.kind not in problems:
                return None
            finding = self._finding(suspicion, detail=problems[suspicion.kind])
            if not self.policy.repair:
                return finding
            if suspicion.kind == "wrong-owner":
                return self._own(finding, fd)
            self._dress(fd, layout.FILE_MODE if suspicion.kind == "wrong-mode" else None)
            return replace(finding, action="mended")
        finally:
            os.close(fd)

    def _dress(self, path_fd: int, mode: int | None) -> None:
        """Set the mode, or else the group, of what is open by ``O_PATH``: such a descriptor is changed through /proc."""
        where = f"/proc/self/fd/{path_fd}"
        if mode is not None:
            os.chmod(where, mode)
        else:
            kept = stat.S_IMODE(os.fstat(path_fd).st_mode)
            os.chown(where, -1, self.judge.expected.gid)
            os.chmod(where, kept)  # chown takes the set-id bits away

    def _own(self, finding: Finding, path_fd: int) -> Finding | None:
        """Make a stranger's file ours: root gives it, another puts a verified copy of his own in its place."""
        assert self.judge.expected.uid is not None
        if os.geteuid() == 0:
            os.chown(f"/proc/self/fd/{path_fd}", self.judge.expected.uid, -1)
            return replace(finding, action="mended")
        name = _name_of(finding.path)
        fd = self._open(finding.path)
        if fd is None:
            return None
        try:
            candidate = self.store.stage_descriptor(fd)
            try:
                if candidate.hash != name:
                    return None  # the content is looked at by itself
                self.store.materialise(candidate, sync=True)
                message = f"{name} belonged to another user, who could change it; a copy took its place"
                stamp = heal.put_in_place(self.store, name, fd, candidate.file, message)
            finally:
                candidate.close()
        finally:
            os.close(fd)
        return None if stamp is None else replace(finding, action="replaced", kept=f"{layout.ERROR}/{stamp}/{name}")

    def _directory(self, suspicion: Suspicion) -> Finding | None:
        fd = self._open_path(suspicion.path)
        if fd is None:
            return None
        try:
            status = os.fstat(fd)
            young_s = _SETTLE_S - (self.store.recent_clock() - status.st_ctime)
            if young_s > 0:
                time.sleep(min(young_s, _SETTLE_S))
                status = os.fstat(fd)
            problems = dict(self.judge.expected.directory_problems(status))
            if not stat.S_ISDIR(status.st_mode) or suspicion.kind not in problems:
                return None
            finding = self._finding(suspicion, detail=problems[suspicion.kind])
            if not self.policy.repair:
                return finding
            self._dress(fd, self.judge.expected.directory_mode if suspicion.kind == "directory-mode" else None)
            return replace(finding, action="mended")
        finally:
            os.close(fd)

    # -- what does not belong here ---------------------------------------------------------------------------------

    def _stray(self, suspicion: Suspicion) -> Finding | None:
        seen = self._status(suspicion.path)
        if seen is None or suspicion.kind != _kind_of_inode(seen, suspicion.kind):
            return None
        base = suspicion.path.rpartition("/")[2]
        in_place = is_hash(base) and suspicion.path == layout.data_name(Hash(base))
        detail = self._describe(suspicion, seen)
        finding = self._finding(suspicion, hash=base if in_place else None, detail=detail)
        if not self.policy.repair:
            return finding
        if suspicion.kind == "symlink" and suspicion.path.count("/") < 3 and stat.S_ISDIR(self._behind(suspicion.path)):
            detail = f"{finding.detail}; a directory of the store may lie behind it: it is left to a person"
            return replace(finding, detail=detail)
        if (waiting := self._must_wait(finding, seen)) is not None:
            return waiting
        message = f"{suspicion.path} does not belong into {layout.DATA}/: {finding.message}"
        moved = self._take_away(finding, seen, message)
        if moved is not None and in_place:
            return self._bring_copy(moved, Hash(base))
        return moved

    def _bring_copy(self, moved: Finding, name: Hash) -> Finding:
        """Something stood where a stored file should be: put one there, if there is a good copy."""
        with good_copy(self.store, name, self.mirror) as copy:
            if copy is None:
                return moved
            where, candidate = copy
            self.store.insert(candidate, sync=True)
        return replace(moved, action="healed", detail=f"{moved.detail}; the copy from {where} took its place")

    def _misplaced(self, suspicion: Suspicion) -> Finding | None:
        """A file that is some hash's content in a wrong place, or under a mangled name: store it, keep the original."""
        fd = self._open(suspicion.path)
        if fd is None:
            return None
        try:
            seen = os.fstat(fd)
            found = heal.hash_or_none(fd)
            finding = self._finding(suspicion, hash=None, found=found, detail=f"{seen.st_size:,} bytes")
            if not self.policy.repair:
                return finding
            if (waiting := self._must_wait(finding, seen)) is not None:
                return waiting
            is_itself = found is not None and found == suspicion.path.rpartition("/")[2].lower()
            if is_itself:
                os.lseek(fd, 0, os.SEEK_SET)
                is_itself = self.store.put_descriptor(fd).hash == found
            message = f"{suspicion.path} does not belong there" + (f"; {found} was stored from it" if is_itself else "")
            kept = quarantine(self.store, suspicion.path, seen, message, finding=suspicion.kind, found=found)
            if kept is None:
                return None
            return replace(finding, action="moved" if is_itself else "quarantined", kept=kept)
        finally:
            os.close(fd)

    def _must_wait(self, finding: Finding, seen: os.stat_result) -> Finding | None:
        if hold.current(self.store) is not None:
            return replace(finding, action="waits", detail=f"{finding.detail}; a hold is in force")
        age_s = self.store.recent_clock() - seen.st_ctime
        if age_s < self.policy.min_stray_age_s:
            return replace(finding, action="waits", detail=f"{finding.detail}; it is too young to be moved")
        return None

    def _describe(self, suspicion: Suspicion, seen: os.stat_result) -> str:
        if stat.S_ISDIR(seen.st_mode):
            return f"{_count(self.store, suspicion.path)} entries"
        if stat.S_ISLNK(seen.st_mode):
            return f"to {os.readlink(suspicion.path, dir_fd=self.store.fd)}"
        return f"{seen.st_size:,} bytes" if stat.S_ISREG(seen.st_mode) else f"mode {seen.st_mode:o}"

    # -- paths -----------------------------------------------------------------------------------------------------

    def _open(self, path: str) -> int | None:
        """A regular file of the store, open to read; ``None`` when it is gone or something else by now."""
        try:
            fd = os.open(path, _OPEN_FILE, dir_fd=self.store.fd)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):
                return None
            raise
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
        return None

    def _open_path(self, path: str) -> int | None:
        try:
            return os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.store.fd)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _status(self, path: str) -> os.stat_result | None:
        try:
            return os.stat(path, dir_fd=self.store.fd, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _behind(self, path: str) -> int:
        """The type of what a symbolic link leads to; 0 for nothing."""
        try:
            return os.stat(path, dir_fd=self.store.fd).st_mode
        except OSError:
            return 0

    def _is_there(self, path: str) -> bool:
        seen = self._status(path)
        return seen is not None and is_same(self.store.fd, path, seen)


def _name_of(path: str) -> Hash:
    return Hash(path.rpartition("/")[2])


def _kind_of_inode(seen: os.stat_result, kind: str) -> str:
    """The kind of stray that this inode is now, for one that was ``kind``."""
    if stat.S_ISLNK(seen.st_mode):
        return "symlink"
    if stat.S_ISDIR(seen.st_mode):
        return "stray-directory"
    return kind if stat.S_ISREG(seen.st_mode) and kind == "stray-file" else "special-file"


def _shape(fd: int) -> str:
    """What the bytes look like, where that says what happened to them."""
    status = os.fstat(fd)
    if status.st_size == 0:
        return "0 bytes"
    if status.st_blocks == 0:
        return f"{status.st_size:,} bytes, none of them ever written to the disk"
    return f"{status.st_size:,} bytes"


def _how_cut(fd: int, good: Candidate) -> str:
    """Say that a bad file is the beginning of the good one, if it is."""
    size = os.fstat(fd).st_size
    if not 0 < size < good.size_bytes or size > durable.BUFFER_BYTES:
        return ""
    with suppress(OSError):
        if os.pread(fd, size, 0) == os.pread(good.file, size, 0):
            return f"cut off: {size:,} of {good.size_bytes:,} bytes"
    return ""


def _count(store: ObjectStore, path: str) -> int:
    try:
        with opened_directory(store.fd, path) as fd:
            return len(os.listdir(fd))
    except OSError:
        return 0
