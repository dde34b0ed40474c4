"""From an item to its id: a text, always. Pure.

Ids are texts by contract and not only in JSON: a file that says "1" and a program that asks for 1
would never meet, and every item would be paid for again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

from ._errors import UsageError

Key = str | Callable[[Any], Any]

#: The longest id, in characters. An id is a name; what is longer is data, and belongs elsewhere.
_LONGEST = 4096


def as_id(value: object) -> str:
    """Return the id that `value` stands for: a text, a whole number's digits, a path as POSIX text.

    Raises:
        UsageError: it is something else, empty, or longer than 4,096 characters.
    """
    if type(value) is int:  # asked for a million times at a start, as a text is
        return str(value)
    if type(value) is str:
        id = value
    elif isinstance(value, str):
        id = str.__str__(value)  # what an enum of texts is equal to, not how it prints
    elif isinstance(value, int) and not isinstance(value, bool):
        id = str(int(value))
    elif isinstance(value, PurePath):
        id = value.as_posix()
    else:
        raise UsageError(
            f"an id is a text, a whole number or a path, not {type(value).__name__} "
            f"{_short(value)}; pass key= to say what names an item"
        )
    if not id.isascii():
        # Two surrogates that make one character are that character when they are read again.
        id = id.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    if not id or len(id) > _LONGEST:
        what = "empty" if not id else f"{len(id)} characters long (the limit is {_LONGEST})"
        raise UsageError(f"an id is {what}; pass key= to say what names an item")

    return id


def key_function(key: Key | None) -> Callable[[Any], str]:
    """Return the function from item to id that a `key=` argument stands for.

    Raises:
        UsageError: `key` is neither a name nor callable.
    """
    if key is None:
        return as_id
    if isinstance(key, str) and key:
        return functools.partial(_id_in_field, key)
    if callable(key):
        return functools.partial(_id_by_call, key)
    raise UsageError(f"key= takes a field's name or a function of an item, not {key!r}")


def _id_in_field(name: str, item: object) -> str:
    try:
        value = item[name] if isinstance(item, (dict, Mapping)) else getattr(item, name)
    except (KeyError, AttributeError):
        raise UsageError(
            f"key={name!r}: there is no such field in the item {_short(item)}"
        ) from None

    return _as_id_of(item, value)


def _id_by_call(function: Callable[[Any], object], item: object) -> str:
    try:
        value = function(item)
    except Exception as error:
        raise UsageError(
            f"key= raised {type(error).__name__} ({error}) for the item {_short(item)}"
        ) from error

    return _as_id_of(item, value)


def _as_id_of(item: object, value: object) -> str:
    try:
        return as_id(value)
    except UsageError as error:
        raise UsageError(f"{error} (the item is {_short(item)})") from None


def _short(value: object) -> str:
    try:
        text = repr(value)
    except Exception as error:  # noqa: BLE001 - a broken repr must not hide the real message
        text = f"<{type(value).__name__} whose repr raised {type(error).__name__}>"

    return text if len(text) <= 80 else f"{text[:77]}…"
