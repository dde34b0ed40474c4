"""A checkpoint file, opened by its one writer. Bytes and sizes, no record's meaning.

Opening is where trust is decided, so its order matters: lock, sync, drop what is cached, and
only then read. A run that died between write and sync leaves records that can be read and are
not on the disk; believing them would lose them at the next power cut, after they were skipped.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Generic, NamedTuple, Protocol, TypeVar

from ._clock import CLOCK
from ._commit import Committer
from ._errors import UsageError
from ._files import Files, SystemFiles, discard, read_blocks, write_all
from ._frames import MAX_LINE, Scan, Wrong, strip_seal, unseal
from ._lock import Lock, RunLock
from ._publish import create, keep_aside, new_salt, set_aside, write_new
from ._reading import Contents, Fold, damaged, load, load_header, read_line, refuse_special
from ._records import Header

logger = logging.getLogger("lockstitch")

F = TypeVar("F", bound=Fold)
Keep = Callable[[int, bytes], bool]

#: Bytes at the end of a file in which its `end` line is looked for; whole pages.
_TAIL = 1 << 16


class Append(Protocol):
    """See `Committer.append`."""

    def __call__(self, payload: bytes, id: str = "", sync: bool = True) -> None: ...


class Storage(NamedTuple):
    """Where checkpoints live: the file calls, and the lock for a path."""

    files: Files
    lock: Callable[[str], Lock]


#: The storage that a checkpoint takes up when it is made; None is the machine's. Replaced by
#: `lockstitch.testing`, so that a test of a user's script need not touch the script.
STORAGE: ContextVar[Storage | None] = ContextVar("lockstitch_storage", default=None)


def current_storage() -> Storage:
    """Return the storage in force here."""
    return STORAGE.get() or Storage(SystemFiles(), lambda path: RunLock(path, CLOCK.get().wall))


class Journal(Generic[F]):
    """The file of a checkpoint, open for writing by one process at a time.

    Thread-safe. After a fork, the child's handle refuses everything.
    """

    def __init__(
        self, path: str, *, fsync: bool | float, storage: Storage, fold: Callable[[], F]
    ) -> None:
        self.path = path
        self.header: Header
        #: What has been made of the lines so far; replaced as a whole by `publish`.
        self.fold: F
        #: Bytes that a crash had left half-written and that opening has cut off.
        self.torn: int = 0
        self._start = 0
        self._files = storage.files
        self._lock = storage.lock(path)
        self._held = False
        self._new_fold = fold
        self._commit: Committer[F] = Committer(storage.files, path, fsync, self._republish)
        # One call less for each record than methods that pass it on.
        self.append: Append = self._commit.append
        self.append_now: Callable[[bytes], bool] = self._commit.append_now
        self.flush: Callable[[], None] = self._commit.flush

    @property
    def size(self) -> int:
        """Bytes of the file, up to the end of its last record."""
        return self._commit.end

    @property
    def is_open(self) -> bool:
        """True until `close` has freed the lock."""
        return self._held

    @property
    def is_mine(self) -> bool:
        """False in a forked child, which must leave the parent's file alone.

        And in what is left of a process that died for a test: nothing tidies up in a dead one.
        """
        return not self._commit.forked and self._lock.is_held

    @property
    def syncs(self) -> bool:
        """True where a save waits for the disk."""
        return self._commit.syncs

    # Opening

    def open(self, new_header: Callable[[], Header], *, fresh: bool = False) -> None:
        """Lock the checkpoint and read it; create it if there is none.

        With `fresh` the old file, damaged or not, is set aside first.

        Raises:
            CheckpointLocked, CheckpointDamaged, UsageError, OSError: the lock is free again.
        """
        if not fresh:
            self._refuse_foreign()
        self._lock.acquire()
        self._held = True
        try:
            if fresh:
                self._set_aside()
            self._open_locked(new_header)
        except BaseException:
            self._abandon()
            raise

    def _refuse_foreign(self) -> None:
        """Leave no lock file beside what is no checkpoint of ours."""
        try:
            fd = self._files.open_read(self.path)
        except FileNotFoundError:
            return
        try:
            refuse_special(self._files, fd, self.path)
            load_header(self._files, fd, self.path)
        finally:
            self._files.close(fd)

    def _open_locked(self, new_header: Callable[[], Header]) -> None:
        created = False
        try:
            fd = self._open_existing()
        except FileNotFoundError:  # any other error could hide a file that is there
            create(self._files, self.path, new_header())
            fd, created = self._open_existing(), True
        self._commit.fd = fd
        size = refuse_special(self._files, fd, self.path)
        for leftover in self._files.siblings(f"{self.path}.tmp-"):
            discard(self._files, leftover)
        synced = self._sync_before_belief(fd)
        proved = created or (synced and self._prove(fd, size))
        contents = self._load(fd)
        self._adopt(fd, contents)
        self._mend(contents, proved=proved, synced=synced)

    def _set_aside(self) -> None:
        """Rename the old file, if there is one; a folder or a device is not ours to rename."""
        try:
            fd = self._files.open_read(self.path)
        except FileNotFoundError:
            return
        try:
            refuse_special(self._files, fd, self.path)
        finally:
            self._files.close(fd)
        set_aside(self._files, self.path)

    def _open_existing(self) -> int:
        try:
            return self._files.open_append(self.path)
        except IsADirectoryError:
            raise UsageError(f"{self.path} is a folder; give the path of a file in it") from None

    def _sync_before_belief(self, fd: int) -> bool:
        try:
            self._files.sync(fd)
            synced = True
        except OSError as error:
            logger.warning(
                "%s: syncing failed (%s); a copy is made before it is trusted", self.path, error
            )
            synced = False
        self._files.sync_directory(self.path)

        return synced

    def _load(self, fd: int) -> Contents[F]:
        contents = load(self._files, fd, self.path, self._new_fold())
        contents.check(self.path)

        return contents

    def _adopt(self, fd: int, contents: Contents[F], committed: int = 0) -> None:
        self.header, self.fold = contents.header, contents.fold
        self._start, scan = contents.scan.start, contents.scan
        self._commit.adopt(fd, contents.header.salt, contents.fold, scan.end, scan.last, committed)

    def _prove(self, fd: int, size: int) -> bool:
        """Tell whether what is read from now on is on the disk."""
        # The end of a file that was closed in order says so of all that is before it. Then only the
        # end is fetched from the disk, and the rest may come from memory.
        start = max(0, size - _TAIL) // _TAIL * _TAIL
        if self._files.drop_cache(fd, start, size) and self._ends_sealed(fd, start, size):
            return True

        return self._files.drop_cache(fd, 0, size)

    def _ends_sealed(self, fd: int, start: int, size: int) -> bool:
        """Tell whether the last line is an `end` that was written when all before it was synced."""
        header, _ = load_header(self._files, fd, self.path)
        tail = self._files.read(fd, size - start, start)
        line = tail[tail.rfind(b"\n", 0, -1) + 1 :]
        if not (line.startswith(b'{"end":') and line.endswith(b"\n")):
            return False
        found = unseal(line[:-1], header.salt)

        return found is not None and found[1] == found[0] - 1

    @staticmethod
    def _is_sealed(contents: Contents[F]) -> bool:
        """Tell whether the last line says that all lines before it are on the disk."""
        scan = contents.scan

        return contents.fold.sealed and not scan.holes and scan.proven >= scan.last - 1

    def _renew_end(self, scan: Scan) -> None:
        """Write the last line of a sealed file again: its own sync may have failed unseen.

        Its writer may have died of that, and where caches cannot be dropped the line would be
        read all the same, and what is appended behind it would have a hole before it.
        """
        if scan.proven >= scan.last:
            return
        fd = self._commit.fd
        line = self._files.read(fd, scan.end - scan.begin, scan.begin)
        self._files.truncate(fd, scan.begin)
        self._files.sync(fd)
        write_all(self._files, fd, line)
        self._files.sync(fd)

    def _mend(self, contents: Contents[F], *, proved: bool, synced: bool) -> None:
        """Cut a torn tail off; copy the file where cutting would lose records or trust a cache."""
        scan = contents.scan
        self.torn = sum(wrong.stop - wrong.start for wrong in scan.wrong)
        if self.torn:
            aside = keep_aside(self._files, self._commit.fd, self.path, scan.wrong, "torn")
            kept = f", kept as {aside}" if aside else ""
            logger.warning(
                "%s: cut off %d bytes that a crash left torn%s", self.path, self.torn, kept
            )
        if not proved and synced and self._is_sealed(contents):
            self._renew_end(scan)
            proved = True
        if scan.holes or not proved:
            try:
                self._republish([])
            except OSError as error:
                if scan.holes or not synced or error.errno is None:
                    raise
                # A file that is itself a mount point cannot be replaced. It is synced: go on.
                logger.warning(
                    "%s: it could not be copied (%s) and is used as it is", self.path, error
                )
            else:
                return
        if scan.end < scan.size:
            self._files.truncate(self._commit.fd, scan.end)
            self._files.sync(self._commit.fd)

    # Writing

    def publish(self, keep: Keep, header: Header | None = None) -> None:
        """Replace the file by one with only the lines that `keep` is true for.

        Raises:
            OSError, CheckpointDamaged: the old file is untouched and still in use.
            DurabilityUnknown: the new file may or may not have taken the old one's place.
        """
        commit = self._commit
        commit.check_writable()

        def replace() -> None:
            commit.commit_queue()  # or what is dropped now would be written later
            commit.check_unchanged()  # what somebody else put there is not ours to replace
            self._replace(keep, [], header or self.header)

        commit.holding(replace)

    def _republish(self, lines: list[bytes]) -> None:
        self._replace(lambda _offset, _line: True, lines, self.header)

    def _replace(self, keep: Keep, extra: list[bytes], header: Header) -> None:
        commit = self._commit
        count = sum(keep(offset, line) for offset, line in self._lines()) + len(extra)
        fresh = header._replace(salt=new_salt(), proven=count)
        payloads = self._payloads(keep, extra)
        temporary = write_new(self._files, self.path, fresh, payloads, self._files.stat(commit.fd))
        try:
            self._switch(temporary, self._verify(temporary, count), len(extra))
        except BaseException:
            discard(self._files, temporary)
            raise

    def _switch(self, temporary: str, contents: Contents[F], committed: int) -> None:
        """Put the copy in the file's place and go on with it; an `OSError` leaves the old file.

        Any other interruption leaves a handle that takes no more: with the old salt in the new
        file, records would be acknowledged and no reader would ever believe them.
        """
        commit = self._commit
        before, was_ready, commit.ready = commit.midway, commit.ready, False
        commit.midway = "the file was being replaced when it was interrupted"
        # Windows replaces no file that is open, so ours is closed for the moment.
        fd, commit.fd = commit.fd, -1
        self._files.close(fd)
        try:
            self._files.replace(temporary, self.path)
        except OSError as error:
            if error.errno is None:
                raise  # of a handler: it may have come before or after the file was replaced
            commit.fd = self._reopen()
            commit.midway, commit.ready = before, was_ready
            raise
        commit.fd = self._reopen()
        try:
            self._files.sync_directory(self.path)
        except OSError as error:
            commit.give_up(f"the name of the new file could not be synced ({error})", error)
        self._adopt(commit.fd, contents, committed)

    def _reopen(self) -> int:
        commit = self._commit
        try:
            return self._files.open_append(self.path)
        except OSError as error:
            commit.give_up(f"the file could not be opened again ({error})", error)

    def _verify(self, path: str, count: int) -> Contents[F]:
        fd = self._files.open_read(path)
        try:
            contents = self._load(fd)
        finally:
            self._files.close(fd)
        if contents.scan.last != count:
            raise damaged(path, Wrong(-1, 0, 0, 0, "the copy is not complete"))

        return contents

    def _payloads(self, keep: Keep, extra: list[bytes]) -> Iterator[bytes]:
        for offset, line in self._lines():
            if keep(offset, line):
                yield strip_seal(line)
        for line in extra:
            yield strip_seal(line)

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        end, seen = self._commit.end, self._start
        scan = Scan(salt=self.header.salt, proven=self.header.proven, start=self._start)
        raw = read_blocks(self._files, self._commit.fd, self._start, MAX_LINE, end)
        for offset, line in scan.frames(raw):
            yield offset, line
            seen = offset + len(line)
        if seen < end:
            raise damaged(self.path, Wrong(-1, 0, seen, end, "records cannot be read back"))

    # Reading and closing

    def read(self, find: Callable[[F], int]) -> dict[str, object]:
        """Return the record at the offset that `find` takes from the fold.

        Both happen under one lock: a compaction in another thread moves every record.
        """
        commit = self._commit
        commit.check_mine()

        def read() -> dict[str, object]:
            if commit.fd < 0:
                commit.check_usable()
            offset = find(commit.fold)

            return read_line(self._files, commit.fd, self.path, commit.salt, offset)

        return commit.holding(read)

    def close(self, end: bytes | None) -> None:
        """Commit what is queued, sync, write `end` as the last record, sync, free the lock.

        The lock is free afterwards even if this raises. In a forked child, only the handle goes.

        Raises:
            UsageError: called by a signal handler that interrupted a save; nothing was closed.
        """
        commit = self._commit
        if commit.forked or not self._held:
            self._held, commit.fd = False, -1
            return
        commit.check_free()
        try:
            if commit.fd >= 0 and not (commit.poison or commit.midway):
                self.flush()
                if end is not None:
                    self.append(end, sync=False)
                    self.flush()
        finally:
            self._abandon()

    def _abandon(self) -> None:
        commit = self._commit
        try:
            # Under the mutex: a thread that is just saving must not find its file closed, and
            # the number of it given to another file.
            commit.holding(self._close_file)
        finally:
            self._held = False
            self._lock.release()

    def _close_file(self) -> None:
        fd = self._commit.release()
        if fd >= 0:
            self._files.close(fd)
