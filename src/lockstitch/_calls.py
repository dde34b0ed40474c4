"""Plain calls of a decorated function: each is a batch of one, all of them share a run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ._batch import ResumableBatch
from ._checkpoint import Checkpoint
from ._errors import UsageError
from ._ids import Key
from ._input import Input
from ._model import StopReason
from ._run import Run
from ._scheduler import Stop


class Calls(ResumableBatch[Any]):
    """The batch that plain calls belong to: the caller has the loop, so there is no input."""

    def __init__(self, checkpoint: Checkpoint, key: Key | None, settings: dict[str, Any]) -> None:
        super().__init__(checkpoint, iter(()), key=key, **settings)

    def _quiet_end(self, run: Run) -> StopReason | None:
        run.exhausted = True  # what was asked for is all there is

        # A stop that the caller has caught still stands, unless something was finished after it.
        return run.last_stop.summary.stopped_by if run.last_stop else None

    @property
    def open_run(self) -> Run:
        """The run of this `with`."""
        return self._entered()[0]

    def call(self, id: str, item: Any, fn: Callable[[], Any], *, book: bool) -> None:
        """Work on one item in the caller's thread, retries and short limits included.

        Afterwards the item has a record. Thread-safe.

        Raises:
            BatchStopped: a long limit, or another rule, stops it; the item is pending.
            Exception: what `fn` raised in its last attempt, unless `book`; the item is pending.
        """
        session = self._new_session(Input([item], lambda _item: id))
        with self._deferred(session):
            while True:
                entry = session.next_entry()
                if isinstance(entry, Stop):
                    if (stopped := session.stopped()) is not None:
                        raise stopped
                    return
                attempt = session.start(entry)
                if session.settle(entry, attempt.work(fn), book=book):
                    return


class Turn:
    """Lets one thread at a time work on an id."""

    def __init__(self, id: str, turns: dict[str, Turn], guard: threading.Lock) -> None:
        self.users = 0
        self._id = id
        self._turns = turns
        self._guard = guard
        self._lock = threading.Lock()
        self._owner: int | None = None

    def __enter__(self) -> None:
        if self._owner == threading.get_ident():
            self._leave()
            raise UsageError(f"{self._id!r} calls itself: its function asked for the same id again")
        self._lock.acquire()
        self._owner = threading.get_ident()

    def __exit__(self, *_: object) -> None:
        self._owner = None
        self._lock.release()
        self._leave()

    def _leave(self) -> None:
        with self._guard:
            self.users -= 1
            if not self.users:
                self._turns.pop(self._id, None)
