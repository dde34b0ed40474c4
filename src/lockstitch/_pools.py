"""Any `concurrent.futures.Executor` as workers of the one loop.

The engine is asked for nothing but `submit` and a future that calls back. Not `map`, which hides
which item failed; not `cancel_futures`, which some engines do not know. A future that ends with an
exception is never the function's doing, because what runs in the worker raises nothing: either the
worker has died, or the engine could not do its work at all.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import pickle
import queue
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from typing import Any

from ._attempt import Attempt, Outcome
from ._engine import Pooled, is_about_pickling, is_death, made_by, portable, sendable, size_of
from ._envelope import Envelope, unpack
from ._errors import UsageError
from ._executors import SAVERS
from ._model import ErrorInfo
from ._scheduler import Entry
from ._serializers import Encoded
from ._session import Session
from ._worker import Job, probe, work

#: Items handed out for each worker: the next one is there when a worker becomes free, and no more
#: than that runs again after a crash of the coordinator.
_AHEAD = 2

#: Seconds between a sign of life after a death and the next item. An engine that replaces its
#: workers may take one that dies while it is still starting for hopeless: Dask's nannies do, and
#: then the cluster is empty.
_PAUSE = 0.5

#: While a worker is awaited, a stop request is looked for every so many seconds; and so many
#: workers may die without an item.
_PATIENCE = 0.5
_PROBES = 3


def hire_pool(
    session: Session[Any],
    fn: Callable[[Any], Any],
    executor: Pooled,
    *,
    concurrency: int | None,
    chunk: int,
) -> Pool:
    """Return the workers that `executor` stands for, and tell the scheduler how many they are.

    Raises:
        UsageError: it is no executor and makes none, or the function is a coroutine function.
    """
    if inspect.iscoroutinefunction(getattr(fn, "function", fn)):
        raise UsageError(
            "an executor calls plain functions; for a coroutine function, arun(fn, concurrency=N)"
        )
    pool = Pool(session, fn, executor, concurrency, chunk)
    session.scheduler.slots = _AHEAD * chunk * pool.workers

    return pool


class Pool:
    """An executor that was passed in, or one that is made, remade and shut down here."""

    def __init__(
        self,
        session: Session[Any],
        fn: Callable[[Any], Any],
        given: Pooled,
        concurrency: int | None,
        chunk: int,
    ) -> None:
        self._make = None if isinstance(given, Executor) else given
        self._executor = executor = given if isinstance(given, Executor) else made_by(given)
        #: How many workers there are.
        self.workers = concurrency or size_of(executor)
        self._chunk = chunk
        self._session = session
        self._fn = sendable(fn, executor)
        self._codec = portable(session.run.store.codec, executor)
        self._name = uuid.uuid4().hex
        self._tickets = itertools.count()
        self._gathered: list[Entry] = []
        self._futures: set[Future[list[Envelope]]] = set()
        # Where saves wait for the disk, many must be able to wait at once. Where they do not, the
        # thread that brings the results is soon done with them.
        self._savers = (
            ThreadPoolExecutor(SAVERS, "lockstitch-save")
            if session.run.store.journal.syncs
            else None
        )
        self._closed = False
        #: A worker has died of which the engine says that it goes on without it.
        self._wounded = False
        self._told = False

    # Out

    def submit(self, entry: Entry, attempt: Attempt) -> None:  # noqa: ARG002 - it is made anew in the worker
        self._gathered.append(entry)
        if len(self._gathered) >= self._chunk or entry.solo:
            self._send_gathered()

    def flush(self) -> None:
        # While every worker has something to do, a chunk that is not full can wait for more: each
        # result makes room for one item, and would else send it on a way of its own.
        if self._gathered and len(self._futures) < self.workers:
            self._send_gathered()

    def _send_gathered(self) -> None:
        entries, self._gathered = self._gathered, []
        run = self._session.run
        job = Job(
            self._fn,
            self._codec,
            run.store.journal.header.batch,
            run.number,
            tuple((entry.id, entry.number, entry.item) for entry in entries),
            f"{self._name}:{next(self._tickets)}",
        )
        try:
            future = self._send(job)
            if future is None:
                for entry in entries:
                    self._session.events.put((entry, Outcome(cancelled=True)))
                return
            self._futures.add(future)
            future.add_done_callback(lambda future: self._done(entries, future))
        except Exception as error:  # noqa: BLE001 - raised by the loop, once nothing is in flight
            self._fail(entries, error, sent=False)

    def _send(self, job: Job) -> Future[list[Envelope]] | None:
        """Submit a job; None if a stop came while a worker was awaited for it."""
        if self._wounded:
            self._wounded = False
            if not self._await_worker():
                return None
            self._session.run.clock.wait(queue.SimpleQueue(), _PAUSE)
        try:
            return self._submit(job)
        except BrokenExecutor:
            if self._make is None:
                raise
        self._executor.shutdown(wait=False)
        self._executor = made_by(self._make)

        return self._submit(job) if self._await_worker() else None

    def _submit(self, job: Job) -> Future[list[Envelope]]:
        future = self._executor.submit(work, job)
        if not hasattr(future, "add_done_callback"):
            raise UsageError(f"the executor's submit returned {future!r}, which is no future")

        return future

    def _await_worker(self) -> bool:
        """Wait until a worker has loaded the function; False if a stop is asked for before.

        A pool that dies of its own start, or of loading the function, dies with every item, and all
        of them would be set aside, one after the other.
        """
        deaths = 0
        future = self._executor.submit(probe, self._fn, self._codec)
        while self._session.scheduler.stop_reason is None:
            try:
                future.result(timeout=_PATIENCE)
            except TimeoutError:
                continue
            except Exception as error:
                deaths += 1
                if not is_death(error):
                    raise
                if isinstance(error, BrokenExecutor) or deaths == _PROBES:
                    raise UsageError(
                        f"the executor breaks before it has worked on any item ({error}): its "
                        "workers cannot start, or cannot load the function. A script needs "
                        '`if __name__ == "__main__":` around what it runs, and a worker must be '
                        "able to import the function"
                    ) from error
                future = self._executor.submit(probe, self._fn, self._codec)
            else:
                return True
        return False

    # Back

    def _done(self, entries: list[Entry], future: Future[list[Envelope]]) -> None:
        """Take a finished future in; called in a thread of the engine's."""
        self._futures.discard(future)
        if self._closed:
            return
        untaken = threading.Lock()
        if self._savers is not None:
            # Where no more threads can be started, it is taken in here. It then stays in the queue
            # of the threads there are, too, and only the first one may answer.
            with contextlib.suppress(RuntimeError):
                self._savers.submit(self._take, entries, future, untaken)
                return
        self._take(entries, future, untaken)

    def _take(
        self, entries: list[Entry], future: Future[list[Envelope]], untaken: threading.Lock
    ) -> None:
        """Report every one of these items, whatever the engine has made of them; never raises.

        An engine swallows what a callback raises, and the loop would wait for ever.
        """
        if not untaken.acquire(blocking=False):
            return
        try:
            envelopes = _answer(future.result(), len(entries))
        except BaseException as error:  # noqa: BLE001 - raised by the loop, once nothing is in flight
            self._fail(entries, error, sent=True)
            return
        for entry, envelope in zip(entries, envelopes, strict=True):
            self._session.events.put((entry, self._outcome(entry, envelope)))

    def _outcome(self, entry: Entry, envelope: Envelope) -> Outcome:
        try:
            if not envelope.keys() & {"json", "pickle"}:
                return unpack(envelope)
            seconds = envelope["seconds"]
            result = (
                Encoded(envelope["json"])
                if "json" in envelope
                else pickle.loads(envelope["pickle"])  # noqa: S301 - from a worker, which runs our code
            )
            self._session.run.finish(entry, "ok", result=result, seconds=seconds)
        except BaseException as fault:  # noqa: BLE001 - as above
            return Outcome(fatal=fault)

        return Outcome("ok", seconds=seconds)

    def _fail(self, entries: list[Entry], error: BaseException, *, sent: bool) -> None:
        """Report that the engine has no answer for these items."""
        died = sent and is_death(error)
        self._wounded = self._wounded or (died and not isinstance(error, BrokenExecutor))
        lasting = isinstance(error, BrokenExecutor) and self._make is None
        fatal = self._fatal(entries[0], error) if lasting or not died else None
        for entry in entries:
            # One of all the items tells; the others would only say it again.
            told, self._told = self._told, self._told or fatal is not None
            self._session.events.put(
                (entry, Outcome(died=died, cancelled=not died, fatal=None if told else fatal))
            )

    def _fatal(self, entry: Entry, error: BaseException) -> BaseException:
        if isinstance(error, UsageError):
            return error
        message = ErrorInfo.from_exception(error).message
        if isinstance(error, BrokenExecutor):
            said = (
                f"the executor broke ({message}); what it was at is pending. Pass a function that "
                "makes one, executor=make_pool: then it is made anew, and the item that breaks it "
                "is found and set aside"
            )
        elif isinstance(error, pickle.PicklingError) or is_about_pickling(error):
            said = (
                f"{entry.id!r} could not be sent to a worker ({type(error).__name__}: {message}). "
                "The function and its items must pickle: a function at the top level of a module, "
                "and not a lambda or a nested one"
            )
        elif isinstance(error, RuntimeError):
            said = f"the executor takes no work ({message}); has it been shut down?"
        else:
            with contextlib.suppress(Exception):  # a frozen exception takes no notes
                error.add_note(
                    f"lockstitch: the executor raised this for {entry.id!r}, now pending"
                )
            return error
        usage = UsageError(said)
        usage.__cause__ = error

        return usage

    # End

    def close(self, *, wait: bool = True) -> None:
        self._closed = True
        if not wait:
            for future in list(self._futures):
                future.cancel()
        if self._make is not None:
            self._executor.shutdown(wait=wait)
        if self._savers is not None:
            self._savers.shutdown(wait=wait)


def _answer(given: object, count: int) -> list[Envelope]:
    if not isinstance(given, list) or len(given) != count:
        raise UsageError(
            f"the executor answered {given!r:.60}, which is not what the function it was given "
            "returns"
        )

    return given
