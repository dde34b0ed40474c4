"""One run: what it writes into the checkpoint, and what it counts for its summary.

State is born here for each run and dies with it; nothing is kept in what a decorator closed over.
"""

from __future__ import annotations

import threading
from collections import Counter
from datetime import datetime

from ._clock import Clock
from ._errors import BatchStopped
from ._model import ErrorInfo, Limit, StopReason, Summary, to_instant
from ._scheduler import Entry
from ._store import Store, boot_id

#: Statuses that make a finished batch exit with 1.
FAILED = frozenset({"error", "quarantined"})


class Run:
    """The open run of a batch. Thread-safe, but for `seal` and `summary`."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self.store = store
        self.clock = clock
        #: On the clock's timeline.
        self.started: float = clock.now()
        self.number: int = 0
        self.sealed: bool = False

        # The input, as far as it was read
        self.size: int | None = None
        self.seen: int = 0
        self.exhausted: bool = False
        self.done_before: int = 0
        self.failed_before: int = 0

        # What happened
        self.by_status: Counter[str] = Counter()
        self.attempts: int = 0
        self.waits: int = 0
        self.waited: float = 0.0
        self.consecutive: int = 0
        #: Handed out, and neither saved nor given back.
        self.unsaved: dict[str, Entry] = {}
        #: The stops that this run has raised; its `with` catches these and no others.
        self.raised: list[BatchStopped] = []
        #: The latest of them, while nothing has been finished since.
        self.last_stop: BatchStopped | None = None
        #: Items that the last run died in, as they were when this one was opened.
        self.in_doubt: frozenset[str] = frozenset(store.ledger.in_doubt)
        self.suspects: set[str]
        self.crashes: dict[str, int]
        self.suspects, self.crashes = store.ledger.after_death(boot_id())
        self._lock = threading.Lock()
        self._unwritten_stop = ""

    # Writing

    def begin(self) -> None:
        """Write the line that begins the run, once."""
        if self.number:
            return
        with self._lock:
            if not self.number:
                self.number = self.store.begin_run()

    def start(self, entry: Entry) -> None:
        """Write that an item begins. If this raises, it must not begin."""
        self.begin()
        self.write_stop()
        self.store.start(entry.id, entry.number)
        with self._lock:
            self.attempts += 1
            self.unsaved[entry.id] = entry

    def finish(
        self,
        entry: Entry,
        status: str,
        *,
        result: object = None,
        error: ErrorInfo | None = None,
        seconds: float | None = None,
    ) -> None:
        """Write the record of an item; once this returns, the item is done."""
        self.store.finish(
            entry.id, status, result=result, error=error, attempt=entry.number, seconds=seconds
        )
        with self._lock:
            self.by_status[status] += 1
            self.unsaved.pop(entry.id, None)
            self.last_stop = None
            if seconds is not None:
                self.store.ledger.took(seconds)

    def retry(self, entry: Entry, error: ErrorInfo) -> None:
        """Write that an attempt failed and another will follow, at `entry.due`."""
        due = self.clock.wall() + max(0.0, entry.due - self.clock.now())
        self.store.retry(entry.id, entry.used, error, due)
        self._given_back(entry)

    def back(self, entry: Entry) -> None:
        """Write that an item was left unfinished by a process that is well."""
        self.store.back(entry.id)
        self._given_back(entry)

    def died(self, entry: Entry) -> None:
        """Write that the process that worked on an item died, and how often it did so alone."""
        self.store.died(entry.id, entry.crashes)
        self._given_back(entry)

    def _given_back(self, entry: Entry) -> None:
        with self._lock:
            self.unsaved.pop(entry.id, None)

    def quarantine(self, entry: Entry) -> None:
        """Set an item aside that took the process with it too often."""
        self.begin()
        message = f"the process died {entry.crashes} times while this item ran alone"
        self.store.finish(entry.id, "quarantined", error=ErrorInfo("Crashed", message))
        with self._lock:
            self.by_status["quarantined"] += 1
            self.unsaved.pop(entry.id, None)

    def stop(self, signal: str) -> None:
        """Write a stop request down at once; called in a signal handler."""
        if self.number and not self.store.stop(signal):
            self._unwritten_stop = signal

    def write_stop(self) -> None:
        """Write the stop request that its handler could not write."""
        if not self._unwritten_stop:
            return
        signal, self._unwritten_stop = self._unwritten_stop, ""
        self.store.stop(signal)

    def pause(self, limit: Limit, until: float, by: str) -> None:
        """Write a limit that ends at `until` on the clock's timeline."""
        self.store.pause(limit, self.clock.wall() + until - self.clock.now(), by)
        self.waits += 1

    def resume(self, seconds: float) -> None:
        """Write that a pause is over."""
        self.store.waited(seconds)
        self.waited += seconds

    def seal(self, reason: StopReason | None) -> None:
        """Write the end of the run, if it began; later calls do nothing."""
        if self.number and not self.sealed:
            self.write_stop()
            self.store.seal(reason or ("left" if self.unsaved else "complete"))
            self.sealed = True

    # Counting

    def finished_here(self, id: str) -> bool:
        """Tell whether an item got its record in this run."""
        ledger = self.store.ledger
        # By the line that begins the run, and not by a place in the file: a compaction, or the
        # copy after a failed sync, moves every record.
        try:
            return self.number > 0 and ledger.offset(id) > ledger.runs[-1].offset
        except KeyError:
            return False

    def stopped(self, reason: StopReason, resume_at: datetime | None) -> BatchStopped:
        """Return the exception that says why the batch stops here."""
        stop = BatchStopped(reason, self.summary(reason, resume_at))
        self.raised.append(stop)
        self.last_stop = stop

        return stop

    @property
    def total(self) -> int | None:
        """Items in the input; None where it is a generator that was not read to its end."""
        if self.size is not None:
            return self.size

        return self.seen if self.exhausted else None

    @property
    def done(self) -> int:
        """Items that got their record in this run."""
        return self.by_status.total()

    def summary(self, stopped_by: StopReason | None, resume_at: datetime | None) -> Summary:
        """Return what is known now."""
        ledger, done, total = self.store.ledger, self.done, self.total

        return Summary(
            total=total,
            done_before=self.done_before,
            ok=done - sum(self.by_status[status] for status in FAILED),
            errors=self.by_status["error"],
            quarantined=self.by_status["quarantined"],
            by_status=dict(self.by_status),
            pending=None if total is None else max(0, total - self.done_before - done),
            unsaved=tuple(self.unsaved),
            attempts=self.attempts,
            waits=self.waits,
            waited_seconds=self.waited,
            seconds=self.clock.now() - self.started,
            saved_seconds=(ledger.mean_seconds or 0.0) * self.done_before,
            stopped_by=stopped_by,
            resume_at=resume_at,
            errors_before=self.failed_before,
        )

    def to_instant(self, until: float) -> datetime:
        """Return the moment that `until` is on the clock's timeline."""
        # Rounded as the file has it: two clocks do not add up to the last microsecond.
        return to_instant(round(self.clock.wall() + until - self.clock.now(), 3))
