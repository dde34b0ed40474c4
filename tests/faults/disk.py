"""A disk in memory that keeps what programs see apart from what would survive a power cut.

It is as unkind as file systems may be. What was not synced may be there, may be missing, may be
torn at any byte or read as zeros; later writes may be there without earlier ones; the size of a
file may be there without its bytes. A name that was not synced with its folder may be the old one
or the new one. A failed sync is reported once, and the pages count as clean from then on, as
Linux has it: programs go on seeing bytes that the disk does not hold.
"""

import errno
import itertools
import os
import stat
from collections import Counter

import attrs

from lockstitch._files import Files
from lockstitch._journal import Storage
from lockstitch.testing import MemoryFiles

#: Calls that change something, so that the states after a power cut are others afterwards.
CHANGES = frozenset(
    {"create", "write", "truncate", "sync", "sync_directory", "replace", "link_new", "unlink"}
)

#: Every file call, in the order of the protocol.
CALLS = tuple(name for name in vars(Files) if not name.startswith("_"))

_SECTOR = 512

#: A write of up to so many bytes is torn after each of them; a longer one near lines and sectors.
#: Where a power cut is only one of several faults, a few bytes stand for all.
_EVERY_BYTE = 512

#: Up to so many unsynced changes, every subset of them is a state; beyond, every beginning, and
#: everything without each one of them.
_ALL_SUBSETS = 5

#: Up to so many combinations of the states of several files are all made; beyond, one file at a
#: time goes through its states while the others hold all they were given.
_ALL_COMBINATIONS = 256


class Killed(BaseException):
    """The process is dead: it makes no call any more."""


@attrs.define(eq=False)
class Node:
    """A file: its bytes as programs see them, and as they are on the disk."""

    seen: bytearray = attrs.Factory(bytearray)
    stored: bytes = b""
    #: Not yet on the disk: (offset, bytes) of a write, (size, None) of a truncation.
    pending: list = attrs.Factory(list)
    links: int = 1

    def settle(self):
        self.stored = _applied(self.stored, self.pending)
        self.pending = []


def _applied(data, changes):
    result = bytearray(data)
    for offset, written in changes:
        if written is None:
            del result[offset:]
        if len(result) < offset:  # what lay in between never came: it reads as zeros
            result += bytes(offset - len(result))
        if written is not None:
            result[offset : offset + len(written)] = written

    return bytes(result)


def _subsets(changes):
    """Yield which of some unsynced changes may have come through, in their order."""
    if len(changes) <= _ALL_SUBSETS:
        for size in range(len(changes) + 1):
            yield from itertools.combinations(changes, size)
        return
    for size in range(len(changes) + 1):
        yield tuple(changes[:size])
    for missing in range(len(changes) - 1):
        yield (*changes[:missing], *changes[missing + 1 :])


def _cuts(offset, written, fine):
    """Return where a write may be torn."""
    if fine and len(written) <= _EVERY_BYTE:
        return range(1, len(written))
    sectors = range(-offset % _SECTOR, len(written), _SECTOR)
    lines = [k + 1 for k, byte in enumerate(written) if byte == 0x0A]
    near = [len(written) // 2, len(written) - 1, *(k - 1 for k in lines if fine)]

    return sorted({1, *near, *lines, *sectors} & set(range(1, len(written))))


def contents(stored, pending, *, fine=True):
    """Return every content that a file with these unsynced changes may have after a power cut."""
    found = set()
    for chosen in _subsets(pending):
        whole = _applied(stored, chosen)
        found.add(whole)
        writes = [each for each in chosen if each[1] is not None]
        if not writes:
            continue
        offset, written = writes[-1]
        for cut in _cuts(offset, written, fine):
            if chosen[-1] is writes[-1]:
                found.add(_applied(stored, [*chosen[:-1], (offset, written[:cut])]))
            # The size came through, and of this write only the one or the other half.
            found.add(_zeroed(whole, offset, offset + cut))
            found.add(_zeroed(whole, offset + cut, offset + len(written)))
        found.add(_zeroed(whole, offset, offset + len(written)))

    return sorted(found)


def _zeroed(data, start, stop):
    stop = min(stop, len(data))

    return data[:start] + bytes(max(0, stop - start)) + data[stop:]


class Disk(Files):
    """See the module. Thread-safe where the library needs it: different files.

    `before(call)` runs before each call. It may raise; for a write it may return how many bytes
    are taken. A `close` frees the descriptor whatever `before` does, as the kernel does.
    """

    def __init__(self, files=()):
        #: Names as programs see them, and as they are on the disk.
        self.names = {}
        self.stored_names = {}
        #: Changes to names that are not on the disk yet: (old name, new name, file).
        self.pending_names = []
        for name, data in dict(files).items():
            self.names[name] = self.stored_names[name] = Node(bytearray(data), bytes(data))
        self.handles = {}
        self.calls = Counter()
        self.before = lambda _call: None
        #: False where caches cannot be dropped: a file system in memory, macOS, Windows.
        self.drops = True
        self.fine = True
        self._dead = False
        self._fds = itertools.count(1000)
        self.restart()

    def restart(self):
        """End the process: descriptors and locks are gone, what programs see stays."""
        self._dead = False
        self.handles.clear()
        self._locks = MemoryFiles()

    def storage(self):
        return Storage(self, self._locks.lock)

    @property
    def is_locked(self):
        return bool(self._locks._held)

    def bytes(self, path):
        return bytes(self.names[path].seen)

    # The power

    def states(self):
        """Yield every folder, as a dict from names to bytes, that a power cut now may leave."""
        for changes in _subsets(self.pending_names):
            names = dict(self.stored_names)
            for old, new, node in changes:
                names.pop(old, None)
                if new is not None:
                    names[new] = node
            choices = [
                contents(node.stored, node.pending, fine=self.fine) for node in names.values()
            ]
            count = 1
            for each in choices:
                count *= len(each)
            if count <= _ALL_COMBINATIONS:
                combined = itertools.product(*choices)
            else:
                combined = _one_at_a_time(names, choices)
            for chosen in combined:
                yield dict(zip(names, chosen, strict=True))

    # The calls

    def _called(self, call):
        self.calls[call] += 1
        if self._dead:
            raise Killed
        try:
            return self.before(call)
        except Killed:
            self._dead = True
            raise

    def _find(self, path):
        if path not in self.names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)

        return self.names[path]

    def _refuse_taken(self, path):
        if path in self.names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)

    def _open(self, node):
        fd = next(self._fds)
        self.handles[fd] = node

        return fd

    def open_append(self, path):
        self._called("open_append")

        return self._open(self._find(path))

    def open_read(self, path):
        self._called("open_read")

        return self._open(self._find(path))

    def create(self, path, mode):
        self._called("create")
        self._refuse_taken(path)
        node = self.names[path] = Node()
        self.pending_names.append((None, path, node))

        return self._open(node)

    def close(self, fd):
        try:
            self._called("close")
        finally:
            del self.handles[fd]

    def write(self, fd, data):
        taken = self._called("write")
        node, data = self.handles[fd], bytes(data[:taken])
        if data:
            node.pending.append((len(node.seen), data))
            node.seen += data

        return len(data)

    def read(self, fd, size, offset):
        self._called("read")

        return bytes(self.handles[fd].seen[offset : offset + size])

    def truncate(self, fd, size):
        self._called("truncate")
        node = self.handles[fd]
        node.pending.append((size, None))
        del node.seen[size:]

    def sync(self, fd):
        node = self.handles[fd]
        try:
            self._called("sync")
        except OSError as error:
            if error.errno == errno.EIO:
                node.pending = []  # clean, as far as the system knows; else it may try again
            raise
        node.settle()

    def sync_directory(self, path):
        self._called("sync_directory")
        self.stored_names = dict(self.names)
        self.pending_names = []

    def drop_cache(self, fd, start, size):
        self._called("drop_cache")
        node = self.handles[fd]
        if self.drops and not node.pending:
            # The size is kept with the file and not with its pages.
            missing = max(0, len(node.seen) - len(node.stored))
            stored = node.stored[: len(node.seen)] + bytes(missing)
            node.seen[start:] = stored[start:]

        return self.drops

    def stat(self, fd):
        self._called("stat")
        node = self.handles[fd]

        return os.stat_result(
            (stat.S_IFREG | 0o600, 0, 0, node.links, 0, 0, len(node.seen), 0, 0, 0)
        )

    def size(self, fd):
        self._called("size")

        return len(self.handles[fd].seen)

    def copy_owner(self, fd, like):
        self._called("copy_owner")

    def replace(self, source, target):
        self._called("replace")
        node = self._find(source)
        if target in self.names:
            self.names[target].links -= 1
        self.names[target] = self.names.pop(source)
        self.pending_names.append((source, target, node))

    def link_new(self, source, target):
        self._called("link_new")
        node = self._find(source)
        self._refuse_taken(target)
        self.names[target] = node
        node.links += 1
        self.pending_names.append((None, target, node))
        self.sync_directory(target)
        del self.names[source]
        node.links -= 1
        self.pending_names.append((source, None, node))

    def unlink(self, path):
        self._called("unlink")
        self._find(path)
        node = self.names.pop(path)
        node.links -= 1
        self.pending_names.append((path, None, node))

    def siblings(self, path):
        self._called("siblings")

        return [name for name in self.names if name.startswith(path)]


def _one_at_a_time(names, choices):
    full = [_applied(node.stored, node.pending) for node in names.values()]
    for position, several in enumerate(choices):
        for each in several:
            yield (*full[:position], each, *full[position + 1 :])
