"""What the loop itself costs: items that do nothing, fsync off."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ._case import Figures, ids, peak_mib, quiet, resident_mib
from ._measure import Case, Rig, Rounds, ratios, values
from .report import Budget, Findings, Table

ITEMS = 20_000

BARE = "a bare loop"
FLOOR = "a loop with os.write(id)"


def _nothing(_: str) -> None:
    """Stands for an item."""


async def _nothing_async(_: str) -> None:
    """Stands for an item of asyncio."""


def _bare(_: Path, items: Iterable[str]) -> None:
    for item in items:
        _nothing(item)


def _write(path: Path, items: Iterable[str]) -> None:
    descriptor = os.open(path / "floor.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for item in items:
        _nothing(item)
        os.write(descriptor, f'{{"id": "{item}"}}\n'.encode())
    os.close(descriptor)


def _batch(path: Path, items: Iterable[str]) -> Any:
    from lockstitch import Checkpoint, ResumableBatch

    return ResumableBatch(Checkpoint(path / "run.jsonl", fsync=False), items)


def _loop(path: Path, items: Iterable[str]) -> None:
    with _batch(path, items) as batch:
        for item in batch:
            _nothing(item)
            batch.save(item)


def _run(path: Path, items: Iterable[str]) -> None:
    with _batch(path, items) as batch:
        batch.run(_nothing)


def _threads(path: Path, items: Iterable[str]) -> None:
    with _batch(path, items) as batch:
        batch.run(_nothing, concurrency=8)


def _asyncio(path: Path, items: Iterable[str]) -> None:
    async def run() -> None:
        with _batch(path, items) as batch:
            await batch.arun(_nothing_async, concurrency=50)

    asyncio.run(run())


def _saves(path: Path, items: Iterable[str]) -> None:
    from lockstitch import Checkpoint

    with Checkpoint(path / "run.jsonl", fsync=False) as checkpoint:
        for item in items:
            checkpoint.save(item)


WAYS: dict[str, Callable[[Path, Iterable[str]], None]] = {
    BARE: _bare,
    FLOOR: _write,
    "Checkpoint.save": _saves,
    "for item in batch: batch.save": _loop,
    "batch.run": _run,
    "batch.run, concurrency=8": _threads,
    "batch.arun, concurrency=50": _asyncio,
}


def loop(folder: Path, way: str, count: int, store: str | None = None) -> Figures:
    """Run `count` items that do nothing, opening, sealing and closing included."""
    import lockstitch  # noqa: F401

    quiet()
    before = resident_mib()
    start = time.perf_counter()
    WAYS[way](folder if store is None else Path(store), ids(count))
    seconds = time.perf_counter() - start

    return {"us": seconds / count * 1e6, "mib": peak_mib() - before}


def measure(rig: Rig) -> Findings:
    """Run each kind of loop over items that are new, and over items that are all finished."""
    (count,) = rig.sizes(ITEMS)
    (million,) = rig.sizes(1_000_000)
    new = rig.rounds_of(f"Overhead, {count:,} items", _cases(WAYS, count))
    with tempfile.TemporaryDirectory(dir=rig.scratch) as store:
        rig.once(
            Case(
                "fill",
                "overhead:loop",
                {"way": "Checkpoint.save", "count": million, "store": store},
            )
        )
        skipping = _cases(
            (BARE, "for item in batch: batch.save", "batch.run"), million, store=store
        )
        skipped = rig.rounds_of(f"Overhead, {million:,} finished items", skipping)
    memory = rig.rounds_of(
        f"Overhead, memory of {million:,} items",
        _cases(("Checkpoint.save", "batch.run"), million),
        times=0.2,
    )

    return Findings(
        [
            _table(f"Loops, no-op items, fsync off, {count:,} items", new, FLOOR),
            _table(
                f"Skipping {million:,} finished items on resume, opening included", skipped, BARE
            ),
        ],
        [*_budgets(new, skipped), _growth(memory, million)],
    )


def _cases(ways: Iterable[str], count: int, **more: Any) -> list[Case]:
    return [Case(way, "overhead:loop", {"way": way, "count": count, **more}) for way in ways]


def _over_bare(rounds: Rounds, way: str) -> float:
    return values(rounds[way], "us").median - values(rounds[BARE], "us").median


def _table(title: str, rounds: Rounds, floor: str) -> Table:
    rows = [
        (way, f"{ratios(figures, rounds[floor], 'us'):.1f}", f"{_over_bare(rounds, way):.2f}")
        for way, figures in rounds.items()
    ]

    return Table(title, ("way", f"ratio to {floor}", "µs an item over a bare loop"), rows)


def _budgets(new: Rounds, skipped: Rounds) -> list[Budget]:
    return [
        Budget("batch.run, no-op item", 25, _over_bare(new, "batch.run"), "µs"),
        Budget("batch.run, concurrency=8", 60, _over_bare(new, "batch.run, concurrency=8"), "µs"),
        Budget(
            "skipping a finished item, opening included", 2, _over_bare(skipped, "batch.run"), "µs"
        ),
    ]


def _growth(memory: Rounds, count: int) -> Budget:
    """Compare the peak of a batch over a generator with a checkpoint of the same ids."""
    more = (
        values(memory["batch.run"], "mib").median - values(memory["Checkpoint.save"], "mib").median
    )

    # Less than a pointer, 8 bytes, an item: nothing is kept of it.
    return Budget(
        "1,000,000-item generator: memory beyond the ids themselves",
        8,
        more if count == 1_000_000 else None,
        "MiB",
    )
