"""A batch: items, a checkpoint and policies, for the length of a `with`."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
)
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ._attempting import Attempting
from ._checkpoint import Checkpoint, opened
from ._clock import CLOCK
from ._errors import BatchStopped, LockstitchError, UsageError
from ._executors import Workers, drive, hire
from ._guard import Guards
from ._ids import Key
from ._input import Input, Redo, redo_test
from ._model import ErrorInfo, Limit, Plan, Record, StopReason, Summary
from ._plan import plan
from ._retry import RetryPolicy
from ._run import Run
from ._scheduler import Entry
from ._session import Session
from ._settings import check_count, check_settings
from ._store import Store, get

if TYPE_CHECKING:  # what many a script never needs is imported where it is used
    from concurrent.futures import Executor

    from ._progress import ShowProgress
    from ._signals import Deferral

logger = logging.getLogger("lockstitch")

T = TypeVar("T")


class ResumableBatch(Generic[T]):
    """Runs what is pending of `items`, and stores what is finished in `checkpoint`.

    Works inside its `with`, which locks the checkpoint, defers the first Ctrl-C or SIGTERM while
    the batch drives in the main thread, and seals the run at the end. A stop of its own
    (`BatchStopped`) ends the `with` and not the program; `summary`, `complete` and `exit_code` then
    say what happened.

    Args:
        checkpoint: a `Checkpoint`, or the path of one.
        items: any iterable. A sized one is checked for two items with one id before the first runs;
            a generator is drawn from lazily.
        key: what names an item: a field's name or a function. Not needed for texts, whole numbers
            and paths.
        redo: finished items to run again: a status, several, or a function of a `Record`.
        retry: when to try a failed item again: `Backoff()`, or any function from a `Failure` to
            seconds or None.
        guard: asked before each item: an object with `check()`, a function, or several.
        max_wait: the longest wait, in seconds, for a limit in one piece; beyond it the batch parks.
        max_time: seconds after which nothing more is handed out.
        max_consecutive_errors: stop after so many errors booked in a row.
        max_crashes: set an item aside that took the process with it so often.
        progress: True for a bar (tqdm, extra `progress`) or, without a terminal, a line now and
            then; "auto" for the same without an error where tqdm is missing; or a function that is
            called with each `Progress`.
        handle_signals: False leaves SIGINT and SIGTERM alone.

    Raises:
        UsageError: an argument is wrong; nothing was written.
    """

    def __init__(
        self,
        checkpoint: Checkpoint | str | os.PathLike[str],
        items: Iterable[T],
        *,
        key: Key | None = None,
        redo: Redo | None = None,
        retry: RetryPolicy | None = None,
        guard: Guards | None = None,
        max_wait: float | timedelta = 600.0,
        max_time: float | timedelta | None = None,
        max_consecutive_errors: int | None = None,
        max_crashes: int = 3,
        progress: ShowProgress = False,
        handle_signals: bool = True,
    ) -> None:
        self._settings = check_settings(
            redo=redo,
            retry=retry,
            guard=guard,
            max_wait=max_wait,
            max_time=max_time,
            max_consecutive_errors=max_consecutive_errors,
            max_crashes=max_crashes,
            progress=progress,
            handle_signals=handle_signals,
        )
        self._input: Input[T] = Input(items, key)
        #: The store; open within the `with`, readable afterwards.
        self.checkpoint: Checkpoint = (
            checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)
        )
        self._owns_checkpoint = False
        self._run: Run | None = None
        self._session: Session[T] | None = None
        self._deferral: Deferral | None = None
        self._summary: Summary | None = None
        self._complete = False
        self._reported = False

    # Life

    def __enter__(self) -> ResumableBatch[T]:
        if self._run is not None:
            raise UsageError("this batch is entered already; make a second one for a second pass")
        self._input.check()
        self._owns_checkpoint = not self.checkpoint.is_open
        store = opened(self.checkpoint)
        try:
            store.claim()
            self._warn_if_key_changed(store)
        except BaseException:
            self._close_checkpoint()
            raise
        self._run = Run(store, CLOCK.get())
        self._run.size = self._input.size
        self._summary, self._complete, self._reported = None, False, False

        return self

    def _warn_if_key_changed(self, store: Store) -> None:
        index = store.ledger.index
        if self._input.size and index and not any(id in index for id in self._input.ids()):
            logger.warning(
                "%s: none of the %d items is among its %d finished ones; has key= changed?",
                store.path,
                self._input.size,
                len(index),
            )

    def _close_checkpoint(self) -> None:
        if self._owns_checkpoint:
            self.checkpoint.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        run, session = self._entered()
        deferral, self._deferral = self._deferral, None
        try:
            reason, own = self._reason(session, error)
            # A stop of the batch's own is sealed as it is, whatever was being handled just then.
            if own and error is not None and not isinstance(error, BatchStopped):
                self._park(session, Limit.from_exception(error) or Limit())
            self._seal(run, reason, quiet=error is not None and not own)
            session.read_on()
            resume_at = run.last_stop.summary.resume_at if run.last_stop else session.resume_at
            self._summary = run.summary(reason, resume_at)
        finally:
            self._run = self._session = None
            run.store.free()
            if deferral is not None:
                deferral.__exit__(None, None, None)
            self._close_checkpoint()
        self._report(run, reason, self._summary)
        if deferral is not None:
            deferral.give_back()

        return own

    @staticmethod
    def _seal(run: Run, reason: StopReason | None, *, quiet: bool) -> None:
        try:
            run.seal(reason)
        except (OSError, LockstitchError):
            if not quiet:
                raise
            # The exception that is on its way says more; an unsealed run is only opened with care.
            logger.exception("%s: the run could not be sealed", run.store.path)

    def _report(self, run: Run, reason: StopReason | None, summary: Summary) -> None:
        """Say what is left and how to go on, where something is left; once."""
        if self._reported:
            return
        self._reported = True
        path, unsaved = run.store.path, list(run.unsaved)
        if unsaved and reason is None:
            some = ", ".join(repr(id) for id in unsaved[:5]) + (", …" if len(unsaved) > 5 else "")
            logger.warning(
                "%s: %d handed out and never saved, so still pending: %s", path, len(unsaved), some
            )
        if reason == "failed" and not run.number:
            return  # nothing was begun, and the exception says why
        if reason is not None:
            logger.warning("%s: %s; %s", path, summary, _advice(reason))
        elif summary.errors:
            logger.warning(
                '%s: %s; `lockstitch show --errors %s` tells why, redo="error" runs them again',
                path,
                summary,
                path,
            )

    def _reason(
        self, session: Session[T], error: BaseException | None
    ) -> tuple[StopReason | None, bool]:
        """Return why the `with` ends, and whether what leaves it is the batch's own stop."""
        if isinstance(error, BatchStopped):
            # Of this batch only: a nested one's stop is the caller's to see.
            return (error.reason, True) if error in session.run.raised else ("failed", False)  # type: ignore[return-value]
        if error is not None:
            if isinstance(error, GeneratorExit):
                return "left", False
            if not isinstance(error, Exception):
                return "signal", False  # also when it struck while a limited response was handled
            limited = Limit.from_exception(error) is not None
            return ("limit", True) if limited else ("failed", False)
        if session.scheduler.stop_reason is not None:
            return session.scheduler.stop_reason, False
        if not session.run.number:
            session.read_on()  # nothing was handed out, maybe because there is nothing left to do

        return self._quiet_end(session.run), False

    def _quiet_end(self, run: Run) -> StopReason | None:
        """Return why a `with` ends that nothing has stopped; None when it is at its end."""
        return None if self._complete or run.summary(None, None).pending == 0 else "left"

    @staticmethod
    def _park(session: Session[T], limit: Limit) -> None:
        """A rate-limited response left the `with`: the run parks, and the item stays pending."""
        session.impose(limit)
        session.scheduler.stop("limit")
        session.note_parking()

    def _entered(self) -> tuple[Run, Session[T]]:
        run = self._open_run()
        if self._session is None:
            self._session = self._new_session(self._input)

        return run, self._session

    def _open_run(self) -> Run:
        if self._run is None:
            raise UsageError("a batch works inside its with: `with ResumableBatch(…) as batch:`")

        return self._run

    def _new_session(self, input: Input[Any]) -> Session[Any]:
        run, settings = self._open_run(), self._settings
        store = run.store
        redo = redo_test(
            settings.redo, store.ledger.status, lambda id: get(store.journal, store.codec, id)
        )

        return Session(run, input, settings.rules, settings.checks, redo, settings.report)

    def _defer(self, session: Session[Any]) -> Deferral:
        from ._signals import Deferral, tell  # noqa: PLC0415 - see above

        def on_stop(name: str) -> None:
            running = session.stop(name)
            tell(f"{name}: finishing {running} item{'s' * (running != 1)}, once more to stop now")

        return Deferral(on_stop)

    @contextmanager
    def _deferred(self, session: Session[Any]) -> Iterator[Deferral | None]:
        """Defer the stop signals; after the block the first one that came is given back."""
        if not self._settings.handle_signals or self._deferral is not None:
            yield None
            return
        deferral = self._defer(session)
        try:
            with deferral:
                yield deferral
        finally:
            if deferral.received is not None:
                # The signal may end the process, and nothing behind it would be reached.
                session.run.seal("signal")
                session.read_on()
                self._report(session.run, "signal", session.run.summary("signal", None))
        deferral.give_back()

    # What happened

    def raise_if_stopped(self) -> None:
        """Raise `BatchStopped` if a limit, a signal or a rule has stopped the loop."""
        _, session = self._entered()
        session.raise_if_stopped()

    @property
    def summary(self) -> Summary:
        """What was done and what is left; of this moment while the batch goes on."""
        if self._run is not None:
            return self._run.summary(None, None)
        if self._summary is None:
            raise UsageError("there is no summary yet: the batch was not entered")

        return self._summary

    @property
    def complete(self) -> bool:
        """True when every item of the input is finished."""
        return self.summary.stopped_by is None and not self.summary.pending

    @property
    def exit_code(self) -> int:
        """0 all done, 1 done with errors or stopped by them, 2 run again later."""
        return self.summary.exit_code

    # The loop

    def __iter__(self) -> Iterator[T]:
        """Yield the pending items, one at a time.

        Raises:
            BatchStopped: a limit, a signal or a rule stops the batch; its `with` catches it.
        """
        _, session = self._entered()
        self._defer_until_exit(session)
        while (entry := session.hand_out()) is not None:
            yield entry.item
        self._complete = session.scheduler.stop_reason is None
        session.raise_if_stopped()

    def _defer_until_exit(self, session: Session[Any]) -> None:
        """In a loop the work lies between the steps: defer signals until the `with` ends."""
        if self._settings.handle_signals and self._deferral is None:
            self._deferral = self._defer(session).__enter__()

    async def __aiter__(self) -> AsyncIterator[T]:
        """As `__iter__`, without blocking the event loop while it waits or writes.

        Raises:
            BatchStopped: a limit, a signal or a rule stops the batch; its `with` catches it.
        """
        from ._async import in_order  # noqa: PLC0415 - paid for by who uses asyncio

        _, session = self._entered()
        self._defer_until_exit(session)
        async with contextlib.aclosing(in_order(session)) as entries:
            async for entry in entries:
                yield entry.item
        self._complete = session.scheduler.stop_reason is None
        session.raise_if_stopped()

    def save(self, item: T, result: Any = None, *, status: str = "ok") -> None:
        """Store the record of an item that was handed out. Once this returns, it is done.

        Raises:
            UsageError: the item was not handed out, or is saved already.
            SerializationFailed, OSError, DurabilityUnknown: see `Checkpoint.save`; it is pending.
        """
        entry, session = self._handed_out(item)
        attempt = session.attempts[entry.id]
        attempt.save(result, status=status)
        session.settle(entry, attempt.outcome(None))

    async def asave(self, item: T, result: Any = None, *, status: str = "ok") -> None:
        """As `save`, without blocking the event loop."""
        entry, session = self._handed_out(item)
        attempt = session.attempts[entry.id]
        await attempt.asave(result, status=status)
        session.settle(entry, attempt.outcome(None))

    def fail(self, item: T, error: BaseException) -> None:
        """Book `error` as the record of an item that was handed out.

        Raises:
            UsageError: the item was not handed out, or is saved already.
        """
        if not isinstance(error, BaseException):
            raise UsageError(f"fail(item, exception) takes an exception, not {error!r}")
        entry, session = self._handed_out(item)
        session.book(entry, ErrorInfo.from_exception(error), session.attempts[entry.id].seconds)

    def attempt(self, item: T) -> Attempting:
        """Return the `with` (or `async with`) around the work on one item.

        An exception inside is booked (or tried again, as `retry` says), and the loop goes on.

        Raises:
            UsageError: the item was not handed out, or is saved already.
        """
        entry, session = self._handed_out(item)

        return Attempting(session, entry)

    def _handed_out(self, item: T) -> tuple[Entry, Session[T]]:
        run, session = self._entered()
        id = self._input.id_of(item)
        entry = run.unsaved.get(id)
        if entry is None:
            if run.finished_here(id):
                raise UsageError(f"the item {id!r} is saved already")
            raise UsageError(
                f"the item {id!r} was not handed out by this batch; save what its loop gives you, "
                "or use Checkpoint.save for other ids"
            )

        return entry, session

    # Driving

    def run(
        self,
        fn: Callable[[T], Any],
        *,
        concurrency: int | None = None,
        affinity: bool = False,
        executor: Executor | Callable[[], Executor] | None = None,
        chunk: int = 1,
    ) -> Summary:
        """Call `fn` with every pending item, and store what it returns.

        An exception of `fn` is booked as the item's error, and the rest goes on.

        Args:
            fn: works on one item. With `concurrency`, it is called in several threads at once; with
                `executor`, wherever that has its workers.
            concurrency: how many items are worked on at a time, each in a thread of its own; 1, the
                default, is the caller's thread. With `executor`, how many workers that has, if it
                does not tell by itself; twice as many items are handed out.
            affinity: send an id to the same thread in every run with the same `concurrency`.
            executor: a `concurrent.futures.Executor`, which is left open, or a function that makes
                one, which is shut down at the end and made anew when it breaks.
            chunk: with `executor`, how many items travel together; for items that take less time
                than the way to a worker.

        Raises:
            SerializationFailed, DurabilityUnknown, OSError: not an item's error; it is pending.
            UsageError: an argument is wrong, the function or an item cannot be sent to a worker, or
                the `executor` that was passed in broke. What was in flight is pending.
        """
        _, session = self._entered()
        with self._deferred(session):
            for _ in self._driven(session, fn, concurrency, affinity, executor, chunk):
                continue
        session.read_on()

        return session.run.summary(session.scheduler.stop_reason, session.resume_at)

    def map(
        self,
        fn: Callable[[T], Any],
        *,
        concurrency: int | None = None,
        affinity: bool = False,
        executor: Executor | Callable[[], Executor] | None = None,
        chunk: int = 1,
    ) -> Iterator[Record]:
        """Yield every item's record: those that are stored, and the new ones as they finish.

        A record is stored when its item finishes, not when it is asked for, and no more than
        `concurrency` items (with `executor`, twice as many) are ahead of the caller. Closing it
        lets what runs finish. With a generator as input, stored records come when their item is
        drawn. Arguments as for `run`.

        Raises:
            BatchStopped: the batch stopped early, after all records have been yielded.
        """
        run, session = self._entered()
        skipped: list[str] = []
        session.on_skip = skipped.append

        with self._deferred(session):
            driven = self._driven(session, fn, concurrency, affinity, executor, chunk)
            with contextlib.closing(driven):
                for id in driven:
                    for each in _taken(skipped, id):
                        yield get(run.store.journal, run.store.codec, each)
            for each in _taken(skipped):
                yield get(run.store.journal, run.store.codec, each)
        session.raise_if_stopped()

    def _driven(
        self,
        session: Session[T],
        fn: Callable[[T], Any],
        concurrency: int | None,
        affinity: bool,
        executor: Executor | Callable[[], Executor] | None,
        chunk: int,
    ) -> Generator[str, None, None]:
        if not callable(fn):
            raise UsageError(f"run and map take a function of one item, not {fn!r}")
        _refuse_inside_loop(session)
        if executor is None and inspect.iscoroutinefunction(fn):
            raise UsageError(
                f"{fn!r} is a coroutine function, which run and map would not await; "
                "use `await batch.arun(fn)`"
            )
        count = None if concurrency is None else check_count(concurrency, "concurrency=")
        check_count(chunk, "chunk=")
        if executor is None:
            if chunk > 1:
                raise UsageError("chunk= is for the way to a worker, and goes with executor=")
            workers: Workers = hire(session, fn, count or 1, affinity=affinity)
        else:
            from ._pools import hire_pool  # noqa: PLC0415 - paid for by who uses an executor

            if affinity:
                raise UsageError("affinity= is for threads; an executor chooses its workers itself")
            workers = hire_pool(session, fn, executor, concurrency=count, chunk=chunk)
        yield from drive(session, workers)
        self._complete = session.scheduler.stop_reason is None

    async def arun(
        self, fn: Callable[[T], Awaitable[Any]], *, concurrency: int = 1, executor: None = None
    ) -> Summary:
        """As `run`, for a coroutine function; at most `concurrency` of them run at a time.

        The event loop is not blocked by syncs or waits. Guards may be asynchronous. Cancelled, it
        cancels what runs, and the items stay pending. There is no `executor` for coroutines.
        """
        _refuse_executor(executor)
        _, session = self._entered()
        with self._deferred(session):
            driven = self._adriven(session, fn, concurrency, tell=False)
            async with contextlib.aclosing(driven):
                async for _ in driven:
                    continue
        session.read_on()

        return session.run.summary(session.scheduler.stop_reason, session.resume_at)

    async def amap(
        self, fn: Callable[[T], Awaitable[Any]], *, concurrency: int = 1, executor: None = None
    ) -> AsyncGenerator[Record, None]:
        """As `map`, for a coroutine function. Close it (`contextlib.aclosing`) if you leave early.

        Raises:
            BatchStopped: the batch stopped early, after all records have been yielded.
        """
        import asyncio  # noqa: PLC0415 - who does not use asyncio does not pay for it

        _refuse_executor(executor)
        # Records are read in a thread: a read waits for a sync that is on its way.
        run, session = self._entered()
        skipped: list[str] = []
        session.on_skip = skipped.append
        with self._deferred(session):
            async with contextlib.aclosing(self._adriven(session, fn, concurrency)) as driven:
                async for id in driven:
                    for each in _taken(skipped, id):
                        yield await asyncio.to_thread(get, run.store.journal, run.store.codec, each)
            for each in _taken(skipped):
                yield await asyncio.to_thread(get, run.store.journal, run.store.codec, each)
        session.raise_if_stopped()

    async def _adriven(
        self,
        session: Session[T],
        fn: Callable[[T], Awaitable[Any]],
        concurrency: int,
        *,
        tell: bool = True,
    ) -> AsyncGenerator[str, None]:
        from ._async import adrive  # noqa: PLC0415 - who does not use asyncio does not pay for it

        count = check_count(concurrency, "concurrency=")
        if not callable(fn):
            raise UsageError(f"arun and amap take a coroutine function of one item, not {fn!r}")
        _refuse_inside_loop(session)
        async with contextlib.aclosing(adrive(session, fn, count, tell=tell)) as driven:
            async for id in driven:
                yield id
        self._complete = session.scheduler.stop_reason is None

    # Looking ahead

    def plan(self) -> Plan:
        """Return what the batch would do, without doing it.

        Raises:
            UsageError: the input can be read only once.
        """
        if self._input.size is None:
            raise UsageError(
                "plan() reads the input, which a generator allows only once; pass a list"
            )
        run, session = self._entered()

        return plan(run, self._input, session.redo)


def _refuse_executor(executor: object) -> None:
    if executor is not None:
        raise UsageError(
            "coroutines run in this event loop; an executor takes a plain function: "
            "batch.run(fn, executor=…)"
        )


def _refuse_inside_loop(session: Session[Any]) -> None:
    """Refuse to drive a batch whose own loop is at an item: each would wait for the other."""
    for id in session.scheduler.in_flight:
        raise UsageError(
            f"run and map drive the batch themselves, and its own loop is at {id!r}; "
            "call them after the loop or instead of it"
        )


def _taken(skipped: list[str], *more: str) -> list[str]:
    """Empty `skipped`; return what was in it, and `more`."""
    ids = [*skipped, *more]
    skipped.clear()

    return ids


def _advice(reason: StopReason) -> str:
    if reason == "errors":
        return 'find out what fails all items, then run it again with redo="error"'
    if reason == "failed":
        return "run it again once the exception is dealt with"

    return "run it again to go on"
