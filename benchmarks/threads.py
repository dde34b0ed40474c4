"""Many threads that save at once, with fsync on."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ._case import Figures, quiet, records
from ._measure import Case, Rig, Rounds, ratios, values
from .peers import INSERT, open_sqlite
from .report import Budget, Findings, Plot, Table

#: Saves in one measurement; all threads together.
SAVES = 4_096

THREADS = (1, 8, 32)

#: Seconds that an item takes before it is saved, in which other threads can run.
WORK = (0.0, 0.002)

FLOOR = "a lock around write + fdatasync"

Save = Callable[[str, Any], None]


@contextmanager
def _lockstitch(path: Path) -> Iterator[Save]:
    from lockstitch import Checkpoint

    with Checkpoint(path / "run.jsonl") as checkpoint:
        yield checkpoint.save


@contextmanager
def _locked_write(path: Path) -> Iterator[Save]:
    descriptor = os.open(path / "floor.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    lock = threading.Lock()

    def save(id: str, value: Any) -> None:
        line = json.dumps({"item_id": id, "status": "pass", "value": value}) + "\n"
        with lock:
            os.write(descriptor, line.encode())
            os.fdatasync(descriptor)

    yield save
    os.close(descriptor)


@contextmanager
def _sqlite(path: Path) -> Iterator[Save]:
    """One connection and a lock: SQLite has one writer at a time, and so no thread polls for it."""
    lock = threading.Lock()
    with contextlib.closing(open_sqlite(path, fsync=True)) as database:

        def save(id: str, value: Any) -> None:
            with lock:
                database.execute(INSERT, (id, "pass", json.dumps(value)))

        yield save


@contextmanager
def _sqlite_grouped(path: Path) -> Iterator[Save]:
    """Whoever gets the lock commits what all others have queued: what a careful caller writes."""
    lock = threading.Lock()
    queued: list[tuple[tuple[str, str, str], threading.Event]] = []
    with contextlib.closing(open_sqlite(path, fsync=True)) as database:

        def save(id: str, value: Any) -> None:
            saved = threading.Event()
            queued.append(((id, "pass", json.dumps(value)), saved))
            with lock:
                if saved.is_set():
                    return
                taken = queued[:]
                del queued[: len(taken)]
                database.execute("BEGIN")
                database.executemany(INSERT, [row for row, _ in taken])
                database.execute("COMMIT")
                for _, event in taken:
                    event.set()

        yield save


@contextmanager
def _nothing(_: Path) -> Iterator[Save]:
    yield lambda _id, _value: None


WAYS = {
    FLOOR: _locked_write,
    "lockstitch": _lockstitch,
    "sqlite3, WAL, FULL, one connection and a lock": _sqlite,
    "sqlite3, WAL, FULL, group commit by the caller": _sqlite_grouped,
    "nothing is saved (the threads themselves)": _nothing,
}


def save(folder: Path, way: str, threads: int, work: float, saves: int) -> Figures:
    """Return the saves in a second of so many threads, from their common start to the last end."""
    share = max(1, saves // threads)
    shares = [list(records(share, number * share)) for number in range(threads)]
    started = threading.Barrier(threads + 1)
    ended: list[int] = []

    with WAYS[way](folder) as save_one:

        def run(items: list[tuple[str, Any]]) -> None:
            started.wait()
            for id, value in items:
                if work:
                    time.sleep(work)
                save_one(id, value)
            ended.append(threading.get_ident())

        workers = [threading.Thread(target=run, args=(items,)) for items in shares]
        quiet()
        for worker in workers:
            worker.start()
        started.wait()
        start = time.perf_counter()
        for worker in workers:
            worker.join()
        seconds = time.perf_counter() - start
    if len(ended) < threads:
        raise RuntimeError("a thread failed; see above")

    return {"saves_s": share * threads / seconds}


def measure(rig: Rig) -> Findings:
    """Save with 1, 8 and 32 threads, with no work and with a little."""
    (saves,) = rig.sizes(SAVES)
    counts = rig.sizes(*THREADS)
    findings = Findings()
    for work in WORK:
        found = {threads: _rounds(rig, threads, work, saves) for threads in counts}
        findings.tables.append(_table(found, work))
        findings.plots.append(_plot(found, work))
        if not work:
            findings.budgets.extend(_budgets(found.get(THREADS[-1])))

    return findings


def _rounds(rig: Rig, threads: int, work: float, saves: int) -> Rounds:
    # With work, a thread does at most 1 / work items in a second.
    saves = min(saves, round(threads / work)) if work else saves
    arguments = {"threads": threads, "work": work, "saves": saves}
    cases = [Case(way, "threads:save", {"way": way, **arguments}) for way in WAYS]

    return rig.rounds_of(f"Threads, {threads}, {work * 1000:g} ms of work", cases)


def _table(found: dict[int, Rounds], work: float) -> Table:
    rows = [
        (
            way,
            *(f"{ratios(rounds[way], rounds[FLOOR], 'saves_s'):.2f}" for rounds in found.values()),
            f"{values(found[max(found)][way], 'saves_s').median:,.0f}",
        )
        for way in WAYS
    ]
    head = (
        "way",
        *(f"{count} thread{'s' * (count > 1)}, ratio" for count in found),
        f"saves/s with {max(found)}",
    )

    return Table(f"Threads, fsync on, {work * 1000:g} ms of work an item", head, rows)


def _plot(found: dict[int, Rounds], work: float) -> Plot:
    lines = {
        way: {count: values(rounds[way], "saves_s").median for count, rounds in found.items()}
        for way in WAYS
    }

    return Plot(f"threads, {work * 1000:g} ms of work an item", "saves a second", lines)


def _budgets(rounds: Rounds | None) -> list[Budget]:
    def ratio(floor: str) -> float | None:
        if rounds is None:
            return None

        return ratios(rounds["lockstitch"], rounds[floor], "saves_s").median

    return [
        Budget(
            "32 threads, saves/s, to a lock around write + fdatasync",
            4,
            ratio(FLOOR),
            at_most=False,
        ),
        Budget(
            "32 threads, saves/s, to sqlite3 FULL, one connection and a lock",
            4,
            ratio("sqlite3, WAL, FULL, one connection and a lock"),
            at_most=False,
        ),
    ]
