"""Which formats are decoded at all, told by a file's first bytes.

An explicit list: what is not on it (SVG, PDF, EPS, PSD, JPEG XL, DDS and fifty more that the library could open) never
reaches a decoder, and costs no process.
"""

from __future__ import annotations

from collections.abc import Mapping

SIGNATURE_BYTES = 64
"""How many bytes :func:`sniff` looks at."""

MEDIA_TYPE: Mapping[str, str] = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "GIF": "image/gif",
    "WEBP": "image/webp",
    "AVIF": "image/avif",
    "TIFF": "image/tiff",
    "BMP": "image/bmp",
    "ICO": "image/vnd.microsoft.icon",
    "HEIF": "image/heic",
}
"""The formats that are known, by the names that Pillow has for them."""

_BMP_HEADER_SIZES = frozenset((12, 16, 40, 52, 56, 64, 108, 124))
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_AVIF_BRANDS = frozenset((b"avif", b"avis"))
_HEIF_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"))


def sniff(start: bytes) -> str | None:
    """Name the format of a file that starts with these bytes, or ``None`` for what is not decoded."""
    if start.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if start.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return "WEBP"
    if start.startswith(_TIFF):
        return "TIFF"
    if start.startswith(b"BM") and int.from_bytes(start[14:18], "little") in _BMP_HEADER_SIZES:
        return "BMP"
    if start.startswith(b"\0\0\1\0") and start[4:6] != b"\0\0" and start[9:10] == b"\0":
        return "ICO"
    return _sniff_boxes(start)


def _sniff_boxes(start: bytes) -> str | None:
    """ISO base media files (HEIF, AVIF, but also MP4): the brands of the first box decide."""
    if start[4:8] != b"ftyp":
        return None
    end = min(len(start), int.from_bytes(start[:4], "big"))
    brands = {start[8:12], *(start[at : at + 4] for at in range(16, end - 3, 4))}
    if start[8:12] in _AVIF_BRANDS or (brands & _AVIF_BRANDS and start[8:12] in (b"mif1", b"msf1")):
        return "AVIF"
    return (
        "HEIF" if start[8:12] in _HEIF_BRANDS or (brands & _HEIF_BRANDS and start[8:12] in (b"mif1", b"msf1")) else None
    )
