"""The `with` around the work on one item, in a loop of the user's own."""

from __future__ import annotations

import contextvars
from types import TracebackType
from typing import Any

from ._attempt import Attempt
from ._scheduler import Entry
from ._session import Session


class Attempting:
    """Books what the work raises, or lets it come round again; used once, by one thread or task."""

    def __init__(self, session: Session[Any], entry: Entry) -> None:
        self._session = session
        self._entry = entry
        self._attempt = session.attempts[entry.id]
        self._token: contextvars.Token[Attempt | None] | None = None

    def __enter__(self) -> Attempt:
        self._token = self._attempt.enter()

        return self._attempt

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if self._token is not None:
            self._attempt.leave(self._token)
        self._session.settle(self._entry, self._attempt.outcome(error))

        return error is not None

    async def __aenter__(self) -> Attempt:
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        import asyncio  # noqa: PLC0415 - who does not use asyncio does not pay for it

        if self._token is not None:
            self._attempt.leave(self._token)
        outcome = self._attempt.outcome(error)
        if isinstance(error, asyncio.CancelledError) and not self._attempt.saved:
            outcome = outcome._replace(cancelled=True)
        if outcome.fatal is not None:  # raised again, which a thread cannot do for all of them
            self._session.settle(self._entry, outcome)
        await asyncio.to_thread(self._session.settle, self._entry, outcome)

        return error is not None
