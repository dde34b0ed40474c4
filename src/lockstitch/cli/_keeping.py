"""`repair`, `compact`, `forget`, `adopt` and `clean`: they change a checkpoint as a whole."""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

from lockstitch._checkpoint import Checkpoint
from lockstitch._errors import UsageError
from lockstitch._files import discard
from lockstitch._journal import current_storage

from ._printing import complain, count, listed, say
from ._stored import existing

#: What lockstitch leaves beside a checkpoint, by what its name has after the checkpoint's. Strict:
#: a file that somebody else named is none of ours to delete.
_ASIDE = re.compile(
    r"\.(old-\d+|(torn|damaged)-\d{8}T\d{6}\.\d{3}Z-[0-9a-f]{4}|tmp-\d+-[0-9a-f]{8}|lock)"
)


class BadInput(Exception):
    """A file that was given to be read does not hold what it must."""


def repair(args: argparse.Namespace) -> int:
    """Keep every intact record, put the rest aside."""
    for line in str(Checkpoint.repair(args.checkpoint)).split("\n"):
        say(line)

    return 0


def compact(args: argparse.Namespace) -> int:
    """Rewrite the file without what is superseded."""
    with existing(args.checkpoint) as checkpoint:
        before = os.path.getsize(checkpoint.path)
        checkpoint.compact()
        after = os.path.getsize(checkpoint.path)
    say(f"{checkpoint.path}: {before:,} bytes, now {after:,}")

    return 0


def forget(args: argparse.Namespace) -> int:
    """Drop what is known of some items; 1 when one of them was not there."""
    if not args.ids and args.status is None:
        raise UsageError("forget what? Name ids, or a status with --status")
    with existing(args.checkpoint) as checkpoint:
        unknown = [id for id in args.ids if id not in checkpoint]
        ids = set(args.ids)
        if args.status is not None:
            ids.update(record.id for record in checkpoint.records(status=args.status))
        gone = checkpoint.forget(ids)
    say(f"{checkpoint.path}: forgot {count(gone, 'item')}; the next run works on them again")
    if unknown:
        complain(f"{checkpoint.path} has no record of {listed(unknown, 5)}")

    return 1 if unknown else 0


def adopt(args: argparse.Namespace) -> int:
    """Take in results from before."""
    rows = _csv_rows if args.file.lower().endswith(".csv") else _json_rows
    if not os.path.exists(args.file):  # before a checkpoint is made for nothing
        raise FileNotFoundError(None, "no such file", args.file)
    try:
        new = Checkpoint.adopt(
            args.checkpoint, rows(args.file, args.key), key=args.key, status=args.status
        )
    except UnicodeDecodeError as error:
        raise BadInput(f"{args.file} is not UTF-8: {error}") from None
    say(f"{os.path.realpath(args.checkpoint)}: took in {count(new, 'new record')} of {args.file}")

    return 0


def _json_rows(path: str, key: str) -> Iterator[Any]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise BadInput(f"{path}, line {number} is not JSON: {error}") from None
            if not isinstance(row, dict) or key not in row:
                raise BadInput(f"{path}, line {number} is not an object with the field {key!r}")
            yield row


def _csv_rows(path: str, key: str) -> Iterator[dict[str, str]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        if key not in (reader.fieldnames or ()):
            raise BadInput(f"{path} has no column {key!r}; it has {reader.fieldnames}")
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise BadInput(
                        f"{path}, line {reader.line_num} has not as many fields as the first line"
                    )
                yield row
        except csv.Error as error:
            raise BadInput(f"{path}, the row from line {reader.line_num + 1} on: {error}") from None


def clean(args: argparse.Namespace) -> int:
    """Delete what lies beside a checkpoint, after asking; 1 when the answer is no."""
    path, storage = os.path.realpath(args.checkpoint), current_storage()
    lock = storage.lock(path)
    found = [each for each in storage.files.siblings(path) if _ASIDE.fullmatch(each[len(path) :])]
    there = os.path.isfile(path)
    if not found and not there:
        raise FileNotFoundError(None, "no such checkpoint, and nothing beside it", path)
    lock.acquire()  # a live run holds it, and is refused here
    try:
        doomed = [path] * (there and args.all) + _in_order(found)
        if not doomed:
            say(f"{path}: nothing lies beside it")
            return 0
        if not args.yes and not _agreed(doomed):
            say("nothing was deleted")
            return 1
        for each in doomed:
            discard(storage.files, each)
    finally:
        lock.release()
    say(f"deleted {count(len(doomed), 'file')}")

    return 0


def _in_order(found: list[str]) -> list[str]:
    """Return what is to be deleted, the lock file last: it is held until the rest is gone."""
    locks = [each for each in found if each.endswith(".lock")]
    rest = sorted(set(found) - set(locks))

    return rest if os.name == "nt" else rest + locks  # there, releasing it deletes it


def _agreed(doomed: list[str]) -> bool:
    for each in doomed:
        say(f"  {each}")
    complain(f"delete {count(len(doomed), 'file')}? Type yes to do it.")

    return sys.stdin.readline().strip().lower() in ("y", "yes")
