"""What the library adds to an engine: seconds per no-op item, as a ratio to a bare submit loop.

    python benchmarks/engines.py [ENGINE …] [--items N] [--rounds N]

Both sides run on the same executor, in turns, with the same number of items ahead; the bare loop
does what anybody would write by hand: submit, wait for a future, submit the next. The library adds
the journal (`fsync=False`), the order of what runs next, and all that makes it resumable. The best
round of each side counts.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import queue
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from lockstitch import Checkpoint, ResumableBatch

WORKERS = 2


def no_op(item: int) -> int:
    """Return the item."""
    return item


def bare(executor: Executor, items: int, ahead: int) -> None:
    """Work on all items with a window of `ahead` futures, and keep the results nowhere."""
    done: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for item in range(items):
        if item >= ahead:
            done.get().result()
        executor.submit(no_op, item).add_done_callback(done.put)
    for _ in range(min(ahead, items)):
        done.get().result()


def resumable(executor: Executor, items: int, chunk: int) -> None:
    """Work on all items as a batch with a checkpoint of its own."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Checkpoint(Path(folder, "run.jsonl"), fsync=False)
        with ResumableBatch(checkpoint, range(items)) as batch:
            batch.run(no_op, executor=executor, concurrency=WORKERS, chunk=chunk)
        if batch.exit_code != 0:
            raise SystemExit(f"not all items are done: {batch.summary}")


@contextmanager
def threads() -> Iterator[Executor]:
    """Threads of this process."""
    with ThreadPoolExecutor(WORKERS) as executor:
        yield executor


@contextmanager
def processes() -> Iterator[Executor]:
    """Processes that are started anew."""
    with ProcessPoolExecutor(WORKERS, multiprocessing.get_context("spawn")) as executor:
        yield executor


@contextmanager
def loky() -> Iterator[Executor]:
    """Processes that take functions by value."""
    import loky as library

    executor: Executor = library.ProcessPoolExecutor(WORKERS)
    yield executor
    executor.shutdown()


@contextmanager
def dask() -> Iterator[Executor]:
    """A cluster on this machine."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=WORKERS,
            threads_per_worker=1,
            dashboard_address=":0",
            silence_logs="CRITICAL",
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client.get_executor(pure=False)


@contextmanager
def ray() -> Iterator[Executor]:
    """A cluster on this machine."""
    import ray as library

    from lockstitch.engines.ray import RayExecutor

    library.init(num_cpus=WORKERS, include_dashboard=False, logging_level="ERROR")
    yield RayExecutor()
    library.shutdown()


ENGINES: dict[str, tuple[Callable[[], contextlib.AbstractContextManager[Executor]], int]] = {
    "threads": (threads, 5000),
    "processes": (processes, 4000),
    "loky": (loky, 3000),
    "dask": (dask, 500),
    "ray": (ray, 1000),
}


def best(rounds: int, *runs: Callable[[], None]) -> list[float]:
    """Return the seconds of each one's fastest round; they take turns."""
    seconds = [float("inf")] * len(runs)
    for _ in range(rounds):
        for number, run in enumerate(runs):
            begun = time.perf_counter()
            run()
            seconds[number] = min(seconds[number], time.perf_counter() - begun)

    return seconds


def main() -> None:
    """Print a line for each engine: microseconds per item, bare and with the library."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("engines", nargs="*", metavar="ENGINE", default=list(ENGINES))
    parser.add_argument("--items", type=int, help="instead of each engine's own number")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(f"{'engine':<10} {'items':>6} {'bare':>9} {'batch':>9} {'ratio':>6} {'chunk=50':>10}")
    for name in args.engines:
        start, items = ENGINES[name]
        items = args.items or items
        with start() as executor:
            bare(executor, 200, 2 * WORKERS)  # all workers are up
            resumable(executor, 200, 1)
            plain, ours, chunked = best(
                args.rounds,
                partial(bare, executor, items, 2 * WORKERS),
                partial(resumable, executor, items, 1),
                partial(resumable, executor, items, 50),
            )
        each = 1e6 / items
        print(
            f"{name:<10} {items:>6} {plain * each:>6.0f} µs {ours * each:>6.0f} µs"
            f" {ours / plain:>6.2f} {chunked * each:>7.0f} µs",
            flush=True,
        )


if __name__ == "__main__":
    main()
