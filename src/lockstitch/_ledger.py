"""What a batch has done so far: a fold over the lines of its file. Pure.

Live and on resume, the same lines go through the same `apply`, so what a run believes and what
the next one will read cannot differ. Applying a line twice changes nothing (an interrupt may make
the writer repeat one), which is why everything here is keyed by id or offset and nothing counts.
Counts are taken when somebody asks.

A million ids cost a dictionary from id to one integer: offset in the file and status. Results stay
in the file.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import attrs

from ._records import Malformed, id_of, instant, kind_of, parse, seconds_of, status_of

#: Bits of an index entry that hold the status; so many different ones fit in a file.
_STATUS_BITS = 16
_STATUS_MASK = (1 << _STATUS_BITS) - 1

_KINDS = frozenset(
    {"run", "retry", "back", "died", "cursor", "step", "pause", "waited", "stop", "end"}
)


@attrs.define
class Run:
    """One run, as its `run` line and what followed tell."""

    number: int
    offset: int
    at: datetime | None
    boot: str
    #: A stop had been asked for: what died afterwards did not crash.
    stop: str = ""
    #: Why it ended; empty while it goes on, and for ever if its process died.
    end: str = ""
    end_at: datetime | None = None
    #: Items begun and not finished, with the offsets of their `start` lines.
    open: dict[str, int] = attrs.Factory(dict)


@attrs.frozen
class Pause:
    """A wait for a limit."""

    until: datetime | None
    reason: str
    scope: str
    at: datetime | None
    #: Who said so: a "response", a "guard" (which can be asked again), or a "retry" that is due
    #: then (which holds up nothing else).
    by: str


@attrs.define
class Ledger:
    """The state of a checkpoint. `apply` is called by one thread at a time."""

    index: dict[str, int] = attrs.Factory(dict)
    statuses: list[str] = attrs.Factory(list)
    runs: list[Run] = attrs.Factory(list)
    pauses: dict[int, Pause] = attrs.Factory(dict)
    #: Seconds waited, by the offset of the line that says so.
    waited: dict[int, float] = attrs.Factory(dict)
    #: Pending items that failed and will be tried again: attempts used, offset of the last one.
    retries: dict[str, tuple[int, int]] = attrs.Factory(dict)
    #: When the next attempt is due, and when that was decided; aware UTC.
    due: dict[str, tuple[datetime, datetime]] = attrs.Factory(dict)
    #: What unfinished items stored for themselves, by offset.
    cursors: dict[str, int] = attrs.Factory(dict)
    steps: dict[str, dict[str, int]] = attrs.Factory(dict)
    #: How often an item died with the process while it ran alone.
    crashes: dict[str, int] = attrs.Factory(dict)
    #: Items that were running when a process died; each runs alone until it is finished.
    suspects: set[str] = attrs.Factory(set)
    #: The config as the latest line that brought one has it.
    config: dict[str, Any] | None = None
    sealed: bool = False
    #: Bytes of the lines that say nothing any more, as far as that is cheap to know.
    dead: int = 0
    last: int = -1
    #: Where the last record of an item is.
    last_item: int = -1
    #: Recorded seconds of all items, and how many told theirs; a redone item counts each time.
    seconds: float = 0.0
    timed: int = 0
    _codes: dict[str, int] = attrs.field(init=False, factory=dict)

    # Taking in

    def apply(self, offset: int, line: bytes) -> None:
        """Take in the valid line at `offset`; twice changes nothing.

        Raises:
            Malformed: the line does not say what its kind must say.
        """
        kind = kind_of(line)
        again = offset <= self.last
        if kind == "id":
            self._apply_item(offset, id_of(line), status_of(line), 0 if again else len(line))
            if not again and (seconds := seconds_of(line)) is not None:
                self.seconds += seconds
                self.timed += 1
        elif kind == "start":
            id = id_of(line)
            if self.runs:
                self.runs[-1].open[id] = offset
        elif kind:
            self._apply_other(kind, offset, line)
        else:
            raise Malformed("it has no kind")
        self.sealed = kind == "end"
        self.last = offset

    def _apply_item(self, offset: int, id: str, status: str, size: int) -> None:
        code = self._codes.get(status)
        if code is None:
            if len(self.statuses) > _STATUS_MASK:
                raise Malformed(f"more than {_STATUS_MASK + 1} different statuses")
            code = self._codes[status] = len(self.statuses)
            self.statuses.append(status)
        if id in self.index:
            self.dead += size  # of the new one, which is near enough
        self.index[id] = offset << _STATUS_BITS | code
        self.last_item = offset
        if self.runs and self.runs[-1].open.pop(id, None) is not None:
            self.dead += 64  # its `start` line
        # Most items have none of these, and most batches not one such item.
        if self.retries or self.cursors or self.steps or self.crashes or self.suspects:
            self._forget_attempts(id)

    def _forget_attempts(self, id: str) -> None:
        self.retries.pop(id, None)
        self.due.pop(id, None)
        self.cursors.pop(id, None)
        self.steps.pop(id, None)
        self.crashes.pop(id, None)
        self.suspects.discard(id)

    def _apply_other(self, kind: str, offset: int, line: bytes) -> None:
        if kind not in _KINDS:
            return  # written by a newer version: kept in the file, and none of our business
        try:
            self._apply_parsed(kind, offset, parse(line))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Malformed(f"its {kind} record is incomplete ({error!r})") from error

    def _apply_parsed(self, kind: str, offset: int, data: dict[str, Any]) -> None:
        match kind:
            case "run":
                self._apply_run(offset, data)
            case "retry":
                self._apply_retry(offset, data)
            case "cursor":
                self.cursors[str(data["cursor"])] = offset
            case "step":
                self.steps.setdefault(str(data["step"]), {})[str(data["name"])] = offset
            case "pause":
                self._apply_pause(offset, data)
            case "waited":
                self.waited[offset] = float(data["waited"])
            case "back" if self.runs:
                self.runs[-1].open.pop(str(data["back"]), None)
            case "died":
                self._apply_died(str(data["died"]), int(data["crashes"]))
            case "stop" if self.runs:
                self.runs[-1].stop = str(data["stop"])
            case "end":
                self._apply_end(data)

    def _apply_run(self, offset: int, data: dict[str, Any]) -> None:
        if self.runs and self.runs[-1].offset == offset:
            return
        run = Run(int(data["run"]), offset, instant(data["at"]), str(data.get("boot", "")))
        self.suspects, self.crashes = self.after_death(run.boot)
        self.runs.append(run)
        if "config" in data:
            self.config = dict(data["config"])

    def _apply_end(self, data: dict[str, Any]) -> None:
        if self.runs and data["end"] == self.runs[-1].number:
            self.runs[-1].end = str(data.get("reason", "complete"))
            self.runs[-1].end_at = instant(data.get("at"))
        if "config" in data:
            self.config = dict(data["config"])

    def _apply_retry(self, offset: int, data: dict[str, Any]) -> None:
        id = str(data["retry"])
        self.retries[id] = int(data["attempt"]), offset
        due, at = instant(data["due"]), instant(data["at"])
        if due is not None and at is not None:
            self.due[id] = due, at
        if self.runs:
            self.runs[-1].open.pop(id, None)

    def _apply_died(self, id: str, crashes: int) -> None:
        self.suspects.add(id)
        if crashes:
            self.crashes[id] = crashes  # a number and not one more: applied twice, it is the same
        if self.runs:
            self.runs[-1].open.pop(id, None)

    def _apply_pause(self, offset: int, data: dict[str, Any]) -> None:
        said = data["pause"]
        self.pauses[offset] = Pause(
            instant(said.get("until")),
            str(said.get("reason", "")),
            str(said.get("scope", "")),
            instant(data.get("at")),
            str(said.get("by", "response")),
        )

    # Asking

    @property
    def mean_seconds(self) -> float | None:
        """Recorded seconds per item; None where no record tells."""
        return self.seconds / self.timed if self.timed else None

    def knows(self, id: str) -> bool:
        """Tell whether anything is stored about an item, finished or not."""
        return any(id in told for told in (self.index, self.retries, self.cursors, self.steps))

    def offset(self, id: str) -> int:
        """Return where the record of `id` is; raises `KeyError`."""
        return self.index[id] >> _STATUS_BITS

    def status(self, id: str) -> str | None:
        """Return the status of a finished item, None for one that is not finished."""
        entry = self.index.get(id)

        return None if entry is None else self.statuses[entry & _STATUS_MASK]

    def offsets(self, wanted: frozenset[str] | None) -> Iterator[tuple[str, int]]:
        """Yield id and offset of the finished items, in the order of the file."""
        codes = (
            None
            if wanted is None
            else {self._codes[each] for each in wanted if each in self._codes}
        )
        entries = [
            (entry >> _STATUS_BITS, id)
            for id, entry in list(self.index.items())
            if codes is None or entry & _STATUS_MASK in codes
        ]
        entries.sort()
        for offset, id in entries:
            yield id, offset

    def by_status(self) -> dict[str, int]:
        """Return how many finished items each status has."""
        codes = Counter(entry & _STATUS_MASK for entry in list(self.index.values()))

        return {self.statuses[code]: count for code, count in sorted(codes.items())}

    def run_at(self, offset: int) -> int:
        """Return the number of the run that wrote what is at `offset`; 0 for none."""
        run = self._run_of(offset)

        return 0 if run is None else run.number

    @property
    def in_doubt(self) -> dict[str, int]:
        """Items that the last run began and did not finish, if it died; id to offset."""
        if not self.runs or self.runs[-1].end:
            return {}

        return self.runs[-1].open

    def after_death(self, boot: str) -> tuple[set[str], dict[str, int]]:
        """Return suspects and crash counts as a run that begins now, in `boot`, finds them.

        What the last run left open died with its process. That counts as a crash of the item only
        if it ran alone, no stop had been asked for, and the machine has not been started since.
        """
        died, run = self.in_doubt, self.runs[-1] if self.runs else None
        if run is None or not died or run.stop or (run.boot and boot and run.boot != boot):
            return self.suspects, self.crashes
        crashes = dict(self.crashes)
        if len(died) == 1:
            crashes.update((id, crashes.get(id, 0) + 1) for id in died)

        return self.suspects | died.keys(), crashes

    @property
    def parked(self) -> Pause | None:
        """The limit that ended the last run, if one did."""
        if not self.runs or self.runs[-1].end != "limit" or not self.pauses:
            return None

        return self.pauses[max(self.pauses)]

    @property
    def pending_limit(self) -> Pause | None:
        """The last limit, unless it was waited out, or something was finished after it."""
        if not self.pauses:
            return None
        at = max(self.pauses)
        over = max(self.waited, default=-1) > at or self.last_item > at

        return None if over else self.pauses[at]

    def needs(self, offset: int, line: bytes) -> bool:
        """Tell whether a line still says something; a compaction drops the others."""
        kind = kind_of(line)
        if kind == "id":
            return self.offset(id_of(line)) == offset
        if kind == "start":
            # Those of runs that died tell how often an item took the process with it.
            id, run = id_of(line), self._run_of(offset)
            return run is not None and not run.end and run.open.get(id) == offset
        if kind == "back":
            return False
        if kind == "died":
            return id_of(line) in self.suspects
        if kind == "retry":
            return self.retries.get(id_of(line), (0, -1))[1] == offset
        if kind == "cursor":
            return self.cursors.get(id_of(line)) == offset
        if kind == "step":
            return offset in self.steps.get(id_of(line), {}).values()

        return True

    def _run_of(self, offset: int) -> Run | None:
        position = bisect_right(self.runs, offset, key=lambda run: run.offset)

        return self.runs[position - 1] if position else None
