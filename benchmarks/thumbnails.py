"""How fast thumbnails are, against what else there is.

    python benchmarks/thumbnails.py [--rounds 3] [--only TEXT]

Each case is timed in processor time of one thread (a child's included), the contenders by turns in one run; read the
ratios, not the milliseconds. *fsworker* is the whole path with everything on: child, limits, orientation, profile,
stripping. *naive* is Pillow as most people write it: open, convert, ``thumbnail``, save, once for each size. *pipeline*
is ours without the child. ``convert`` and pyvips are in the table where they are installed.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).parents[1]))

from fsworker.specification import Format, Thumbnail
from fsworker.thumbnails import Limits, make_thumbnails
from fsworker.thumbnails.outcome import MemoryFile, Reporter
from fsworker.thumbnails.render import render

try:
    import pyvips
except ImportError:
    pyvips = None

SIZES = {"one (100)": (100,), "one (512)": (512,), "three": (100, 512, 1600)}
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


def cases(directory: Path) -> Iterator[tuple[str, Path]]:
    """Name and file of each picture."""
    shapes = {"12 MP": (4000, 3000), "24 MP": (6000, 4000), "48 MP": (8000, 6000)}
    for name, shape in shapes.items():
        path = directory / f"{name}.jpg".replace(" ", "")
        photograph(*shape).save(path, quality=85)
        yield f"JPEG {name}", path
    for name, options, shape in (
        ("progressive.jpg", {"quality": 85, "progressive": True}, (4000, 3000)),
        ("small.jpg", {"quality": 85}, (800, 600)),
        ("4k.png", {"compress_level": 3}, (3840, 2160)),
        ("12mp.webp", {"quality": 80, "method": 0}, (4000, 3000)),
        ("12mp.avif", {"quality": 60, "speed": 10}, (4000, 3000)),
    ):
        path = directory / name
        photograph(*shape).save(path, **options)
        yield name, path


def processor_s() -> float:
    """Processor time of this process and of its finished children."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


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


def naive(path: Path, sizes: tuple[int, ...], output: Format) -> None:
    for size in sizes:
        with Image.open(path) as image:
            image = image.convert("RGB")
            image.thumbnail((size, size), Image.Resampling.LANCZOS, reducing_gap=None)
            image.save(io.BytesIO(), output, quality=80)


def convert(path: Path, sizes: tuple[int, ...], output: Format) -> None:
    for size in sizes:
        subprocess.run(
            ["convert", path, "-resize", f"{size}x{size}", "-quality", "80", f"{output}:/dev/null"],
            check=True,
            env={**os.environ, "MAGICK_THREAD_LIMIT": "1"},
        )


def vips(path: Path, sizes: tuple[int, ...], output: Format) -> None:
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
        "naive": naive,
    }
    if (
        shutil.which("convert")
        and "ImageMagick" in subprocess.run(["convert", "-version"], capture_output=True, text=True, check=False).stdout
    ):
        found["convert"] = convert
    if pyvips is not None:
        os.environ["VIPS_CONCURRENCY"] = "1"
        pyvips.concurrency_set(1)
        pyvips.cache_set_max(0)
        found["pyvips"] = vips
    return found


def measure(path: Path, sizes: tuple[int, ...], output: Format, rounds: int) -> dict[str, float]:
    """The least processor time of each contender, in milliseconds.

    They take turns, each in a process of its own: what one has left in its heap would change what a fork of it costs.
    """
    best: dict[str, float] = {}
    for _ in range(rounds):
        for name in contenders():
            told = ["--measure", name, str(path), ",".join(map(str, sizes)), output]
            run = subprocess.run([sys.executable, __file__, *told], capture_output=True, text=True, check=True)
            best[name] = min(best.get(name, 1e9), float(run.stdout))
    return best


def measure_here(name: str, path: str, sizes: str, output: str) -> float:
    """The least of a few runs of one contender in this process."""
    contender, best = contenders()[name], 1e9
    for _ in range(4):
        before = processor_s()
        contender(Path(path), tuple(map(int, sizes.split(","))), output)  # type: ignore[arg-type]
        best = min(best, 1000 * (processor_s() - before))
    return best


def peak_memory_mb(path: Path) -> float:
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
    parser.add_argument("--only", default="", help="only pictures whose name contains this")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(measure_here(*options.measure))
        return
    names = list(contenders())
    print("ms of processor time (times faster than naive)")
    print(f"{'picture':16} {'sizes':10} {'out':5}" + "".join(f"{name:>18}" for name in names) + f"{'memory':>10}")
    with tempfile.TemporaryDirectory() as directory:
        for picture, path in cases(Path(directory)):
            if options.only.lower() not in picture.lower():
                continue
            memory = f"{peak_memory_mb(path):.0f} MiB"
            for label, sizes in SIZES.items():
                for output in ("jpeg", "webp"):
                    best = measure(path, sizes, output, options.rounds)
                    row = "".join(f"{best[name]:10.1f} ({best['naive'] / best[name]:4.2f})" for name in names)
                    print(f"{picture:16} {label:10} {output:5}{row}{memory:>10}", flush=True)


if __name__ == "__main__":
    main()
