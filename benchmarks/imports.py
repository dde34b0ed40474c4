"""What `import lockstitch` adds to a script's start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ._case import Figures
from ._measure import Case, Rig, ratios, values
from .report import Budget, Findings, Table

FLOOR = "import attrs, cattrs, filelock"

CODE = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"


def fresh(folder: Path, statement: str, times: int = 1) -> Figures:
    """Time a statement in an interpreter that has imported nothing, not even this package.

    With `times` of 2, with the bytecode that the first has left: what pip installs is compiled,
    and a source tree that is not would be compared with it.
    """
    code = CODE.format(statement)
    env = {**os.environ, "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    for _ in range(times):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
            check=True,
        )

    return {"ms": float(done.stdout) * 1000}


def measure(rig: Rig) -> Findings:
    """Import it and its dependencies, ten times each in a full run."""
    statements = (FLOOR, "import lockstitch", "import asyncio", "pass")
    cases = [Case(each, "imports:fresh", {"statement": each, "times": 2}) for each in statements]
    rounds = rig.rounds_of("Import", cases, times=2)
    rows = [
        (
            statement,
            f"{ratios(figures, rounds[FLOOR], 'ms'):.2f}",
            f"{min(values(figures, 'ms').values):.0f}",
        )
        for statement, figures in rounds.items()
    ]
    ratio = ratios(rounds["import lockstitch"], rounds[FLOOR], "ms").median

    return Findings(
        [Table("Import, fresh interpreters", ("statement", "ratio", "ms, the best"), rows)],
        [Budget("import lockstitch, to attrs, cattrs and filelock", 1.25, ratio)],
    )
