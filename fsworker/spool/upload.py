"""An upload on its way into the spool, for whoever gets the bytes piece by piece: a web framework, a socket.

It is a file: frameworks that parse forms write to it, and applications may read it. Its bytes go straight to the
application's spool directory, under the name of an unfinished upload, so that handing it to ``Client.ingest`` copies
nothing. What is closed or forgotten before that is removed; what a crash leaves is removed by the sweep.

:class:`SpooledUpload` is the same for a file that somebody else has put into the spool directory: nginx, say.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fsworker import durable
from fsworker.errors import ConfigError, StoreUnavailableError, UploadNotFoundError, UploadRejectedError
from fsworker.model import check_upload_name, new_job_id
from fsworker.spool.directory import SpoolDirectory, part_name

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

UPLOAD_MODE = 0o640  # the worker reads it through the directory's group, whatever the umask


class Upload(io.RawIOBase):
    """A file in the spool that is not an upload yet. ``Client.open_upload`` makes one; close it, or ingest it.

    ``job_id`` is that of the job it will be. Writing raises :class:`UploadRejectedError` past ``max_bytes``, and
    :class:`StoreUnavailableError` when there is no room. Not thread-safe.
    """

    def __init__(self, spool: SpoolDirectory, max_bytes: int | None = None) -> None:
        self._fd = -1
        self._spool = spool
        self._max_bytes = max_bytes
        self._finished = False
        self.job_id = new_job_id(spool.app)
        self.upload = uuid.uuid4().hex
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        with spool_errors(spool.path):
            self._fd = os.open(part_name(self.upload), flags, 0o600, dir_fd=spool.fd)

    @property
    def ingested(self) -> bool:
        """Whether it has been handed over."""
        return self._finished

    @property
    def size_bytes(self) -> int:
        """How many bytes there are."""
        return os.fstat(self.fileno()).st_size

    def write(self, data: ReadableBuffer, /) -> int:
        """Write all of ``data``. ``ValueError`` once it is ingested."""
        if self._finished:
            raise ValueError("this upload was ingested; it does not change any more")
        view = memoryview(data).cast("B")
        if self._max_bytes is not None and self.tell() + len(view) > self._max_bytes:
            raise UploadRejectedError(f"more than the {self._max_bytes:,} bytes allowed; send less")
        with spool_errors(self._spool.path):
            durable.write_all(self.fileno(), view)
        return len(view)

    def readinto(self, room: WriteableBuffer, /) -> int:
        """Read into ``room`` from where the file stands."""
        return os.readv(self.fileno(), [room])

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move; as for every file."""
        return os.lseek(self.fileno(), offset, whence)

    def readable(self) -> bool:
        """True."""
        return True

    def writable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def fileno(self) -> int:
        """The descriptor. ``ValueError`` once it is closed or ingested."""
        if self._fd < 0:
            raise ValueError("this upload is closed")
        return self._fd

    def finish(self, *, sync: bool = True) -> None:
        """Make it what a worker may take, but for its name: the last change. With ``sync`` its bytes are on disk.

        Raises :class:`UploadRejectedError` the second time, :class:`StoreUnavailableError` when the sweep has taken it
        for abandoned.
        """
        if self._finished:
            raise UploadRejectedError(f"this upload was ingested already, as job {self.job_id}")
        with spool_errors(self._spool.path):
            if os.fstat(self.fileno()).st_nlink == 0:
                raise StoreUnavailableError("the upload took so long that it was given up; send it again")
            os.fchmod(self.fileno(), UPLOAD_MODE)
            if sync:
                os.fsync(self.fileno())
        self._finished = True

    def close(self) -> None:
        """Close it. If it was not ingested, it is removed."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):  # the sweep gets what is left
                self._spool.remove(part_name(self.upload))
            os.close(self._fd)
            self._fd = -1
        super().close()


class SpooledUpload:
    """A file that is in the spool directory already, under ``upload``, complete: written by nginx, or by rsync.

    Raises :class:`UploadRejectedError` for a name that cannot be, :class:`UploadNotFoundError` when there is none.
    """

    def __init__(self, spool: SpoolDirectory, upload: str) -> None:
        self._spool = spool
        self.upload = check_upload_name(upload)
        self.job_id = new_job_id(spool.app)
        status = spool.status(self.upload)
        if status is None or not stat.S_ISREG(status.st_mode):
            raise UploadNotFoundError(
                f"there is no upload {self.upload!r} in {spool.path}: was it written before this?"
            )

    def finish(self, *, sync: bool = True) -> None:
        """Put its bytes on disk: whoever wrote them may not have."""
        with spool_errors(self._spool.path):
            if sync:
                self._spool.sync_file(self.upload)


@contextlib.contextmanager
def spool_errors(path: Path) -> Iterator[None]:
    """Turn ``OSError`` of writing to the spool into what its receiver has to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            raise ConfigError(
                f"{path} is not writable for this process: its user must be in the group of that directory "
                f"(usermod -aG <group> <user>, then start it again)"
            ) from error
        if error.errno == errno.ENOENT:
            raise ConfigError(
                f"{path} is not what it was when this process opened it (removed, or made again?); start it again"
            ) from error
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ENFILE, errno.EMFILE):
            raise StoreUnavailableError(
                f"the upload could not be written to {path}: {error.strerror}. Nothing was accepted; "
                f"try again when there is room"
            ) from error
        raise
