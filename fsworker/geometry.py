"""ImageMagick's geometry: texts such as ``100x100^>`` and the sizes that ``convert -resize`` makes of them.

Pure arithmetic, in the ground layer. The vectors that it must meet were read off ImageMagick 6.9 itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fsworker.errors import ImageError

Fit = Literal["inside", "cover", "exact"]

FITS: tuple[Fit, ...] = ("inside", "cover", "exact")
FIT_FLAG: Mapping[Fit, str] = {"inside": "", "cover": "^", "exact": "!"}
EXAMPLES = "write '100x100' (fit inside), '100x', 'x100', '100x100^' (cover), '100x100!' (exactly), '50%' or '10000@'"

MAX_SIDE_PX = 65_535
"""The longest side that can be asked for: what a JPEG can hold."""
MAX_ENLARGED_PX = 16_000
"""No picture is enlarged beyond this side: ImageMagick's stock policy, whose ``convert`` then keeps the size."""
MAX_PERCENT = 100_000.0
MAX_AREA_PX = float(MAX_SIDE_PX) ** 2

_NUMBER = r"(?:\d{1,10}(?:\.\d{0,6})?)"
_GEOMETRY = re.compile(
    rf"(?P<width>{_NUMBER})?(?P<percent_x>%)?(?:[xX](?P<height>{_NUMBER})?)?(?P<flags>[%@!^<>]*)", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Geometry:
    """One of ImageMagick's size specifications, as ``convert -resize`` takes it.

    ``unit`` says what ``width`` and ``height`` count: pixels of a box (``None``: free), percent of each side, or (in
    ``width`` alone) pixels of area. ``only_shrink`` and ``only_enlarge`` are the flags ``>`` and ``<``.
    """

    unit: Literal["px", "percent", "area"]
    width: float | None
    height: float | None
    fit: Fit = "inside"
    only_shrink: bool = False
    only_enlarge: bool = False

    @classmethod
    def parse(cls, text: object) -> Geometry:
        """Read a geometry; raise :class:`ImageError`, quoting it, where it is none.

        All of ImageMagick's forms for resizing are known, but no offsets, and a side of 0, from which ImageMagick
        makes a single pixel, is refused as the mistake that it is.
        """
        match = _GEOMETRY.fullmatch(text) if isinstance(text, str) and len(text) <= 64 else None
        if match is None or (match["width"] is None and match["height"] is None):
            raise ImageError(f"{quote(text)} is not a thumbnail's geometry: {EXAMPLES}")
        flags = (match["percent_x"] or "") + match["flags"]
        for pair in ("<>", "^!", "%@"):
            if set(pair) <= set(flags):
                raise ImageError(f"{quote(text)} contradicts itself: use {pair[0]!r} or {pair[1]!r}, not both")
        width = None if match["width"] is None else float(match["width"])
        height = None if match["height"] is None else float(match["height"])
        only_shrink, only_enlarge = ">" in flags, "<" in flags
        if "@" in flags:
            if width is None or height is not None:
                raise ImageError(f"{quote(text)} is not an area: write one number of pixels, as in '10000@'")
            area = _within(width, 1, MAX_AREA_PX, "an area", text)
            return cls("area", area, None, only_shrink=only_shrink)  # ImageMagick ignores the other flags here
        if "%" in flags:
            x = _within(height if width is None else width, 0.001, MAX_PERCENT, "a percentage", text)
            y = x if height is None else _within(height, 0.001, MAX_PERCENT, "a percentage", text)
            return cls("percent", x, y)  # likewise: no other flag changes what a percentage does
        return cls(
            "px",
            None if width is None else _within(math.floor(width + 0.5), 1, MAX_SIDE_PX, "a side", text),
            None if height is None else _within(math.floor(height + 0.5), 1, MAX_SIDE_PX, "a side", text),
            "cover" if "^" in flags else "exact" if "!" in flags else "inside",
            only_shrink,
            only_enlarge,
        )

    def __str__(self) -> str:
        """The canonical text: ``Geometry.parse(str(g)) == g``."""
        shrink_or_enlarge = ">" if self.only_shrink else "<" if self.only_enlarge else ""
        return f"{self.box}{FIT_FLAG[self.fit]}{shrink_or_enlarge}"

    @property
    def box(self) -> str:
        """The canonical text without the flags ``^!><``: ``100x100``, ``100x``, ``50%``, ``10000@``."""
        if self.unit == "area":
            return f"{_number(self.width)}@"
        if self.unit == "percent":
            return (
                f"{_number(self.width)}%"
                if self.width == self.height
                else f"{_number(self.width)}x{_number(self.height)}%"
            )
        return f"{_number(self.width)}x{_number(self.height)}"

    @property
    def enlarges(self) -> bool:
        """Whether this can only have been written to enlarge something: ``64x64<``, ``200%``."""
        percent = max(self.width or 0.0, self.height or 0.0) if self.unit == "percent" else 0.0
        return self.only_enlarge or percent > 100

    def size(self, width: int, height: int) -> tuple[int, int]:
        """The size that ImageMagick gives a picture of ``width`` x ``height`` pixels; each side at least 1.

        Sides are rounded as floor(v + 0.5), areas down. Exact for each vector of the project's corpus; where that is
        silent, after the function ``ParseMetaGeometry`` of ImageMagick 6.9. A picture that would be enlarged beyond
        :data:`MAX_ENLARGED_PX` keeps its size.
        """
        new_width, new_height = self._size(width, height)
        if max(new_width, new_height) > max(MAX_ENLARGED_PX, width, height):
            return width, height
        return new_width, new_height

    def _size(self, width: int, height: int) -> tuple[int, int]:
        if self.unit == "area":
            return self._size_by_area(width, height)
        if self.unit == "percent":
            x, y = (self.width or 0.0) / 100, (self.height or 0.0) / 100
            return round_side(x * width), round_side(y * height)
        if self.fit == "exact":
            new_width, new_height = int(self.width or width), int(self.height or height)
        else:
            scale = self._scale(width, height)
            new_width, new_height = round_side(scale * width), round_side(scale * height)
        if self.only_shrink:
            return min(width, new_width), min(height, new_height)
        if self.only_enlarge:
            return max(width, new_width), max(height, new_height)
        return new_width, new_height

    def _scale(self, width: int, height: int) -> float:
        """By what a box scales the picture, keeping its aspect ratio."""
        cover = self.fit == "cover"
        if self.width is not None and self.height is not None:
            return (max if cover else min)(self.width / width, self.height / height)
        if self.width is not None:  # ImageMagick: '100^' is the length of the shorter side
            return self.width / (min(width, height) if cover else width)
        assert self.height is not None  # parse() lets no empty geometry through
        return self.height / (min(width, height) if cover else height)

    def _size_by_area(self, width: int, height: int) -> tuple[int, int]:
        scale = math.sqrt((self.width or 1.0) + 3e-8) / math.sqrt(width * height)  # ImageMagick's sqrt(MagickEpsilon)
        new_width, new_height = max(1, int(width * scale)), max(1, int(height * scale))
        if self.only_shrink and not (new_width < width or new_height < height):
            return width, height
        return new_width, new_height


def _within(value: float | None, low: float, high: float, what: str, text: object) -> float:
    if value is None or not low <= value <= high:
        raise ImageError(f"{quote(text)} has {what} out of range: it must be from {_number(low)} to {_number(high)}")
    return value


def round_side(value: float) -> int:
    """A side in pixels as ImageMagick rounds it: floor(v + 0.5), at least 1."""
    return max(1, math.floor(value + 0.5))


def _number(value: float | None) -> str:
    """The shortest plain decimal notation of a number; nothing for ``None``."""
    if value is None:
        return ""
    return str(int(value)) if value == int(value) else f"{value:.6f}".rstrip("0")


def quote(value: object) -> str:
    """``value`` for a message: control characters escaped, at most about 60 characters."""
    text = value if isinstance(value, str) else repr(value)
    return ascii(text) if len(text) <= 60 else f"{ascii(text[:60])[:-1]}…'"
