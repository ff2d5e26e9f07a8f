"""Rotten content: believed when a second reading, past the page cache, gives the same wrong hash; then healed or taken away.

Should much of what is read be rotten, it is not the files: from then on nothing is taken away any more (:data:`MAX_ROTTEN`).
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace

from fsworker import copying
from fsworker.store import heal, layout
from fsworker.store.staging import Candidate
from fsworker.verification.copies import good_copy
from fsworker.verification.desk import Desk, name_of
from fsworker.verification.findings import CONTENT_KINDS, Finding, Suspicion
from fsworker.verification.kindly import drop_cache

MAX_ROTTEN = 100
MAX_ROTTEN_SHARE = 0.25
"""More than so many, and than this share of what was read: the disk or the memory is at fault."""


class ContentSettler:
    """Settles what is wrong with the bytes of stored files."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self._rotten = 0

    def content(self, suspicion: Suspicion) -> Finding | None:
        fd = self.desk.open(suspicion.path)
        if fd is None:
            return None
        try:
            return self._rot(suspicion, fd)
        finally:
            os.close(fd)

    def _rot(self, suspicion: Suspicion, fd: int) -> Finding | None:
        name = name_of(suspicion.path)
        drop_cache(fd)
        second = heal.hash_or_none(fd)
        if second is None:
            return self.unreadable(replace(suspicion, kind="unreadable", found=None))
        if not heal.is_still(self.desk.store, name, fd):
            return self._again(suspicion)
        if second != suspicion.found:
            return self.desk.finding(suspicion, kind="unstable", detail=f"{suspicion.found}, then {second}")
        finding = self.desk.finding(suspicion, detail=_shape(fd))
        self._rotten += 1
        if not self.desk.policy.repair:
            return finding
        healed = self._heal(finding, fd)
        if healed is not None:
            return healed
        if self._rotten > MAX_ROTTEN and self._rotten > MAX_ROTTEN_SHARE * self.desk.files_read:
            detail = (
                f"{self._rotten} of {self.desk.files_read} files read are rotten: test the disk and the memory first"
            )
            return replace(finding, action="waits", detail=detail)
        return self.desk.take_away(finding, os.fstat(fd), f"{name} is rotten: its content hashes to {second}")

    def _again(self, suspicion: Suspicion) -> Finding | None:
        """The file was replaced while it was looked at: judge what is there now."""
        for again in self.desk.judge.judge_path(suspicion.path).suspicions:
            if again.kind in CONTENT_KINDS:
                return self.content(again)
        return None

    def _heal(self, finding: Finding, fd: int) -> Finding | None:
        """Put a good copy in the place of the bad file. ``None`` when there is none, or the file is another by now."""
        name = name_of(finding.path)
        with good_copy(self.desk.store, name, self.desk.mirror) as copy:
            if copy is None:
                return None
            where, candidate = copy
            message = f"{name} is bad ({finding.message}); the copy from {where} took its place"
            details = {"found": finding.found, "healed_from": where}
            cut = _how_cut(fd, candidate)
            stamp = heal.put_in_place(self.desk.store, name, fd, candidate.file, message, **details)
        if stamp is None:
            return None
        detail = "; ".join(filter(None, (finding.detail, cut, f"the copy from {where} took its place")))
        return replace(finding, action="healed", detail=detail, kept=f"{layout.ERROR}/{stamp}/{name}")

    def unreadable(self, suspicion: Suspicion) -> Finding | None:
        """``EIO`` or no right to read: reported, and left where it is, unless a good copy can take its place."""
        fd = None
        with suppress(OSError):  # that is the finding
            fd = self.desk.open(suspicion.path)
        if fd is None:
            return self.desk.finding(suspicion) if self.desk.status(suspicion.path) is not None else None
        try:
            if heal.hash_or_none(fd) is not None:
                return self.desk.finding(suspicion, kind="unstable", detail="it could be read the second time")
            finding = self.desk.finding(suspicion)
            return (self._heal(finding, fd) or finding) if self.desk.policy.repair else finding
        finally:
            os.close(fd)


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
    if not 0 < size < good.size_bytes or size > copying.BUFFER_BYTES:
        return ""
    with suppress(OSError):  # it is bad anyway: only a detail is lost
        if os.pread(fd, size, 0) == os.pread(good.file, size, 0):
            return f"cut off: {size:,} of {good.size_bytes:,} bytes"
    return ""
