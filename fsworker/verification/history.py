"""When each part of the store was last verified, and how far the running pass is: ``Lock/verify.json``.

One entry for each of the 256 first-level directories. What a pass has verified counts from when it *began* with that
directory: whatever came meanwhile, before or behind the cursor, is younger, and its turn comes again in time.

A flushed Redis does not matter, nothing of this is there. A restored backup brings the history of another disk's bytes: it
is recognised by the inode number of ``Data/``, and everything is due again. So it is when the file is lost or broken, and
for times in the future (a clock that was set back).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fsworker.store import layout, notes
from fsworker.store.handle import StoreHandle, log

NOTE = "verify.json"
PAIRS = tuple(f"{number:02x}" for number in range(256))
_FUTURE_S = 60.0
MAX_FINDINGS = 100


class Verified(BaseModel):
    """One directory's last verification: when it began (0: never), what was there, and the seconds it took."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    at_s: float = 0.0
    files: int = 0
    size_bytes: int = 0
    took_s: float = 0.0


class Cursor(BaseModel):
    """Where a pass over one directory stands: everything up to ``second``/``name`` is done.

    ``attempts``: parts that began here and have not moved it; the file behind it may be what kills them.
    """

    model_config = ConfigDict(extra="ignore")

    pair: str = Field(pattern=r"^[0-9a-f]{2}$")
    began_s: float
    second: str = ""
    name: str = ""
    files: int = 0
    size_bytes: int = 0
    took_s: float = 0.0
    attempts: int = 0


class History(BaseModel):
    """The content of the note. ``since_s``: when it was begun. ``told…``: see :mod:`fsworker.verification.telling`."""

    model_config = ConfigDict(extra="ignore")

    data_inode: int = 0
    since_s: float = 0.0
    verified: dict[str, Verified] = Field(default_factory=dict)
    cursor: Cursor | None = None
    leftovers_s: float = 0.0
    told_until: str = ""
    told: list[str] = Field(default_factory=list)
    findings: list[dict[str, Any]] = Field(default_factory=list)

    def of(self, pair: str) -> Verified:
        """One directory's entry."""
        return self.verified.get(pair, _NEVER)

    def note_findings(self, found: list[dict[str, Any]]) -> None:
        """Remember the last findings, for ``stats``."""
        again = {(finding["path"], finding["kind"]) for finding in found}
        kept = [finding for finding in self.findings if (finding.get("path"), finding.get("kind")) not in again]
        self.findings = (kept + found)[-MAX_FINDINGS:]


_NEVER = Verified()


def load(handle: StoreHandle, now_s: float) -> History:
    """The history of this store, without what cannot be true."""
    inode = os.stat(layout.DATA, dir_fd=handle.fd).st_ino
    fresh = History(data_inode=inode, since_s=now_s)
    try:
        tree = notes.read_note(handle, NOTE)
        history = fresh if tree is None else History.model_validate(tree)
    except (notes.BrokenNoteError, ValidationError) as error:
        log.warning("the history of verification cannot be read (%s): everything is due again", error)
        return fresh
    if history.data_inode != inode:
        log.warning("the history of verification is another disk's (a restored backup?): everything is due again")
        return fresh
    history.since_s = min(history.since_s, now_s)
    history.verified = {
        pair: entry for pair, entry in history.verified.items() if pair in _KNOWN and entry.at_s <= now_s + _FUTURE_S
    }
    if history.cursor is not None and history.cursor.began_s > now_s + _FUTURE_S:
        history.cursor = None
    return history


_KNOWN = frozenset(PAIRS)


def save(handle: StoreHandle, history: History, *, sync: bool = True) -> None:
    """Write the history. With ``sync`` a crash of the host loses nothing of it; else only one of this process."""
    notes.write_note(handle, NOTE, history.model_dump(mode="json"), sync=sync)


# -- schedule ----------------------------------------------------------------------------------------------------------

_LEAD = 0.2
_MARGIN = 0.05
"""Parts of the period: how early a directory's turn comes at the latest, and what is kept for outages."""


@dataclass(frozen=True)
class Plan:
    """What a part has to do: directories in their order, how fast it may read, and how long.

    ``raised``: faster than was set, because the store would not be covered within the period otherwise. ``left_s``: an
    estimate, in seconds from now, of when everything that is due is verified.
    """

    due: tuple[str, ...]
    rate_bytes_s: float
    budget_s: float
    raised: bool
    left_s: float


@dataclass(frozen=True)
class Limits:
    """What was set: the period, the bytes a second, how often a part begins, how long it may take, and could at most."""

    period_s: float
    rate_bytes_s: float
    every_s: float
    budget_s: float
    max_budget_s: float


def plan(history: History, now_s: float, limits: Limits, *, everything_before_s: float = 0.0) -> Plan:
    """Decide what is due, the least recently verified first, and at what pace. Pure.

    A directory's turn comes so early that all that have theirs at the same time can be read before the period ends.
    ``everything_before_s``: what was verified before is due now (a failed ``fsync``).
    """
    duty = min(1.0, limits.budget_s / limits.every_s)
    sizes = _sizes(history)
    whole_s = _duration_s(sizes, PAIRS, limits.rate_bytes_s) / duty
    lead_s = min(0.9 * limits.period_s, max(_LEAD * limits.period_s, 1.5 * whole_s))
    cursor = history.cursor.pair if history.cursor is not None else ""
    due = sorted(
        (
            pair
            for pair in PAIRS
            if _is_due(history.of(pair).at_s, now_s, limits.period_s - lead_s, everything_before_s)
        ),
        key=lambda pair: (pair != cursor, history.of(pair).at_s, pair),
    )
    if cursor and cursor not in due:
        due.insert(0, cursor)
    needed_bytes_s = needed_share = 0.0
    sum_bytes = sum_s = 0.0
    for pair in due:
        deadline_s = (history.of(pair).at_s or history.since_s) + (1 - _MARGIN) * limits.period_s
        left_s = max(deadline_s - now_s, limits.every_s)
        sum_bytes += sizes[pair].size_bytes
        sum_s += sizes[pair].took_s
        needed_bytes_s = max(needed_bytes_s, sum_bytes / (left_s * duty))
        needed_share = max(needed_share, sum_s / left_s)
    raised = needed_bytes_s > limits.rate_bytes_s or needed_share > duty
    budget_s = limits.max_budget_s if raised else limits.budget_s
    rate = max(limits.rate_bytes_s, needed_bytes_s)
    left_s = _duration_s(sizes, due, rate) / min(1.0, budget_s / limits.every_s)
    return Plan(tuple(due), rate, budget_s, raised, left_s)


def _is_due(at_s: float, now_s: float, rest_s: float, everything_before_s: float) -> bool:
    return at_s <= now_s - rest_s or at_s < everything_before_s


def _sizes(history: History) -> Mapping[str, Verified]:
    """What is known of each directory; hashes spread evenly, so one that was never seen is as the others are."""
    known = [entry for entry in history.verified.values() if entry.at_s > 0]
    count = max(1, len(known))
    mean = Verified(
        files=sum(entry.files for entry in known) // count,
        size_bytes=sum(entry.size_bytes for entry in known) // count,
        took_s=sum(entry.took_s for entry in known) / count,
    )
    return {pair: history.verified.get(pair, mean) for pair in PAIRS}


def _duration_s(sizes: Mapping[str, Verified], pairs: tuple[str, ...] | list[str], rate_bytes_s: float) -> float:
    """Seconds of reading: what the pace allows; more where the last time took more (small files)."""
    return sum(max(sizes[pair].size_bytes / rate_bytes_s, _beyond(sizes[pair], rate_bytes_s)) for pair in pairs)


def _beyond(entry: Verified, rate_bytes_s: float) -> float:
    return entry.took_s if entry.took_s > 1.2 * entry.size_bytes / rate_bytes_s else 0.0


@dataclass(frozen=True)
class Coverage:
    """How far verification is, for people.

    ``directories``: how many of the 256 were verified at all; ``oldest_age_s``: since the least recently verified one was,
    ``None`` where one never was; ``left_s``: until all that is due is verified; ``findings``: the last ones, as JSON;
    ``quarantined``: how many entries of ``Error/`` a verification, or an upload that healed a file, put there.
    """

    directories: int
    oldest_age_s: float | None
    left_s: float
    findings: list[dict[str, Any]] = field(default_factory=list)
    quarantined: int = 0

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "directories": self.directories,
            "oldest_age": self.oldest_age_s,
            "seconds_left": round(self.left_s),
            "findings": self.findings,
            "quarantined": self.quarantined,
        }
