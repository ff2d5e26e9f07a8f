"""What the judgement of a message costs: run ``python benchmarks/judge.py`` in the project's root.

Prints microseconds a message (the best of five rounds): for a plain message, for the largest useful ones, and for the
slowest refusal of the hostile corpus.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests")]

import hostile_messages  # noqa: E402 - lies beside the tests

from fsworker.broker.judge import QueueRules, judge  # noqa: E402
from fsworker.model import MAX_HASHES_PER_CLAIM, BatchRequest, ClaimRequest, IngestRequest  # noqa: E402

RULES = QueueRules(
    hostile_messages.QUEUE,
    {
        "fsworker.ingest": IngestRequest.model_validate,
        "fsworker.ingest_many": BatchRequest.model_validate,
        "fsworker.claim": ClaimRequest.model_validate,
    },
    "shop.",
)


def best_us(raw: bytes, rounds: int = 5, number: int = 20) -> float:
    """Microseconds for one judgement of ``raw``."""
    times_s = []
    for _ in range(rounds):
        begin_s = time.perf_counter()
        for _ in range(number):
            judge(raw, RULES)
        times_s.append((time.perf_counter() - begin_s) / number)
    return min(times_s) * 1e6


def main() -> None:
    """Measure and print."""
    job_id = "shop.0123abcd-0000-4000-8000-0123456789ab"
    uploads = [{"upload": f"{n:032x}", "thumbnails": {"small": "100x100", "large": "1600x"}} for n in range(50)]
    hashes = [f"{n:040x}" for n in range(MAX_HASHES_PER_CLAIM)]
    for name, message in {
        "ingest": hostile_messages.plain(job_id),
        "ingest_many of 50": hostile_messages.plain(job_id, task="fsworker.ingest_many", kwargs={"uploads": uploads}),
        f"claim of {MAX_HASHES_PER_CLAIM}": hostile_messages.plain(
            job_id, task="fsworker.claim", kwargs={"hashes": hashes}
        ),
    }.items():
        raw = json.dumps(message).encode()
        print(f"{name:40} {len(raw):>8} bytes {best_us(raw):>10.0f} µs")
    slowest = sorted(
        ((best_us(case.raw, 2, 1), case) for case in hostile_messages.refused()), key=lambda pair: -pair[0]
    )
    for cost_us, case in slowest[:5]:
        print(f"refused: {case.family + ', ' + case.name:31.31} {len(case.raw):>8} bytes {cost_us:>10.0f} µs")


if __name__ == "__main__":
    main()
