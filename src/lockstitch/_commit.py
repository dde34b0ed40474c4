"""The group commit: many savers, one write, one sync.

Callers queue a ticket each. One of them, the leader, takes the mutex, and writes and syncs
everything that is queued in one go; the others wait for it. One saver alone pays no thread
switch; thirty-two share one sync. (A writer thread is the obvious way. It costs a single saver a
third more, and its queue must be drained at exit.)

An interrupt may strike between any two bytecodes, Ctrl-C in the middle of a commit included. So
the truth about the file is one tuple, `state`, replaced by one assignment: either the group is
committed or it is not. Whoever leads next and finds a write that was begun and not ended cuts the
file back to the last good end and does the group again. `with` on a bare lock is the only acquire
and release that an interrupt cannot split.

With `fsync=False` a save is a matter of microseconds, so the way of a single record is kept short:
no object is made and no call is done that this record does not need.

A failed write is undone, and the handle stays usable. A failed sync is never retried: the kernel
reports it once and then forgets, and the next sync succeeds without the data being on the disk
(ext4, XFS and btrfs alike). A complete copy is published instead, or the handle is given up.
"""

from __future__ import annotations

import logging
import math
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, NoReturn, TypeVar

from ._errors import CheckpointDamaged, DurabilityUnknown, LockstitchError, UsageError
from ._files import Files, write_all
from ._frames import seal
from ._reading import Fold

logger = logging.getLogger("lockstitch")

F = TypeVar("F", bound=Fold)

#: A group of records is written in one call of at most this many bytes (or is one record).
_GROUP = 1 << 20

_FOREIGN = "Find out who writes to it; then open it again."

#: Seconds a follower waits before it looks whether its leader is still there. It is woken long
#: before; this only answers a leader that was interrupted.
_PATIENCE = 0.05


#: After so many writes that were not synced, the file is looked at whole. Its length is looked at
#: before each; whether it still has its name costs as much as half of the write.
_LOOK = 64

#: Greater than the number of any ticket.
_NEVER = 1 << 62

#: The truth about the file, replaced as a whole: its end in bytes, the number of its last record,
#: and how many tickets were committed since it was opened (unlike the number, it never goes back).
State = tuple[int, int, int]


class _Ticket:
    """One record on its way into the file."""

    __slots__ = ("error", "id", "line", "offset", "payload", "seq", "sync", "wake")

    def __init__(self, payload: bytes, id: str, sync: bool) -> None:
        self.payload = payload
        self.id = id
        self.sync = sync
        #: Which ticket of the file it is, once it is in a write.
        self.seq: int = _NEVER
        self.error: Exception | None = None
        self.wake: threading.Lock | None = None
        self.line: bytes
        self.offset: int

    def poke(self) -> None:
        if self.wake is not None and self.wake.locked():
            try:
                self.wake.release()
            except RuntimeError:  # two pokes at once: either will do
                return


class Committer(Generic[F]):
    """The writing end of one open file. Thread-safe; `mutex` guards the file and `fold`.

    `rescue(lines)` is called, with the mutex held, when a sync has failed: it publishes a copy of
    the file followed by `lines` and adopts it, or raises.
    """

    def __init__(
        self, files: Files, path: str, fsync: bool | float, rescue: Callable[[list[bytes]], None]
    ) -> None:
        self.mutex = threading.Lock()
        #: The thread that holds the mutex; a signal handler in that thread must not wait for it.
        self.owner: int | None = None
        self.fd = -1
        self.salt = 0
        self.fold: F
        self.state: State = (0, 0, 0)
        #: A write was begun and is not committed: what lies behind `end` is to be cut off.
        self.unclean = False
        #: Number of the last record known to be on the disk.
        self.proven = 0
        #: Why the file takes no more records; empty while it does.
        self.poison = ""
        #: The reason is somebody else's hand, and not the disk.
        self.foreign = False
        #: What is being done that nobody can go on with if it is interrupted; empty otherwise.
        #: Belongs to the mutex: other threads see it only when it was left behind.
        self.midway = ""
        self._files = files
        self._path = path
        self._fsync = fsync
        self.syncs: bool = fsync is True
        #: Seconds after which what was written is synced; None for at once, or never.
        self._later = None if isinstance(fsync, bool) else fsync
        self._rescue_by = rescue
        self._pid = os.getpid()
        self._queue: deque[_Ticket] = deque()
        self._group: list[_Ticket] = []
        self._unlooked = 0
        self._timer: threading.Timer | None = None

    def adopt(self, fd: int, salt: int, fold: F, end: int, last: int) -> None:
        """Go on with a file that has just been read and is known to be on the disk."""
        done = self.state[2]
        self.fd, self.salt, self.fold = fd, salt, fold
        self.state = (end, last, done)
        self.unclean = False
        self.proven = last

    @property
    def end(self) -> int:
        """Bytes of the file, up to the end of its last record."""
        return self.state[0]

    @property
    def last(self) -> int:
        """The number of the last record."""
        return self.state[1]

    def release(self) -> int:
        """Stop; return the file descriptor, which the caller closes, or -1."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        fd, self.fd = self.fd, -1

        return fd

    @staticmethod
    def this_thread() -> int:
        """Return what `owner` is set to while this thread holds the mutex.

        Ask before taking the mutex: a signal handler may run at any call, and one that ran with
        the mutex held and `owner` not yet set would wait for its own thread.
        """
        return threading.get_ident()

    @property
    def forked(self) -> bool:
        """True in a child that inherited the handle."""
        return self._pid != os.getpid()

    def check_mine(self) -> None:
        """Refuse calls from a forked child, after closing, and from a handler inside a commit."""
        if self._pid != os.getpid():
            raise UsageError(
                f"{self._path} was opened before a fork, and only the parent may use it; "
                "return the results to the parent"
            )
        self.check_free()

    def check_free(self) -> None:
        """Refuse a signal handler that has interrupted a commit: waiting for it would never end."""
        if self.owner == threading.get_ident() and self.mutex.locked():
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

    def append(self, payload: bytes, id: str, sync: bool) -> None:
        """Add one record; see `Journal.append`."""
        if self.poison or self._pid != os.getpid() or self.owner is not None:
            self.check_writable()
        ticket = _Ticket(payload, id, sync)
        self._queue.append(ticket)
        while not self._finished(ticket):
            # Without a sync to share, a commit is over before a follower is asleep.
            if self._fsync is True and self.mutex.locked():
                self._follow(ticket)
            else:
                self._lead(ticket)
        if ticket.error is not None:
            raise ticket.error

    def append_now(self, payload: bytes) -> bool:
        """Add one record without syncing; False when a commit is under way."""
        # Not even another thread's commit is waited for: a handler that is interrupted just after
        # taking the mutex, and before it could sign as its owner, would wait for itself.
        if self.forked or self.fd < 0 or self.poison or self.mutex.locked():
            return False
        self.append(payload, "", sync=False)

        return True

    def flush(self) -> None:
        """Return once everything appended so far is on the disk, whatever the policy."""
        self.check_writable()
        me = self.this_thread()
        with self.mutex:
            self.owner = me
            try:
                self.commit()
                self.check_usable()
                self._sync()
            finally:
                self.owner = None

    def _finished(self, ticket: _Ticket) -> bool:
        return ticket.seq <= self.state[2] or ticket.error is not None

    def _follow(self, ticket: _Ticket) -> None:
        if ticket.wake is None:
            wake = threading.Lock()
            wake.acquire()
            ticket.wake = wake
        if not self._finished(ticket):  # it may have been finished before it could be woken
            ticket.wake.acquire(timeout=_PATIENCE)

    def _lead(self, ticket: _Ticket) -> None:
        me = threading.get_ident()
        group: list[_Ticket] = []
        with self.mutex:
            self.owner = me
            try:
                if not self._finished(ticket):
                    group = self.commit()
            finally:
                self.owner = None
        if len(group) > 1:
            for other in group:
                if other is not ticket:
                    other.poke()
        if self._queue:
            try:
                self._queue[0].poke()  # the next leader
            except IndexError:
                return

    def commit(self) -> list[_Ticket]:
        """Write what is queued, and sync it if one of the group asks for it; the mutex is held.

        Returns the group; its tickets are finished, each in its way.
        """
        queue = self._queue
        if self._group or self.unclean or self.poison or self.midway or self.fd < 0:
            try:
                self._clear_up()
            except LockstitchError as error:
                self._take_group(math.inf)
                self._fail(error)
                return []
        if self._group or len(queue) != 1 or queue[0].seq != _NEVER:
            group = self._take_group()
        else:  # as in `_take_group`
            group = self._group = [queue[0]]
            queue.popleft()
        if group:
            self._write(group)
            self._group = []

        return group

    def _clear_up(self) -> None:
        """Bring to its end what an interrupt has left; raises if the file takes no more."""
        self.check_usable()
        if self.unclean:
            self._undo()
        self._settle()

    def _write(self, group: list[_Ticket]) -> None:
        end, n, done = self.state
        proven, salt = self.proven, self.salt
        lines, fresh, sync = [], [], False
        for ticket in group:
            n += 1
            done += 1
            line = ticket.line = seal(ticket.payload, n, proven, salt)
            ticket.offset = end
            ticket.seq = done
            lines.append(line)
            fresh.append((end, line))
            end += len(line)
            sync = sync or ticket.sync
        data = lines[0] if len(lines) == 1 else b"".join(lines)
        sync = sync and self._fsync is True
        try:
            self._unlooked += 1
            if sync or self._unlooked > _LOOK or self._files.size(self.fd) != self.state[0]:
                self.check_unchanged()
            self.unclean = True
            taken = self._files.write(self.fd, data)
            if taken < len(data):
                write_all(self._files, self.fd, data[taken:])
        except (OSError, CheckpointDamaged) as error:
            self._undo()
            self._fail(error)
            return
        if sync:
            try:
                self._files.sync(self.fd)
            except OSError as error:
                self._rescue(error, lines, done)
                return
        self.state = (end, n, done)  # the commit point
        self.unclean = False
        if sync:
            # Not before it: a line that calls itself proven, written again after an interrupt,
            # would be believed by nobody.
            self.proven = n
        self.fold.apply_all(fresh)
        if self._later is not None:
            self._sync_later(self._later)

    def _take_group(self, most: float = _GROUP) -> list[_Ticket]:
        """Return what the next write takes: first what an interrupt has left of the last one."""
        queue = self._queue
        group = self._group = [each for each in self._group if not self._finished(each)]
        size = sum([len(each.payload) for each in group])
        # Look, take, then remove: an interrupt in between leaves a ticket twice and never nowhere.
        while queue and (not group or size < most):
            ticket = queue[0]
            if ticket not in group[-1:] and not self._finished(ticket):
                group.append(ticket)
                size += len(ticket.payload)
            queue.popleft()

        return group

    def _settle(self) -> None:
        """Tell the fold about the committed records of the group; it may know them already."""
        done = self.state[2]
        self.fold.apply_all(
            [(ticket.offset, ticket.line) for ticket in self._group if ticket.seq <= done]
        )

    def _undo(self) -> None:
        """Cut a half-written group off; the cut is on the disk before anything else is written."""
        end, _, done = self.state
        for ticket in self._group:
            if ticket.seq > done:
                ticket.seq = _NEVER
        if not self.unclean:
            return
        try:
            self._files.truncate(self.fd, end)
            self._files.sync(self.fd)
        except OSError as error:
            self.give_up(f"a failed write could not be undone ({error})", error)
        self.unclean = False

    def _fail(self, error: Exception) -> None:
        """Give every ticket of the group its own copy of the error."""
        for ticket in self._group:
            if not self._finished(ticket):
                ticket.error = _copy(error, self._path)
        self._group = []

    def give_up(self, reason: str, cause: OSError) -> NoReturn:
        """Take no more records, and tell everybody who waits. Raises `DurabilityUnknown`."""
        self.poison = reason
        ids = tuple(ticket.id for ticket in self._group if ticket.id)
        error = DurabilityUnknown(self._path, ids, reason)
        self._fail(error)

        raise error from cause

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
        self.poison = f"the file {what}: somebody else changed it while it was open"
        self.foreign = True
        raise self.refusal()

    def _sync(self) -> None:
        self.check_unchanged()  # a file that has lost its name would be synced to no avail
        _, n, done = self.state
        if self.proven == n:
            return
        try:
            self._files.sync(self.fd)
        except OSError as error:
            self._rescue(error, [], done)
        else:
            self.proven = n

    def _sync_later(self, seconds: float) -> None:
        if self._timer is None:
            timer = threading.Timer(seconds, self._sync_timed)
            timer.daemon = True
            try:
                timer.start()
            except RuntimeError:  # the system has no thread to give: it is synced here and now
                self._sync()
            else:
                self._timer = timer

    def _sync_timed(self) -> None:
        me = self.this_thread()
        with self.mutex:
            self.owner = me
            try:
                self._timer = None
                if self.fd >= 0 and not (self.poison or self.midway or self.forked):
                    self._sync()
            except (DurabilityUnknown, CheckpointDamaged) as error:
                # Nobody waits here; the next save raises, because the file is given up.
                logger.error("%s", error)  # noqa: TRY400 - the message says it all
            finally:
                self.owner = None

    def _rescue(self, error: OSError, lines: list[bytes], done: int) -> None:
        """After a failed sync: put everything into a new file, or give up."""
        # Until the copy is in place, and for good if an interrupt comes first: the next sync
        # would succeed without the data being on the disk.
        self.midway = f"a sync failed ({error})"
        try:
            self._rescue_by(lines)
        except (OSError, CheckpointDamaged) as again:
            self.give_up(f"a sync failed ({error}), and so did writing a copy ({again})", error)
        self.state = (*self.state[:2], done)
        # Of those that are done, the offsets are those of the old file.
        self._group = [each for each in self._group if not self._finished(each)]
        self.midway = ""
        logger.warning(
            "%s: a sync failed (%s); a complete copy was written and is used", self._path, error
        )


def _copy(error: Exception, path: str) -> Exception:
    # One exception raised in several threads would collect the tracebacks of all of them.
    if isinstance(error, OSError):
        return type(error)(error.errno, error.strerror, error.filename or path)

    return type(error)(*error.args)
