"""The spool directory of one application: names, and the small files beside the uploads.

The spool is the truth; a message on the queue is a doorbell. For the job ``shop.<uuid>`` there may be, in ``Spool/shop``:

========================= ======================================================================================
``<name>``                the upload, committed by rename; written by the application
``.<name>.part``          the upload while it is being written
``.<job id>.json``        the request: what is to be done; there as long as the job is not finished
``.<job id>.taken``       the upload, taken by the worker (a re-used name is never eaten by a redelivered message)
``.<job id>.done``        the outcome, kept for ``result_retention``; written by the worker only
``.<random>.new``         a small file on its way to its name; the sweep removes old ones
``.store.json``           the store's id, for clients that see only this directory
========================= ======================================================================================

Whatever the application could have written is read as a stranger's message: bounded, parsed strictly, never followed.
This module is used on both sides and needs neither the store nor Redis.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fsworker import durable
from fsworker.errors import ConfigError, UploadRejectedError
from fsworker.model import Outcome, check_app, check_job_id
from fsworker.openat2 import open_beneath

STORE_NOTE = ".store.json"
MAX_REQUEST_BYTES = 512 << 10
MAX_OUTCOME_BYTES = 1 << 20
SMALL_FILE_MODE = (
    0o640  # setgid on the directory gives them its group: the application reads outcomes, the worker requests
)


class SpooledRequest(BaseModel):
    """The content of a request file.

    ``request`` are the task's keyword arguments; ``store`` the id of the store it is meant for (empty: any).
    ``attempts`` counts beginnings that did not end, ``failures`` transient failures in a row; ``not_before`` (seconds
    since the epoch) is the back-off after one, ``problem`` its message.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    task: Literal["ingest", "thumbnail", "claim"]
    request: dict[str, Any]
    store: str = ""
    attempts: Annotated[int, Field(ge=0, le=10**6)] = 0
    failures: Annotated[int, Field(ge=0, le=10**6)] = 0
    not_before: Annotated[float, Field(ge=0, le=10**11, allow_inf_nan=False)] = 0.0
    problem: Annotated[str, Field(max_length=2000)] = ""


@dataclass(frozen=True)
class Entry:
    """A name in a spool directory: ``kind`` is ``upload``, ``part``, ``json``, ``taken``, ``done``, ``new`` or ``other``.

    ``key`` is the job id, or the upload's name.
    """

    name: str
    kind: Literal["upload", "part", "json", "taken", "done", "new", "other"]
    key: str


def request_name(job_id: str) -> str:
    """The request file of a job."""
    return f".{job_id}.json"


def taken_name(job_id: str) -> str:
    """The upload of a job once the worker has it."""
    return f".{job_id}.taken"


def done_name(job_id: str) -> str:
    """The outcome of a job."""
    return f".{job_id}.done"


def part_name(upload: str) -> str:
    """An upload that is being written."""
    return f".{upload}.part"


class SpoolDirectory:
    """``Spool/<app>``, open by descriptor. Raises :class:`ConfigError` when it is not there or closed to this process."""

    def __init__(self, path: str | os.PathLike[str], app: str) -> None:
        self.app = check_app(app)
        self.path = Path(path)
        try:
            self.fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise ConfigError(
                f"{self.path} does not exist: application {app!r} is not registered with this store. "
                f"Register it with: fsworker app add {app}"
            ) from None
        except OSError as error:
            raise ConfigError(
                f"{self.path} cannot be opened: {error.strerror}. The application's user must be in the group of that "
                f"directory: usermod -aG <group> <user>, then start it again"
            ) from None

    def close(self) -> None:
        """Release the descriptor; closing twice is harmless."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> SpoolDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # When the interpreter ends, modules may be gone before their objects; the kernel closes the descriptor then.
        if os is not None and getattr(self, "fd", -1) >= 0:
            self.close()

    def is_in_place(self) -> bool:
        """Whether the path still leads to this directory; false once it was removed, or moved and made again."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self.fd))
        except FileNotFoundError:
            return False

    # -- small files -----------------------------------------------------------------------------------------------

    def write_request(
        self, job_id: str, request: SpooledRequest, *, sync: bool = True, sync_content: bool | None = None
    ) -> None:
        """Write, or replace, a job's request file atomically; for the rest see :func:`durable.replace_small_file`."""
        tree = request.model_dump(mode="json", exclude_defaults=True)
        self._write(request_name(job_id), tree, sync=sync, sync_content=sync_content)

    def read_request(self, job_id: str) -> SpooledRequest | None:
        """A job's request, or ``None`` when there is none.

        Raises :class:`UploadRejectedError` when it makes no sense, or this process may not read it.
        """
        try:
            data = self._read(request_name(job_id), MAX_REQUEST_BYTES)
        except PermissionError:
            raise UploadRejectedError(
                f"the request file of job {job_id} cannot be read by uid {os.geteuid()}; write it with the group of its "
                f"directory and mode 0640, and send the upload again"
            ) from None
        if data is None:
            return None
        try:
            return SpooledRequest.model_validate(json.loads(data))
        except (ValueError, RecursionError) as error:
            reason = f"{error.error_count()} wrong fields" if isinstance(error, ValidationError) else "not JSON"
            raise UploadRejectedError(
                f"the request file of job {job_id} is broken ({reason}); send the upload again"
            ) from None

    def write_outcome(self, outcome: Outcome, *, sync: bool = True) -> None:
        """Write a job's outcome; with ``sync`` it is on disk on return."""
        self._write(done_name(outcome.job_id), outcome.model_dump(mode="json", exclude_none=True), sync=sync)

    def read_outcome(self, job_id: str, *, owners: frozenset[int] | None = None) -> Outcome | None:
        """A job's outcome, or ``None``. With ``owners`` (user ids), a file that somebody else wrote is no outcome."""
        data = self._read(done_name(job_id), MAX_OUTCOME_BYTES, owners)
        if data is None:
            return None
        try:
            outcome = Outcome.model_validate_json(data)
        except ValidationError:
            return None
        return outcome if outcome.job_id == job_id else None

    def write_store_note(self, store_id: str) -> None:
        """Tell clients that see only this directory which store it belongs to."""
        self._write(STORE_NOTE, {"id": store_id, "app": self.app})

    def has_own_note(self) -> bool:
        """Whether the note is there and has the directory's group: where that was changed, clients cannot read an old one."""
        status = self.status(STORE_NOTE)
        return status is not None and status.st_gid == os.fstat(self.fd).st_gid

    def read_store_id(self) -> str:
        """The id of the store that this spool belongs to; empty when it is not noted."""
        try:
            note = json.loads(self._read(STORE_NOTE, 4096) or b"{}")
        except ValueError:
            return ""
        found = note.get("id", "") if isinstance(note, dict) else ""
        return found if isinstance(found, str) else ""

    # -- names -----------------------------------------------------------------------------------------------------

    def exists(self, name: str) -> bool:
        """Whether there is anything of that name."""
        return self.status(name) is not None

    def status(self, name: str) -> os.stat_result | None:
        """``lstat`` of a name, or ``None``."""
        try:
            return os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def rename(self, source: str, target: str) -> bool:
        """Rename within the directory. False when there is no ``source``."""
        try:
            os.rename(source, target, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        except FileNotFoundError:
            return False
        return True

    def remove(self, name: str) -> bool:
        """Remove a file. False when there is none, or when it is a directory, which stays."""
        try:
            os.unlink(name, dir_fd=self.fd)
        except (FileNotFoundError, IsADirectoryError):
            return False
        return True

    def sync(self) -> None:
        """Make the names durable."""
        os.fsync(self.fd)

    def sync_file(self, name: str) -> None:
        """Put the content of a file on disk."""
        durable.fsync_file(name, self.fd)

    def entries(self) -> Iterator[Entry]:
        """Everything in the directory, in no order, without loading it whole."""
        with os.scandir(self.fd) as found:
            for item in found:
                yield parse_entry(item.name, self.app)

    def _write(self, name: str, tree: object, *, sync: bool = True, sync_content: bool | None = None) -> None:
        data = json.dumps(tree, separators=(",", ":")).encode()
        durable.replace_small_file(name, data, self.fd, SMALL_FILE_MODE, sync=sync, sync_content=sync_content)

    def _read(self, name: str, max_bytes: int, owners: frozenset[int] | None = None) -> bytes | None:
        try:
            fd = open_beneath(self.fd, name)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ELOOP, errno.EXDEV, errno.ENXIO):
                return None
            raise
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_size > max_bytes:
                return None
            if owners is not None and status.st_uid not in owners:
                return None
            return os.pread(fd, max_bytes, 0)
        finally:
            os.close(fd)


_KINDS: dict[str, Literal["json", "taken", "done"]] = {".json": "json", ".taken": "taken", ".done": "done"}


def parse_entry(name: str, app: str) -> Entry:
    """What a name in ``app``'s spool directory is."""
    if not name.startswith("."):
        return Entry(name, "upload", name)
    stem, suffix = os.path.splitext(name[1:])
    if suffix == ".part":
        return Entry(name, "part", stem)
    if suffix == ".new":
        return Entry(name, "new", stem)
    if suffix in _KINDS:
        try:
            return Entry(name, _KINDS[suffix], check_job_id(stem, app))
        except UploadRejectedError:
            return Entry(name, "other", stem)
    return Entry(name, "other", name)
