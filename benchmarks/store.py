"""How fast the store takes files in, beside HashFS and the floor of what the machine can do, in one run.

::

    python benchmarks/store.py [--files 10000] [--large-bytes 1073741824] [--rounds 3] [--directory DIR] [--json]

Every rate is the best of the rounds, taken in turns, because machines are noisy (duplicates: ten rounds, turns of a
thousand files): read the ratios. HashFS itself is what we compare with (``pip install hashfs``): a copy of what its ``put``
does was more than twice as fast as the package, whose time goes into its stream class and its paths.

Two kinds of yardstick beside it. A *floor* is the least that anybody does for such a result: copy, hash, sync. *Bare* are
our own system calls (``bare.py``), in a plain loop: what they take is the machine's, what we take beyond them is ours.

ext4 does not give out an inode again for minutes after it was freed, and looks at every one of them when it needs a new
one: where thousands of files have just been deleted, new files are several times as slow, for everybody. Wait, or
name a ``--directory`` on a filesystem of its own.
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

from bare import bare

from fsworker import copying, durable
from fsworker.store.batch import Batch
from fsworker.store.create import create_store
from fsworker.store.objects import ObjectStore

try:
    from hashfs import HashFS  # type: ignore[import-not-found]
except ImportError:
    sys.exit("this benchmark compares with HashFS; install it first: pip install hashfs")

SMALL_BYTES = 4096
MIB = 1 << 20
TURN = 1000
AGAIN_ROUNDS = 10
"""Duplicates are soon done: more rounds find a quiet moment for each."""


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
    store = HashFS(str(directory), depth=2, width=2, algorithm="sha1")
    for path in files:
        store.put(str(path))


def copy_only(directory: Path, files: list[Path]) -> None:
    """Copy, and nothing else: what the machine's memory and filesystem let through, and it varies a lot."""
    directory.mkdir(exist_ok=True)
    buffer = memoryview(bytearray(MIB))
    for path in files:
        source = os.open(path, os.O_RDONLY)
        target = os.open(directory / path.name, os.O_WRONLY | os.O_CREAT, 0o444)
        while count := os.readv(source, [buffer]):
            os.write(target, buffer[:count])
        os.close(source)
        os.close(target)


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


def floor_compared(directory: Path, files: list[Path]) -> None:
    """The least that a duplicate costs if its bytes are compared: read, hash, open what is stored, read, compare."""
    if not directory.exists():
        floor(directory, files)
        return
    root_fd = os.open(directory, os.O_RDONLY)
    for path in files:
        fd = os.open(path, os.O_RDONLY)
        data = os.read(fd, 16 * SMALL_BYTES)
        while more := os.read(fd, 16 * SMALL_BYTES):
            data += more
        os.close(fd)
        name = hashlib.sha1(data).hexdigest()
        fd = os.open(f"{name[:2]}/{name[2:4]}/{name}", os.O_RDONLY, dir_fd=root_fd)
        if os.read(fd, len(data) + 1) != data:
            sys.exit(f"{name} is not what it was")
        os.close(fd)
    os.close(root_fd)


def hash_only(_: Path, files: list[Path]) -> None:
    for path in files:
        fd = os.open(path, os.O_RDONLY)
        copying.hash_descriptor(fd)
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


def have_memory(base: Path, files: list[Path]) -> None:
    """Write as much as the contestant will, and delete it, so that the page cache finds memory that was just in use.

    A virtual machine returns memory that has been free for two seconds to its host, and gets it back slowly: without
    this, of six contestants every second one was twice as fast, whoever it was.
    """
    copy_only(base / "before", files)
    shutil.rmtree(base / "before")


def best(
    contestants: dict[str, Callable[[Path, list[Path]], None]], base: Path, files: list[Path], rounds: int
) -> dict[str, float]:
    """The shortest time of each for what is new, in seconds.

    Many files are not deleted meanwhile, because ext4 searches long for a free inode where many have just been freed;
    one large file is, since two would not fit the page cache of a small machine.
    """
    times = dict.fromkeys(contestants, float("inf"))
    for number in range(rounds):
        for name, action in contestants.items():
            directory = base / f"{directory_name(name)}{number}"
            os.sync()
            if len(files) == 1:
                have_memory(base, files)
            times[name] = min(times[name], timed(action, directory, files))
            if len(files) == 1:
                shutil.rmtree(directory, ignore_errors=True)
    return times


def best_again(
    contestants: dict[str, Callable[[Path, list[Path]], None]], base: Path, files: list[Path], rounds: int
) -> dict[str, float]:
    """The time of each for what it has already, in seconds.

    They take turns after each thousand files, and of each thousand its shortest time counts: a neighbour on the machine
    that is busy for some seconds slows all of them, or none.
    """
    for name, action in contestants.items():
        action(base / directory_name(name), files)
    os.sync()
    parts = [files[start : start + TURN] for start in range(0, len(files), TURN)]
    times = {name: [float("inf")] * len(parts) for name in contestants}
    for _ in range(rounds):
        for number, part in enumerate(parts):
            for name, action in contestants.items():
                took = timed(action, base / directory_name(name), part)
                times[name][number] = min(times[name][number], took)
    return {name: sum(of_parts) for name, of_parts in times.items()}


def directory_name(contestant: str) -> str:
    return contestant.replace(" ", "-").replace(",", "")


def measure_small(base: Path, count: int, rounds: int) -> dict[str, Any]:
    files = small_files(base, count)
    contestants = {
        "floor": floor,
        "HashFS": hashfs,
        "bare, none": bare("none"),
        "ours, none": ours("none"),
        "floor, batched": floor_batched,
        "bare, batch": bare("batch"),
        "ours, batch": ours_batched,
    }
    new = {name: count / took for name, took in best(contestants, base, files, rounds).items()}
    few = files[: max(1, count // 10)]
    synced = {
        "floor, synced one at a time": floor_synced,
        "bare, full": bare("full"),
        "ours, full": ours("full"),
    }
    new |= {name: len(few) / took for name, took in best(synced, base, few, rounds).items()}
    contestants = {
        "hash only": hash_only,
        "floor, compared": floor_compared,
        "HashFS": hashfs,
        "bare, none": bare("none"),
        "ours, none": ours("none"),
        "bare, batch": bare("batch"),
        "ours, batch": ours_batched,
    }
    duplicates = {
        name: count / took for name, took in best_again(contestants, base, files, max(rounds, AGAIN_ROUNDS)).items()
    }
    full = best_again({"bare, full, again": bare("full"), "ours, full, again": ours("full")}, base, few, 1)
    duplicates |= {name.removesuffix(", again"): len(few) / took for name, took in full.items()}
    return {"new files/s": new, "duplicates/s": duplicates}


def measure_large(base: Path, size: int, rounds: int) -> dict[str, Any]:
    path = base / "large"
    with path.open("wb") as target:
        for _ in range(size // MIB):
            target.write(os.urandom(MIB))
    os.sync()
    contestants = {
        "hash only": hash_only,
        "copy only": copy_only,
        "floor": floor,
        "HashFS": hashfs,
        "ours, none": ours("none"),
        "ours, full": ours("full"),
    }
    hash_only(base, [path])  # into the page cache
    rates = {name: size / took / 1e6 for name, took in best(contestants, base, [path], rounds).items()}
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


def ratio(result: dict[str, Any], kind: str, over: str, under: str) -> float:
    return float(result[kind][over] / result[kind][under])


NEW, AGAIN, LARGE = "new files/s", "duplicates/s", "large file, MB/s"

TARGETS = (
    (NEW, "ours, batch", "HashFS", 1.0),
    (NEW, "ours, batch", "floor, synced one at a time", 10.0),
    (AGAIN, "ours, none", "HashFS", 3.0),
    (AGAIN, "ours, batch", "HashFS", 3.0),
    (LARGE, "ours, none", "hash only", 0.6),
    (LARGE, "ours, none", "HashFS", 2.0),
)
"""What is to be reached: kind of rate, this contestant, that contestant, their ratio."""

POSSIBLE = (
    (NEW, "floor, batched", "floor, synced one at a time"),
    (NEW, "bare, batch", "floor, synced one at a time"),
    (NEW, "ours, batch", "floor, batched"),
    (NEW, "ours, batch", "bare, batch"),
    (AGAIN, "floor, compared", "HashFS"),
    (AGAIN, "bare, none", "HashFS"),
    (AGAIN, "bare, batch", "HashFS"),
    (AGAIN, "ours, none", "bare, none"),
    (AGAIN, "ours, batch", "bare, batch"),
    (LARGE, "floor", "hash only"),
    (LARGE, "copy only", "hash only"),
    (LARGE, "ours, none", "floor"),
)
"""What this machine allows, and how near we come to it."""

SHARES = tuple((kind, durability) for kind in (NEW, AGAIN) for durability in ("none", "batch", "full"))
"""Puts of which is told how much of their time the system calls take, and how much is ours."""


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
        tempfile.tempdir = name  # on the same filesystem, so that HashFS has only to rename its temporary files
        result = measure_large(Path(name), options.large_bytes, options.rounds)
        result |= measure_small(Path(name), options.files, options.rounds)
    result["ratios"] = {title_of(*row[:3]): round(ratio(result, *row[:3]), 2) for row in (*TARGETS, *POSSIBLE)}
    print(json.dumps(result, indent=2) if options.json else describe(result))


def describe(result: dict[str, Any]) -> str:
    lines = []
    for title, rates in result.items():
        if title != "ratios" and isinstance(rates, dict):
            lines += [title, *(f"  {name:32}{rate:>12,.0f}" for name, rate in rates.items())]
    lines.append(f"peak memory beyond start: {result['peak memory beyond start, MB']:.1f} MB")
    lines.append("ratios (to reach)")
    lines += [f"  {title_of(*row):64}{result['ratios'][title_of(*row)]:>6} ({target})" for *row, target in TARGETS]
    lines.append("a put of a small file, in µs: with the system calls alone, beyond that")
    for kind, durability in SHARES:
        calls, whole = (1e6 / result[kind][f"{who}, {durability}"] for who in ("bare", "ours"))
        lines.append(f"  {kind.removesuffix('/s') + ', ' + durability:64}{calls:>7.1f} {whole - calls:>+7.1f}")
    lines.append("what is possible here, and how near we come")
    lines += [f"  {title_of(*row):64}{result['ratios'][title_of(*row)]:>6}" for row in POSSIBLE]
    return "\n".join(lines)


def title_of(kind: str, over: str, under: str) -> str:
    return f"{kind}: {over} / {under}"


if __name__ == "__main__":
    main()
