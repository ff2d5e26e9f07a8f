"""Manifests of imports: which path has which hash, and what an import or an export did.

JSON lines: first ``{"fsworker": "import", "version": 1, "store": id, "source": directory}``, then one
``{"path", "hash", "size", "mtime_ns"}`` for each file; of a path that comes twice the last line counts. Paths are
relative to the source; bytes that are no UTF-8 are written as ``\\udcXX`` (Python's surrogateescape).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from fsworker import durable
from fsworker.errors import ConfigError
from fsworker.model import Hash, parse_hash, shorten

OnFile = Callable[[str, int], None]
"""Told of each file when it is dealt with: its path and its bytes."""


@dataclass(frozen=True)
class Entry:
    """A line of a manifest."""

    path: str
    hash: Hash
    size: int
    mtime_ns: int

    def matches(self, status: os.stat_result) -> bool:
        """Whether a file looks as it did when it was imported."""
        return (status.st_size, status.st_mtime_ns) == (self.size, self.mtime_ns)


@dataclass
class Report:
    """What an import or an export did. ``failed`` maps paths to reasons; ``skipped``: what is no regular file."""

    files: int = 0
    bytes: int = 0
    duplicates: int = 0
    done_before: int = 0
    skipped: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {**asdict(self), "failed": {printable(path): reason for path, reason in self.failed.items()}}


def printable(path: str) -> str:
    """A path as text that every terminal and file takes."""
    return path.encode("utf-8", "backslashreplace").decode()


def read_manifest(path: Path) -> tuple[dict[str, Any], dict[str, Entry]]:
    """A manifest's first line, and its entries by path. A last line that was cut off by a crash is left out.

    Raises :class:`ConfigError` for what is no manifest.
    """
    head: dict[str, Any] = {}
    entries: dict[str, Entry] = {}
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream):
                if not line.endswith(b"\n"):
                    break
                if number == 0:
                    head = _head(line)
                else:
                    entry = _entry(line)
                    entries[entry.path] = entry
    except OSError as error:
        raise ConfigError(f"the manifest {path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path} is no manifest of an import, or is damaged: {error}") from error
    return head, entries


def _head(line: bytes) -> dict[str, Any]:
    head = json.loads(line)
    if not isinstance(head, dict) or (head.get("fsworker"), head.get("version")) != ("import", 1):
        raise ValueError("its first line is not that of one")
    return head


def _entry(line: bytes) -> Entry:
    tree = json.loads(line)
    path, size, mtime_ns = tree["path"], tree["size"], tree["mtime_ns"]
    if not isinstance(path, str) or not isinstance(size, int) or not isinstance(mtime_ns, int):
        raise TypeError(f"a line has fields of the wrong type: {shorten(line)}")
    return Entry(path, parse_hash(tree["hash"]), size, mtime_ns)


class ManifestWriter:
    """A manifest that grows, durably. What was cut off at its end by a crash is removed first."""

    def __init__(self, path: Path, head: dict[str, Any]) -> None:
        self._stream: BinaryIO = path.open("ab+", buffering=0)
        size = self._stream.seek(0, os.SEEK_END)
        if size == 0:
            self._write(_line(head))
            durable.fsync_path(str(path.resolve().parent), -1)
        else:
            self._stream.truncate(_whole_lines(self._stream, size))

    def add(self, entries: Iterable[Entry]) -> None:
        """Write lines; on disk on return."""
        self._write(b"".join(_line(asdict(entry)) for entry in entries))

    def _write(self, data: bytes) -> None:
        durable.write_all(self._stream.fileno(), data)
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def __enter__(self) -> ManifestWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _line(tree: dict[str, Any]) -> bytes:
    return json.dumps(tree).encode() + b"\n"


def _whole_lines(stream: BinaryIO, size: int) -> int:
    """The length of a file without an unfinished last line."""
    start = max(0, size - (1 << 20))
    tail = os.pread(stream.fileno(), size - start, start)
    return start + tail.rfind(b"\n") + 1
