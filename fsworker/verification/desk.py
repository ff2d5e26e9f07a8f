"""What the second look works with: the store, what may be done to it, and careful access to its paths."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, replace

from fsworker.model import Hash, is_hash
from fsworker.store import layout
from fsworker.store.objects import ObjectStore
from fsworker.verification.copies import Mirror
from fsworker.verification.findings import Finding, Suspicion
from fsworker.verification.judging import Judge
from fsworker.verification.quarantine import quarantine

_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True)
class Policy:
    """What may be done. ``min_stray_age_s``: younger strays may be somebody's unfinished work, and wait."""

    repair: bool = False
    min_stray_age_s: float = 0.0


@dataclass
class Desk:
    """The store on the desk of who settles. Paths are relative to its root, and were listed without following links.

    ``files_read`` is to be kept up to date by whoever reads: the share of rot is taken of it.
    """

    store: ObjectStore
    judge: Judge
    policy: Policy
    mirror: Mirror | None = None
    files_read: int = 0

    def finding(self, suspicion: Suspicion, **changes: object) -> Finding:
        """The finding that a suspicion became, with what the second look knows better."""
        base = suspicion.path.rpartition("/")[2]
        finding = Finding(
            suspicion.path,
            suspicion.kind,
            detail=suspicion.detail,
            hash=base if is_hash(base) else None,
            found=suspicion.found,
        )
        return replace(finding, **changes)  # type: ignore[arg-type]

    def take_away(self, finding: Finding, seen: os.stat_result, message: str) -> Finding | None:
        """Move what was found to ``Error/``. ``None``, and nothing done, when it is another inode by now. ``OSError``."""
        name = Hash(finding.hash) if finding.hash and finding.path == layout.data_name(Hash(finding.hash)) else None
        details = {"finding": finding.kind, "found": finding.found, "size": seen.st_size}
        kept = quarantine(self.store, finding.path, seen, message, name=name, **details)
        return None if kept is None else replace(finding, action="quarantined", kept=kept)

    def open(self, path: str) -> int | None:
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

    def open_path(self, path: str) -> int | None:
        """Whatever is there, open by ``O_PATH``: it need not be readable. ``None`` when it is gone."""
        try:
            return os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.store.fd)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def status(self, path: str) -> os.stat_result | None:
        """``lstat``, or ``None`` when it is gone."""
        try:
            return os.stat(path, dir_fd=self.store.fd, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None


def name_of(path: str) -> Hash:
    """The hash in the path of a stored file."""
    return Hash(path.rpartition("/")[2])
