"""How fast the store is verified, beside bare hashing and ``sha1sum``, in one run.

::

    python benchmarks/verify.py [--small 32000] [--large 8] [--rounds 5] [--part PART]… [--directory DIR]

The floor are two bare processes that open each file of a list made before and call ``hashlib.file_digest``: no directory is
listed, nothing is checked, nothing is spared. ``sha1sum`` runs as ``xargs -P2``. Every figure is the best of the rounds,
taken in turns, because machines are noisy: read the ratios, which are the medians of those within each round. The small
files lie in an eighth of the directories, as close together as in a store of eight times as many; a directory is listed once,
however many files it has. "Warm" is from the
page cache, "cold" after it was dropped for these files. Memory is the peak of one verifying process, of all it maps.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fsworker.store.create import create_store
from fsworker.store.objects import ObjectStore
from fsworker.verification.whole import Options, verify_all

MIB = 1 << 20
SMALL_BYTES = 4096
SMALL_PAIRS = 32
PACE_BYTES_S = 20e6

Contestant = Callable[[Path, list[str]], None]


# -- what is compared --------------------------------------------------------------------------------------------------


def floor(processes: int) -> Contestant:
    def hash_all(_: Path, files: list[str]) -> None:
        children = []
        for number in range(processes):
            if (pid := os.fork()) == 0:
                for path in files[number::processes]:
                    with open(path, "rb", buffering=0) as stream:
                        assert hashlib.file_digest(stream, "sha1").hexdigest() == path[-40:]
                os._exit(0)
            children.append(pid)
        assert all(os.waitpid(pid, 0)[1] == 0 for pid in children)

    return hash_all


def sha1sum(directory: Path, files: list[str]) -> None:
    names = directory / "names"
    names.write_text("\n".join(files))
    with names.open() as stream:
        command = ["xargs", "-P2", "-n", str(max(1, min(500, len(files) // 8))), "sha1sum"]
        subprocess.run(command, stdin=stream, stdout=subprocess.DEVNULL, check=True)


def ours(processes: int) -> Contestant:
    def verify(directory: Path, files: list[str]) -> None:
        found: list[object] = []
        with ObjectStore(directory / "store") as store:
            report = verify_all(store, Options(processes=processes), found.append)
        assert (report.files, found) == (len(files), []), found

    return verify


CONTESTANTS: dict[str, Contestant] = {
    "floor, 1 process": floor(1),
    "floor, 2 processes": floor(2),
    "sha1sum × 2": sha1sum,
    "ours, 1 process": ours(1),
    "ours, 2 processes": ours(2),
}


# -- measuring ---------------------------------------------------------------------------------------------------------


def contents(size: int, pairs: int) -> Iterator[bytes]:
    """Random pieces; where a file is one piece, only those that come to lie in the first ``pairs`` of 256 directories."""
    number = 0
    while True:
        data = os.urandom(min(size, MIB) - 8)
        begun = hashlib.sha1(data)
        while True:
            number += 1
            last = number.to_bytes(8, "big")
            whole = begun.copy()
            whole.update(last)
            if size > MIB or whole.digest()[0] < pairs:
                yield data + last
                break


def make_store(directory: Path, count: int, size: int, pairs: int = 256) -> list[str]:
    """A store of random files, made by hand."""
    create_store(directory / "store", apps=["benchmark"])
    files = []
    pieces = contents(size, pairs)
    for _ in range(count):
        data = next(pieces)
        digest = hashlib.sha1()
        temporary = directory / "temporary"
        with temporary.open("wb") as target:
            for _ in range(max(1, size // MIB)):
                target.write(data)
                digest.update(data)
        name = digest.hexdigest()
        path = directory / "store/Data" / name[:2] / name[2:4] / name
        for parent in (path.parent.parent, path.parent):
            if not parent.exists():
                parent.mkdir()
                parent.chmod(0o2750)
        temporary.rename(path)
        path.chmod(0o444)
        files.append(str(path))
    os.sync()
    return sorted(files)


def drop(files: list[str]) -> None:
    for path in files:
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def warm(files: list[str]) -> None:
    for path in files:
        with open(path, "rb") as stream:
            while stream.read(MIB):
                pass


def race(directory: Path, files: list[str], rounds: int, before: Callable[[list[str]], None]) -> list[dict[str, float]]:
    """Seconds of each contestant in each round. They start in another order each time."""
    results = []
    names = list(CONTESTANTS)
    for number in range(rounds):
        times = {}
        for name in names[number % len(names) :] + names[: number % len(names)]:
            before(files)
            begun_s = time.perf_counter()
            CONTESTANTS[name](directory, files)
            times[name] = time.perf_counter() - begun_s
        results.append(times)
    return results


def summed_up(results: list[dict[str, float]], amount: float) -> dict[str, Any]:
    rates = {name: round(amount / min(times[name] for times in results), 1) for name in CONTESTANTS}

    def ratio(slow: str, fast: str) -> float:
        return round(statistics.median(times[slow] / times[fast] for times in results), 2)

    return {
        "rates": rates,
        "ours : floor, 2 processes": ratio("floor, 2 processes", "ours, 2 processes"),
        "ours : floor, 1 process": ratio("floor, 1 process", "ours, 1 process"),
        "ours : sha1sum × 2": ratio("sha1sum × 2", "ours, 2 processes"),
        "noise": round(
            max(t["floor, 2 processes"] for t in results) / min(t["floor, 2 processes"] for t in results), 2
        ),
    }


PEAK = """
import os, re, sys
from fsworker.store.objects import ObjectStore
from fsworker.verification.whole import Options, verify_all
rate = float(sys.argv[2]) or None
report = verify_all(ObjectStore(sys.argv[1]), Options(processes=1, rate_bytes_s=rate), print)
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
print(peak, report.size_bytes, report.took_s)
"""


def alone(directory: Path, rate_bytes_s: float = 0) -> tuple[int, int, float]:
    """A verification in a process of its own: its peak memory in bytes, what it read, the seconds it took."""
    command = [sys.executable, "-c", PEAK, str(directory / "store"), str(rate_bytes_s)]
    peak, size, took = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return int(peak), int(size), float(took)


def measure_files(
    base: Path, title: str, count: int, size: int, unit: float, rounds: int, pairs: int = 256
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    kind = title.split()[0]
    directory = base / kind
    directory.mkdir()
    files = make_store(directory, count, size, pairs)
    for state, before in (("cold", drop), ("warm", warm)):
        result[f"{title}, {state}"] = summed_up(race(directory, files, rounds, before), count * unit)
    result[f"peak memory, {kind}, MiB"] = round(alone(directory)[0] / MIB, 1)
    return result


def measure_pace(base: Path) -> dict[str, Any]:
    pace = base / "pace"
    pace.mkdir()
    make_store(pace, 40, 4 * MIB)
    _, size, took_s = alone(pace, PACE_BYTES_S)
    return {"pace of 20 MB/s, MB/s": round(size / took_s / 1e6, 2)}


def measure(base: Path, options: argparse.Namespace) -> dict[str, Any]:
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "small": lambda: measure_files(
            base, "small files, files/s", options.small, SMALL_BYTES, 1.0, options.rounds, SMALL_PAIRS
        ),
        "large": lambda: measure_files(
            base,
            "large files, MB/s",
            options.large,
            options.large_bytes,
            options.large_bytes / 1e6,
            options.rounds,
        ),
        "pace": lambda: measure_pace(base),
    }
    result: dict[str, Any] = {}
    for name in options.part or parts:
        result |= parts[name]()
    return result


def describe(result: dict[str, Any]) -> str:
    lines = []
    for title, value in result.items():
        if isinstance(value, dict):
            lines += [title, *(f"  {name:28}{rate:>14,.1f}" for name, rate in value["rates"].items())]
            lines += [f"  {name:28}{ratio:>14}" for name, ratio in value.items() if name != "rates"]
        else:
            lines.append(f"{title:30}{value:>14}")
    return "\n".join(
        [*lines, "to reach: 0.9 of the floor and 2 × sha1sum on large files, 0.7 on small; 64 MiB; 18 to 22 MB/s"]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=int, default=32_000)
    parser.add_argument("--large", type=int, default=8)
    parser.add_argument("--large-bytes", type=int, default=256 * MIB)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--part", action="append", choices=["small", "large", "pace"], help="only this; may be repeated"
    )
    parser.add_argument("--directory", help="where to work (default: the system's temporary directory)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="fsworker-benchmark-") as name:
        result = measure(Path(name), options)
    print(json.dumps(result, indent=2) if options.json else describe(result))


if __name__ == "__main__":
    main()
