"""Replacing a stored file by a better one of the same name, without the name ever being absent.

Three occasions: the stored bytes have rotted and a good copy is at hand; the stored file cannot be freshened because
somebody else owns it; and, not healing at all, two contents that really share a SHA-1.
"""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import suppress

from fsworker import copying, durable
from fsworker.errors import HashCollisionError
from fsworker.model import Hash
from fsworker.store import errordir, layout
from fsworker.store.handle import StoreHandle, log
from fsworker.store.locks import shard_lock


def replace_rotten(handle: StoreHandle, name: Hash, stored_fd: int, good_fd: int) -> bool:
    """Put the verified content of ``good_fd`` (mode, group and sync done) in the place of ``stored_fd``, which differs.

    The rotten file is first linked into quarantine, then replaced by ``rename``. False when the stored file changed
    meanwhile: look again. Raises :class:`HashCollisionError` when both contents really have this hash: the stored file
    is untouched, the new one is kept under ``Error/``.
    """
    found = hash_or_none(stored_fd)
    if found == name:
        _keep_collision(handle, name, good_fd)
    why = "its content cannot be read" if found is None else f"its content hashes to {found}"
    log.error("stored file %s is rotten (%s): replacing it by the copy just received", name, why)
    message = f"{name} is rotten: {why}; a good copy takes its place"
    return put_in_place(handle, name, stored_fd, good_fd, message, found=found) is not None


def put_in_place(
    handle: StoreHandle, name: Hash, stored_fd: int, good_fd: int, message: str, **details: object
) -> str | None:
    """Replace the stored file ``stored_fd``, found bad, by ``good_fd`` (verified, dressed and synced).

    The bad one is first linked into quarantine with ``message`` and ``details`` as the reason; returns that entry's
    stamp, or ``None``, and nothing done, when the name means another file by now.
    """
    with errordir.new_entry(handle, errordir.QUARANTINED, message, hash=name, **details) as (stamp, entry_fd):
        quarantined = _quarantine(handle, name, stored_fd, entry_fd)
    if not (quarantined and _swap(handle, name, stored_fd, good_fd)):
        errordir.remove(handle, stamp)
        return None
    handle.fsync_directory(f"{layout.DATA}/{layout.shard(name)}")
    return stamp


def _swap(handle: StoreHandle, name: Hash, stored_fd: int, good_fd: int) -> bool:
    with shard_lock(handle.fd, name, handle.modes.lock_file, exclusive=True):
        current = is_still(handle, name, stored_fd)
        if current:
            rename_over(handle, name, good_fd)
        return current


def _quarantine(handle: StoreHandle, name: Hash, stored_fd: int, entry_fd: int) -> bool:
    """Give the stored file a second name in an entry of ``Error/``, or copy it where linking is not allowed.

    ``fs.protected_hardlinks`` lets nobody link a file of another user that he cannot write (proc_sys_fs(5)). False
    when the name means another file by now.
    """
    try:
        os.link(layout.data_name(name), name, src_dir_fd=handle.fd, dst_dir_fd=entry_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    except PermissionError:
        copy_fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o444, dir_fd=entry_fd)
        try:
            os.lseek(stored_fd, 0, os.SEEK_SET)
            copying.copy_hashed(copying.descriptor_into(stored_fd), copy_fd)
            handle.fsync(copy_fd)
        finally:
            os.close(copy_fd)
    return True


def replace_by_own(handle: StoreHandle, name: Hash, stored_fd: int, own_fd: int) -> bool:
    """Freshen a file that somebody else owns: rename our own equal copy over it, which is fresh by being new.

    ``own_fd`` is verified, dressed and synced. False when the stored file changed meanwhile: look again.
    """
    with shard_lock(handle.fd, name, handle.modes.lock_file):
        if not is_still(handle, name, stored_fd):
            return False
        rename_over(handle, name, own_fd)
    handle.fsync_directory(f"{layout.DATA}/{layout.shard(name)}")
    return True


def rename_over(handle: StoreHandle, name: Hash, fd: int) -> None:
    """Make the unnamed file ``fd`` the stored file ``name``, replacing what is there. The caller holds the lock."""
    temporary = f"{layout.TEMP}/.{secrets.token_hex(16)}"
    durable.link_unnamed(fd, temporary, handle.fd)
    try:
        os.rename(temporary, layout.data_name(name), src_dir_fd=handle.fd, dst_dir_fd=handle.fd)
    except BaseException:
        with suppress(OSError):  # the first error is the one to tell; after the rename there is no such name
            os.unlink(temporary, dir_fd=handle.fd)
        raise


def is_still(handle: StoreHandle, name: Hash, fd: int) -> bool:
    """Tell whether the stored file of that name is the one open as ``fd``."""
    try:
        current = os.stat(layout.data_name(name), dir_fd=handle.fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    mine = os.fstat(fd)
    return (current.st_dev, current.st_ino) == (mine.st_dev, mine.st_ino)


def hash_or_none(fd: int) -> str | None:
    """The SHA-1 of a file, or ``None`` when the disk cannot read it (``EIO``)."""
    try:
        return copying.hash_descriptor(fd).sha1
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return None


def _keep_collision(handle: StoreHandle, name: Hash, upload_fd: int) -> None:
    message = f"two different contents have the SHA-1 {name}; the stored one stays, the new one is not stored"
    with errordir.new_entry(handle, errordir.COLLISION, message, hash=name) as (stamp, entry_fd):
        durable.link_unnamed(upload_fd, name, entry_fd)
    raise HashCollisionError(f"{message}. It is kept as Error/{stamp}/{name}")
