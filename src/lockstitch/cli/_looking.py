"""`show`, `export` and `verify`: they read, and never write into a checkpoint."""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TextIO

from lockstitch._checkpoint import Checkpoint
from lockstitch._errors import UsageError
from lockstitch._ledger import Ledger
from lockstitch._model import Record, duration
from lockstitch._printable import printable
from lockstitch._snapshot import Snapshot
from lockstitch._store import records, stats

from ._printing import count, listed, say
from ._stored import CODEC, snapshot

_COLUMNS = (
    "id",
    "status",
    "result",
    "error_type",
    "error_message",
    "attempt",
    "run",
    "seconds",
    "at",
)

#: Kinds of errors that `show --errors` prints; a checkpoint may hold a million different messages.
_MOST_KINDS = 20


def show(args: argparse.Namespace) -> int:
    """Print what a checkpoint holds and how it came to it."""
    with snapshot(args.checkpoint) as seen:
        for line in _about(seen):
            say(line)
        if args.errors:
            for line in _errors(seen):
                say(line)

    return 0


def _about(seen: Snapshot[Ledger]) -> Iterator[str]:
    ledger, history = seen.fold, stats(seen)
    each = ", ".join(f"{number:,} {status}" for status, number in history.by_status.items())
    yield seen.path
    yield f"  {count(len(ledger.index), 'item')} finished" + (f": {each}" if each else "")
    began = "" if history.started_at is None else f" since {_moment(history.started_at)}"
    yield f"  {count(history.run_count, 'run')}{began}" + (
        f", {count(history.pause_count, 'pause')}, waited {duration(history.total_wait_seconds)}"
        if history.pause_count
        else ""
    )
    if history.completed_at is not None:
        yield f"  last run: complete at {_moment(history.completed_at)}"
    elif history.stop_reason is not None:
        yield f"  last run: ended by {history.stop_reason!r}, not complete"
    elif history.run_count:
        yield "  last run: has no end; it is going on, or its process died"
    if ledger.parked is not None and history.parked_until is not None:
        why = f" ({ledger.parked.reason})" if ledger.parked.reason else ""
        yield f"  parked until {_moment(history.parked_until)}{why}"
    if ledger.retries:
        yield f"  to be tried again, {len(ledger.retries):,}: {listed(ledger.retries, 5)}"
    if ledger.in_doubt:
        yield f"  in doubt (begun, not finished): {listed(ledger.in_doubt, 5)}"
    if seen.torn:
        yield f"  the last {count(seen.torn, 'byte')} are no whole line (yet)"


def _errors(seen: Snapshot[Ledger]) -> Iterator[str]:
    """Yield the errors by type and first line of the message, the most frequent first."""
    kinds: dict[str, tuple[int, list[str]]] = {}
    for record in records(seen, CODEC, frozenset(["error", "quarantined"])):
        kind = record.error.summary if record.error is not None else record.status
        number, examples = kinds.get(kind, (0, []))
        kinds[kind] = number + 1, examples if len(examples) == 3 else [*examples, record.id]
    if not kinds:
        yield "  no errors"
    ranked = sorted(kinds.items(), key=lambda kind: -kind[1][0])
    for kind, (number, examples) in ranked[:_MOST_KINDS]:
        yield f"  {number:,} x {kind}"
        yield f"      {', '.join(map(repr, examples))}{', …' if number > len(examples) else ''}"
    if len(ranked) > _MOST_KINDS:
        yield f"  and {len(ranked) - _MOST_KINDS:,} more kinds; `lockstitch export` has them all"


def _moment(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def export(args: argparse.Namespace) -> int:
    """Write one row per record."""
    with snapshot(args.checkpoint) as seen, _output(args.output, seen.path) as stream:
        rows = map(_row, records(seen, CODEC, None))
        if args.to == "csv":
            _write_csv(stream, rows, raw=args.raw)
        elif args.to == "json":
            _write_json(stream, rows)
        else:
            stream.writelines(f"{_json(row)}\n" for row in rows)

    return 0


@contextmanager
def _output(path: str | None, checkpoint: str) -> Iterator[TextIO]:
    if path is None or path == "-":
        yield sys.stdout
        return
    if os.path.exists(path) and os.path.samefile(path, checkpoint):
        raise UsageError(f"{path} is the checkpoint itself; export into another file")
    with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        yield file


def _row(record: Record) -> dict[str, object]:
    error = record.error
    values = (
        record.id,
        record.status,
        record.result,
        None if error is None else error.type,
        None if error is None else error.message,
        record.attempt,
        record.run,
        record.seconds,
        None if record.at is None else record.at.isoformat(),
    )

    return dict(zip(_COLUMNS, values, strict=True))


def _json(value: object) -> str:
    # ASCII, so every control but one is an escape already.
    return json.dumps(value).replace("\x7f", "\\u007f")


def _write_json(stream: TextIO, rows: Iterable[dict[str, object]]) -> None:
    between = "[\n"
    for row in rows:
        stream.write(f"{between}{_json(row)}")
        between = ",\n"
    stream.write("[]\n" if between == "[\n" else "\n]\n")


def _write_csv(stream: TextIO, rows: Iterable[dict[str, object]], *, raw: bool) -> None:
    shown = str if raw else printable
    encoding = stream.encoding or "utf-8"
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in rows:
        row["result"] = _json(row["result"])
        writer.writerow(
            ""
            if value is None
            else shown(str(value)).encode(encoding, "backslashreplace").decode(encoding)
            for value in row.values()
        )


def verify(args: argparse.Namespace) -> int:
    """Say what is wrong with a file; 1 when stored bytes are damaged."""
    found = Checkpoint.verify(args.checkpoint)
    for line in str(found).split("\n"):
        say(line)

    return 0 if found.ok else 1
