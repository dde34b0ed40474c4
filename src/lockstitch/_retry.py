"""When to try again: a policy is any callable from a `Failure` to seconds, or None to give up.

A policy decides and does not wait. Whoever runs the batch waits, so that a retry can be
interrupted, survives a restart, and takes no worker while it is due.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from datetime import timedelta
from typing import Literal, Protocol, cast

import attrs

from ._errors import UsageError
from ._model import Failure, Kind, to_seconds

Kinds = Kind | Iterable[Kind]


class RetryPolicy(Protocol):
    """Decides after each failed attempt. Called by the coordinator, never in a worker."""

    def __call__(self, failure: Failure, /) -> float | None:
        """Return the seconds to the next attempt, or None to give up and book the error."""
        ...


def _kinds(value: Kinds) -> tuple[Kind, ...]:
    kinds: tuple[object, ...] = (value,) if isinstance(value, (str, type)) else tuple(value)
    for kind in kinds:
        is_class = isinstance(kind, type) and issubclass(kind, BaseException)
        if not (is_class or isinstance(kind, str)):
            raise UsageError(f"Backoff(on=…) takes exception classes or their names, not {kind!r}")

    return cast(tuple[Kind, ...], kinds)


def _initial(value: float | timedelta) -> float:
    return to_seconds(value, "Backoff(initial=…)")


def _maximum(value: float | timedelta) -> float:
    return to_seconds(value, "Backoff(maximum=…)")


@attrs.frozen(kw_only=True)
class Backoff:
    """Exponential backoff: attempt n is followed by `initial * factor ** (n - 1)` seconds.

    `attempts` is the number of tries in all, counted over runs. `jitter="full"` draws the delay
    evenly between 0 and that value, which spreads many clients best; `maximum` caps what comes
    out, after the jitter. `on` names what is worth another try; anything else is booked at once.

    Raises:
        UsageError: an argument is of the wrong type or range.
    """

    attempts: int = 3
    initial: float = attrs.field(default=1.0, converter=_initial)
    factor: float = 2.0
    maximum: float = attrs.field(default=60.0, converter=_maximum)
    jitter: Literal["full", "none"] = "full"
    on: tuple[Kind, ...] = attrs.field(default=(Exception,), converter=_kinds)

    def __attrs_post_init__(self) -> None:
        if (
            isinstance(self.attempts, bool)
            or not isinstance(self.attempts, int)
            or self.attempts < 1
        ):
            raise UsageError(
                f"Backoff(attempts=…) takes a whole number from 1, not {self.attempts!r}"
            )
        if not isinstance(self.factor, (int, float)) or not self.factor >= 1:
            raise UsageError(f"Backoff(factor=…) takes a number from 1, not {self.factor!r}")
        if self.jitter not in ("full", "none"):
            raise UsageError(f'Backoff(jitter=…) takes "full" or "none", not {self.jitter!r}')

    def __call__(self, failure: Failure, /) -> float | None:
        if failure.attempt >= self.attempts or not failure.matches(*self.on):
            return None
        try:
            delay = self.initial * self.factor ** (failure.attempt - 1)
        except OverflowError:
            delay = self.maximum
        if self.jitter == "full":
            delay *= random.random()  # noqa: S311 - spreads load, guards nothing

        return min(delay, self.maximum)
