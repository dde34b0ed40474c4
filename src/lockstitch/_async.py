"""asyncio: coroutines as workers of the one loop.

The loop that drives a batch blocks: it syncs, and it waits. So it runs in a thread of its own, and
only the user's coroutines run in the event loop; what they return is stored in threads again. The
event loop never waits for a disk.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from ._attempt import Attempt, Outcome
from ._errors import UsageError
from ._executors import SAVERS, Events, drive
from ._guard import Check, ask
from ._model import ErrorInfo, Limit
from ._scheduler import Entry
from ._session import Session

R = TypeVar("R")


class Coroutines:
    """Works on items as tasks of the event loop that it was made in."""

    def __init__(
        self,
        fn: Callable[[Any], Awaitable[Any]],
        events: Events,
        savers: ThreadPoolExecutor,
        stop: Callable[[], None],
    ) -> None:
        self._fn = fn
        self._stop = stop
        self._stopped = False
        self._events = events
        self._savers = savers
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[Outcome]] = set()

    def submit(self, entry: Entry, attempt: Attempt) -> None:
        self._loop.call_soon_threadsafe(self._begin, entry, attempt)

    def _begin(self, entry: Entry, attempt: Attempt) -> None:
        if self._stopped:  # handed out in the very moment of the cancellation
            self._events.put((entry, Outcome(cancelled=True)))
            return
        task = self._loop.create_task(work(self._fn, entry, attempt, self._savers))
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._done(entry, task))

    def _done(self, entry: Entry, task: asyncio.Task[Outcome]) -> None:
        # A callback and not a `finally` of the task: one that is cancelled before its first step
        # never enters its `try`.
        self._tasks.discard(task)
        outcome = Outcome(cancelled=True) if task.cancelled() else task.result()
        self._events.put((entry, outcome))

    def stop(self) -> None:
        """Hand nothing more out, and cancel what runs; the items stay pending."""
        self._stopped = True
        self._stop()
        for task in self._tasks:
            task.cancel()

    def flush(self) -> None:
        """Nothing to begin."""

    def close(self, *, wait: bool = True) -> None:
        """Nothing to free when the tasks are done; else they are cancelled."""
        if not wait:
            self._loop.call_soon_threadsafe(self.stop)


async def work(
    fn: Callable[[Any], Awaitable[Any]], entry: Entry, attempt: Attempt, savers: ThreadPoolExecutor
) -> Outcome:
    """Await `fn(item)` as this attempt and store its result; cancelled, the item stays pending."""
    token = attempt.enter()
    try:
        result = await _called(fn, entry.item)
        if not attempt.saved:
            await _finish(_in_thread(savers, attempt.save, result))
    except asyncio.CancelledError as exception:
        if attempt.saved or _cancelled():
            return Outcome(attempt.status, cancelled=True)
        # Not this task was cancelled, but something that the item awaits: an error like any other.
        error = ErrorInfo.from_exception(exception)
        return Outcome(error=error, exception=exception, seconds=attempt.seconds)
    except BaseException as exception:  # noqa: BLE001 - sorted by `outcome`; the driver raises what is fatal
        return attempt.outcome(exception)
    finally:
        attempt.leave(token)

    return attempt.outcome(None)


def _called(fn: Callable[[Any], Awaitable[Any]], item: Any) -> Awaitable[Any]:
    awaitable = fn(item)
    if not inspect.isawaitable(awaitable):
        raise UsageError(
            f"arun and amap take a coroutine function; {fn!r} returned "
            f"{type(awaitable).__name__}, which cannot be awaited: use run or map"
        )

    return awaitable


def _cancelled() -> bool:
    """Tell whether the calling task is being cancelled, wherever it was when that came."""
    task = asyncio.current_task()

    return task is not None and task.cancelling() > 0


def _in_thread(executor: ThreadPoolExecutor, fn: Callable[..., R], *args: Any) -> asyncio.Future[R]:
    # What the caller has set in context variables holds there too, as with `asyncio.to_thread`.
    call = functools.partial(contextvars.copy_context().run, fn, *args)

    return asyncio.get_running_loop().run_in_executor(executor, call)


async def _finish(future: asyncio.Future[R]) -> R:
    """Await a future to its end, also when cancelled: a thread's write cannot be called back."""
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise


async def adrive(
    session: Session[Any],
    fn: Callable[[Any], Awaitable[Any]],
    concurrency: int,
    *,
    book: bool = True,
    tell: bool = True,
) -> AsyncGenerator[str, None]:
    """As `drive`, for a function that returns awaitables; without `tell` it yields nothing.

    Cancelled, it cancels what runs, and the items stay pending. Left early, it lets them finish.
    """
    session.scheduler.slots = concurrency
    session.ask = asking(asyncio.get_running_loop())
    savers = ThreadPoolExecutor(min(concurrency, SAVERS), "lockstitch-save")
    coordinator = ThreadPoolExecutor(1, "lockstitch")
    workers = Coroutines(fn, session.events, savers, session.cancel)
    driver = drive(session, workers, book=book)
    try:
        step = _next if tell else _exhaust
        while (id := await _in_turn(coordinator, step, driver, workers)) is not None:
            yield id
    finally:
        if _cancelled():  # it may have come while the caller had the turn
            workers.stop()
        await _finish(_in_thread(coordinator, driver.close))
        coordinator.shutdown()
        savers.shutdown()


async def in_order(session: Session[Any]) -> AsyncGenerator[Entry, None]:
    """Yield one item after the other, begun; what blocks happens in a thread."""
    session.ask = asking(asyncio.get_running_loop())
    with ThreadPoolExecutor(1, "lockstitch") as coordinator:
        while True:
            step = _in_thread(coordinator, session.hand_out)
            try:
                entry = await asyncio.shield(step)
            except asyncio.CancelledError:
                session.cancel()
                await asyncio.wait([step])
                raise
            if entry is None:
                return
            yield entry


def asking(loop: asyncio.AbstractEventLoop) -> Callable[[tuple[Check, ...]], list[Limit]]:
    """Return how the coordinating thread asks guards that may be coroutine functions."""
    return lambda checks: asyncio.run_coroutine_threadsafe(aask(checks), loop).result()


def _next(driver: Generator[str, None, None]) -> str | None:
    return next(driver, None)


def _exhaust(driver: Generator[str, None, None]) -> None:
    for _ in driver:
        continue


async def _in_turn(
    coordinator: ThreadPoolExecutor,
    step: Callable[[Generator[str, None, None]], str | None],
    driver: Generator[str, None, None],
    workers: Coroutines,
) -> str | None:
    """Let the driver take a step in its thread; cancelled, wait until it has."""
    stepping = _in_thread(coordinator, step, driver)
    try:
        return await asyncio.shield(stepping)
    except asyncio.CancelledError:
        workers.stop()
        await asyncio.wait([stepping])
        raise


async def aask(checks: Iterable[Check]) -> list[Limit]:
    """As `ask`, for guards of which some may be asynchronous."""
    limits = []
    for check in checks:
        answer: Any = check()
        if inspect.isawaitable(answer):
            answer = await answer
        limits += ask([lambda answer=answer: answer])  # type: ignore[misc] # a lambda has no types

    return limits
