"""Is a backup what the store is? ``Data/`` of a mirror is read like the store's own, and the names are compared.

The mirror is only read. Nothing is said of modes and owners: it may be another user's, on another machine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from time import monotonic

from fsworker.config import format_duration
from fsworker.model import Hash
from fsworker.store import layout
from fsworker.store.objects import ObjectStore
from fsworker.verification.copies import Mirror
from fsworker.verification.findings import Finding, Suspicion
from fsworker.verification.judging import LENIENT, Judge, Tally, clock_of
from fsworker.verification.kindly import KindReader, drop_cache
from fsworker.verification.pace import Pace
from fsworker.verification.scanning import Scanners
from fsworker.verification.whole import OnProgress, Options, Report, no_progress

_KINDS = {
    "rotten": "mirror-rotten",
    "empty": "mirror-rotten",
    "unreadable": "mirror-unreadable",
    "unreadable-directory": "mirror-unreadable",
}


def compare(
    store: ObjectStore,
    mirror: Mirror,
    options: Options,
    on_finding: Callable[[Finding], None],
    *,
    on_progress: OnProgress = no_progress,
) -> Report:
    """Compare a mirror with the store: what it lacks, what it has beside, what is rotten in it. Changes nothing.

    Paths in findings are relative to the mirror (and to the store, where they mean the same). A file that is stored, or
    collected, after the backup was made is missing, or extra: the finding says how old it is. Raises as
    :func:`fsworker.verification.whole.verify_all`.
    """
    begun_s = monotonic()
    report = Report()
    rate = options.rate_bytes_s
    judge = Judge(mirror.fd, LENIENT, KindReader(Pace(None if rate is None else rate / options.processes)))

    def found(finding: Finding) -> None:
        report.count(finding)
        on_finding(finding)

    with store.errors("Comparing with a backup"), Scanners(judge, options.processes, options.threads) as scanners:
        listing = judge.pairs()
        for suspicion in listing.suspicions:
            _tell(judge, suspicion, found)
        pairs = sorted({*listing.names, *store.shards()})
        finished = 0

        def look(_: str, tally: Tally) -> None:
            report.files, report.size_bytes = report.files + tally.files, report.size_bytes + tally.size_bytes
            for suspicion in tally.suspicions:
                _tell(judge, suspicion, found)
            on_progress(finished, len(pairs))

        def compare_names(pair: str) -> None:
            nonlocal finished
            for difference in _differences(store, judge, pair):
                found(difference)
            finished += 1
            on_progress(finished, len(pairs))

        scanners.scan(pairs, look, compare_names)
    report.took_s = monotonic() - begun_s
    return report


def _differences(store: ObjectStore, judge: Judge, pair: str) -> Iterator[Finding]:
    theirs = {name for second in judge.seconds(pair).names for name in judge.names(pair, second).names}
    ours = set(store.names_in(pair))
    now_s = clock_of(store)
    for name in sorted(ours - theirs):
        status = store.status(name)
        if status is not None:  # else it was collected meanwhile
            detail = f"stored or freshened {format_duration(round(max(0.0, now_s - status.st_ctime)))} ago"
            yield Finding(layout.data_name(name), "mirror-missing", detail=detail, hash=name)
    for text in sorted(theirs - ours):
        if store.status(Hash(text)) is None:  # else it was stored meanwhile
            yield Finding(layout.data_name(Hash(text)), "mirror-extra", hash=text)


def _tell(judge: Judge, suspicion: Suspicion, found: Callable[[Finding], None]) -> None:
    kind = _KINDS.get(suspicion.kind, "mirror-stray")
    if kind == "mirror-rotten" and not _is_still_rotten(judge, suspicion):
        return
    base = suspicion.path.rpartition("/")[2] if kind != "mirror-stray" else None
    detail = suspicion.detail or ("" if suspicion.found else suspicion.kind)
    found(Finding(suspicion.path, kind, detail=detail, hash=base, found=suspicion.found))


def _is_still_rotten(judge: Judge, suspicion: Suspicion) -> bool:
    with suppress(OSError):  # what cannot be opened is judged all the same, and said to be so
        fd = os.open(suspicion.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=judge.root_fd)
        try:
            drop_cache(fd)
        finally:
            os.close(fd)
    seconds: Sequence[Suspicion] = judge.judge_path(suspicion.path).suspicions
    return any(second.kind in ("rotten", "empty") for second in seconds)
