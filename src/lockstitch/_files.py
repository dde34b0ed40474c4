"""The one small object through which every file call goes.

Nothing else in the library opens, writes, syncs or renames. That is what lets a test fail any
call, cut any write at any byte, or keep the whole file in memory, and know that nothing went past.
"""

from __future__ import annotations

import errno
import itertools
import math
import os
import queue
import secrets
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Protocol

from ._clock import CLOCK

_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)  # a FIFO at the path must not hang the open
_BINARY = getattr(os, "O_BINARY", 0)

#: Bytes per read while scanning: large enough that the system call does not show.
_BLOCK = 1 << 20

#: Seconds between tries to replace a file that another program has open, which Windows refuses.
_WINDOWS_PAUSES = (0.05, 0.1, 0.25, 0.5, 0.6, 1.0)

#: A directory cannot be synced on every file system; these answers mean "not supported".
_UNSUPPORTED = frozenset({errno.EINVAL, getattr(errno, "ENOTSUP", errno.EINVAL)})


class Files(Protocol):
    """The file calls of a checkpoint. Paths are real paths; offsets and sizes are in bytes."""

    def open_append(self, path: str) -> int:
        """Open an existing file for reading and appending; raises `FileNotFoundError`."""
        ...

    def open_read(self, path: str) -> int:
        """Open an existing file for reading only."""
        ...

    def create(self, path: str, mode: int) -> int:
        """Create a file that must not exist yet, open for reading and appending."""
        ...

    def close(self, fd: int) -> None: ...

    def write(self, fd: int, data: bytes | memoryview, /) -> int:
        """Append, and return how many bytes were taken, which may be fewer than given."""
        ...

    def read(self, fd: int, size: int, offset: int) -> bytes: ...

    def truncate(self, fd: int, size: int) -> None: ...

    def sync(self, fd: int) -> None:
        """Return once data and size of the file are on the disk."""
        ...

    def sync_directory(self, path: str) -> None:
        """Return once the names in the folder of `path` are on the disk."""
        ...

    def drop_cache(self, fd: int, start: int, size: int) -> bool:
        """Make the next reads from `start`, the beginning of a page, come from the disk.

        `size` is that of the file. False when that cannot be had.
        """
        ...

    def stat(self, fd: int) -> os.stat_result: ...

    def size(self, fd: int) -> int:
        """Return how long an open file is; a tenth of what `stat` takes."""
        ...

    def copy_owner(self, fd: int, like: os.stat_result) -> None:
        """Give a file the mode and, where allowed, the owner that another one has."""
        ...

    def replace(self, source: str, target: str) -> None:
        """Let `source` take the place of `target`, at once and whole. Neither is open here."""
        ...

    def link_new(self, source: str, target: str) -> None:
        """Give `source` the name `target` instead of its own; raises `FileExistsError`.

        At every moment, also after a power cut, it has one of them.
        """
        ...

    def unlink(self, path: str) -> None: ...

    def siblings(self, path: str) -> list[str]:
        """Return the paths in the same folder whose names begin with the name of `path`."""
        ...


class SystemFiles:
    """The machine's file system. Thread-safe."""

    def __init__(self) -> None:
        self._seek = threading.Lock()

    def open_append(self, path: str) -> int:
        return self._open(path, os.O_RDWR | os.O_APPEND)

    def open_read(self, path: str) -> int:
        return self._open(path, os.O_RDONLY)

    def create(self, path: str, mode: int) -> int:
        return self._open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL, mode)

    @staticmethod
    def _open(path: str, flags: int, mode: int = 0o600) -> int:
        fd = os.open(path, flags | _NOFOLLOW | _NONBLOCK | _BINARY, mode)
        # With 0, 1 or 2 closed, the file would become somebody's standard output.
        low = []
        while fd < 3:
            low.append(fd)
            fd = os.dup(fd)
        for each in low:
            os.close(each)

        return fd

    def close(self, fd: int) -> None:
        os.close(fd)

    # The call itself: a method around it would cost a tenth of it.
    write = staticmethod(os.write)

    def read(self, fd: int, size: int, offset: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(fd, size, offset)
        with self._seek:
            os.lseek(fd, offset, os.SEEK_SET)

            return os.read(fd, size)

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def sync(self, fd: int) -> None:
        if sys.platform == "darwin":
            import fcntl  # noqa: PLC0415 - not on every system

            # fsync on macOS leaves the data in the drive's own cache; see fcntl(2).
            try:
                fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            except OSError as error:
                if error.errno not in (errno.ENOTSUP, errno.EINVAL, errno.ENOTTY):
                    raise
                os.fsync(fd)
        elif hasattr(os, "fdatasync"):
            os.fdatasync(fd)
        else:
            os.fsync(fd)

    def sync_directory(self, path: str) -> None:
        if os.name == "nt":  # a directory cannot be opened there, and names need no sync
            return
        fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
        try:
            os.fsync(fd)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
        finally:
            os.close(fd)

    def drop_cache(self, fd: int, start: int, size: int) -> bool:
        if not hasattr(os, "posix_fadvise") or not hasattr(os, "RWF_NOWAIT"):
            return False
        os.posix_fadvise(fd, start, 0, os.POSIX_FADV_DONTNEED)
        # The advice may be ignored (tmpfs, pages mapped by somebody). A read that must not wait
        # for the disk succeeds only where a page is still in memory. It also begins to fetch the
        # page, and with read-ahead those behind it, so none is asked about after that.
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        try:
            return not any(_in_memory(fd, offset) for offset in _probes(start, size))
        finally:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_NORMAL)

    def stat(self, fd: int) -> os.stat_result:
        return os.fstat(fd)

    def size(self, fd: int) -> int:
        return os.lseek(fd, 0, os.SEEK_END)

    def copy_owner(self, fd: int, like: os.stat_result) -> None:
        if os.name == "nt":
            return
        with suppress(PermissionError):  # only root may give files away; the mode matters more
            os.fchown(fd, like.st_uid, like.st_gid)
        os.fchmod(fd, stat.S_IMODE(like.st_mode))

    def replace(self, source: str, target: str) -> None:
        for pause in _WINDOWS_PAUSES if os.name == "nt" else ():
            try:
                os.replace(source, target)
            except PermissionError:  # a virus scanner or an indexer has it open for a moment
                CLOCK.get().wait(queue.SimpleQueue[None](), pause)
            else:
                return
        os.replace(source, target)

    def link_new(self, source: str, target: str) -> None:
        try:
            os.link(source, target)
        except FileExistsError:
            raise
        except (OSError, NotImplementedError):
            # No hard links here (FAT, some network and FUSE file systems). The caller holds the
            # lock and has just seen that there is no such file.
            if os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from None
            os.replace(source, target)
        else:
            # Names of a folder may reach the disk in any order, and the file must not lose both.
            self.sync_directory(target)
            os.unlink(source)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def siblings(self, path: str) -> list[str]:
        folder, name = os.path.split(path)

        return [
            os.path.join(folder, other)
            for other in os.listdir(folder or ".")
            if other.startswith(name)
        ]


def _probes(start: int, size: int) -> list[int]:
    """Return offsets to ask about: one in each block and the last, in different pages."""
    page = os.sysconf("SC_PAGE_SIZE")
    last = max(0, size - 1) // page * page

    return sorted({*range(start, size, _BLOCK), last})


def _in_memory(fd: int, offset: int) -> bool:
    """Tell whether the page at `offset` is cached, or whether that cannot be known."""
    try:
        return bool(os.preadv(fd, [bytearray(1)], offset, os.RWF_NOWAIT))
    except BlockingIOError:
        return False
    except OSError:
        return True


def opener(path: str, flags: int) -> int:
    """Open for `open(path, opener=…)` what lies where others may put things.

    A link in a file's place would let somebody else choose what is read or written, and a pipe
    would let the open wait for ever.
    """
    return os.open(path, flags | _NOFOLLOW | _NONBLOCK)


def write_all(files: Files, fd: int, data: bytes) -> None:
    """Append all of `data`. If this raises, some of it may have been written."""
    taken = files.write(fd, data)
    while taken < len(data):  # nearly never: a disk that is getting full, a limit on sizes
        taken += files.write(fd, memoryview(data)[taken:])


def read_lines(files: Files, fd: int, start: int, longest: int) -> Iterator[bytes]:
    """Yield the lines from `start` to the end of the file; see `read_blocks`."""
    return itertools.chain.from_iterable(read_blocks(files, fd, start, longest))


def read_blocks(
    files: Files, fd: int, start: int, longest: int, stop: float = math.inf
) -> Iterator[list[bytes]]:
    """Yield the lines from `start` to `stop` or the end, newlines included, by the many.

    The last one may lack its newline; one longer than `longest` comes in pieces without.
    """
    # The pieces of a line are joined once: adding each block to what is there already would copy
    # a line of 64 MiB thirty times over.
    offset, pieces, held = start, list[bytes](), 0
    while block := files.read(fd, int(min(_BLOCK, stop - offset)), offset):
        offset += len(block)
        end = block.rfind(b"\n") + 1
        if end:
            whole = b"".join((*pieces, block[:end]))
            pieces, held = [], 0
            if b"\r" in whole:  # which `splitlines` takes for the end of a line too
                yield [line + b"\n" for line in whole.split(b"\n")[:-1]]
            else:
                yield whole.splitlines(keepends=True)
        pieces.append(block[end:])
        held += len(block) - end
        if held > longest:
            yield [b"".join(pieces)]
            pieces, held = [], 0
    if held:
        yield [b"".join(pieces)]


def temporary_name(path: str) -> str:
    """Return a new name beside `path`, so that a rename never crosses file systems."""
    return f"{path}.tmp-{os.getpid()}-{secrets.token_hex(4)}"


def discard(files: Files, path: str) -> None:
    """Remove a file of our own that may be gone already."""
    with suppress(FileNotFoundError):
        files.unlink(path)


def is_regular(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode)
