"""The two moves between ``Data/`` and ``Trash/``, of one file each, and a look into trash.

A collection moves files to ``Trash/<stamp>/<hash>``; until they are purged they can be had again, whole and at once.
Whoever has only a hash looks here, and brings the file back, before he says that it is missing. What is to be moved, and
when trash is purged, is decided elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

from fsworker import copying
from fsworker.model import Hash
from fsworker.store import layout
from fsworker.store.handle import log, translated
from fsworker.store.hold import current as current_hold
from fsworker.store.locks import shard_lock
from fsworker.store.objects import ObjectStore
from fsworker.store.trashlist import stamps, trash_status


@translated("Preparing trash")
def open_run(store: ObjectStore, stamp: str) -> None:
    """Make ``Trash/<stamp>/``, durably, for :func:`move_to_trash`; to be called again by whoever resumes a run.

    The directory must be on disk before a file is moved into it, or a power cut could lose both names of the file.
    """
    store.prepare()
    store.make_directory(f"{layout.TRASH}/{stamp}", store.modes.data)
    store.fsync_directory(layout.TRASH)


@translated("Moving to trash")
def move_to_trash(store: ObjectStore, name: Hash, stamp: str, cutoff_s: float) -> bool:
    """Move a stored file to ``Trash/<stamp>/`` if its age (ctime, seconds since the epoch) is still before ``cutoff_s``.

    False, and nothing done, when it is younger or absent: whoever freshened it did so under the lock that is held here,
    so that no file is taken from under an ingest. Not synced: a power cut may leave the file in ``Data/``.
    """
    with shard_lock(store.fd, name, store.modes.lock_file, exclusive=True):
        status = store.status(name)
        if status is None or status.st_ctime >= cutoff_s:
            return False
        target = f"{layout.TRASH}/{stamp}/{name}"
        os.rename(layout.data_name(name), target, src_dir_fd=store.fd, dst_dir_fd=store.fd)
        return True


@translated("Purging")
def delete_from_trash(store: ObjectStore, stamp: str, name: Hash, before_s: float) -> int | None:
    """Delete a file in trash for good, if it went there before ``before_s`` (its ctime: a rename renews it).

    Returns its size in bytes, or ``None``, and nothing done, when it is younger or no longer there. The shard's lock keeps
    it from being deleted while it is brought back.
    """
    with shard_lock(store.fd, name, store.modes.lock_file, exclusive=True):
        status = trash_status(store, stamp, name)
        if status is None or status.st_ctime >= before_s:
            return None
        os.unlink(f"{layout.TRASH}/{stamp}/{name}", dir_fd=store.fd)
        return status.st_size


def trashed_names(store: ObjectStore, name: Hash) -> Iterator[str]:
    """Where a hash lies in trash, relative to the store, the latest collection's first. Perhaps rotten: see restore."""
    for stamp in reversed(stamps(store)):
        if trash_status(store, stamp, name) is not None:
            yield f"{layout.TRASH}/{stamp}/{name}"


@translated("Restoring")
def restore(store: ObjectStore, name: Hash) -> bool:
    """Bring a file back from trash. True when it is in ``Data/`` on return, durable and fresh (or was there before).

    Only a file whose content still has this hash is taken; a rotten one stays where it is, for verification. A crash
    leaves the file either in trash or in ``Data/``. While a hold is in force the file is copied, and stays in trash too: a
    backup that is being made finds it in one of the two places, at least.
    """
    if store.freshen(name):
        return True
    for relative in trashed_names(store, name):
        try:
            fd = os.open(relative, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=store.fd)
        except FileNotFoundError:
            continue  # purged, or restored by somebody else
        try:
            if copying.hash_descriptor(fd).sha1 != name:
                log.error("%s is rotten and was not restored", store.root / relative)
            elif _bring_back(store, name, relative, fd):
                return True
        finally:
            os.close(fd)
    return store.freshen(name)


def _bring_back(store: ObjectStore, name: Hash, relative: str, fd: int) -> bool:
    """Move the verified file ``fd`` into ``Data/``, fresh. False when it is no longer in trash."""
    if current_hold(store) is not None:
        os.lseek(fd, 0, os.SEEK_SET)
        return store.put_descriptor(fd).hash == name
    try:
        store.dress(fd)
        os.fchmod(fd, layout.FILE_MODE)  # young before it has its name, whatever the filesystem does in a rename
    except PermissionError:  # somebody else's file, which only he can freshen: store a copy of our own
        os.lseek(fd, 0, os.SEEK_SET)
        store.put_descriptor(fd)
        with suppress(FileNotFoundError):
            os.unlink(relative, dir_fd=store.fd)
        return True
    if store.durability != "none":
        store.fsync(fd)
    shard_fd = store.open_shard(name)
    try:
        if store.durability != "none":
            store.sync_parents(name)  # before the move: or a power cut could lose both names
        with shard_lock(store.fd, name, store.modes.lock_file, exclusive=True):
            if store.status(name) is not None or not _is_still(store, relative, fd):
                return False
            os.rename(relative, name, src_dir_fd=store.fd, dst_dir_fd=shard_fd)
        if store.durability != "none":
            store.fsync(shard_fd)
        return True
    finally:
        os.close(shard_fd)


def _is_still(store: ObjectStore, relative: str, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(relative, dir_fd=store.fd, follow_symlinks=False), os.fstat(fd))
    except FileNotFoundError:
        return False
