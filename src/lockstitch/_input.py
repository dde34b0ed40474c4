"""The user's items, drawn one by one, with what is finished left out. Pure but for the drawing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Generic, TypeVar

from ._errors import UsageError
from ._ids import Key, key_function
from ._model import Record

T = TypeVar("T")

#: `redo=`: a status, several, or a question to each record.
Redo = str | Iterable[str] | Callable[[Record], bool]


def redo_test(
    redo: Redo | None, status: Callable[[str], str | None], record: Callable[[str], Record]
) -> Callable[[str], bool] | None:
    """Return the question "is this finished id to run again?"; None where none is.

    Quarantined items are meant only by name: what kills the process is not run again by accident.

    Raises:
        UsageError: `redo` is of another type.
    """
    if redo is None:
        return None
    if callable(redo):
        predicate = redo
        return lambda id: status(id) != "quarantined" and bool(predicate(record(id)))
    several: object = [redo] if isinstance(redo, str) else redo
    wanted = list(several) if isinstance(several, Iterable) else [None]
    if not all(isinstance(each, str) for each in wanted):
        raise UsageError(f"redo= takes a status, several, or a function of a record, not {redo!r}")

    return lambda id: status(id) in wanted


class Input(Generic[T]):
    """The items of a batch and the ids they have."""

    def __init__(self, items: Iterable[T], key: Key | None = None) -> None:
        if isinstance(items, (str, bytes)) or not isinstance(items, Iterable):
            raise UsageError(f"items takes a list or another iterable of items, not {items!r}")
        self.items = items
        self.id_of: Callable[[Any], str] = key_function(key)
        self._iterator: Iterator[T] | None = None

    @property
    def size(self) -> int | None:
        """How many items there are; None for what can only be found out by drawing them."""
        if isinstance(self.items, Collection) and not isinstance(self.items, Iterator):
            return len(self.items)

        return None

    def ids(self) -> Iterator[str]:
        """Yield every id of an input that can be read more than once.

        Raises:
            UsageError: an item has no id.
        """
        return map(self.id_of, self.items)

    def check(self) -> None:
        """Look at every id of a sized input before anything is paid for.

        Raises:
            UsageError: an item has no id, or two have the same.
        """
        if self.size is None:
            return
        if len(set(self.ids())) == self.size:
            return
        seen: set[str] = set()
        for id in self.ids():
            if id in seen:
                raise twice(id)
            seen.add(id)

    def rest(self) -> Iterator[T]:
        """Return the iterator over what has not been drawn yet; the same at every call."""
        if self._iterator is None:
            self._iterator = iter(self.items)

        return self._iterator


def twice(id: str) -> UsageError:
    """Return the error for two items with one id."""
    return UsageError(f"two items of the input have the id {id!r}; key= must tell them apart")
