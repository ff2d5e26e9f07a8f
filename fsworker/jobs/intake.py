"""Taking an upload out of a spool: by rename, then by descriptor, judged there and nowhere else.

An application may replace, link, truncate or write to anything in its spool at any moment. So a path is never checked:
the upload is renamed to a name of our own, opened without following anything, and what the descriptor shows is judged.
What is read from it is copied into a file of our own and hashed on the way (see :mod:`fsworker.durable`), so later
changes concern nobody.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from fsworker.errors import ConfigError, StoreUnavailableError, UploadNotFoundError, UploadRejectedError
from fsworker.openat2 import open_beneath
from fsworker.spool.directory import SpoolDirectory, taken_name
from fsworker.store import errordir, layout
from fsworker.store.handle import StoreHandle, log
from fsworker.store.owners import group_name, user_name

_RECENT = 100
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def take(spool: SpoolDirectory, job_id: str, upload: str, max_bytes: int) -> int:
    """Take an upload for a job and return a descriptor to read it from; taking again after a crash goes on.

    Raises :class:`UploadNotFoundError`, or :class:`UploadRejectedError` for what is not one regular file of at most
    ``max_bytes`` that this process can read, or :class:`StoreUnavailableError` where it lacks the group of the spool. The
    upload is then ``.<job id>.taken``.
    """
    taken = taken_name(job_id)
    if not spool.exists(taken) and not spool.rename(upload, taken):
        raise UploadNotFoundError(
            f"upload {upload!r} is not in the spool of application {spool.app!r}; write it there before sending the task, "
            f"and use a name once only"
        )
    try:
        fd = open_beneath(spool.fd, taken)
    except OSError as error:
        raise _explain_open(spool, upload, taken, error) from error
    try:
        _judge(os.fstat(fd), upload, max_bytes)
    except BaseException:
        os.close(fd)
        raise
    return fd


def check_member(spool: SpoolDirectory) -> None:
    """Raise :class:`StoreUnavailableError` where what cannot be read is this process's fault: it lacks the spool's group.

    A group that its user was given while it ran is not there before it is started again.
    """
    gid = os.fstat(spool.fd).st_gid
    if os.geteuid() == 0 or gid in {os.getegid(), *os.getgroups()}:
        return
    group, me = group_name(gid), user_name(os.geteuid())
    raise StoreUnavailableError(
        f"this worker is not in group {group}, to which {spool.path} belongs: usermod -aG {group} {me}, then start it again"
    )


def _judge(status: os.stat_result, upload: str, max_bytes: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "no file")
        raise UploadRejectedError(f"upload {upload!r} is {kind}; only regular files are taken")
    if status.st_nlink != 1:
        raise UploadRejectedError(
            f"upload {upload!r} has {status.st_nlink} hard links; write (or copy) the bytes into a file of its own"
        )
    if status.st_size > max_bytes:
        raise UploadRejectedError(
            f"upload {upload!r} has {status.st_size:,} bytes, more than the {max_bytes:,} allowed; send less, or have "
            f"max_bytes raised"
        )


def _explain_open(spool: SpoolDirectory, upload: str, taken: str, error: OSError) -> Exception:
    if error.errno == errno.ELOOP:
        return UploadRejectedError(f"upload {upload!r} is a symbolic link; only regular files are taken")
    if error.errno in (errno.ENXIO, errno.ENODEV):
        return UploadRejectedError(f"upload {upload!r} is a socket or a device; only regular files are taken")
    if error.errno == errno.EXDEV:
        return UploadRejectedError(f"upload {upload!r} is a mount point; only regular files are taken")
    if error.errno in (errno.EACCES, errno.EPERM):
        check_member(spool)
        status = spool.status(taken)
        owner = (
            ""
            if status is None
            else f" (mode {stat.S_IMODE(status.st_mode):04o}, {user_name(status.st_uid)}:{group_name(status.st_gid)})"
        )
        return UploadRejectedError(
            f"upload {upload!r} cannot be read by {user_name(os.geteuid())}{owner}; give it the group of its directory and "
            f"mode 0640 (chmod g+r, or umask 027) before sending the task"
        )
    return error


def keep_rejected(
    handle: StoreHandle, spool: SpoolDirectory, job_id: str, upload: str, message: str, request: object
) -> str | None:
    """Move a refused upload to ``Error/<stamp>/`` with the reason, durably, and return where; ``None``: nothing to move.

    Where it may not be moved (a directory of another user) it stays in the spool as ``.<job id>.taken``. Raises
    ``OSError`` where it cannot be moved now (a full disk); then it stays, too.
    """
    taken = taken_name(job_id)
    if not spool.exists(taken):
        return None
    name = f"upload-{upload}" if upload == errordir.REASON_FILE else upload
    try:
        with errordir.new_entry(
            handle, errordir.REJECTED, message, app=spool.app, job_id=job_id, upload=upload, request=request
        ) as (stamp, entry_fd):
            os.rename(taken, name, src_dir_fd=spool.fd, dst_dir_fd=entry_fd)
    except (PermissionError, ConfigError) as error:
        log.error("job %s: its upload stays in the spool as %s, it cannot be moved to Error/: %s", job_id, taken, error)
        return str(spool.path / taken)
    return f"{layout.ERROR}/{stamp}/{name}"


def rejected_before(handle: StoreHandle, job_id: str) -> str | None:
    """Why an earlier attempt refused the upload of this job, if that attempt died before it could say so.

    Looks at the newest hundred entries of ``Error/`` only.
    """
    for stamp in reversed(errordir.stamps(handle)[-_RECENT:]):
        with suppress(OSError):  # removed meanwhile, or not ours to read: only a better message is lost
            entry = errordir.read_entry(handle, stamp)
            if entry.kind == errordir.REJECTED and entry.reason.get("job_id") == job_id and len(entry.files) == 1:
                return f"{entry.reason.get('message')}. It is kept as {layout.ERROR}/{stamp}/{entry.files[0]}"
    return None
