"""Workers, and the one loop that drives them.

The loop carries out what the scheduler decides, and nothing else. A worker calls the function and
stores what it returns (so that many of them share one sync), then reports; whatever else is to be
written or decided, the loop does, in one thread.
"""

from __future__ import annotations

import contextvars
import logging
import queue
import threading
from collections.abc import Callable, Generator
from typing import Any, Protocol

from ._attempt import Attempt
from ._model import StopReason
from ._scheduler import Entry, Stop, lane_of
from ._scheduler import Run as HandOut
from ._session import Session

logger = logging.getLogger("lockstitch")

Events = queue.SimpleQueue[Any]

#: Where workers are not threads of ours, so many threads at most store what they return: each waits
#: for a sync, and more of them share one no better.
SAVERS = 32


class Workers(Protocol):
    """What works on items; each put into it comes out as an event `(entry, outcome)`."""

    def submit(self, entry: Entry, attempt: Attempt) -> None:
        """Work on an item: now or later, here or elsewhere."""
        ...

    def flush(self) -> None:
        """Begin with what was submitted so far; nothing more comes for the moment."""
        ...

    def close(self, *, wait: bool = True) -> None:
        """Free what the workers hold; without `wait`, some may still be at work."""
        ...


class Inline:
    """The thread of the loop itself."""

    def __init__(self, fn: Callable[[Any], Any], events: Events) -> None:
        self._fn = fn
        self._events = events

    def submit(self, entry: Entry, attempt: Attempt) -> None:
        self._events.put((entry, attempt.work(lambda: self._fn(entry.item))))

    def flush(self) -> None:
        """Nothing to begin."""

    def close(self, *, wait: bool = True) -> None:
        """Nothing to free."""


class Threads:
    """A fixed number of threads; with affinity, an id always goes to the same one.

    They are daemons: a second Ctrl-C ends the process and does not wait for items of an hour, as
    the threads of `concurrent.futures` would make it.
    """

    def __init__(
        self, fn: Callable[[Any], Any], events: Events, count: int, *, affinity: bool
    ) -> None:
        self._fn = fn
        self._events = events
        self._lanes: list[queue.SimpleQueue[Callable[[], None] | None]] = [
            queue.SimpleQueue() for _ in range(count if affinity else 1)
        ]
        self._threads = [
            threading.Thread(
                target=_serve,
                args=(self._lanes[number % len(self._lanes)],),
                name=f"lockstitch-{number}",
                daemon=True,
            )
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, entry: Entry, attempt: Attempt) -> None:
        # What the caller has set in context variables holds in its items, as in a plain loop.
        context = contextvars.copy_context()
        lane = self._lanes[lane_of(entry.id, len(self._lanes))]
        lane.put(lambda: context.run(self._work, entry, attempt))

    def _work(self, entry: Entry, attempt: Attempt) -> None:
        self._events.put((entry, attempt.work(lambda: self._fn(entry.item))))

    def flush(self) -> None:
        """Nothing to begin."""

    def close(self, *, wait: bool = True) -> None:
        for number in range(len(self._threads)):
            self._lanes[number % len(self._lanes)].put(None)
        if wait:
            for thread in self._threads:
                thread.join()


def _serve(lane: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (work := lane.get()) is not None:
        work()


def hire(
    session: Session[Any], fn: Callable[[Any], Any], concurrency: int, *, affinity: bool
) -> Workers:
    """Return workers for so many items at once, and tell the scheduler."""
    session.scheduler.slots = concurrency
    session.scheduler.affinity = affinity and concurrency > 1
    if concurrency == 1:
        return Inline(fn, session.events)

    return Threads(fn, session.events, concurrency, affinity=affinity)


def drive(
    session: Session[Any], workers: Workers, *, book: bool = True
) -> Generator[str, None, None]:
    """Work on what is pending until the scheduler stops; yield the id of each item that is done.

    Left early, by an exception or because nobody asks for more, it lets what runs finish first. An
    interrupt does not wait. `book` as for `Session.settle`.
    """
    try:
        while True:
            if session.events.empty():
                decision = session.decide()
                if isinstance(decision, Stop):
                    break
                if isinstance(decision, HandOut):
                    workers.submit(decision.entry, session.start(decision.entry))
                    continue
                workers.flush()
                event = session.wait(decision)
            else:  # what is finished needs no decision first
                event = session.events.get()
            if event is not None:
                entry, outcome = event
                if session.settle(entry, outcome, book=book):
                    yield entry.id
    except GeneratorExit:
        _drain(session, workers, "left")
        workers.close()
        raise
    except Exception:
        _drain(session, workers, "failed")
        workers.close()
        raise
    except BaseException:
        workers.close(wait=False)
        raise
    workers.close()


def _drain(session: Session[Any], workers: Workers, reason: StopReason) -> None:
    """Let what runs finish, and take it in; what goes wrong here is second to what came first."""
    session.scheduler.stop(reason)
    while session.scheduler.in_flight:
        workers.flush()
        event = session.events.get()
        if event is None:
            continue
        entry, outcome = event
        try:
            session.settle(entry, outcome)
        except Exception as error:  # noqa: BLE001 - it is told; the first one is raised
            logger.error("%s: %s", entry.id, error)  # noqa: TRY400 - the message says it all
