"""What it costs to find out, at the start, which items are still to be done."""

from __future__ import annotations

import importlib
import tempfile
import time
from pathlib import Path

from ._case import Figures, ids, peak_mib, quiet, records, resident_mib
from ._measure import Case, Rig, Rounds, ratios, values
from .peers import PEERS, Peer, json_pending, lockstitch
from .report import Budget, Findings, Table

SIZES = (100_000, 1_000_000)

FLOOR = "json.loads of lockstitch's lines"

#: The floor reads what lockstitch has written.
WAYS = {FLOOR: Peer(FLOOR, lockstitch, json_pending, FLOOR)} | {
    peer.reading: peer for peer in PEERS if peer.pending is not None
}


def fill(folder: Path, way: str, store: str, count: int) -> Figures:
    """Save `count` records into a folder that stays; not measured."""
    del folder
    WAYS[way].save(Path(store), records(count), False)

    return {}


def pending(folder: Path, way: str, store: str, count: int) -> Figures:
    """Open the store and ask it for `count` ids: half of them it has, half are new.

    Importing the store's library counts as memory and not as time.
    """
    del folder
    run = WAYS[way].pending
    assert run is not None
    asked = ids(count, count // 2)
    quiet()
    before = resident_mib()
    for module in WAYS[way].needs:
        importlib.import_module(module)
    start = time.perf_counter()
    left = run(Path(store), asked)
    seconds = time.perf_counter() - start
    if left != count // 2:
        raise RuntimeError(f"{way} says that {left} of {count} are pending")

    return {"s": seconds, "mib": peak_mib() - before}


def measure(rig: Rig) -> Findings:
    """Open and ask, at every size."""
    found = {size: _rounds(rig, size) for size in rig.sizes(*SIZES)}

    return Findings(
        [_table(size, rounds) for size, rounds in found.items()],
        _budgets(found.get(SIZES[-1])),
    )


def _budgets(rounds: Rounds | None) -> list[Budget]:
    ratio = memory = None
    if rounds is not None:
        ratio = ratios(rounds["lockstitch"], rounds[FLOOR], "s").median
        memory = values(rounds["lockstitch"], "mib").median

    return [
        Budget("open and filter 1,000,000 ids, to json.loads of the same lines", 0.7, ratio),
        Budget("memory for 1,000,000 ids", 160, memory, "MiB"),
    ]


def _rounds(rig: Rig, size: int) -> Rounds:
    size -= size % 2
    ways = [peer for peer in WAYS.values() if size <= peer.most]
    with tempfile.TemporaryDirectory(dir=rig.scratch) as stores:
        cases = []
        for peer in ways:
            store = Path(stores, peer.save.__name__)
            arguments = {"way": peer.reading, "store": str(store), "count": size}
            case = Case(peer.reading, "resume:pending", arguments, peer.needs)
            if rig.can_run(case):
                cases.append(case)
                if not store.exists():
                    store.mkdir()
                    rig.once(Case(peer.reading, "resume:fill", arguments))

        return rig.rounds_of(f"Resume, {size:,} ids", cases)


def _table(size: int, rounds: Rounds) -> Table:
    rows = [
        (
            name,
            f"{ratios(figures, rounds[FLOOR], 's'):.2f}",
            f"{values(figures, 's').median:.2f}",
            f"{values(figures, 'mib').median:.0f}",
        )
        for name, figures in rounds.items()
    ]
    head = ("way", "ratio", "s", "MiB above the interpreter")

    return Table(f"Resume: which of {size:,} ids are pending, half of them", head, rows)
