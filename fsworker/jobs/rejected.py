"""Refused uploads under ``Error/``: a second chance, or none."""

from __future__ import annotations

import os

from fsworker.errors import ConfigError, UploadNotFoundError, UploadRejectedError
from fsworker.model import check_job_id
from fsworker.spool.directory import SpoolDirectory, SpooledRequest, done_name, taken_name
from fsworker.store import errordir, layout
from fsworker.store.errordir import ErrorEntry
from fsworker.store.handle import StoreHandle
from fsworker.store.locks import job_lock


def find(handle: StoreHandle, stamp: str) -> ErrorEntry:
    """The entry ``stamp``. Raises :class:`UploadNotFoundError`."""
    for entry in errordir.entries(handle):
        if entry.stamp == stamp:
            return entry
    raise UploadNotFoundError(f"there is no entry {stamp!r} under Error/; 'fsworker error list' shows them")


def retry(handle: StoreHandle, stamp: str) -> str:
    """Give a refused upload back to its application's spool as the job that it was, and return the job's id.

    The failed outcome is withdrawn and the count of attempts begins anew; the sweep rings. A crash in between leaves the
    upload in one of the two places and the request in the spool. Raises :class:`UploadRejectedError` for an entry that is
    no refused upload, or whose job is in flight.
    """
    entry = find(handle, stamp)
    reason = entry.reason
    if entry.kind != errordir.REJECTED or len(entry.files) != 1:
        raise UploadRejectedError(f"{stamp} is no refused upload ({entry.kind}); only those can be retried")
    app, request = str(reason.get("app")), reason.get("request")
    job_id = check_job_id(reason.get("job_id"), app)
    if not isinstance(request, dict):
        raise UploadRejectedError(f"{stamp}: its request is lost; take the file by hand")
    with (
        SpoolDirectory(handle.root / layout.SPOOL / app, app) as spool,
        job_lock(handle.fd, job_id, handle.modes.lock_file) as obtained,
    ):
        if not obtained:
            raise UploadRejectedError(f"job {job_id} is being worked on right now; try again")
        directory = os.open(f"{layout.ERROR}/{stamp}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=handle.fd)
        try:
            spool.write_request(job_id, SpooledRequest(task="ingest", request=request))
            # Before the bytes come back: a crash in between must not leave them to a job that has ended.
            spool.remove(done_name(job_id))
            os.rename(entry.files[0], taken_name(job_id), src_dir_fd=directory, dst_dir_fd=spool.fd)
            spool.sync()
        except PermissionError as error:
            raise ConfigError(
                f"{stamp} cannot be moved to {spool.path}: {error.strerror}; run this as the worker's user"
            ) from error
        finally:
            os.close(directory)
    errordir.remove(handle, stamp)
    handle.fsync_directory(layout.ERROR)
    return job_id


def discard(handle: StoreHandle, stamp: str) -> None:
    """Delete an entry for good, whatever it is. Raises :class:`UploadNotFoundError`."""
    errordir.remove(handle, find(handle, stamp).stamp)
