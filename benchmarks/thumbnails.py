"""How fast thumbnails are, against what else there is.

    python benchmarks/thumbnails.py [--rounds 3] [--only TEXT[,TEXT…]] [--out jpeg[,webp]]

Each case is timed in processor time of one thread (a child's included), the contenders by turns in one run; read the
ratios, not the milliseconds. *fsworker* is the whole path with everything on: fork server, child, limits, orientation,
profile, stripping; the server's own time counts. *naive* is Pillow as most people write it: open, convert, ``thumbnail``,
save, once for each size. *pipeline* is ours without the child, so the difference is what the child costs (*child ms*).
*bare ms* is the same for a bare fork of the smallest process that has the decoders, without any limit: no process for
each picture can cost less on this machine. *alone ms* is how much longer, by the clock, a picture waits for the child if it
comes after a pause: a spare process was made ready in that. ``convert`` and pyvips are in the table where
they are installed: ``pip install --target DIRECTORY pyvips pyvips-binary``, and that directory in ``PYTHONPATH``.
pyvips decodes for the largest size and makes each smaller one from the larger.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import io
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).parents[1]))

from fsworker.specification import Format, Thumbnail
from fsworker.thumbnails import Limits, make, make_thumbnails, start_fork_server, warm_up
from fsworker.thumbnails.outcome import MemoryFile, Reporter
from fsworker.thumbnails.render import render

HAS_PYVIPS = importlib.util.find_spec("pyvips") is not None  # not loaded where it would be forked for nothing
SIZES = {"one (100)": (100,), "one (512)": (512,), "three": (100, 512, 1600)}
PAUSE_S = 0.2  # in which the fork server makes a spare
LIMITS = Limits(max_pixels=60_000_000, memory_bytes=2**30)


def photograph(width: int, height: int) -> Image.Image:
    """Something with the entropy of a photograph: soft shapes, edges and a little noise."""
    small = Image.effect_noise((width // 16, height // 16), 60).resize((width, height), Image.Resampling.BICUBIC)
    grain = Image.effect_noise((width, height), 12)
    image = Image.merge(
        "RGB",
        (
            small,
            Image.blend(small, grain, 0.3),
            Image.blend(small.transpose(Image.Transpose.FLIP_LEFT_RIGHT), grain, 0.2),
        ),
    )
    draw = ImageDraw.Draw(image)
    for step in range(0, width, max(1, width // 40)):
        draw.line((step, 0, width - step, height), fill=(step % 256, 90, 160), width=max(1, width // 500))
    return image


CASES: dict[str, tuple[str, tuple[int, int], dict[str, Any]]] = {
    "JPEG 12 MP": ("12mp.jpg", (4000, 3000), {"quality": 85}),
    "JPEG 24 MP": ("24mp.jpg", (6000, 4000), {"quality": 85}),
    "JPEG 48 MP": ("48mp.jpg", (8000, 6000), {"quality": 85}),
    "progressive.jpg": ("progressive.jpg", (4000, 3000), {"quality": 85, "progressive": True}),
    "small.jpg": ("small.jpg", (800, 600), {"quality": 85}),
    "4k.png": ("4k.png", (3840, 2160), {"compress_level": 3}),
    "12mp.webp": ("12mp.webp", (4000, 3000), {"quality": 80, "method": 0}),
    "12mp.avif": ("12mp.avif", (4000, 3000), {"quality": 60, "speed": 10}),
}


PHOTOGRAPH = Path(__file__).parents[2] / "shared" / "corpus" / "images" / "phone-12mp-mpo.jpg"
"""A telephone's: with EXIF, a second picture, and colours at half the width only (4:2:2)."""


def cases(directory: Path, only: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """Name and file of each picture whose name contains one of ``only``; the photograph only where it is."""
    if PHOTOGRAPH.exists() and any(text.lower() in "photograph" for text in only):
        yield "photograph", PHOTOGRAPH
    for name, (file, shape, options) in CASES.items():
        if any(text.lower() in name.lower() for text in only):
            photograph(*shape).save(directory / file, **options)
            yield name, directory / file


def processor_s() -> float:
    """Processor time of this process, of its finished children, and of its fork server."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    server_s = make._server.processor_s if make._server is not None else 0.0
    return sum(usage.ru_utime + usage.ru_stime for usage in both) + server_s


def ours(path: Path, sizes: tuple[int, ...], output: Format) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        wishes = {str(size): Thumbnail(f"{size}x{size}", format=output) for size in sizes}
        outcome = make_thumbnails(fd, wishes, LIMITS)
        assert not outcome.failed, outcome.failed
        for made in outcome.made.values():
            made.read()
    finally:
        os.close(fd)


def pipeline(path: Path, sizes: tuple[int, ...], output: Format) -> None:
    fd = os.open(path, os.O_RDONLY)
    report, data = MemoryFile("report"), MemoryFile("data")
    wishes = {str(size): Thumbnail(f"{size}x{size}", format=output) for size in sizes}
    render(fd, wishes, LIMITS, Reporter(report.fd, data.fd))
    os.close(fd)


def forked(path: Path, sizes: tuple[int, ...], output: Format) -> None:
    child = os.fork()
    if child == 0:
        pipeline(path, sizes, output)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def naive(path: Path, sizes: tuple[int, ...], output: Format) -> None:
    for size in sizes:
        with Image.open(path) as image:
            image = image.convert("RGB")
            image.thumbnail((size, size), Image.Resampling.LANCZOS, reducing_gap=None)
            image.save(io.BytesIO(), output, quality=80)


def find_convert() -> str | None:
    """ImageMagick's own program: some other of this name, or a script around it, may come first in the path."""
    for directory in os.get_exec_path():
        program = Path(directory) / "convert"
        if os.access(program, os.X_OK) and program.read_bytes()[:4] == b"\x7fELF":
            told = subprocess.run([program, "-version"], capture_output=True, text=True, check=False).stdout
            if "ImageMagick" in told:
                return str(program)
    return None


CONVERT = find_convert()


def convert(path: Path, sizes: tuple[int, ...], output: Format) -> None:
    for size in sizes:
        subprocess.run(
            [str(CONVERT), path, "-resize", f"{size}x{size}", "-quality", "80", f"{output}:/dev/null"],
            check=True,
            env={**os.environ, "MAGICK_THREAD_LIMIT": "1"},
        )


def vips(path: Path, sizes: tuple[int, ...], output: Format) -> None:
    import pyvips

    image = None
    for size in sorted(sizes, reverse=True):
        if image is None:
            image = pyvips.Image.thumbnail(str(path), size, height=size, size="down").copy_memory()
            made = image
        else:
            made = image.thumbnail_image(size, height=size, size="down")
        options = {"effort": 2} if output == "webp" else {}
        made.write_to_buffer(f".{output}", Q=80, strip=True, **options)


def contenders() -> dict[str, Callable[[Path, tuple[int, ...], Format], None]]:
    """Who is here to be measured."""
    found: dict[str, Callable[[Path, tuple[int, ...], Format], None]] = {
        "fsworker": ours,
        "pipeline": pipeline,
        "forked": forked,
        "naive": naive,
    }
    if CONVERT is not None:
        found["convert"] = convert
    if HAS_PYVIPS:
        found["pyvips"] = vips
    return found


def measure(path: Path, sizes: tuple[int, ...], output: Format, rounds: int) -> dict[str, float]:
    """The least processor time of each contender, in milliseconds; of those "-alone", the least time by the clock.

    They take turns, each in a process of its own: what one has left in its heap would change what a fork of it costs.
    """
    best: dict[str, float] = {}
    for _ in range(rounds):
        for name in (*contenders(), "fsworker-alone", "pipeline-alone"):
            told = in_a_process(name, str(path), ",".join(map(str, sizes)), output)
            best[name] = min(best.get(name, 1e9), told)
    return best


def in_a_process(*told: str) -> float:
    """What :func:`measure_here` finds in a process of its own."""
    run = subprocess.run([sys.executable, __file__, "--measure", *told], capture_output=True, text=True, check=True)
    return float(run.stdout)


def measure_here(name: str, path: str, sizes: str, output: str) -> float:
    """The least of some runs of one contender in this process: at least three, and two seconds of them.

    *name*-alone: in milliseconds by the clock, with a pause before each, and three seconds of them. "memory": in MiB.
    """
    if name == "memory":
        return peak_memory_mib(Path(path))
    name, _, alone = name.partition("-")
    contender, best = contenders()[name], 1e9
    if name == "fsworker":
        start_fork_server()
    elif name in ("pipeline", "forked"):
        warm_up()  # as the fork server does before its first picture
        gc.collect()
        gc.freeze()
    elif name == "pyvips":
        import pyvips

        pyvips.concurrency_set(1)
        pyvips.cache_set_max(0)
    clock = time.perf_counter if alone else processor_s
    runs, ends_s = 0, time.monotonic() + (3 if alone else 2)
    while runs < 3 or time.monotonic() < ends_s:
        runs += 1
        if alone:
            time.sleep(PAUSE_S)
        before = clock()
        contender(Path(path), tuple(map(int, sizes.split(","))), output)  # type: ignore[arg-type]
        best = min(best, 1000 * (clock() - before))
    return best


def peak_memory_mib(path: Path) -> float:
    """The most memory that the child had on top of what it was forked with, three sizes."""
    fd = os.open(path, os.O_RDONLY)
    wishes = {str(size): Thumbnail(f"{size}x{size}", format="jpeg") for size in SIZES["three"]}
    try:
        low, high = 1, 1024
        while low < high:  # by what it needs to succeed: exact, and no sampling
            middle = (low + high) // 2
            enough = not make_thumbnails(fd, wishes, Limits(max_pixels=10**8, memory_bytes=middle * 2**20)).failed
            low, high = (low, middle) if enough else (middle + 1, high)
    finally:
        os.close(fd)
    return low


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="only pictures whose name contains one of these, comma-separated")
    parser.add_argument("--out", default="jpeg,webp", help="output formats, comma-separated")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(measure_here(*options.measure))
        return
    names = list(contenders())
    print("ms of processor time (times faster than naive); then fsworker against the others, and the child's cost")
    against = [name for name in ("convert", "pyvips") if name in names]
    head = "".join(f"{name:>18}" for name in names) + "".join(f"{f'of {name}':>12}" for name in against)
    print(f"{'picture':16} {'sizes':10} {'out':5}{head}{'child ms':>10}{'bare ms':>9}{'alone ms':>10}{'memory':>10}")
    with tempfile.TemporaryDirectory() as directory:
        for picture, path in cases(Path(directory), options.only.split(",")):
            memory = f"{in_a_process('memory', str(path), '', ''):.0f} MiB"
            for label, sizes in SIZES.items():
                for output in options.out.split(","):
                    best = measure(path, sizes, output, options.rounds)
                    row = "".join(f"{best[name]:10.1f} ({best['naive'] / best[name]:5.2f})" for name in names)
                    row += "".join(f"{best[name] / best['fsworker']:11.2f}x" for name in against)
                    row += f"{best['fsworker'] - best['pipeline']:10.1f}{best['forked'] - best['pipeline']:9.1f}"
                    row += f"{best['fsworker-alone'] - best['pipeline-alone']:10.1f}"
                    print(f"{picture:16} {label:10} {output:5}{row}{memory:>10}", flush=True)


if __name__ == "__main__":
    main()
