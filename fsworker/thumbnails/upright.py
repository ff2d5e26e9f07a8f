"""Does a thumbnail show its original, the right way up? For the demo's and the tests' own eyes."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageChops, ImageOps, ImageStat

_SIDE = 32
_TURNS = (
    Image.Transpose.FLIP_LEFT_RIGHT,
    Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_180,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSPOSE,
    Image.Transpose.TRANSVERSE,
)


def is_upright(original: Path, thumbnail: Path) -> bool:
    """Whether ``thumbnail`` looks more like the upright ``original`` than like any of its seven turns and mirrors.

    Both are opened and decoded whole; raises ``OSError`` for what cannot be. Only for pictures that one trusts, and that
    do not look the same turned.
    """
    with Image.open(original) as opened:
        upright = _small(ImageOps.exif_transpose(opened))
    with Image.open(thumbnail) as opened:
        shown = _small(opened)
    distance = _distance(upright, shown)
    return all(distance < _distance(upright.transpose(turn), shown) for turn in _TURNS)


def _small(picture: Image.Image) -> Image.Image:
    return picture.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BOX)


def _distance(left: Image.Image, right: Image.Image) -> float:
    return sum(ImageStat.Stat(ImageChops.difference(left, right)).mean)
