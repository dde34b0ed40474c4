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
    """One way to keep results. `most`: with more items it would take minutes."""

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


def lmdb(path: Path, items: Items, fsync: bool) -> None:
    """A transaction an item. Without sync, but with no writable map, the system has every page."""
    import lmdb

    with lmdb.open(str(path), map_size=1 << 34, sync=fsync, metasync=fsync) as environment:
        for id, value in items:
            with environment.begin(write=True) as transaction:
                transaction.put(id.encode(), json.dumps(value).encode())


def lmdb_pending(path: Path, asked: Iterable[str]) -> int:
    """It is mapped, and sorted: asked for each id, it needs no set of them."""
    import lmdb

    with (
        lmdb.open(str(path), map_size=1 << 34, readonly=True) as environment,
        environment.begin(buffers=True) as transaction,
    ):
        return sum(transaction.get(id.encode()) is None for id in asked)


def diskcache(path: Path, items: Items, fsync: bool) -> None:
    """An Index, its form that never evicts; synchronous is its setting, and NORMAL its default."""
    from diskcache import Cache, Index

    cache = Cache(path, eviction_policy="none", sqlite_synchronous=2 if fsync else 1)
    index = Index.fromcache(cache)
    for id, value in items:
        index[id] = value
    cache.close()


def diskcache_pending(path: Path, asked: Iterable[str]) -> int:
    """Its keys at once, which is faster than `in` for each."""
    from diskcache import Index

    index = Index(str(path))
    done = set(index)
    index.cache.close()

    return sum(id not in done for id in asked)


def sqlitedict(path: Path, items: Items, _fsync: bool) -> None:
    """`commit()` waits for its thread; `autocommit=True` does not. It sets synchronous to OFF."""
    from sqlitedict import SqliteDict

    with SqliteDict(str(path / "results.sqlite"), journal_mode="WAL") as results:
        for id, value in items:
            results[id] = value
            results.commit()


def joblib_memory(path: Path, items: Items, _fsync: bool) -> None:
    """A cached function, called once an item; a temporary file and a rename, never synced."""
    from joblib import Memory

    cached = Memory(path, verbose=0).cache(_result_of, ignore=["value"])
    for id, value in items:
        cached(id, value)


def _result_of(id: str, value: Any) -> Any:
    """Stand for the work on an item."""
    del id

    return value


def batchledger(path: Path, items: Items, _fsync: bool) -> None:
    """It owns the loop, and says what it begins, too: two commits an item, always FULL."""
    from batchledger import Ledger

    results: dict[str, Any] = {}

    def asked() -> Iterable[str]:
        for id, value in items:
            results[id] = value
            yield id

    with Ledger(path / "ledger.sqlite", namespace="benchmark", version="1") as ledger:
        for _ in ledger.run(results.pop, asked(), key=str):
            continue


def dbos(path: Path, items: Items, _fsync: bool) -> None:
    """One workflow with a step an item, on SQLite in its default mode, which always syncs."""
    from dbos import DBOS

    step = DBOS.step()(_result_of)

    def batch() -> None:
        for id, value in items:
            step(id, value)

    workflow = DBOS.workflow()(batch)
    DBOS(
        config={
            "name": "benchmark",
            "system_database_url": f"sqlite:///{path}/dbos.sqlite",
            "log_level": "ERROR",
        }
    )
    DBOS.launch()
    workflow()
    DBOS.destroy()


def json_document(path: Path, items: Items, fsync: bool) -> None:
    """What many scripts do: all results in one document, written anew and renamed into place."""
    results: dict[str, Any] = {}
    folder = os.open(path, os.O_RDONLY)
    for id, value in items:
        results[id] = value
        with open(path / "results.tmp", "w", encoding="ascii") as document:
            json.dump(results, document)
            document.flush()
            if fsync:
                os.fsync(document.fileno())
        os.replace(path / "results.tmp", path / "results.json")
        if fsync:
            os.fsync(folder)
    os.close(folder)


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
    Peer("lmdb, transaction an item", lmdb, lmdb_pending, "lmdb, get an id", needs=("lmdb",)),
    Peer(
        "diskcache.Index",
        diskcache,
        diskcache_pending,
        "diskcache.Index, its keys into a set",
        needs=("diskcache",),
        most=100_000,
    ),
    Peer("sqlitedict", sqlitedict, needs=("sqlitedict",), fsync=(False,), most=10_000),
    Peer("joblib.Memory", joblib_memory, needs=("joblib",), fsync=(False,), most=1_000),
    Peer("batchledger", batchledger, needs=("batchledger",), fsync=(True,), most=10_000),
    Peer("DBOS on SQLite, step an item", dbos, needs=("dbos",), fsync=(True,), most=1_000),
    Peer("one JSON document, rewritten", json_document, most=1_000),
)
