"""Telling applications that a file they keep is lost, as far as the store knows: it is in quarantine, and nowhere else.

An application that wants to know names a task in its entry of ``FileStruct.json``:
``"Apps": {"shop": {"on_quarantine": "shop.tasks.file_lost"}}``. It is sent to ``fsworker.done.shop`` with ``hash``,
``message``, and ``kept`` (the entry of ``Error/``), for every file in quarantine that the application's keep-set has and
the store has not. At least once: what cannot be told now (Redis is away, a keep-set is broken) is told later, and a history
that was lost tells everything again.
"""

from __future__ import annotations

from collections.abc import Iterator

from fsworker.broker.names import Names
from fsworker.broker.sending import Send
from fsworker.keepsets.form import BrokenKeepSetError
from fsworker.keepsets.reader import Found, KeepReader
from fsworker.model import Hash, is_hash
from fsworker.store import errordir, layout
from fsworker.store.errordir import ErrorEntry
from fsworker.store.handle import log
from fsworker.store.objects import ObjectStore
from fsworker.store.trash import trashed_names
from fsworker.verification import history as histories

ON_QUARANTINE = "on_quarantine"
_OVERLAP_S = 60.0
"""Entries are made by several processes, and their stamps are not quite in the order of their making."""


def tell(store: ObjectStore, reader: KeepReader, names: Names, send: Send) -> int:
    """Tell who has not been told; returns how many messages were sent. Raises :class:`RedisUnavailableError`.

    An application whose keep-set cannot be read now is asked about again next time, and so are all later entries.
    """
    now_s = store.probe_clock()
    history = histories.load(store, now_s)
    until = history.told_until if history.told_until <= layout.stamp(now_s) else ""  # a clock that was set back
    told, sent, is_done = set(history.told), 0, True
    for entry in _new_entries(store, until):
        if entry.stamp not in told:
            count = _tell_of(store, reader, names, send, entry)
            if count is None:
                is_done = False
                break
            if count:
                told.add(entry.stamp)
            sent += count
    if is_done:
        until = layout.stamp(now_s - _OVERLAP_S)[:15]
    _note(store, now_s, until, sorted(stamp for stamp in told if stamp > until))
    return sent


def _note(store: ObjectStore, now_s: float, until: str, told: list[str]) -> None:
    history = histories.load(store, now_s)
    if history.told != told or until[:10] != history.told_until[:10]:  # a date and an hour are exact enough
        history.told_until, history.told = until, told
        histories.save(store, history, sync=False)


def _new_entries(store: ObjectStore, until: str) -> Iterator[ErrorEntry]:
    for entry in errordir.entries(store, after=until):
        name = entry.reason.get("hash")
        if entry.kind == errordir.QUARANTINED and isinstance(name, str) and is_hash(name):
            yield entry


def _tell_of(store: ObjectStore, reader: KeepReader, names: Names, send: Send, entry: ErrorEntry) -> int | None:
    """Tell of one entry; returns how many were told, ``None`` when that is not known yet."""
    name = Hash(str(entry.reason["hash"]))
    tasks = _tasks(store)
    if not tasks or store.status(name) is not None or any(trashed_names(store, name)):
        return 0
    keepers = []
    for found in reader.find(sorted(tasks)):
        try:
            if _keeps(reader, found, name):
                keepers.append(found.app)
        except BrokenKeepSetError as error:
            log.warning("whether %s keeps %s cannot be told: %s", found.app, name, error)
            return None
    message = str(entry.reason.get("message", ""))
    kwargs = {"hash": name, "message": message, "kept": f"{layout.ERROR}/{entry.stamp}"}
    for app in keepers:
        send(tasks[app], kwargs, names.done_queue(app), f"{app}.quarantined-{entry.stamp}")
        log.error("told %s that %s is in quarantine: %s", app, name, message)
    return len(keepers)


def _keeps(reader: KeepReader, found: Found, name: Hash) -> bool:
    if found.problem is not None:
        raise BrokenKeepSetError(found.problem)
    raw = bytes.fromhex(name)
    return found.manifest is not None and bool(reader.marked(found.manifest, raw[0], {raw}))


def _tasks(store: ObjectStore) -> dict[str, str]:
    """The applications that want to be told, and by which task."""
    wanted = {app: entry.get(ON_QUARANTINE) for app, entry in (store.reload().apps or {}).items()}
    return {app: task for app, task in wanted.items() if isinstance(task, str) and task}
