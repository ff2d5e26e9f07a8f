"""Peak memory of one large upload, in the client and in every process of the stack: ``python benchmarks/memory.py [GiB]``.

The bytes are made as they are read, so what is counted is fsworker's own. Peak is ``VmHWM`` (resident) of each process;
what shared libraries and the interpreter take is in it.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from stacks import RunningStack, running_stack

PIECE = random.Random(1).randbytes(1 << 20)


class Endless:
    """A stream of ``size`` bytes."""

    def __init__(self, size: int) -> None:
        self.left = size
        self.sha1 = hashlib.sha1(usedforsecurity=False)

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes."""
        data = PIECE[: min(size, self.left, len(PIECE))]
        self.left -= len(data)
        self.sha1.update(data)
        return data


def peak_kib(pid: int | str) -> int:
    """The peak resident size of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    return 0


def below(pid: int) -> list[int]:
    """All processes below one."""
    found = []
    with suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found += [int(child), *below(int(child))]
    return found


def workers(stack: RunningStack) -> dict[int, int]:
    """Peak of each process of the ingest worker, by process id."""
    peaks = {}
    for pid in below(stack.process.pid):
        with suppress(OSError):
            if b"--role=ingest" in Path(f"/proc/{pid}/cmdline").read_bytes():
                peaks[pid] = peak_kib(pid)
    return peaks


def main() -> None:
    """Run and print one JSON object."""
    size = int(float(sys.argv[1] if len(sys.argv) > 1 else "2") * 2**30)
    with tempfile.TemporaryDirectory(prefix="fsworker-memory-") as directory, running_stack(Path(directory)) as stack:
        client = stack.client()
        client.ingest(b"warm").get()
        before, stream = peak_kib("self"), Endless(size)
        started_s = time.monotonic()
        job = client.ingest(stream)
        dropped_s = time.monotonic()
        result = job.get(timeout=900)
        assert result.hash == stream.sha1.hexdigest()
        report = {
            "bytes": size,
            "client_peak_mib": round(peak_kib("self") / 1024, 1),
            "client_before_mib": round(before / 1024, 1),
            "worker_peaks_mib": sorted((round(peak / 1024, 1) for peak in workers(stack).values()), reverse=True),
            "drop_s": round(dropped_s - started_s, 1),
            "ingest_s": round(time.monotonic() - dropped_s, 1),
        }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
