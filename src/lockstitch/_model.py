"""The values that users see: frozen, plain data, no I/O.

Times are seconds (`float`), instants are aware UTC `datetime`.
"""

from __future__ import annotations

import traceback as tracebacks
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Literal

import attrs

from ._errors import UsageError

#: An exception class, or the name of one.
Kind = type[BaseException] | str

StopReason = Literal["limit", "errors", "time", "signal", "failed", "left"]

#: Longest traceback text that is kept, in characters; a recursion's is cut in its middle.
_TRACEBACK_LIMIT = 16_384


_FIRST = datetime(1, 1, 1, tzinfo=UTC)
_LAST = datetime(9999, 12, 31, tzinfo=UTC)


def to_seconds(value: float | timedelta, name: str) -> float:
    """Return a duration in seconds; the one place where `float | timedelta` is taken apart.

    Raises:
        UsageError: `value` is neither a number nor a timedelta, or it is negative or NaN.
    """
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise UsageError(f"{name} takes seconds or a timedelta, not {value!r}")
    if not seconds >= 0:
        raise UsageError(f"{name} takes a duration of 0 or more, not {value!r}")

    return float(seconds)


def to_instant(seconds: float) -> datetime:
    """Return the aware UTC datetime of `seconds` since 1970, at the nearest end if out of range."""
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return _LAST if seconds > 0 else _FIRST


def class_name(cls: type) -> str:
    """Return the qualified name of a class; built-ins go without their module."""
    return (
        cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    )


@attrs.frozen
class ErrorInfo:
    """An exception as data: stored, printed and matched also where its class is not installed."""

    #: Qualified class name: `ValueError`, `openai.RateLimitError`.
    type: str
    message: str
    #: The traceback as text, without the values of locals.
    traceback: str = attrs.field(default="", repr=False)
    #: Qualified names of the classes it derives from, nearest first.
    bases: tuple[str, ...] = attrs.field(default=(), repr=False)

    @classmethod
    def from_exception(cls, exception: BaseException) -> ErrorInfo:
        """Describe `exception`; never raises, even if its `__str__` does."""
        try:
            message = str(exception)
        except Exception as broken:  # noqa: BLE001 - a message that cannot be built must not cost the record
            message = f"<no message: str() raised {type(broken).__name__}>"
        try:
            text = "".join(
                tracebacks.format_exception(type(exception), exception, _users_part(exception))
            )
        except Exception as broken:  # noqa: BLE001 - as above
            text = f"<no traceback: formatting raised {type(broken).__name__}>"
        if len(text) > _TRACEBACK_LIMIT:
            half = _TRACEBACK_LIMIT // 2
            text = f"{text[:half]}\n… {len(text) - 2 * half} characters left out …\n{text[-half:]}"
        bases = tuple(
            class_name(base) for base in type(exception).__mro__[1:] if base is not object
        )

        return cls(class_name(type(exception)), message, text, bases)

    @property
    def summary(self) -> str:
        """One line: type and message."""
        first = self.message.strip().splitlines()[:1]

        return f"{self.type}: {first[0]}" if first else self.type

    def matches(self, *kinds: Kind) -> bool:
        """Tell whether the exception was of one of `kinds`, subclasses included.

        A kind is a class or a name. `"RateLimitError"` fits a class of that name in any module,
        `"openai.RateLimitError"` one that lives anywhere under `openai`.
        """
        return any(_fits(name, kind) for name in (self.type, *self.bases) for kind in kinds)


def _fits(name: str, kind: Kind) -> bool:
    if not isinstance(kind, str):
        return name == class_name(kind)
    module, _, cls = name.rpartition(".")
    prefix, _, wanted = kind.rpartition(".")

    return cls == wanted and (not prefix or f"{module}.".startswith(f"{prefix}."))


def _users_part(exception: BaseException) -> TracebackType | None:
    """Return the traceback from the first frame that is not the library's own."""
    first = exception.__traceback__
    while first is not None and first.tb_frame.f_globals.get("__package__") == __package__:
        first = first.tb_next

    return first or exception.__traceback__


@attrs.frozen
class Record:
    """What the checkpoint holds of a finished item."""

    id: str
    #: `"ok"`, `"error"`, `"quarantined"`, or the word you gave.
    status: str
    result: Any = None
    error: ErrorInfo | None = None
    #: Which try this was, from 1; 0 when it was saved outside a batch.
    attempt: int = 0
    #: The run it finished in, from 1; 0 when it was saved outside a batch.
    run: int = 0
    #: How long the item took, where known.
    seconds: float | None = None
    at: datetime | None = None


@attrs.frozen
class Limit:
    """Not before `resume_at`, because of `reason`. An answer, never an error.

    `resume_at` is None when the end is unknown; the wait then starts at 60 s and doubles.
    """

    resume_at: datetime | None = None
    reason: str = attrs.field(default="", kw_only=True)
    #: Which budget is used up: an account, a model, a host.
    scope: str = attrs.field(default="", kw_only=True)
    #: For a limit told as a duration: seconds from the moment it was seen, whatever the clock does.
    seconds: float | None = attrs.field(default=None, kw_only=True, repr=False)

    def __attrs_post_init__(self) -> None:
        given: object = self.resume_at
        if given is not None and not (isinstance(given, datetime) and given.tzinfo is not None):
            raise UsageError(
                f"Limit takes an aware datetime (datetime.now(UTC) + …), not {given!r}; "
                "for a duration: Limit.after(seconds)"
            )

    @classmethod
    def after(cls, seconds: float | timedelta, *, reason: str = "", scope: str = "") -> Limit:
        """Return a limit that ends `seconds` after the library sees it.

        Raises:
            UsageError: `seconds` is negative or not a duration.
        """
        return cls(None, reason=reason, scope=scope, seconds=to_seconds(seconds, "Limit.after"))

    @classmethod
    def from_headers(cls, headers: Mapping[str, Any]) -> Limit | None:
        """Return the limit that a response's headers tell of, None if they tell of none.

        Reads `Retry-After` and its relatives, and counters that are at 0: RateLimit, X-RateLimit-*
        and those of GitHub, OpenAI, Azure and Anthropic. What cannot be read is ignored.
        """
        from ._headers import reset_from_headers  # noqa: PLC0415 - as below

        return cls._told(*reset_from_headers(headers))

    @classmethod
    def from_exception(cls, exception: BaseException) -> Limit | None:
        """Return the limit that an exception stands for, None if it is an error.

        Looks at the exception and at what it was raised from, for `RateLimited`, HTTP 429, headers
        as in `from_headers`, gRPC's RetryInfo and AWS's throttling codes, whatever the client.
        """
        # Its patterns are compiled when it is imported, and most batches never meet a limit.
        from ._headers import causes, probe, reset_from_exception  # noqa: PLC0415

        for each in causes(exception):
            carried = probe(each, "limit")
            limit = (
                carried if isinstance(carried, Limit) else cls._told(*reset_from_exception(each))
            )
            if limit is not None:
                return limit

        return None

    @classmethod
    def _told(cls, limited: bool, reset: datetime | float | None, source: str) -> Limit | None:
        if not limited:
            return None
        if isinstance(reset, datetime):
            return cls(reset, reason=source)

        return cls(None, reason=source, seconds=reset)

    def __str__(self) -> str:
        if self.resume_at is not None:
            until = f"until {self.resume_at:%Y-%m-%d %H:%M:%S %Z}"
        else:
            until = f"for {self.seconds:g} s" if self.seconds is not None else "for an unknown time"

        return f"limited {until}" + (f" ({self.reason})" if self.reason else "")


@attrs.frozen
class Failure:
    """One failed attempt, as a retry policy sees it."""

    id: str
    #: Which try failed, from 1, counted over runs.
    attempt: int
    error: ErrorInfo
    #: The exception itself; None when the item ran in another process.
    exception: BaseException | None = None
    #: Seconds the attempt took.
    elapsed: float = 0.0
    limit: Limit | None = None

    def matches(self, *kinds: Kind) -> bool:
        """Tell whether the exception is of one of `kinds`; see `ErrorInfo.matches`."""
        return self.error.matches(*kinds)


def duration(seconds: float) -> str:
    """Return a duration as people say it: `0.4 s`, `3 min 20 s`, `2 h 14 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)

    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


@attrs.frozen
class Summary:
    """What a batch has done, is left with, and why it ended."""

    #: Items in the input; None where it is a generator that was not read to its end.
    total: int | None
    #: Items of the input that earlier runs had finished.
    done_before: int
    #: Finished in this run with an answer (any status but "error" and "quarantined").
    ok: int
    errors: int
    quarantined: int
    #: Every status of this run with its count.
    by_status: Mapping[str, int]
    #: Items known and not finished; None where the input was not read to its end.
    pending: int | None
    #: Ids handed out and never saved.
    unsaved: tuple[str, ...]
    #: Tries in this run, failed ones included.
    attempts: int
    #: Pauses for a limit, and the seconds they took.
    waits: int
    waited_seconds: float
    seconds: float
    #: Recorded seconds of what earlier runs had finished and this one did not run again; the mean
    #: of all records times `done_before`.
    saved_seconds: float
    #: None when the batch came to its end; else what stopped it.
    stopped_by: StopReason | None
    #: When a parked batch may go on.
    resume_at: datetime | None
    #: Errors and quarantined items booked by earlier runs and still standing.
    errors_before: int = 0

    @property
    def exit_code(self) -> int:
        """0 all done, 1 done with errors (or stopped by them), 2 run again later."""
        if self.stopped_by in ("errors", "failed"):
            return 1
        if self.stopped_by is not None:
            return 2
        if self.errors or self.quarantined or self.errors_before or self.unsaved:
            return 1

        return 0 if not self.pending else 2

    def __str__(self) -> str:
        done = self.ok + self.errors + self.quarantined
        parts = [f"{done} done in {duration(self.seconds)}"]
        parts += [f"{count} {status}" for status, count in sorted(self.by_status.items()) if count]
        if self.done_before:
            spared = (
                f", {duration(self.saved_seconds)} not paid again" if self.saved_seconds else ""
            )
            parts.append(f"{self.done_before} done before{spared}")
        if self.errors_before:
            parts.append(f"{self.errors_before} of them failed before")
        if self.pending:
            parts.append(f"{self.pending} pending")
        if self.unsaved:
            parts.append(f"{len(self.unsaved)} never saved")
        if self.waited_seconds:
            parts.append(f"waited {duration(self.waited_seconds)}")
        if self.stopped_by:
            until = f" until {self.resume_at:%Y-%m-%d %H:%M:%S} UTC" if self.resume_at else ""
            parts.append(f"stopped by {self.stopped_by}{until}")

        return " · ".join(parts)


@attrs.frozen
class Plan:
    """What a batch would do, before it is paid for."""

    total: int
    done: int
    #: Statuses of the done items.
    by_status: Mapping[str, int]
    pending: int
    #: Pending ids whose last run died inside them.
    in_doubt: tuple[str, ...]
    #: Pending ids that the checkpoint has never seen.
    new: int
    #: Ids of the checkpoint that are not in the input.
    gone: int
    #: Mean of the recorded seconds; None without records that tell.
    seconds_per_item: float | None

    @property
    def estimate(self) -> float | None:
        """Seconds that the pending items would take one at a time; None where nothing is known."""
        return None if self.seconds_per_item is None else self.seconds_per_item * self.pending

    def __str__(self) -> str:
        took = "" if self.estimate is None else f", about {duration(self.estimate)} one at a time"
        doubt = f", {len(self.in_doubt)} in doubt" if self.in_doubt else ""

        return (
            f"{self.pending} of {self.total} pending ({self.new} new{doubt}){took}; "
            f"{self.done} done, {self.gone} gone from the input"
        )


@attrs.frozen
class Stats:
    """A snapshot of a checkpoint's history."""

    started_at: datetime | None
    #: When the last run ended with nothing left; None otherwise.
    completed_at: datetime | None
    run_count: int
    resume_count: int
    pause_count: int
    total_wait_seconds: float
    by_status: Mapping[str, int]
    stop_reason: str | None
    parked_until: datetime | None
