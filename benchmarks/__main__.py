"""The command: `python -m benchmarks [--quick] [WORKLOAD ...]`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from pathlib import Path

from . import growth, imports, jobs, overhead, resume, save, threads
from ._measure import Rig
from .report import Budget, Plot, budget_table, draw, pasted

WORKLOADS = {
    "save": save.measure,
    "resume": resume.measure,
    "threads": threads.measure,
    "overhead": overhead.measure,
    "import": imports.measure,
    "jobs": jobs.measure,
    "growth": growth.measure,
}


def main() -> None:
    """Measure, write what was found, and print it; the budgets last."""
    parser = _parser()
    arguments = parser.parse_args()
    if unknown := set(arguments.workloads) - set(WORKLOADS):
        parser.error(f"no such workload: {', '.join(unknown)}; there are {', '.join(WORKLOADS)}")
    output: Path = arguments.output
    page: Path | None = arguments.paste
    if page is not None:  # now, and not after a quarter of an hour
        try:
            for name in arguments.workloads or [*WORKLOADS, "budgets"]:
                pasted(page.read_text("utf-8"), name, "")
        except (OSError, ValueError) as error:
            parser.error(f"--paste {page}: {error}")
    output.mkdir(parents=True, exist_ok=True)
    budgets: list[Budget] = []
    # The scratch folder is on the disk of the output: a sync in a file system in memory is free.
    with tempfile.TemporaryDirectory(dir=output, prefix="scratch-") as scratch:
        rig = Rig(Path(scratch).resolve(), arguments.largest, arguments.rounds)
        if arguments.quick:
            rig.largest, rig.rounds = min(rig.largest, 100_000), min(rig.rounds, 3)
        for name in arguments.workloads or WORKLOADS:
            findings = WORKLOADS[name](rig)
            tables = [str(table) for table in findings.tables]
            _write(name, "\n\n".join([*tables, _settings(rig)]), output, page)
            _draw(name, findings.plots, rig, output, page)
            budgets += findings.budgets
            raw = json.dumps(rig.raw, indent=1)
            (output / "rounds.json").write_text(raw, encoding="utf-8")
    # In a page, some of the budgets would take the place of all.
    _write("budgets", str(budget_table(budgets)), output, None if arguments.workloads else page)
    for line in rig.skipped:
        print(f"Skipped: {line}.")


def _settings(rig: Rig) -> str:
    return (
        f"Measured with `--rounds {rig.rounds} --largest {rig.largest}`, "
        f"Python {platform.python_version()}, {os.cpu_count()} cores."
    )


def _write(name: str, text: str, output: Path, page: Path | None) -> None:
    (output / f"{name}.md").write_text(f"{text}\n", encoding="utf-8")
    print(f"{text}\n", flush=True)
    if page is not None:
        page.write_text(pasted(page.read_text("utf-8"), name, text), encoding="utf-8")


def _draw(name: str, plots: list[Plot], rig: Rig, output: Path, page: Path | None) -> None:
    if not plots:
        return
    try:
        draw(plots, output / f"{name}.svg")
        if page is not None:
            draw(plots, page.with_name(f"{page.stem}-{name}.svg"))
    except ImportError:
        rig.leave_out(f"the plot of {name}: matplotlib is not installed")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1, not {text!r}")

    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=", ".join(WORKLOADS))
    parser.add_argument("--quick", action="store_true", help="three rounds, at most 100,000 items")
    parser.add_argument(
        "--rounds", type=_count, default=5, metavar="N", help="default: %(default)s"
    )
    parser.add_argument(
        "--largest", type=_count, default=1_000_000, metavar="N", help="no workload has more items"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("benchmark-results"),
        metavar="FOLDER",
        help="where tables and plots go; on the disk to be measured (default: %(default)s)",
    )
    parser.add_argument(
        "--paste",
        type=Path,
        metavar="PAGE",
        help="put the tables between the markers of this Markdown page, and the plots beside it; "
        "the budgets only with all workloads",
    )

    return parser


if __name__ == "__main__":
    main()
