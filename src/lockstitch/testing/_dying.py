"""A process that dies to order, as far as its checkpoints can tell."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

from lockstitch._errors import UsageError
from lockstitch._files import Files, write_all
from lockstitch._journal import STORAGE, Storage, current_storage
from lockstitch._lock import Lock

from ._replacing import replaced

#: Asked before each call that changes something on the disk, with how many bytes it is to write
#: (0 for all but writes). None lets it happen; a number is how many of the bytes get through
#: before the process dies.
Fate = Callable[[int], int | None]


class SimulatedCrash(BaseException):
    """The process died here, as far as the checkpoint can tell.

    Not an `Exception`: a loop that survives its items' errors must not survive this.
    """


@contextlib.contextmanager
def crash_after(size: int) -> Iterator[None]:
    """Let the process die, as far as the checkpoint can tell, after `size` bytes are written.

    The write that crosses the mark is cut at that very byte and raises `SimulatedCrash`; so does
    every file call after it. Leave the `with`, start the script again, and see that it goes on.

    Raises:
        UsageError: `size` is negative.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise UsageError(f"crash_after takes a number of bytes, not {size!r}")
    left = size

    def fate(length: int) -> int | None:
        nonlocal left
        if length > left:
            return left
        left -= length

        return None

    with dying(current_storage(), fate):
        yield


@contextlib.contextmanager
def dying(storage: Storage, fate: Fate) -> Iterator[DyingFiles]:
    """Put files that die of `fate` over a storage; at the end the process is dead in any case."""
    files = DyingFiles(storage.files, fate)
    try:
        with (
            replaced(STORAGE, Storage(files, lambda path: files.watch(storage.lock(path)))),
            _quiet_finalizers(),
        ):
            yield files
    finally:
        files.die()


@contextlib.contextmanager
def _quiet_finalizers() -> Iterator[None]:
    """Let a process die in a finalizer, which cannot raise: Python would complain about that."""
    before = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if not isinstance(unraisable.exc_value, SimulatedCrash):
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


class DyingFiles(Files):
    """File calls that end in the middle, as those of a dying process do."""

    def __init__(self, files: Files, fate: Fate) -> None:
        self._files = files
        self._fate = fate
        self._open: set[int] = set()
        self._locks: list[Lock] = []
        #: True once the process is dead.
        self.dead = False

    def watch(self, lock: Lock) -> Lock:
        """Remember a lock, because the system frees those of a process that dies."""
        self._locks.append(lock)

        return lock

    def die(self) -> None:
        """Free what the system frees when a process dies."""
        self._die()
        while self._open:
            self._files.close(self._open.pop())

    def _die(self) -> None:
        # Not the descriptors: another thread may be using one, and its number be given away.
        self.dead = True
        while self._locks:
            self._locks.pop().release()

    def _alive(self) -> Files:
        if self.dead:
            raise SimulatedCrash

        return self._files

    def _changing(self) -> Files:
        files = self._alive()
        if self._fate(0) is not None:
            self._die()
            raise SimulatedCrash

        return files

    def _opened(self, fd: int) -> int:
        self._open.add(fd)

        return fd

    def open_append(self, path: str) -> int:
        return self._opened(self._alive().open_append(path))

    def open_read(self, path: str) -> int:
        return self._opened(self._alive().open_read(path))

    def create(self, path: str, mode: int) -> int:
        return self._opened(self._changing().create(path, mode))

    def close(self, fd: int) -> None:
        if fd in self._open:
            self._open.discard(fd)
            self._files.close(fd)

    def write(self, fd: int, data: bytes | memoryview) -> int:
        files = self._alive()
        through = self._fate(len(data))
        if through is None:
            write_all(files, fd, bytes(data))
            return len(data)
        write_all(files, fd, bytes(data[:through]))
        self._die()
        raise SimulatedCrash

    def read(self, fd: int, size: int, offset: int) -> bytes:
        return self._alive().read(fd, size, offset)

    def truncate(self, fd: int, size: int) -> None:
        self._changing().truncate(fd, size)

    def sync(self, fd: int) -> None:
        self._changing().sync(fd)

    def sync_directory(self, path: str) -> None:
        self._changing().sync_directory(path)

    def drop_cache(self, fd: int, start: int, size: int) -> bool:
        return self._alive().drop_cache(fd, start, size)

    def stat(self, fd: int) -> os.stat_result:
        return self._alive().stat(fd)

    def size(self, fd: int) -> int:
        return self._alive().size(fd)

    def copy_owner(self, fd: int, like: os.stat_result) -> None:
        self._changing().copy_owner(fd, like)

    def replace(self, source: str, target: str) -> None:
        self._changing().replace(source, target)

    def link_new(self, source: str, target: str) -> None:
        self._changing().link_new(source, target)

    def unlink(self, path: str) -> None:
        self._changing().unlink(path)

    def siblings(self, path: str) -> list[str]:
        return self._alive().siblings(path)
