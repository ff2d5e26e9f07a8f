"""What a collection would do: a plan, as a value. Pure; :mod:`fsworker.collection.collector` carries it out."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass, fields
from typing import Any

from fsworker.model import Hash


@dataclass(frozen=True)
class StoredFile:
    """A stored file as a plan sees it. Times are seconds since the epoch; ``links`` counts its names on the filesystem."""

    name: Hash
    ctime_s: float
    mtime_s: float
    size_bytes: int
    links: int = 1


@dataclass(frozen=True)
class Plan:
    """What to do with the files of a shard: ``trash`` goes; ``young`` is in no keep-set either, but too young to go.

    ``restore`` are hashes in trash that an application keeps and that are not stored. ``kept`` and ``files`` count what
    is kept and all there is.
    """

    trash: tuple[StoredFile, ...]
    young: tuple[StoredFile, ...]
    restore: tuple[Hash, ...] = ()
    kept: int = 0
    files: int = 0


def plan_collection(
    files: Iterable[StoredFile], keep: Container[Hash], cutoff_s: float, floor_s: float = float("-inf")
) -> Plan:
    """Decide about ``files``: those in ``keep`` stay; of the others those go that are older than the cutoff.

    Age is the ctime, or the clock floor where that is later (:mod:`fsworker.store.clock`).
    """
    trash: list[StoredFile] = []
    young: list[StoredFile] = []
    kept = 0
    for file in files:
        if file.name in keep:
            kept += 1
        elif max(file.ctime_s, floor_s) < cutoff_s:
            trash.append(file)
        else:
            young.append(file)
    return Plan(tuple(trash), tuple(young), kept=kept, files=kept + len(trash) + len(young))


@dataclass(frozen=True)
class Tally:
    """A collection in numbers. ``trash``, ``restore``: planned; ``trashed``, ``restored``: done.

    ``spared`` files were to go and were freshened or taken in the meantime; ``rotten`` ones could not be restored. Of the
    unreferenced but ``young`` files ``young_linked`` have a second name (a backup by hard links renews the ctime) and
    ``young_changed`` have contents that are older than the cutoff (freshened, or ``chown -R``).
    """

    files: int = 0
    kept: int = 0
    trash: int = 0
    trash_bytes: int = 0
    young: int = 0
    young_bytes: int = 0
    young_linked: int = 0
    young_changed: int = 0
    restore: int = 0
    trashed: int = 0
    trashed_bytes: int = 0
    spared: int = 0
    restored: int = 0
    rotten: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Tally)))

    def as_json(self) -> dict[str, int]:
        """For notes and reports."""
        return {f.name: getattr(self, f.name) for f in fields(Tally)}

    @classmethod
    def of_json(cls, tree: dict[str, Any]) -> Tally:
        """The reverse. ``TypeError`` or ``ValueError`` for what is none."""
        return cls(**{name: int(value) for name, value in tree.items()})

    @classmethod
    def of_plan(cls, plan: Plan, cutoff_s: float) -> Tally:
        """What a plan comes to."""
        return cls(
            files=plan.files,
            kept=plan.kept,
            trash=len(plan.trash),
            trash_bytes=sum(file.size_bytes for file in plan.trash),
            young=len(plan.young),
            young_bytes=sum(file.size_bytes for file in plan.young),
            young_linked=sum(file.links > 1 for file in plan.young),
            young_changed=sum(file.mtime_s < cutoff_s for file in plan.young),
            restore=len(plan.restore),
        )
