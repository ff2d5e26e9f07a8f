"""Ingest through the real queue beside the same work in one process: ``python benchmarks/throughput.py [FILES]``.

Small files (10 KiB), in batches of 50 through client, Redis, worker and back (``ingest_many``), one message each
(``ingest``), and, as the floor, ``Store.batch`` in this process without Celery. Ratios are what counts: the machine is
shared. All three sync to disk before they answer.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from stacks import running_stack

from fsworker.store import Store


def timed(work: Callable[[], object]) -> float:
    """Seconds that ``work`` takes."""
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s


def contents(count: int) -> list[bytes]:
    """Different small files."""
    return [os.urandom(10 << 10) for _ in range(count)]


def main() -> None:
    """Run and print one JSON object."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    report: dict[str, object] = {"files": count}
    with tempfile.TemporaryDirectory(prefix="fsworker-queue-") as directory:
        with Store.create(Path(directory) / "alone", apps=["shop"], durability="batch") as store, store.batch() as batch:
            report["one_process_per_s"] = round(count / timed(lambda: [batch.put(data) for data in contents(count)]))
        for durability in ("full", "batch"):
            (Path(directory) / durability).mkdir()
            with running_stack(Path(directory) / durability, durability=durability) as stack:
                client = stack.client()
                client.ingest(b"warm").get()
                data = contents(count)
                seconds = timed(lambda: [job.get(timeout=600) for job in client.ingest_many(data)])
                report[f"ingest_many_{durability}_per_s"] = round(count / seconds)
                data = contents(count // 5)
                seconds = timed(lambda: [job.get(timeout=600) for job in [client.ingest(d) for d in data]])
                report[f"ingest_{durability}_per_s"] = round(len(data) / seconds)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
