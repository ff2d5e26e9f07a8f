"""How fast the store takes files in, beside HashFS and the floor of what the machine can do, in one run.

::

    python benchmarks/store.py [--files 10000] [--large-bytes 1073741824] [--rounds 3] [--directory DIR] [--json]

Every rate is the best of the rounds, taken in turns, because machines are noisy: read the ratios. HashFS is measured as
it is where it is installed (``pip install hashfs``), else as a copy of what its ``put`` does: hash in one pass, copy to a
temporary file in another, move.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fsworker import durable
from fsworker.store.batch import Batch
from fsworker.store.create import create_store
from fsworker.store.objects import ObjectStore

try:
    from hashfs import HashFS  # type: ignore[import-not-found]
except ImportError:
    HashFS = None

SMALL_BYTES = 4096
MIB = 1 << 20


# -- what is compared --------------------------------------------------------------------------------------------------


def ours(durability: str) -> Callable[[Path, list[Path]], None]:
    def ingest(directory: Path, files: list[Path]) -> None:
        with store_at(directory, durability) as store:
            for path in files:
                store.put_path(path)

    return ingest


def ours_batched(directory: Path, files: list[Path]) -> None:
    with store_at(directory, "batch") as store, Batch(store) as batch:
        for path in files:
            batch.put_path(path)


@contextmanager
def store_at(directory: Path, durability: str) -> Iterator[ObjectStore]:
    if not directory.exists():
        create_store(directory, apps=["benchmark"])
    with ObjectStore(directory, durability=durability) as store:
        yield store


def hashfs(directory: Path, files: list[Path]) -> None:
    if HashFS is not None:
        store = HashFS(str(directory), depth=2, width=2, algorithm="sha1")
        for path in files:
            store.put(str(path))
        return
    for path in files:
        with path.open("rb") as stream:
            digest = hashlib.sha1(stream.read()).hexdigest()
            target = directory / digest[:2] / digest[2:4] / digest[4:]
            if not os.path.isfile(target):
                os.makedirs(target.parent, 0o755, exist_ok=True)
                stream.seek(0)
                with tempfile.NamedTemporaryFile(delete=False) as temporary:
                    os.chmod(temporary.name, 0o664 & ~os.umask(0))
                    temporary.write(stream.read())
                shutil.move(temporary.name, target)


def floor(directory: Path, files: list[Path], *, sync: bool = False) -> None:
    """Copy, hash, rename; where ``sync``, an fsync of file and directory each time."""
    directory.mkdir(exist_ok=True)
    buffer = memoryview(bytearray(MIB))
    for path in files:
        source = os.open(path, os.O_RDONLY)
        temporary = f"{directory}/temporary"
        target = os.open(temporary, os.O_WRONLY | os.O_CREAT, 0o444)
        digest = hashlib.sha1()
        while count := os.readv(source, [buffer]):
            digest.update(buffer[:count])
            os.write(target, buffer[:count])
        name = digest.hexdigest()
        parent = f"{directory}/{name[:2]}/{name[2:4]}"
        if sync:
            os.fsync(target)
        try:
            os.rename(temporary, f"{parent}/{name}")
        except FileNotFoundError:
            os.makedirs(parent)
            os.rename(temporary, f"{parent}/{name}")
        if sync:
            fd = os.open(parent, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
        os.close(source)
        os.close(target)


def floor_synced(directory: Path, files: list[Path]) -> None:
    floor(directory, files, sync=True)


def floor_batched(directory: Path, files: list[Path]) -> None:
    """Data before names before results, a thousand at a time: two syncfs."""
    directory.mkdir(exist_ok=True)
    root_fd = os.open(directory, os.O_RDONLY)
    for start in range(0, len(files), 1000):
        names = []
        for number, path in enumerate(files[start : start + 1000]):
            data = path.read_bytes()
            temporary = f"{directory}/temporary-{number}"
            with open(temporary, "wb") as target:
                target.write(data)
            names.append((temporary, hashlib.sha1(data).hexdigest()))
        durable.syncfs(root_fd)
        for temporary, name in names:
            parent = f"{directory}/{name[:2]}/{name[2:4]}"
            os.makedirs(parent, exist_ok=True)
            os.rename(temporary, f"{parent}/{name}")
        durable.syncfs(root_fd)
    os.close(root_fd)


def hash_only(_: Path, files: list[Path]) -> None:
    for path in files:
        fd = os.open(path, os.O_RDONLY)
        durable.hash_descriptor(fd)
        os.close(fd)


# -- measuring ---------------------------------------------------------------------------------------------------------


def small_files(base: Path, count: int) -> list[Path]:
    source = base / "source"
    source.mkdir()
    files = []
    for number in range(count):
        path = source / str(number)
        path.write_bytes(os.urandom(SMALL_BYTES))
        files.append(path)
    os.sync()
    return files


def timed(action: Callable[[Path, list[Path]], None], directory: Path, files: list[Path]) -> float:
    begin = time.perf_counter()
    action(directory, files)
    return time.perf_counter() - begin


def best(
    contestants: dict[str, Callable[[Path, list[Path]], None]],
    base: Path,
    files: list[Path],
    rounds: int,
    *,
    keep: bool,
) -> dict[str, float]:
    """The shortest time of each, in seconds. With ``keep`` each finds what it stored in a round before the first.

    Many files are not deleted meanwhile, because ext4 searches long for a free inode where many have just been freed;
    one large file is, because a virtual machine gives out memory that it had before much faster.
    """
    times = dict.fromkeys(contestants, float("inf"))
    for number in range(rounds + keep):
        for name, action in contestants.items():
            directory = base / f"{name.replace(' ', '-').replace(',', '')}{'' if keep else number}"
            os.sync()
            took = timed(action, directory, files)
            if not (keep and number == 0):
                times[name] = min(times[name], took)
            if len(files) == 1:
                shutil.rmtree(directory, ignore_errors=True)
    return times


def measure_small(base: Path, count: int, rounds: int) -> dict[str, Any]:
    files = small_files(base, count)
    contestants = {
        "floor": floor,
        "HashFS": hashfs,
        "ours, none": ours("none"),
        "floor, batched": floor_batched,
        "ours, batch": ours_batched,
    }
    new = {name: count / took for name, took in best(contestants, base, files, rounds, keep=False).items()}
    few = files[: max(1, count // 10)]
    synced = {"floor, synced one at a time": floor_synced, "ours, full": ours("full")}
    new |= {name: len(few) / took for name, took in best(synced, base, few, rounds, keep=False).items()}
    contestants = {"hash only": hash_only, "HashFS": hashfs, "ours, none": ours("none"), "ours, batch": ours_batched}
    duplicates = {name: count / took for name, took in best(contestants, base, files, rounds, keep=True).items()}
    full = best({"ours, full, again": ours("full")}, base, few, 1, keep=True)
    duplicates["ours, full"] = len(few) / full["ours, full, again"]
    return {"new files/s": new, "duplicates/s": duplicates}


def measure_large(base: Path, size: int, rounds: int) -> dict[str, Any]:
    path = base / "large"
    with path.open("wb") as target:
        for _ in range(size // MIB):
            target.write(os.urandom(MIB))
    os.sync()
    contestants = {"hash only": hash_only, "HashFS": hashfs, "ours, none": ours("none"), "ours, full": ours("full")}
    hash_only(base, [path])  # into the page cache
    rates = {name: size / took / 1e6 for name, took in best(contestants, base, [path], rounds, keep=False).items()}
    peak = peak_of(base, path)
    path.unlink()
    return {"large file, MB/s": rates, "peak memory beyond start, MB": peak}


MEMORY = """
import resource, sys
from fsworker.store.objects import ObjectStore
store = ObjectStore(sys.argv[1], durability="none")
store.put(b"")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
store.put_path(sys.argv[2])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000)
"""


def peak_of(base: Path, path: Path) -> float:
    create_store(base / "memory", apps=[])
    command = [sys.executable, "-c", MEMORY, str(base / "memory"), str(path)]
    try:
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    finally:
        shutil.rmtree(base / "memory")


TARGETS = (
    (
        "new, batch-durable : HashFS unsynced",
        1.0,
        lambda r: r["new files/s"]["ours, batch"] / r["new files/s"]["HashFS"],
    ),
    (
        "new, batch-durable : one fsync at a time",
        10.0,
        lambda r: r["new files/s"]["ours, batch"] / r["new files/s"]["floor, synced one at a time"],
    ),
    ("duplicates, none : HashFS", 3.0, lambda r: r["duplicates/s"]["ours, none"] / r["duplicates/s"]["HashFS"]),
    ("duplicates, batch : HashFS", 3.0, lambda r: r["duplicates/s"]["ours, batch"] / r["duplicates/s"]["HashFS"]),
    (
        "large, none : hash only",
        0.6,
        lambda r: r["large file, MB/s"]["ours, none"] / r["large file, MB/s"]["hash only"],
    ),
    ("large, none : HashFS", 2.0, lambda r: r["large file, MB/s"]["ours, none"] / r["large file, MB/s"]["HashFS"]),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--large-bytes", type=int, default=1 << 30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", help="where to work (default: the system's temporary directory)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="fsworker-benchmark-") as name:
        result = measure_large(Path(name), options.large_bytes, options.rounds)
        result |= measure_small(Path(name), options.files, options.rounds)
    result["HashFS"] = "as installed" if HashFS is not None else "a copy of what its put does"
    result["ratios"] = {title: round(ratio(result), 2) for title, _, ratio in TARGETS}
    print(json.dumps(result, indent=2) if options.json else describe(result))


def describe(result: dict[str, Any]) -> str:
    lines = []
    for title, rates in result.items():
        if title != "ratios" and isinstance(rates, dict):
            lines += [title, *(f"  {name:32}{rate:>12,.0f}" for name, rate in rates.items())]
    lines.append(
        f"peak memory beyond start: {result['peak memory beyond start, MB']:.1f} MB; HashFS {result['HashFS']}"
    )
    lines.append("ratios (to reach)")
    lines += [f"  {title:42}{result['ratios'][title]:>8} ({target})" for title, target, _ in TARGETS]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
