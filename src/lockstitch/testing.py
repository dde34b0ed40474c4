"""For tests of scripts that use lockstitch: no waiting, no files, and deaths to order.

Each helper is a context manager. It holds for checkpoints and batches that are *made* inside its
`with`, in the same thread or task; the script under test stays as it is.
"""

from __future__ import annotations

import contextlib
import contextvars
import errno
import os
import queue
import stat
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import TypeVar

import attrs

from ._clock import CLOCK
from ._errors import CheckpointLocked, UsageError
from ._files import Files
from ._journal import STORAGE, Storage, current_storage
from ._lock import Lock
from ._model import to_instant, to_seconds

T = TypeVar("T")


class FakeClock:
    """A clock that stands still until somebody waits. Thread-safe.

    A wait that nothing interrupts takes no time and moves the clock on by what was asked for, so a
    batch that is limited for five hours is tested in microseconds.
    """

    def __init__(self, start: datetime) -> None:
        if start.tzinfo is None:
            raise UsageError("fake_clock(start=…) takes an aware datetime")
        self._wall = start.timestamp()
        self._passed = 0.0
        self._lock = threading.Lock()
        #: Every wait, in seconds, in order.
        self.waits: list[float] = []

    def wall(self) -> float:
        """Seconds since 1970-01-01 UTC."""
        return self._wall + self._passed

    def now(self) -> float:
        """Seconds since the clock was made."""
        return self._passed

    @property
    def instant(self) -> datetime:
        """The present, as an aware UTC datetime."""
        return to_instant(self.wall())

    def advance(self, seconds: float | timedelta) -> None:
        """Let time pass."""
        with self._lock:
            self._passed += to_seconds(seconds, "advance")

    def set_wall(self, moment: datetime) -> None:
        """Set the wall clock, as an administrator would; no time passes."""
        self._wall = moment.timestamp() - self._passed

    def wait(self, events: queue.SimpleQueue[T], seconds: float | None) -> T | None:
        """Return an event that is there, or that comes if no end is set; else let time pass."""
        try:
            return events.get(block=seconds is None)
        except queue.Empty:
            pass
        if seconds is not None:
            self.waits.append(seconds)
            self.advance(seconds)

        return None


#: An arbitrary moment, so that tests print the same every day.
_START = datetime.fromisoformat("2030-01-01T00:00:00+00:00")


@contextlib.contextmanager
def fake_clock(start: datetime = _START) -> Iterator[FakeClock]:
    """Replace the clock; yields it."""
    clock = FakeClock(start)
    with _replaced(CLOCK, clock):
        yield clock


@contextlib.contextmanager
def memory_storage() -> Iterator[None]:
    """Keep checkpoints in memory: no file is read or written, and all is gone afterwards."""
    files = MemoryFiles()
    with _replaced(STORAGE, Storage(files, files.lock)):
        yield


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
    storage = current_storage()
    files = CrashingFiles(storage.files, size)
    try:
        with _replaced(STORAGE, Storage(files, lambda path: files.watch(storage.lock(path)))):
            yield
    finally:
        files.die()


_V = TypeVar("_V")


@contextlib.contextmanager
def _replaced(variable: contextvars.ContextVar[_V], value: _V) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


class CrashingFiles(Files):
    """File calls that end after a number of written bytes, as those of a dying process do."""

    def __init__(self, files: Files, size: int) -> None:
        self._files = files
        self._left = size
        self._dead = False
        self._open: set[int] = set()
        self._locks: list[Lock] = []

    def watch(self, lock: Lock) -> Lock:
        """Remember a lock, because the system frees those of a process that dies."""
        self._locks.append(lock)

        return lock

    def die(self) -> None:
        """Free what the system frees when a process dies."""
        self._dead = True
        while self._open:
            self._files.close(self._open.pop())
        while self._locks:
            self._locks.pop().release()

    def _alive(self) -> Files:
        if self._dead:
            raise SimulatedCrash

        return self._files

    def _opened(self, fd: int) -> int:
        self._open.add(fd)

        return fd

    def open_append(self, path: str) -> int:
        return self._opened(self._alive().open_append(path))

    def open_read(self, path: str) -> int:
        return self._opened(self._alive().open_read(path))

    def create(self, path: str, mode: int) -> int:
        return self._opened(self._alive().create(path, mode))

    def close(self, fd: int) -> None:
        if fd in self._open:
            self._open.discard(fd)
            self._files.close(fd)

    def write(self, fd: int, data: bytes | memoryview) -> int:
        files = self._alive()
        if len(data) <= self._left:
            written = files.write(fd, data)
            self._left -= written
            return written
        rest = memoryview(data)[: self._left]
        while rest:
            rest = rest[files.write(fd, rest) :]
        self._dead = True
        raise SimulatedCrash

    def read(self, fd: int, size: int, offset: int) -> bytes:
        return self._alive().read(fd, size, offset)

    def truncate(self, fd: int, size: int) -> None:
        self._alive().truncate(fd, size)

    def sync(self, fd: int) -> None:
        self._alive().sync(fd)

    def sync_directory(self, path: str) -> None:
        self._alive().sync_directory(path)

    def drop_cache(self, fd: int, size: int) -> bool:
        return self._alive().drop_cache(fd, size)

    def stat(self, fd: int) -> os.stat_result:
        return self._alive().stat(fd)

    def copy_owner(self, fd: int, like: os.stat_result) -> None:
        self._alive().copy_owner(fd, like)

    def replace(self, source: str, target: str) -> None:
        self._alive().replace(source, target)

    def link_new(self, source: str, target: str) -> None:
        self._alive().link_new(source, target)

    def unlink(self, path: str) -> None:
        self._alive().unlink(path)

    def siblings(self, path: str) -> list[str]:
        return self._alive().siblings(path)


@attrs.define(eq=False)
class _MemoryFile:
    data: bytearray = attrs.Factory(bytearray)
    links: int = 1


class MemoryFiles(Files):
    """Files that exist only here. Thread-safe for calls on different files."""

    def __init__(self) -> None:
        self._names: dict[str, _MemoryFile] = {}
        self._open: dict[int, _MemoryFile] = {}
        self._next = 1000
        self._held: set[str] = set()

    def lock(self, path: str) -> Lock:
        """Return a lock on `path` among the users of these files."""
        return _MemoryLock(path, self._held)

    def open_append(self, path: str) -> int:
        if path not in self._names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        self._next += 1
        self._open[self._next] = self._names[path]

        return self._next

    def open_read(self, path: str) -> int:
        return self.open_append(path)

    def create(self, path: str, mode: int) -> int:  # noqa: ARG002 - nobody else is there
        if path in self._names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        self._names[path] = _MemoryFile()

        return self.open_append(path)

    def close(self, fd: int) -> None:
        del self._open[fd]

    def write(self, fd: int, data: bytes | memoryview) -> int:
        self._open[fd].data += data

        return len(data)

    def read(self, fd: int, size: int, offset: int) -> bytes:
        return bytes(self._open[fd].data[offset : offset + size])

    def truncate(self, fd: int, size: int) -> None:
        del self._open[fd].data[size:]

    def sync(self, fd: int) -> None:
        """Nothing to do: there is no disk."""

    def sync_directory(self, path: str) -> None:
        """Nothing to do: there is no disk."""

    def drop_cache(self, fd: int, size: int) -> bool:  # noqa: ARG002 - there is no cache
        return True

    def stat(self, fd: int) -> os.stat_result:
        file = self._open[fd]

        return os.stat_result(
            (stat.S_IFREG | 0o600, 0, 0, file.links, 0, 0, len(file.data), 0, 0, 0)
        )

    def copy_owner(self, fd: int, like: os.stat_result) -> None:
        """Nothing to do: nobody owns these."""

    def replace(self, source: str, target: str) -> None:
        if target in self._names:
            self._names[target].links -= 1
        self._names[target] = self._names.pop(source)

    def link_new(self, source: str, target: str) -> None:
        if target in self._names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
        if source not in self._names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), source)
        self._names[target] = self._names.pop(source)

    def unlink(self, path: str) -> None:
        if path not in self._names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        self._names.pop(path).links -= 1

    def siblings(self, path: str) -> list[str]:
        return [name for name in self._names if name.startswith(path)]


class _MemoryLock:
    def __init__(self, path: str, held: set[str]) -> None:
        self._path = path
        self._held = held
        self.is_held = False

    def acquire(self) -> None:
        if self._path in self._held:
            raise CheckpointLocked(self._path, os.getpid(), None, None, own=True)
        self._held.add(self._path)
        self.is_held = True

    def release(self) -> None:
        if self.is_held:
            self._held.discard(self._path)
            self.is_held = False
