"""Publish, mark and dry run at scale: ``python benchmarks/collection.py [--millions 1 10] [--names 1000000] [--files 1000000]``.

Three applications publish as many hashes each to an embedded server; a collection marks them against the names of a
store; a dry run goes over real files, beside listing and stat-ing the same files. Beside it the same hashes as Redis
sets. Each measured step is a process of its own, whose peak RSS is given. What is shown: entries a second, bytes of Redis's
memory for each hash and generation, the slowest command.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1])]

from fsworker.broker.kv import KV, connect  # noqa: E402
from fsworker.broker.names import Names  # noqa: E402
from fsworker.collection.collector import Collector  # noqa: E402
from fsworker.config import Settings  # noqa: E402
from fsworker.host.embedded import EmbeddedServer  # noqa: E402
from fsworker.keepsets.form import unpack  # noqa: E402
from fsworker.keepsets.publish import KeepSets  # noqa: E402
from fsworker.keepsets.reader import KeepReader  # noqa: E402
from fsworker.store.facade import Store  # noqa: E402

APPS = ("blog", "shop", "wiki")
BLOCK = 65536


class Source:
    """So many random hashes, the same for a seed. ``seconds`` and ``cpu_s``: what making them took, nobody's work."""

    def __init__(self, seed: int, count: int) -> None:
        self.seed, self.count = seed, count
        self.seconds = self.cpu_s = 0.0

    def __iter__(self) -> Iterator[bytes]:
        source, left = random.Random(self.seed), self.count
        while left > 0:
            began_s, began_cpu_s = time.perf_counter(), time.process_time()
            block = unpack(source.randbytes(20 * min(BLOCK, left)))
            self.seconds += time.perf_counter() - began_s
            self.cpu_s += time.process_time() - began_cpu_s
            left -= len(block)
            yield from block


# -- the steps; each runs in a process of its own


def step_publish(url: str, app: str, count: int, store_id: str) -> dict[str, float]:
    keep = KeepSets(app, Names(), store_id, lambda: KV(url))
    source = Source(APPS.index(app), count)
    started_s, cpu_s = time.perf_counter(), time.process_time()
    keep.publish(lambda: iter(source))
    return spent(count, source, started_s, cpu_s)


def spent(count: int, source: Source, started_s: float, cpu_s: float) -> dict[str, float]:
    """What a step took, without making its hashes."""
    return {
        "entries_s": count / (time.perf_counter() - started_s - source.seconds),
        "cpu_s": time.process_time() - cpu_s - source.cpu_s,
    }


def step_nothing() -> dict[str, float]:
    return {}


def step_sadd(url: str, count: int, kind: str) -> dict[str, float]:
    client = connect(url)
    started_s, cpu_s = time.perf_counter(), time.process_time()
    lists: dict[str, list[Any]] = {}
    pipe = client.pipeline(transaction=False)
    source = Source(0, count)
    for number, name in enumerate(source, 1):
        key = f"{kind}:0:{name[0]:02x}" if kind == "raw" else f"{kind}:0"
        lists.setdefault(key, []).append(name if kind == "raw" else name.hex())
        if number % (256 * 500) == 0 or number == count:
            for key, members in lists.items():
                for start in range(0, len(members), 1000):
                    pipe.sadd(key, *members[start : start + 1000])
            pipe.execute()
            lists.clear()
    return spent(count, source, started_s, cpu_s)


def step_mark(url: str, names: int, count: int) -> dict[str, float]:
    reader = KeepReader(KV(url), Names())
    manifests = [found.manifest for found in reader.find(list(APPS)) if found.manifest is not None]
    source = random.Random(1)
    seconds, kept = 0.0, 0
    for shard in range(256):
        kept_ones = unpack(next(reader.parts(manifests[0], shard)))[: names // 512]
        mine = {*kept_ones, *(bytes([shard]) + source.randbytes(19) for _ in range(names // 256 - len(kept_ones)))}
        began_s = time.perf_counter()
        kept += len(set[bytes]().union(*(reader.marked(manifest, shard, mine) for manifest in manifests)))
        seconds += time.perf_counter() - began_s
    return {"kept_hashes_s": len(APPS) * count / seconds, "names_s": names / seconds, "kept": kept}


def step_list_and_stat(store: str) -> dict[str, float]:
    started_s, count = time.perf_counter(), 0
    with Store(store) as opened:
        for name in opened:
            opened.status(name)
            count += 1
    return {"names_s": count / (time.perf_counter() - started_s), "seconds": time.perf_counter() - started_s}


def step_dry_run(store: str, url: str) -> dict[str, float]:
    started_s = time.perf_counter()
    with Store(store) as opened:
        collector = Collector(opened, KeepReader(KV(url), Names()), Settings(), ["max_trash"])
        tally = collector.dry_run().tally
    seconds = time.perf_counter() - started_s
    return {"names_s": tally.files / seconds, "seconds": seconds, "trash": tally.trash, "kept": tally.kept}


STEPS = {
    "publish": step_publish,
    "nothing": step_nothing,
    "sadd": step_sadd,
    "mark": step_mark,
    "list_and_stat": step_list_and_stat,
    "dry_run": step_dry_run,
}


def run(step: str, *arguments: Any) -> dict[str, float]:
    """Do a step in a process of its own, and add its peak RSS in MiB."""
    done = subprocess.run(
        [sys.executable, __file__, "--step", step, json.dumps(arguments)], stdout=subprocess.PIPE, check=True
    )
    return dict(json.loads(done.stdout))


# -- the run


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--millions", type=float, nargs="*", default=[1.0, 10.0])
    parser.add_argument("--names", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--directory", type=Path, help="Where the store and the server's data are made.")
    parser.add_argument("--step", nargs=2)
    options = parser.parse_args()
    if options.step:
        result = STEPS[options.step[0]](*json.loads(options.step[1]))  # type: ignore[operator]
        print(json.dumps({**result, "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
        return
    directory = Path(tempfile.mkdtemp(prefix="collection-", dir=options.directory))
    try:
        for millions in options.millions:
            with EmbeddedServer.start(directory / "redis") as server:
                at_scale(server.url, int(millions * 10**6), options.names, sets=millions <= 1)
            shutil.rmtree(directory / "redis")
        if options.files:
            with EmbeddedServer.start(directory / "redis") as server:
                over_files(directory / "store", server.url, options.files)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def at_scale(url: str, count: int, names: int, *, sets: bool) -> None:
    client = connect(url)
    client.config_set("slowlog-log-slower-than", 1000)
    print(f"\n{count:,} hashes in each of {len(APPS)} keep-sets, {names:,} names")
    empty = memory(client)
    for app in APPS:
        before_s = server_cpu_s(client)
        done = run("publish", url, app, count, "0" * 32)
        tell_writing(f"publish {app}", done, server_cpu_s(client) - before_s, count)
        print(f"  {'':34} peak RSS {done['rss_mib']:.0f} MiB")
    print(f"  {'Redis for a hash and generation':34} {(memory(client) - empty) / len(APPS) / count:6.1f} bytes")
    tell_slowest(client, "publish")
    commit = client.info("commandstats")["cmdstat_exec"]
    print(f"  {'commit (EXEC), mean':34} {commit['usec_per_call'] / 1000:.1f} ms")
    done = run("mark", url, names, count)
    base = run("nothing")["rss_mib"]
    print(
        f"  {'mark':34} {done['kept_hashes_s'] / 1e6:6.2f} M kept hashes/s, {done['names_s']:,.0f} names/s, "
        f"peak RSS {done['rss_mib']:.0f} MiB (of which {base:.0f} is Python)"
    )
    tell_slowest(client, "mark")
    if sets:
        for kind in ("raw", "hex"):
            before, before_s = memory(client), server_cpu_s(client)
            done = run("sadd", url, count, kind)
            tell_writing(f"SADD {kind}", done, server_cpu_s(client) - before_s, count)
            print(f"  {'':34} {(memory(client) - before) / count:.1f} bytes a hash")
        started_s = time.perf_counter()
        client.sunionstore("union", "hex:0", "hex:0")
        print(
            f"  {'SUNIONSTORE of one hex set':34} {time.perf_counter() - started_s:6.2f} s, in which Redis does nothing else"
        )
    client.close()


def tell_writing(what: str, done: dict[str, float], server_s: float, count: int) -> None:
    """Entries a second, and the processor time behind it, which depends less on what else runs on the machine."""
    print(
        f"  {what:34} {done['entries_s'] / 1e6:6.2f} M/s   processor seconds a million: client "
        f"{done['cpu_s'] / count * 1e6:.2f}, server {server_s / count * 1e6:.2f}"
    )


def server_cpu_s(client: Any) -> float:
    """Processor time that the server has used."""
    info = client.info("cpu")
    return float(info["used_cpu_sys"] + info["used_cpu_user"])


def tell_slowest(client: Any, what: str) -> None:
    """The slowest command since the last call."""
    slow = client.slowlog_get(128)
    worst = max(slow, key=lambda entry: entry["duration"], default=None)
    text = "under 1 ms" if worst is None else f"{worst['duration'] / 1000:.1f} ms ({worst['command'][:30].decode()})"
    print(f"  {'slowest command of ' + what:34} {text}")
    client.slowlog_reset()


def memory(client: Any) -> int:
    """The server's memory in use, without what it needs for clients and its log."""
    client.memory_purge()
    return int(client.info("memory")["used_memory_dataset"]) + int(client.info("memory")["used_memory_overhead"])


def over_files(root: Path, url: str, count: int) -> None:
    """A store of links to one file after another (the names count), of which half are kept."""
    print(f"\na dry run over {count:,} files")
    with Store.create(root, apps=APPS, grace_s=0.0) as store:
        started_s = time.perf_counter()
        make_files(store, count)
        print(f"  {'made in':34} {time.perf_counter() - started_s:6.1f} s")
        store_id = store.config.store_id
    for app in APPS:
        KeepSets(app, Names(), store_id, lambda: KV(url)).publish(lambda: iter(Source(0, count // 2)))
    listed = min((run("list_and_stat", str(root)) for _ in range(2)), key=lambda done: done["seconds"])
    print(f"  {'list and stat':34} {listed['seconds']:6.1f} s   {listed['names_s']:,.0f} names/s")
    dry = min((run("dry_run", str(root), url) for _ in range(2)), key=lambda done: done["seconds"])
    print(
        f"  {'dry run':34} {dry['seconds']:6.1f} s   {dry['names_s']:,.0f} names/s, {dry['seconds'] / listed['seconds']:.2f} "
        f"times as long, peak RSS {dry['rss_mib']:.0f} MiB"
    )


def make_files(store: Store, count: int) -> None:
    source = store.root / "Temp/source"
    for number, raw in enumerate(Source(0, count)):
        if number % 60_000 == 0:
            source.unlink(missing_ok=True)
            source.touch(mode=0o444)
        name = raw.hex()
        target = store.root / "Data" / name[:2] / name[2:4] / name
        try:
            os.link(source, target)
        except FileNotFoundError:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(source, target)
    source.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
