"""Time that passes only when somebody waits."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import TypeVar

from lockstitch._clock import CLOCK
from lockstitch._errors import UsageError
from lockstitch._model import to_instant, to_seconds

from ._replacing import replaced

T = TypeVar("T")


class FakeClock:
    """A clock that stands still until somebody waits. Thread-safe.

    A wait that nothing interrupts takes no time and moves the clock on by what was asked for, so a
    batch that is limited for five hours is tested in microseconds.
    """

    def __init__(self, start: datetime) -> None:
        if start.tzinfo is None:
            raise UsageError("fake_clock(start=…) takes an aware datetime")
        self._wall = start.timestamp()
        self._passed = 0.0
        self._lock = threading.Lock()
        #: Every wait, in seconds, in order.
        self.waits: list[float] = []

    def wall(self) -> float:
        """Seconds since 1970-01-01 UTC."""
        return self._wall + self._passed

    def now(self) -> float:
        """Seconds since the clock was made."""
        return self._passed

    @property
    def instant(self) -> datetime:
        """The present, as an aware UTC datetime."""
        return to_instant(self.wall())

    def advance(self, seconds: float | timedelta) -> None:
        """Let time pass."""
        with self._lock:
            self._passed += to_seconds(seconds, "advance")

    def set_wall(self, moment: datetime) -> None:
        """Set the wall clock, as an administrator would; no time passes."""
        self._wall = moment.timestamp() - self._passed

    def wait(self, events: queue.SimpleQueue[T], seconds: float | None) -> T | None:
        """Return an event that is there, or that comes if no end is set; else let time pass."""
        try:
            return events.get(block=seconds is None)
        except queue.Empty:
            pass
        if seconds is not None:
            self.waits.append(seconds)
            self.advance(seconds)

        return None


#: An arbitrary moment, so that tests print the same every day.
_START = datetime.fromisoformat("2030-01-01T00:00:00+00:00")


@contextlib.contextmanager
def fake_clock(start: datetime = _START) -> Iterator[FakeClock]:
    """Replace the clock; yields it."""
    clock = FakeClock(start)
    with replaced(CLOCK, clock):
        yield clock
