"""May a collection run, and on what? The rules of refusal, and the cutoff. Pure.

A collection rests on one whole keep-set of every registered application. What is not in any of them is garbage if it
already existed, unreferenced, when the oldest of them was read. So the cutoff counts from the oldest snapshot::

    cutoff = min(snapshot times) - grace - debounce - what Redis's clock is measured to be ahead of the store's

A hash is given to an application at a time C, fresh by then within the debounce, and the application commits its reference
before C + grace. If the file's ctime is before the cutoff, then C + grace was before the oldest snapshot, so the reference,
if it was committed, is in that snapshot. Everything that is doubtful refuses, with all reasons at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fsworker.config import Settings, format_duration
from fsworker.errors import CollectionRefusedError, Refusal
from fsworker.keepsets.accepted import Accepted
from fsworker.keepsets.form import Manifest
from fsworker.keepsets.reader import Found

OVERRIDES = ("max_trash", "max_shrink", "keep_set_max_age", "max_clock_skew")
"""What a person may override, by name, for one run. Never beat."""

FROM_COUNT = 1000
"""``max_shrink`` and ``max_trash`` apply from so many hashes, or files, on."""
_EXACT_S = 0.05
"""A measurement of two clocks that is no wider than this is exact enough."""
WARN_AT = 0.75
"""The share of ``keep_set_max_age`` from which a keep-set is warned of."""
DEBOUNCE = 1 / 8
"""The share of the grace within which a file is not freshened again (:meth:`fsworker.store.objects.ObjectStore.freshen`)."""


@dataclass(frozen=True)
class Clocks:
    """The time. ``now_s`` is the store's; Redis's clock is between ``redis_least_s`` and ``redis_most_s`` ahead of it.

    Both differences are negative when Redis is behind. ``floor_s``: see :mod:`fsworker.store.clock`.
    """

    now_s: float
    redis_s: float
    redis_least_s: float
    redis_most_s: float
    floor_s: float
    floor_reason: str = ""

    @property
    def redis_ahead_s(self) -> float:
        """What to count Redis as ahead: the least that it can be, or the most where measuring took long."""
        return self.redis_least_s if self.redis_most_s - self.redis_least_s < _EXACT_S else self.redis_most_s


@dataclass(frozen=True)
class Rules:
    """What the store and the settings ask of keep-sets. Times in seconds."""

    store_id: str
    grace_s: float
    keep_set_max_age_s: float
    max_shrink: float
    max_trash: float
    max_clock_skew_s: float
    overrides: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Basis:
    """What a collection rests on. A file may go when ``max(ctime, floor_s) < cutoff_s``."""

    manifests: tuple[Manifest, ...]
    cutoff_s: float
    floor_s: float
    floor_reason: str

    @property
    def oldest(self) -> Manifest:
        """The keep-set whose snapshot decides the cutoff."""
        return min(self.manifests, key=lambda manifest: manifest.snapshot_time)


def rules_of(store_id: str, grace_s: float, settings: Settings, overrides: Iterable[str] = ()) -> Rules:
    """The rules by the settings. ``ValueError`` for an override that there is not."""
    chosen = frozenset(name.replace("-", "_") for name in overrides)
    if unknown := chosen - set(OVERRIDES):
        raise ValueError(f"{sorted(unknown)[0]!r} cannot be overridden; what can: {', '.join(OVERRIDES)}")
    return Rules(
        store_id=store_id,
        grace_s=grace_s,
        keep_set_max_age_s=settings.keep_set_max_age,
        max_shrink=settings.max_shrink,
        max_trash=settings.max_trash,
        max_clock_skew_s=settings.max_clock_skew,
        overrides=chosen,
    )


def judge_keep_sets(found: Sequence[Found], accepted: Mapping[str, Accepted], clocks: Clocks, rules: Rules) -> Basis:
    """Judge the keep-sets of all registered applications (``found``, one for each).

    Raises :class:`CollectionRefusedError` with every reason. What was last accepted lies in the future when a clock was
    set back since; then a snapshot has to be later than that step.
    """
    refusals = [*_of_registry(found), *_of_clocks(clocks, rules)]
    for each in found:
        refusals += _of_keep_set(each, accepted.get(each.app), clocks, rules)
    refusals = [refusal for refusal in refusals if refusal.override not in rules.overrides or refusal.override is None]
    if refusals:
        raise CollectionRefusedError(*refusals)
    manifests = tuple(each.manifest for each in found if each.manifest is not None)
    return Basis(manifests, cutoff_of(manifests, clocks, rules.grace_s), clocks.floor_s, clocks.floor_reason)


def cutoff_of(manifests: Iterable[Manifest], clocks: Clocks, grace_s: float) -> float:
    """The time before which a file must be, by ctime and floor, to be garbage (see above)."""
    oldest_s = min(manifest.snapshot_time for manifest in manifests)
    return oldest_s - grace_s - grace_s * DEBOUNCE - max(0.0, clocks.redis_ahead_s)


def _of_registry(found: Sequence[Found]) -> Iterator[Refusal]:
    if not found:
        yield Refusal(
            "no_apps",
            "no application is registered with this store, so nobody can say what is kept; register each one that uses "
            "it: fsworker app add NAME",
        )


def _of_clocks(clocks: Clocks, rules: Rules) -> Iterator[Refusal]:
    skew_s = max(clocks.redis_least_s, -clocks.redis_most_s)
    if skew_s > rules.max_clock_skew_s:
        direction = "ahead of" if clocks.redis_least_s > 0 else "behind"
        yield Refusal(
            "clock_skew",
            f"Redis's clock is {skew_s:.1f} s {direction} the store's, more than max_clock_skew "
            f"({format_duration(rules.max_clock_skew_s)}); set both by NTP",
            numbers={"skew_s": round(skew_s, 3), "max_clock_skew_s": rules.max_clock_skew_s},
            override="max_clock_skew",
        )


def _of_keep_set(found: Found, accepted: Accepted | None, clocks: Clocks, rules: Rules) -> Iterator[Refusal]:
    app = found.app
    if found.problem is not None:
        yield broken(app, found.problem)
        return
    manifest = found.manifest
    if manifest is None:
        yield Refusal(
            "no_keep_set",
            f"application {app} has no keep-set in Redis (never published, or Redis was flushed); publish it "
            f"(client.keep.publish, or: fsworker keep publish --app {app}), or retire the application: fsworker app "
            f"retire {app}",
            app,
        )
        return
    if manifest.store != rules.store_id or not rules.store_id:
        yield Refusal(
            "other_store",
            f"the keep-set of application {app} is for store {manifest.store!r}, this is {rules.store_id!r}: another "
            f"installation uses this Redis; give each its own FSWORKER_NAMESPACE or database, and publish again",
            app,
            {"found": manifest.store, "expected": rules.store_id},
        )
    yield from _of_time(manifest, accepted, clocks, rules)
    yield from _of_count(manifest, accepted, rules)


def _of_time(manifest: Manifest, accepted: Accepted | None, clocks: Clocks, rules: Rules) -> Iterator[Refusal]:
    app, snapshot_s = manifest.app, manifest.snapshot_time
    age_s = clocks.redis_s - snapshot_s
    if age_s < 0:
        yield Refusal(
            "future",
            f"the snapshot of application {app} is {-age_s:.1f} s in the future; was a clock set back? Publish again",
            app,
            {"snapshot_time": snapshot_s, "redis_time": clocks.redis_s},
        )
    elif age_s > rules.keep_set_max_age_s:
        yield Refusal(
            "stale",
            f"the keep-set of application {app} is {_hours(age_s)} old, more than keep_set_max_age "
            f"({format_duration(rules.keep_set_max_age_s)}); does its publishing still run? Publish again",
            app,
            {"age_s": round(age_s, 3), "keep_set_max_age_s": rules.keep_set_max_age_s},
            "keep_set_max_age",
        )
    if accepted is not None:
        at_least_s = accepted.snapshot_s
        if at_least_s > clocks.redis_s:
            at_least_s = min(at_least_s, clocks.floor_s)
        if snapshot_s < at_least_s:
            yield Refusal(
                "going_back",
                f"the keep-set of application {app} is older than one that was acted on before "
                f"({_hours(at_least_s - snapshot_s)}): was an old Redis dump brought back? Publish again",
                app,
                {"snapshot_time": snapshot_s, "accepted_snapshot_time": at_least_s},
            )


def _of_count(manifest: Manifest, accepted: Accepted | None, rules: Rules) -> Iterator[Refusal]:
    app, count = manifest.app, manifest.count
    if count == 0 and not manifest.allow_empty:
        yield Refusal(
            "empty",
            f"the keep-set of application {app} is empty, and does not say that this is meant; publish with allow_empty",
            app,
            {"count": 0},
        )
    if accepted is None or accepted.count < FROM_COUNT or count >= accepted.count:
        return
    shrink = 1 - count / accepted.count
    if shrink > rules.max_shrink:
        yield Refusal(
            "shrunk",
            f"the keep-set of application {app} shrank from {accepted.count:,} to {count:,} hashes, by more than max_shrink "
            f"({rules.max_shrink:.0%}); if that is right: fsworker gc --override max_shrink",
            app,
            {"count": count, "accepted_count": accepted.count, "max_shrink": rules.max_shrink},
            "max_shrink",
        )


def judge_plan(trash: int, files: int, rules: Rules) -> None:
    """Judge how much a plan would trash. Raises :class:`CollectionRefusedError`."""
    if files < FROM_COUNT or trash <= files * rules.max_trash or "max_trash" in rules.overrides:
        return
    raise CollectionRefusedError(
        Refusal(
            "too_much",
            f"{trash:,} of {files:,} files would go to trash ({trash / files:.0%}), more than max_trash "
            f"({rules.max_trash:.0%}); look at 'fsworker gc --dry-run', and if that is right: fsworker gc --override max_trash",
            numbers={"trash": trash, "files": files, "max_trash": rules.max_trash},
            override="max_trash",
        )
    )


def broken(app: str, problem: str) -> Refusal:
    """The refusal for a keep-set that is not whole. Nobody can override it."""
    return Refusal(
        "broken",
        f"the keep-set of application {app} is broken: {problem}. Publish again, or retire the application",
        app,
        {"problem": problem},
    )


def ageing(found: Iterable[Found], redis_s: float, max_age_s: float) -> list[Refusal]:
    """Warnings before refusals: keep-sets past three quarters of the age at which collections stop."""
    return [
        Refusal(
            "ageing",
            f"the keep-set of application {each.app} is {_hours(redis_s - each.manifest.snapshot_time)} old; from "
            f"{format_duration(max_age_s)} on nothing is collected. Does its publishing still run?",
            each.app,
            {"age_s": round(redis_s - each.manifest.snapshot_time, 3), "keep_set_max_age_s": max_age_s},
        )
        for each in found
        if each.manifest is not None and redis_s - each.manifest.snapshot_time > WARN_AT * max_age_s
    ]


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds:.1f} s"
