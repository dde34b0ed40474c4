"""Guards made of other things: of a costly guard, and of a limiter you have already."""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from ._clock import CLOCK, Clock
from ._errors import UsageError
from ._guard import Check, RateLimitGuard, as_checks
from ._model import Limit, to_seconds

#: Seconds until a limiter is asked again that has refused and says that it is free. Its estimate is
#: a moment late, or its window ends on a tick; pyrate-limiter itself adds as much.
_AGAIN = 0.05


def cached(guard: RateLimitGuard | Check, seconds: float | timedelta) -> RateLimitGuard:
    """Return a guard that asks `guard` only now and then: for pings that cost time or money.

    "Go on" holds for `seconds`, and so does a limit that does not say when it ends. A limit that
    does say stands until then, however long that is, and `guard` is asked again when it is over.

    Raises:
        UsageError: `guard` is none, or `seconds` is not a duration.
    """
    [check] = as_checks([guard])

    return _Cached(check, to_seconds(seconds, "cached(guard, seconds)"))


class _Cached:
    def __init__(self, check: Check, seconds: float) -> None:
        self._check = check
        self._seconds = seconds
        #: The clock that was read, until when the answer holds on it, and the answer.
        self._held: tuple[Clock | None, float, Limit | None] = (None, -math.inf, None)

    def __repr__(self) -> str:
        return f"cached({self._check!r}, {self._seconds:g})"

    def check(self) -> Limit | None:
        """Return what the guard says, or said not long ago."""
        # Not the clock of when this was made: guards are often made where a module is imported,
        # long before a test replaces it. What was held on another clock means nothing on this one.
        clock = CLOCK.get()
        held_on, until, answer = self._held
        if held_on is clock and clock.now() < until:
            return _rest(answer, until - clock.now())
        if inspect.iscoroutinefunction(self._check):  # an asynchronous loop awaits the answer
            return self._later(clock, self._check)  # type: ignore[return-value]

        return self._hold(clock, self._check())

    async def _later(self, clock: Clock, check: Callable[[], Awaitable[object]]) -> Limit | None:
        return self._hold(clock, await check())

    def _hold(self, clock: Clock, answer: Any) -> Limit | None:
        if answer is None or isinstance(answer, Limit):  # nonsense is the asker's to refuse
            end = None if answer is None else _seconds_left(answer, clock)
            # A limit that is over before it is told lets items go, so it holds as "go on" does.
            holds = end if end is not None and end > 0 else self._seconds
            self._held = (clock, clock.now() + holds, answer)

        return answer  # type: ignore[no-any-return]


def _seconds_left(limit: Limit, clock: Clock) -> float | None:
    if limit.seconds is not None or limit.resume_at is None:
        return limit.seconds

    return limit.resume_at.timestamp() - clock.wall()


def _rest(answer: Limit | None, seconds: float) -> Limit | None:
    """Return what is left of an answer: "for 30 s" said 20 s ago means 10."""
    if answer is None or answer.seconds is None:
        return answer

    return Limit.after(seconds, reason=answer.reason, scope=answer.scope)


def from_limiter(limiter: Any, *what: Any, cost: int = 1) -> RateLimitGuard:
    """Return a guard that takes `cost` from a limiter for each item that is handed out.

    `from_limiter(limiter)` or `from_limiter(limiter, name)` for a `Limiter` of pyrate-limiter 4;
    `from_limiter(strategy, item, *identifiers)` for a strategy of `limits`, as in its `hit`. While
    the limiter has nothing left, the batch waits, and not the limiter.

    Raises:
        UsageError: it is a limiter of neither, or an asynchronous one, or `cost` is less than 1.
    """
    if isinstance(cost, bool) or not isinstance(cost, int) or cost < 1:
        raise UsageError(f"from_limiter(cost=…) takes a whole number from 1, not {cost!r}")
    if _has(limiter, "try_acquire", "bucket_factory") and len(what) <= 1:
        return _Pyrate(limiter, what[0] if what else "lockstitch", cost)
    if _has(limiter, "hit", "get_window_stats") and what:
        return _Limits(limiter, what[0], what[1:], cost)

    raise UsageError(
        "from_limiter takes a Limiter of pyrate-limiter 4 and at most a name, or a strategy of "
        f"`limits`, an item and its identifiers, not {(limiter, *what)!r}; "
        "for anything else, a function that returns None or a Limit is a guard"
    )


def _has(thing: object, *names: str) -> bool:
    return all(getattr(thing, name, None) is not None for name in names)


class _Pyrate:
    def __init__(self, limiter: Any, name: str, cost: int) -> None:
        self._limiter = limiter
        self._name = name
        self._cost = cost

    def check(self) -> Limit | None:
        """Take what the next item costs, or return how long to wait for it."""
        granted = _plain(self._limiter.try_acquire(self._name, self._cost, blocking=False))
        if granted:
            return None
        factory = self._limiter.bucket_factory
        request = _plain(factory.wrap_item(self._name, self._cost))
        milliseconds = _plain(_plain(factory.get(request)).waiting(request))
        if milliseconds < 0:
            raise UsageError(f"cost={self._cost} is more than the limiter {self._name!r} ever has")

        return _refused(milliseconds / 1000, reason="pyrate-limiter", scope=self._name)


def _refused(seconds: float, *, reason: str, scope: str) -> Limit:
    # Never "until now": that would let an item go that the limiter has not counted.
    return Limit.after(max(seconds, _AGAIN), reason=reason, scope=scope)


def _plain(answer: Any) -> Any:
    if inspect.isawaitable(answer):
        if inspect.iscoroutine(answer):
            answer.close()
        raise UsageError("from_limiter takes a limiter whose buckets are synchronous")

    return answer


class _Limits:
    def __init__(self, strategy: Any, item: Any, identifiers: tuple[Any, ...], cost: int) -> None:
        self._strategy = strategy
        self._item = item
        self._identifiers = identifiers
        self._cost = cost

    def check(self) -> Limit | None:
        """Take what the next item costs, or return how long to wait for it."""
        if _plain(self._strategy.hit(self._item, *self._identifiers, cost=self._cost)):
            return None
        if self._cost > self._item.amount:
            raise UsageError(f"cost={self._cost} is more than {self._item} ever allows")
        stats = self._strategy.get_window_stats(self._item, *self._identifiers)
        scope = "/".join(str(each) for each in self._identifiers)

        left = stats.reset_time - CLOCK.get().wall()

        return _refused(left, reason=str(self._item), scope=scope)
