"""The store's directories, its filesystem, and who we are in their eyes. Looks, and changes nothing."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from fsworker.doctor.findings import Finding, ok, problem, warning
from fsworker.errors import FSWorkerError
from fsworker.host.checks import check_worker
from fsworker.store import layout
from fsworker.store.handle import SYNC_FAILED_MARK, StoreHandle
from fsworker.store.objects import ObjectStore
from fsworker.store.owners import group_name, join_command, user_name

_LOW_SHARE = 0.05
_LOW_BYTES = 256 << 20
_LOW_INODES = 10_000


class Room(Protocol):
    """What ``os.statvfs`` tells of a filesystem."""

    @property
    def f_frsize(self) -> int: ...
    @property
    def f_blocks(self) -> int: ...
    @property
    def f_bavail(self) -> int: ...
    @property
    def f_files(self) -> int: ...
    @property
    def f_favail(self) -> int: ...


def look_at_storage(store: ObjectStore) -> Iterator[Finding]:
    """Everything about the directory tree."""
    yield from user(store, os.geteuid())
    yield from groups(store, {os.getegid(), *os.getgroups()}, os.geteuid())
    yield from umask(_umask())
    yield from modes(store)
    yield from room(os.fstatvfs(store.fd), store.root)
    yield from writing(store)
    yield from sync_failure(store)


def user(store: StoreHandle, uid: int) -> Iterator[Finding]:
    """Who runs this: where the worker writes, it has to be the store's owner."""
    owner, me = user_name(store.owner_uid), user_name(uid)
    as_owner = f"sudo -u {owner} fsworker doctor"
    if uid == 0:
        fix = as_owner if store.owner_uid else "run the workers as a user of their own: README, “Two set-ups”"
        yield warning("user", "this runs as root, who may do everything: permissions are not tried", fix)
    elif uid != store.owner_uid and store.modes == layout.WORKER_WRITES:
        yield problem("user", f"{me} is not the store's user, {owner}, who alone may write to it", as_owner)
    else:
        yield ok("user", f"{me}; the store belongs to {owner}, group {group_name(store.gid)}")


def groups(store: StoreHandle, mine: set[int], uid: int) -> Iterator[Finding]:
    """The worker has to be in the group of every spool; applications should not share one."""
    by_group: dict[int, list[str]] = {}
    for app in store.config.app_names:
        try:
            status = os.stat(f"{layout.SPOOL}/{app}", dir_fd=store.fd, follow_symlinks=False)
        except OSError:
            continue  # reported by modes()
        by_group.setdefault(status.st_gid, []).append(app)
        if uid != 0 and status.st_gid not in mine and status.st_uid != uid:
            me = user_name(uid)
            yield problem(
                "groups",
                f"{me} is not in group {group_name(status.st_gid)}, to which {store.root / layout.SPOOL / app} belongs",
                f"{join_command(status.st_gid, me)}, then start the workers again",
            )
    for gid, apps in by_group.items():
        if len(apps) > 1 and store.modes == layout.WORKER_WRITES:
            yield warning(
                "groups",
                f"applications {', '.join(apps)} share group {group_name(gid)}: each can read and remove the others' uploads",
                f"give each a group of its own, as in: chgrp GROUP {_quoted(store.root / layout.SPOOL / apps[0])} && "
                f"chmod {layout.WORKER_WRITES.spool_app:04o} {_quoted(store.root / layout.SPOOL / apps[0])}",
            )
    if not store.config.app_names:
        yield warning(
            "applications",
            "none is registered: nobody can send uploads, nothing is collected",
            "fsworker app add NAME[:GROUP]",
        )
    elif all(len(apps) == 1 for apps in by_group.values()):
        yield ok("groups", ", ".join(f"{apps[0]}: {group_name(gid)}" for gid, apps in by_group.items()))


def umask(mask: int) -> Iterator[Finding]:
    """Modes are set, whatever the umask; only one that takes from the owner himself does harm."""
    if mask & 0o700:
        yield problem("umask", f"umask {mask:04o} takes rights from the owner of a file himself", "umask 0027")
    else:
        yield ok("umask", f"{mask:04o}; modes do not depend on it")


def modes(store: StoreHandle) -> Iterator[Finding]:
    """Each directory against the set-up: what is too open is a problem, what is merely different a warning."""
    wanted = {
        ".": store.modes.root,
        layout.DATA: store.modes.data,
        layout.TRASH: store.modes.data,
        **dict.fromkeys((layout.TEMP, layout.LOCK, layout.ERROR), store.modes.private),
        layout.SPOOL: store.modes.spool,
        **{f"{layout.SPOOL}/{app}": store.modes.spool_app for app in store.config.app_names},
    }
    right = True
    for name, mode in wanted.items():
        for finding in _mode(store, name, mode):
            right = False
            yield finding
    if right:
        which = "worker writes" if store.modes == layout.WORKER_WRITES else "group writes"
        yield ok("modes", f"set-up: {which}; {len(wanted)} directories are as they should be")


def _mode(store: StoreHandle, name: str, wanted: int) -> Iterator[Finding]:
    path = store.root if name == "." else store.root / name
    try:
        status = os.stat(name, dir_fd=store.fd, follow_symlinks=False)
    except FileNotFoundError:
        apps = " ".join(f"--app {app}" for app in store.config.app_names or ["NAME"])
        yield problem("modes", f"{path} is missing", f"fsworker init {_quoted(store.root)} {apps}")
        return
    except OSError as error:
        yield problem("modes", f"{path} cannot be looked at: {error.strerror}", "run this as the store's user")
        return
    if not stat.S_ISDIR(status.st_mode):
        yield problem("modes", f"{path} is no directory", f"look at what it is, and remove it: ls -ld {_quoted(path)}")
        return
    if status.st_uid != store.owner_uid and store.modes == layout.WORKER_WRITES:
        yield problem(
            "modes",
            f"{path} belongs to {user_name(status.st_uid)}, the store to {user_name(store.owner_uid)}",
            f"chown {user_name(store.owner_uid)} {_quoted(path)}",
        )
    mode = stat.S_IMODE(status.st_mode)
    if mode == wanted:
        return
    say = problem if mode & ~wanted & 0o777 or wanted & ~mode & 0o700 else warning
    what = f"{path} has mode {mode:04o}, it should be {wanted:04o}"
    yield say("modes", what, f"chmod {wanted:04o} {_quoted(path)}")


def room(free: Room, root: Path) -> Iterator[Finding]:
    """Space and inodes that the worker's user may still take."""
    free_bytes, total_bytes = free.f_bavail * free.f_frsize, free.f_blocks * free.f_frsize
    said = f"{free_bytes / 1e9:.1f} GB of {total_bytes / 1e9:.1f} GB are free"
    make = f"fsworker trash purge, or make room on the filesystem of {root} (df -h {_quoted(root)})"
    if free_bytes < _LOW_BYTES:
        yield problem("space", said, make)
    elif free_bytes < total_bytes * _LOW_SHARE:
        yield warning("space", said, make)
    else:
        yield ok("space", said)
    if free.f_files == 0:
        yield ok("inodes", "this filesystem makes them as they are needed")
        return
    said = f"{free.f_favail:,} of {free.f_files:,} are free"
    if free.f_favail < _LOW_INODES:
        yield problem("inodes", said, make.replace("df -h", "df -i"))
    elif free.f_favail < free.f_files * _LOW_SHARE:
        yield warning("inodes", said, make.replace("df -h", "df -i"))
    else:
        yield ok("inodes", said)


def writing(store: ObjectStore) -> Iterator[Finding]:
    """What a worker checks before it starts: writable, on one filesystem, which keeps its promises."""
    if not (store.root / layout.TEMP).is_dir():
        return  # reported by modes(); trying the filesystem would make it
    try:
        check_worker(store)
    except FSWorkerError as error:
        what, _, fix = str(error).rpartition("; ")
        yield problem("filesystem", what or fix, fix if what else "see the message")
    else:
        yield ok("filesystem", "writable and one filesystem; hard links, flock and ctime are true")


def sync_failure(store: StoreHandle) -> Iterator[Finding]:
    """Whether an ``fsync`` failed since the store was last verified as a whole."""
    try:
        os.stat(SYNC_FAILED_MARK, dir_fd=store.fd, follow_symlinks=False)
    except FileNotFoundError:
        yield ok("fsync", "none has failed since the last whole verification")
    except OSError as error:
        yield warning(
            "fsync", f"{SYNC_FAILED_MARK} cannot be looked at: {error.strerror}", "run this as the store's user"
        )
    else:
        yield problem(
            "fsync",
            "the disk failed to write something (an fsync failed); stored files may be incomplete",
            "look at the kernel's log (dmesg), replace the disk if need be, then: fsworker verify --repair",
        )


def _umask() -> int:
    """This process's umask, read without setting it (proc_pid_status(5))."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
