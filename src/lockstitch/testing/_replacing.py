"""Put something else in a context variable's place, for the length of a `with`."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import TypeVar

V = TypeVar("V")


@contextlib.contextmanager
def replaced(variable: contextvars.ContextVar[V], value: V) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
