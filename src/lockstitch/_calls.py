"""Plain calls of a decorated function: each is a batch of one, all of them share a run."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from ._batch import ResumableBatch
from ._checkpoint import Checkpoint
from ._errors import UsageError
from ._executors import Inline, drive
from ._ids import Key
from ._input import Input
from ._model import StopReason
from ._run import Run
from ._session import Session


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

    def call(self, id: str, fn: Callable[[], Any], *, book: bool) -> None:
        """Work on one item in the caller's thread, retries and short limits included.

        Afterwards the item has a record. Thread-safe.

        Raises:
            BatchStopped: a long limit, or another rule, stops it; the item is pending.
            Exception: what `fn` raised in its last attempt, unless `book`; the item is pending.
        """
        session = self._of_one(id)
        with self._deferred(session):
            for _ in drive(session, Inline(lambda _id: fn(), session.events), book=book):
                continue
        session.raise_if_stopped()

    async def acall(self, id: str, fn: Callable[[], Awaitable[Any]], *, book: bool) -> None:
        """As `call`, for a coroutine function."""
        from ._async import adrive  # noqa: PLC0415 - who does not use asyncio does not pay for it

        session = self._of_one(id)
        with self._deferred(session):
            async with contextlib.aclosing(
                adrive(session, lambda _id: fn(), 1, book=book, tell=False)
            ) as driven:
                async for _ in driven:
                    continue
        session.raise_if_stopped()

    def _of_one(self, id: str) -> Session[str]:
        session = self._new_session(Input([id]))
        session.ends = False

        return session


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


#: The turns that the calling code is within. A function's own task, and those that it starts, are
#: not the task that has the turn, but they inherit this from it.
_WITHIN: contextvars.ContextVar[frozenset[object]] = contextvars.ContextVar(
    "lockstitch_turns", default=frozenset()
)


class AsyncTurn:
    """Lets one task at a time work on an id. For one event loop at a time."""

    def __init__(self, id: str, turns: dict[str, AsyncTurn]) -> None:
        import asyncio  # noqa: PLC0415 - who does not use asyncio does not pay for it

        self._id = id
        self._turns = turns
        self._users = 0
        self._lock = asyncio.Lock()
        self._owner: object = None  # a new object each time, so that an old one is told apart
        self._token: contextvars.Token[frozenset[object]] | None = None
        turns[id] = self

    async def __aenter__(self) -> None:
        within = _WITHIN.get()
        if self._owner in within:
            raise UsageError(f"{self._id!r} calls itself: its function asked for the same id again")
        self._users += 1
        try:
            await self._lock.acquire()
        except BaseException:
            self._leave()
            raise
        self._owner = object()
        self._token = _WITHIN.set(within | {self._owner})

    async def __aexit__(self, *_: object) -> None:
        if self._token is not None:
            _WITHIN.reset(self._token)
        self._owner = self._token = None
        self._lock.release()
        self._leave()

    def _leave(self) -> None:
        self._users -= 1
        if not self._users:
            self._turns.pop(self._id, None)
