"""What changes results: kept in the file, compared on every start. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ._errors import SerializationFailed, UsageError
from ._serializers import Codec


def as_config(value: object) -> dict[str, Any]:
    """Return a config as the file will hold it.

    Raises:
        UsageError: it is not a mapping of texts to plain JSON.
    """
    if not isinstance(value, Mapping):
        raise UsageError(
            f"config= takes a dict of what changes results, not {type(value).__name__}"
        )
    try:
        stored = json.loads(Codec(None, None).encode("", dict(value)))
    except SerializationFailed as error:
        raise UsageError(f"config= must be plain JSON: at {error.where}: {error.reason}") from error

    return dict(stored)


def changes(
    old: Mapping[str, Any], new: Mapping[str, Any], path: str = ""
) -> dict[str, tuple[object, object]]:
    """Return the path of every value that differs, with both sides; a missing side is None."""
    found: dict[str, tuple[object, object]] = {}
    for key in [*old, *(key for key in new if key not in old)]:
        before, after = old.get(key), new.get(key)
        where = f"{path}.{key}" if path else key
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found.update(changes(before, after, where))
        elif before != after or (key in old) != (key in new):
            found[where] = (before, after)

    return found
