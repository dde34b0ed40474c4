"""An open checkpoint as typed calls: journal, ledger and codec put together.

Everything a batch tells its file goes through here, and so does everything it asks. Only the
process that opened the checkpoint writes; workers return plain data.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from ._clock import Clock
from ._errors import UsageError
from ._frames import Wrong
from ._journal import Journal
from ._ledger import Ledger
from ._lock import host_name
from ._model import ErrorInfo, Limit, Record, Stats
from ._reading import damaged
from ._records import (
    Header,
    Malformed,
    error_from,
    id_of,
    instant,
    iso,
    item_payload,
    kind_of,
    numbers_from,
    payload,
    retry_payload,
    start_payload,
    value_payload,
)
from ._redaction import Redact, nothing, redacted_error
from ._serializers import Codec

logger = logging.getLogger("lockstitch")

#: A compaction by itself, at open, only where it pays: more than half and more than 16 MiB dead.
_COMPACT_ABOVE = 16 * 1024 * 1024

_BOOT_ID = "/proc/sys/kernel/random/boot_id"


class Source(Protocol):
    """A journal or a snapshot, for reading."""

    @property
    def fold(self) -> Ledger: ...

    @property
    def header(self) -> Header: ...

    @property
    def path(self) -> str: ...

    def read(self, find: Any) -> dict[str, object]: ...


def boot_id() -> str:
    """Return what identifies this start of the machine; empty where the system does not tell."""
    try:
        with open(_BOOT_ID, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


# Reading, from a journal or a snapshot


def get(source: Source, codec: Codec, id: str) -> Record:
    """Return the record of `id`.

    Raises:
        KeyError: there is none.
        CheckpointDamaged: it proves itself and yet makes no sense.
    """
    run = offset = 0

    def find(ledger: Ledger) -> int:
        nonlocal run, offset
        offset = ledger.offset(id)
        run = ledger.run_at(offset)  # here, where no compaction can move the record

        return offset

    data = source.read(find)
    try:
        error, (attempt, seconds) = error_from(data.get("error")), numbers_from(data)
    except Malformed as wrong:
        reason = f"record {id!r}: {wrong}"
        raise damaged(source.path, Wrong(-1, 0, offset, offset, reason)) from None

    return Record(
        id=id,
        status=str(data["status"]),
        result=codec.decode(data["result"]) if "result" in data else None,
        error=error,
        attempt=attempt,
        run=run,
        seconds=seconds,
        at=instant(data.get("at")),
    )


def records(source: Source, codec: Codec, wanted: frozenset[str] | None) -> Iterator[Record]:
    """Yield the last record of each id, in the order of the file."""
    for id, _ in source.fold.offsets(wanted):
        try:
            yield get(source, codec, id)
        except KeyError:  # forgotten by another thread since the list was made
            continue


def stats(source: Source) -> Stats:
    """Return the history that the file tells."""
    ledger = source.fold
    last = ledger.runs[-1] if ledger.runs else None
    parked = ledger.parked

    return Stats(
        started_at=instant(source.header.created_at),
        completed_at=last.end_at if last is not None and last.end == "complete" else None,
        run_count=len(ledger.runs),
        resume_count=max(0, len(ledger.runs) - 1),
        pause_count=len(ledger.pauses),
        total_wait_seconds=sum(ledger.waited.values()),
        by_status=ledger.by_status(),
        stop_reason=None if last is None else last.end or None,
        parked_until=None if parked is None else parked.until,
    )


class Store:
    """The writing side. Thread-safe where `Journal.append` is."""

    def __init__(
        self, journal: Journal[Ledger], codec: Codec, clock: Clock, redact: Redact = nothing
    ) -> None:
        self.journal = journal
        self.codec = codec
        self.clock = clock
        self.redact = redact
        #: A config that was changed and kept; the next run line brings it into the file.
        self.new_config: dict[str, Any] | None = None
        self._claimed = False
        #: Statuses that have been found to be fit.
        self._words: set[str] = set()
        #: The last moment that was written down, in ms since 1970, and as the file has it.
        self._moment = (-1, "")

    def claim(self) -> None:
        """Reserve the store for one batch; raises `UsageError` while another one has it."""
        if self._claimed:
            raise UsageError(
                f"a batch is at work on {self.path} already; one batch at a time on one checkpoint"
            )
        self._claimed = True

    def free(self) -> None:
        """Undo `claim`."""
        self._claimed = False

    @property
    def ledger(self) -> Ledger:
        return self.journal.fold

    @property
    def path(self) -> str:
        return self.journal.path

    def _now(self) -> str:
        # Of many saves, most fall into the millisecond of the one before.
        moment = int(self.clock.wall() * 1000)
        known, text = self._moment
        if moment == known:
            return text
        text = iso(moment / 1000)
        self._moment = moment, text

        return text

    # Items

    def finish(
        self,
        id: str,
        status: str,
        *,
        result: object = None,
        error: ErrorInfo | None = None,
        attempt: int = 0,
        seconds: float | None = None,
    ) -> None:
        """Write the record of an item; once this returns, the item is done.

        Raises:
            SerializationFailed: the result cannot be stored; nothing was written.
            UsageError: the status is no text, or one too many.
        """
        if type(status) is not str or status not in self._words:
            self._check_word(status)
        if error is not None:
            error = redacted_error(self.redact, error)
        fragment = None if error is not None and result is None else self.codec.encode(id, result)
        self.journal.append(
            item_payload(id, status, fragment, error, attempt, seconds, self._now()), id
        )

    def _check_word(self, status: str) -> None:
        check_text(status, "status=")
        if status not in self.ledger.statuses and len(self.ledger.statuses) > 1000:
            raise UsageError(
                f"{self.path} holds 1,000 different statuses; a status is one of a few words, "
                "what is special to an item belongs into its result"
            )
        self._words.add(status)

    def start(self, id: str, attempt: int) -> None:
        """Say that an item is begun. If this raises, it must not begin."""
        self.journal.append(start_payload(id, attempt), id=id, sync=False)

    def back(self, id: str) -> None:
        """Say that an item was left unfinished, by a process that is well."""
        self.journal.append(payload("back", id), id=id, sync=False)

    def died(self, id: str, crashes: int) -> None:
        """Say that the process that worked on an item died, and how often it has, alone."""
        self.journal.append(payload("died", id, crashes=crashes, at=self._now()), id=id)

    def retry(self, id: str, attempt: int, error: ErrorInfo, due: float) -> None:
        """Book a failed attempt that another will follow, `due` in seconds since 1970."""
        error = redacted_error(self.redact, error)
        self.journal.append(retry_payload(id, attempt, error, due, self._now()), id=id)

    def save_cursor(self, id: str, value: object) -> None:
        """Keep how far an item has come, until it is finished."""
        self.journal.append(value_payload("cursor", id, self.codec.encode_plain(id, value)), id=id)

    def save_step(self, id: str, name: str, value: object) -> None:
        """Keep the result of a part of an item, until it is finished."""
        fragment = self.codec.encode_plain(id, value)
        self.journal.append(value_payload("step", id, fragment, name=name), id=id)

    def cursor(self, id: str) -> Any:
        """Return what `save_cursor` stored last, None if nothing."""
        if id not in self.ledger.cursors:
            return None

        return self.codec.decode_plain(
            self.journal.read(lambda ledger: ledger.cursors[id])["value"]
        )

    def step(self, id: str, name: str) -> Any:
        """Return what `save_step` stored; raises `KeyError`."""
        self.ledger.steps.get(id, {})[name]

        return self.codec.decode_plain(
            self.journal.read(lambda ledger: ledger.steps[id][name])["value"]
        )

    # Runs

    def begin_run(self) -> int:
        """Write the line that begins a run, and return its number."""
        header = self.journal.header
        number = self.ledger.runs[-1].number + 1 if self.ledger.runs else 1
        self.journal.append(
            payload(
                "run",
                number,
                at=self._now(),
                pid=os.getpid(),
                host=host_name(),
                boot=boot_id(),
                batch=header.batch,
                salt=header.salt,
                config=self.new_config,
            )
        )
        self.new_config = None

        return number

    def pause(self, limit: Limit, until: float, by: str) -> None:
        """Keep a limit over restarts; `until` in seconds since 1970, `by` as in `Pause`."""
        said = {
            "until": iso(until),
            "reason": self.redact(limit.reason),
            "scope": self.redact(limit.scope),
            "by": by,
        }
        self.journal.append(payload("pause", said, at=self._now()))

    def waited(self, seconds: float) -> None:
        """Say how long a pause took; it is over."""
        self.journal.append(payload("waited", round(seconds, 3), at=self._now()), sync=False)

    def stop(self, signal: str) -> bool:
        """Write down a stop request at once; False when a signal handler has to try again later."""
        return self.journal.append_now(payload("stop", signal, at=self._now()))

    def seal(self, reason: str) -> None:
        """End the run: what it finished is on the disk, and then that it ended."""
        number = self.ledger.runs[-1].number
        self.journal.flush()
        self.journal.append(payload("end", number, reason=reason, at=self._now()))
        self.journal.flush()

    # The whole file

    def close(self) -> None:
        """Free the checkpoint. A file that was written to ends with an `end` line."""
        end = None
        if (self.ledger.last >= 0 and not self.ledger.sealed) or self.new_config is not None:
            # No run has come by to bring a changed config into the file: this line does.
            end = payload("end", 0, reason="closed", at=self._now(), config=self.new_config)
        self.journal.close(end)

    def compact(self) -> None:
        """Rewrite the file without what is superseded."""
        self.journal.publish(self.ledger.needs)

    def compact_if_worth_it(self, size: int) -> None:
        """Compact when more than half of the file, and enough of it, says nothing any more."""
        if self.ledger.dead <= _COMPACT_ABOVE or self.ledger.dead * 2 <= size:
            return
        try:
            self.compact()
        except OSError as error:  # it only saves space, and may well be refused for want of it
            logger.warning("%s: it could not be compacted (%s)", self.path, error)

    def forget(self, ids: Iterable[str]) -> None:
        """Rewrite the file without anything about `ids`."""
        gone = frozenset(ids)

        def keep(offset: int, line: bytes) -> bool:
            if (
                kind_of(line) in ("id", "start", "back", "died", "retry", "cursor", "step")
                and id_of(line) in gone
            ):
                return False

            return self.ledger.needs(offset, line)

        self.journal.publish(keep)


def check_text(value: object, what: str) -> str:
    """Return a status or name; refuses what is not a word."""
    if not isinstance(value, str) or not value:
        raise UsageError(f"{what} takes a non-empty text, not {value!r}")

    return value
