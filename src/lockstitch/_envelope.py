"""How an attempt ended, as plain data that crosses from a worker to the coordinator. Pure.

Built-in types only. An exception would have to be made anew at the other end by a constructor that
it may not fit: several SDKs have such, and one of them breaks a whole process pool.
"""

from __future__ import annotations

import contextlib
from typing import Any, cast

from ._attempt import Outcome
from ._errors import LockstitchError, SerializationFailed, UsageError
from ._model import ErrorInfo, Limit, to_instant

Envelope = dict[str, Any]

#: What ends a batch and keeps its class on the way; the constructors take their own `args`, and
#: maybe not those of a subclass.
_KEPT = (SerializationFailed, UsageError, SystemExit)


def pack(outcome: Outcome, worker: str) -> Envelope:
    """Return an outcome without a result as built-ins; `worker` names the process for people."""
    if outcome.limit is not None:
        limit = outcome.limit
        until = None if limit.resume_at is None else limit.resume_at.timestamp()
        return {"limit": [until, limit.seconds, limit.reason, limit.scope]}
    if outcome.error is not None:
        error = outcome.error
        text = f"{error.traceback}In {worker}\n"
        return {"error": [error.type, error.message, text, list(error.bases)]}
    if isinstance(outcome.fatal, KeyboardInterrupt):
        return {"died": True}  # not the item's doing: somebody wants this process to end

    return {"fatal": _pack_fatal(outcome.fatal)}


def _pack_fatal(fatal: BaseException | None) -> list[Any]:
    for kind in _KEPT:
        if isinstance(fatal, kind):
            with contextlib.suppress(Exception):
                args: list[Any] = [_plain(each) for each in fatal.args]
                kind(*args)
                return [kind.__name__, args]
    message = ErrorInfo.from_exception(cast("BaseException", fatal)).message

    return [LockstitchError.__name__, [f"{type(fatal).__name__}: {message}"]]


def _plain(value: object) -> int | str | None:
    return value if value is None or type(value) in (int, str) else str(value)  # type: ignore[return-value] # narrowed by the set of types


def unpack(envelope: Envelope) -> Outcome:
    """Return the outcome that `pack` was given; the exception itself stays where it was raised."""
    seconds = envelope["seconds"]
    if "limit" in envelope:
        until, after, reason, scope = envelope["limit"]
        resume_at = None if until is None else to_instant(until)
        return Outcome(
            limit=Limit(resume_at, reason=reason, scope=scope, seconds=after), seconds=seconds
        )
    if "error" in envelope:
        kind, message, text, bases = envelope["error"]
        return Outcome(error=ErrorInfo(kind, message, text, tuple(bases)), seconds=seconds)
    if "fatal" in envelope:
        return Outcome(fatal=_unpack_fatal(*envelope["fatal"]))

    return Outcome(died=True)


def _unpack_fatal(name: str, args: list[Any]) -> BaseException:
    for kind in _KEPT:
        if kind.__name__ == name:
            return kind(*args)

    return LockstitchError(*args)
