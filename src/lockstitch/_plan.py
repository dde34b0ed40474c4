"""What a batch would do, before it is paid for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from ._input import Input
from ._model import Plan
from ._run import Run


def plan(run: Run, input: Input[Any], redo: Callable[[str], bool] | None) -> Plan:
    """Compare a sized input with what the checkpoint holds."""
    ledger = run.store.ledger
    done: Counter[str] = Counter()
    pending = new = known = 0
    in_doubt = []
    for id in input.ids():
        status = ledger.status(id)
        known += status is not None
        if status is not None and not (redo is not None and redo(id)):
            done[status] += 1
            continue
        pending += 1
        if id in run.in_doubt:
            in_doubt.append(id)
        elif not ledger.knows(id):
            new += 1

    return Plan(
        total=done.total() + pending,
        done=done.total(),
        by_status=dict(done),
        pending=pending,
        in_doubt=tuple(in_doubt),
        new=new,
        gone=len(ledger.index) - known,
        seconds_per_item=ledger.mean_seconds,
    )
