"""Many puts, two ``syncfs``: data before names, names before results.

A put of its own costs an ``fsync`` of the file and one of its directory. In a batch the data of all files is synced by
one call, then their names appear, then one more call makes the names durable. The promise is the same, but it is given
when the batch ends: a hash that a put returned must not be told to anybody before that.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from types import TracebackType

from fsworker import durable
from fsworker.durable import Reader
from fsworker.handle import explain
from fsworker.objects import Candidate, ObjectStore, Stored

_MAX_OPEN = 512
"""Files staged at most before a batch syncs by itself: each is an open descriptor."""


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
        self._staged: dict[str, Candidate] = {}
        self._dirty = False
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
        return self._put(lambda: self._store.stage(_bytes_into(data)))

    def put_reader(self, stream: Reader, max_bytes: int | None = None) -> Stored:
        """:meth:`ObjectStore.put_reader`, durable at the end of the batch."""
        return self._put(lambda: self._store.stage(durable.reader_into(stream), max_bytes))

    def put_descriptor(
        self, fd: int, max_bytes: int | None = None, progress: Callable[[int], None] | None = None
    ) -> Stored:
        """:meth:`ObjectStore.put_descriptor`, durable at the end of the batch."""
        return self._put(lambda: self._store.stage(durable.descriptor_into(fd), max_bytes, progress))

    def put_path(self, path: str | os.PathLike[str]) -> Stored:
        """:meth:`ObjectStore.put_path`, durable at the end of the batch."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return self.put_descriptor(fd)
        finally:
            os.close(fd)

    def flush(self) -> None:
        """Make everything put so far durable now. Raises :class:`StoreUnavailableError`; then nothing of it counts."""
        if not self._dirty:
            return
        store = self._store
        try:
            if self._staged:
                store.syncfs()
                for candidate in self._staged.values():
                    store.insert(candidate, sync=False)
            store.syncfs()
        except OSError as error:
            raise explain(error, "Storing a batch", store) from error
        for candidate in self._staged.values():
            store.mark_durable(candidate.hash)
        self._drop()

    def _put(self, stage: Callable[[], Candidate]) -> Stored:
        store = self._store
        try:
            candidate = stage()
            kept = False
            try:
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
                kept = True
            finally:
                if not kept:
                    candidate.close()
        except OSError as error:
            raise explain(error, "Storing in a batch", store) from error
        if len(self._staged) >= self._limit:
            self.flush()
        return Stored(candidate.hash, candidate.size_bytes, duplicate=False)

    def _second(self, candidate: Candidate, twin: Candidate) -> Stored:
        """The same hash twice in one batch: compare at once, so that a collision is refused and nothing is lost."""
        assert twin.fd is not None
        if candidate.equals(twin.fd):
            return Stored(candidate.hash, candidate.size_bytes, duplicate=True)
        self.flush()  # publishes the twin; the insertion below then reports the collision
        return self._store.insert(candidate, sync=True)

    def _drop(self) -> None:
        for candidate in self._staged.values():
            candidate.close()
        self._staged.clear()
        self._dirty = False


def _bytes_into(data: bytes) -> Callable[[memoryview], int]:
    view = memoryview(data)

    def read_into(buffer: memoryview) -> int:
        nonlocal view
        count = min(len(buffer), len(view))
        buffer[:count] = view[:count]
        view = view[count:]
        return count

    return read_into
