"""The inodes of stored files and directories: mode, group, owner. Mended by those who may."""

from __future__ import annotations

import os
import stat
import time
from dataclasses import replace

from fsworker.store import heal, layout
from fsworker.verification.desk import Desk, name_of
from fsworker.verification.findings import Finding, Suspicion
from fsworker.verification.judging import clock_of

_SETTLE_S = 1.0
"""A directory that was just made may not have its mode yet."""


class InodeSettler:
    """Settles what is wrong with modes, groups and owners."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def file(self, suspicion: Suspicion) -> Finding | None:
        fd = self.desk.open_path(suspicion.path)
        if fd is None:
            return None
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                return None
            problems = dict(self.desk.judge.expected.file_problems(status))
            if suspicion.kind not in problems:
                return None
            finding = self.desk.finding(suspicion, detail=problems[suspicion.kind])
            if not self.desk.policy.repair:
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
            os.chown(where, -1, self.desk.judge.expected.gid)
            os.chmod(where, kept)  # chown takes the set-id bits away

    def _own(self, finding: Finding, path_fd: int) -> Finding | None:
        """Make a stranger's file ours: root gives it, another puts a verified copy of his own in its place."""
        assert self.desk.judge.expected.uid is not None
        if os.geteuid() == 0:
            os.chown(f"/proc/self/fd/{path_fd}", self.desk.judge.expected.uid, -1)
            return replace(finding, action="mended")
        name = name_of(finding.path)
        fd = self.desk.open(finding.path)
        if fd is None:
            return None
        try:
            candidate = self.desk.store.stage_descriptor(fd)
            try:
                if candidate.hash != name:
                    return None  # the content is looked at by itself
                self.desk.store.materialise(candidate, sync=True)
                message = f"{name} belonged to another user, who could change it; a copy took its place"
                stamp = heal.put_in_place(self.desk.store, name, fd, candidate.file, message)
            finally:
                candidate.close()
        finally:
            os.close(fd)
        return None if stamp is None else replace(finding, action="replaced", kept=f"{layout.ERROR}/{stamp}/{name}")

    def directory(self, suspicion: Suspicion) -> Finding | None:
        fd = self.desk.open_path(suspicion.path)
        if fd is None:
            return None
        try:
            status = os.fstat(fd)
            young_s = _SETTLE_S - (clock_of(self.desk.store) - status.st_ctime)
            if young_s > 0:
                time.sleep(min(young_s, _SETTLE_S))
                status = os.fstat(fd)
            problems = dict(self.desk.judge.expected.directory_problems(status))
            if not stat.S_ISDIR(status.st_mode) or suspicion.kind not in problems:
                return None
            finding = self.desk.finding(suspicion, detail=problems[suspicion.kind])
            if not self.desk.policy.repair:
                return finding
            self._dress(fd, self.desk.judge.expected.directory_mode if suspicion.kind == "directory-mode" else None)
            return replace(finding, action="mended")
        finally:
            os.close(fd)
