"""Hashing beside the copying: while a large piece is written and the next one is read, a second thread hashes it.

``hashlib`` and the system calls work without the interpreter's lock, so with two cores a large file is copied as fast as
it is hashed or as it is written, whichever is slower. With one core there is no second thread: it would cost 5 %.
"""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from typing import Self

WORTH_BYTES = 1 << 18
"""A smaller piece is hashed by the caller; to hand one over costs about 20 µs."""

WORTH_PIECES = 8
"""The thread starts with this large piece. To start and end it costs 150 µs, a fifth of the hashing of one MiB."""


class SideHash:
    """The SHA-1 of content that comes in pieces.

    ::

        with SideHash() as digest:
            if digest.update(piece):
                ...  # the piece is in use, and must stay as it is, until the next call has returned
            digest.hexdigest()

    The other thread never has more than one piece: the next call waits until that is hashed. It has ended when the
    ``with`` block is left, however that happens. (If the leaving is interrupted, it ends by itself after its piece.)
    Where no thread is to be had, the caller hashes. Not thread-safe.
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha1(usedforsecurity=False)
        self._large_pieces = 0
        self._handed: queue.Queue[memoryview | None] | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._handed is not None and self._thread is not None:
            self._handed.put(None)
            if self._thread.is_alive():  # not if its start was interrupted: then it ends by itself
                self._thread.join()

    def update(self, piece: memoryview) -> bool:
        """Take the next piece; True if it is still being read on return. Raises what hashing the one before raised."""
        self._wait()
        if len(piece) >= WORTH_BYTES:
            self._large_pieces += 1
            if self._large_pieces == WORTH_PIECES:
                self._start_thread()
            if self._handed is not None:
                self._handed.put(piece)
                return True
        self._digest.update(piece)
        return False

    def hexdigest(self) -> str:
        """The SHA-1 of all pieces so far. Raises what hashing the last one raised."""
        self._wait()
        return self._digest.hexdigest()

    def _wait(self) -> None:
        if self._handed is not None:
            self._handed.join()
        if self._error is not None:
            raise self._error

    def _start_thread(self) -> None:
        if len(os.sched_getaffinity(0)) == 1:
            return
        self._handed = queue.Queue()
        # A daemon, so that a program which is interrupted twice does not wait for it for ever.
        self._thread = threading.Thread(target=self._hash, args=(self._handed,), name="fsworker-hash", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # the process may have no more threads, or is about to end
            self._handed = self._thread = None

    def _hash(self, handed: queue.Queue[memoryview | None]) -> None:
        while (piece := handed.get()) is not None:
            try:
                self._digest.update(piece)
            except BaseException as error:  # noqa: BLE001 - the other thread raises it
                self._error = error
            finally:
                handed.task_done()
