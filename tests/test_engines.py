"""Real engines that lose workers, and one checkpoint under all of them."""

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor

import engine_lab
import pytest
from engine_lab import ENGINES, WORKERS, double, fatal

from lockstitch import Backoff, Checkpoint, ResumableBatch

PATIENCE = 60


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.jsonl"


def statuses(path):
    return {record.id: record.status for record in Checkpoint(path, read_only=True).records()}


def make_processes(method):
    return lambda: ProcessPoolExecutor(WORKERS, multiprocessing.get_context(method))


def make_loky():
    return pytest.importorskip("loky").ProcessPoolExecutor(WORKERS)


@pytest.fixture(scope="module")
def engine(request):
    """Give a factory for what breaks as a whole, and a running engine for what does not."""
    if request.param in ("spawn", "forkserver"):
        yield make_processes(request.param)
    elif request.param == "loky":
        pytest.importorskip("loky")
        yield make_loky
    else:
        with ENGINES[request.param]() as executor:
            yield executor


@pytest.fixture
def no_leaks():
    """What a running engine opens and starts in its own time is not the library's."""


every_engine = pytest.mark.parametrize(
    "engine", ["spawn", "forkserver", "loky", "dask", "ray"], indirect=True
)


@every_engine
def test_two_killers_are_set_aside_on_every_engine(engine, path):
    """One calls os._exit, one SIGKILLs itself: 198 are done, two are quarantined."""
    with ResumableBatch(Checkpoint(path, fsync=False), range(200), max_crashes=1) as batch:
        summary = batch.run(fatal, executor=engine)
    aside = {id for id, status in statuses(path).items() if status == "quarantined"}

    assert (summary.ok, summary.errors, summary.quarantined) == (198, 0, 2)
    assert (summary.pending, aside) == (0, {"7", "150"})


@every_engine
def test_exceptions_of_every_kind_arrive_from_every_engine(engine, path):
    """What cannot be unpickled neither breaks an engine nor loses its name."""
    with ResumableBatch(Checkpoint(path, fsync=False), range(3)) as batch:
        batch.run(engine_lab.raise_awkward, executor=engine)
    errors = [record.error for record in Checkpoint(path, read_only=True).records()]

    assert {error.type for error in errors} == {"engine_lab.Awkward"}
    assert {error.message for error in errors} == {"400: 0", "400: 1", "400: 2"}


def test_a_dask_worker_that_is_killed_from_outside_costs_nothing(path):
    """Nothing is lost and nothing is booked as an error; what was with it runs again."""
    with engine_lab.dask_client() as client:
        worker = next(iter(client.run(os.getpid).values()))
        done = threading.Event()

        def kill_at_a_third(event):
            if event.done >= 70 and not done.is_set():
                done.set()
                os.kill(worker, signal.SIGKILL)

        with ResumableBatch(
            Checkpoint(path, fsync=False), range(200), progress=kill_at_a_third
        ) as batch:
            summary = batch.run(double, executor=client.get_executor(pure=False))

    assert done.is_set()
    assert (summary.ok, summary.errors, summary.quarantined) == (200, 0, 0)
    assert len(statuses(path)) == 200


def test_dask_swallows_no_retry(path):
    """Also with its default, where an equal call gets the result of the first one."""
    with engine_lab.dask_client() as client:
        retry = Backoff(attempts=3, initial=0)
        with ResumableBatch(Checkpoint(path, fsync=False), range(4), retry=retry) as batch:
            summary = batch.run(engine_lab.fail_twice, executor=client.get_executor())

    assert (summary.ok, summary.attempts) == (4, 12)


# One script, one checkpoint

SCRIPT = """
import contextlib, os, sys
import engine_lab
from lockstitch import Checkpoint, ResumableBatch
def work(item):
    log = os.open(os.environ["LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(log, b"%d\\n" % item)
    os.close(log)
    return {"square": item * item}
def main(path, engine):
    with contextlib.ExitStack() as stack:
        kwargs = {}
        if engine == "serial":
            pass
        elif engine == "threads":
            kwargs = {"concurrency": 2}
        else:
            kwargs = {"executor": stack.enter_context(engine_lab.ENGINES[engine]())}
        batch = stack.enter_context(ResumableBatch(Checkpoint(path), range(COUNT)))
        batch.run(work, **kwargs)
    return batch.exit_code
COUNT = 400
if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
"""


def test_one_script_and_one_checkpoint_under_every_engine(tmp_path, path, monkeypatch):
    """Begun serially, killed; then threads, processes, Dask and Ray: each id once, same results."""
    for each in ("dask", "distributed", "ray"):
        pytest.importorskip(each)
    monkeypatch.setenv("PYTHONPATH", engine_lab.HERE)
    script, log = tmp_path / "script.py", tmp_path / "log"
    script.write_text(SCRIPT)
    monkeypatch.setenv("LOG", str(log))
    for number, engine in enumerate(["serial", "threads", "spawn", "dask", "ray"], 1):
        process = start(script, path, engine)
        if engine == "ray":
            assert process.wait(PATIENCE) == 0
        else:
            wait_until(lambda wanted=80 * number: count(path) >= wanted, process)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(PATIENCE)
    records = [json.loads(line) for line in path.read_text().splitlines() if '{"id"' in line[:5]]

    assert sorted(int(record["id"]) for record in records) == list(range(400))
    assert {(int(r["id"]), r["result"]["square"]) for r in records} == {
        (n, n * n) for n in range(400)
    }
    assert {record["status"] for record in records} == {"ok"}
    begun = len(log.read_text().splitlines())
    assert begun <= 400 + 1 + 2 + 3 * 2 * WORKERS  # again ran only what was in flight at a kill


def start(script, *arguments):
    import subprocess

    return subprocess.Popen(
        [sys.executable, script, *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def count(path):
    return path.read_bytes().count(b'\n{"id":') if path.exists() else 0


def wait_until(condition, process):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
