"""The first Ctrl-C or SIGTERM is deferred, and given back when the work is in order.

A library that swallows a signal leaves a process that cannot be stopped; one that ignores the
matter loses what was in flight. So: the first signal asks for a stop, the second one strikes at
once, and in the end the signal is raised again with the handler that was there before, so that
the process ends as it would have ended without the library, only later.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Deferral:
    """While entered, in the main thread, the first stop signal calls `on_stop` and is kept.

    In any other thread, or within another deferral, it does nothing.
    """

    def __init__(self, on_stop: Callable[[str], None]) -> None:
        self._on_stop = on_stop
        self._previous: dict[signal.Signals, Any] = {}
        self._pid = os.getpid()
        #: The signal that has come; cleared by `give_back`.
        self.received: signal.Signals | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        for each in _SIGNALS:
            previous = signal.getsignal(each)
            # None: not set from Python. SIG_IGN: as under nohup, where it is meant to be ignored.
            if previous is None or previous == signal.SIG_IGN or _is_deferral(previous):
                continue
            self._previous[each] = previous
            signal.signal(each, self._handle)

        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        while self._previous:
            each, previous = self._previous.popitem()
            signal.signal(each, previous)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        # A forked child inherits the handler, and nothing of what it is there for: a worker that is
        # told to end, by its pool or by a Ctrl-C, must end.
        if self.received is not None or os.getpid() != self._pid:
            self.__exit__(None, None, None)
            self.received = None
            signal.raise_signal(number)
            return
        self.received = signal.Signals(number)
        self._on_stop(self.received.name)

    def give_back(self) -> None:
        """Raise the kept signal, if one came, with the handler that was there before."""
        received, self.received = self.received, None
        if received is not None:
            signal.raise_signal(received)


def _is_deferral(handler: object) -> bool:
    return isinstance(getattr(handler, "__self__", None), Deferral)


def tell(text: str) -> None:
    """Write one line to standard error; safe in a signal handler, where `print` is not."""
    stream = sys.__stderr__
    if stream is not None and not stream.closed:
        os.write(stream.fileno(), f"{text}\n".encode(errors="backslashreplace"))
