"""What runs, what waits, and whether collections can do their work."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from fsworker.broker.kv import KV
from fsworker.broker.names import Names
from fsworker.broker.refusals import refusals
from fsworker.collection.basis import Clocks, ageing, judge_keep_sets, rules_of
from fsworker.collection.upkeep import last_sweep_s, read_last
from fsworker.config import Settings, format_duration
from fsworker.doctor.findings import Finding, ok, problem, span, warning
from fsworker.errors import CollectionRefusedError, FSWorkerError
from fsworker.host.alive import MAX_AGE_S, ROLES, silent_for_s
from fsworker.keepsets.accepted import read_accepted
from fsworker.keepsets.reader import KeepReader
from fsworker.spool.directory import SpoolDirectory
from fsworker.store import layout
from fsworker.store.clock import is_synchronised, read_record
from fsworker.store.handle import StoreHandle
from fsworker.store.hold import current
from fsworker.store.notes import BrokenNoteError

_LONG_QUEUE = 1000
_MAX_LOOKED_AT = 20_000
_LONG_WAIT_S = 900.0
_TOO_LONG_WAIT_S = 3600.0
_SMALL_SKEW_S = 1.0
_HOUR_S = 3600.0
_SAID_ELSEWHERE = ("clock_skew", "no_apps")


@dataclass(frozen=True)
class Times:
    """The clocks, in seconds since the epoch: the store's (its filesystem's), this host's, and Redis's if it answers.

    Redis's is ``redis_s``, read between the store's ``store_before_s`` and ``store_s``.
    """

    store_before_s: float
    store_s: float
    host_s: float
    redis_s: float | None


def read_times(store: StoreHandle, kv: KV | None) -> Times:
    """Look at all clocks. Raises ``OSError``, :class:`RedisUnavailableError`."""
    before_s = store.probe_clock()
    redis_s = None if kv is None else kv.time_s()
    return Times(before_s, store.probe_clock(), time.time(), redis_s)


def clocks(times: Times, settings: Settings, *, synchronised: bool) -> Iterator[Finding]:
    """The three clocks against one another."""
    limit_s = settings.max_clock_skew
    skews = {"this host's clock": times.host_s - times.store_s}
    if times.redis_s is not None:
        skews["Redis's clock"] = _skew_s(times.redis_s, times.store_before_s, times.store_s)
    for whose, skew_s in skews.items():
        said = f"{whose} is {abs(skew_s):.1f} s {'ahead of' if skew_s > 0 else 'behind'} the store's"
        if abs(skew_s) > limit_s:
            said += f", more than max_clock_skew ({format_duration(limit_s)}): nothing is collected"
            yield problem("clocks", said, "set all clocks by NTP: timedatectl set-ntp true")
        elif abs(skew_s) > _SMALL_SKEW_S:
            yield warning("clocks", said, "set all clocks by NTP: timedatectl set-ntp true")
    if not synchronised:
        yield warning("clocks", "no time source holds this host's clock", "timedatectl set-ntp true")
    elif all(abs(skew_s) <= _SMALL_SKEW_S for skew_s in skews.values()):
        yield ok("clocks", "the store, this host and Redis agree" if times.redis_s else "the store and this host agree")


def _skew_s(read_s: float, before_s: float, after_s: float) -> float:
    """How far a clock is ahead, when it was read between two looks at another one; 0 when it may be none."""
    return read_s - after_s if read_s > after_s else min(0.0, read_s - before_s)


def workers(state_dir: Path, *, all_here: bool) -> Iterator[Finding]:
    """Signs of life. ``all_here``: every worker runs on this host, so that one who gives no sign does not run."""
    for role in ROLES:
        command = f"fsworker worker --role {role}"
        try:
            silent_s = silent_for_s(state_dir, role)
        except OSError as error:
            yield warning("workers", f"{state_dir} cannot be read: {error.strerror}", "run this as the workers' user")
            return
        if silent_s is None:
            say = problem if all_here else warning
            said = f"no worker of role {role} has given a sign of life in {state_dir}"
            yield say("workers", said, f"{command} (or run this where it runs, with its FSWORKER_STATE_DIR)")
        elif silent_s > MAX_AGE_S:
            said = f"the worker of role {role} is silent for {span(silent_s)}: it ended, hangs, or has lost Redis"
            yield problem("workers", said, f"look at its log, and start it again: {command}")
        else:
            yield ok("workers", f"role {role} is alive")


def beat(swept_s: float | None, now_s: float, settings: Settings) -> Iterator[Finding]:
    """Whether beat, Redis and the maintenance worker together have made a sweep lately."""
    if settings.sweep_every is None:
        yield warning("beat", "sweep_every is off: what loses its message waits for ever", "unset FSWORKER_SWEEP_EVERY")
        return
    late_s = 3 * settings.sweep_every + 2 * settings.visibility_timeout
    start = "fsworker beat, and fsworker worker --role maintenance"
    if swept_s is None:
        yield warning("beat", "no sweep was made yet; one comes a minute after the start of beat", start)
    elif now_s - swept_s > late_s:
        said = f"the last sweep was made {span(now_s - swept_s)} ago; one is due every {format_duration(settings.sweep_every)}"
        yield problem("beat", said, f"look whether these run: {start}")
    else:
        yield ok("beat", f"the last sweep was made {span(max(0.0, now_s - swept_s))} ago")


def queues(kv: KV, names: Names, apps: Sequence[str]) -> Iterator[Finding]:
    """How many messages wait. Raises :class:`RedisUnavailableError`."""
    lengths = {queue: kv.queue_length(queue) for queue in (*map(names.ingest_queue, apps), names.maintenance_queue)}
    for queue, length in lengths.items():
        role = "maintenance" if queue == names.maintenance_queue else "ingest"
        if length > _LONG_QUEUE:
            fix = f"more workers of role {role}, or more --concurrency: fsworker worker --role {role}"
            yield warning("queues", f"{length:,} messages wait in {queue}", fix)
    if max(lengths.values()) <= _LONG_QUEUE:
        yield ok("queues", f"{sum(lengths.values()):,} messages wait")
    for queue, reasons in refusals(kv, names).items():
        listed = ", ".join(f"{reason} {count:,}" for reason, count in sorted(reasons.items()))
        yield warning(
            "refusals",
            f"messages of {queue} were refused: {listed}",
            "the worker's log says why; who sends to that queue is its application",
        )


def spools(store: StoreHandle, now_s: float) -> Iterator[Finding]:
    """How long the oldest request of each application waits."""
    for app in store.config.app_names:
        try:
            with SpoolDirectory(store.root / layout.SPOOL / app, app) as spool:
                ages = [
                    now_s - status.st_mtime
                    for entry in islice(spool.entries(), _MAX_LOOKED_AT)
                    if entry.kind == "json" and (status := spool.status(entry.name)) is not None
                ]
        except (FSWorkerError, OSError) as error:
            yield problem("spool", str(error), "run this as the store's user")
            continue
        oldest_s = max(ages, default=0.0)
        said = f"{app}: {len(ages):,} jobs wait" + (f", the oldest for {span(oldest_s)}" if ages else "")
        fix = "look at the ingest worker's log; the request file in the spool names the last problem"
        if oldest_s > _TOO_LONG_WAIT_S:
            yield problem("spool", said, fix)
        elif oldest_s > _LONG_WAIT_S:
            yield warning("spool", said, fix)
        else:
            yield ok("spool", said)


def keep_sets(store: StoreHandle, kv: KV, names: Names, times: Times, settings: Settings) -> Iterator[Finding]:
    """Whether a collection would run, by the rules that it runs by. Raises :class:`RedisUnavailableError`."""
    assert times.redis_s is not None
    found = KeepReader(kv, names).find(store.config.app_names)
    try:
        accepted = read_accepted(store)
        record = read_record(store)
    except (FSWorkerError, BrokenNoteError, OSError) as error:
        yield problem("keep-sets", str(error), "run this as the store's user; a broken note is mended as it says")
        return
    least_s, most_s = times.redis_s - times.store_s, times.redis_s - times.store_before_s
    floor_s = record.floor_s if record is not None else 0.0
    now = Clocks(times.store_s, times.redis_s, least_s, most_s, floor_s)
    rules = rules_of(store.config.store_id, store.grace_s, settings)
    refused = []
    try:
        judge_keep_sets(found, accepted, now, rules)
    except CollectionRefusedError as error:
        refused = [refusal for refusal in error.refusals if refusal.reason not in _SAID_ELSEWHERE]
    for refusal in refused:
        never = refusal.reason == "no_keep_set" and refusal.app not in accepted
        what, _, fix = refusal.message.rpartition("; ")
        fallback = "fsworker keep show"
        # A new application has none yet, and nothing of anybody's is deleted until it has: that is no failure.
        yield (warning if never else problem)("keep-sets", what or fix, fix if what else fallback)
    for refusal in ageing(found, times.redis_s, settings.keep_set_max_age):
        if refusal.app not in {each.app for each in refused}:
            yield warning(
                "keep-sets", refusal.message, f"fsworker keep publish --app {refusal.app} -, as a cron job does it"
            )
    if found and not refused:
        oldest_s = min(each.manifest.snapshot_time for each in found if each.manifest is not None)
        yield ok(
            "keep-sets", f"all {len(found)} are in force, the oldest of {span(max(0.0, times.redis_s - oldest_s))} ago"
        )


def collections(store: StoreHandle) -> Iterator[Finding]:
    """A hold, and what the last collection left because it is young."""
    hold = current(store)
    if hold is not None:
        left_s = hold.until_s - store.probe_clock()
        said = "a hold is in force" + (f" for another {span(max(0.0, left_s))}" if left_s < 365 * 24 * _HOUR_S else "")
        yield warning("hold", f"{said}: nothing is collected", "fsworker hold release, if its backup is over")
    last = read_last(store).get("collect")
    tally = last if isinstance(last, dict) else {}
    if isinstance(tally.get("young"), int) and tally["young"]:
        yield ok(
            "collection",
            f"the last one left {tally['young']:,} unreferenced files for their youth (hard-link backups and chown -R make "
            f"files young again)",
        )


def lateness(store: StoreHandle, now_s: float, settings: Settings) -> Iterator[Finding]:
    """Whether collections and purges come to their end as often as they should, refusals included."""
    for what, every_s in {"collect": settings.collect_every, "purge": settings.purge_every}.items():
        last = read_last(store).get(what)
        ended_s = last.get("time") if isinstance(last, dict) else None
        if every_s is None or not isinstance(ended_s, (int, float)) or now_s - ended_s <= 2 * every_s + _HOUR_S:
            continue
        said = f"the last {what} ended {span(now_s - ended_s)} ago; one is due every {format_duration(every_s)}"
        yield problem("collection", said, "look at the log of the maintenance worker for what ends it")


def look_at_what_runs(store: StoreHandle, state_dir: Path, settings: Settings, *, all_here: bool) -> Iterator[Finding]:
    """What can be seen without Redis."""
    yield from workers(state_dir, all_here=all_here)
    try:
        now_s = store.probe_clock()
        yield from beat(last_sweep_s(store), now_s, settings)
        yield from spools(store, now_s)
        yield from collections(store)
        yield from lateness(store, now_s, settings)
    except (OSError, FSWorkerError) as error:
        yield problem("store", f"it cannot be looked at: {error}", "run this as the store's user")


def look_at_clocks_and_keep_sets(store: StoreHandle, kv: KV, names: Names, settings: Settings) -> Iterator[Finding]:
    """What takes store and Redis together. Raises :class:`RedisUnavailableError`."""
    try:
        times = min((read_times(store, kv) for _ in range(3)), key=lambda times: times.store_s - times.store_before_s)
    except OSError as error:
        yield problem("clocks", f"the store's clock cannot be asked: {error}", "run this as the store's user")
        return
    yield from clocks(times, settings, synchronised=is_synchronised())
    yield from queues(kv, names, store.config.app_names)
    yield from keep_sets(store, kv, names, times, settings)
