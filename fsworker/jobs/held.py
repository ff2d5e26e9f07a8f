"""A job that this process holds, as the parts of its life hand it on: its files, its request, what was counted."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

from fsworker.errors import StoreUnavailableError, UploadRejectedError
from fsworker.model import IngestRequest, Request
from fsworker.spool.directory import SpoolDirectory, SpooledRequest
from fsworker.store.handle import StoreHandle
from fsworker.store.locks import job_lock


@dataclass
class HeldJob:
    """A job whose lock this process holds.

    ``request`` is ``None`` when it cannot be understood; ``is_new`` when there was no request file for it; ``counted``
    when this attempt was counted in it.
    """

    id: str
    spool: SpoolDirectory
    spooled: SpooledRequest
    request: Request | None
    is_new: bool = False
    counted: bool = False

    @property
    def upload(self) -> str | None:
        """The name of the upload, for jobs that have one."""
        return self.request.upload if isinstance(self.request, IngestRequest) else None

    @property
    def understood(self) -> Request:
        """The request. Raises :class:`StoreUnavailableError` when there is none that can be understood."""
        if self.request is None:
            raise StoreUnavailableError(f"job {self.id} has no request")
        return self.request

    @property
    def ingest(self) -> IngestRequest:
        """The request of an ingest. Raises :class:`UploadRejectedError` when its file asks for something else."""
        request = self.understood
        if not isinstance(request, IngestRequest):
            raise UploadRejectedError(
                f"job {self.id} was sent as an ingest, but its request file asks for a {self.spooled.task}"
            )
        return request


def holding(store: StoreHandle, job_id: str) -> AbstractContextManager[bool]:
    """Hold a job's lock, if nobody does: gives whether it was obtained. It dies with its process."""
    return job_lock(store.fd, job_id, store.modes.lock_file)
