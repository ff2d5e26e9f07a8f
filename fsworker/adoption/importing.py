"""Bringing a directory of files into a store.

An import reads a tree, stores every regular file, and writes a manifest (:mod:`fsworker.adoption.manifest`), so that an
application can be told which path has which hash. The source is never changed. An import that was stopped is taken up
by the same command: what the manifest says is done, and has not changed since, is only freshened. Each line is written
after its file is on disk.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsworker.adoption.manifest import Entry, ManifestWriter, OnFile, Report, read_manifest
from fsworker.errors import ConfigError, FSWorkerError, StoreUnavailableError
from fsworker.model import shorten
from fsworker.store.batch import Batch
from fsworker.store.objects import ObjectStore

_FLUSH_FILES = 200
_FLUSH_BYTES = 256 << 20


@dataclass(frozen=True)
class Found:
    """A regular file of the source: its path relative to it, and its directory, open while it is dealt with."""

    path: str
    name: str
    directory_fd: int


def walk(source: Path, report: Report) -> Iterator[Found]:
    """All regular files below ``source``, in order; no link is followed. What cannot be read is noted as failed."""

    def failed(error: OSError) -> None:
        report.failed[os.path.relpath(str(error.filename), source)] = error.strerror or str(error)

    for directory, subdirectories, names, fd in os.fwalk(source, onerror=failed):
        subdirectories.sort()
        for name in sorted(names):
            relative = os.path.relpath(os.path.join(directory, name), source)
            try:
                regular = stat.S_ISREG(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode)
            except OSError as error:
                report.failed[relative] = error.strerror or str(error)
                continue
            if regular:
                yield Found(relative, name, fd)
            else:
                report.skipped += 1
        report.skipped += sum(
            stat.S_ISLNK(os.stat(n, dir_fd=fd, follow_symlinks=False).st_mode) for n in subdirectories
        )


def measure(source: Path) -> tuple[int, int]:
    """Files and bytes below ``source``, for a progress bar."""
    files = size = 0
    for found in walk(source, Report()):
        with suppress(OSError):  # the import itself reports it
            size += os.stat(found.name, dir_fd=found.directory_fd, follow_symlinks=False).st_size
            files += 1
    return files, size


def import_tree(store: ObjectStore, source: Path, manifest: Path, on_file: OnFile | None = None) -> Report:
    """Store every regular file below ``source`` and note it in ``manifest``; see the module.

    One file that cannot be read, or changes while it is read, is noted as failed, and the others go on. Raises
    :class:`ConfigError` (no directory, a manifest of another import, a source that contains the store or lies in it)
    and :class:`StoreUnavailableError` (disk full): what was noted until then is done, the same call goes on from there.
    """
    source = source.resolve()
    _check_source(store, source, manifest)
    head = {"fsworker": "import", "version": 1, "store": store.config.store_id, "source": os.fsdecode(source)}
    before = _done_before(manifest, head)
    with ManifestWriter(manifest, head) as writer:
        importing = _Import(store, writer, before, on_file)
        importing.run(source)
        return importing.report


def _check_source(store: ObjectStore, source: Path, manifest: Path) -> None:
    if not source.is_dir():
        raise ConfigError(f"{source} is not a directory")
    root = store.root.resolve()
    if root == source or source in root.parents or root in source.parents:
        raise ConfigError(f"{source} and the store {root} contain one another; import a directory of its own")
    place = manifest.resolve().parent
    if place == source or source in place.parents:
        raise ConfigError(
            f"the manifest {manifest} would lie in the source, which an import leaves alone; name another"
        )


def _done_before(manifest: Path, head: dict[str, Any]) -> dict[str, Entry]:
    if not manifest.exists() or manifest.stat().st_size == 0:
        return {}
    old, entries = read_manifest(manifest)
    if old and (old.get("store"), old.get("source")) != (head["store"], head["source"]):
        raise ConfigError(
            f"{manifest} is the manifest of another import (of {shorten(old.get('source'))}); name another with --manifest"
        )
    return entries


class _Import:
    """An import that is running."""

    def __init__(
        self, store: ObjectStore, writer: ManifestWriter, before: dict[str, Entry], on_file: OnFile | None
    ) -> None:
        self._store, self._writer, self._before, self._on_file = store, writer, before, on_file
        self._waiting: list[Entry] = []
        self._waiting_bytes = 0
        self.report = Report()

    def run(self, source: Path) -> None:
        with Batch(self._store) as batch:
            for found in walk(source, self.report):
                try:
                    size_bytes = self._file(batch, found)
                except (_SourceError, FSWorkerError) as error:
                    if isinstance(error, StoreUnavailableError):
                        raise
                    self.report.failed[found.path] = str(error)
                    continue
                if self._on_file is not None:
                    self._on_file(found.path, size_bytes)
                if len(self._waiting) >= _FLUSH_FILES or self._waiting_bytes >= _FLUSH_BYTES:
                    self._flush(batch)
            self._flush(batch)
        if self.report.done_before:
            self._store.syncfs()  # the age of what was freshened

    def _file(self, batch: Batch, found: Found) -> int:
        with _opened(found) as fd:
            status = os.fstat(fd)
            known = self._before.get(found.path)
            if known is not None and known.matches(status) and self._store.freshen(known.hash, sync=False):
                self.report.done_before += 1
                return status.st_size
            try:
                stored = batch.put_source(fd)
            except OSError as error:
                raise _SourceError(error.strerror or str(error)) from error
            if _identity(os.fstat(fd)) != _identity(status):
                raise _SourceError("it changed while it was read; import again")
        self._waiting.append(Entry(found.path, stored.hash, stored.size_bytes, status.st_mtime_ns))
        self._waiting_bytes += stored.size_bytes
        self.report.files += 1
        self.report.bytes += stored.size_bytes
        self.report.duplicates += stored.duplicate
        return stored.size_bytes

    def _flush(self, batch: Batch) -> None:
        """Files first, then the lines that name them."""
        batch.flush()
        if self._waiting:
            self._writer.add(self._waiting)
        self._waiting, self._waiting_bytes = [], 0


class _SourceError(Exception):
    """A file of the source that cannot be imported; the others can."""


@contextmanager
def _opened(found: Found) -> Iterator[int]:
    """A file of the source, open for reading; where that is allowed its access time stays as it is."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        try:
            fd = os.open(found.name, flags | os.O_NOATIME, dir_fd=found.directory_fd)
        except PermissionError:  # only its owner may ask for that
            fd = os.open(found.name, flags, dir_fd=found.directory_fd)
    except OSError as error:
        raise _SourceError(error.strerror or str(error)) from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise _SourceError("it is no regular file any more")
        yield fd
    finally:
        os.close(fd)


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
