"""What it costs to save one result after the other, in one thread."""

from __future__ import annotations

from pathlib import Path

from ._case import Figures, Stopwatch, quiet, records
from ._measure import Case, Rig, Rounds, ratios, values
from .peers import FLOOR, PEERS
from .report import Budget, Findings, Table

SIZES = {False: (1_000, 10_000, 100_000), True: (1_000, 10_000)}

TITLES = {
    False: "Save, fsync off: survives the death of the process",
    True: "Save, fsync on: survives power loss",
}


def save(folder: Path, peer: str, count: int, fsync: bool) -> Figures:
    """Save `count` records and return microseconds and bytes per item."""
    run = next(each.save for each in PEERS if each.name == peer)
    items = list(records(count))
    watch = Stopwatch()
    quiet()
    run(folder, watch.over(items, [count]), fsync)

    return watch.figures


def measure(rig: Rig) -> Findings:
    """Save with every peer, at every size, with and without fsync."""
    findings = Findings()
    for fsync, title in TITLES.items():
        sizes = rig.sizes(*SIZES[fsync])
        found = {size: _rounds(rig, title, size, fsync) for size in sizes}
        findings.tables.append(_table(title, found, FLOOR[fsync]))
        findings.budgets.extend(_budgets(found[sizes[-1]], fsync))

    return findings


def _rounds(rig: Rig, title: str, size: int, fsync: bool) -> Rounds:
    cases = [
        Case(
            peer.name,
            "save:save",
            {"peer": peer.name, "count": size, "fsync": fsync},
            peer.needs,
        )
        for peer in PEERS
        if fsync in peer.fsync and size <= peer.most
    ]

    return rig.rounds_of(f"{title}, {size:,} items", cases)


def _table(title: str, found: dict[int, Rounds], floor: str) -> Table:
    names = dict.fromkeys(name for rounds in found.values() for name in rounds)
    rows = []
    for name in names:
        at = {size: rounds for size, rounds in found.items() if name in rounds}
        cells = [
            f"{ratios(at[size][name], at[size][floor], 'us'):.2f}" if size in at else "–"
            for size in found
        ]
        most = at[max(at)][name]
        rows.append(
            (
                name,
                *cells,
                f"{values(most, 'us').median:,.1f}",
                f"{values(most, 'bytes').median:,.0f}",
            )
        )

    return Table(
        title,
        ("way", *(f"{size:,} items, ratio" for size in found), "µs an item", "bytes an item"),
        rows,
    )


def _budgets(rounds: Rounds, fsync: bool) -> list[Budget]:
    def ratio(name: str) -> float | None:
        if name not in rounds:
            return None

        return ratios(rounds[name], rounds[FLOOR[fsync]], "us").median

    if fsync:
        return [Budget("save, fsync=True, to write + fdatasync", 1.12, ratio("lockstitch"))]

    return [
        Budget("save, fsync=False, to write(json.dumps)", 1.6, ratio("lockstitch")),
        Budget("the same with serializer=orjson", 0.8, ratio("lockstitch, serializer=orjson")),
    ]
