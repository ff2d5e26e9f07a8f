"""The pipeline: one open picture in, thumbnails out. This is the engine that runs in the limited process.

Sizes are computed in upright space, boxes and pixels are handled as stored, and only the small result is turned.

*A thumbnail depends on the picture and its own specification alone*, never on what else was asked for along with it:
else the same thumbnail would be stored in as many variants as there are applications. So thumbnails are not made one
from another. They share a decode at a scale that follows from the picture: a JPEG of many megapixels has two such, one
for small thumbnails and one for large, and only what is larger still has its own.
"""

from __future__ import annotations

import errno
import io
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, cast

from PIL import Image, UnidentifiedImageError

from fsworker.errors import ImageError
from fsworker.specification import Thumbnail
from fsworker.thumbnails.animation import render_animation
from fsworker.thumbnails.colour import Convert, colour_space, srgb_converter, to_resizable
from fsworker.thumbnails.decode import TRANSPOSE, Source, decode, open_source, set_up
from fsworker.thumbnails.encode import MEDIA_TYPE, check_size, choose_format, encode
from fsworker.thumbnails.formats import SIGNATURE_BYTES, sniff
from fsworker.thumbnails.limits import Limits
from fsworker.thumbnails.outcome import MemoryFile, Reporter
from fsworker.thumbnails.resize import region_of, resize
from fsworker.thumbnails.source import SourceFile

SHARED_LONG_SIDES_PX = (500, 2000)
"""A JPEG is decoded at the smallest scale that leaves at least this much: for thumbnails up to 400, and up to 1600."""
DRAFT_GAP = 1.25
"""How much larger than a thumbnail its JPEG's decode must be, or the scaled decode's own filter would show."""

_WARM_UP_ROUNDS = 10  # CPython specialises byte code after eight


RenderOne = Callable[[Thumbnail], tuple[bytes, str, int, int]]
"""Makes one thumbnail of decoded pixels: its bytes, media type, width and height."""


def render(fd: int, specifications: Mapping[str, Thumbnail], limits: Limits, reporter: Reporter) -> None:
    """Report the picture behind ``fd`` and a verdict for each specification.

    Never raises for what is in the file, but may die of it; :mod:`~fsworker.thumbnails.child` sees to that.
    """
    set_up()
    raw = SourceFile(fd)
    stream = cast("BinaryIO", io.BufferedReader(raw, 2**16))
    waiting = dict(specifications)
    try:
        _render(stream, waiting, limits, reporter)
    except Exception as error:  # noqa: BLE001 - decoders raise anything: a SyntaxError is a broken PNG
        for name in waiting:
            reporter.failed(name, reason_of(error, limits))
    if raw.error is not None:
        reporter.input_error(raw.error)


def warm_up(rounds: int = _WARM_UP_ROUNDS) -> None:
    """Run the pipeline on a small picture of our own, so that each process forked from this one finds it run in.

    Else every such process resolves the same symbols, fills the same caches and specialises the same byte code anew, on
    pages that it has to copy for that. Costs some ten milliseconds, once; leaves Pillow's settings as they were.
    """
    stream, before = io.BytesIO(), Image.MAX_IMAGE_PIXELS
    Image.linear_gradient("L").resize((96, 64)).convert("RGB").save(stream, "JPEG")
    report, output = MemoryFile("fsworker-report"), MemoryFile("fsworker-thumbnails")
    os.pwrite(output.fd, stream.getvalue(), 0)
    reporter = Reporter(report.fd, report.fd)
    try:
        for _ in range(rounds):
            source = cast("BinaryIO", io.BufferedReader(SourceFile(output.fd), 2**16))
            _render(source, {"a": Thumbnail("20x20"), "b": Thumbnail("30x30", format="webp")}, Limits(), reporter)
    finally:
        Image.MAX_IMAGE_PIXELS = before
        report.close()
        output.close()


def _render(stream: BinaryIO, waiting: dict[str, Thumbnail], limits: Limits, reporter: Reporter) -> None:
    """As :func:`render`, but raises; what is taken in hand is removed from ``waiting``."""
    name = sniff(stream.read(SIGNATURE_BYTES))
    if name is None:
        raise ImageError("not a picture")
    source = open_source(name, stream, limits)
    reporter.picture(source.picture)
    for names, decode_them in _plan(source, waiting, limits):
        _render_together({name: waiting.pop(name) for name in names}, decode_them, limits, reporter)


def _render_together(
    wanted: Mapping[str, Thumbnail], decode_them: Callable[[], RenderOne], limits: Limits, reporter: Reporter
) -> None:
    """Make the thumbnails that share a decode, and report each; one's failure is not another's."""
    try:
        render_one = decode_them()
    except Exception as error:  # noqa: BLE001 - as in render
        for name in wanted:
            reporter.failed(name, reason_of(error, limits))
        return
    for name, thumbnail in wanted.items():
        try:
            reporter.made(name, *render_one(thumbnail))
        except Exception as error:  # noqa: BLE001 - as in render; encoders do so, too
            reporter.failed(name, reason_of(error, limits))


def _plan(
    source: Source, wanted: Mapping[str, Thumbnail], limits: Limits
) -> Iterator[tuple[list[str], Callable[[], RenderOne]]]:
    """Which thumbnails share which decode: names, and what decodes for them and returns what makes each."""
    by_scale = defaultdict(list)
    animated = []
    for name, thumbnail in wanted.items():
        if thumbnail.animated and source.animated:
            animated.append(name)
        else:
            by_scale[_scale(source, thumbnail)].append(name)
    for scale, names in sorted(by_scale.items(), reverse=True):
        yield names, partial(_decode_still, source, limits, scale)
    if animated:
        yield animated, lambda: partial(render_animation, source, limits=limits)


def _scale(source: Source, thumbnail: Thumbnail) -> int:
    """At which part of its size (1, 2, 4 or 8) to decode for this thumbnail."""
    if source.scans is None:  # no JPEG
        return 1
    needed = region_of(thumbnail, source).scale * DRAFT_GAP
    shared = _shared_scales(max(source.size), source.scans.single)
    return next((scale for scale in shared if 1 / scale >= needed), _largest_scale(needed))


def _shared_scales(long_side: int, cheap: bool) -> tuple[int, ...]:
    """The scales that are decoded for whatever fits them, the smallest picture first.

    One for all where a second saves less than it costs: below a quarter of the size nearly all time goes into reading
    the coefficients, whatever is then made of them, and a progressive picture is always read whole.
    """
    small, large = (_largest_scale(side / long_side) for side in SHARED_LONG_SIDES_PX)
    return (small, large) if cheap and small > large and large <= 2 else (large,)


def _largest_scale(needed: float) -> int:
    return next((scale for scale in (8, 4, 2) if 1 / scale >= needed), 1)


@dataclass(frozen=True, slots=True)
class _Still:
    """Decoded pixels that all thumbnails of one scale are made from."""

    source: Source
    pixels: Image.Image
    factors: tuple[float, float]
    to_srgb: Convert
    limits: Limits

    def render(self, thumbnail: Thumbnail) -> tuple[bytes, str, int, int]:
        """The bytes, media type, width and height of one thumbnail."""
        region = region_of(thumbnail, self.source)
        transparent = self.pixels.mode in ("La", "RGBa")
        image_format = choose_format(thumbnail, self.source.format, transparent, animated=False)
        check_size(image_format, *region.size, self.limits.max_pixels)
        image = self.to_srgb(resize(self.pixels, region, self.factors))
        if self.source.orientation in TRANSPOSE:
            image = image.transpose(TRANSPOSE[self.source.orientation])
        return encode(image, image_format, thumbnail), MEDIA_TYPE[image_format], *image.size


def _decode_still(source: Source, limits: Limits, scale: int) -> RenderOne:
    image, factors = decode(source, limits, scale)
    space = colour_space(image)
    pixels = to_resizable(image)
    return _Still(source, pixels, factors, srgb_converter(space, pixels.mode), limits).render


def reason_of(error: BaseException, limits: Limits) -> str:
    """What an exception of a decoder means, in words."""
    if isinstance(error, ImageError):
        return str(error)
    said = str(error).lower()
    short = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    if short or "out of memory" in said or "insufficient memory" in said or "memory allocation" in said:
        return f"needs more than {limits.memory_bytes / 2**20:.0f} MiB of memory"
    if isinstance(error, UnidentifiedImageError):
        return "the picture is broken: its headers make no sense"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"the picture has more than {limits.max_pixels / 1e6:g} megapixels"
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return f"the thumbnails have more than {limits.output_bytes / 2**20:g} MiB together"
    return f"the picture is broken: {error or type(error).__name__}"
