"""Taking something out of the way: into ``Error/<stamp>/``, with a reason, never deleted."""

from __future__ import annotations

import os
from contextlib import ExitStack

from fsworker.model import Hash
from fsworker.store import errordir
from fsworker.store.locks import shard_lock
from fsworker.store.objects import ObjectStore


def quarantine(
    store: ObjectStore, path: str, seen: os.stat_result, message: str, *, name: Hash | None = None, **details: object
) -> str | None:
    """Move ``path`` (relative to the store, a directory moves whole) into a new entry of ``Error/``.

    ``seen`` is the inode that was found bad: another one of that path is left alone. With ``name``, a stored file's, the
    move is made under its shard's exclusive lock. Returns where it is now, or ``None`` when it was no longer there.
    Durable on return. ``OSError`` when it cannot be moved: it is where it was then, or a crash of the host puts it back.
    """
    directory, _, base = path.rpartition("/")
    target = base if base != errordir.REASON_FILE else f"stray-{base}"
    moved = False
    reason = {"path": os.fsencode(path).decode("utf-8", "backslashreplace"), **details}
    if name is not None:
        reason["hash"] = name
    stamp = ""
    try:
        with (
            errordir.new_entry(store, errordir.QUARANTINED, message, **reason) as (stamp, entry_fd),
            ExitStack() as held,
        ):
            if name is not None:
                held.enter_context(shard_lock(store.fd, name, store.modes.lock_file, exclusive=True))
            if is_same(store.fd, path, seen):
                os.rename(path, target, src_dir_fd=store.fd, dst_dir_fd=entry_fd)
                moved = True
    finally:
        if stamp and not moved:
            errordir.remove(store, stamp)
    if moved:
        store.fsync_directory(directory)
    return f"Error/{stamp}/{target}" if moved else None


def is_same(directory_fd: int, path: str, seen: os.stat_result) -> bool:
    """Whether ``path`` is still the inode that was seen."""
    try:
        return os.path.samestat(os.stat(path, dir_fd=directory_fd, follow_symlinks=False), seen)
    except (FileNotFoundError, NotADirectoryError):
        return False
