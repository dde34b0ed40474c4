"""Files that exist only in memory."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

import attrs

from lockstitch._errors import CheckpointLocked
from lockstitch._files import Files
from lockstitch._journal import STORAGE, Storage
from lockstitch._lock import Lock

from ._replacing import replaced


@contextlib.contextmanager
def memory_storage() -> Iterator[None]:
    """Keep checkpoints in memory: no file is read or written, and all is gone afterwards."""
    files = MemoryFiles()
    with replaced(STORAGE, Storage(files, files.lock)):
        yield


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
        return self._opened(path)

    def open_read(self, path: str) -> int:
        return self._opened(path)

    def create(self, path: str, mode: int) -> int:  # noqa: ARG002 - nobody else is there
        if path in self._names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        self._names[path] = _MemoryFile()

        return self._opened(path)

    def _opened(self, path: str) -> int:
        if path not in self._names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        self._next += 1
        self._open[self._next] = self._names[path]

        return self._next

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

    def drop_cache(self, fd: int, start: int, size: int) -> bool:  # noqa: ARG002 - there is no cache
        return True

    def stat(self, fd: int) -> os.stat_result:
        file = self._open[fd]

        return os.stat_result(
            (stat.S_IFREG | 0o600, 0, 0, file.links, 0, 0, len(file.data), 0, 0, 0)
        )

    def size(self, fd: int) -> int:
        return len(self._open[fd].data)

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
