"""The decorator: the body of a loop, or the whole loop, made resumable."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, TypeVar, cast, overload

from ._calls import AsyncTurn, Turn
from ._checkpoint import Checkpoint
from ._errors import BatchStopped, UsageError
from ._guard import Guards
from ._ids import Key, key_function
from ._input import Redo
from ._loop import ResumableLoop
from ._model import Record, Summary
from ._retry import RetryPolicy
from ._settings import check_settings
from ._stored import OnError, StoredFunction

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from ._progress import ShowProgress

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Resumable(StoredFunction[P], Generic[P, R]):
    """A function whose results are stored; called again for an item, it returns the stored one.

    Made by `resumable`. Thread-safe: two threads that ask for one id get the same result, computed
    once. It pickles by its qualified name.
    """

    def __init__(
        self,
        fn: Callable[P, R],
        checkpoint: Checkpoint,
        key: Key | None,
        on_error: OnError,
        settings: dict[str, Any],
    ) -> None:
        super().__init__(fn, checkpoint, key, on_error, settings)
        self._turns: dict[str, Turn] = {}

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return the stored result of the item, or compute and store it.

        Raises:
            ItemFailed: the item is booked as failed already; it was not run.
            BatchStopped: a long limit stands in the way; the item is pending.
            Exception: what the function raises; the item is pending.
        """
        id = self._id(*args, **kwargs)
        scope = self._opened()
        with self._turn(id):
            record = self._recorded(scope, id)
            if record is None:
                scope.call(
                    id, lambda: self.__wrapped__(*args, **kwargs), book=self._on_error == "record"
                )
                record = self.checkpoint[id]

        return cast(R, self._answer(record))

    def _turn(self, id: str) -> Turn:
        with self._lock:
            turn = self._turns.get(id)
            if turn is None:
                turn = self._turns[id] = Turn(id, self._turns, self._lock)
            turn.users += 1

        return turn

    def run(
        self,
        items: Iterable[Any],
        *,
        concurrency: int | None = None,
        affinity: bool = False,
        executor: Executor | Callable[[], Executor] | None = None,
        chunk: int = 1,
    ) -> Summary:
        """Call the function with every pending item; errors are booked and the rest goes on.

        Arguments as for `ResumableBatch.run`.

        Raises:
            UsageError: the function takes more than the item, or an id is missing or doubled.
        """
        with self._batch(items) as batch:
            batch.run(
                self._fit_for(executor),
                concurrency=concurrency,
                affinity=affinity,
                executor=executor,
                chunk=chunk,
            )

        return batch.summary

    def map(
        self,
        items: Iterable[Any],
        *,
        concurrency: int | None = None,
        affinity: bool = False,
        executor: Executor | Callable[[], Executor] | None = None,
        chunk: int = 1,
    ) -> Iterator[Record]:
        """Yield every item's record: the stored ones, and the new ones as they finish.

        Arguments as for `ResumableBatch.map`.

        Raises:
            BatchStopped: the batch stopped early, after all records have been yielded.
        """
        with self._batch(items) as batch:
            yield from batch.map(
                self._fit_for(executor),
                concurrency=concurrency,
                affinity=affinity,
                executor=executor,
                chunk=chunk,
            )
        if batch.summary.stopped_by is not None:
            raise BatchStopped(batch.summary.stopped_by, batch.summary)

    def _fit_for(self, executor: object) -> Callable[[Any], Any]:
        if executor is None:
            return cast(Callable[[Any], Any], self.__wrapped__)
        from ._worker import Bare  # noqa: PLC0415 - paid for by who uses an executor

        # The function itself does not pickle: what its module has under its name is this object.
        return Bare(self)


class AsyncResumable(StoredFunction[P], Generic[P, R]):
    """As `Resumable`, for a coroutine function; the event loop is not blocked.

    Two tasks that ask for one id get the same result, computed once.
    """

    def __init__(
        self,
        fn: Callable[P, Awaitable[R]],
        checkpoint: Checkpoint,
        key: Key | None,
        on_error: OnError,
        settings: dict[str, Any],
    ) -> None:
        super().__init__(fn, checkpoint, key, on_error, settings)
        self._turns: dict[str, AsyncTurn] = {}

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """As `Resumable.__call__`."""
        id = self._id(*args, **kwargs)
        scope = self._opened()
        turn = self._turns.get(id) or AsyncTurn(id, self._turns)
        async with turn:
            record = self._recorded(scope, id)
            if record is None:
                await scope.acall(
                    id, lambda: self.__wrapped__(*args, **kwargs), book=self._on_error == "record"
                )
                record = self.checkpoint[id]

        return cast(R, self._answer(record))

    async def run(
        self, items: Iterable[Any], *, concurrency: int = 1, executor: None = None
    ) -> Summary:
        """Await the function with every pending item; errors are booked and the rest goes on.

        Arguments as for `ResumableBatch.arun`.
        """
        fn = cast(Callable[[Any], Awaitable[Any]], self.__wrapped__)
        with self._batch(items) as batch:
            await batch.arun(fn, concurrency=concurrency, executor=executor)

        return batch.summary

    async def map(
        self, items: Iterable[Any], *, concurrency: int = 1, executor: None = None
    ) -> AsyncGenerator[Record, None]:
        """Yield every item's record: the stored ones, and the new ones as they finish.

        Arguments as for `ResumableBatch.amap`.

        Raises:
            BatchStopped: the batch stopped early, after all records have been yielded.
        """
        fn = cast(Callable[[Any], Awaitable[Any]], self.__wrapped__)
        with self._batch(items) as batch:
            async with contextlib.aclosing(
                batch.amap(fn, concurrency=concurrency, executor=executor)
            ) as records:
                async for record in records:
                    yield record
        if batch.summary.stopped_by is not None:
            raise BatchStopped(batch.summary.stopped_by, batch.summary)


class _Decorator:
    """What `resumable(…)` returns; a class so that both forms keep their types."""

    def __init__(
        self, checkpoint: Checkpoint, key: Key | None, on_error: OnError, settings: dict[str, Any]
    ) -> None:
        self._arguments = checkpoint, key, on_error, settings

    def __call__(self, fn: Any) -> Any:
        checkpoint, key, on_error, settings = self._arguments
        if isinstance(fn, (classmethod, staticmethod)) or not callable(fn):
            raise UsageError(
                f"resumable decorates a function, not {fn!r}; put it below other decorators"
            )
        if inspect.isasyncgenfunction(fn):
            raise UsageError(
                f"{fn.__qualname__} is an asynchronous generator; decorate a coroutine function of "
                "one item, or use `async for item in batch`"
            )
        parameters = list(inspect.signature(fn).parameters.values())
        if inspect.isgeneratorfunction(fn):
            _check_loop(fn, parameters, on_error, settings)
            return ResumableLoop(fn, checkpoint, key, settings)
        if len(parameters) != 1 and not callable(key):
            raise UsageError(
                f"{fn.__qualname__} takes {len(parameters)} parameters; a resumable function "
                "takes one item. For more (or for a method), pass key= a function of the "
                "same arguments that returns the id"
            )

        if inspect.iscoroutinefunction(fn):
            return AsyncResumable(fn, checkpoint, key, on_error, settings)

        return Resumable(fn, checkpoint, key, on_error, settings)


def _check_loop(
    fn: Any, parameters: list[inspect.Parameter], on_error: OnError, settings: dict[str, Any]
) -> None:
    if len(parameters) != 1:
        raise UsageError(f"{fn.__qualname__}: a resumable loop takes one parameter, the items")
    if on_error != "raise" or settings["retry"] is not None:
        raise UsageError(
            f"{fn.__qualname__} is a generator: on_error= and retry= have no meaning there, "
            "because its exceptions end the loop"
        )


class _Function(_Decorator):
    """The decorator with `on_error="raise"`, for type checkers."""

    # The overlaps are meant: no result can be an iterator or a coroutine.
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, fn: Callable[[Iterable[T]], Iterator[Any]]
    ) -> ResumableLoop[T]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, fn: Callable[P, Coroutine[Any, Any, R]]
    ) -> AsyncResumable[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R]) -> Resumable[P, R]: ...
    def __call__(self, fn: Any) -> Any:
        return super().__call__(fn)


class _Recording(_Decorator):
    """The decorator with `on_error="record"`, for type checkers."""

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, fn: Callable[P, Coroutine[Any, Any, R]]
    ) -> AsyncResumable[P, R | None]: ...
    @overload
    def __call__(self, fn: Callable[P, R]) -> Resumable[P, R | None]: ...
    def __call__(self, fn: Any) -> Any:
        return super().__call__(fn)


@overload
def resumable(
    checkpoint: Checkpoint | str | os.PathLike[str],
    *,
    on_error: Literal["raise"] = "raise",
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
) -> _Function: ...
@overload
def resumable(
    checkpoint: Checkpoint | str | os.PathLike[str],
    *,
    on_error: Literal["record"],
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
) -> _Recording: ...
def resumable(
    checkpoint: Checkpoint | str | os.PathLike[str],
    *,
    on_error: OnError = "raise",
    key: Key | None = None,
    **settings: Any,
) -> _Decorator:
    """Make the body of a loop resumable, or a whole loop written as a generator.

    A function of one item: call it as before, and what was computed once is returned from the
    checkpoint. Or let `run` or `map` of the decorated function drive. A generator function of the
    items: call it, and it is handed only what is pending.

    Args:
        checkpoint: a `Checkpoint`, or the path of one. Nothing happens until the first call.
        on_error: what a plain call does with an exception: `"raise"` lets it through and leaves the
            item pending, `"record"` books it and returns None.
        key: what names an item: a field's name or a function. A function of several parameters, or
            a method, needs a function that takes the same arguments.
        settings: as for `ResumableBatch`.

    Raises:
        UsageError: an argument or the decorated function is not fit; nothing was written.
    """
    if on_error not in ("raise", "record"):
        raise UsageError(f'on_error= takes "raise" or "record", not {on_error!r}')
    if callable(checkpoint) and not isinstance(checkpoint, os.PathLike):
        raise UsageError('resumable takes a checkpoint first: @resumable("run.jsonl")')
    unknown = settings.keys() - inspect.signature(check_settings).parameters.keys()
    if unknown:
        raise UsageError(f"resumable takes no argument {', '.join(sorted(unknown))}")
    check_settings(**settings)
    key_function(key)
    store = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)
    arguments = store, key, on_error, {"redo": None, "retry": None, **settings}

    return _Function(*arguments) if on_error == "raise" else _Recording(*arguments)
