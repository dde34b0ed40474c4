"""Retry policies made of other libraries' ones."""

from __future__ import annotations

import builtins
import importlib
import inspect
import sys
from typing import Any

import attrs

from ._errors import UsageError
from ._model import Failure, to_seconds
from ._retry import RetryPolicy

#: So many items are remembered between two of their tries: more than can be waiting for one at any
#: time. What is beyond it was finished by its next try, which a policy is not told of.
_REMEMBERED = 10_000


def from_tenacity(retrying: Any) -> RetryPolicy:
    """Return the policy that a `tenacity.Retrying` stands for: its `retry`, `wait` and `stop`.

    tenacity is asked and does not sleep: the batch waits, so a retry can be interrupted, and its
    attempts count across runs. `stop_after_delay` counts the seconds of an item's tries and of the
    waits between them, in this process. `sleep`, `before`, `after`, `before_sleep` and
    `retry_error_callback` are not used. Of a decorated function, give its `.retry`.

    An item that ran in another process has left its exception there; `retry` is then asked about
    one of the nearest class that is loaded here, with the same message and no other attributes.

    Raises:
        UsageError: `retrying` has no `retry`, `wait` and `stop`; or, when the policy is asked, one
            of them is asynchronous.
    """
    parts = [getattr(retrying, name, None) for name in ("retry", "wait", "stop")]
    if isinstance(retrying, type) or not all(callable(part) for part in parts):
        raise UsageError(
            f"from_tenacity takes a Retrying(stop=…, wait=…, retry=…), not {retrying!r}; "
            "of a decorated function, its .retry"
        )

    return _Tenacity(retrying)


@attrs.define(eq=False)
class _Tenacity:
    retrying: Any
    #: Of each item between two tries: seconds spent in tries, and in waits between them.
    _spent: dict[str, tuple[float, float]] = attrs.field(init=False, factory=dict, repr=False)

    def __call__(self, failure: Failure, /) -> float | None:
        before = self._spent.pop(failure.id, (0.0, 0.0))
        worked, waited = before if failure.attempt > 1 else (0.0, 0.0)  # 1: a redo starts anew
        worked += failure.elapsed
        state = self._state(failure, worked, waited)
        if not (getattr(self.retrying, "enabled", True) and self._wants(failure, state)):
            return None
        # The order is tenacity's own: `stop_before_delay` looks at the wait that would follow.
        state.upcoming_sleep = to_seconds(_answer(self.retrying.wait(state)), "wait of tenacity")
        if _answer(self.retrying.stop(state)):
            return None
        self._spent[failure.id] = (worked, waited + state.upcoming_sleep)
        while len(self._spent) > _REMEMBERED:
            del self._spent[next(iter(self._spent))]

        return float(state.upcoming_sleep)

    def _state(self, failure: Failure, worked: float, waited: float) -> Any:
        state = importlib.import_module("tenacity").RetryCallState(self.retrying, None, (), {})
        state.attempt_number = failure.attempt
        exception = _stand_in(failure) if failure.exception is None else failure.exception
        state.set_exception((type(exception), exception, exception.__traceback__))
        state.start_time = state.outcome_timestamp - worked - waited
        state.idle_for = waited

        return state

    def _wants(self, failure: Failure, state: Any) -> bool:
        # An item may ask for another try by itself, whatever `retry` thinks.
        return failure.matches("tenacity.TryAgain") or bool(_answer(self.retrying.retry(state)))


def _answer(given: Any) -> Any:
    if inspect.isawaitable(given):
        if inspect.iscoroutine(given):
            given.close()
        raise UsageError("from_tenacity takes a Retrying whose retry, wait and stop are plain")

    return given


def _stand_in(failure: Failure) -> BaseException:
    """Return an exception that looks like the one that stayed in another process."""
    for name in (failure.error.type, *failure.error.bases):
        module, _, cls = name.rpartition(".")
        found = getattr(sys.modules.get(module) if module else builtins, cls, None)
        if isinstance(found, type) and issubclass(found, BaseException):
            try:  # without its `__init__`: what that takes, nobody here knows
                return found.__new__(found, failure.error.message)
            except TypeError:  # some `__new__` is as particular; its base class will do
                continue

    return Exception(failure.error.message)
