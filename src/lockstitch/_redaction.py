"""What is kept of texts that nobody has chosen to keep: error messages and configs. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from ._errors import UsageError
from ._model import ErrorInfo

#: From a text to what may be kept of it.
Redact = Callable[[str], str]


def nothing(text: str) -> str:
    """Keep all of it."""
    return text


def checked(redact: Redact | None) -> Redact:
    """Return a hook that fails loudly where the user's would let something else into the file.

    Raises:
        UsageError: it is no function.
    """
    if redact is None:
        return nothing
    if not callable(redact):
        raise UsageError(f"redact= takes a function from text to text, not {redact!r}")

    def checking(text: str) -> str:
        kept = redact(text)
        if not isinstance(kept, str):
            raise UsageError(f"redact= must return a text; it returned {type(kept).__name__}")
        return kept

    return checking


def redacted_error(redact: Redact, error: ErrorInfo) -> ErrorInfo:
    """Return an error as it may be stored. Its class names stay."""
    return attrs.evolve(error, message=redact(error.message), traceback=redact(error.traceback))


def redacted_config(redact: Redact, config: dict[str, Any]) -> dict[str, Any]:
    """Return a config as it may be stored. Its keys stay: they name what has changed."""
    return {key: _redacted(redact, value) for key, value in config.items()}


def _redacted(redact: Redact, value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return redacted_config(redact, value)
    if isinstance(value, list):
        return [_redacted(redact, part) for part in value]

    return value
