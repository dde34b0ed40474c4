"""What a batch shows while it runs: a frozen event each time something changes.

The library draws nothing by itself. A bar is tqdm's, which knows terminals and notebooks; where
there is no terminal, a line now and then says as much and does not flood a log.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any, Literal

import attrs

from ._errors import UsageError
from ._model import duration
from ._printable import printable

#: Without a terminal, a line is written at most this often, in seconds.
_LINE_EVERY = 30.0


@attrs.frozen
class Progress:
    """Where a batch stands. Counts are of items, times in seconds."""

    #: Items in the input; None for a generator that is not at its end.
    total: int | None
    #: Left out because earlier runs had finished them, as far as the input was read.
    done_before: int
    #: Finished in this run, errors included.
    done: int
    errors: int
    in_flight: int
    #: The limit that is being waited for ends then; None while the batch works.
    waiting_until: datetime | None
    #: What the wait is for.
    reason: str
    #: Seconds left of the wait; 0 while the batch works.
    wait_left: float
    elapsed: float
    #: Seconds of `elapsed` that were spent waiting for limits.
    waited: float
    #: Nothing more will come.
    finished: bool = False

    @property
    def seconds_left(self) -> float | None:
        """An estimate from this run's pace, pauses and earlier runs left out; None if unknown."""
        if self.total is None or not self.done:
            return None
        pace = max(self.elapsed - self.waited, 0.0) / self.done

        return pace * max(self.total - self.done_before - self.done, 0) + self.wait_left

    def __str__(self) -> str:
        of = "" if self.total is None else f"/{self.total}"
        told = [f"{self.done_before + self.done}{of} done"]
        if self.errors:
            told.append(f"{self.errors} errors")
        if self.waiting_until is not None:
            why = f" ({self.reason})" if self.reason else ""
            told.append(f"limited{why}, going on in {duration(self.wait_left)}")
        elif self.seconds_left is not None and not self.finished:
            told.append(f"about {duration(self.seconds_left)} left")

        return " · ".join(told)


#: Called with each event, in the thread that drives the batch. What it raises is the caller's.
Reporter = Callable[[Progress], None]

#: `progress=`: False, True, "auto", or a function of the event.
ShowProgress = bool | Literal["auto"] | Reporter


def as_reporter(progress: ShowProgress) -> Reporter:
    """Return what is called with the events.

    Raises:
        UsageError: `progress` is something else, or True on a terminal without tqdm installed.
    """
    if callable(progress):
        return progress
    if progress is not True and progress != "auto":
        raise UsageError(f'progress= takes True, False, "auto" or a function, not {progress!r}')
    if not sys.stderr.isatty():
        return Lines()
    try:
        return Bar()
    except ImportError:
        if progress == "auto":
            return Lines()
        raise UsageError(
            "progress=True shows a bar with tqdm, which is not installed: "
            "pip install 'lockstitch[progress]'"
        ) from None


class Lines:
    """A line on standard error now and then: the first, each tenth, each half minute, each wait."""

    def __init__(self) -> None:
        self._written = -_LINE_EVERY
        self._tenth = 0
        self._waiting = False

    def __call__(self, progress: Progress) -> None:
        """Write a line if one is due."""
        tenth = 10 * (progress.done_before + progress.done) // (progress.total or sys.maxsize)
        waiting = progress.waiting_until is not None
        due = (
            progress.finished
            or tenth > self._tenth
            or waiting != self._waiting
            or progress.elapsed - self._written >= _LINE_EVERY
        )
        self._tenth, self._waiting = max(tenth, self._tenth), waiting
        if due:
            self._written = progress.elapsed
            print(printable(f"lockstitch: {progress}"), file=sys.stderr, flush=True)  # noqa: T201 - it was asked for


class Bar:
    """A tqdm bar; its estimate leaves out what earlier runs did, and the pauses."""

    def __init__(self) -> None:
        from tqdm.auto import tqdm  # noqa: PLC0415 - an extra, imported where it is used

        self._make: Callable[..., Any] = tqdm
        self._bar: Any = None
        self._done = 0
        self._waiting = False

    def __call__(self, progress: Progress) -> None:
        """Move the bar."""
        if self._bar is None:
            self._bar = self._make(
                total=progress.total,
                initial=progress.done_before,
                unit="item",
                dynamic_ncols=True,
                file=sys.stderr,
            )
        waiting = progress.waiting_until is not None
        if self._waiting and not waiting:
            self._bar.unpause()  # or the pause would count as slowness
        self._waiting = waiting
        self._skip(progress.done_before - self._bar.initial)
        self._bar.total = progress.total
        postfix = f"limited, {duration(progress.wait_left)} left" if waiting else ""
        if progress.errors:
            postfix = f"{progress.errors} errors {postfix}".strip()
        self._bar.set_postfix_str(postfix, refresh=waiting)
        self._bar.update(progress.done - self._done)
        self._done = progress.done
        if progress.finished:
            self._bar.close()

    def _skip(self, count: int) -> None:
        """Move on past what earlier runs did; `update` would count it as speed."""
        self._bar.initial += count
        self._bar.n += count
        self._bar.last_print_n += count
