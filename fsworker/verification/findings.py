"""What verification can find, what it can do about it, and what is left to do for a person. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Action = Literal["reported", "healed", "quarantined", "mended", "replaced", "moved", "waits", "failed"]
"""What was done: nothing; a good copy put in place; taken out of the way; mode or group set; a copy of our own put in the
place of a stranger's file; brought to its place; left for later; tried in vain."""


@dataclass(frozen=True)
class Kind:
    """One kind of damage: what it is, what to do about it, and whether a run that found nothing else is clean."""

    meaning: str
    advice: str
    is_note: bool = False


_REPAIR = "run: fsworker verify --repair"
_BRING_BACK = "upload it again, or bring it from a backup: fsworker verify --repair --mirror DIR"

KINDS = {
    # the content of stored files
    "rotten": Kind("its content does not match its name", f"{_REPAIR}; without a good copy: {_BRING_BACK}"),
    "empty": Kind("it is empty, and its name is another content's", f"{_REPAIR}; without a good copy: {_BRING_BACK}"),
    "unreadable": Kind(
        "the disk cannot read it",
        f"look at the kernel's log and the disk; it is left where it is until then: {_BRING_BACK}",
    ),
    "unstable": Kind(
        "two readings of it differ", "test the memory, the disk and its cable before anything else; nothing was moved"
    ),
    "missing": Kind("it is not in the store", _BRING_BACK),
    "unverified": Kind(
        "it could not be read to its end in several attempts", "verify it alone, with time: fsworker verify HASH"
    ),
    # its inode
    "wrong-mode": Kind("its mode is not 0444", _REPAIR),
    "wrong-group": Kind("it is not in the store's group", f"{_REPAIR} (as the store's user, or as root)"),
    "wrong-owner": Kind("somebody else owns it, and could change it", _REPAIR),
    # what does not belong into Data/
    "wrong-name": Kind("its name is no hash, but looks like one", _REPAIR),
    "wrong-place": Kind("it lies in the directory of other hashes", _REPAIR),
    "stray-file": Kind("it is no stored file", _REPAIR),
    "stray-directory": Kind("it is no directory of the store", _REPAIR),
    "symlink": Kind("it is a symbolic link; the store has none", _REPAIR),
    "special-file": Kind("it is a FIFO, socket or device", _REPAIR),
    "directory-mode": Kind("the directory's mode is wrong", _REPAIR),
    "directory-group": Kind(
        "the directory is not in the store's group", f"{_REPAIR} (as the store's user, or as root)"
    ),
    "unreadable-directory": Kind("the directory cannot be listed", "look at its mode, the kernel's log and the disk"),
    # leftovers
    "temp-leftover": Kind("a process died and left it in Temp/", f"{_REPAIR}, which moves it to Error/"),
    "temp-stray": Kind("nothing of that name belongs into Temp/", f"{_REPAIR}, which moves it to Error/"),
    "unrequested-upload": Kind(
        "no request names this upload",
        f"ask its application; when it is a day old, {_REPAIR}, which moves it to Error/",
    ),
    "recent-upload": Kind(
        "no request names this upload; its message may still be on the way", "nothing, unless it stays", is_note=True
    ),
    "orphaned-taken": Kind("its job is over, and the upload still here", f"{_REPAIR}, which moves it to Error/"),
    "spool-stray": Kind(
        "it is no upload, and nothing of fsworker's", "ask its application; it is never touched", is_note=True
    ),
    # a backup
    "mirror-missing": Kind("the backup does not have it", "make the backup again"),
    "mirror-extra": Kind("the store does not have it (any more)", "nothing, if it was collected", is_note=True),
    "mirror-rotten": Kind("the backup's copy does not match its name", "delete it from the backup and make it again"),
    "mirror-unreadable": Kind("the backup's copy cannot be read", "look at the backup's disk and modes"),
    "mirror-stray": Kind(
        "the backup has what no store has", "look whether it is the backup of this store", is_note=True
    ),
}
"""Every kind by its name in reports. Notes are no damage: a run that found nothing else is clean."""

_NOTHING = "nothing"
_LATER = "nothing now; a later verification sees to it"
_DONE: dict[str, tuple[str, str]] = {
    "reported": ("nothing", ""),
    "healed": ("a good copy took its place; what was there is kept as {kept}", _NOTHING),
    "quarantined": ("moved to {kept}", _NOTHING),
    "mended": ("set right", _NOTHING),
    "replaced": ("a copy of our own took its place; what was there is kept as {kept}", _NOTHING),
    "moved": ("stored where it belongs; what was there is kept as {kept}", _NOTHING),
    "waits": ("nothing yet", _LATER),
    "failed": ("nothing; it is where it was", ""),
}
"""For each action: what was done, and what is left to do; empty where the kind says that."""
CONTENT_KINDS = frozenset({"rotten", "empty"})


@dataclass(frozen=True)
class Suspicion:
    """What a first look found. ``path`` is relative to the store; ``found`` the hash that was read, if any."""

    path: str
    kind: str
    found: str | None = None
    detail: str = ""


@dataclass(frozen=True)
class Finding:
    """What a second look confirmed, and what was done about it. ``kept`` is where bytes went, relative to the store."""

    path: str
    kind: str
    action: Action = "reported"
    detail: str = ""
    hash: str | None = None
    found: str | None = None
    kept: str | None = None

    @property
    def is_note(self) -> bool:
        """Whether it is only worth telling: a run with nothing else is clean."""
        return KINDS[self.kind].is_note

    @property
    def message(self) -> str:
        """What is wrong, in a sentence without its subject (the path)."""
        return KINDS[self.kind].meaning + (f" ({self.detail})" if self.detail else "")

    @property
    def done(self) -> str:
        """What was done, as a sentence without its subject."""
        if self.action == "healed" and self.kept is None:
            return "a good copy was stored"
        return _DONE[self.action][0].format(kept=self.kept)

    @property
    def advice(self) -> str:
        """What is left to do."""
        if self.action == "quarantined" and self.kind in CONTENT_KINDS:
            return _BRING_BACK
        return _DONE[self.action][1] or KINDS[self.kind].advice

    @property
    def is_open(self) -> bool:
        """Whether somebody has to do something, or a later verification."""
        return not self.is_note and self.advice != _NOTHING

    def as_json(self) -> dict[str, Any]:
        """For ``--json``, task results and notes."""
        tree: dict[str, Any] = {"path": printable(self.path), "kind": self.kind, "message": self.message}
        for name in ("hash", "found", "kept"):
            if (value := getattr(self, name)) is not None:
                tree[name] = printable(value)
        return tree | {"action": self.action, "done": printable(self.done), "advice": self.advice, "note": self.is_note}


def printable(path: str) -> str:
    """A path that can be printed and sent: bytes that are no UTF-8, and control characters, are escaped."""
    text = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
