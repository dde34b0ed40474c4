"""Guards: "not before T, because R", asked before an item is handed out. Pure."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Protocol, runtime_checkable

from ._errors import UsageError
from ._model import Limit

Check = Callable[[], Limit | None]


@runtime_checkable
class RateLimitGuard(Protocol):
    """What users implement to say "not now".

    A used-up quota, an off-peak window, a spent budget, a kill switch: each answers the same
    question. `check` is called by the coordinator alone, in its thread, before each item is handed
    out, so it should be cheap. If it raises, the batch stops and the exception is yours.
    """

    def check(self) -> Limit | None:
        """Return None to go on, or the limit that stands in the way."""
        ...


#: What `guard=` takes: a guard, a function without arguments, or several of either.
Guards = RateLimitGuard | Check | Iterable[RateLimitGuard | Check]


def as_checks(given: Guards | None) -> tuple[Check, ...]:
    """Return the functions that a `guard=` argument stands for.

    Raises:
        UsageError: something in it is neither a guard nor callable.
    """
    if given is None:
        return ()
    if isinstance(given, RateLimitGuard) or callable(given):
        given = [given]
    if not isinstance(given, Iterable):
        raise UsageError(f"guard= takes an object with check(), or a function, not {given!r}")
    checks: list[Check] = []
    for guard in given:
        check = guard.check if isinstance(guard, RateLimitGuard) else guard
        if isinstance(guard, type) or not callable(check):
            raise UsageError(f"guard= takes an object with check(), or a function, not {guard!r}")
        checks.append(check)

    return tuple(checks)


def ask(checks: Iterable[Check]) -> list[Limit]:
    """Ask every guard; return the limits that stand in the way.

    Raises:
        UsageError: a guard is asynchronous, or answers something else than a limit or None.
    """
    limits = []
    for check in checks:
        answer: object = check()
        if inspect.isawaitable(answer):
            if inspect.iscoroutine(answer):
                answer.close()
            raise UsageError(f"the guard {check!r} is asynchronous; this loop is not")
        if isinstance(answer, Limit):
            limits.append(answer)
        elif answer is not None:
            raise UsageError(f"the guard {check!r} answered {answer!r}, not a Limit or None")

    return limits
