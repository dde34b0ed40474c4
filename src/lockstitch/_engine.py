"""What must be known about engines and their protocol does not say."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, ThreadPoolExecutor
from typing import Any

from ._errors import UsageError
from ._model import ErrorInfo
from ._serializers import Codec
from ._worker import Bare

#: An executor, or what makes one.
Pooled = Executor | Callable[[], Executor]

#: Workers of an engine that does not tell how many it has.
_UNKNOWN_SIZE = 4

#: Of one item alone: the worker it was given to is gone, and the engine itself goes on.
_DEATHS = (
    "distributed.KilledWorker",
    "ray.WorkerCrashedError",
    "ray.OutOfMemoryError",
    "ray.NodeDiedError",
)


def made_by(make: object) -> Executor:
    """Return the executor that a function makes; raises `UsageError` where there is none."""
    if not callable(make):
        hint = "; dask: client.get_executor()" if hasattr(make, "get_executor") else ""
        raise UsageError(
            "executor= takes a concurrent.futures.Executor, or a function that makes one, "
            f"not {make!r}{hint}"
        )
    made = make()
    if not isinstance(made, Executor):
        if inspect.iscoroutine(made):
            made.close()
        raise UsageError(
            f"executor= got a function that returned {made!r}, not a concurrent.futures.Executor"
        )

    return made


def size_of(executor: Executor) -> int:
    """Return how many workers the engine says it has."""
    count = getattr(executor, "_max_workers", None)
    if count is None and (client := getattr(executor, "_client", None)) is not None:
        count = sum(client.nthreads().values())  # dask: the threads of all workers

    return count if isinstance(count, int) and count > 0 else _UNKNOWN_SIZE


def is_death(error: BaseException) -> bool:
    """Tell whether a future's exception says that the worker is gone."""
    return isinstance(error, BrokenExecutor) or ErrorInfo.from_exception(error).matches(*_DEATHS)


def is_about_pickling(error: BaseException) -> bool:
    """Tell whether something could not be sent; each engine has its own classes for that."""
    message = ErrorInfo.from_exception(error).message.lower()

    return any(word in message for word in ("pickl", "serializ"))


def sendable(fn: Callable[[Any], Any], executor: Executor) -> Callable[[Any], Any]:
    """Return the function in the form that the engine can send best."""
    by_name = type(executor).__module__.startswith("concurrent.futures")
    if isinstance(fn, Bare) and fn.function.__module__ == "__main__" and not by_name:
        # By its name, it would be looked for in the main script of the worker, which is another
        # one. All other engines use cloudpickle, which takes a main script's function by value.
        wrapped: Callable[[Any], Any] = fn.function.__wrapped__
        return wrapped

    return fn


def portable(codec: Codec, executor: Executor) -> Codec | None:
    """Return the codec if a worker can have it."""
    if isinstance(executor, ThreadPoolExecutor):
        return codec
    try:
        # The engines with cloudpickle can send a local result_type, too; only they can.
        by_name = type(executor).__module__.startswith("concurrent.futures")
        pickle.dumps(codec.serializer)
        pickle.dumps(codec if by_name else None)
    except Exception:  # noqa: BLE001 - whatever a serializer of the user's own raises
        return None

    return codec
