"""What runs in a worker of an executor: the function, and nothing of the checkpoint.

The journal stays with the coordinator. A worker is sent a job, calls the function, and answers in
built-in types, results already as the bytes that will be stored. So it is the worker that finds out
that a result cannot be stored, and no pool has to carry one that cannot be carried.
"""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Callable
from typing import Any, NoReturn

import attrs

from ._attempt import Attempt
from ._clock import CLOCK
from ._envelope import Envelope, pack
from ._errors import SerializationFailed, UsageError
from ._scheduler import Entry
from ._serializers import Codec


@attrs.frozen
class Job:
    """Items to work on one after the other, and what is needed for that."""

    fn: Callable[[Any], Any]
    #: None where it cannot leave the coordinator; the results then travel pickled.
    codec: Codec | None
    batch: str
    run: int
    #: Id, number of the attempt, and item.
    items: tuple[tuple[str, int, Any], ...]
    #: Different in every job. Some engines answer an equal call with the result they have of the
    #: first one, and that would be the end of every retry.
    ticket: str


@attrs.frozen
class Bare:
    """A decorated function as a worker calls it: found by its name, and without its checkpoint."""

    function: Any

    def __call__(self, item: Any) -> Any:
        return self.function.__wrapped__(item)


def work(job: Job) -> list[Envelope]:
    """Call the function with each item; never raises, whatever the function does."""
    envelopes: list[Envelope] = []
    for id, number, item in job.items:
        if envelopes and "limit" in envelopes[-1]:
            envelopes.append(envelopes[-1])  # the next one would run into the same limit
        else:
            envelopes.append(_work_on(job, id, number, item))

    return envelopes


def _work_on(job: Job, id: str, number: int, item: Any) -> Envelope:
    attempt = AttemptInWorker(job, id, number, item)
    token = attempt.enter()
    try:
        envelope = _carried(job.codec, id, job.fn(item))
    except BaseException as exception:  # noqa: BLE001 - sorted by `outcome`; the coordinator raises what is fatal
        envelope = pack(attempt.outcome(exception), f"process {os.getpid()} on {_host()}")
    finally:
        attempt.leave(token)
    envelope["seconds"] = attempt.seconds

    return envelope


def _carried(codec: Codec | None, id: str, value: Any) -> Envelope:
    if codec is not None:
        return {"json": codec.encode(id, value)}
    try:
        return {"pickle": pickle.dumps(value)}
    except Exception as error:
        reason = f"it cannot leave its worker ({type(error).__name__}: {error})"
        raise SerializationFailed(id, "$", reason) from error


def _host() -> str:
    return socket.gethostname()


def probe(_fn: Callable[[Any], Any], _codec: Codec | None) -> None:
    """Do nothing: that it has been called shows that a worker lives and can load the function."""


class AttemptInWorker(Attempt):
    """What `current_attempt()` is in a worker: it names the item, and can store nothing."""

    def __init__(self, job: Job, id: str, number: int, item: Any) -> None:
        self._entry = Entry(id, item)
        self._number = number
        self._job = job
        self._clock = CLOCK.get()
        self._since = self._clock.now()
        self._status = self._fault = None

    @property
    def run(self) -> int:
        return self._job.run

    @property
    def idempotency_key(self) -> str:
        return f"{self._job.batch}:{self.id}"

    @property
    def seconds(self) -> float:
        return self._clock.now() - self._since

    @property
    def cursor(self) -> Any:
        return self._refuse_saved("cursor")

    def _refuse_saved(self, what: str) -> NoReturn:
        raise UsageError(
            f"{what} needs the checkpoint, and {self.id!r} runs in a worker of an executor, where "
            "there is none: return the result instead, and the coordinator stores it. Cursors, "
            "steps and statuses of your own need run(fn, concurrency=N) or arun"
        )
