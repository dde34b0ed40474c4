"""Measure every module of the installed standard library, resumably.

    python examples/audit_stdlib.py

Stop it with Ctrl-C, or kill it in any other way; the same line goes on where it stopped.
"""

from __future__ import annotations

import argparse
import ast
import os
import platform
import sys
import sysconfig
import time
import tokenize
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Why lizard: of the libraries that compute cyclomatic complexity it is the one that keeps up with
# the language. mccabe (last release in January 2022) takes `match` and `except*` for straight
# code and drops all but the last of the functions that share a name, such as a property and its
# setter; radon (March 2023) does not see `except*`.
import lizard  # type: ignore[import-untyped] # it has no type hints

from lockstitch import Checkpoint, Record, ResumableBatch

STDLIB = Path(sysconfig.get_path("stdlib"))


@dataclass(frozen=True)
class Function:
    """Where a function is, and how many lines it has."""

    name: str
    line: int
    lines: int


@dataclass(frozen=True)
class Measure:
    """What is stored for one file."""

    lines: int
    functions: int
    #: Cyclomatic complexity, summed over the functions.
    complexity: int
    longest: Function | None


def stdlib_files() -> list[Path]:
    """Return every module of the standard library, relative to its folder."""
    found: list[Path] = []
    for folder, folders, names in os.walk(STDLIB):
        # Taken out here and not afterwards: what is installed may be many times the library.
        folders[:] = [name for name in folders if name not in ("site-packages", "dist-packages")]
        found += [Path(folder, name) for name in names if name.endswith(".py")]

    return sorted(path.relative_to(STDLIB) for path in found)


def measure(file: Path) -> Measure:
    """Parse one file and measure it; one that does not parse raises, and is booked as an error."""
    with tokenize.open(STDLIB / file) as opened:  # decodes as the file's first lines demand
        source = opened.read()
    functions = [
        Function(node.name, node.lineno, (node.end_lineno or node.lineno) - node.lineno + 1)
        for node in ast.walk(ast.parse(source, str(file)))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    complexity = lizard.analyze_file.analyze_source_code(file.name, source).CCN

    return Measure(
        lines=len(source.splitlines()),
        functions=len(functions),
        complexity=complexity,
        longest=max(functions, key=lambda function: function.lines, default=None),
    )


class Progress:
    """One line that is written anew on a terminal; elsewhere, a line now and then."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._terminal = sys.stderr.isatty()
        self._seconds = 0.1 if self._terminal else 10.0
        self._next = 0.0

    def show(self, done: int, errors: int) -> None:
        """Write how far it has come, unless that was done a moment ago."""
        now = time.monotonic()
        if now < self._next and done < self._total:
            return
        self._next = now + self._seconds
        # The cursor goes back to the start of the line, for whatever is written next to cover it.
        end = "\r" if self._terminal and done < self._total else "\n"
        print(f"{done} of {self._total} files, {errors} errors", end=end, file=sys.stderr)


def print_table(records: Sequence[Record]) -> None:
    """Print totals, the longest functions, the most complex files, and what does not parse."""
    measured = [(record.id, record.result) for record in records if record.status == "ok"]
    lines = sum(found.lines for _, found in measured)
    functions = sum(found.functions for _, found in measured)
    print(f"\n{len(measured):,} files, {lines:,} lines, {functions:,} functions")

    print("\nThe longest functions, in lines")
    longest = [(file, found.longest) for file, found in measured if found.longest]
    for file, function in sorted(longest, key=lambda row: -row[1].lines)[:5]:
        print(f"{function.lines:>8,}  {file}:{function.line} {function.name}")

    print("\nThe most complex files, by cyclomatic complexity")
    for file, found in sorted(measured, key=lambda row: -row[1].complexity)[:5]:
        print(f"{found.complexity:>8,}  {file}")

    failed = [record for record in records if record.error]
    print(f"\nFiles that do not parse: {len(failed)}")
    for record in failed:
        print(f"          {record.id}  {record.error.summary if record.error else ''}")


def arguments() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description="Measure the standard library, resumably.")
    parser.add_argument("--checkpoint", default="audit_stdlib.jsonl", metavar="FILE")
    parser.add_argument("--fresh", action="store_true", help="begin anew; the old file is kept")
    parser.add_argument("--retry-errors", action="store_true", help="measure failed files again")
    parser.add_argument("--limit", type=int, metavar="N", help="a sample of N files, spread evenly")

    return parser.parse_args()


def main() -> int:
    """Run the batch and return its exit code: 0, 1 with errors, 2 with files left to do."""
    args = arguments()
    warnings.simplefilter("ignore", SyntaxWarning)  # the files' own, of old escapes and the like
    files = stdlib_files()
    if args.limit:
        files = files[:: max(1, len(files) // args.limit)][: args.limit]
    # Another Python has another library, and another lizard may count differently: their results
    # must not be mixed. --limit changes no result, so it is not in here.
    config = {"python": platform.python_version(), "lizard": lizard.version}
    checkpoint = Checkpoint(args.checkpoint, config=config, result_type=Measure, fresh=args.fresh)
    records: list[Record] = []
    progress, errors = Progress(len(files)), 0
    with ResumableBatch(checkpoint, files, redo="error" if args.retry_errors else None) as batch:
        for record in batch.map(measure):  # first or last run, every file's record comes by
            records.append(record)
            errors += record.status == "error"
            progress.show(len(records), errors)
    print(batch.summary)
    print_table(records)

    return batch.exit_code


if __name__ == "__main__":
    sys.exit(main())
