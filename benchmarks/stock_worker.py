"""The negative control: what the hostile corpus does to a stock Celery worker. Run ``python benchmarks/stock_worker.py``.

One message at a time, each followed by a good one. Prints how many stopped the worker (it ended), made it deaf (the good
one did not come through in time) or ran, by family. ``--every 5`` takes each fifth message: all of them take most of an
hour, because a stopped worker is started again. ``--judged`` does the same with the judge at the door, in a minute.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests")]

import hostile_messages  # noqa: E402 - lies beside the tests
from live_worker import Server, Worker  # noqa: E402
from processes import eventually  # noqa: E402

PATIENCE_S = 2.0


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser()
    options.add_argument("--every", type=int, default=1)
    options.add_argument("--judged", action="store_true")
    chosen = options.parse_args()
    fates: dict[str, Counter[str]] = defaultdict(Counter)
    with tempfile.TemporaryDirectory() as name:
        server = Server(Path(name) / "redis")
        worker = None
        for number, case in enumerate(hostile_messages.refused()[:: chosen.every]):
            if worker is None:
                server.redis.flushall()
                directory = Path(name) / str(number)
                directory.mkdir()
                worker = Worker(server, directory, JUDGED_STOCK="0" if chosen.judged else "1").await_ready()
            fate = try_one(server, worker, case.raw, f"shop.good-{number:08d}")
            fates[case.family][fate] += 1
            print(f"{number:>4} {fate:8} {case.family}: {case.name}", file=sys.stderr, flush=True)
            if fate in ("stopped", "deaf"):
                worker.kill()
                worker = None
        if worker is not None:
            worker.kill()
        server.stop()
    report(fates)


def report(fates: dict[str, Counter[str]]) -> None:
    """Print a line for each family, and the sum."""
    total = sum(fates.values(), Counter())
    for family, counts in [*fates.items(), ("all", total)]:
        print(f"{family:20}", "  ".join(f"{fate} {counts[fate]:>3}" for fate in ("stopped", "deaf", "ran", "nothing")))


def try_one(server: Server, worker: Worker, raw: bytes, good_id: str) -> str:
    """What became of the worker."""
    lines = len(worker.lines)
    server.redis.lpush(hostile_messages.QUEUE, raw)
    server.redis.lpush(hostile_messages.QUEUE, hostile_messages.plain_bytes(good_id))
    came_through = eventually(lambda: worker.ends[good_id] or not worker.is_alive(), PATIENCE_S)
    if not worker.is_alive():
        return "stopped"
    if not came_through:
        return "deaf"
    started = [line.split()[1] for line in worker.lines[lines:] if line.startswith(("start ", "COLLECTED"))]
    return "ran" if set(started) - {good_id} else "nothing"


if __name__ == "__main__":
    main()
