"""What must be known of a WebP before it is opened: libwebp takes memory for its canvas first, and asks no limit.

RFC 9649 is the syntax read here. Thirty bytes can ask for a canvas of two gigabytes.
"""

from __future__ import annotations

from typing import BinaryIO

_HEAD_BYTES = 30


def canvas_size(stream: BinaryIO) -> tuple[int, int]:
    """Width and height in pixels as the first chunk has them, (0, 0) where that makes no sense."""
    stream.seek(0)
    head = stream.read(_HEAD_BYTES)
    kind, body = head[12:16], head[20:]
    if len(head) < _HEAD_BYTES:
        return 0, 0
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"VP8L" and body[0] == 0x2F:
        sides = int.from_bytes(body[1:5], "little")
        return 1 + (sides & 0x3FFF), 1 + (sides >> 14 & 0x3FFF)
    if kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
        return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    return 0, 0
