"""Content on its way into a store: read once, hashed on the way, in memory or in an unnamed file.

The bytes are always copied (or, where the filesystem can, cloned) into a file that nobody else has: whoever holds a
descriptor, a mapping or another link of the *source* can change it after it was hashed, whatever its mode.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable

from fsworker import copying, durable
from fsworker.errors import UploadRejectedError
from fsworker.model import Hash
from fsworker.store import layout
from fsworker.store.handle import SourceError
from fsworker.store.reading import ObjectReader

_HEAD_BYTES = 1 << 16
"""What is read first. Up to here the allocator has room at hand; for a MiB it asks the kernel each time (35 µs)."""


class Candidate:
    """Content with its hash: in memory (``data``) until it needs a file, then in an unnamed file (``fd``)."""

    __slots__ = ("data", "fd", "hash", "size_bytes")

    def __init__(self, name: Hash, size_bytes: int, data: bytes | None, fd: int | None = None) -> None:
        self.hash = name
        self.size_bytes = size_bytes
        self.data = data
        self.fd = fd

    def equals(self, stored_fd: int) -> bool:
        """Compare with a stored file, byte by byte."""
        data = self.data
        return copying.same_bytes(self.file, stored_fd) if data is None else copying.equals(stored_fd, data)

    @property
    def file(self) -> int:
        """The unnamed file; only once it is materialised."""
        if self.fd is None:
            raise ValueError(f"the candidate {self.hash} has no file yet")
        return self.fd

    def close(self) -> None:
        """Drop the unnamed file, if there is one."""
        if self.fd is not None:
            durable.close_unnamed(self.fd)
            self.fd = None


class Stager(ObjectReader):
    """The part of a store that makes candidates."""

    _cannot_clone = False

    def stage_source(self, fd: int) -> Candidate:
        """:meth:`stage_descriptor` for a file of the caller's own, whose read errors are raised as they are."""
        try:
            head, whole = _head_of(fd)
        except OSError as error:
            raise SourceError(error) from error
        if whole:
            return candidate_of(head)
        return self.stage(of_source(copying.descriptor_into(fd)), source_fd=fd, head=head)

    def stage_descriptor(
        self, fd: int, max_bytes: int | None = None, progress: Callable[[int], None] | None = None
    ) -> Candidate:
        """Read a descriptor to its end, as :meth:`stage`."""
        head, whole = _head_of(fd)
        if max_bytes is not None and len(head) > max_bytes:
            raise _too_large(max_bytes)
        if whole:
            return candidate_of(head)
        return self.stage(copying.descriptor_into(fd), max_bytes, progress, source_fd=fd, head=head)

    def stage(
        self,
        read_into: Callable[[memoryview], int],
        max_bytes: int | None = None,
        progress: Callable[[int], None] | None = None,
        *,
        source_fd: int | None = None,
        head: bytes = b"",
    ) -> Candidate:
        """Read content to its end. What fits one buffer stays in memory; more goes to an unnamed file at once.

        ``source_fd``: what ``read_into`` reads, if that is a file; where the filesystem can, its blocks are shared.
        ``head``: what was read from it before, less than a buffer. Raises :class:`UploadRejectedError` past ``max_bytes``.
        """
        with copying.borrowed_buffer() as room:
            filled = len(head)
            room[:filled] = head
            while filled < len(room) and (count := read_into(room[filled:])):
                filled += count
                if max_bytes is not None and filled > max_bytes:
                    raise _too_large(max_bytes)
            if filled < len(room):
                return candidate_of(bytes(room[:filled]))
            fd = self.open_unnamed()
            try:
                if source_fd is not None and self._clone(source_fd, fd, filled):
                    copied = self._hash_clone(fd, max_bytes, progress)
                else:
                    copied = copying.copy_hashed(read_into, fd, max_bytes, progress, head=room)
            except copying.TooLargeError:
                durable.close_unnamed(fd)
                raise _too_large(max_bytes) from None
            except BaseException:
                durable.close_unnamed(fd)
                raise
        return Candidate(Hash(copied.sha1), copied.size_bytes, None, fd)

    def _clone(self, source_fd: int, fd: int, filled: int) -> bool:
        """Share the blocks of a regular file that was read from its beginning. False where that cannot be."""
        if self._cannot_clone or not stat.S_ISREG(os.fstat(source_fd).st_mode):
            return False
        if os.lseek(source_fd, 0, os.SEEK_CUR) != filled:
            return False
        cloned = durable.clone(source_fd, fd)
        if not cloned and os.fstat(source_fd).st_dev == os.fstat(fd).st_dev:
            self._cannot_clone = True  # do not ask again
        return cloned

    def _hash_clone(self, fd: int, max_bytes: int | None, progress: Callable[[int], None] | None) -> copying.Copied:
        """Hash what was cloned (and not what it was cloned from: that may change)."""
        if max_bytes is not None and os.fstat(fd).st_size > max_bytes:
            raise copying.TooLargeError
        return copying.hash_descriptor(fd, progress)

    def open_unnamed(self) -> int:
        """A file for content that is to be stored; :func:`fsworker.durable.close_unnamed` closes it."""
        self.prepare()
        return durable.open_unnamed(self.fd, layout.TEMP, layout.FILE_MODE)

    def materialise(self, candidate: Candidate, *, sync: bool) -> None:
        """Give the candidate its unnamed file, with the mode and group of a stored one, synced if asked."""
        if candidate.data is not None and candidate.fd is None:
            candidate.fd = self.open_unnamed()
            durable.write_all(candidate.fd, candidate.data)
        self.dress(candidate.file)
        if sync:
            self.fsync(candidate.file)

    def dress(self, fd: int) -> None:
        """Give a file that is to be stored the store's group and mode 0444. Before it has a name in ``Data/``."""
        status = os.fstat(fd)
        if status.st_gid != self.gid:
            os.fchown(fd, -1, self.gid)
        if stat.S_IMODE(status.st_mode) != layout.FILE_MODE:  # the umask took some, or it was another program's file
            os.fchmod(fd, layout.FILE_MODE)


def candidate_of(data: bytes) -> Candidate:
    """The candidate for content in memory. ``TypeError`` for what are no bytes; what could change is copied first."""
    if not isinstance(data, bytes):
        data = bytes(memoryview(data))
    return Candidate(Hash(hashlib.sha1(data, usedforsecurity=False).hexdigest()), len(data), data)


def open_source(path: str | os.PathLike[str]) -> int:
    """Open a file of the caller's to copy it into the store; its errors pass through translation as they are."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise SourceError(error) from error


def _head_of(fd: int) -> tuple[bytes, bool]:
    """Read the first bytes of a descriptor, and tell whether that is all.

    Most uploads end here: for a small file a plain ``read`` costs a third of one into the large buffer and a copy.
    """
    head = os.read(fd, _HEAD_BYTES)
    if len(head) == _HEAD_BYTES:
        return head, False
    more = os.read(fd, 1)  # nothing, nearly always: room for more costs as much as the call
    return head + more, not more


def of_source(read_into: Callable[[memoryview], int]) -> Callable[[memoryview], int]:
    def guarded(room: memoryview) -> int:
        try:
            return read_into(room)
        except OSError as error:
            raise SourceError(error) from error

    return guarded


def _too_large(max_bytes: int | None) -> UploadRejectedError:
    return UploadRejectedError(f"more than the {max_bytes:,} bytes allowed; send less, or have max_bytes raised")
