"""What a case works with, in a process of its own: items, a clock, the system's counters."""

from __future__ import annotations

import gc
import importlib
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

#: What a process measured, each figure under the name of its unit.
Figures = dict[str, Any]


def records(count: int, first: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield items to save: an id, and a result that makes a record of about 185 bytes."""
    text = "the answer of a model, or what a test has printed; about a hundred characters, as usual"

    return (
        (id, {"score": number % 100 / 100, "text": f"{number:09} {text}"})
        for number, id in enumerate(ids(count, first), first)
    )


def ids(count: int, first: int = 0) -> Iterator[str]:
    """Yield the ids of `records`, without holding them."""
    return (f"test-{number:06}" for number in range(first, first + count))


def quiet() -> None:
    """Keep what the harness has made out of the garbage collector's way."""
    gc.collect()
    gc.freeze()


class Stopwatch:
    """Reads the clock as somebody draws items: before the first, and when the next is asked for.

    Whoever draws an item has finished the one before. So the opening and closing of a store are
    not counted, and a peer may own the loop. `marks` are further counts at which to read.
    """

    def __init__(self) -> None:
        self.readings: list[Figures] = []

    def over(self, items: Iterable[T], marks: Iterable[int]) -> Iterator[T]:
        iterator = iter(items)
        self._read(done := 0)
        for mark in marks:
            yield from islice(iterator, mark - done)
            self._read(done := mark)

    def _read(self, done: int) -> None:
        reading = {"done": done, "written": bytes_written(), "mib": resident_mib()}
        self.readings.append(reading | {"clock": time.perf_counter()})

    @property
    def figures(self) -> Figures:
        """The first to the last reading, per item."""
        first, last = self.readings[0], self.readings[-1]

        return {
            "us": (last["clock"] - first["clock"]) / last["done"] * 1e6,
            "bytes": (last["written"] - first["written"]) / last["done"],
        }


def bytes_written() -> float:
    """Return how many bytes this process has handed to the kernel; NaN where that is not told."""
    return _proc("/proc/self/io", "wchar:")


def resident_mib() -> float:
    """Return the memory, in MiB, that this process has now; NaN where that is not told."""
    return _proc("/proc/self/status", "VmRSS:") / 1024


def peak_mib() -> float:
    """Return the most memory, in MiB, that this process has had; NaN where that is not told.

    Not `ru_maxrss`: it remembers what the parent had before this process began its program.
    """
    return _proc("/proc/self/status", "VmHWM:") / 1024


def _proc(path: str, name: str) -> float:
    try:
        with open(path, encoding="ascii") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith(name))
    except OSError:  # not Linux
        return math.nan


def resolve(function: str) -> Any:
    """Return the function that a case names."""
    module, _, name = function.partition(":")

    return getattr(importlib.import_module(f"{__package__}.{module}"), name)


def main() -> None:
    """Run one case: `python -m benchmarks._case MODULE:FUNCTION FOLDER`, arguments on stdin."""
    _, function, folder = sys.argv
    arguments = json.load(sys.stdin)
    run = resolve(function)
    os.chdir(folder)  # whatever a peer puts beside itself is removed with it
    print(json.dumps(run(Path(folder), **arguments)))


if __name__ == "__main__":
    main()
