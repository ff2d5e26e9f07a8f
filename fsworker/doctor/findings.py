"""What a look at one thing found: a value."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """``what`` was found about ``topic``. ``fix`` says what to do, as a command where there is one; empty when all is well."""

    level: Level
    topic: str
    what: str
    fix: str = ""

    def as_json(self) -> dict[str, str]:
        """For ``--json``."""
        return asdict(self)


def ok(topic: str, what: str) -> Finding:
    """Nothing to do."""
    return Finding("ok", topic, what)


def warning(topic: str, what: str, fix: str) -> Finding:
    """It works, for now or not as well as it could."""
    return Finding("warning", topic, what, fix)


def problem(topic: str, what: str, fix: str) -> Finding:
    """Something does not work, is lost at the next failure, or is open to those who should not have it."""
    return Finding("problem", topic, what, fix)


def worst(findings: Iterable[Finding]) -> Level:
    """The worst level among findings."""
    levels = {finding.level for finding in findings}
    return "problem" if "problem" in levels else "warning" if "warning" in levels else "ok"


def span(seconds: float) -> str:
    """A time for people: ``5 s``, ``12 min``, ``3.5 h``, ``2.1 d``."""
    for size_s, unit in ((86400.0, "d"), (3600.0, "h")):
        if seconds >= size_s:
            return f"{seconds / size_s:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
