"""The batch as a state machine: events in, one decision out. Pure.

Two rules live here. Every decision about what runs next, what waits, and what stops is made in
this file; a driver (a bare loop, a pool of threads, an event loop) only carries it out. And
nothing here does I/O, sleeps, or reads a clock: `now` comes in as a number of seconds, so any
behaviour can be written down as a table.
"""

from __future__ import annotations

import enum
import heapq
import itertools
import math
from typing import Any, Literal, NamedTuple
from zlib import crc32

from ._errors import UsageError
from ._model import Failure, Limit, StopReason, to_seconds
from ._retry import RetryPolicy

#: The first wait, in seconds, for a limit that does not say when it ends; it doubles from there.
#: GitHub asks for "at least one minute", and most budgets are per minute.
UNKNOWN_WAIT = 60.0

#: The least wait, in seconds, for a limit; it doubles while limits follow each other and nothing is
#: finished.
SHORTEST_WAIT = 1.0

#: While so many failed items wait for their next try, no new ones are drawn: a dead provider must
#: not pull a whole input of millions into memory.
_RETRY_WINDOW = 1000

#: With affinity, so many items per worker are drawn ahead to find one for a worker that is free.
_AHEAD = 8


class Entry:
    """One item on its way through the batch."""

    __slots__ = ("crashes", "due", "id", "item", "solo", "used")

    def __init__(
        self,
        id: str,
        item: Any,
        *,
        used: int = 0,
        solo: bool = False,
        crashes: int = 0,
        due: float = -math.inf,
    ) -> None:
        self.id: str = id
        self.item: Any = item
        #: Attempts that failed before this one, over all runs.
        self.used: int = used
        #: It was running when a process died, so nothing else may run beside it.
        self.solo: bool = solo
        #: How often a process died while it ran alone, over all runs.
        self.crashes: int = crashes
        #: Not to be tried before, on the scheduler's timeline.
        self.due: float = due

    @property
    def number(self) -> int:
        """Which try the next (or current) one is, from 1."""
        return self.used + 1


class Rules(NamedTuple):
    """The knobs of a batch, in seconds where they are times."""

    guarded: bool = False
    retry: RetryPolicy | None = None
    max_wait: float = 600.0
    max_time: float | None = None
    max_consecutive_errors: int | None = None
    max_crashes: int = 3


def lane_of(id: str, lanes: int) -> int:
    """Return the worker that an id belongs to: the same in every run with as many workers."""
    return crc32(id.encode("utf-8", "surrogatepass")) % lanes


class Need(enum.Enum):
    """Decisions that carry nothing."""

    #: Draw the next item from the input; answer `drawn` or `exhausted`.
    ITEM = enum.auto()
    #: Ask the guards; answer `passed` or `impose`.
    GUARD = enum.auto()


class Run(NamedTuple):
    """Run this item now; answer `finished`, `failed`, `limited` or `returned`."""

    entry: Entry


class Wait(NamedTuple):
    """Nothing to hand out until `until`, or until something happens (None)."""

    until: float | None
    why: Literal["limit", "retry", "busy"]


class Stop(NamedTuple):
    """Nothing is running, and nothing more will: the end, or `reason`."""

    reason: StopReason | None


Decision = Need | Run | Wait | Stop


class Verdict(enum.Enum):
    """What becomes of a failed attempt."""

    #: Book the error; the item is done.
    BOOK = enum.auto()
    #: It will come round again; `Entry.due` says when.
    RETRY = enum.auto()
    #: Leave the item pending, as if it had not been tried.
    LEAVE = enum.auto()
    #: Set the item aside; it is done.
    QUARANTINE = enum.auto()


class Scheduler:
    """Decides what happens next in one run. Used by one thread at a time."""

    def __init__(self, rules: Rules, now: float, *, consecutive: int = 0) -> None:
        self.in_flight: dict[str, Entry] = {}
        #: Ids that were drawn and have neither a record nor been given up here.
        self.drawn_ids: set[str] = set()
        #: How many items may run at once.
        self.slots = 1
        #: An id is only handed to the worker that it belongs to.
        self.affinity = False
        self.stop_reason: StopReason | None = None
        #: The limit in force (or the one that parked the batch) and when it ends.
        self.limit: Limit | None = None
        self.resume_at: float | None = None
        #: What parked the batch is only that the next retry is due later.
        self.retry_parks: bool = False
        self._rules = rules
        self._deadline = math.inf if rules.max_time is None else now + rules.max_time
        self._exhausted = False
        self._passed = False
        self._held: list[Entry] = []
        self._retries: list[tuple[float, int, Entry]] = []
        self._order = itertools.count()
        #: Errors booked in a row.
        self.consecutive: int = consecutive
        self._waiting_since: float | None = None
        #: The waits that were last chosen here; 0 when something was finished since.
        self._unknown_wait = self._shortest_wait = 0.0

    # Decisions

    def next(self, now: float) -> Decision:
        """Return what to do at `now`."""
        if self.stop_reason is not None:
            return Wait(None, "busy") if self.in_flight else Stop(self.stop_reason)
        if len(self.in_flight) >= self.slots or self._solo_running:
            return Wait(None, "busy")
        if self.resume_at is not None:
            if now < self.resume_at:
                return Wait(self.resume_at, "limit")
            self.limit = self.resume_at = None
        entry = self._candidate(now)
        if entry is None:
            return self._without_candidate(now)
        if entry.solo and self.in_flight:
            return Wait(None, "busy")
        if now >= self._deadline:
            return self._stop_at(now, "time")
        if self._rules.guarded and not self._passed:
            return Need.GUARD
        self._passed = False
        self._take(entry)
        self.in_flight[entry.id] = entry

        return Run(entry)

    @property
    def _solo_running(self) -> bool:
        # One that runs alone is the only one.
        return len(self.in_flight) == 1 and next(iter(self.in_flight.values())).solo

    def _candidate(self, now: float) -> Entry | None:
        if not self._retries and not self.affinity:
            return self._held[0] if self._held else None
        busy = {lane_of(id, self.slots) for id in self.in_flight} if self.affinity else ()
        due = self._retries[0][2] if self._retries and self._retries[0][0] <= now else None
        for entry in ([due] if due is not None else []) + self._held:
            if not busy or lane_of(entry.id, self.slots) not in busy:
                return entry

        return None

    def _take(self, entry: Entry) -> None:
        if entry in self._held:
            self._held.remove(entry)
        else:
            heapq.heappop(self._retries)

    def _without_candidate(self, now: float) -> Decision:
        if (
            not self._exhausted
            and len(self._retries) < _RETRY_WINDOW
            and len(self._held) < _AHEAD * self.slots
        ):
            return Need.ITEM
        if self._held or not self._retries:
            return Wait(None, "busy") if self.in_flight else Stop(None)
        due = self._retries[0][0]
        if due <= now:  # its worker is busy with another item
            return Wait(None, "busy")
        if not self.in_flight:
            if due > self._deadline:
                return self._stop_at(now, "time")
            if due - now > self._rules.max_wait:
                self.resume_at = due
                self.limit = Limit(reason="the next retry is due then")
                self.retry_parks = True
                return self._stop_at(now, "limit")

        return Wait(due, "retry")

    def _stop_at(self, now: float, reason: StopReason) -> Decision:
        self.stop(reason)

        return self.next(now)

    # Events

    def drawn(self, entry: Entry, now: float) -> None:
        """The input gave an item that is pending."""
        self.drawn_ids.add(entry.id)
        if entry.due > now:
            heapq.heappush(self._retries, (entry.due, next(self._order), entry))
        else:
            self._held.append(entry)

    def exhausted(self) -> None:
        """The input has no more items."""
        self._exhausted = True

    def passed(self) -> None:
        """The guards let the next item go."""
        self._passed = True

    def impose(self, limit: Limit, until: float | None, now: float) -> None:
        """Nothing starts before `until` (None: unknown). Parks when that is too far away.

        Several limits: the latest end wins.
        """
        # Of many items that run into one limit at once, only the first makes the wait longer.
        growth = 2 if self.resume_at is None or now >= self.resume_at else 1
        shortest = min(growth * self._shortest_wait or SHORTEST_WAIT, UNKNOWN_WAIT)
        if until is None:
            self._unknown_wait = growth * self._unknown_wait or UNKNOWN_WAIT
            until = now + self._unknown_wait
        elif until < now + shortest:
            # "Limited, until now": taken at its word it would be asked again without a pause.
            self._shortest_wait = shortest
            until = now + shortest
        if self.resume_at is not None and until <= self.resume_at:
            return
        if self._waiting_since is None:
            self._waiting_since = now
        self.limit, self.resume_at = limit, until
        too_long = until - self._waiting_since > self._rules.max_wait
        if until > now and (too_long or until > self._deadline):
            self.stop("limit")

    def finished(self, entry: Entry, *, ok: bool = True) -> None:
        """The item has a record."""
        del self.in_flight[entry.id]
        self.drawn_ids.discard(entry.id)
        self.consecutive = 0 if ok else self.consecutive + 1
        self._waiting_since = None
        self._unknown_wait = self._shortest_wait = 0.0
        most = self._rules.max_consecutive_errors
        if most is not None and self.consecutive >= most:
            self.stop("errors")

    def failed(self, entry: Entry, failure: Failure, now: float) -> Verdict:
        """The attempt raised. BOOK is to be followed by `finished(ok=False)`.

        Raises:
            UsageError: the retry policy answered something else than seconds or None.
        """
        if self.stop_reason == "signal":
            self.returned(entry)
            return Verdict.LEAVE
        delay = None if self._rules.retry is None else self._rules.retry(failure)
        if delay is None:
            return Verdict.BOOK
        seconds = to_seconds(delay, "what a retry policy returns")
        if math.isinf(seconds):
            raise UsageError("a retry policy returned infinity; None gives up")
        del self.in_flight[entry.id]
        entry.used += 1
        entry.due = now + seconds
        heapq.heappush(self._retries, (entry.due, next(self._order), entry))

        return Verdict.RETRY

    def died(self, entry: Entry, now: float) -> Verdict:
        """The process that worked on it died, and this one lives. QUARANTINE as BOOK of `failed`.

        Of all that ran in it, or was waiting there, nobody knows which was to blame. So each of
        them runs alone next, and only who is alone is blamed.
        """
        if self.stop_reason == "signal":
            self.returned(entry)
            return Verdict.LEAVE
        if entry.solo:
            entry.crashes += 1
        if entry.crashes >= self._rules.max_crashes:
            return Verdict.QUARANTINE
        del self.in_flight[entry.id]
        entry.solo, entry.due = True, now
        heapq.heappush(self._retries, (now, next(self._order), entry))

        return Verdict.RETRY

    def limited(self, entry: Entry, limit: Limit, until: float | None, now: float) -> None:
        """The item ran into a limit: it is pending again, no attempt used up, and all wait."""
        del self.in_flight[entry.id]
        entry.due = now
        heapq.heappush(self._retries, (now, next(self._order), entry))
        if self.stop_reason is None:
            self.impose(limit, until, now)

    def returned(self, entry: Entry) -> None:
        """The item was left without an answer; it stays pending and is not tried again here."""
        self.in_flight.pop(entry.id, None)
        self.drawn_ids.discard(entry.id)

    def stop(self, reason: StopReason) -> None:
        """Hand nothing more out. The first reason counts, but a signal overrules any."""
        if self.stop_reason is None or reason == "signal":
            self.stop_reason = reason
