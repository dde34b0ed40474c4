"""The audit of the standard library on a Dask cluster: on this machine, or with --scheduler on any.

    python examples/audit_on_dask.py

Stop it with Ctrl-C, or kill it in any other way; the same line goes on where it stopped. It shares
its checkpoint with audit_stdlib.py: what one has measured, the other does not measure again.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import sys
from collections.abc import Iterator
from concurrent.futures import Executor

import dask.config
import lizard  # type: ignore[import-untyped] # it has no type hints
from audit_stdlib import Measure, measure, print_table, stdlib_files
from distributed import Client, LocalCluster

from lockstitch import Checkpoint, Record, ResumableBatch


@contextlib.contextmanager
def connect(scheduler: str | None, workers: int) -> Iterator[Executor]:
    """Give the executor of a cluster: the one at `scheduler`, or one that is started here."""
    with contextlib.ExitStack() as stack:
        if scheduler is None:
            # A file that kills its worker is not tried on three others first: the batch finds out.
            stack.enter_context(dask.config.set({"distributed.scheduler.allowed-failures": 0}))
            cluster = LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0")
            client = stack.enter_context(Client(stack.enter_context(cluster)))
        else:
            client = stack.enter_context(Client(scheduler))
        print(f"dashboard: {client.dashboard_link}", flush=True)
        yield client.get_executor(pure=False)


def arguments() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description="Measure the standard library, on Dask.")
    parser.add_argument("--checkpoint", default="audit_stdlib.jsonl", metavar="FILE")
    parser.add_argument("--limit", type=int, metavar="N", help="a sample of N files, spread evenly")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="of a cluster that is running")
    parser.add_argument(
        "--workers", type=int, default=2, metavar="N", help="of a cluster of one's own"
    )

    return parser.parse_args()


def main() -> int:
    """Run the batch and return its exit code: 0, 1 with errors, 2 with files left to do."""
    args = arguments()
    files = stdlib_files()
    if args.limit:
        files = files[:: max(1, len(files) // args.limit)][: args.limit]
    config = {"python": platform.python_version(), "lizard": lizard.version}
    checkpoint = Checkpoint(args.checkpoint, config=config, result_type=Measure)
    records: list[Record] = []
    with (
        connect(args.scheduler, args.workers) as executor,
        ResumableBatch(checkpoint, files) as batch,
    ):
        records.extend(batch.map(measure, executor=executor, chunk=4))
    print(batch.summary)
    print_table(records)

    return batch.exit_code


if __name__ == "__main__":
    sys.exit(main())
