"""What a command costs from the shell: `true`, two at a time."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

from ._case import Figures
from ._measure import Case, Rig, ratios, values
from .report import Budget, Findings, Table

COMMANDS = 1_000

OURS = "lockstitch run -j 2"
PARALLEL = "parallel -j 2 --joblog"

WAYS = {
    PARALLEL: "parallel --will-cite -j 2 --joblog jobs.log -a items true {}",
    OURS: f"{sys.executable} -m lockstitch run jobs.jsonl -j 2 -a items -- true {{}}",
    "xargs -P 2 -n 1, no log": "xargs -a items -P 2 -n 1 true",
}


def run(folder: Path, way: str, count: int) -> Figures:
    """Run `true` for each line of a file, the tool's own start included."""
    (folder / "items").write_text("".join(f"item-{number}\n" for number in range(count)))
    start = time.perf_counter()
    subprocess.run(WAYS[way].split(), cwd=folder, check=True, stderr=subprocess.DEVNULL)
    seconds = time.perf_counter() - start

    return {"ms": seconds / count * 1000}


def measure(rig: Rig) -> Findings:
    """Run so many commands with each tool that is there."""
    (count,) = rig.sizes(COMMANDS)
    cases = []
    for way, command in WAYS.items():
        program = command.split()[0]
        if shutil.which(program) is None:
            rig.leave_out(f"{way}: there is no {program}")
        else:
            cases.append(Case(way, "jobs:run", {"way": way, "count": count}))
    rounds = rig.rounds_of(f"Jobs, {count:,} commands", cases)
    floor = rounds.get(PARALLEL, rounds[OURS])
    rows = [
        (way, f"{ratios(figures, floor, 'ms'):.2f}", f"{values(figures, 'ms').median:.2f}")
        for way, figures in rounds.items()
    ]
    ratio = ratios(rounds[OURS], floor, "ms").median if PARALLEL in rounds else None

    return Findings(
        [
            Table(
                f"{count:,} commands `true`, two at a time, the tool's own start included",
                ("tool", "ratio", "ms a command"),
                rows,
            )
        ],
        [Budget("lockstitch run, to GNU parallel with a job log", 0.5, ratio)],
    )
