"""The policies of a batch: arguments in, one checked type each out."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from ._errors import UsageError
from ._guard import Check, Guards, as_checks
from ._input import Redo, redo_test
from ._model import Record, to_seconds
from ._retry import RetryPolicy
from ._scheduler import Rules

if TYPE_CHECKING:
    from ._progress import Reporter, ShowProgress


class Settings(NamedTuple):
    """The checked arguments of a batch, apart from checkpoint and items."""

    rules: Rules
    checks: tuple[Check, ...]
    redo: Redo | None
    handle_signals: bool
    report: Reporter | None


def check_settings(
    *,
    redo: Redo | None = None,
    retry: RetryPolicy | None = None,
    guard: Guards | None = None,
    max_wait: float | timedelta = 600.0,
    max_time: float | timedelta | None = None,
    max_consecutive_errors: int | None = None,
    max_crashes: int = 3,
    progress: ShowProgress = False,
    handle_signals: bool = True,
) -> Settings:
    """Return the arguments in one type each.

    Raises:
        UsageError: one is of the wrong type or out of range.
    """
    if retry is not None and (isinstance(retry, type) or not callable(retry)):
        raise UsageError(
            f"retry= takes a policy such as Backoff(), or a function of a Failure, not {retry!r}"
        )
    checks = as_checks(guard)
    rules = Rules(
        guarded=bool(checks),
        retry=retry,
        max_wait=to_seconds(max_wait, "max_wait="),
        max_time=None if max_time is None else to_seconds(max_time, "max_time="),
        max_consecutive_errors=(
            None
            if max_consecutive_errors is None
            else check_count(max_consecutive_errors, "max_consecutive_errors=")
        ),
        max_crashes=check_count(max_crashes, "max_crashes="),
    )
    redo_test(redo, lambda _id: None, lambda _id: Record("", ""))

    return Settings(
        rules=rules,
        checks=checks,
        # Launched again by `lockstitch supervise`: what was redone must not be paid once more.
        redo=None if os.environ.get("LOCKSTITCH_RELAUNCH") == "1" else redo,
        handle_signals=bool(handle_signals),
        report=None if progress is False else _reporter(progress),
    )


def _reporter(progress: ShowProgress) -> Reporter:
    from ._progress import as_reporter  # noqa: PLC0415 - only where somebody watches

    return as_reporter(progress)


def check_count(value: object, name: str) -> int:
    """Return a whole number from 1; refuses anything else."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{name} takes a whole number from 1, not {value!r}")

    return value
