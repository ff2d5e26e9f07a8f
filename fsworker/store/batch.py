"""Many puts, two ``syncfs``: data before names, names before results.

A put of its own costs an ``fsync`` of the file and one of its directory. In a batch the data of all files is synced by
one call, then their names appear, then one more call makes the names durable. The promise is the same, but it is given
when the batch ends: a hash that a put returned must not be told to anybody before that.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from fsworker import copying
from fsworker.copying import Reader
from fsworker.errors import StoreUnavailableError
from fsworker.model import Hash
from fsworker.store.handle import SourceError, explain
from fsworker.store.objects import ObjectStore, Stored
from fsworker.store.staging import Candidate, candidate_of, of_source, open_source

_MAX_OPEN = 1024
"""Files staged at most before a batch syncs by itself: each is an open descriptor. Half as many cost 3 % and more."""


class Batch:
    """Puts that become durable together, when the ``with`` block is left normally.

    ::

        with Batch(store) as batch:
            hashes = [batch.put(data).hash for data in many]
        # durable now

    Leaving by an exception stores nothing more; what was published before stays (a stored file that nobody refers to
    is harmless). Under durability ``full`` each put syncs by itself, under ``none`` nothing does. Not thread-safe.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._deferred = store.durability == "batch"
        self._staged: dict[Hash, Candidate] = {}
        self._dirty = False
        self._failed = False
        self._limit = min(_MAX_OPEN, max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))

    def __enter__(self) -> Batch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self._drop()

    def put(self, data: bytes) -> Stored:
        """:meth:`ObjectStore.put`, durable at the end of the batch."""
        return self._put(lambda: candidate_of(data))

    def put_reader(self, stream: Reader, max_bytes: int | None = None) -> Stored:
        """:meth:`ObjectStore.put_reader`, durable at the end of the batch."""
        return self._put(lambda: self._store.stage(of_source(copying.reader_into(stream)), max_bytes))

    def put_descriptor(
        self, fd: int, max_bytes: int | None = None, progress: Callable[[int], None] | None = None
    ) -> Stored:
        """:meth:`ObjectStore.put_descriptor`, durable at the end of the batch."""
        return self._put(lambda: self._store.stage_descriptor(fd, max_bytes, progress))

    def put_source(self, fd: int) -> Stored:
        """Store what is read from a descriptor of the caller's own, whose read errors are raised as they are."""
        return self._put(lambda: self._store.stage_source(fd))

    def put_path(self, path: str | os.PathLike[str]) -> Stored:
        """:meth:`ObjectStore.put_path`, durable at the end of the batch."""

        def stage() -> Candidate:
            fd = open_source(path)
            try:
                return self._store.stage_source(fd)
            finally:
                os.close(fd)

        return self._put(stage)

    def flush(self) -> None:
        """Make everything put so far durable now.

        Raises :class:`StoreUnavailableError`; then nothing put since the last flush counts, and the batch is over: the
        kernel may call lost pages clean, so to sync again would prove nothing.
        """
        self._check_alive()
        if not self._dirty:
            return
        store = self._store
        try:
            if self._staged:
                store.syncfs()
                for _, candidate in sorted(self._staged.items()):  # neighbours share directories: 3 % faster
                    # Not there when it was staged, and dressed since: only who loses a race has to look again.
                    if not store.publish(candidate.hash, candidate.file, sync=False):
                        store.insert(candidate, sync=False)
            store.syncfs()
        except BaseException as error:
            self._failed = True
            if isinstance(error, OSError):
                raise explain(error, "Storing a batch", store) from error
            raise
        for name in self._staged:
            store.mark_durable(name)
        self._drop()

    def _put(self, stage: Callable[[], Candidate]) -> Stored:
        self._check_alive()
        store = self._store
        try:
            candidate = stage()
            try:
                stored = self._place(candidate)
            finally:
                if self._staged.get(candidate.hash) is not candidate:
                    candidate.close()
        except SourceError as wrapped:
            raise wrapped.error from None
        except OSError as error:
            raise explain(error, "Storing in a batch", store) from error
        if len(self._staged) >= self._limit:
            self.flush()
        return stored

    def _place(self, candidate: Candidate) -> Stored:
        store = self._store
        if not self._deferred:
            return store.insert(candidate, sync=store.durability == "full")
        self._dirty = True
        if (twin := self._staged.get(candidate.hash)) is not None:
            return self._second(candidate, twin)
        verdict = store.try_duplicate(candidate, sync=False)
        if verdict is not None:
            return Stored(candidate.hash, candidate.size_bytes, verdict)
        store.materialise(candidate, sync=False)
        candidate.data = None  # memory stays flat; the staged file has the bytes
        self._staged[candidate.hash] = candidate
        return Stored(candidate.hash, candidate.size_bytes, duplicate=False)

    def _second(self, candidate: Candidate, twin: Candidate) -> Stored:
        """The same hash twice in one batch: compare at once, so that a collision is refused and nothing is lost."""
        if candidate.equals(twin.file):
            return Stored(candidate.hash, candidate.size_bytes, duplicate=True)
        self.flush()  # publishes the twin; the insertion below then reports the collision
        return self._store.insert(candidate, sync=True)

    def _check_alive(self) -> None:
        if self._failed:
            raise StoreUnavailableError(f"this batch into {self._store.root} has failed; put all again in a new one")

    def _drop(self) -> None:
        for candidate in self._staged.values():
            with suppress(OSError):  # the bytes have been synced, or are not wanted: closing has nothing to tell
                candidate.close()
        self._staged.clear()
        self._dirty = False
