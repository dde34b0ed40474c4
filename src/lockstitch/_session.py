"""Between the pure scheduler and a driver: draws items, asks guards, waits, writes down.

A driver asks `decide` for the next item and reports with `settle`. Everything that touches the
checkpoint, the clock, a guard or the user's iterable on the way is here, once for all drivers.
"""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ._attempt import Attempt, Outcome
from ._clock import Clock
from ._guard import Check, ask
from ._input import Input, twice
from ._model import ErrorInfo, Failure, Limit, duration
from ._run import FAILED, Run
from ._scheduler import Decision, Entry, Need, Rules, Scheduler, Stop, Verdict, Wait
from ._scheduler import Run as HandOut

if TYPE_CHECKING:
    from ._progress import Reporter

logger = logging.getLogger("lockstitch")

T = TypeVar("T")

#: While somebody watches, a wait is told of every so many seconds.
_COUNTDOWN = 1.0


class Session(Generic[T]):
    """One pass of a driver over an input, within a run. Used by one thread at a time."""

    def __init__(
        self,
        run: Run,
        input: Input[T],
        rules: Rules,
        checks: tuple[Check, ...],
        redo: Callable[[str], bool] | None,
        report: Reporter | None = None,
    ) -> None:
        self.run = run
        self.input = input
        #: What the driver waits for: outcomes of workers, and None as a wake-up call.
        self.events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        #: Called with the id of every item that is left out because it is done.
        self.on_skip: Callable[[str], None] | None = None
        #: The attempts at the items that were handed out and have no record yet.
        self.attempts: dict[str, Attempt] = {}
        self._clock: Clock = run.clock
        self._rules = rules
        self._checks = checks
        #: How guards are asked; a driver with an event loop can ask asynchronous ones.
        self.ask: Callable[[tuple[Check, ...]], list[Limit]] = ask
        #: False where the caller has the loop: then nobody knows how many items come.
        self.ends = True
        #: Tells of a finished item whether it is to run again.
        self.redo = redo
        self.scheduler: Scheduler = Scheduler(rules, run.started, consecutive=run.consecutive)
        self._report = report
        self._paused_since: float | None = None
        #: The limit that parks this pass is in the file.
        self._parked = False
        #: Who set the limit in force; see `Pause`.
        self._by = "response"
        self._resume_stored_limit()

    def _resume_stored_limit(self) -> None:
        """Take up the limit that an earlier run was stopped by, if it is not over."""
        stored = self.run.store.ledger.pending_limit
        if stored is None or stored.until is None or stored.by == "retry":
            return
        if stored.by == "guard" and self._checks:
            return  # a guard is the better witness: it is asked before the first item
        left = self._left(stored.until, stored.at)
        if left > 0:
            now = self._clock.now()
            limit = Limit(stored.until, reason=stored.reason, scope=stored.scope)
            self.scheduler.impose(limit, now + left, now)
            self._parked = True  # it is in the file already

    def _left(self, until: datetime, decided: datetime | None) -> float:
        """Return the seconds to a stored moment; a clock set back does not make them more."""
        left = until.timestamp() - self._clock.wall()

        return left if decided is None else min(left, (until - decided).total_seconds())

    # Decisions

    def decide(self) -> HandOut | Wait | Stop:
        """Return what to do now: hand an item out, wait, or stop."""
        while True:
            decision: Decision = self.scheduler.next(self._clock.now())
            if decision is Need.ITEM:
                self._draw()
            elif decision is Need.GUARD:
                self._ask_guards()
            elif isinstance(decision, (HandOut, Wait, Stop)):
                if not (isinstance(decision, Wait) and decision.why == "limit"):
                    self._end_pause()
                if isinstance(decision, Stop):
                    self.note_parking()
                    if decision.reason is not None:
                        self.read_on()
                    self.show(finished=True)
                return decision

    def next_entry(self) -> Entry | Stop:
        """Return the next item, waiting for it if need be; for drivers with a single worker."""
        while True:
            decision = self.decide()
            if isinstance(decision, HandOut):
                return decision.entry
            if isinstance(decision, Stop):
                return decision
            self.wait(decision)

    def hand_out(self) -> Entry | None:
        """Return the next item of a loop that works on them one by one, begun; None at its end."""
        for entry in list(self.scheduler.in_flight.values()):
            self.leave(entry)  # not saved before the next one was asked for
        entry_or_stop = self.next_entry()
        if isinstance(entry_or_stop, Stop):
            return None
        self.start(entry_or_stop)

        return entry_or_stop

    def wait(self, decision: Wait) -> Any:
        """Wait as told; return the event that came, None if none did."""
        now = self._clock.now()
        if decision.why == "limit" and self._paused_since is None:
            self._begin_pause(now)
        if decision.until is None:
            return self._clock.wait(self.events, None)
        while (left := decision.until - self._clock.now()) > 0:
            if self.scheduler.stop_reason is not None:
                break  # that was the wake-up call
            if decision.why == "limit":
                self.show()
            step = left if self._report is None else min(left, _COUNTDOWN)
            if (event := self._clock.wait(self.events, step)) is not None:
                return event

        return None

    def show(self, *, finished: bool = False) -> None:
        """Report where the batch stands, if somebody wants to know."""
        if self._report is None or (finished and not self.ends):
            return
        from ._progress import Progress  # noqa: PLC0415 - only where somebody watches

        run, scheduler, now = self.run, self.scheduler, self._clock.now()
        # What ran when the limit came may finish during the pause; it is a pause all the same.
        until = None if finished or self._paused_since is None else scheduler.resume_at
        paused = 0.0 if self._paused_since is None else now - self._paused_since
        self._report(
            Progress(
                total=run.total if self.ends else None,
                done_before=run.done_before,
                done=run.done,
                errors=run.by_status["error"],
                in_flight=len(scheduler.in_flight),
                waiting_until=None if until is None else run.to_instant(until),
                reason="" if scheduler.limit is None else scheduler.limit.reason,
                wait_left=0.0 if until is None else max(0.0, until - now),
                elapsed=now - run.started,
                waited=run.waited + paused,
                finished=finished,
            )
        )

    def _begin_pause(self, now: float) -> None:
        self._paused_since = now
        until, limit = self.scheduler.resume_at, self.scheduler.limit
        if until is not None and limit is not None:
            self.run.pause(limit, until, self._by)
            logger.warning(
                "%s: going on in %s, at %s",
                limit if not limit.reason else f"limited ({limit.reason})",
                duration(until - now),
                f"{self.run.to_instant(until):%H:%M:%S} UTC",
            )

    def _end_pause(self) -> None:
        since, self._paused_since = self._paused_since, None
        if since is not None:
            self.run.resume(self._clock.now() - since)

    def note_parking(self) -> None:
        """Write down the limit that has stopped the batch, once."""
        until, limit = self.scheduler.resume_at, self.scheduler.limit
        if self.scheduler.stop_reason == "limit" and until is not None and limit is not None:
            if not self._parked:
                self.run.begin()
                self.run.pause(limit, until, "retry" if self.scheduler.retry_parks else self._by)
            self._parked = True

    def raise_if_stopped(self) -> None:
        """Raise `BatchStopped` if a limit, a signal or a rule has stopped this pass early."""
        reason = self.scheduler.stop_reason
        self.read_on()
        if reason is not None:
            raise self.run.stopped(reason, self.resume_at)

    @property
    def resume_at(self) -> datetime | None:
        """When a parked batch may go on."""
        until = self.scheduler.resume_at
        if self.scheduler.stop_reason != "limit" or until is None:
            return None

        return self.run.to_instant(until)

    def _draw(self) -> None:
        """Draw until an item is pending, or until the input, or this pass, is at its end."""
        run, scheduler = self.run, self.scheduler
        id_of, on_skip, status_of = self.input.id_of, self.on_skip, run.store.ledger.status
        for item in self.input.rest():
            id = id_of(item)
            status = status_of(id)
            if not self._is_done(id, status):
                if id in scheduler.drawn_ids or id in run.unsaved:
                    raise twice(id)
                self._admit(id, item, again=status is not None)
                return
            if on_skip is not None:
                on_skip(id)
            if scheduler.stop_reason is not None:
                return
        run.exhausted = True
        scheduler.exhausted()

    def _is_done(self, id: str, status: str | None) -> bool:
        """Count an item of the input; tell whether it is left out because it is finished."""
        run = self.run
        run.seen += 1
        if status is None:
            return False
        if run.number and run.finished_here(id):
            raise twice(id)
        if self.redo is not None and self.redo(id):
            return False
        run.done_before += 1
        if status in FAILED:
            run.failed_before += 1

        return True

    def read_on(self) -> None:
        """After an early stop, look at the rest of a sized input, so that the counts are true."""
        if self.input.size is not None and not self.run.exhausted:
            for item in self.input.rest():
                id = self.input.id_of(item)
                self._is_done(id, self.run.store.ledger.status(id))
            self.run.exhausted = True

    def _admit(self, id: str, item: T, *, again: bool) -> None:
        run, ledger = self.run, self.run.store.ledger
        crashes = 0 if again else run.crashes.get(id, 0)
        entry = Entry(id, item, solo=id in run.suspects, crashes=crashes)
        if crashes >= self._rules.max_crashes:
            self._quarantine(entry)
            return
        if not again and id in ledger.retries:
            entry.used = ledger.retries[id][0]
            if id in ledger.due:
                entry.due = self._clock.now() + self._left(*ledger.due[id])
        self.scheduler.drawn(entry, self._clock.now())

    def _quarantine(self, entry: Entry) -> None:
        self.run.quarantine(entry)
        logger.error(
            "%s: set aside, the process died %d times while it ran alone", entry.id, entry.crashes
        )

    def _ask_guards(self) -> None:
        self.take_answers(self.ask(self._checks))

    def take_answers(self, limits: list[Limit]) -> None:
        """Take in what the guards have answered; a limit that is over lets the next item go."""
        now = self._clock.now()
        passed = True
        for limit in limits:
            end = self._end_of(limit, now)
            if end is None or end > now:
                passed = False
                self._by, self._parked = "guard", False
                self.scheduler.impose(limit, end, now)
        if passed:
            self.scheduler.passed()

    def impose(self, limit: Limit) -> None:
        """Let nothing start before `limit` ends."""
        now = self._clock.now()
        self.scheduler.impose(limit, self._end_of(limit, now), now)

    def _end_of(self, limit: Limit, now: float) -> float | None:
        if limit.seconds is not None:
            return now + limit.seconds
        if limit.resume_at is None:
            return None

        return now + limit.resume_at.timestamp() - self._clock.wall()

    # Outcomes

    def start(self, entry: Entry) -> Attempt:
        """Write that an item begins, and return its attempt."""
        try:
            self.run.start(entry)
        except BaseException:
            self.scheduler.returned(entry)
            raise

        attempt = self.attempts[entry.id] = Attempt(entry, self.run)

        return attempt

    def settle(self, entry: Entry, outcome: Outcome, *, book: bool = True) -> bool:
        """Take in how an attempt ended; True when the item has a record now.

        With `book=False` an error that would be booked is raised instead, and its item is pending.

        Raises:
            BaseException: what is not an item's error, such as a result that cannot be stored;
                the item is pending.
        """
        try:
            return self._settle(entry, outcome, book=book)
        except BaseException:
            # What could not be written is pending, and nobody must wait for it to end.
            if entry.id in self.scheduler.in_flight:
                self.leave(entry)
            raise

    def _settle(self, entry: Entry, outcome: Outcome, *, book: bool) -> bool:
        self.run.write_stop()
        if outcome.died:
            done = self._died(entry)
            if outcome.fatal is not None:
                raise outcome.fatal
            return done
        if outcome.fatal is not None:
            if outcome.cancelled:
                self.run.back(entry)
            if outcome.status is None:
                self.leave(entry)
            else:
                self._count(entry, ok=outcome.status not in FAILED)
            raise outcome.fatal
        if outcome.limit is not None:
            self.run.back(entry)
            now = self._clock.now()
            self._by, self._parked = "response", False
            self.scheduler.limited(entry, outcome.limit, self._end_of(outcome.limit, now), now)
            return False
        if outcome.error is not None:
            return self._failed(entry, outcome, outcome.error, book=book)
        if outcome.status is None:
            if outcome.cancelled:
                self.run.back(entry)
            self.leave(entry)
            return False
        self._count(entry, ok=outcome.status not in FAILED)

        return True

    def _failed(self, entry: Entry, outcome: Outcome, error: ErrorInfo, *, book: bool) -> bool:
        failure = Failure(entry.id, entry.number, error, outcome.exception, outcome.seconds)
        verdict = self.scheduler.failed(entry, failure, self._clock.now())
        if verdict is Verdict.BOOK and not book and outcome.exception is not None:
            self.run.back(entry)
            self._count(entry, ok=False)
            raise outcome.exception
        if verdict is Verdict.BOOK:
            self.run.finish(entry, "error", error=error, seconds=outcome.seconds)
            self._count(entry, ok=False)
        elif verdict is Verdict.RETRY:
            self.run.retry(entry, error)
        else:
            self.run.back(entry)

        return verdict is Verdict.BOOK

    def _died(self, entry: Entry) -> bool:
        verdict = self.scheduler.died(entry, self._clock.now())
        if verdict is Verdict.QUARANTINE:
            self._quarantine(entry)
            self._count(entry, ok=False)
        elif verdict is Verdict.RETRY:
            self.run.died(entry)
        else:
            self.run.back(entry)

        return verdict is Verdict.QUARANTINE

    def book(self, entry: Entry, error: ErrorInfo, seconds: float | None) -> None:
        """Book an error without asking the retry policy."""
        self.run.finish(entry, "error", error=error, seconds=seconds)
        self._count(entry, ok=False)

    def _count(self, entry: Entry, *, ok: bool) -> None:
        self.attempts.pop(entry.id, None)
        if entry.id in self.scheduler.in_flight:
            self.scheduler.finished(entry, ok=ok)
        self.run.consecutive = self.scheduler.consecutive
        self.show()

    def leave(self, entry: Entry) -> None:
        """The item was left without an answer; it stays pending, and is named at the end."""
        self.scheduler.returned(entry)

    def cancel(self) -> None:
        """Hand nothing more out, because the caller has lost interest. Thread-safe."""
        self.scheduler.stop("left")
        self.events.put(None)

    def stop(self, signal: str) -> int:
        """Stop because of a signal; return how many items are still running. Handler-safe."""
        self.scheduler.stop("signal")
        self.run.stop(signal)
        self.events.put(None)

        return len(self.scheduler.in_flight)
