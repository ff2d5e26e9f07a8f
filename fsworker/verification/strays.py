"""What does not belong into ``Data/``: taken away, never deleted; a stored file that is only misplaced is stored anew.

A hold stops these moves, and what is younger than the policy says waits: it may be somebody's work of this moment.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import replace

from fsworker.model import Hash, is_hash
from fsworker.store import heal, hold, layout
from fsworker.store.objects import ObjectStore
from fsworker.verification.copies import good_copy
from fsworker.verification.desk import Desk
from fsworker.verification.findings import Finding, Suspicion
from fsworker.verification.judging import clock_of, opened_directory
from fsworker.verification.quarantine import quarantine


class StraySettler:
    """Settles strays, links, special files, and files under a wrong name or in a wrong place."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def stray(self, suspicion: Suspicion) -> Finding | None:
        seen = self.desk.status(suspicion.path)
        if seen is None or suspicion.kind != _kind_of_inode(seen, suspicion.kind):
            return None
        base = suspicion.path.rpartition("/")[2]
        in_place = is_hash(base) and suspicion.path == layout.data_name(Hash(base))
        detail = self._describe(suspicion, seen)
        finding = self.desk.finding(suspicion, hash=base if in_place else None, detail=detail)
        if not self.desk.policy.repair:
            return finding
        if suspicion.kind == "symlink" and suspicion.path.count("/") < 3 and self._may_lead_on(suspicion.path):
            detail = f"{finding.detail}; a directory of the store may lie behind it: it is left to a person"
            return replace(finding, detail=detail)
        if (waiting := self._must_wait(finding, seen)) is not None:
            return waiting
        message = f"{suspicion.path} does not belong into {layout.DATA}/: {finding.message}"
        moved = self.desk.take_away(finding, seen, message)
        if moved is not None and in_place:
            return self._bring_copy(moved, Hash(base))
        return moved

    def _bring_copy(self, moved: Finding, name: Hash) -> Finding:
        """Something stood where a stored file should be: put one there, if there is a good copy."""
        with good_copy(self.desk.store, name, self.desk.mirror) as copy:
            if copy is None:
                return moved
            where, candidate = copy
            self.desk.store.insert(candidate, sync=True)
        return replace(moved, action="healed", detail=f"{moved.detail}; the copy from {where} took its place")

    def misplaced(self, suspicion: Suspicion) -> Finding | None:
        """A file in a wrong place, or under a mangled name: its name tells which hash it should be, and if it is, it is stored.

        So an upload that somebody renamed to ``da39….jpg``, or that an ``rsync`` into the store left as ``.da39….Xy1z2A``,
        is not lost to its keepers. What stood there is kept.
        """
        fd = self.desk.open(suspicion.path)
        if fd is None:
            return None
        try:
            seen = os.fstat(fd)
            found = heal.hash_or_none(fd)
            finding = self.desk.finding(suspicion, hash=None, found=found, detail=f"{seen.st_size:,} bytes")
            if not self.desk.policy.repair:
                return finding
            if (waiting := self._must_wait(finding, seen)) is not None:
                return waiting
            is_itself = found is not None and found in suspicion.path.rpartition("/")[2].lower()
            if is_itself:
                os.lseek(fd, 0, os.SEEK_SET)
                is_itself = self.desk.store.put_descriptor(fd).hash == found
            message = f"{suspicion.path} does not belong there" + (f"; {found} was stored from it" if is_itself else "")
            kept = quarantine(self.desk.store, suspicion.path, seen, message, finding=suspicion.kind, found=found)
            if kept is None:
                return None
            return replace(finding, action="moved" if is_itself else "quarantined", kept=kept)
        finally:
            os.close(fd)

    def _must_wait(self, finding: Finding, seen: os.stat_result) -> Finding | None:
        if hold.current(self.desk.store) is not None:
            return replace(finding, action="waits", detail=f"{finding.detail}; a hold is in force")
        age_s = clock_of(self.desk.store) - seen.st_ctime
        if age_s < self.desk.policy.min_stray_age_s:
            return replace(finding, action="waits", detail=f"{finding.detail}; it is too young to be moved")
        return None

    def _describe(self, suspicion: Suspicion, seen: os.stat_result) -> str:
        if stat.S_ISDIR(seen.st_mode):
            return _entries(self.desk.store, suspicion.path)
        if stat.S_ISLNK(seen.st_mode):
            return f"to {os.readlink(suspicion.path, dir_fd=self.desk.store.fd)}"
        return f"{seen.st_size:,} bytes" if stat.S_ISREG(seen.st_mode) else f"mode {seen.st_mode:o}"

    def _may_lead_on(self, path: str) -> bool:
        """Whether a symbolic link leads to a directory, or to what cannot be looked at (a disk that fails, say)."""
        try:
            return stat.S_ISDIR(os.stat(path, dir_fd=self.desk.store.fd).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            return error.errno != errno.ELOOP


def _kind_of_inode(seen: os.stat_result, kind: str) -> str:
    """The kind of stray that this inode is now, for one that was ``kind``."""
    if stat.S_ISLNK(seen.st_mode):
        return "symlink"
    if stat.S_ISDIR(seen.st_mode):
        return "stray-directory"
    return kind if stat.S_ISREG(seen.st_mode) and kind == "stray-file" else "special-file"


def _entries(store: ObjectStore, path: str) -> str:
    """How much is in a directory; who reads it decides whether the directory can go."""
    try:
        with opened_directory(store.fd, path) as fd:
            return f"entries: {len(os.listdir(fd))}"
    except OSError as error:
        return f"entries: unknown ({error.strerror})"
