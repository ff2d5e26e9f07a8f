"""What becomes of one picture, and how the decoding process tells it to its parent.

The process writes one JSON line for each thing that it has finished into a memory file, and all thumbnails into
another. So whatever kills it, what was finished before counts. The parent reads the lines as it reads all that
strangers touch: bounded, and checked against what was asked.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

MEDIA_TYPES = frozenset(
    f"image/{name}" for name in ("jpeg", "png", "gif", "webp", "avif", "tiff", "bmp", "vnd.microsoft.icon", "heic")
)
_MAX_REPORT_BYTES = 2**20
_MAX_REASON = 300
_CHUNK_BYTES = 2**20


class MemoryFile:
    """An anonymous file in memory, read by offset, so that it can be shared; closed when it is dropped."""

    def __init__(self, name: str) -> None:
        self.fd = os.memfd_create(name, os.MFD_CLOEXEC)

    def read(self, size: int, offset: int) -> bytes:
        """At most ``size`` bytes from ``offset``."""
        return os.pread(self.fd, size, offset)

    @property
    def size_bytes(self) -> int:
        """How much was written."""
        return os.fstat(self.fd).st_size

    def close(self) -> None:
        """Give the memory back. A second call does nothing."""
        descriptor, self.fd = self.fd, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            self.close()


@dataclass(frozen=True, slots=True)
class Picture:
    """The original: its media type by content, and its upright size in pixels."""

    media_type: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Made:
    """One finished thumbnail. Its bytes stay in memory outside this process until the last reference is dropped."""

    name: str
    media_type: str
    width: int
    height: int
    size: int
    _file: MemoryFile = field(repr=False, compare=False)
    _offset: int = field(repr=False, compare=False)

    def read(self) -> bytes:
        """All bytes of the thumbnail."""
        return self._file.read(self.size, self._offset)

    def read_start(self, size: int) -> bytes:
        """The first ``size`` bytes, or all if there are fewer."""
        return self._file.read(min(size, self.size), self._offset)

    def chunks(self, chunk_bytes: int = _CHUNK_BYTES) -> Iterator[bytes]:
        """The bytes piece by piece."""
        for done in range(0, self.size, chunk_bytes):
            yield self._file.read(min(chunk_bytes, self.size - done), self._offset + done)

    def open(self) -> io.BufferedReader:
        """The bytes as a stream, for whatever takes an open file."""
        return io.BufferedReader(_Slice(self._file, self._offset, self.size), _CHUNK_BYTES)


class _Slice(io.RawIOBase):
    def __init__(self, file: MemoryFile, offset: int, size: int) -> None:
        self._file, self._at, self._end = file, offset, offset + size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        data = self._file.read(min(len(buffer), self._end - self._at), self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


@dataclass(frozen=True, slots=True)
class PictureOutcome:
    """What was found and made. ``picture`` is ``None`` for what is no picture that is known here.

    Each name that was asked for is in exactly one of ``made`` and ``failed`` (name to reason, one line of plain text).
    """

    picture: Picture | None
    made: Mapping[str, Made]
    failed: Mapping[str, str]


def clean(reason: object) -> str:
    """A reason as one printable line of bounded length: exception texts quote hostile bytes."""
    text = " ".join(str(reason).split())
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= _MAX_REASON else f"{text[:_MAX_REASON]}…"


class Reporter:
    """The decoding process's side: what is written here outlives the process."""

    def __init__(self, report_fd: int, output_fd: int) -> None:
        self._report_fd, self._output_fd, self._written = report_fd, output_fd, 0

    def picture(self, picture: Picture) -> None:
        """Say what the original is."""
        self._say({"picture": [picture.media_type, picture.width, picture.height]})

    def made(self, name: str, data: bytes, media_type: str, width: int, height: int) -> None:
        """Hand over a thumbnail. Raises ``OSError`` when all together have become too large."""
        view = memoryview(data)
        offset = self._written
        while view:
            written = os.pwrite(self._output_fd, view, offset + len(data) - len(view))
            view = view[written:]
        self._written += len(data)
        self._say({"made": name, "at": offset, "size": len(data), "is": [media_type, width, height]})

    def failed(self, name: str, reason: object) -> None:
        """Say why a thumbnail cannot be."""
        self._say({"failed": name, "reason": clean(reason)})

    def input_error(self, errno: int) -> None:
        """Say that the original could not be read: nothing is wrong with its bytes."""
        self._say({"input_error": errno})

    def _say(self, line: dict[str, object]) -> None:
        os.write(self._report_fd, json.dumps(line).encode() + b"\n")


@dataclass(slots=True)
class Report:
    """The parent's side: what the lines say, as far as they are whole and make sense."""

    picture: Picture | None = None
    made: dict[str, Made] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    input_error: int | None = None


def read_report(report: MemoryFile, output: MemoryFile, asked: frozenset[str]) -> Report:
    """Read what a process has reported. Never raises for what is in it; a broken line ends the reading."""
    result = Report()
    for line in report.read(min(_MAX_REPORT_BYTES, report.size_bytes), 0).splitlines():
        try:
            _take(dict(json.loads(line)), result, output, asked)
        except (ValueError, TypeError, KeyError, RecursionError):
            break
    return result


def _take(line: dict[str, Any], result: Report, output: MemoryFile, asked: frozenset[str]) -> None:
    if "picture" in line:
        result.picture = _picture(*line["picture"])
    elif "input_error" in line:
        result.input_error = _natural(line["input_error"], 4096)
    elif line.get("failed") in asked:
        result.failed[line["failed"]] = clean(line["reason"])
    elif line.get("made") in asked:
        size = _natural(line["size"], output.size_bytes)
        offset = _natural(line["at"], output.size_bytes - size)
        shape = _picture(*line["is"])
        name = line["made"]
        result.made[name] = Made(name, shape.media_type, shape.width, shape.height, size, output, offset)


def _picture(media_type: object, width: object, height: object) -> Picture:
    if media_type not in MEDIA_TYPES:
        raise ValueError
    return Picture(str(media_type), _natural(width, 2**32), _natural(height, 2**32))


def _natural(value: object, most: int) -> int:
    if not isinstance(value, int) or not 0 <= value <= most:
        raise ValueError
    return value
