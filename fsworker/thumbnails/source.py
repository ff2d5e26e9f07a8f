"""The original as a stream that shares nothing with the descriptor it was made of, but its file."""

from __future__ import annotations

import io
import os
from typing import Any


class SourceFile(io.RawIOBase):
    """Read an open file by offset.

    The position of a descriptor is shared with the parent process, so it is left alone. There is no ``fileno``, so
    libraries read through here and nothing reopens or maps the file. An error of the disk is kept in ``error``, for
    decoders turn it into an opinion about the picture.
    """

    def __init__(self, fd: int) -> None:
        self._fd, self._position = fd, 0
        self.size = os.fstat(fd).st_size
        self.error: int | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        try:
            count = os.preadv(self._fd, [buffer], self._position)
        except OSError as error:
            self.error = error.errno
            raise
        self._position += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError("negative position")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position
