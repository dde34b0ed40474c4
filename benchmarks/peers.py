"""The floors, lockstitch, and what else people use to keep results.

`save(path, items, fsync)` opens a store in the empty folder `path` and saves each item before it
draws the next. It is as durable as the table says: with `fsync`, a save that has returned survives
power loss; without, the death of the process. `pending(path, asked)` opens what `save` has left and
returns how many of the ids that are asked for it does not have. Each is set up as its own
documentation says.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import attrs

Items = Iterable[tuple[str, Any]]

#: The rows of these names are what the others are measured by.
FLOOR = {False: "os.write(json.dumps)", True: "os.write(json.dumps) + fdatasync"}


@attrs.frozen
class Peer:
    """One way to keep results. `most` is the number of items that it can save in a minute or so."""

    name: str
    save: Callable[[Path, Items, bool], None]
    pending: Callable[[Path, Iterable[str]], int] | None = None
    reading: str = ""  # what `pending` does
    needs: tuple[str, ...] = ()
    fsync: tuple[bool, ...] = (False, True)  # in which of the two tables it can be
    most: int = 1_000_000


def floor(path: Path, items: Items, fsync: bool) -> None:
    """The least that a journal does: a line of JSON, one system call, or two."""
    descriptor = os.open(path / "floor.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for id, value in items:
        line = json.dumps({"item_id": id, "status": "pass", "value": value}) + "\n"
        os.write(descriptor, line.encode())
        if fsync:
            os.fdatasync(descriptor)
    os.close(descriptor)


def floor_pending(path: Path, asked: Iterable[str]) -> int:
    """The obvious way to read those lines."""
    with open(path / "floor.jsonl", encoding="ascii") as lines:
        done = {json.loads(line)["item_id"] for line in lines}

    return sum(id not in done for id in asked)


def lockstitch(path: Path, items: Items, fsync: bool, serializer: Any = None) -> None:
    """As in a loop of one's own, without a batch."""
    from lockstitch import Checkpoint

    with Checkpoint(path / "run.jsonl", serializer=serializer, fsync=fsync) as checkpoint:
        for id, value in items:
            checkpoint.save(id, value, status="pass")


def lockstitch_orjson(path: Path, items: Items, fsync: bool) -> None:
    """The same, with the usual faster JSON."""
    import orjson

    lockstitch(path, items, fsync, serializer=orjson)


def lockstitch_pending(path: Path, asked: Iterable[str]) -> int:
    """Opened for writing, as a resumed run does: locked, synced, every line verified."""
    from lockstitch import Checkpoint

    with Checkpoint(path / "run.jsonl") as checkpoint:
        return sum(id not in checkpoint for id in asked)


def json_pending(path: Path, asked: Iterable[str]) -> int:
    """The obvious way to read the same file, which verifies nothing."""
    with open(path / "run.jsonl", encoding="ascii") as lines:
        done = {json.loads(line).get("id") for line in lines}

    return sum(id not in done for id in asked)


def sqlite(path: Path, items: Items, fsync: bool) -> None:
    """WAL, as sqlite.org/wal.html advises; NORMAL may lose the last commits to a power cut."""
    database = open_sqlite(path, fsync=fsync)
    for id, value in items:
        database.execute(INSERT, (id, "pass", json.dumps(value)))
    database.close()


INSERT = "INSERT OR REPLACE INTO results VALUES (?, ?, ?)"


def open_sqlite(path: Path, *, fsync: bool) -> sqlite3.Connection:
    """Open a database in which each statement is a transaction of its own."""
    database = sqlite3.connect(
        path / "results.sqlite", isolation_level=None, check_same_thread=False
    )
    database.execute("PRAGMA journal_mode = WAL")
    database.execute(f"PRAGMA synchronous = {'FULL' if fsync else 'NORMAL'}")
    database.execute("CREATE TABLE IF NOT EXISTS results (id TEXT PRIMARY KEY, status, value)")

    return database


def sqlite_pending(path: Path, asked: Iterable[str]) -> int:
    """One query for all ids is faster than one for each."""
    database = open_sqlite(path, fsync=False)
    done = {id for (id,) in database.execute("SELECT id FROM results")}
    database.close()

    return sum(id not in done for id in asked)


PEERS = (
    Peer(FLOOR[False], floor, floor_pending, "json.loads of plain lines", fsync=(False,)),
    Peer(FLOOR[True], floor, fsync=(True,)),
    Peer("lockstitch", lockstitch, lockstitch_pending, "lockstitch", needs=("lockstitch",)),
    Peer("lockstitch, serializer=orjson", lockstitch_orjson, needs=("lockstitch", "orjson")),
    Peer(
        "sqlite3, WAL, NORMAL",
        sqlite,
        sqlite_pending,
        "sqlite3, SELECT id into a set",
        fsync=(False,),
    ),
    Peer("sqlite3, WAL, FULL", sqlite, fsync=(True,)),
)
