"""What can be ingested, and reading it in pieces."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from fsworker import copying
from fsworker.errors import UploadRejectedError
from fsworker.spool.upload import SpooledUpload, Upload

Content = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO
"""What has to be copied into the spool: a path, bytes, an object with ``read(n)`` that is read from where it stands to
its end."""

Source = Content | Upload | SpooledUpload
"""What can be ingested: :data:`Content`, or what is in the spool already (:mod:`fsworker.spool.upload`)."""

ReadInto = Callable[[memoryview], int]
"""Fills a buffer from its beginning, and returns how many bytes it got; 0 at the end."""


@contextlib.contextmanager
def reading(source: Content) -> Iterator[ReadInto]:
    """A function that fills a buffer from ``source``. Opens (and closes) what is a path; leaves a stream open.

    Raises :class:`UploadRejectedError` for a path that cannot be read or is no regular file, ``OSError`` for one that
    cannot be read now, ``TypeError`` for what is none of these.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        yield _from_bytes(memoryview(source).cast("B"))
    elif isinstance(source, (str, os.PathLike)):
        path = Path(source)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO is refused, not waited for
        except OSError as error:
            raise _unreadable(path, error) from error
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise UploadRejectedError(f"{path} is not a regular file")
            yield copying.descriptor_into(fd)
        finally:
            os.close(fd)
    elif hasattr(source, "read"):
        yield copying.reader_into(source)
    else:
        raise TypeError(f"cannot ingest {type(source).__name__}: give a path, bytes, or a file open in binary mode")


def _unreadable(path: Path, error: OSError) -> UploadRejectedError | OSError:
    if error.errno in (errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
        return UploadRejectedError(f"{path} cannot be read: {error.strerror}")
    return error


def _from_bytes(view: memoryview) -> ReadInto:
    position = 0

    def read_into(room: memoryview) -> int:
        nonlocal position
        part = view[position : position + len(room)]
        room[: len(part)] = part
        position += len(part)
        return len(part)

    return read_into
