"""From one named file to another, for the FileStruct API: ``convert -resize`` and its crop, without ImageMagick."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Literal

from fsworker.errors import ImageError
from fsworker.geometry import Geometry
from fsworker.specification import Format, Thumbnail
from fsworker.thumbnails.formats import SIGNATURE_BYTES, sniff
from fsworker.thumbnails.limits import Limits
from fsworker.thumbnails.make import make_thumbnails
from fsworker.thumbnails.outcome import Made

_BY_EXTENSION: dict[str, Format] = {
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".jpe": "jpeg",
    ".png": "png",
    ".gif": "gif",
    ".webp": "webp",
    ".avif": "avif",
}
_BY_SOURCE: dict[str, Format] = {"JPEG": "jpeg", "PNG": "png", "GIF": "gif", "WEBP": "webp", "AVIF": "avif"}
_NOT_WRITTEN = frozenset(
    {".bmp", ".eps", ".heic", ".heif", ".ico", ".jp2", ".jxl", ".pdf", ".ppm", ".psd", ".svg", ".tga", ".tif", ".tiff"}
)
"""Extensions of formats that ImageMagick writes and we do not: other bytes under such a name would deceive."""
_NAME: Literal["thumbnail"] = "thumbnail"


def resize_file(
    source_path: str | Path, target_path: str | Path, geometry: str, limits: Limits | None = None
) -> tuple[int, int]:
    """Resize as ``convert -resize`` does: it enlarges, unless the geometry says ``>``. Returns width and height.

    The format follows the target's extension, or is the source's for one that is no format's. The target appears whole,
    in place of what was there, or not at all. Raises :class:`ImageError` for a geometry or a picture that is no good, and
    for a format that is not written; ``OSError`` for files that cannot be read or written.
    """
    upscale = not Geometry.parse(geometry).only_shrink
    return _convert(source_path, target_path, limits, geometry, upscale=upscale, crop=False)


def normalize_file(
    source_path: str | Path, target_path: str | Path, width: int, height: int, limits: Limits | None = None
) -> tuple[int, int]:
    """Scale to fill, then cut the centre to exactly ``width`` x ``height``, enlarging small pictures.

    Otherwise as :func:`resize_file`.
    """
    return _convert(source_path, target_path, limits, f"{width}x{height}", upscale=True, crop=True)


def _convert(
    source_path: str | Path, target_path: str | Path, limits: Limits | None, geometry: str, *, upscale: bool, crop: bool
) -> tuple[int, int]:
    descriptor = os.open(source_path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ImageError(f"{os.fspath(source_path)!r} is no regular file, so no picture")
        extension = Path(target_path).suffix.lower()
        if extension in _NOT_WRITTEN:
            raise ImageError(f"{extension} is not written; name the target {', '.join(sorted(_BY_EXTENSION))}")
        image_format = _BY_EXTENSION.get(extension)
        if image_format is None:
            image_format = _BY_SOURCE.get(sniff(os.pread(descriptor, SIGNATURE_BYTES, 0)) or "")
        animated = image_format in ("gif", "webp")
        wish = Thumbnail(geometry, format=image_format, upscale=upscale, crop=crop, animated=animated)
        outcome = make_thumbnails(descriptor, {_NAME: wish}, limits)
    finally:
        os.close(descriptor)
    if _NAME in outcome.failed:
        raise ImageError(f"{Path(source_path).name!r} cannot be converted: {outcome.failed[_NAME]}")
    made = outcome.made[_NAME]
    _write(Path(target_path), made)
    return made.width, made.height


def _write(target: Path, made: Made) -> None:
    """Write beside the target and rename, so that no reader, and no failure, sees half a file."""
    part = target.with_name(f".{os.urandom(8).hex()}.part")
    try:
        with open(part, "xb") as stream:
            for chunk in made.chunks():
                stream.write(chunk)
        os.replace(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
