"""From any mode and colour space to sRGB: ``L``, ``LA``, ``RGB`` or ``RGBA``, eight bits, no palette, no profile.

In two steps, so that the costly one works on few pixels: :func:`to_resizable` before resizing gives a mode whose values
can be averaged, :func:`to_srgb` after it applies the colour profile.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageCms

from fsworker.errors import ImageError

Convert = Callable[[Image.Image], Image.Image]

_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
_LAB = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
_MAX_PROFILE_BYTES = 4 * 2**20
_SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab ": "LAB"}
_16_BIT = ("I;16", "I;16B", "I;16L", "I;16N")
_TO_8_BIT = [(value + 128) // 257 for value in range(65536)]  # convert("L") would cut off at 255


@dataclass(frozen=True, slots=True)
class ColourSpace:
    """How resized pixels become sRGB; ``profile`` is ICC, from the file, so hostile."""

    profile: bytes | None


def colour_space(image: Image.Image) -> ColourSpace:
    """The colour space that an opened picture says it has. Bytes of a profile that are out of all size are ignored."""
    profile = image.info.get("icc_profile")
    usable = isinstance(profile, bytes) and 128 <= len(profile) <= _MAX_PROFILE_BYTES
    return ColourSpace(profile if usable else None)


def to_resizable(image: Image.Image) -> Image.Image:
    """Pixels that may be averaged: ``L``, ``La``, ``RGB``, ``RGBa`` (premultiplied), ``CMYK`` or ``LAB``.

    Raises :class:`ImageError` for 32-bit samples, which have no agreed range.
    """
    if image.mode in _16_BIT:
        image = _from_16_bit(image)
    elif image.mode in ("P", "PA", "1") or "transparency" in image.info:
        image = _from_keyed(image)
    elif image.mode in ("YCbCr", "HSV", "RGBX"):
        image = image.convert("RGB")
    if image.mode in ("LA", "RGBA"):
        return _premultiplied(image)
    if image.mode in ("L", "La", "RGB", "RGBa", "CMYK", "LAB"):
        return image
    raise ImageError(f"pictures of samples in mode {image.mode} are not supported: they have no agreed range")


def _from_keyed(image: Image.Image) -> Image.Image:
    """A palette, bilevel pixels, or one colour that stands for transparent."""
    grey = image.mode in ("1", "L")
    if image.mode in ("PA", "RGBA", "LA") or image.has_transparency_data:
        return image.convert("LA" if grey else "RGBA")
    return image.convert("L" if grey else "RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    transparent = image.info.get("transparency")
    image = image.convert("I")  # the one mode whose table may have 65,536 entries
    grey = image.point(_TO_8_BIT, "L")
    if not isinstance(transparent, int):
        return grey
    mask = [0 if value == transparent else 255 for value in range(65536)]
    return Image.merge("LA", (grey, image.point(mask, "L")))


def _premultiplied(image: Image.Image) -> Image.Image:
    """Colours weighted by alpha, else what is invisible bleeds into edges; an opaque picture loses its alpha."""
    if image.getextrema()[-1] == (255, 255):
        return image.convert(image.mode.removesuffix("A"))
    return image.convert({"LA": "La", "RGBA": "RGBa"}[image.mode])


def srgb_converter(space: ColourSpace, mode: str) -> Convert:
    """A function from resized pixels of ``mode`` to sRGB in ``L``, ``LA``, ``RGB`` or ``RGBA``.

    Relative colorimetric with black-point compensation. A profile that is broken, of another colour space than the
    pixels, or as good as sRGB, is left out.
    """
    colours = {"La": "L", "RGBa": "RGB"}.get(mode, mode)
    transform = None
    if space.profile is not None:
        with contextlib.suppress(ImageCms.PyCMSError, OSError, ValueError, TypeError):  # broken: as if there were none
            transform = _transform(space.profile, colours)
    if transform is None and colours == "LAB":
        transform = _build(_LAB, "LAB")
    return _converter(colours, transform)


def _transform(profile: bytes, colours: str) -> ImageCms.ImageCmsTransform | None:
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = _SPACES.get(opened.profile.xcolor_space)
    if space == colours:
        transform = _build(opened, colours)
    elif space == "RGB" and colours == "L":  # a grey picture that was saved with a display's profile
        transform = _build(opened, "RGB")
    else:
        return None
    return None if space == "RGB" and _is_identity(transform) else transform


def _build(profile: ImageCms.ImageCmsProfile, mode: str) -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(
        profile,
        _SRGB,
        mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )


def _is_identity(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether colours from all over the cube stay what they are, rounding apart: then the profile is an sRGB."""
    steps = range(0, 256, 17)
    before = bytes(value for r in steps for g in steps for b in steps for value in (r, g, b))
    cube = Image.frombytes("RGB", (16, 256), before)
    after = transform.apply(cube).tobytes()
    return all(-2 < x - y < 2 for x, y in zip(before, after, strict=True))


def _converter(colours: str, transform: ImageCms.ImageCmsTransform | None) -> Convert:
    def convert(image: Image.Image) -> Image.Image:
        alpha = None
        if image.mode in ("La", "RGBa"):
            image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
            alpha = image.getchannel("A")
            image = image.convert(colours)
        if transform is not None:
            image = transform.apply(image.convert("RGB") if transform.input_mode != colours else image)
            if colours == "L":
                image = image.convert("L")  # neutral stays neutral
        elif colours == "CMYK":
            image = image.convert("RGB")
        if alpha is not None:
            image.putalpha(alpha)
        return image

    return convert


def flatten(image: Image.Image, background: str) -> Image.Image:
    """Put a transparent picture on a colour (``#rrggbb``); others are returned as they are."""
    if image.mode not in ("LA", "RGBA"):
        return image
    colour = tuple(int(background[at : at + 2], 16) for at in (1, 3, 5))
    grey = image.mode == "LA" and len(set(colour)) == 1
    below = Image.new("L" if grey else "RGB", image.size, colour[0] if grey else colour)
    below.paste(image.convert("L" if grey else "RGB"), mask=image.getchannel("A"))
    return below
