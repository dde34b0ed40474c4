"""A checkpoint as it is at this moment: no lock, nothing written, beside a live writer."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from ._clock import CLOCK
from ._errors import CheckpointDamaged, UsageError
from ._files import Files
from ._reading import Contents, Fold, load, read_line, refuse_special
from ._records import Header

F = TypeVar("F", bound=Fold)

#: Seconds between two looks. What a writer is just appending is wrong in one and right in the
#: other; damage is the same in both.
_SECOND_LOOK = 0.1


class Snapshot(Generic[F]):
    """The valid lines of a file, read once. Thread-safe; keeps the file open until `close`."""

    def __init__(self, path: str, files: Files, fold: Callable[[], F]) -> None:
        self.path = path
        self.header: Header
        self.fold: F
        #: Bytes at the end that are not (or not yet) valid lines.
        self.torn = 0
        self._files = files
        self._new_fold = fold
        self._fd = -1
        # Guards the descriptor: closed under a reader, its number may be another file by then.
        # A lock that its thread may take again, for a signal handler that reads while it does.
        self._mutex = threading.RLock()
        self.refresh()

    def refresh(self) -> None:
        """Read the file anew.

        Raises:
            FileNotFoundError: there is no such file.
            CheckpointDamaged, UsageError: it is no sound checkpoint; the last look stays valid.
        """
        try:
            fd, contents = self._look()
        except CheckpointDamaged:
            CLOCK.get().wait(queue.SimpleQueue[None](), _SECOND_LOOK)
            fd, contents = self._look()
        with self._mutex:
            self._close()
            self._fd, self.header, self.fold = fd, contents.header, contents.fold
            self.torn = contents.scan.size - contents.scan.end

    def _look(self) -> tuple[int, Contents[F]]:
        fd = self._files.open_read(self.path)
        try:
            refuse_special(self._files, fd, self.path)
            contents = load(self._files, fd, self.path, self._new_fold())
            contents.check(self.path)
        except BaseException:
            self._files.close(fd)
            raise

        return fd, contents

    def read(self, find: Callable[[F], int]) -> dict[str, object]:
        """Return the record at the offset that `find` takes from the fold."""
        with self._mutex:
            if self._fd < 0:
                raise UsageError(f"{self.path}: this snapshot is closed; refresh() opens it again")

            return read_line(self._files, self._fd, self.path, self.header.salt, find(self.fold))

    def close(self) -> None:
        """Free the file; idempotent."""
        with self._mutex:
            self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._files.close(fd)
