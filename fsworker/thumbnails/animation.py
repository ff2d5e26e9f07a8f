"""Animated thumbnails: every frame of an animation, whole and in colour, resized like a still."""

from __future__ import annotations

from PIL import Image

from fsworker.errors import ImageError
from fsworker.specification import Thumbnail
from fsworker.thumbnails.colour import colour_space, srgb_converter, to_resizable
from fsworker.thumbnails.decode import TRANSPOSE, Source, check_pixels
from fsworker.thumbnails.encode import MEDIA_TYPE, check_size, choose_format, encode_animation
from fsworker.thumbnails.limits import Limits
from fsworker.thumbnails.resize import region_of, resize

_DEFAULT_FRAME_MS = 100
MAX_TOTAL_FACTOR = 8
"""How many times the pixel limit all frames of the original together may have."""


def render_animation(source: Source, thumbnail: Thumbnail, limits: Limits) -> tuple[bytes, str, int, int]:
    """The bytes, media type, width and height of an animated thumbnail.

    Raises :class:`ImageError` for more frames, or pixels in all frames, than the limits allow.
    """
    check_pixels(source, limits, 1)
    region = region_of(thumbnail, source)
    image_format = choose_format(thumbnail, source.format, transparent=True, animated=True)
    check_size(image_format, *region.size, limits.max_pixels)
    count = _count_frames(source.take(), limits)
    width, height = source.size
    if count * width * height > MAX_TOTAL_FACTOR * limits.max_pixels:
        raise ImageError(f"{count} frames of {width} x {height} pixels are too many")
    if count * region.size[0] * region.size[1] > limits.max_pixels:
        raise ImageError(f"{count} frames of {region.size[0]} x {region.size[1]} pixels are too many")
    image = source.take()  # again, for a picture that was wound back may have lost its palette
    first = 1 if image.info.get("default_image") else 0  # a PNG's picture for those who cannot show its animation
    frames, durations_ms = [], []
    for index in range(first, count):
        image.seek(index)
        image.load()
        pixels = to_resizable(image)
        frame = srgb_converter(colour_space(image), pixels.mode)(resize(pixels, region, (1.0, 1.0)))
        if source.orientation in TRANSPOSE:
            frame = frame.transpose(TRANSPOSE[source.orientation])
        frames.append(frame.convert("RGBA"))
        durations_ms.append(_duration_ms(image))
    data = encode_animation(frames, durations_ms, _plays(source.format, image), image_format, thumbnail)
    return data, MEDIA_TYPE[image_format], *frames[0].size


def _plays(source_format: str, image: Image.Image) -> int:
    """How often the animation runs, 0 for ever. A GIF says how often it is repeated, if it is; the others say this."""
    loop = image.info.get("loop")
    if source_format != "GIF" or loop == 0:
        return loop if isinstance(loop, int) else 0
    return loop + 1 if isinstance(loop, int) else 1


def _count_frames(image: Image.Image, limits: Limits) -> int:
    """The number of frames, which for a GIF means to walk over it; no further than to the limit."""
    for count in range(1, limits.max_frames + 1):
        try:
            image.seek(count)
        except EOFError:
            image.seek(0)
            return count
    raise ImageError(f"the animation has more than {limits.max_frames} frames")


def _duration_ms(image: Image.Image) -> int:
    duration = image.info.get("duration", _DEFAULT_FRAME_MS)
    return max(0, round(duration)) if isinstance(duration, (int, float)) else _DEFAULT_FRAME_MS
