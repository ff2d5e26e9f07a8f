"""Getting files out of a store: under the paths of a manifest, or under their hashes."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fsworker import copying, durable
from fsworker.adoption.manifest import OnFile, Report
from fsworker.errors import InvalidHashError, NotStoredError, StoreUnavailableError
from fsworker.model import Hash, parse_hash
from fsworker.store.reading import ObjectReader


class _PathError(Exception):
    """One file that cannot be exported; the others can."""


def export_files(
    store: ObjectReader, wanted: Iterable[tuple[str, str, int | None]], target: Path, on_file: OnFile | None = None
) -> Report:
    """Write stored files below ``target``: each ``(path, hash, mtime_ns or None)``; shared blocks where possible.

    Every file is hashed on the way and appears whole, under its name, or not at all. What is there already with the
    same bytes counts as done before; with others it is left alone and noted as failed. So is a path that leads out of
    ``target``. Raises :class:`StoreUnavailableError` when the target cannot be written.
    """
    target.mkdir(parents=True, exist_ok=True)
    root_fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    report = Report()
    try:
        for path, name, mtime_ns in wanted:
            try:
                size_bytes = _export(store, root_fd, path, parse_hash(name), mtime_ns, report)
            except (InvalidHashError, NotStoredError, _PathError) as error:
                report.failed[path] = str(error)
                continue
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS):
                    raise StoreUnavailableError(f"{target / path} could not be written: {error.strerror}") from error
                report.failed[path] = error.strerror or str(error)
                continue
            if on_file is not None:
                on_file(path, size_bytes)
        durable.syncfs(root_fd)
    finally:
        os.close(root_fd)
    return report


def _export(store: ObjectReader, root_fd: int, path: str, name: Hash, mtime_ns: int | None, report: Report) -> int:
    *directories, last = _parts(path)
    stored_fd = store.open_descriptor(name)
    try:
        size_bytes = os.fstat(stored_fd).st_size
        with _directory(root_fd, directories) as directory_fd:
            if _is_there(directory_fd, last, stored_fd):
                report.done_before += 1
            else:
                _copy_out(stored_fd, name, directory_fd, last, mtime_ns)
                report.files += 1
                report.bytes += size_bytes
        return size_bytes
    finally:
        os.close(stored_fd)


def _parts(path: str) -> list[str]:
    """The parts of a relative path that stays below where it begins."""
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\0" in path:
        raise _PathError("this path leads elsewhere; only relative ones without '..' are written")
    return parts


@contextmanager
def _directory(root_fd: int, parts: list[str]) -> Iterator[int]:
    """A directory below ``root_fd``, made if need be; no symbolic link on the way is followed."""
    fd = os.dup(root_fd)
    try:
        for part in parts:
            with suppress(FileExistsError):
                os.mkdir(part, 0o777, dir_fd=fd)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
            inner = os.open(part, flags, dir_fd=fd)
            os.close(fd)
            fd = inner
        yield fd
    finally:
        os.close(fd)


def _is_there(directory_fd: int, name: str, stored_fd: int) -> bool:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory_fd)
    except FileNotFoundError:
        return False
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode) or not copying.same_bytes(fd, stored_fd):
            raise _PathError("another file is there already; move it away, or export elsewhere")
        return True
    finally:
        os.close(fd)


def _copy_out(stored_fd: int, name: Hash, directory_fd: int, last: str, mtime_ns: int | None) -> None:
    temporary = f".{secrets.token_hex(16)}.new"
    fd = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666, dir_fd=directory_fd)
    try:
        try:
            if durable.clone(stored_fd, fd):
                copied = copying.hash_descriptor(fd)
            else:
                copied = copying.copy_hashed(copying.descriptor_into(stored_fd), fd)
            if copied.sha1 != name:
                raise _PathError(f"the stored file is rotten; run: fsworker verify --repair {name}")
            if mtime_ns is not None:
                os.utime(fd, ns=(mtime_ns, mtime_ns))
        finally:
            os.close(fd)
        os.link(temporary, last, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
    finally:
        os.unlink(temporary, dir_fd=directory_fd)
