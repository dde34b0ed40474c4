"""What the decorated functions share: ids, stored answers, and the scope of plain calls."""

from __future__ import annotations

import functools
import importlib
import inspect
import operator
import os
import threading
import weakref
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Generic, Literal, ParamSpec, cast

from ._batch import ResumableBatch
from ._calls import Calls
from ._checkpoint import Checkpoint
from ._errors import ItemFailed, UsageError
from ._ids import Key, as_id, key_function
from ._input import redo_test
from ._model import Record
from ._run import FAILED

P = ParamSpec("P")

OnError = Literal["raise", "record"]


class StoredFunction(Generic[P]):
    """A function of one item, its checkpoint, and the batch that its plain calls belong to."""

    def __init__(
        self,
        fn: Callable[P, Any],
        checkpoint: Checkpoint,
        key: Key | None,
        on_error: OnError,
        settings: dict[str, Any],
    ) -> None:
        functools.update_wrapper(cast(Any, self), fn)
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
        #: It came here from another process, which has the checkpoint.
        self._sent = False

    def __repr__(self) -> str:
        return f"<resumable {self.__module__}.{self._name} on {self.checkpoint.path!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        if _find(self.__module__, self._name) is not self:
            raise UsageError(
                f"{self._name} is not found by its name in the module {self.__module__}; "
                "only a decorated function at the top level of a module can be sent"
            )

        return _found, (self.__module__, self._name, _process())

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        # A method: bound like any function. Only callable keys come this far.
        return self if instance is None else functools.partial(cast(Any, self), instance)

    # One item

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
        if redo is not None and redo(id):
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

    # The scope of plain calls

    def _opened(self) -> Calls:
        if self._sent:
            raise UsageError(
                f"{self._name} was sent to this process, and its checkpoint belongs to the one "
                f"that sent it; let that one drive: {self._name}.run(items, executor=…)"
            )
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

    def _batch(self, items: Iterable[Any]) -> ResumableBatch[Any]:
        if not self._one_item:
            raise UsageError(
                f"{self._name} takes more than one argument, so it cannot be given items"
            )
        self.close()

        return ResumableBatch(self.checkpoint, items, key=self._key, **self._settings)


#: What tells this process from those of other machines, which may have the same number.
_BIRTH = os.urandom(8).hex()


def _process() -> tuple[int, str]:
    return os.getpid(), _BIRTH  # a fork has the other, and a spawn neither


def _find(module: str, name: str) -> Any:
    try:
        return operator.attrgetter(name)(importlib.import_module(module))
    except (ImportError, AttributeError):
        return None


def _found(module: str, name: str, sender: tuple[int, str]) -> Any:
    """Return the decorated function of that name, as one that was sent if it comes from afar."""
    found: Any = operator.attrgetter(name)(importlib.import_module(module))
    if sender != _process():
        found._sent = True  # noqa: SLF001 - of the class above

    return found


def _close_quietly(scope: ResumableBatch[Any]) -> None:
    """Seal what nobody closed; a courtesy that nothing relies on."""
    if scope.checkpoint.is_open:
        scope.__exit__(None, None, None)
