"""The command: `python -m benchmarks [--quick] [WORKLOAD ...]`."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from . import imports, overhead, resume, save, threads
from ._measure import Rig, say
from .report import budget_table

WORKLOADS = {
    "save": save.measure,
    "resume": resume.measure,
    "threads": threads.measure,
    "overhead": overhead.measure,
    "import": imports.measure,
}


def main() -> None:
    """Measure, write the tables, and print the budgets."""
    arguments = _parser().parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    budgets = []
    # The scratch folder is on the disk of the output: a sync in a file system in memory is free.
    with tempfile.TemporaryDirectory(dir=arguments.output, prefix="scratch-") as scratch:
        rig = Rig(Path(scratch).resolve(), arguments.largest, arguments.rounds)
        if arguments.quick:
            rig.largest, rig.rounds = min(rig.largest, 100_000), min(rig.rounds, 3)
        for name in arguments.workloads or WORKLOADS:
            findings = WORKLOADS[name](rig)
            text = "\n\n".join(map(str, findings.tables))
            (arguments.output / f"{name}.md").write_text(f"{text}\n", encoding="utf-8")
            print(f"{text}\n", flush=True)
            budgets += findings.budgets
    print(budget_table(budgets))
    for line in rig.skipped:
        say(f"skipped: {line}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "workloads",
        nargs="*",
        choices=[[], *WORKLOADS],
        metavar="WORKLOAD",
        help=", ".join(WORKLOADS),
    )
    parser.add_argument("--quick", action="store_true", help="three rounds, at most 100,000 items")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--largest", type=int, default=1_000_000, metavar="N", help="no workload has more items"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("benchmark-results"),
        metavar="FOLDER",
        help="where tables go; on the disk to be measured (default: %(default)s)",
    )

    return parser


if __name__ == "__main__":
    main()
