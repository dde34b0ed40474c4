"""The decorator: the body of a loop, or the whole loop, made resumable."""

from __future__ import annotations

import functools
import inspect
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from types import TracebackType
from typing import Any, Generic, Literal, ParamSpec, TypeVar, cast, overload

from ._batch import ResumableBatch
from ._calls import Calls, Turn
from ._checkpoint import Checkpoint
from ._errors import BatchStopped, ItemFailed, UsageError
from ._guard import Guards
from ._ids import Key, as_id, key_function
from ._input import Redo, redo_test
from ._loop import ResumableLoop
from ._model import Record, Summary
from ._retry import RetryPolicy
from ._run import FAILED
from ._settings import check_settings

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

OnError = Literal["raise", "record"]


class Resumable(Generic[P, R]):
    """A function whose results are stored; called again for an item, it returns the stored one.

    Made by `resumable`. Thread-safe: two threads that ask for one id get the same result, computed
    once. It pickles by its qualified name.
    """

    def __init__(
        self,
        fn: Callable[P, Any],
        checkpoint: Checkpoint,
        key: Key | None,
        on_error: OnError,
        settings: dict[str, Any],
    ) -> None:
        functools.update_wrapper(self, fn)
        self._name = fn.__qualname__
        self.__wrapped__: Callable[P, Any] = fn
        #: The store; inert until the first call.
        self.checkpoint = checkpoint
        self._key = key
        self._one_item = len(inspect.signature(fn).parameters) == 1
        self._on_error = on_error
        self._settings = settings
        self._lock = threading.Lock()
        self._scope: Calls | None = None
        self._turns: dict[str, Turn] = {}

    def __repr__(self) -> str:
        return f"<resumable {self.__module__}.{self._name} on {self.checkpoint.path!r}>"

    def __reduce__(self) -> str:
        return self._name

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        # A method: bound like any function. Only callable keys come this far.
        return self if instance is None else functools.partial(self, instance)  # type: ignore[arg-type] # P is known to the type checker only for plain functions

    # One item

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
                    id,
                    args[0] if args else None,
                    lambda: self.__wrapped__(*args, **kwargs),
                    book=self._on_error == "record",
                )
                record = self.checkpoint[id]

        return cast(R, self._answer(record))

    def _id(self, *args: P.args, **kwargs: P.kwargs) -> str:
        if self._one_item:
            values = [*args, *kwargs.values()]
            if len(values) == 1:
                return key_function(self._key)(values[0])
        bound = inspect.signature(self.__wrapped__).bind(*args, **kwargs)
        if not callable(self._key):
            raise UsageError(f"{self._name} takes one item")
        try:
            return as_id(self._key(*bound.args, **bound.kwargs))
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(f"key= raised {type(error).__name__} ({error})") from error

    def _recorded(self, scope: Calls, id: str) -> Record | None:
        run = scope.open_run
        status = run.store.ledger.status(id)
        if status is None:
            return None
        if run.finished_here(id):
            return self.checkpoint[id]
        redo = redo_test(
            self._settings["redo"], run.store.ledger.status, lambda id: self.checkpoint[id]
        )
        if redo(id):
            return None
        run.seen += 1
        run.done_before += 1
        run.failed_before += status in FAILED

        return self.checkpoint[id]

    def _answer(self, record: Record) -> Any:
        if record.status not in FAILED:
            return record.result
        if self._on_error == "raise":
            raise ItemFailed(record)

        return None

    def _turn(self, id: str) -> Turn:
        with self._lock:
            turn = self._turns.get(id)
            if turn is None:
                turn = self._turns[id] = Turn(id, self._turns, self._lock)
            turn.users += 1

        return turn

    # The scope of plain calls

    def _opened(self) -> Calls:
        with self._lock:
            if self._scope is None:
                scope = Calls(self.checkpoint, self._key, self._settings)
                self._scope = scope
                scope.__enter__()
                weakref.finalize(self, _close_quietly, scope)

            return self._scope

    def __enter__(self) -> ResumableBatch[Any]:
        """Open the checkpoint for the plain calls that follow; return the batch they belong to."""
        return self._opened()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        with self._lock:
            scope, self._scope = self._scope, None

        return scope is not None and scope.__exit__(kind, error, traceback)

    def close(self) -> None:
        """Seal the run of the plain calls and free the checkpoint; idempotent."""
        self.__exit__(None, None, None)

    # Many items

    def run(self, items: Iterable[Any]) -> Summary:
        """Call the function with every pending item; errors are booked and the rest goes on.

        Raises:
            UsageError: the function takes more than the item, or an id is missing or doubled.
        """
        with self._batch(items) as batch:
            batch.run(cast(Callable[[Any], Any], self.__wrapped__))

        return batch.summary

    def map(self, items: Iterable[Any]) -> Iterator[Record]:
        """Yield every item's record: the stored ones, and the new ones as they finish.

        Raises:
            BatchStopped: the batch stopped early, after all records have been yielded.
        """
        with self._batch(items) as batch:
            yield from batch.map(cast(Callable[[Any], Any], self.__wrapped__))
        if batch.summary.stopped_by is not None:
            raise BatchStopped(batch.summary.stopped_by, batch.summary)

    def _batch(self, items: Iterable[Any]) -> ResumableBatch[Any]:
        if not self._one_item:
            raise UsageError(
                f"{self._name} takes more than one argument, so it cannot be given items"
            )
        self.close()

        return ResumableBatch(self.checkpoint, items, key=self._key, **self._settings)


def _close_quietly(scope: ResumableBatch[Any]) -> None:
    """Seal what nobody closed; a courtesy that nothing relies on."""
    if scope.checkpoint.is_open:
        scope.__exit__(None, None, None)


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
        if inspect.isasyncgenfunction(fn) or inspect.iscoroutinefunction(fn):
            raise UsageError(
                f"{fn.__qualname__} is asynchronous, which resumable does not drive yet"
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

    # The overlap is meant: no result can be an iterator, so a function that returns one is a loop.
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, fn: Callable[[Iterable[T]], Iterator[Any]]
    ) -> ResumableLoop[T]: ...
    @overload
    def __call__(self, fn: Callable[P, R]) -> Resumable[P, R]: ...
    def __call__(self, fn: Any) -> Any:
        return super().__call__(fn)


class _Recording(_Decorator):
    """The decorator with `on_error="record"`, for type checkers."""

    def __call__(self, fn: Callable[P, R]) -> Resumable[P, R | None]:
        return super().__call__(fn)  # type: ignore[no-any-return] # typed by this very method


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
