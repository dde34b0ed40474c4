"""What a workload found, as Markdown and as plots."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import attrs

#: A line of a plot: from x to y.
Line = dict[int, float]


@attrs.frozen
class Table:
    """A title, a head, and rows of text."""

    title: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def __str__(self) -> str:
        lines = [_line(self.head), _line("---" for _ in self.head), *map(_line, self.rows)]

        return "\n".join([f"**{self.title}**", "", *lines])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


@attrs.frozen
class Budget:
    """A promise about speed or memory, and what was measured.

    That is None when the run was too small, and NaN when the system does not tell.
    """

    what: str
    limit: float
    measured: float | None
    unit: str = "×"
    at_most: bool = True

    @property
    def verdict(self) -> str:
        """Return whether the promise is kept."""
        if self.measured is None or math.isnan(self.measured):
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
class Plot:
    """A panel of lines."""

    x: str
    y: str
    lines: dict[str, Line]
    scale: str = "log"  # of both axes


@attrs.frozen
class Findings:
    """What a workload has to show."""

    tables: list[Table] = attrs.field(factory=list)
    budgets: list[Budget] = attrs.field(factory=list)
    plots: list[Plot] = attrs.field(factory=list)


def budget_table(budgets: Iterable[Budget]) -> Table:
    """Return all budgets with what was measured."""
    return Table("Budgets", ("what", "budget", "measured", ""), [each.row for each in budgets])


def draw(plots: list[Plot], path: Path) -> None:
    """Write the plots side by side; the same findings make the same bytes.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": path.name, "svg.fonttype": "none"})
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(plots), figsize=(5 * len(plots), 4), squeeze=False)
    for plot, panel in zip(plots, panels[0], strict=True):
        for name, line in plot.lines.items():
            panel.plot(list(line), list(line.values()), marker=".", label=name)
        panel.set(xscale=plot.scale, yscale=plot.scale, xlabel=plot.x, ylabel=plot.y)
        panel.minorticks_off()
        panel.grid(visible=True, alpha=0.3)
    panels[0][0].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def pasted(page: str, name: str, text: str) -> str:
    """Return a page with `text` between its markers `<!-- name -->` and `<!-- end of name -->`.

    Raises:
        ValueError: the page has no such markers.
    """
    opening, closing = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, _, rest = page.partition(opening)
    _, found, after = rest.partition(closing)
    if not found:
        raise ValueError(f"the page has no {opening.strip()} with {closing}")

    return f"{before}{opening}\n{text}\n\n{closing}{after}"
