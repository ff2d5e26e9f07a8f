"""From a file to pixels: open, find the upright size, decode no more than is needed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO, cast

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    IcoImagePlugin,
    Image,
    ImageFile,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from fsworker.errors import ImageError
from fsworker.thumbnails.formats import MEDIA_TYPE
from fsworker.thumbnails.jpeg import Scans, count_scans
from fsworker.thumbnails.limits import Limits
from fsworker.thumbnails.outcome import Picture
from fsworker.thumbnails.webp import canvas_size

try:
    import pillow_heif
except ImportError:  # the extra "heic" is not installed
    HEIF_VERSION = None
else:
    HEIF_VERSION = f"{pillow_heif.__version__}/{pillow_heif.libheif_version()}"

LOADED = (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    IcoImagePlugin,
    ImageOps,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
"""Loaded before any fork, because the child can open no file, a module's neither."""

HAS_HEIF = HEIF_VERSION is not None
BIG_JPEG_FACTOR = 8
"""How many times the pixel limit a JPEG may have that is decoded at a quarter of its size or less, in one pass."""
_BIG_JPEG_SCALE = 4
_BYTES_A_PIXEL: Mapping[str, int] = {"AVIF": 9, "HEIF": 8, "JPEG": 7, "WEBP": 16}  # that decoding takes, as measured
_ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")  # the pages of a TIFF are no animation

TRANSPOSE: Mapping[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture upright, by the value of EXIF's orientation (0x0112)."""


Image.preinit()


def set_up() -> None:
    """Set Pillow up for hostile files. In the decoding process only: an application's own use of Pillow is its affair.

    One thread, for the process has one processor's time and no address space to spare. Too many pixels are an error, not
    a warning, and nothing else warns.
    """
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    if HAS_HEIF:
        pillow_heif.options.DECODE_THREADS = 1
        pillow_heif.options.THUMBNAILS = False
        pillow_heif.options.DEPTH_IMAGES = False
        pillow_heif.options.AUX_IMAGES = False
    warnings.simplefilter("ignore")
    warnings.simplefilter("error", Image.DecompressionBombWarning)


@dataclass(slots=True)
class Source:
    """An opened, not yet decoded picture.

    ``size`` is as stored, before ``orientation`` (1 to 8, EXIF's meaning) makes it upright. ``scans`` is for JPEG.
    """

    format: str
    stream: BinaryIO
    size: tuple[int, int]
    orientation: int
    animated: bool
    scans: Scans | None
    _opened: ImageFile.ImageFile | None

    def take(self) -> ImageFile.ImageFile:
        """The picture, with nothing decoded yet: the file is opened again for each who takes it after the first.

        A decoder cannot be wound back; and what one that failed has left is no picture, though it may look like one.
        """
        image, self._opened = self._opened or _open(self.format, self.stream), None
        return image

    @property
    def turned(self) -> bool:
        """Whether upright means that width and height change places."""
        return self.orientation >= 5

    @property
    def picture(self) -> Picture:
        """The original as it is reported."""
        width, height = self.size
        return Picture(MEDIA_TYPE[self.format], *((height, width) if self.turned else (width, height)))


def open_source(name: str, stream: BinaryIO, limits: Limits) -> Source:
    """Read the headers of a picture of the format ``name`` (of :data:`~fsworker.thumbnails.formats.MEDIA_TYPE`).

    Raises :class:`ImageError`, or whatever the decoder raises, where they cannot be read.
    """
    # These two cannot be opened without memory for the pixels, so their limit has to apply now.
    Image.MAX_IMAGE_PIXELS = limits.max_pixels if name in ("WEBP", "ICO") else None
    if name == "WEBP":
        width, height = canvas_size(stream)
        if width * height > limits.max_pixels:
            raise too_many_pixels(width, height, limits.max_pixels)
    scans = count_scans(stream, limits.max_scans) if name == "JPEG" else None
    image = _open(name, stream)
    animated = name in _ANIMATED and bool(getattr(image, "is_animated", False))
    return Source(name, stream, image.size, _orientation(name, image, stream), animated, scans, image)


def _open(name: str, stream: BinaryIO) -> ImageFile.ImageFile:
    stream.seek(0)
    if name == "JPEG":  # not by Image.open, which would make more of the several pictures of an MPO than is wanted
        return JpegImagePlugin.JpegImageFile(stream)
    if name == "HEIF":
        if not HAS_HEIF:
            raise ImageError("HEIC needs the extra 'heic': pip install 'fsworker[heic]'")
        return cast("ImageFile.ImageFile", pillow_heif.HeifImageFile(stream))  # type: ignore[no-untyped-call]
    try:
        return Image.open(stream, formats=[name])
    except OSError:
        if name == "WEBP":
            _check_room(name, canvas_size(stream))
        raise


def decode(source: Source, limits: Limits, scale: int = 1) -> tuple[Image.Image, tuple[float, float]]:
    """Decode the (first) picture; a JPEG at ``1/scale`` of its size, where ``scale`` is 1, 2, 4 or 8.

    Returns the pixels, in the stored orientation, and how many stored pixels make one of them, along each side.
    Raises :class:`ImageError` for too many pixels or scans, ``MemoryError``, and whatever the decoder raises for broken
    bytes.
    """
    check_pixels(source, limits, scale)
    image = source.take()
    width, height = image.size
    factors = (1.0, 1.0)
    if scale > 1:
        drafted = image.draft(None, (max(1, width // scale), max(1, height // scale)))
        if drafted is not None:
            factors = (width / drafted[1][2], height / drafted[1][3])
    failure = None
    try:
        image.load()
    except Exception as error:  # noqa: BLE001 - raised again
        failure = error.with_traceback(None)  # what was decoded so far hangs on it
    if failure is None:
        return image, factors
    del image
    if source.scans is None or not source.scans.single:
        _check_room(source.format, source.size)
    raise failure


def _check_room(name: str, size: tuple[int, int]) -> None:
    """Raise ``MemoryError`` if there is no room to decode a picture of that size.

    To be asked when a decoder has failed: these call a picture broken, in many words, when they got no memory.
    """
    bytes(size[0] * size[1] * _BYTES_A_PIXEL.get(name, 0))


def check_pixels(source: Source, limits: Limits, scale: int) -> None:
    """Raise :class:`ImageError` if the picture has too many pixels, or scans, to be decoded at ``1/scale``."""
    width, height = source.size
    allowed = limits.max_pixels
    if source.scans is not None:
        if source.scans.count > limits.max_scans:
            raise ImageError(f"the JPEG has more than {limits.max_scans} scans")
        if source.scans.single and scale >= _BIG_JPEG_SCALE:
            allowed *= BIG_JPEG_FACTOR
    if width * height > allowed:
        raise too_many_pixels(width, height, allowed)
    if width < 1 or height < 1:
        raise ImageError(f"the picture has no pixels ({width} x {height})")
    Image.MAX_IMAGE_PIXELS = allowed  # for the pictures inside of pictures


def too_many_pixels(width: int, height: int, allowed: int) -> ImageError:
    """The refusal of a picture by its size."""
    return ImageError(
        f"{width} x {height} are {width * height / 1e6:.1f} megapixels, at most {allowed / 1e6:g} are allowed"
    )


def _orientation(name: str, image: ImageFile.ImageFile, stream: BinaryIO) -> int:
    """EXIF's orientation, 1 where there is none or a broken one.

    TIFF (which Pillow turns while loading) and HEIF (libheif) come upright. XMP is not asked: browsers do not either.
    """
    if name in ("TIFF", "HEIF", "GIF", "BMP", "ICO"):
        return 1
    if name == "PNG" and "exif" not in image.info:
        _find_late_exif(image, stream)
    for key in ("xmp", "XML:com.adobe.xmp"):
        image.info.pop(key, None)
    try:
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except MemoryError:  # not known to be broken: no thumbnail is better than one that lies on its side
        raise
    except Exception:  # noqa: BLE001 - Pillow raises anything; whatever is wrong with EXIF, the picture can still be good
        return 1
    return value if value in TRANSPOSE else 1


def _find_late_exif(image: ImageFile.ImageFile, stream: BinaryIO) -> None:
    """Find a PNG's eXIf chunk behind its pixels, where Pillow would decode the whole picture to see it."""
    resume = stream.tell()
    stream.seek(8)
    while len(head := stream.read(8)) == 8 and head[4:] != b"IEND":
        length = int.from_bytes(head[:4], "big")
        if head[4:] == b"eXIf":
            image.info["exif"] = b"Exif\0\0" + stream.read(min(length, 2**20))
            break
        stream.seek(length + 4, 1)
    stream.seek(resume)
