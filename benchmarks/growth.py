"""Whether an item costs more the more items there are; fsync off."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from ._case import Figures, Stopwatch, quiet, records
from ._measure import Case, Rig, values
from .peers import FLOOR, PEERS
from .report import Budget, Findings, Line, Plot, Table

#: The readings, in items done; an item's cost is that of the items between two of them.
MARKS = (10, 100, 1_000, 10_000, 100_000, 200_000, 400_000, 600_000, 800_000, 1_000_000)

#: lockstitch, its floor, the usual database, and what does grow.
WAYS = (FLOOR[False], "lockstitch", "sqlite3, WAL, NORMAL", "one JSON document, rewritten")

#: What is shown of a window, and how.
SHOWN = {
    "us": ("µs an item", ".1f"),
    "bytes": ("bytes handed to the kernel an item", ",.0f"),
    "mib": ("MiB more than at the start", ".1f"),
}


def save(folder: Path, peer: str, count: int) -> Figures:
    """Save records up to `count`; return what an item costs between each two marks.

    Records are made while they are asked for, as a million of them would hide the memory of the
    store. Their making is part of the time, the same for all.
    """
    marks = [mark for mark in MARKS if mark <= count] or [count]
    watch = Stopwatch()
    run = next(each.save for each in PEERS if each.name == peer)
    quiet()
    run(folder, watch.over(records(count), marks), False)

    return {"windows": [_window(watch.readings[0], *pair) for pair in pairwise(watch.readings)]}


def _window(start: Figures, first: Figures, last: Figures) -> Figures:
    count = last["done"] - first["done"]

    return {
        "done": last["done"],
        "us": (last["clock"] - first["clock"]) / count * 1e6,
        "bytes": (last["written"] - first["written"]) / count,
        "mib": last["mib"] - start["mib"],
    }


def measure(rig: Rig) -> Findings:
    """Save up to a million items and compare the first with the last."""
    cases = [
        Case(peer.name, "growth:save", {"peer": peer.name, "count": min(rig.largest, peer.most)})
        for peer in PEERS
        if peer.name in WAYS
    ]
    rounds = rig.rounds_of(f"Growth to {rig.largest:,} items", cases, times=0.6)
    lines = {
        figure: {name: _line(figures, figure) for name, figures in rounds.items()}
        for figure in SHOWN
    }

    return Findings(
        [_table(figure, lines[figure]) for figure in SHOWN],
        _budgets(rounds["lockstitch"]),
        _plots(lines),
    )


def _plots(lines: dict[str, dict[str, Line]]) -> list[Plot]:
    # Memory begins at 0, which a logarithmic axis does not have, and grows in proportion.
    return [
        Plot("items done", what, lines[figure], "linear" if figure == "mib" else "log")
        for figure, (what, _) in SHOWN.items()
    ]


def _line(rounds: list[Figures], figure: str) -> Line:
    """Return the median of a figure, for each number of items done."""
    windows = zip(*(each["windows"] for each in rounds), strict=True)

    return {window[0]["done"]: values(list(window), figure).median for window in windows}


def _table(figure: str, lines: dict[str, Line]) -> Table:
    what, form = SHOWN[figure]
    marks = sorted({mark for line in lines.values() for mark in line})
    rows = [
        (name, *(format(line[mark], form) if mark in line else "–" for mark in marks))
        for name, line in lines.items()
    ]

    return Table(
        f"Growth: {what}, fsync off, up to so many items",
        ("way", *(f"{mark:,}" for mark in marks)),
        rows,
    )


def _budgets(rounds: list[Figures]) -> list[Budget]:
    def ratio(figure: str, late: int, early: int) -> float | None:
        line = _line(rounds, figure)

        return line[late] / line[early] if late in line else None

    # A little above 1, as the numbers of lines get longer, and the machine does other things.
    return [
        Budget("bytes of a save, at 100,000 items to 100", 1.1, ratio("bytes", 100_000, 100)),
        Budget("time of a save, at 1,000,000 items to 10,000", 1.2, ratio("us", 1_000_000, 10_000)),
    ]
