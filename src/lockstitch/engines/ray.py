"""Ray as a `concurrent.futures.Executor`: `batch.run(fn, executor=RayExecutor())`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class RayExecutor(Executor):
    """Calls functions as Ray tasks, in the cluster that `ray.init` has connected this process to.

    `options` are those of `ray.remote`: `num_cpus=1`, `resources={…}`, `runtime_env={…}`. A task
    whose worker dies is not run again by Ray (`max_retries=0`): the batch finds out which item is
    to blame. Shutting it down leaves Ray as it is. Thread-safe.

    Raises:
        RuntimeError: Ray is not initialized in this process.
    """

    def __init__(self, **options: Any) -> None:
        # Not `import ray`: types are checked also where the extra is not installed.
        ray: Any = importlib.import_module("ray")
        if not ray.is_initialized():
            raise RuntimeError("Ray is not initialized; call ray.init() first")
        # Ray tells a task's processors from its options, and the cluster's from what it has.
        cpus = ray.cluster_resources().get("CPU", 0.0) / (options.get("num_cpus") or 1)
        self._max_workers = int(cpus)
        self._call = ray.remote(**{"max_retries": 0, **options})(_call)
        self._shutdown = False

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Call `fn` in a worker; raises RuntimeError after `shutdown`."""
        if self._shutdown:
            raise RuntimeError("cannot schedule new futures after shutdown")
        future: Future[R] = self._call.remote(fn, args, kwargs).future()

        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002 - there is nothing of its own to wait for
        """Take no more work; what is submitted goes on."""
        self._shutdown = True


def _call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return fn(*args, **kwargs)
