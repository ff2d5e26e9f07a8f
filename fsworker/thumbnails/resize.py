"""Which part of a picture a thumbnail shows, and the resampling of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image

from fsworker.specification import Thumbnail
from fsworker.thumbnails.decode import Source

REDUCING_GAP = 1.9
"""Large pictures are averaged down by whole numbers first, to no less than this times the thumbnail's size."""


@dataclass(frozen=True, slots=True)
class Region:
    """What becomes the thumbnail, all in stored orientation: a box in stored pixels, and the size it is brought to."""

    box: tuple[float, float, float, float]
    size: tuple[int, int]

    @property
    def scale(self) -> float:
        """Thumbnail pixels for each stored pixel, along the denser side."""
        left, top, right, bottom = self.box
        return max(self.size[0] / (right - left), self.size[1] / (bottom - top))


def region_of(thumbnail: Thumbnail, source: Source) -> Region:
    """The region of a picture for a specification: all of it, or the centre if it asks to crop."""
    width, height = source.size
    if source.turned:
        new_height, new_width = thumbnail.size(height, width)
    else:
        new_width, new_height = thumbnail.size(width, height)
    if not thumbnail.crop:
        return Region((0.0, 0.0, float(width), float(height)), (new_width, new_height))
    scale = max(new_width / width, new_height / height)
    box_width, box_height = min(width, new_width / scale), min(height, new_height / scale)
    left, top = (width - box_width) / 2, (height - box_height) / 2
    if scale == 1:  # nothing but a cut: between pixels it would blur
        left, top = math.floor(left), math.floor(top)
    return Region((left, top, left + box_width, top + box_height), (new_width, new_height))


def resize(pixels: Image.Image, region: Region, factors: tuple[float, float]) -> Image.Image:
    """Resample a region; ``factors`` is how many stored pixels make one of ``pixels``, along each side."""
    x, y = factors
    left, top, right, bottom = region.box
    box = (left / x, top / y, min(right / x, pixels.width), min(bottom / y, pixels.height))
    return pixels.resize(region.size, Image.Resampling.LANCZOS, box, reducing_gap=REDUCING_GAP)
