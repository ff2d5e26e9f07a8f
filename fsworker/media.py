"""Media type by content: what a file's first bytes say, never what its name or its sender says.

Signatures come from puremagic; what is here decides where those are ambiguous. A picture's type comes from its decoder
instead (:mod:`fsworker.thumbnails`). The answer is a hint for serving, not a verdict on safety: see
``Client.response_headers``.
"""

from __future__ import annotations

import os
import re

import puremagic

HEAD_BYTES = 16 << 10
UNKNOWN = "application/octet-stream"

_MIN_CONFIDENCE = 0.3  # three bytes agree; two agree by chance in one file of 65,536
_MIN_CONFIDENCE_TEXT = 0.5
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f\x7f]")
_SVG = re.compile(rb"<svg[\s>]", re.IGNORECASE)
_HTML = re.compile(
    rb"\s*(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body|script|iframe|title|h1|table)\b", re.IGNORECASE | re.DOTALL
)
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)
_CANONICAL = {
    "application/x-gzip": "application/gzip",
    "image/x-ms-bmp": "image/bmp",
    "image/jpg": "image/jpeg",
    "audio/x-wav": "audio/wav",
    "text/xml": "application/xml",
}
_ZIPPED = (
    (b"word/", "application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
    (b"xl/", "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"),
    (b"ppt/", "application/vnd.openxmlformats-officedocument.presentationml.presentation"),
    (b"mimetypeapplication/epub+zip", "application/epub+zip"),
    (b"mimetypeapplication/vnd.oasis.opendocument.text", "application/vnd.oasis.opendocument.text"),
    (b"mimetypeapplication/vnd.oasis.opendocument.spreadsheet", "application/vnd.oasis.opendocument.spreadsheet"),
    (b"META-INF/MANIFEST.MF", "application/java-archive"),
)


def sniff(fd: int) -> str:
    """The media type of a file, from its first 16 KiB; the descriptor's position does not move."""
    return sniff_bytes(os.pread(fd, HEAD_BYTES, 0))


def sniff_bytes(head: bytes) -> str:
    """The media type of content that begins with ``head``; ``application/octet-stream`` when nothing is known."""
    if not head:
        return UNKNOWN
    if head.startswith(b"PK\x03\x04"):
        return next((kind for mark, kind in _ZIPPED if mark in head), "application/zip")
    if _is_bmp(head):
        return "image/bmp"
    text = _is_text(head)
    if text and _HTML.match(head):
        return "text/html"
    if text and _SVG.search(head[:4096]):
        return "image/svg+xml"
    guess = _guess(head, _MIN_CONFIDENCE_TEXT if text else _MIN_CONFIDENCE)
    if head.startswith(b"%PDF-"):
        return "application/pdf"
    return guess or ("text/plain" if text else UNKNOWN)


def matches(media_type: str, allowed: list[str]) -> bool:
    """Whether a media type is in a list of exact types and ``image/*`` patterns; case does not matter."""
    kind = media_type.lower()
    family = kind.partition("/")[0] + "/*"
    return any(pattern.lower() in (kind, family, "*/*") for pattern in allowed)


def _guess(head: bytes, min_confidence: float) -> str | None:
    try:
        found = puremagic.magic_string(head)
    except (puremagic.PureError, ValueError):
        return None
    for candidate in found:
        if candidate.confidence >= min_confidence and candidate.mime_type:
            kind = str(candidate.mime_type).lower()
            return _CANONICAL.get(kind, kind)
    return None


def _is_bmp(head: bytes) -> bool:
    """Its signature is two bytes, too few to believe; then come zeroes, and one of few sizes of the next header."""
    return head[:2] == b"BM" and head[6:10] == bytes(4) and int.from_bytes(head[14:18], "little") in _BMP_HEADERS


def _is_text(head: bytes) -> bool:
    """UTF-8 (a character cut off at the end is allowed) without control characters."""
    if _CONTROL.search(head):
        return False
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.start >= len(head) - 3 and error.reason == "unexpected end of data"
    return True
