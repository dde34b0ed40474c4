"""A job of the user's own, killed in every place there is, and started again.

What a job has begun and stored is read from what it writes into its checkpoints, so it is judged
as it is: nothing is counted in it, nothing is put into it. It dies before every call that changes
something on the disk and in the middle of every write. That is a death before, inside and after
each save, for "after the write, before the sync" is before the sync.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import attrs

from lockstitch._errors import UsageError
from lockstitch._journal import Storage
from lockstitch._ledger import Ledger
from lockstitch._records import error_from, id_of, kind_of
from lockstitch._snapshot import Snapshot

from ._dying import DyingFiles, SimulatedCrash, dying
from ._memory import MemoryFiles

#: An item, by the checkpoint that it is in.
Item = tuple[str, str]


def crash_everywhere(job: Callable[[], object]) -> int:
    """Kill a job in every place where it can die, start it again, and see that it goes on.

    `job` is called without arguments, and does the whole work. Its checkpoints must be made inside
    of it, and are kept in memory. It may return what it likes, and end with `sys.exit`. Returns how
    often it was killed: some five times for each item, so a handful of items will do.

    Raises:
        AssertionError: after a death, the next start lost a stored record, worked again on an
            item that had one, failed, or came to other records or another exit code than a job
            that nobody killed. The message says what, and where it was killed. Items whose record
            is an error may be worked on again: that is what `redo="error"` is for.
        UsageError: the job wrote no checkpoint, or does not do the same each time it is called.
        Exception: whatever the job raises when nobody kills it.
    """
    steps, whole = _undisturbed(job)
    again, other = _undisturbed(job)
    if differences := _differences(whole, other):
        raise UsageError(
            "the job does not do the same each time, so nothing can be told from a comparison: "
            f"{differences[0]}. Give it items, ids and answers that do not change"
        )
    deaths = 0
    for moment in _moments(max(steps, again, key=len)):
        deaths += _survives(job, moment, whole)

    return deaths


@attrs.frozen
class _Moment:
    """When to die: before the step of this number, or after so many of the bytes it writes."""

    step: int
    through: int


def _moments(steps: list[int]) -> Iterator[_Moment]:
    for step, length in enumerate(steps):
        yield _Moment(step, 0)
        if length > 1:
            yield _Moment(step, length // 2)
    yield _Moment(len(steps), 0)  # it is done already


@attrs.frozen
class _End:
    """What a job has come to."""

    #: What it left with `sys.exit`; None if it just returned.
    code: object
    records: dict[Item, tuple[str, Any, str]]


class _Witness(MemoryFiles):
    """Files in memory that remember which items were begun or stored, in which checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self._journals: dict[int, str] = {}
        self.paths: dict[str, None] = {}
        self.work: list[Item] = []
        self.written = 0
        self.last = b""

    def open_append(self, path: str) -> int:
        fd = super().open_append(path)
        self._journals[fd] = path
        self.paths[path] = None

        return fd

    def write(self, fd: int, data: bytes | memoryview) -> int:
        # Only what is appended: a file that is written anew says again what the old one said.
        path = self._journals.get(fd)
        *lines, torn = bytes(data).split(b"\n")
        if path is not None:
            self.work.extend((path, id_of(x)) for x in lines if kind_of(x) in ("start", "id"))
        self.written += len(data)
        self.last = torn or (lines[-1] if lines else b"")

        return super().write(fd, data)

    def records(self) -> dict[Item, tuple[str, Any, str]]:
        """Return status, result as stored, and type of error, of every record there is."""
        found = {}
        for path in self.paths:
            try:
                seen = Snapshot(path, self, Ledger)
            except FileNotFoundError:  # it has been renamed since
                continue
            for id, offset in seen.fold.offsets(None):
                data = seen.read(lambda _, offset=offset: offset)  # type: ignore[misc]
                error = error_from(data.get("error"))
                kind = "" if error is None else error.type
                found[path, id] = (str(data["status"]), data.get("result"), kind)
            seen.close()

        return found


def _undisturbed(job: Callable[[], object]) -> tuple[list[int], _End]:
    """Run a job to its end; return the bytes of each step, and what it came to."""
    files, steps = _Witness(), list[int]()
    with dying(Storage(files, files.lock), steps.append):
        code = _ending(job)
    if not steps:
        raise UsageError(
            "the job wrote no checkpoint that could be watched: make it inside of the job, each "
            "time. A decorated function makes its own when it is decorated, so decorate inside, or "
            "run the script with runpy.run_path"
        )

    return steps, _End(code, files.records())


def _ending(job: Callable[[], object]) -> object:
    try:
        job()
    except SystemExit as end:
        return end.code or 0

    return 0


def _survives(job: Callable[[], object], moment: _Moment, whole: _End) -> bool:
    """Kill a job at one moment and start it again; False if it came to its end before."""
    files = _Witness()
    storage = Storage(files, files.lock)
    taken = iter(range(1 << 62))

    def fate(_length: int) -> int | None:
        return moment.through if next(taken) == moment.step else None

    with dying(storage, fate) as first:
        _first_start(job, first)
        killed = first.dead
    where = f"killed {_place(files, moment)}" if killed else "started once more when it was done"
    stored, begun = files.records(), len(files.work)
    try:
        with dying(storage, lambda _length: None):
            code = _ending(job)
    except SimulatedCrash:
        raise UsageError(
            "the job goes on with a checkpoint of its first start, which a new process would not "
            "have: make it inside of the job"
        ) from None
    except Exception as error:
        raise AssertionError(
            f"{where}, the next start failed: {type(error).__name__}: {error}"
        ) from error
    wrong = [
        *_doubled(stored, files.work[begun:]),
        *_lost(stored, files.records()),
        *_differences(whole, _End(code, files.records())),
    ]
    if wrong:
        raise AssertionError(f"{where}, the next start went wrong:\n  " + "\n  ".join(wrong))

    return killed


def _first_start(job: Callable[[], object], files: DyingFiles) -> None:
    try:
        _ending(job)
    except BaseException as error:
        # What comes of a death may wear another coat: an ExceptionGroup, an error of the job's.
        if not files.dead or isinstance(error, KeyboardInterrupt):
            raise


def _place(files: _Witness, moment: _Moment) -> str:
    if not files.written:
        return "before anything was written"
    name = os.path.basename(next(iter(files.paths), "the checkpoint"))
    shown = files.last[:60].decode("ascii", "backslashreplace")
    how = "in the middle of" if moment.through else "after"

    return f"{how} writing {shown!r} (step {moment.step}, {name}, {files.written} bytes written)"


def _doubled(stored: dict[Item, tuple[str, Any, str]], work: list[Item]) -> Iterator[str]:
    for item in dict.fromkeys(work):
        if item in stored and stored[item][0] not in ("error", "quarantined"):
            yield f"paid twice: {_name(item)} had its record, and was begun or stored again"


def _lost(stored: dict[Item, Any], after: dict[Item, Any]) -> Iterator[str]:
    for item in stored:
        if item not in after:
            yield f"lost: {_name(item)} had its record, and has none any more"


def _differences(whole: _End, other: _End) -> list[str]:
    """Return what differs from a job that nobody killed."""
    found = []
    for item in [*whole.records, *(item for item in other.records if item not in whole.records)]:
        expected, got = whole.records.get(item), other.records.get(item)
        if got is None:
            found.append(f"missing: {_name(item)} has no record in the end")
        elif expected is None:
            found.append(f"invented: {_name(item)} has a record that it does not have undisturbed")
        elif expected != got:
            found.append(
                f"different: {_name(item)} is {_short(got)}, undisturbed {_short(expected)}"
            )
    if whole.code != other.code:
        found.append(f"it ended with exit code {other.code!r}, undisturbed with {whole.code!r}")

    return found


def _name(item: Item) -> str:
    return f"{item[1]!r} in {os.path.basename(item[0])}"


def _short(record: tuple[str, Any, str]) -> str:
    text = " ".join(str(part) for part in record if part not in (None, ""))

    return text if len(text) <= 80 else f"{text[:79]}…"
