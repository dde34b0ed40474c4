"""What a workload found, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable

import attrs


@attrs.frozen
class Table:
    """A title, a head, and rows of text."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def __str__(self) -> str:
        lines = [_line(self.head), _line("---" for _ in self.head), *map(_line, self.rows)]

        return "\n".join([f"**{self.title}**", "", *lines])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


@attrs.frozen
class Budget:
    """A promise about speed or memory, and what was measured; None when the run was too small."""

    what: str
    limit: float
    measured: float | None
    unit: str = "×"
    at_most: bool = True

    @property
    def verdict(self) -> str:
        """Return whether the promise is kept."""
        if self.measured is None:
            return "not measured"
        kept = self.measured <= self.limit if self.at_most else self.measured >= self.limit

        return "kept" if kept else "**missed**"

    @property
    def row(self) -> tuple[str, ...]:
        """Return what the table of budgets says of it."""
        sign = "≤" if self.at_most else "≥"
        measured = "–" if self.measured is None else f"{self.measured:.2f} {self.unit}"

        return self.what, f"{sign} {self.limit:g} {self.unit}", measured, self.verdict


@attrs.frozen
class Findings:
    """What a workload has to show."""

    tables: list[Table] = attrs.field(factory=list)
    budgets: list[Budget] = attrs.field(factory=list)


def budget_table(budgets: Iterable[Budget]) -> Table:
    """Return all budgets with what was measured."""
    return Table("Budgets", ("what", "budget", "measured", ""), [each.row for each in budgets])
