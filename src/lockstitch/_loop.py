"""A whole loop, written as a generator, made resumable."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, Generic, TypeVar

from ._batch import ResumableBatch
from ._checkpoint import Checkpoint
from ._errors import UsageError
from ._ids import Key
from ._model import Summary

T = TypeVar("T")


class ResumableLoop(Generic[T]):
    """A whole loop, written as a generator that is handed only what is pending.

    Made by `resumable` from a generator function of the items that yields one result for each item
    it draws. Each result is stored before the next item is drawn.
    """

    def __init__(
        self,
        fn: Callable[[Iterable[T]], Iterator[Any]],
        checkpoint: Checkpoint,
        key: Key | None,
        settings: dict[str, Any],
    ) -> None:
        functools.update_wrapper(self, fn)
        self._name = fn.__qualname__
        self.__wrapped__ = fn
        self.checkpoint = checkpoint
        self._key = key
        self._settings = settings

    def __repr__(self) -> str:
        return f"<resumable loop {self.__module__}.{self._name} on {self.checkpoint.path!r}>"

    def __call__(self, items: Iterable[T]) -> Summary:
        """Run the loop over what is pending of `items`, to its end; return what happened.

        An exception of the loop is yours; the item it was at is pending.

        Raises:
            UsageError: the loop yielded twice for one item, before it drew one, or after it drew
                several ahead.
        """
        with ResumableBatch(self.checkpoint, items, key=self._key, **self._settings) as batch:
            #: The last two items since a result came, and a result that is not stored yet.
            drawn: list[T] = []
            held: list[tuple[T, Any]] = []
            #: Results since the loop has first drawn again without a yield.
            late = 0
            for result in self.__wrapped__(_noting(batch, drawn, held)):
                if not drawn:
                    raise UsageError(self._refusal(late - len(held)))
                # After several items it belongs to the last, if the loop left the others out; if
                # it drew them ahead, to the first. The next thing that the loop does tells.
                ambiguous = len(drawn) > 1
                held.append((drawn.pop(), result))
                drawn.clear()
                late += late > 0 or ambiguous
                if not ambiguous:
                    _store(batch, held)
            _store(batch, held)
            # A loop that caught the stop itself ends here; the stop still counts.
            batch.raise_if_stopped()

        return batch.summary

    def _refusal(self, late: int) -> str:
        said = (
            f"{self._name} must yield once for each item before it draws the next; "
            "it yielded twice for one, or before it drew one, or drew several ahead"
        )
        if late:
            said += (
                f". If it stays an item ahead, the last {late} results are stored, each under the "
                "id of the item after its own: forget them with checkpoint.forget("
                f"[record.id for record in [*checkpoint.records()][-{late}:]]), "
                "and those of earlier runs that were interrupted, too"
            )

        return said


def _noting(
    batch: ResumableBatch[T], drawn: list[T], held: list[tuple[T, Any]]
) -> Generator[T, None, None]:
    for item in batch:
        drawn[:] = [*drawn[-1:], item]  # one drawn before it, and not yielded, stays pending
        yield item
        _store(batch, held)


def _store(batch: ResumableBatch[T], held: list[tuple[T, Any]]) -> None:
    while held:
        batch.save(*held.pop())
