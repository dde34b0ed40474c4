"""`lockstitch supervise`: a command again and again, for as long as its batch parks.

Exit code 2 alone does not mean "parked": argparse ends a wrong call with it, and Python a script
that is not there. So the checkpoint is asked as well: its last run must have been parked, and must
be one of this launch.

The command gets a process group of its own. A terminal sends Ctrl-C to everything in the group
that it shows; a command that also got the one that is passed on would take it for the second
Ctrl-C, which does not wait for items.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import threading
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, Self

from lockstitch._errors import CheckpointDamaged, UsageError
from lockstitch._files import opener
from lockstitch._ledger import Pause

from ._printing import complain, count
from ._run import RELAUNCH, Struck
from ._waiting import Seen, look, seconds_left, wait_out

#: A batch says so that is to be run again.
_AGAIN = 2


def supervise(args: argparse.Namespace) -> int:
    """Run a command, again while it parks; end as it ends."""
    command: list[str] = args.command
    if not command:
        raise UsageError("there is no command: lockstitch supervise CKPT -- CMD")
    if shutil.which(command[0]) is None:
        raise UsageError(f"there is no command {command[0]!r}, or it may not be run")
    path, environment = os.path.realpath(args.checkpoint), dict(os.environ)
    restarts = 0
    while True:
        before = Before.look(path)
        with Relay() as relay:
            code = relay.run(command, environment)
        if code < 0:
            raise Struck(-code)
        parked = before.parked_since() if code == _AGAIN and not relay.signalled else None
        if parked is None:
            return code
        if restarts == args.max_restarts:
            complain(f"{path}: parked again after {count(restarts, 'restart')}; that is the limit")
            return code
        restarts += 1
        wait_out(path, parked)
        environment[RELAUNCH] = "1"


class Before:
    """A checkpoint as it was before a launch."""

    def __init__(self, path: str, seen: Seen | None, holder: bytes | None) -> None:
        self._path = path
        self._seen = seen
        self._holder = holder
        #: Started now, a batch parks at once, and has no run that would tell so.
        self._too_early = bool(seen and seen.parked and seconds_left(seen.parked) > 0)

    @classmethod
    def look(cls, path: str) -> Self:
        """Take down what is there now."""
        return cls(path, _seen(path), _holder(path))

    def parked_since(self) -> Pause | None:
        """Return the limit that has parked the batch of this launch, None if none has."""
        now = _seen(self._path)
        if now is None:
            return None
        if self._seen is not None and now.mark == self._seen.mark:
            # No new run. Parked all the same, if it was started too early, and got as far as the
            # checkpoint; where that cannot be told (no lock file is left on Windows), it counts.
            holder = _holder(self._path)
            if not self._too_early or (holder is not None and holder == self._holder):
                return None

        return now.parked


def _seen(path: str) -> Seen | None:
    try:
        return look(path)
    except (FileNotFoundError, CheckpointDamaged):
        return None  # for the command to deal with: it may be about to begin anew


def _holder(path: str) -> bytes | None:
    """Return what the last one to open the checkpoint for writing has left in the lock file."""
    try:
        with open(f"{path}.lock", "rb", opener=opener) as file:
            return file.read(4096)
    except OSError:
        return None


class Relay:
    """Runs one command; within its `with`, signals that ask to stop are passed on to it."""

    def __init__(self) -> None:
        self._previous: dict[int, Any] = {}
        self._child: subprocess.Popen[bytes] | None = None
        #: The signals that have come, in order.
        self.signalled: list[int] = []

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"):
                number = getattr(signal, name, None)
                # An ignored signal (nohup) stays ignored, and so does a caller's own handler.
                if number is not None and signal.getsignal(number) in (
                    signal.SIG_DFL,
                    signal.default_int_handler,
                ):
                    self._previous[number] = signal.signal(number, self._pass_on)

        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def run(self, command: list[str], environment: dict[str, str]) -> int:
        """Run the command to its end; a negative code is the signal that it died of.

        Raises:
            UsageError: it cannot be run.
        """
        try:
            child = subprocess.Popen(  # noqa: S603 - the user's own command
                command, env=environment, process_group=0
            )
        except OSError as error:
            raise UsageError(f"{command[0]} cannot be run: {error.strerror}") from error
        early = list(self.signalled)
        self._child = child
        for number in early:  # they came before there was somebody to pass them on to
            self._send(child, number)

        return child.wait()

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        self.signalled.append(number)
        if self._child is not None:
            self._send(self._child, number)

    @staticmethod
    def _send(child: subprocess.Popen[bytes], number: int) -> None:
        if child.returncode is not None:
            return
        with suppress(ProcessLookupError):
            # As the terminal does it: Ctrl-C goes to the whole group, a kill to one process.
            if number != signal.SIGINT:
                child.send_signal(number)
            elif hasattr(os, "killpg"):
                os.killpg(child.pid, number)
            # Where there are no groups (Windows), Ctrl-C has reached the command already.
