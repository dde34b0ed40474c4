"""One try at one item, as the code that works on it sees it."""

from __future__ import annotations

import contextvars
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

from ._errors import BatchStopped, DurabilityUnknown, SerializationFailed, UsageError
from ._model import ErrorInfo, Limit
from ._run import Run
from ._scheduler import Entry
from ._store import check_text

P = ParamSpec("P")
R = TypeVar("R")

#: These are never an item's error: they would strike every item alike, so they stop the batch.
_FATAL = (BatchStopped, DurabilityUnknown, SerializationFailed, UsageError)

_CURRENT: contextvars.ContextVar[Attempt | None] = contextvars.ContextVar(
    "lockstitch_attempt", default=None
)


class Outcome(NamedTuple):
    """How an attempt ended: a record (`status`), an error, a limit, something fatal, or nothing."""

    status: str | None = None
    error: ErrorInfo | None = None
    exception: BaseException | None = None
    limit: Limit | None = None
    fatal: BaseException | None = None
    #: The process that worked on it died, or was told to.
    died: bool = False
    #: It was called off; nobody forgot to save.
    cancelled: bool = False
    seconds: float = 0.0


class Attempt:
    """One try at one item.

    `save` ends it well; an exception ends it badly. Leaving it without either leaves the item
    pending. Used by the thread that works on the item.
    """

    def __init__(self, entry: Entry, run: Run) -> None:
        self._entry = entry
        self._number = entry.number
        self._run = run
        self._since = run.clock.now()
        self._status: str | None = None
        self._fault: BaseException | None = None

    def __repr__(self) -> str:
        return f"<Attempt {self.number} at {self.id!r}>"

    @property
    def id(self) -> str:
        """The item's id."""
        return self._entry.id

    @property
    def item(self) -> Any:
        """The item."""
        return self._entry.item

    @property
    def number(self) -> int:
        """Which try this is, from 1; failed tries of earlier runs count."""
        return self._number

    @property
    def run(self) -> int:
        """The number of the run, from 1."""
        return self._run.number

    @property
    def idempotency_key(self) -> str:
        """A text that is the same in every attempt and run at this item, and nowhere else.

        Send it with a request that must not take effect twice.
        """
        return f"{self._run.store.journal.header.batch}:{self.id}"

    @property
    def saved(self) -> bool:
        """True once the item has its record."""
        return self._status is not None

    @property
    def status(self) -> str | None:
        """The status it was saved with; None while it is not."""
        return self._status

    @property
    def seconds(self) -> float:
        """Seconds since the attempt began."""
        return self._run.clock.now() - self._since

    @property
    def cursor(self) -> Any:
        """What `save_cursor` stored last for this item, in any run; None if nothing."""
        return self._run.store.cursor(self.id)

    def save_cursor(self, value: Any) -> None:
        """Store how far this item has come: at once, until the item is finished.

        Raises:
            SerializationFailed: `value` is not plain data.
            UsageError: the item is finished.
        """
        self._refuse_saved("save_cursor")
        self._write(lambda: self._run.store.save_cursor(self.id, value))

    def step(self, name: str, fn: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Return `fn(*args, **kwargs)`, or what it returned in an earlier attempt at this item.

        The result is stored at once and kept until the item is finished. `name` must be the same
        in every attempt, and different for every step of an item.

        Raises:
            SerializationFailed: the result is not plain data.
            UsageError: the item is finished, or `name` is not a text.
        """
        self._refuse_saved("step")
        check_text(name, "step(name, …)")
        try:
            return self._run.store.step(self.id, name)  # type: ignore[no-any-return] # as stored
        except KeyError:
            result = fn(*args, **kwargs)
        self._write(lambda: self._run.store.save_step(self.id, name, result))

        return result

    async def asave(self, result: Any = None, *, status: str = "ok") -> None:
        """As `save`, without blocking the event loop."""
        await _in_thread(lambda: self.save(result, status=status))

    async def asave_cursor(self, value: Any) -> None:
        """As `save_cursor`, without blocking the event loop."""
        await _in_thread(lambda: self.save_cursor(value))

    async def astep(
        self, name: str, fn: Callable[P, Awaitable[R]], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """As `step`, for a coroutine function, without blocking the event loop."""
        self._refuse_saved("step")
        check_text(name, "astep(name, …)")
        try:
            return self._run.store.step(self.id, name)  # type: ignore[no-any-return] # as stored
        except KeyError:
            result = await fn(*args, **kwargs)
        await _in_thread(
            lambda: self._write(lambda: self._run.store.save_step(self.id, name, result))
        )

        return result

    def save(self, result: Any = None, *, status: str = "ok") -> None:
        """Store the item's record. Once this returns, the item is done.

        Raises:
            SerializationFailed: the result would not come back equal; the item is pending.
            UsageError: it is saved already.
            OSError, DurabilityUnknown: the disk; see `Checkpoint.save`.
        """
        self._refuse_saved("save")
        self._write(
            lambda: self._run.finish(self._entry, status, result=result, seconds=self.seconds)
        )
        self._status = status

    def _refuse_saved(self, what: str) -> None:
        if self._status is not None:
            raise UsageError(
                f"{self.id!r} is saved already, with status {self._status!r}: no {what} after it"
            )

    def _write(self, write: Callable[[], None]) -> None:
        try:
            write()
        except BaseException as fault:
            # A full disk is not this item's error, though it comes up inside of it.
            self._fault = fault
            raise

    def outcome(self, exception: BaseException | None) -> Outcome:
        """Return how the attempt ended, given what it raised."""
        if exception is None:
            return Outcome(self._status, seconds=self.seconds)
        if (
            isinstance(exception, _FATAL)
            or exception is self._fault
            or not isinstance(exception, Exception)
        ):
            return Outcome(fatal=exception)
        if self.saved:  # it has its record: what comes after is the caller's own
            return Outcome(self._status, fatal=exception)
        limit = Limit.from_exception(exception)
        if limit is not None:
            return Outcome(limit=limit, seconds=self.seconds)

        return Outcome(
            error=ErrorInfo.from_exception(exception), exception=exception, seconds=self.seconds
        )

    def work(self, fn: Callable[[], Any]) -> Outcome:
        """Call `fn` as this attempt, and save what it returns unless it has saved by itself."""
        token = _CURRENT.set(self)
        try:
            result = fn()
            if not self.saved:
                self.save(result)
        except BaseException as exception:  # noqa: BLE001 - sorted by `outcome`; the driver raises what is fatal
            return self.outcome(exception)
        finally:
            _CURRENT.reset(token)

        return self.outcome(None)

    def enter(self) -> contextvars.Token[Attempt | None]:
        """Make this the current attempt; give the token back to `leave`."""
        return _CURRENT.set(self)

    @staticmethod
    def leave(token: contextvars.Token[Attempt | None]) -> None:
        """Undo `enter`."""
        _CURRENT.reset(token)


async def _in_thread(write: Callable[[], None]) -> None:
    """Write without blocking the event loop; a cancellation waits until it is written."""
    import asyncio  # noqa: PLC0415 - who does not use asyncio does not pay for it

    writing = asyncio.ensure_future(asyncio.to_thread(write))
    try:
        await asyncio.shield(writing)
    except asyncio.CancelledError:
        await asyncio.wait([writing])
        raise


def current_attempt() -> Attempt | None:
    """Return the attempt that the calling code works on, None outside of one.

    Inside `fn` of `run` and `map`, inside a decorated function, and inside `with batch.attempt()`.
    """
    return _CURRENT.get()
