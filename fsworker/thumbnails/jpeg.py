"""What must be known of a JPEG before it is decoded: whether it has many scans.

Neither a pixel limit nor a scaled decode helps against a progressive file of a few hundred scans: each is a pass over
all coefficients, and 207 kB took seven seconds of processor time. ITU-T T.81, annex B, is the syntax read here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import BinaryIO

_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL)  # no stuffing, fill or restart; linear in time
_START_OF_FRAME = frozenset((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)))
_PROGRESSIVE = frozenset((0xC2, 0xC6, 0xCA, 0xCE))
_START_OF_SCAN, _END_OF_IMAGE, _TEMPORARY = 0xDA, 0xD9, 0x01
_CHUNK_BYTES = 2**16
_HEADER_BYTES = (
    2**12
)  # between the segments of a header no more than this is read at first: most often nothing lies there


@dataclass(frozen=True, slots=True)
class Scans:
    """How a JPEG is coded. ``count`` is exact up to the limit that was given; one more stands for any number above."""

    progressive: bool
    count: int

    @property
    def single(self) -> bool:
        """Whether the decoder needs one pass, and no memory for coefficients."""
        return not self.progressive and self.count <= 1


def count_scans(stream: BinaryIO, limit: int) -> Scans:
    """Walk over the segments of a JPEG from its start, and count its scans up to ``limit``.

    A single-scan file (the first scan has all components) is not read beyond its headers. Never raises for broken
    bytes; the decoder will find what is wrong with them.
    """
    stream.seek(2)
    progressive, components, count = False, 0, 0
    while (marker := _next_marker(stream)) not in (None, _END_OF_IMAGE):
        if marker == _TEMPORARY:  # the one other marker that has no segment
            continue
        body = _segment(stream)
        if marker in _START_OF_FRAME and len(body) > 5:
            progressive, components = marker in _PROGRESSIVE, body[5]
        elif marker == _START_OF_SCAN:
            count += 1
            interleaved = bool(body) and body[0] >= components
            if count > limit or (count == 1 and interleaved and not progressive):
                break
    return Scans(progressive, count)


def _next_marker(stream: BinaryIO) -> int | None:
    """Skip to the next marker and past it, over coded data or whatever else lies before it."""
    position, tail = stream.tell(), b""
    chunk_bytes = _HEADER_BYTES
    while chunk := stream.read(chunk_bytes):
        if match := _MARKER.search(tail + chunk):
            stream.seek(position - len(tail) + match.end())
            return match[1][0]
        position, chunk_bytes = position + len(chunk), _CHUNK_BYTES
        tail = b"\xff" if chunk.endswith(b"\xff") else b""
    return None


def _segment(stream: BinaryIO) -> bytes:
    """Skip a segment; return the start of what is in it, after its length."""
    start = stream.tell()
    head = stream.read(12)
    length = int.from_bytes(head[:2], "big")
    stream.seek(start + max(2, length))
    return head[2 : max(2, length)]
