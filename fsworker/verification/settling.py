"""A second look at what raised suspicion, and, if asked, the repair. Nothing is ever deleted.

What is wrong is confirmed on an open descriptor or an inode that was seen, and every move makes sure that it moves that
one: an ingest may heal the file, a collection take it, at any moment. Of several things wrong with a file the content
comes first: a file that was taken away, or replaced, has no wrong mode any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fsworker.errors import FSWorkerError
from fsworker.store.handle import log
from fsworker.verification.content import ContentSettler
from fsworker.verification.desk import Desk
from fsworker.verification.findings import CONTENT_KINDS, Finding, Suspicion
from fsworker.verification.inodes import InodeSettler
from fsworker.verification.strays import StraySettler


class Settler:
    """Confirms and settles suspicions about ``Data/``, one at a time, in one process."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        content, inodes, strays = ContentSettler(desk), InodeSettler(desk), StraySettler(desk)
        self._stray = strays.stray
        self._handlers: dict[str, Callable[[Suspicion], Finding | None]] = {
            "rotten": content.content,
            "empty": content.content,
            "unreadable": content.unreadable,
            "wrong-mode": inodes.file,
            "wrong-group": inodes.file,
            "wrong-owner": inodes.file,
            "directory-mode": inodes.directory,
            "directory-group": inodes.directory,
            "unreadable-directory": desk.finding,
            "wrong-place": strays.misplaced,
            "wrong-name": strays.misplaced,
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
            return [self.desk.finding(suspicion, action="failed", detail=detail)]
        if finding is None:
            return []
        if finding.kind == "wrong-mode" and finding.action == "mended":
            return [finding, *self._newly_readable(finding.path)]
        return [finding]

    def _newly_readable(self, path: str) -> Iterator[Finding]:
        """A file whose mode closed it could not be read before."""
        for suspicion in self.desk.judge.judge_path(path).suspicions:
            if suspicion.kind in (*CONTENT_KINDS, "unreadable"):
                yield from self.settle(suspicion)
