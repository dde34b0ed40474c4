"""What a batch has done so far: a fold over the lines of its file. Pure.

Live and on resume, the same lines go through the same fold, so what a run believes and what the
next one will read cannot differ. Applying a line twice changes nothing (an interrupt may make
the writer repeat one), which is why everything here is keyed by id or offset and nothing counts.
Counts are taken when somebody asks.

A million ids cost a dictionary from id to one integer: offset in the file and status. Results stay
in the file.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from json.encoder import encode_basestring_ascii as quote
from typing import Any, NamedTuple

from ._records import (
    Malformed,
    id_of,
    instant,
    is_duration,
    kind_of,
    parse,
    seconds_of,
    status_of,
)

#: Bits of an index entry that hold the status; so many different ones fit in a file.
_STATUS_BITS = 16
_STATUS_MASK = (1 << _STATUS_BITS) - 1

#: The mean time of an item is taken from about so many lines of each block: to look for it in every
#: line would cost a tenth of the time that opening takes.
_SAMPLE = 512

#: A line, with the id and the status of an item's record, or the id in a `start` line, where none
#: of them needs to be unescaped; of any other line, nothing.
_ITEMS = re.compile(
    r'^(?:\{"(?:id":"([^"\\]*)","status":"([^"\\]+)"|start":"([^"\\]+)",))?.*\n', re.MULTILINE
)
_OTHER = ("", "", "")

_KINDS = frozenset(
    {"run", "retry", "back", "died", "cursor", "step", "pause", "waited", "stop", "end"}
)

#: Those of them that begin with the id of an item.
_OF_ITEMS = frozenset({"retry", "back", "died", "cursor", "step"})


class Run:
    """One run, as its `run` line and what followed tell."""

    def __init__(
        self,
        number: int,
        offset: int,
        at: datetime | None,
        boot: str,
        found: tuple[set[str], dict[str, int]],
    ) -> None:
        self.number = number
        self.offset = offset
        self.at = at
        self.boot = boot
        #: Suspects and crash counts as it found them; see `Ledger.after_death`.
        self.found = found
        #: A stop had been asked for: what died afterwards did not crash.
        self.stop: str = ""
        #: Why it ended; empty while it goes on, and for ever if its process died.
        self.end: str = ""
        self.end_at: datetime | None = None
        #: Items begun and not finished, with the offsets of their `start` lines.
        self.open: dict[str, int] = {}


class Pause(NamedTuple):
    """A wait for a limit."""

    until: datetime | None
    reason: str
    scope: str
    at: datetime | None
    #: Who said so: a "response", a "guard" (which can be asked again), or a "retry" that is due
    #: then (which holds up nothing else).
    by: str


class Ledger:
    """The state of a checkpoint. `apply` is called by one thread at a time."""

    def __init__(self) -> None:
        self.index: dict[str, int] = {}
        self.statuses: list[str] = []
        self.runs: list[Run] = []
        self.pauses: dict[int, Pause] = {}
        #: Seconds waited, by the offset of the line that says so.
        self.waited: dict[int, float] = {}
        #: Pending items that failed and will be tried again: attempts used, offset of the last one.
        self.retries: dict[str, tuple[int, int]] = {}
        #: When the next attempt is due, and when that was decided; aware UTC.
        self.due: dict[str, tuple[datetime, datetime]] = {}
        #: What unfinished items stored for themselves, by offset.
        self.cursors: dict[str, int] = {}
        self.steps: dict[str, dict[str, int]] = {}
        #: How often an item died with the process while it ran alone.
        self.crashes: dict[str, int] = {}
        #: Items that were running when a process died; each runs alone until it is finished.
        self.suspects: set[str] = set()
        #: The config as the latest line that brought one has it.
        self.config: dict[str, Any] | None = None
        #: Ids that any of the above says something about.
        self.unfinished: set[str] = set()
        #: Bytes of the lines that say nothing any more, as far as that is cheap to know.
        self.dead: int = 0
        self.last: int = -1
        #: Where the last record of an item is.
        self.last_item: int = -1
        #: Recorded seconds of the items, and of how many; a redone item counts each time.
        self.seconds: float = 0.0
        self.timed: int = 0
        #: Where the last `end` is.
        self._ended: int = -2
        #: The code of each status, by how it stands in a line.
        self._codes: dict[bytes, int] = {}
        #: Items that this run began and has not finished; nobody's before the first run.
        self._running: dict[str, int] = {}

    # Taking in

    def apply(self, offset: int, line: bytes) -> None:
        """Take in a valid line; twice changes nothing.

        Raises:
            Malformed: it does not say what its kind must say.
        """
        # `{`, `id`, `:`, the id, `,`, `status`, `:`, the status, and the rest
        parts = line.split(b'"', 8)
        if parts[1] == b"start" and parts[2] == b":" and b"\\" not in parts[3]:
            self._running[parts[3].decode("ascii", "surrogateescape")] = offset
            self.last = offset
            return
        if parts[1] != b"id":
            self._apply_other(offset, line)
            self.last = offset
            return
        code = self._codes.get(parts[7])
        id = parts[3].decode("ascii", "surrogateescape")
        if (
            code is None
            or parts[5] != b"status"
            or not parts[2] == parts[6] == b":"
            or parts[4] != b","
            or "\\" in id
        ):
            id, code = id_of(line), self._code(status_of(line))
        if id in self.index and offset > self.last:
            self.dead += len(line)  # of the new one, which is near enough
        if self._running and self._running.pop(id, None) is not None:
            self.dead += 64  # its `start` line
        if self.unfinished and id in self.unfinished:
            self._forget_attempts(id)
        self.index[id] = offset << _STATUS_BITS | code
        self.last = self.last_item = offset

    def apply_all(self, blocks: Iterable[tuple[Sequence[int], Sequence[bytes]]]) -> None:
        """As `apply`, for lines that nobody has taken in before, by the many.

        Raises:
            Malformed: a line does not say what its kind must say; the error's `offset` says where.
        """
        for offsets, lines in blocks:
            self._sample(lines)
            self._apply_block(offsets, lines)

    def _apply_block(self, offsets: Sequence[int], lines: Sequence[bytes]) -> None:
        # One expression takes all lines apart, and what nearly all of them say is done here: that
        # is a third of the time that `apply` takes for each.
        raw = b"".join(lines)
        found = _ITEMS.findall(raw.decode("ascii")) if raw.isascii() else [_OTHER] * len(lines)
        codes = {
            status: self._code(status)
            for status in dict.fromkeys(each[1] for each in found)
            if status
        }
        index, running, unfinished, last = self.index, self._running, self.unfinished, -1
        # What was there before, and how many items came since.
        known, finished = len(index), 0
        for offset, line, (id, status, begun) in zip(offsets, lines, found, strict=True):
            if status:
                if running and running.pop(id, None) is not None:
                    self.dead += 64  # its `start` line
                if unfinished and id in unfinished:
                    self._forget_attempts(id)
                index[id] = offset << _STATUS_BITS | codes[status]
                finished += 1
                last = offset
            elif begun:
                running[begun] = offset
            else:
                before = len(index)
                try:
                    self.apply(offset, line)
                except Malformed as error:
                    error.offset = offset
                    raise
                known += len(index) - before
                running = self._running
        self.last, self.last_item = offsets[-1], max(last, self.last_item)
        # A superseded record is about as long as the others.
        self.dead += (finished - (len(index) - known)) * (len(raw) // len(lines))

    def _sample(self, lines: Sequence[bytes]) -> None:
        """Take in the seconds of items: of one in a few for all, where there are many."""
        step = len(lines) // _SAMPLE | 1  # odd: every other line may be a `start`
        for line in lines[::step]:
            seconds = seconds_of(line) if line.startswith(b'{"id":') else None
            if seconds is not None:
                self.took(seconds, step)

    def took(self, seconds: float, times: int = 1) -> None:
        """Take in how long an item took, for the mean."""
        self.seconds += times * seconds
        self.timed += times

    def _code(self, status: str) -> int:
        """Return what stands for a status in the index."""
        if status not in self.statuses:
            if len(self.statuses) > _STATUS_MASK:
                raise Malformed(f"more than {_STATUS_MASK + 1} different statuses")
            self.statuses.append(status)
        code = self.statuses.index(status)
        self._codes[quote(status).encode("ascii")[1:-1]] = code

        return code

    def _forget_attempts(self, id: str) -> None:
        self.retries.pop(id, None)
        self.due.pop(id, None)
        self.cursors.pop(id, None)
        self.steps.pop(id, None)
        self.crashes.pop(id, None)
        self.suspects.discard(id)
        self.unfinished.discard(id)

    def _apply_other(self, offset: int, line: bytes) -> None:
        kind = kind_of(line)
        if kind == "start":
            self._running[id_of(line)] = offset
            return
        if kind in ("", "id"):
            raise Malformed("it has no kind" if not kind else "it has no id where one belongs")
        if kind not in _KINDS:
            return  # written by a newer version: kept in the file, and none of our business
        try:
            # The id is the one that `id_of` finds: a second key of that name must not be another.
            id = id_of(line) if kind in _OF_ITEMS else ""
            self._apply_parsed(kind, id, offset, parse(line))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise Malformed(f"its {kind} record is incomplete ({error!r})") from error

    def _apply_parsed(self, kind: str, id: str, offset: int, data: dict[str, Any]) -> None:
        match kind:
            case "run":
                self._apply_run(offset, data)
            case "retry":
                self._apply_retry(id, offset, data)
            case "cursor":
                self.cursors[id] = offset
                self.unfinished.add(id)
            case "step":
                self.steps.setdefault(id, {})[str(data["name"])] = offset
                self.unfinished.add(id)
            case "pause":
                self._apply_pause(offset, data)
            case "waited":
                if not is_duration(data["waited"]):
                    raise ValueError(data["waited"])
                self.waited[offset] = float(data["waited"])
            case "back" if self.runs:
                self.runs[-1].open.pop(id, None)
            case "died":
                self._apply_died(id, int(data["crashes"]))
            case "stop" if self.runs:
                self.runs[-1].stop = str(data["stop"])
            case "end":
                self._apply_end(offset, data)

    def _apply_run(self, offset: int, data: dict[str, Any]) -> None:
        if offset <= self.last:
            return
        # All that depends on the run before is in the run, which comes in with one step: if an
        # interrupt strikes behind it, the line is applied again and only the rest is.
        if not self.runs or self.runs[-1].offset != offset:
            number, at, boot = int(data["run"]), instant(data["at"]), str(data.get("boot", ""))
            self.runs.append(Run(number, offset, at, boot, self.after_death(boot)))
        run = self.runs[-1]
        self.suspects, self.crashes = run.found
        self.unfinished |= self.suspects | self.crashes.keys()
        self._running = run.open
        if "config" in data:
            self.config = dict(data["config"])

    def _apply_end(self, offset: int, data: dict[str, Any]) -> None:
        self._ended = offset
        if self.runs and data["end"] == self.runs[-1].number:
            self.runs[-1].end = str(data.get("reason", "complete"))
            self.runs[-1].end_at = instant(data.get("at"))
        if "config" in data:
            self.config = dict(data["config"])

    def _apply_retry(self, id: str, offset: int, data: dict[str, Any]) -> None:
        self.retries[id] = int(data["attempt"]), offset
        self.unfinished.add(id)
        due, at = instant(data["due"]), instant(data["at"])
        if due is not None and at is not None:
            self.due[id] = due, at
        if self.runs:
            self.runs[-1].open.pop(id, None)

    def _apply_died(self, id: str, crashes: int) -> None:
        self.suspects.add(id)
        self.unfinished.add(id)
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
    def sealed(self) -> bool:
        """True when the last line says that its writer ended in order."""
        return self.last == self._ended

    @property
    def mean_seconds(self) -> float | None:
        """Recorded seconds per item; None where no record tells."""
        return self.seconds / self.timed if self.timed else None

    def knows(self, id: str) -> bool:
        """Tell whether anything is stored about an item, finished or not."""
        return id in self.index or id in self.unfinished

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
            else {code for code, status in enumerate(self.statuses) if status in wanted}
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
