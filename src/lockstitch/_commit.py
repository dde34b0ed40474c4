"""The group commit: many savers, one write, one sync.

Callers queue a ticket each. One of them, the leader, takes the mutex, and writes and syncs
everything that is queued in one go; the others wait for it. One saver alone pays no thread
switch; thirty-two share one sync. (A writer thread is the obvious way. It costs a single saver a
third more, and its queue must be drained at exit.)

An interrupt may strike between any two bytecodes, Ctrl-C in the middle of a commit included. So
the truth about the file is one tuple, `state`, replaced by one assignment: either the group is
committed or it is not. Whoever works next and finds a write that was begun and not ended cuts the
file back to the last good end and does the group again. `with` on a bare lock is the only acquire
and release that an interrupt cannot split.

What is not synced is a matter of microseconds: a thread that saves one record after the other takes
the mutex and writes each itself, and no object is made and no call is done that this record does
not need. Threads that take turns queue all the same: two records in one write halve what they wait
for each other.

A failed write is undone, and the handle stays usable. A failed sync is never retried: the kernel
reports it once and then forgets, and the next sync succeeds without the data being on the disk
(ext4, XFS and btrfs alike). A complete copy is published instead, or the handle is given up. What
has failed is written down before anything is called: at each call a signal handler may raise, and
the failure would be forgotten.

An `OSError` without an `errno` is not the system's, which always gives one. It was raised by a
signal handler, `TimeoutError("too long")` for instance, and says nothing about the file.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, NoReturn, TypeVar

from ._errors import (
    CheckpointDamaged,
    DurabilityUnknown,
    LockstitchError,
    SerializationFailed,
    UsageError,
)
from ._files import Files, write_all
from ._frames import MAX_LINE, seal
from ._reading import Fold

logger = logging.getLogger("lockstitch")

F = TypeVar("F", bound=Fold)
T = TypeVar("T")

#: A group of records is written in one call of at most this many bytes (or is one record).
_GROUP = 1 << 20

#: Bytes of the longest record; the rest of a line is for its seal.
_LONGEST = MAX_LINE - 128

_FOREIGN = "Find out who writes to it; then open it again."

#: Seconds a follower waits before it looks whether its leader is still there. It is woken long
#: before; this only answers a leader that was interrupted.
_PATIENCE = 0.05

#: After so many writes that were not synced, the file is looked at whole. Its length is looked at
#: before each; whether it still has its name costs as much as half of the write.
_LOOK = 64

_UNSYNCED = "a sync failed"

#: Greater than the number of any ticket.
_NEVER = 1 << 62

#: The truth about the file, replaced as a whole: its end in bytes, the number of its last record,
#: and how many tickets were committed since it was opened (unlike the number, it never goes back).
State = tuple[int, int, int]

#: How often this process was forked from the one that imported this module: `os.getpid` would be a
#: system call for every record.
_forks = 0


def _forked() -> None:
    global _forks  # noqa: PLW0603 - a process is a global thing
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class _Ticket:
    """One record that waits for a leader."""

    __slots__ = ("done", "error", "id", "payload", "seq", "wake")

    def __init__(self, payload: bytes, id: str) -> None:
        self.payload = payload
        self.id = id
        #: Which ticket of the file it is, once it is in a write.
        self.seq: int = _NEVER
        #: It is committed, and the fold knows it.
        self.done = False
        self.error: Exception | None = None
        #: What its thread waits for, if it waits.
        self.wake: threading.Lock | None = None

    @property
    def over(self) -> bool:
        """True once its thread may go on."""
        return self.done or self.error is not None

    def poke(self) -> None:
        if self.wake is not None and self.wake.locked():
            try:
                self.wake.release()
            except RuntimeError:  # two pokes at once: either will do
                return


class Committer(Generic[F]):
    """The writing end of one open file. Thread-safe; the mutex guards the file and `fold`.

    `rescue(lines)` is called, with the mutex held, when a sync has failed: it publishes a copy of
    the file followed by `lines` and adopts it, or raises.
    """

    def __init__(
        self, files: Files, path: str, fsync: bool | float, rescue: Callable[[list[bytes]], None]
    ) -> None:
        self.fd = -1
        self.salt = 0
        self.fold: F
        self.state: State = (0, 0, 0)
        #: Number of the last record known to be on the disk.
        self.proven = 0
        #: Why the file takes no more records; empty while it does.
        self.poison = ""
        #: The reason is somebody else's hand, and not the disk.
        self.foreign = False
        #: What is being done that nobody can go on with if it is interrupted; empty otherwise.
        #: Belongs to the mutex: other threads see it only when it was left behind.
        self.midway = ""
        #: A save waits for the disk.
        self.syncs: bool = fsync is True
        self._files = files
        self._path = path
        #: Seconds after which what was written is synced; None for at once, or never.
        self._later = None if isinstance(fsync, bool) else fsync
        self._rescue_by = rescue
        self._born = _forks
        #: The next write may simply begin. Otherwise the file is closed, or takes no more, or a
        #: write was begun and is not committed: then what lies behind `end` is to be cut off.
        self.ready = False
        self._mutex = threading.Lock()
        #: The thread that holds the mutex; a signal handler in that thread must not wait for it.
        self._owner: int | None = None
        self._queue: deque[_Ticket] = deque()
        self._group: list[_Ticket] = []
        #: Lines that are being written, with their offsets; those that are committed have yet to be
        #: told to the fold, which may know them already.
        self._untold: list[tuple[int, bytes]] = []
        #: The thread that has appended last. Where several take turns, they share their writes.
        self._latest: int | None = None
        self._unlooked = 0
        self._timer: threading.Timer | None = None

    def adopt(self, fd: int, salt: int, fold: F, end: int, last: int, committed: int) -> None:
        """Go on with a file that has just been read and is known to be on the disk.

        `committed` is how many tickets are in it that were not in the one before.
        """
        self._untold = []  # offsets in another file
        self.fd, self.salt, self.fold = fd, salt, fold
        self.state = (end, last, self.state[2] + committed)
        self.proven = last
        self.midway = ""
        self.ready = True

    @property
    def end(self) -> int:
        """Bytes of the file, up to the end of its last record."""
        return self.state[0]

    def release(self) -> int:
        """Stop; return the file descriptor, which the caller closes, or -1. The mutex is held."""
        self.ready = False
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        fd, self.fd = self.fd, -1

        return fd

    def holding(self, action: Callable[[], T]) -> T:
        """Return what `action` does, with the mutex held."""
        # Asked for before taking the mutex: a signal handler may run at any call, and one that ran
        # with the mutex held and no owner would wait for its own thread.
        me = threading.get_ident()
        with self._mutex:
            self._owner = me
            try:
                found = action()
            finally:
                self._owner = None
        self._poke_next()

        return found

    @property
    def forked(self) -> bool:
        """True in a child that inherited the handle."""
        return self._born != _forks

    def check_mine(self) -> None:
        """Refuse calls from a forked child, after closing, and from a handler inside a commit."""
        if self._born != _forks:
            raise UsageError(
                f"{self._path} was opened before a fork, and only the parent may use it; "
                "return the results to the parent"
            )
        self.check_free()

    def check_free(self) -> None:
        """Refuse a signal handler that has interrupted a commit: waiting for it would never end."""
        if self._owner == threading.get_ident() and self._mutex.locked():
            raise UsageError(
                "the checkpoint was used by a signal handler that interrupted a save; "
                "set a flag in the handler, and save outside of it"
            )

    def refusal(self) -> LockstitchError:
        """Return the error of a file that takes no more records."""
        if self.foreign:
            return CheckpointDamaged(self._path, 0, self.end, self.poison, _FOREIGN)

        return DurabilityUnknown(self._path, (), self.poison)

    def check_usable(self) -> None:
        """Refuse a file that was closed, or whose state on the disk is unknown; mutex held."""
        if self.midway:  # whoever was at it is not here any more
            self.poison, self.midway = self.midway, ""
        if self.poison:
            raise self.refusal()
        if self.fd < 0:
            raise UsageError(f"{self._path} is closed")

    def check_writable(self) -> None:
        """As `check_mine`, and refuse a file whose state on the disk is unknown."""
        self.check_mine()
        if self.poison:
            raise self.refusal()

    def append(self, payload: bytes, id: str = "", sync: bool = True) -> None:
        """Add one record; return once it is as durable as the `fsync` policy says.

        With `sync=False` it is handed to the system and not synced, whatever the policy. `id` names
        the item in errors.

        Raises:
            OSError: it could not be written; the file is as before, and can be appended to.
            DurabilityUnknown: nobody knows what the disk holds; the file takes no more.
            CheckpointDamaged: somebody else changed the file.
            UsageError: called in a forked child, or from a signal handler inside a save.
            SerializationFailed: it is too long; nothing was written.
        """
        me, state = threading.get_ident(), None
        if self._owner == me or self._born != _forks or self.poison:
            self.check_writable()
        if len(payload) > _LONGEST:
            raise SerializationFailed(
                id, "$", f"it makes a line of {len(payload)} bytes; the limit is 64 MiB"
            )
        if sync if self.syncs else me != self._latest:
            self._latest = me
            self._share(_Ticket(payload, id))
            return
        with self._mutex:
            self._owner = me  # as in `holding`, which costs two calls more
            try:
                if (self._queue or self._group) and not self.syncs:
                    self._commit()
                if not self.ready:  # after it: what failed there is told to others
                    self._recover()
                state = self.state
                self._write([(payload, id)], 0, False)
            except BaseException as error:
                # Interrupted. Nobody has been told that it is saved; if it can be, it will be.
                if self.state is state and not self._failed(error, self.state):
                    self._queue.append(_Ticket(payload, id))
                raise
            finally:
                self._owner = None
        if self._queue:
            self._poke_next()

    def append_now(self, payload: bytes) -> bool:
        """Add one record without syncing, also from inside a signal handler.

        Returns False, and writes nothing, when the handler has interrupted a commit.
        """
        # Not even another thread's commit is waited for: a handler that is interrupted just after
        # taking the mutex, and before it could sign as its owner, would wait for itself.
        if self.forked or self.fd < 0 or self.poison or self._mutex.locked():
            return False
        self.append(payload, sync=False)

        return True

    def flush(self) -> None:
        """Return once everything appended so far is on the disk, whatever the policy.

        Raises:
            DurabilityUnknown: the disk does not confirm, and a copy could not be made either.
        """
        self.check_writable()
        self.holding(self._flush)

    def _flush(self) -> None:
        self.commit_queue()
        self._sync()

    # Waiting and leading

    def _share(self, ticket: _Ticket) -> None:
        """Return once a ticket is committed, by this thread or another one."""
        # Queued before the mutex is asked for: who has it takes along whoever waits for it.
        self._queue.append(ticket)
        while not ticket.over:
            # Without a sync to share, a commit is over before a follower is asleep.
            if self.syncs and self._mutex.locked():
                self._follow(ticket)
            else:
                self._lead(ticket)
        if ticket.error is not None:
            raise ticket.error

    def _follow(self, ticket: _Ticket) -> None:
        """Wait until somebody has committed the ticket, or its thread is the next to lead."""
        if ticket.wake is None:
            wake = threading.Lock()
            wake.acquire()
            ticket.wake = wake
        if not ticket.over:  # or it was finished before it could be woken
            ticket.wake.acquire(timeout=_PATIENCE)

    def _lead(self, ticket: _Ticket) -> None:
        """Commit what is queued, unless somebody has done it; errors are in the tickets."""
        self.holding(lambda: None if ticket.over else self._commit())

    def _poke_next(self) -> None:
        """Wake the next leader."""
        try:
            self._queue[0].poke()
        except IndexError:
            return

    def _commit(self) -> None:
        """Write what is queued, sync it, and wake who waits for it; the mutex is held."""
        group, state = self._take_group(), self.state
        try:
            self.bring_to_order()
            fresh = [each for each in group if each.seq > self.state[2]]
            if fresh:
                self._write([(each.payload, each.id) for each in fresh], len(fresh), self.syncs)
        except (OSError, LockstitchError) as error:
            if not self._failed(error, state):
                raise
            for each in group:
                if each.seq > self.state[2]:  # else it is in the file, whatever came after that
                    each.seq = _NEVER
                    each.error = _copy(error, self._path)
        for each in group:
            each.done = each.error is None
            each.poke()
        self._group = []

    def _failed(self, error: BaseException, state: State) -> bool:
        """Tell what a write has raised from what a signal handler has while it was going on.

        `state` is that before the write: once it is committed, nothing fails any more.
        """
        if isinstance(error, OSError):
            return error.errno is not None and self.state is state

        return isinstance(error, LockstitchError) and (bool(self.poison) or self.fd < 0)

    def _take_group(self) -> list[_Ticket]:
        """Return what the next write takes: first what an interrupt has left of the last one.

        Of that some may be committed, and not have been told so.
        """
        queue = self._queue
        group, size = self._group, 0
        if group:
            group = self._group = [each for each in group if not each.over]
            size = sum([len(each.payload) for each in group])
        # Look, take, then remove: an interrupt in between leaves a ticket twice and never nowhere.
        while queue and (not group or size < _GROUP):
            ticket = queue[0]
            if ticket not in group[-1:] and not ticket.over:
                group.append(ticket)
                size += len(ticket.payload)
            queue.popleft()
        seq = self.state[2]
        for each in group:
            if each.seq > self.state[2]:
                each.seq = seq = seq + 1

        return group

    # Writing

    def commit_queue(self) -> None:
        """Write what an interrupt has left in the queue; the mutex is held."""
        self.bring_to_order()
        while self._queue or self._group:
            self._commit()
            self.bring_to_order()  # what failed there is told to others

    def bring_to_order(self) -> None:
        """Make sure that the next write may begin; raises if the file takes no more."""
        if not self.ready:
            self._recover()

    def _recover(self) -> None:
        """Bring to its end what an interrupt has left; raises if the file takes no more."""
        end = self.end
        for offset, line in self._untold:  # first, for it is in the file whatever comes now
            if offset < end:
                self.fold.apply(offset, line)
        self.check_usable()
        self._undo([])
        self.ready = True

    def _write(self, records: list[tuple[bytes, str]], tickets: int, sync: bool) -> None:
        """Write payloads, given with the ids of their items, and sync them if asked to.

        The mutex is held, and the file ready.
        """
        end, n, done = self.state
        proven, salt = self.proven, self.salt
        fresh: list[tuple[int, bytes]] = []
        data = b""
        for payload, _ in records:
            n += 1
            data = seal(payload, n, proven, salt)
            fresh.append((end, data))
            end += len(data)
        if len(fresh) > 1:
            data = b"".join([line for _, line in fresh])
        self._unlooked += 1
        if sync or self._unlooked > _LOOK or self._files.size(self.fd) != self.state[0]:
            self.check_unchanged()
        self._untold = fresh
        self.ready = False
        try:
            write_all(self._files, self.fd, data)
        except OSError:
            self._undo(records)
            self.ready = True
            raise
        if sync:
            try:
                self._files.sync(self.fd)
            except OSError as error:
                if error.errno is None:
                    raise
                self.midway = _UNSYNCED
                self._rescue(error, [line for _, line in fresh], records)
                return
        self.state = (end, n, done + tickets)  # the commit point
        if sync:
            # Not before it: a line that calls itself proven, written again after an interrupt,
            # would be believed by nobody.
            self.proven = n
        for offset, line in fresh:
            self.fold.apply(offset, line)
        self.ready = True
        self._untold = []
        if self._later is not None and self._timer is None:
            self._sync_later(self._later)

    def _undo(self, records: list[tuple[bytes, str]]) -> None:
        """Cut a half-written group off; the cut is on the disk before anything else is written."""
        try:
            self._files.truncate(self.fd, self.end)
            self._files.sync(self.fd)
        except OSError as error:
            self.ready = False
            if error.errno is None:
                raise  # the cut is made when somebody writes next
            self.poison = "a failed write could not be undone"
            self.give_up(f"{self.poison} ({error})", error, records)

    def give_up(
        self, reason: str, cause: OSError, records: list[tuple[bytes, str]] | None = None
    ) -> NoReturn:
        """Take no more records. Raises `DurabilityUnknown`, with the ids of `records`."""
        self.ready = False
        self.poison = reason
        ids = tuple(id for _, id in records or () if id)

        raise DurabilityUnknown(self._path, ids, reason) from cause

    def check_unchanged(self) -> None:
        """Raise `CheckpointDamaged`, and give the file up, if somebody else touched it."""
        self._unlooked = 0
        status = self._files.stat(self.fd)
        end = self.end
        if status.st_nlink and status.st_size == end:
            return
        what = (
            f"is {status.st_size} bytes long, not {end}"
            if status.st_nlink
            else "was deleted or replaced"
        )
        self.ready = False
        self.poison = f"the file {what}: somebody else changed it while it was open"
        self.foreign = True
        raise self.refusal()

    def _sync(self) -> None:
        self.check_unchanged()  # a file that has lost its name would be synced to no avail
        _, n, _ = self.state
        if self.proven == n:
            return
        try:
            self._files.sync(self.fd)
        except OSError as error:
            if error.errno is None:
                raise
            self.ready, self.midway = False, _UNSYNCED
            self._rescue(error, [], [])
        else:
            self.proven = n

    def _sync_later(self, seconds: float) -> None:
        timer = threading.Timer(seconds, lambda: self.holding(self._sync_timed))
        timer.daemon = True
        try:
            timer.start()
        except RuntimeError:  # the system has no thread to give: it is synced here and now
            self._sync()
        else:
            self._timer = timer

    def _sync_timed(self) -> None:
        self._timer = None
        try:
            if self.fd >= 0 and not self.poison:
                self._flush()
        except (DurabilityUnknown, CheckpointDamaged) as error:
            # Nobody waits here; the next save raises, because the file is given up.
            logger.error("%s", error)  # noqa: TRY400 - the message says it all

    def _rescue(self, error: OSError, lines: list[bytes], records: list[tuple[bytes, str]]) -> None:
        """After a failed sync: put everything into a new file, or give up."""
        # Until the copy is in place, and for good if an interrupt comes first: the next sync
        # would succeed without the data being on the disk.
        self.midway = f"{_UNSYNCED} ({error})"
        try:
            self._rescue_by(lines)
        except (OSError, CheckpointDamaged) as again:
            if isinstance(again, OSError) and again.errno is None:
                raise
            reason = f"{_UNSYNCED} ({error}), and so did writing a copy ({again})"
            self.give_up(reason, error, records)
        except DurabilityUnknown:  # the copy has taken the file's name, or maybe not
            self.give_up(self.poison, error, records)
        logger.warning(
            "%s: a sync failed (%s); a complete copy was written and is used", self._path, error
        )


def _copy(error: Exception, path: str) -> Exception:
    # One exception raised in several threads would collect the tracebacks of all of them.
    if isinstance(error, OSError):
        return OSError(error.errno, error.strerror, error.filename or path)

    return type(error)(*error.args)
