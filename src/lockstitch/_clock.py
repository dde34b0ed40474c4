"""The only module that reads time, and the only one that sleeps.

Two timelines. `wall()` is what the file and people see; it can be set back or forward at any
moment. `now()` never goes back and is what every decision is made on; on Linux it also counts
the time a laptop was asleep, so that a wait of five hours does not become ten when the lid is
closed in between.
"""

from __future__ import annotations

import contextvars
import math
import queue
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeVar

T = TypeVar("T")

#: A blocking wait is cut into slices of this many seconds, and the remaining time looked at anew
#: after each. The timers of the system stand still while a laptop sleeps. And a signal that comes
#: after Python has looked for one, and before the system waits, is not noticed until the wait ends.
_SLICE = 1.0


class Clock(Protocol):
    """What the library needs of time. Thread-safe."""

    def wall(self) -> float:
        """Seconds since 1970-01-01 UTC; may jump."""
        ...

    def now(self) -> float:
        """Seconds since an arbitrary moment; never goes back."""
        ...

    def wait(self, events: queue.SimpleQueue[T], seconds: float | None) -> T | None:
        """Return the next event, or None when `seconds` pass without one (None: wait for ever)."""
        ...


class SystemClock:
    """The machine's clocks."""

    # Functions of the system itself, without a call of ours around them: several for each item.
    wall = staticmethod(time.time)

    def __init__(self) -> None:
        # Only Linux has a clock that runs on through a suspend; elsewhere the monotonic one does.
        boottime = getattr(time, "CLOCK_BOOTTIME", None)
        self.now: Callable[[], float] = (
            time.monotonic if boottime is None else partial(time.clock_gettime, boottime)
        )

    def wait(self, events: queue.SimpleQueue[T], seconds: float | None) -> T | None:
        if not events.empty():
            return events.get()  # only the one who waits takes any out
        until = math.inf if seconds is None else self.now() + seconds
        while (left := until - self.now()) > 0:
            try:
                return events.get(timeout=min(left, _SLICE))
            except queue.Empty:
                continue

        return None


#: The clock that a checkpoint or batch takes up when it is made. A context variable and not a
#: parameter: tests of users' own scripts can then replace it without touching the script.
CLOCK: contextvars.ContextVar[Clock] = contextvars.ContextVar(
    "lockstitch_clock",
    default=SystemClock(),  # noqa: B039 - it has no state to share
)
