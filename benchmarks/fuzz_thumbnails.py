"""The fuzz run: mutated pictures through the worker's own path. Each must have a verdict, whatever is in it.

    python benchmarks/fuzz_thumbnails.py [--count 100000] [--seed 1] [--seconds 3600] [--processes 2]

Picture number N is the same for a seed, however many processes share the work. Each process is a worker, whose fork
server forks a limited child for each picture. Prints what became of them, the slowest and the largest; keeps the bytes of
each that broke a promise, and exits with 1 then. ``--json`` is for ``tests/test_thumbnails_process.py``, which runs the
first 2,000.
"""

from __future__ import annotations

import argparse
import collections
import gc
import json
import multiprocessing
import os
import random
import re
import resource
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests")]

from images import mutate, seeds, thumbnails  # noqa: E402 - lies beside the tests

from fsworker.thumbnails import Limits, PictureOutcome, make  # noqa: E402
from fsworker.thumbnails.forkserver import ForkServer  # noqa: E402

LIMITS = Limits(max_pixels=16_000_000, memory_bytes=256 * 2**20, cpu_s=5, wall_s=15)
SLACK_S = 5.0
"""How much later than ``wall_s`` a verdict may come on a busy machine before it counts as a hang."""
WISHES = {
    "a": "40x40",
    "b": {"geometry": "30x30", "format": "webp", "animated": True},
    "c": {"geometry": "20x30", "crop": True, "format": "png"},
}
PART = 200
PROGRESS = 5000
"""How often the number of pictures is told."""


@dataclass
class Tally:
    """What became of some pictures. ``broken`` are the numbers of those that broke a promise."""

    pictures: int = 0
    made: int = 0
    refused: int = 0
    reasons: collections.Counter[str] = field(default_factory=collections.Counter)
    broken: list[int] = field(default_factory=list)
    hangs: int = 0
    deaths: int = 0
    slowest_s: float = 0.0
    largest_mib: float = 0.0
    left_open: int = 0

    def add(self, other: Tally) -> None:
        """Take in another tally."""
        for name in ("pictures", "made", "refused", "reasons", "broken", "hangs", "deaths", "left_open"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.slowest_s = max(self.slowest_s, other.slowest_s)
        self.largest_mib = max(self.largest_mib, other.largest_mib)

    @property
    def kept_all_promises(self) -> bool:
        """No death, no hang, a verdict for each, memory inside the limit, nothing left open."""
        inside = self.largest_mib <= own_mib() + LIMITS.memory_bytes / 2**20
        return not (self.broken or self.hangs or self.deaths or self.left_open) and inside


def own_mib() -> float:
    """The resident memory that a forked process begins with, at most, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def picture(seed: int, number: int, pictures: list[bytes]) -> bytes:
    """The mutated picture of this number."""
    chance = random.Random(f"{seed}/{number}")
    return mutate(chance.choice(pictures), chance)


PICTURES = seeds()


def part(seed: int, start: int, end: int) -> Tally:
    """Do some pictures, in a worker process with a fork server of its own."""
    tally, descriptors = Tally(), len(os.listdir("/proc/self/fd"))
    make._server = server = ForkServer()
    server.start()
    server_pid = server.pid
    for number in range(start, end):
        data, before_s = picture(seed, number, PICTURES), time.monotonic()
        try:
            judge(thumbnails(data, LIMITS, **WISHES), number, tally)
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            tally.reasons[f"RAISED {error!r}"] += 1
            tally.broken.append(number)
        took_s = time.monotonic() - before_s
        tally.pictures += 1
        tally.hangs += took_s > LIMITS.wall_s + SLACK_S
        tally.slowest_s = max(tally.slowest_s, took_s)
    tally.deaths += server.pid != server_pid
    server.stop()  # its children's memory is known when it is reaped
    gc.collect()
    tally.left_open = len(os.listdir("/proc/self/fd")) - descriptors
    tally.largest_mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return tally


def judge(outcome: PictureOutcome, number: int, tally: Tally) -> None:
    """Count an outcome: each wish has to be made or refused, with a reason that can be read."""
    made, failed = set(outcome.made), set(outcome.failed)
    named = all(why and why.isprintable() for why in outcome.failed.values())
    if made | failed != set(WISHES) or made & failed or not named:
        tally.broken.append(number)
    tally.hangs += any(why.startswith("took longer than") for why in outcome.failed.values())
    tally.made += len(made)
    tally.refused += len(failed)
    tally.reasons.update(re.sub(r"\d+", "N", why)[:70] for why in outcome.failed.values())


def run(count: int, seed: int, seconds: float, processes: int) -> Tally:
    """Do ``count`` pictures, or as many as can be begun in so many seconds."""
    total, ends_s = Tally(), time.monotonic() + seconds
    starts = iter(range(0, count, PART))
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        waiting: set[Future[Tally]] = set()
        try:
            while True:
                while len(waiting) < 2 * processes and time.monotonic() < ends_s:
                    start = next(starts, None)
                    if start is None:
                        break
                    waiting.add(pool.submit(part, seed, start, min(count, start + PART)))
                if not waiting:
                    return total
                ended = next(as_completed(waiting))
                waiting.remove(ended)
                before = total.pictures
                total.add(ended.result())
                if total.pictures // PROGRESS > before // PROGRESS:
                    print(f"{total.pictures:,} of {count:,}", file=sys.stderr, flush=True)
        except BrokenProcessPool:
            total.deaths += 1
            return total


def main() -> int:
    """Run, and say what happened."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no more after this time")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    started_s = time.monotonic()
    total = run(options.count, options.seed, options.seconds, options.processes)
    took_s = time.monotonic() - started_s
    for number in total.broken:
        Path(f"fuzz-{options.seed}-{number}.bin").write_bytes(picture(options.seed, number, PICTURES))
    if options.json:
        print(json.dumps({**vars(total), "kept_all_promises": total.kept_all_promises}))
    else:
        tell(total, took_s)
    return 0 if total.kept_all_promises else 1


def tell(total: Tally, took_s: float) -> None:
    """The summary, for people."""
    print(f"{total.pictures} pictures in {took_s:.0f} s ({total.pictures / took_s:.0f} a second)")
    print(
        f"{total.made} thumbnails made, {total.refused} refused by name, {len(total.broken)} pictures broke a promise"
    )
    print(f"{total.deaths} worker deaths, {total.hangs} hangs, {total.left_open} descriptors left open")
    print(f"slowest {total.slowest_s:.2f} s (limit {LIMITS.wall_s:.0f} s by the clock)")
    print(
        f"largest decoding process {total.largest_mib:.0f} MiB resident, of which up to {own_mib():.0f} it began with "
        f"(limit {LIMITS.memory_bytes / 2**20:.0f} MiB on top)"
    )
    for why, count in total.reasons.most_common():
        print(f"{count:8} {why}")


if __name__ == "__main__":
    sys.exit(main())
