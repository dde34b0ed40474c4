"""Fresh processes, taken in turns, and what they measured.

A machine that others use is slow for a minute and fast for the next. So every way of doing a thing
(a `Case`) runs once in each round, in a process of its own; a ratio is taken within its round, and
what is reported is the median over the rounds, with the least and the greatest beside it.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import attrs

from . import _case
from ._case import Figures

#: What all rounds measured: for each case that ran, its figures of every round.
Rounds = dict[str, list[Figures]]


@attrs.frozen
class Case:
    """One way of doing a thing: `function(folder, **arguments) -> Figures`, in a fresh process."""

    name: str
    function: str  # "module:name" within this package
    arguments: dict[str, Any] = attrs.field(factory=dict)
    needs: tuple[str, ...] = ()  # what must be importable


@attrs.define
class Rig:
    """Where and how long to measure, and what had to be left out."""

    scratch: Path  # on the disk to be measured
    largest: int = 1_000_000  # no workload has more items
    rounds: int = 5
    skipped: list[str] = attrs.field(factory=list)
    raw: dict[str, Rounds] = attrs.field(factory=dict)

    def sizes(self, *wanted: int) -> list[int]:
        """Return the sizes that are not beyond the largest, at least one."""
        return sorted({min(size, self.largest) for size in wanted})

    def rounds_of(self, title: str, cases: Iterable[Case], times: float = 1) -> Rounds:
        """Run all cases in turns, a fresh process each; those that cannot run are named once.

        `times` as many rounds as usual, for what is over in a moment or takes very long.
        """
        cases = [case for case in cases if self.can_run(case)]
        found: Rounds = {case.name: [] for case in cases}
        for number in range(max(1, round(self.rounds * times))):
            say(f"{title}: round {number + 1}")
            # Rotated, so that nobody always runs after the same neighbour.
            start = number % len(cases)
            for case in cases[start:] + cases[:start]:
                found[case.name].append(self.once(case))
        self.raw[title] = found

        return found

    def can_run(self, case: Case) -> bool:
        """Return whether what the case needs is installed; if not, say so once."""
        for module in case.needs:
            if find_spec(module) is None:
                self.leave_out(f"{case.name}: {module} is not installed")
                return False

        return True

    def leave_out(self, why: str) -> None:
        """Say that something is not measured, and why."""
        if why not in self.skipped:
            self.skipped.append(why)
            say(f"skipped: {why}")

    def once(self, case: Case) -> Figures:
        """Run a case in a fresh process and a fresh folder.

        Raises:
            RuntimeError: it failed; a peer that cannot do its work is not passed over.
        """
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            done = subprocess.run(
                [sys.executable, "-m", _case.__name__, case.function, folder],
                input=json.dumps(case.arguments),
                capture_output=True,
                text=True,
                check=False,
                cwd=Path(__file__).parent.parent,
            )
        if done.returncode:
            raise RuntimeError(f"{case.name} failed:\n{done.stderr[-3000:]}")
        figures: Figures = json.loads(done.stdout.splitlines()[-1])

        return figures


def say(line: str) -> None:
    """Tell whoever waits how far it is."""
    print(line, file=sys.stderr, flush=True)


@attrs.frozen
class Spread:
    """Some rounds of one figure."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def __format__(self, form: str) -> str:
        """Return the median, and the least and the greatest if there were several."""
        if len(self.values) == 1:
            return format(self.median, form)

        return f"{self.median:{form}} ({min(self.values):{form}} to {max(self.values):{form}})"


def values(rounds: list[Figures], figure: str) -> Spread:
    """Return one figure of all rounds."""
    return Spread(tuple(each[figure] for each in rounds))


def ratios(rounds: list[Figures], floor: list[Figures], figure: str) -> Spread:
    """Return the figure as a multiple of the floor's, each within its own round."""
    return Spread(
        tuple(ours[figure] / theirs[figure] for ours, theirs in zip(rounds, floor, strict=True))
    )
