"""Real engines for tests, and the functions that run in their workers.

A module of its own, because workers import what they are sent by its name.
"""

import contextlib
import multiprocessing
import os
import signal
import tempfile
import threading
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.connection import Client, Listener
from pathlib import Path
from types import SimpleNamespace

import pytest

from lockstitch import current_attempt
from lockstitch._attempt import _CURRENT

HERE = str(Path(__file__).parent)

#: Workers of every engine; so many items again are waiting in front of them.
WORKERS = 2

# Engines, each as a context of an executor


@contextlib.contextmanager
def threads():
    with ThreadPoolExecutor(WORKERS) as executor:
        together = threading.Barrier(WORKERS)
        for each in [executor.submit(together.wait) for _ in range(WORKERS)]:
            each.result()
        yield executor


def processes(method):
    @contextlib.contextmanager
    def start():
        if method not in multiprocessing.get_all_start_methods():
            pytest.skip(f"there is no {method} here")
        with ProcessPoolExecutor(WORKERS, multiprocessing.get_context(method)) as executor:
            for each in [executor.submit(warm) for _ in range(WORKERS)]:
                each.result()
            yield executor

    return start


@contextlib.contextmanager
def loky():
    library = pytest.importorskip("loky")
    executor = library.ProcessPoolExecutor(WORKERS)
    executor.submit(warm).result()
    yield executor
    executor.shutdown()


@contextlib.contextmanager
def dask_client():
    distributed = pytest.importorskip("distributed")
    dask = pytest.importorskip("dask")
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(
            n_workers=WORKERS,
            threads_per_worker=1,
            dashboard_address=":0",
            silence_logs="CRITICAL",
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        for each in [client.submit(warm, pure=False) for _ in range(20)]:
            each.result()
        yield client


@contextlib.contextmanager
def dask():
    with dask_client() as client:
        yield client.get_executor(pure=False)


@contextlib.contextmanager
def ray():
    library = pytest.importorskip("ray")
    from lockstitch.engines.ray import RayExecutor

    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("PYTHONPATH", os.pathsep.join([HERE, os.environ.get("PYTHONPATH", "")]))
        warnings.simplefilter("ignore")  # its own, of files it leaves open and the like
        library.init(
            address="local",
            num_cpus=WORKERS,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=100_000_000,
        )
        for each, handler in before.items():
            signal.signal(each, handler)  # it takes SIGTERM for itself
        executor = RayExecutor()
        for each in [executor.submit(warm) for _ in range(20)]:  # until all connections are there
            each.result()
        yield executor
        library.shutdown()


ENGINES = {
    "threads": threads,
    "fork": processes("fork"),
    "spawn": processes("spawn"),
    "forkserver": processes("forkserver"),
    "loky": loky,
    "dask": dask,
    "ray": ray,
}

# Calling home: the work of a test looks at what is in the test's own process


class Home:
    """Answers the calls of workers with a function of this process, until it is closed."""

    def __init__(self, work):
        self._work = work
        self._folder = tempfile.TemporaryDirectory(prefix="home-")
        self.address = os.path.join(self._folder.name, "s")
        self._listener = Listener(self.address, backlog=16)
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self):
        answering = []
        while (call := self._listener.accept()) is not None:
            asked = call.recv()
            if asked is None:
                call.close()
                break
            answering.append(threading.Thread(target=self._answer, args=(call, asked)))
            answering[-1].start()
        for thread in answering:
            thread.join()

    def _answer(self, call, asked):
        attempt = SimpleNamespace(**asked)
        with call:
            token = _CURRENT.set(attempt)
            try:
                call.send((self._work(attempt.item), None))
            except Exception as error:
                call.send((None, error))
            finally:
                _CURRENT.reset(token)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with Client(self.address) as call:
            call.send(None)
        self._thread.join()
        self._listener.close()
        self._folder.cleanup()


class CallHome:
    """The function that workers are sent: tells its attempt, and returns or raises the answer."""

    def __init__(self, address):
        self.address = address

    def __call__(self, item):
        attempt = current_attempt()
        said = {
            name: getattr(attempt, name)
            for name in ("id", "item", "number", "run", "idempotency_key")
        }
        assert attempt.item == item
        with Client(self.address) as home:
            home.send(said)
            value, error = home.recv()
        if error is not None:
            raise error
        return value


# Work


def warm():
    """Do nothing, for an engine to start its first worker."""


def double(item):
    return 2 * item
