"""Real engines for tests, and the functions that run in their workers.

A module of its own, because workers import what they are sent by its name.
"""

import contextlib
import multiprocessing
import os
import signal
import tempfile
import threading
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import UTC, datetime
from multiprocessing.connection import Client, Listener
from pathlib import Path
from types import SimpleNamespace

import attrs
import pytest

from lockstitch import (
    JSONSerializer,
    Limit,
    RateLimited,
    SerializationFailed,
    current_attempt,
    resumable,
)
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


def double_slowly(item):
    """Take a worker longer than the coordinator takes to hand the next item out."""
    time.sleep(0.005)

    return double(item)


def fatal(item):
    """Two items of these kill the process that works on them."""
    if item == 7:
        os._exit(3)
    if item == 150:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * item


class Awkward(Exception):
    """As several SDKs have them: it can be pickled, and cannot be unpickled."""

    def __init__(self, code, body):
        super().__init__(f"{code}: {body}")
        self.code = code


def raise_awkward(item):
    raise Awkward(400, item)


def raise_of_client(name):
    """Raise an exception of a real client as that client makes it."""
    import httpx

    request = httpx.Request("GET", "http://localhost/")
    response = httpx.Response(400, request=request)
    if name == "httpx":
        raise httpx.HTTPStatusError("bad", request=request, response=response)
    if name == "openai":
        import openai

        raise openai.BadRequestError("bad", response=response, body=None)
    import aiohttp
    import yarl
    from multidict import CIMultiDict, CIMultiDictProxy

    headers = CIMultiDictProxy(CIMultiDict())
    info = aiohttp.RequestInfo(yarl.URL("http://localhost/"), "GET", headers)
    raise aiohttp.ClientResponseError(info, (), status=400, message="bad")


def fail_twice(item):
    """Succeed at the third attempt, as the worker counts it."""
    if current_attempt().number < 3:
        raise ConnectionError(item)
    return current_attempt().number


def describe(_item):
    attempt = current_attempt()
    return [attempt.id, attempt.item, attempt.number, attempt.run, attempt.idempotency_key]


def use_checkpoint(what):
    attempt = current_attempt()
    if what == "cursor":
        return attempt.cursor
    if what == "step":
        return attempt.step("fetch", dict)
    return getattr(attempt, what)(1)


def nothing(_item):
    return []


def unstorable(item):
    return (lambda: item) if item == 3 else item


def interrupt_twice(item):
    """Raise what a Ctrl-C raises in a worker."""
    if item == 1:
        raise KeyboardInterrupt
    return item


def leave(item):
    raise SystemExit(5)


class Unfit(SerializationFailed):
    """One whose constructor does not take what that of its base takes."""

    def __init__(self):
        Exception.__init__(self, "only one")


class Unspeakable(BaseException):
    def __str__(self):
        raise ZeroDivisionError


def raise_named(name):
    """Raise what is hard to carry."""
    if name == "far":
        raise RateLimited(Limit(datetime.max.replace(tzinfo=UTC)))
    raise {"Unfit": Unfit, "Unspeakable": Unspeakable}[name]


def limited_at_three(item):
    """Say "limited" at item 3, the first time only."""
    flag = Path(item["folder"], "limited")
    if item["id"] == "3" and not flag.exists():
        flag.touch()
        raise RateLimited(Limit.after(30, reason="quota"))
    return item["id"]


def wait_for_file(item):
    """Say that it has begun, and last until a file is there."""
    folder, number = item["folder"], item["id"]
    Path(folder, f"begun-{number}-{os.getpid()}").touch()
    while not Path(folder, "go").exists():
        time.sleep(0.005)
    return number


class Scaled(JSONSerializer):
    """Has state of its own, which a worker needs."""

    name = "scaled"

    def __init__(self, scale=1):
        super().__init__()
        self.scale = scale

    def dumps(self, value):
        return super().dumps(value * self.scale)

    def loads(self, data):
        return super().loads(data) // self.scale


@attrs.frozen
class Point:
    x: int


def point(item):
    return Point(item)


@resumable(os.environ.get("DECORATED", "decorated.jsonl"))
def decorated(item):
    return 3 * item


def call_decorated(item):
    return decorated(item)
