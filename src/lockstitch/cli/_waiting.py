"""`lockstitch wait`, and what `supervise` shares with it: how long a parked run has to wait."""

from __future__ import annotations

import argparse
import os
import queue
import sys
from contextlib import suppress
from datetime import timedelta

import attrs

from lockstitch._clock import CLOCK
from lockstitch._ledger import Pause
from lockstitch._model import duration, to_instant

from ._printing import complain
from ._stored import snapshot

#: sysexits.h: there is nothing to wait for.
_NOTHING = 66


@attrs.frozen
class Seen:
    """What a look at a checkpoint tells about its last run."""

    #: Another one than before if a run has begun since, be it in a file begun anew.
    mark: tuple[str, int]
    #: The limit that ended the last run, if one did.
    parked: Pause | None


def look(path: str) -> Seen:
    """Read a checkpoint, beside a live writer if need be.

    Raises:
        FileNotFoundError, CheckpointDamaged, UsageError.
    """
    with snapshot(path) as seen:
        return Seen((seen.header.batch, len(seen.fold.runs)), seen.fold.parked)


def seconds_left(pause: Pause) -> float:
    """Return how long a limit lasts from now on; a clock set back does not make it more."""
    if pause.until is None:
        return 0.0
    left = pause.until - to_instant(CLOCK.get().wall())
    if pause.at is not None:
        left = min(left, pause.until - pause.at)

    return max(left, timedelta()).total_seconds()


def wait(args: argparse.Namespace) -> int:
    """Sleep until the parked run may go on; 66 when none is parked."""
    path = os.path.realpath(args.checkpoint)
    parked = look(path).parked
    if parked is None:
        complain(f"{path}: its last run is not parked, so there is nothing to wait for")
        return _NOTHING
    wait_out(path, parked)

    return 0


def wait_out(path: str, pause: Pause) -> None:
    """Sleep until a limit is over, and say once what for; on a terminal, count down."""
    clock, seconds = CLOCK.get(), seconds_left(pause)
    why = f" ({pause.reason})" if pause.reason else ""
    end = to_instant(clock.wall() + seconds)
    complain(
        f"{path}: limited{why}, going on in {duration(seconds)}, at {end:%Y-%m-%d %H:%M:%S} UTC"
    )
    nobody: queue.SimpleQueue[None] = queue.SimpleQueue()
    watched = sys.stderr is not None and sys.stderr.isatty()
    until = clock.now() + seconds
    while (left := until - clock.now()) > 0:
        if watched:
            _show(f"{duration(left)} left")
        clock.wait(nobody, min(left, 1.0) if watched else left)
    if watched:
        _show("")


def _show(text: str) -> None:
    """Write over the line that was shown last."""
    with suppress(OSError):
        sys.stderr.write(f"\r{text}\x1b[K")
        sys.stderr.flush()
