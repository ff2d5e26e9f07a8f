"""What a thumbnail shall be.

A specification is written by strangers (a client, a message, a command line), read by the client to fail early, and by
the worker again because the client is not to be trusted. It has one canonical form, so that equal wishes are equal
values, have equal JSON, and may share one remembered thumbnail.

This is the ground layer: pure arithmetic on numbers, no pictures, no I/O.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from fsworker.errors import ImageError
from fsworker.geometry import EXAMPLES, FIT_FLAG, FITS, Fit, Geometry, quote, round_side

Format = Literal["jpeg", "png", "webp", "avif", "gif"]

FORMATS: tuple[Format, ...] = ("jpeg", "png", "webp", "avif", "gif")
ANIMATED_FORMATS: tuple[Format, ...] = ("gif", "png", "webp")
DEFAULT_QUALITY: Mapping[Format | None, int | None] = {
    None: 80,
    "jpeg": 80,
    "webp": 80,
    "avif": 60,
    "png": None,
    "gif": None,
}
"""JPEG and WebP at 80; AVIF looks alike at 60; PNG and GIF have no such setting."""

_COLOUR = re.compile(r"#(?:[0-9a-f]{3}|[0-9a-f]{6})\Z", re.IGNORECASE | re.ASCII)
_COLOUR_NAMES = {"white": "#ffffff", "black": "#000000"}


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """The specification of one thumbnail: ``Thumbnail("1600x", format="webp", quality=80)``.

    ``geometry`` is ImageMagick's: ``100x100`` fits inside, ``100x`` and ``x100`` bind one side, ``100x100^`` covers the
    box, ``100x100!`` ignores the aspect ratio, ``50%`` and ``50x25%`` scale, ``10000@`` bounds the area; ``>`` only
    shrinks, ``<`` only enlarges. A picture is *never enlarged* (each form acts as if it had ``>``) unless ``upscale``
    is true, or the geometry cannot mean anything else (``<``, ``200%``).

    * ``fit``: ``inside`` | ``cover`` | ``exact``, the flags ``^`` and ``!`` in words. Cover fills the box and may
      stick out of it on one axis.
    * ``crop``: scale to cover, then cut the centre to exactly the box (a small picture that may not be enlarged: to the
      largest box of that aspect ratio).
    * ``format``: ``jpeg`` | ``png`` | ``webp`` | ``avif`` | ``gif``. ``None`` keeps JPEG, PNG and WebP; GIF and ICO
      become PNG (GIF stays if ``animated``); the rest becomes JPEG, or PNG where it is transparent.
    * ``quality``: 1 to 100; 80 if not given (AVIF 60). PNG and GIF have none.
    * ``background``: ``#rrggbb``, ``#rgb``, ``white`` or ``black``; transparent parts are filled with it. ``None``
      keeps transparency, and fills with white in a format that has none.
    * ``animated``: keep the frames of an animation, in ``gif``, ``webp`` and ``png``; else the first frame is taken.

    After construction the fields are canonical: flags of the geometry have moved to ``fit`` and ``upscale``, defaults
    are filled in. So ``Thumbnail("100x100^") == Thumbnail("100x100", fit="cover")``. Raises :class:`ImageError` that
    quotes what is wrong and names what is right.
    """

    geometry: str
    format: Format | None = None
    quality: int | None = None
    fit: Fit = "inside"
    upscale: bool = False
    crop: bool = False
    background: str | None = None
    animated: bool = False

    def __post_init__(self) -> None:
        _check_types(self)
        image_format = _canonical_format(self.format)
        geometry = Geometry.parse(self.geometry)
        fit, upscale = _canonical_fit(self, geometry)
        canonical: dict[str, object] = {
            "geometry": f"{geometry.box}{'<' if geometry.only_enlarge else ''}",
            "fit": fit,
            "upscale": upscale,
            "format": image_format,
            "quality": _canonical_quality(self.quality, image_format),
            "background": _canonical_colour(self.background),
        }
        if self.animated and image_format not in (None, *ANIMATED_FORMATS):
            raise ImageError(
                f"animated=True needs one of the formats {', '.join(ANIMATED_FORMATS)}, not {image_format!r}"
            )
        for name, value in canonical.items():
            object.__setattr__(self, name, value)

    @classmethod
    def parse(cls, value: object) -> Thumbnail:
        """A :class:`Thumbnail` as it is, a geometry's text, or a JSON object with the fields' names.

        Raises :class:`ImageError` for anything else, unknown fields included.
        """
        if isinstance(value, Thumbnail):
            return value
        if isinstance(value, str):
            return cls(value)
        if not isinstance(value, Mapping):
            raise ImageError(
                f"{quote(value)} is not a thumbnail's specification: {EXAMPLES}, or an object with {_NAMES}"
            )
        unknown = [name for name in value if name not in _FIELDS]
        if unknown:
            raise ImageError(f"a thumbnail's specification has no {quote(unknown[0])}; it has {_NAMES}")
        if "geometry" not in value:
            raise ImageError(f"a thumbnail's specification needs 'geometry': {EXAMPLES}")
        return cls(**value)

    def to_json(self) -> str | dict[str, Any]:
        """The canonical JSON value: the geometry's text where that says all, else an object without the defaults.

        ``Thumbnail.parse(t.to_json()) == t``, and equal specifications have equal JSON.
        """
        optional = {
            "format": self.format,
            "quality": None if self.quality == DEFAULT_QUALITY[self.format] else self.quality,
            "upscale": (self.upscale and not self._geometry().enlarges) or None,
            "crop": self.crop or None,
            "background": self.background,
            "animated": self.animated or None,
        }
        given = {name: value for name, value in optional.items() if value is not None}
        return {"geometry": str(self._geometry()), **given} if given else str(self._geometry())

    @property
    def key(self) -> str:
        """The canonical JSON as text, on one line: equal for equal specifications, different for different ones."""
        return json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))

    def __str__(self) -> str:
        value = self.to_json()
        return value if isinstance(value, str) else self.key

    def size(self, width: int, height: int) -> tuple[int, int]:
        """The size in pixels of the thumbnail of an upright picture of ``width`` x ``height`` pixels."""
        if self.crop:
            return self._crop_size(width, height)
        geometry = self._geometry()
        if not self.upscale:
            geometry = Geometry(geometry.unit, geometry.width, geometry.height, geometry.fit, only_shrink=True)
        return geometry.size(width, height)

    def _crop_size(self, width: int, height: int) -> tuple[int, int]:
        geometry = self._geometry()
        box_width, box_height = int(geometry.width or 1), int(geometry.height or 1)
        scale = 1.0 if self.upscale else min(1.0, width / box_width, height / box_height)
        return round_side(scale * box_width), round_side(scale * box_height)

    def _geometry(self) -> Geometry:
        return Geometry.parse(f"{self.geometry}{FIT_FLAG[self.fit]}")


_FIELDS = tuple(field.name for field in fields(Thumbnail))
_NAMES = ", ".join(repr(name) for name in _FIELDS)


def _check_types(thumbnail: Thumbnail) -> None:
    for name in ("upscale", "crop", "animated"):
        if not isinstance(getattr(thumbnail, name), bool):
            raise ImageError(f"{name}={quote(getattr(thumbnail, name))} is not true or false")
    if thumbnail.fit not in FITS:
        raise ImageError(f"fit={quote(thumbnail.fit)} is unknown: use one of {', '.join(FITS)}")


def _canonical_fit(wish: Thumbnail, geometry: Geometry) -> tuple[Fit, bool]:
    """The fit and whether enlarging is allowed, from the geometry's flags and the fields, which must agree."""
    if geometry.fit != "inside" and wish.fit not in ("inside", geometry.fit):
        raise ImageError(f"{quote(wish.geometry)} says fit={geometry.fit!r}, and fit={wish.fit!r} was given: drop one")
    if geometry.only_shrink and wish.upscale:
        raise ImageError(f"{quote(wish.geometry)} says only shrink, and upscale=True was given: drop one")
    fit = wish.fit if geometry.fit == "inside" else geometry.fit
    if wish.crop:
        if geometry.unit != "px" or geometry.width is None or geometry.height is None or geometry.only_enlarge:
            raise ImageError(f"crop=True needs a box with both sides, as in '100x100', not {quote(wish.geometry)}")
        if fit == "exact":
            raise ImageError(
                f"crop=True keeps the aspect ratio and {quote(wish.geometry)} with fit='exact' does not: drop one"
            )
        return "cover", wish.upscale
    if geometry.unit == "percent":
        return "inside", geometry.enlarges  # a percentage alone says whether it enlarges
    return ("inside" if geometry.unit == "area" else fit), wish.upscale or geometry.enlarges


def _canonical_format(value: object) -> Format | None:
    if value is None:
        return None
    text = value.lower() if isinstance(value, str) else value
    text = "jpeg" if text == "jpg" else text
    for known in FORMATS:
        if text == known:
            return known
    raise ImageError(f"format={quote(value)} is unknown: use one of {', '.join(FORMATS)}")


def _canonical_quality(value: object, image_format: Format | None) -> int | None:
    if value is None:
        return DEFAULT_QUALITY[image_format]
    if DEFAULT_QUALITY[image_format] is None:
        raise ImageError(
            f"quality={quote(value)} means nothing for format={image_format!r}: drop it, or use jpeg, webp or avif"
        )
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 100:
        raise ImageError(f"quality={quote(value)} is out of range: use a whole number from 1 to 100")
    return value


def _canonical_colour(value: object) -> str | None:
    if value is None:
        return None
    text = _COLOUR_NAMES.get(value.lower(), value.lower()) if isinstance(value, str) else ""
    if not _COLOUR.match(text):
        raise ImageError(f"background={quote(value)} is not a colour: use '#rrggbb', '#rgb', 'white' or 'black'")
    return text if len(text) == 7 else "#" + "".join(2 * digit for digit in text[1:])
