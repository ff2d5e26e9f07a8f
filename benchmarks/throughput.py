"""Ingest through the real queue beside the same work in one process: ``python benchmarks/throughput.py [FILES]``.

Small files (10 KiB), in batches of 50 through client, Redis, worker and back (``ingest_many``), one message each
(``ingest``), and, as the floor, ``Store.batch`` in this process without Celery. Ratios are what counts: the machine is
shared. All three sync to disk before they answer.

``--photographs [COUNT]``: so many photographs (100) of 2 megapixels, all different, with two thumbnails each, and ten
times as many small files, through the queue in batches, beside the same work by as many processes without Celery. The
worker has two processes; the other side has two that fork from this one and share the pictures. Both have the same
pictures in memory at the start, ``batch`` durability, batches of 50, and the same files in the store at the end. The
queue's time is end to end: writing uploads to the spool, syncing them, messages, work, results, fetched one by one.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from PIL import Image, ImageChops, ImageOps
from stacks import RunningStack, running_stack

from fsworker.specification import Thumbnail
from fsworker.store.batch import Batch
from fsworker.store.facade import Store
from fsworker.thumbnails import make_thumbnails, warm_up

PHOTOGRAPHS = Path(__file__).resolve().parent.parent / "fsworker" / "demo_photos"
SIZE = (1633, 1225)  # 2 megapixels
SMALL, LARGE = "200x200", "1000x1000"
BATCH = 50
LOT = 2 * BATCH
PROCESSES = 2  # as the worker of tests/stacks.py has


def timed(work: Callable[[], object]) -> float:
    """Seconds that ``work`` takes."""
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s


def contents(count: int) -> list[bytes]:
    """Different small files."""
    return [os.urandom(10 << 10) for _ in range(count)]


def photographs(count: int, quality: int = 85) -> list[bytes]:
    """Different JPEG files of 2 megapixels: photographs, resampled, with grain."""
    originals = [ImageOps.fit(Image.open(path).convert("RGB"), SIZE) for path in sorted(PHOTOGRAPHS.glob("*.jpg"))]
    grain, made = Image.effect_noise(SIZE, 30).convert("RGB"), []
    for number in range(count):
        moved = ImageChops.offset(grain, 7 * number, 3 * number)
        stream = io.BytesIO()
        Image.blend(originals[number % len(originals)], moved, 0.06).save(stream, "JPEG", quality=quality)
        made.append(stream.getvalue())
    return made


def store_photographs(store: Store, pictures: list[bytes]) -> None:
    """What the worker does to each, without a queue: store it, make its thumbnails, store those; durable by batches."""
    wishes = {"small": Thumbnail(SMALL), "large": Thumbnail(LARGE)}
    for start in range(0, len(pictures), BATCH):
        with store.batch() as batch:
            for data in pictures[start : start + BATCH]:
                _store_photograph(batch, data, wishes)


def in_processes(path: Path, pictures: list[bytes]) -> float:
    """Seconds that :data:`PROCESSES` processes take for :func:`store_photographs`, each doing its share of the batches."""
    batches = [pictures[start : start + BATCH] for start in range(0, len(pictures), BATCH)]

    def share(number: int) -> None:
        with Store(path, durability="batch") as store:
            for batch in batches[number::PROCESSES]:
                store_photographs(store, batch)

    def work() -> None:
        context = multiprocessing.get_context("fork")
        processes = [context.Process(target=share, args=(number,)) for number in range(PROCESSES)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert all(process.exitcode == 0 for process in processes)

    warm_up()
    return timed(work)


def _store_photograph(batch: Batch, data: bytes, wishes: dict[str, Thumbnail]) -> None:
    batch.put(data)
    fd = os.memfd_create("photograph")
    try:
        with open(fd, "wb", closefd=False) as stream:
            stream.write(data)
        outcome = make_thumbnails(fd, wishes)
    finally:
        os.close(fd)
    assert not outcome.failed, outcome.failed
    for made in outcome.made.values():
        batch.put(b"".join(bytes(chunk) for chunk in made.chunks()))


def through_the_queue(stack: RunningStack, data: list[bytes], thumbnails: dict[str, str] | None = None) -> float:
    """Seconds until every result is here."""
    client = stack.client()
    options = {"thumbnails": thumbnails} if thumbnails else {}

    def work() -> None:
        results = [job.get(timeout=3600) for job in client.ingest_many(data, **options)]
        assert all(set(result.thumbnails) == set(thumbnails or ()) for result in results)

    return timed(work)


def run_photographs(count: int) -> dict[str, object]:
    """Photographs and small files, by queue and without, in the same run."""
    pictures, files = photographs(count), contents(10 * count)
    report: dict[str, object] = {
        "photographs": count,
        "photograph_bytes": sum(map(len, pictures)) // count,
        "small_files": len(files),
    }
    alone_s = queue_s = 0.0
    with tempfile.TemporaryDirectory(prefix="fsworker-queue-") as directory:
        (Path(directory) / "queue").mkdir()
        with (
            Store.create(Path(directory) / "alone", apps=["shop"], durability="batch") as store,
            running_stack(Path(directory) / "queue", durability="batch") as stack,
        ):
            warm = [stack.client().ingest(data, thumbnails={"small": SMALL}) for data in photographs(8, quality=50)]
            assert all(job.get(timeout=60) for job in warm)
            for start in range(0, count, LOT):  # by turns: what else the machine does shall hit both
                lot = pictures[start : start + LOT]
                alone_s += in_processes(store.root, lot)
                queue_s += through_the_queue(stack, lot, {"small": SMALL, "large": LARGE})
            assert set(store) <= set(stack.store()), "the two sides have to do the same"
            with store.batch() as batch:
                files_alone_s = timed(lambda: [batch.put(data) for data in files])
            files_queue_s = through_the_queue(stack, files)
    report["photographs_two_processes_per_s"] = round(count / alone_s, 1)
    report["photographs_queue_per_s"] = round(count / queue_s, 1)
    report["photographs_ratio"] = round(alone_s / queue_s, 2)
    report["small_files_one_process_per_s"] = round(len(files) / files_alone_s)
    report["small_files_queue_per_s"] = round(len(files) / files_queue_s)
    return report


def run_small_files(count: int) -> dict[str, object]:
    """Small files, in batches, singly, and without a queue."""
    report: dict[str, object] = {"files": count}
    with tempfile.TemporaryDirectory(prefix="fsworker-queue-") as directory:
        with (
            Store.create(Path(directory) / "alone", apps=["shop"], durability="batch") as store,
            store.batch() as batch,
        ):
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
    return report


def main() -> None:
    """Run and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="?", type=int, default=1000)
    parser.add_argument("--photographs", nargs="?", type=int, const=100, metavar="COUNT")
    arguments = parser.parse_args()
    run = run_small_files(arguments.files) if arguments.photographs is None else run_photographs(arguments.photographs)
    print(json.dumps(run, indent=2))


if __name__ == "__main__":
    main()
