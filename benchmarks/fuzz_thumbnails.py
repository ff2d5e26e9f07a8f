"""The long fuzz run: mutated pictures through the worker's own path. Each must have a verdict, whatever is in it.

    python benchmarks/fuzz_thumbnails.py [--count 100000] [--seed 1] [--seconds 3600]

Prints what became of them and the slowest; keeps the bytes of any that broke a promise, and exits with 1 then.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import re
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests")]

from images import mutate, seeds, thumbnails  # noqa: E402 - lies beside the tests

from fsworker.thumbnails import Limits  # noqa: E402

LIMITS = Limits(memory_bytes=256 * 2**20, cpu_s=5, wall_s=15)
NAMES = {"a", "b", "c"}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time")
    options = parser.parse_args()
    chance, pictures = random.Random(options.seed), seeds()
    reasons: collections.Counter[str] = collections.Counter()
    broken, slowest_s, descriptors = 0, 0.0, len(os.listdir("/proc/self/fd"))
    started_s, done = time.monotonic(), 0
    while done < options.count and time.monotonic() - started_s < options.seconds:
        data = mutate(chance.choice(pictures), chance)
        before_s = time.monotonic()
        try:
            outcome = thumbnails(
                data,
                LIMITS,
                a="40x40",
                b={"geometry": "30x30", "format": "webp", "animated": True},
                c={"geometry": "20x30", "crop": True, "format": "png"},
            )
            sound = set(outcome.made) | set(outcome.failed) == NAMES and not set(outcome.made) & set(outcome.failed)
            late = time.monotonic() - before_s > LIMITS.wall_s + 5
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            reasons[f"RAISED {error!r}"] += 1
            sound, late = False, False
        else:
            reasons["made"] += len(outcome.made)
            reasons.update(re.sub(r"\d+", "N", why)[:70] for why in outcome.failed.values())
        if not sound or late:
            broken += 1
            Path(f"fuzz-{options.seed}-{done}.bin").write_bytes(data)
        outcome = None  # it holds its thumbnails' memory open
        slowest_s = max(slowest_s, time.monotonic() - before_s)
        done += 1
    print(
        f"{done} pictures in {time.monotonic() - started_s:.0f} s, {broken} broke a promise, slowest {slowest_s:.2f} s"
    )
    print(f"descriptors left open: {len(os.listdir('/proc/self/fd')) - descriptors}")
    for why, count in reasons.most_common():
        print(f"{count:8} {why}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
