"""What is special to workers in other processes: what travels, what dies, what is refused."""

import asyncio
import contextlib
import functools
import json
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)

import engine_lab
import orjson
import pytest
from engine_lab import WORKERS, Point, decorated, double, fatal

from lockstitch import (
    Backoff,
    BatchStopped,
    Checkpoint,
    JSONSerializer,
    LockstitchError,
    ResumableBatch,
    SerializationFailed,
    UsageError,
)
from lockstitch._worker import probe
from lockstitch.testing import fake_clock

PATIENCE = 30

pytestmark = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="the quick start method here"
)


def make_pool():
    return ProcessPoolExecutor(WORKERS, multiprocessing.get_context("fork"))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.jsonl"


@pytest.fixture
def pool():
    with make_pool() as executor:
        yield executor


def lines(path, kind):
    with open(path) as file:
        return [line for line in map(json.loads, file) if next(iter(line)) == kind]


def statuses(path):
    return {record.id: record.status for record in Checkpoint(path, read_only=True).records()}


def run(path, fn, items, executor=make_pool, chunk=1, concurrency=None, **settings):
    checkpoint = path if isinstance(path, Checkpoint) else Checkpoint(path, fsync=False)
    with ResumableBatch(checkpoint, items, **settings) as batch:
        batch.run(fn, executor=executor, chunk=chunk, concurrency=concurrency)

    return batch.summary


# What travels


def test_the_worker_knows_its_attempt(path):
    """Id, item, number, run and idempotency key are those that the coordinator would tell."""
    run(path, engine_lab.describe, [5])
    batch = json.loads(path.read_text().splitlines()[0])["batch"]

    assert Checkpoint(path, read_only=True)["5"].result == ["5", 5, 1, 1, f"{batch}:5"]


@pytest.mark.parametrize("what", ["save", "save_cursor", "step", "cursor"])
def test_what_needs_the_checkpoint_is_refused_in_a_worker(path, what):
    """There is no checkpoint where the function runs, and the error says so."""
    with pytest.raises(UsageError, match=rf"^{what} needs the checkpoint.*worker"):
        run(path, engine_lab.use_checkpoint, [what])

    assert statuses(path) == {}


def test_an_exception_that_cannot_be_unpickled_is_an_error_like_any_other(path):
    """Only its description travels, so it breaks no pool; a policy sees no exception."""
    seen = []
    run(path, engine_lab.raise_awkward, range(4), retry=seen.append)
    error = Checkpoint(path, read_only=True)["2"].error

    with pytest.raises(TypeError):
        engine_lab.Awkward(*engine_lab.Awkward(1, 2).args)  # which is how pickle makes it anew
    assert (error.type, error.message) == ("engine_lab.Awkward", "400: 2")
    assert "raise Awkward(400, item)" in error.traceback
    assert "\nIn process " in error.traceback
    assert [failure.exception for failure in seen] == [None] * 4
    assert all(failure.matches(engine_lab.Awkward, Exception) for failure in seen)


@pytest.mark.parametrize(
    ("client", "kind"),
    [
        ("httpx", "httpx.HTTPStatusError"),
        ("openai", "openai.BadRequestError"),
        ("aiohttp", "aiohttp.client_exceptions.ClientResponseError"),
    ],
)
def test_exceptions_of_real_clients_arrive(path, client, kind):
    """Those that break a bare process pool are booked under their own names."""
    pytest.importorskip(client)
    summary = run(path, engine_lab.raise_of_client, [client])

    assert (summary.errors, summary.quarantined) == (1, 0)
    assert Checkpoint(path, read_only=True)[client].error.type == kind


def test_a_result_that_cannot_be_stored_is_found_out_in_the_worker(path):
    """Not even a pickle of it is made: the pool stays whole, and the item is named."""
    with pytest.raises(SerializationFailed) as caught:
        run(path, engine_lab.unstorable, range(20))

    assert caught.value.id == "3"
    assert "3" not in statuses(path)


def make_json():
    import cattrs

    return JSONSerializer(cattrs.Converter())


@pytest.mark.parametrize(
    ("serializer", "result_type"),
    [(None, Point), (orjson, Point), (pickle, None), (make_json, Point)],
    ids=["json", "orjson", "pickle", "own converter"],
)
def test_results_come_back_as_what_they_were(path, serializer, result_type):
    """Whatever stores them: encoded in the worker, or pickled where the codec cannot go there."""
    if serializer is make_json:
        serializer = make_json()
    checkpoint = Checkpoint(path, fsync=False, serializer=serializer, result_type=result_type)
    run(checkpoint, engine_lab.point, range(5))

    assert [checkpoint[str(each)].result for each in range(5)] == [Point(x) for x in range(5)]


def test_a_serializer_with_state_keeps_it(path):
    """One that cannot go to a worker whole does not go there: the results travel pickled."""
    checkpoint = Checkpoint(path, fsync=False, serializer=engine_lab.Scaled(100))
    run(checkpoint, double, [1])

    assert checkpoint["1"].result == 2


def test_a_result_type_that_does_not_travel_is_not_the_functions_fault(path):
    """A local class stays with the coordinator, and the results travel pickled."""

    class Local(int):
        pass

    run(Checkpoint(path, fsync=False, result_type=list[Local]), engine_lab.nothing, [1])

    assert Checkpoint(path, read_only=True)["1"].result == []


def test_a_stop_while_a_worker_is_awaited_sends_nothing(path):
    """What was to be sent is pending, and not in front of workers that may never come."""
    sent = []

    class Silent(Executor):
        def submit(self, fn, /, *args):
            sent.append(fn)
            if len(sent) == 1:
                raise BrokenExecutor
            batch._session.stop("SIGINT")
            return Future()

    with ResumableBatch(path, range(3)) as batch, contextlib.suppress(BatchStopped):
        batch.run(double, executor=Silent)

    assert (sent[1:], batch.summary.unsaved) == ([probe], ())


def test_what_was_computed_in_a_worker_is_stored_as_durably(path):
    """With fsync=True, too, every record is there, and the seconds are the worker's."""
    checkpoint = Checkpoint(path)
    run(checkpoint, double, range(50))

    assert {record.result for record in checkpoint.records()} == set(range(0, 100, 2))
    assert all(record.seconds < 1 for record in checkpoint.records())


def test_retries_are_counted_for_the_worker_too(path):
    """An attempt is told its number, so a retry is no equal call."""
    with fake_clock():
        summary = run(path, engine_lab.fail_twice, range(6), retry=Backoff(attempts=3))

    assert (summary.ok, summary.attempts) == (6, 18)
    assert {r.result for r in Checkpoint(path, read_only=True).records()} == {3}


def test_an_exit_inside_an_item_ends_the_program(path, pool):
    """`sys.exit` in a worker is not booked: it means what it means in a loop."""
    with pytest.raises(SystemExit) as caught:
        run(path, engine_lab.leave, range(9), pool)

    assert (caught.value.code, statuses(path)) == (5, {})


# What must not hang


@pytest.mark.parametrize("name", ["Unfit", "Unspeakable"])
def test_what_cannot_be_made_anew_ends_the_batch_by_its_name(path, name):
    """An exception with a constructor, or a text, that breaks is told of all the same."""
    with pytest.raises(LockstitchError, match=name):
        run(path, engine_lab.raise_named, [name])

    assert statuses(path) == {}


def test_a_limit_at_the_end_of_time_parks(path):
    """It is rounded past the last year on its way, and is a limit still."""
    with ResumableBatch(path, ["far"]) as batch:
        batch.run(engine_lab.raise_named, executor=ThreadPoolExecutor)

    assert batch.summary.stopped_by == "limit"


class Odd(Executor):
    """Answers every call with what it was told to answer."""

    def __init__(self, answer):
        self.answer = answer

    def submit(self, fn, /, *args):
        return self.answer


def done(result):
    future = Future()
    future.set_result(result)
    return future


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "no future"),
        (done(None), "answered None"),
        (done([]), r"answered \[\]"),
    ],
)
@pytest.mark.parametrize("fsync", [True, False])
def test_an_engine_that_answers_nonsense_stops_the_batch(path, answer, message, fsync):
    """What goes wrong where the engine calls back is raised by the loop."""
    with pytest.raises(UsageError, match=message):
        run(Checkpoint(path, fsync=fsync), double, range(3), Odd(answer))

    assert statuses(path) == {}


def test_where_no_thread_can_be_started_results_are_stored_all_the_same(path, monkeypatch):
    """The thread that brings them stores them, and each is stored once."""
    start = threading.Thread.start

    def refuse(thread):
        if thread.name.startswith("lockstitch-save"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    summary = run(Checkpoint(path), double, range(9), ThreadPoolExecutor)

    assert (summary.ok, len(lines(path, "id"))) == (9, 9)


# The input


class Window:
    """A generator's view of how far it is ahead of the results."""

    def __init__(self, count):
        self.count, self.drawn, self.done, self.widest = count, 0, 0, 0

    def __iter__(self):
        for item in range(self.count):
            self.drawn += 1
            self.widest = max(self.widest, self.drawn - self.done)
            yield item

    def finished(self, event):
        self.done = event.done


@pytest.mark.parametrize("chunk", [1, 10])
def test_the_input_is_drawn_as_workers_become_free(path, pool, chunk):
    """Twice as many items as workers are ahead, times those that travel together."""
    window = Window(300)
    summary = run(path, double, iter(window), pool, chunk, progress=window.finished)

    assert summary.ok == 300
    assert window.widest <= 2 * WORKERS * chunk + 1


@pytest.mark.parametrize(("given", "expected"), [(None, 2 * WORKERS), (5, 10)])
def test_concurrency_says_how_many_workers_there_are(path, pool, given, expected):
    """Without it, the executor is asked."""
    window = Window(100)
    run(path, double, iter(window), pool, concurrency=given, progress=window.finished)

    assert expected - 1 <= window.widest <= expected + 1


# Chunks


def test_chunks_change_no_record(path, pool):
    """What travels together is stored one by one, the rest that fills no chunk included."""
    run(path, double, range(47), pool, chunk=10)
    found = {r.id: (r.result, r.attempt) for r in Checkpoint(path, read_only=True).records()}

    assert found == {str(item): (2 * item, 1) for item in range(47)}


def test_a_limit_in_a_chunk_holds_for_the_rest_of_it(path, pool, tmp_path):
    """The others in the chunk are not tried against it, and no attempt is used up."""
    items = [{"id": str(n), "folder": str(tmp_path)} for n in range(12)]
    with fake_clock():
        summary = run(path, engine_lab.limited_at_three, items, pool, chunk=6, key="id")

    assert (summary.ok, summary.errors) == (12, 0)
    assert summary.waited_seconds >= 30
    assert {record.attempt for record in Checkpoint(path, read_only=True).records()} == {1}


def test_a_death_in_a_chunk_blames_one(path):
    """Those that travelled with it run alone once, and are fine."""
    summary = run(path, fatal, range(30), chunk=8, max_crashes=1)

    assert (summary.ok, summary.quarantined) == (29, 1)


class Counting(Executor):
    """Counts what is submitted to another executor."""

    def __init__(self, executor):
        self.executor, self._max_workers, self.jobs = executor, WORKERS, 0

    def submit(self, fn, /, *args):
        self.jobs += 1
        return self.executor.submit(fn, *args)


def test_chunks_stay_full(path, pool):
    """While workers are busy, a result makes room for one item, which waits for others."""
    counting = Counting(pool)
    run(path, engine_lab.double_slowly, range(400), counting, chunk=50)

    assert counting.jobs <= 400 / 50 + 2 * WORKERS


def test_a_stop_sends_what_is_gathered(path, pool):
    """What was handed out is finished when a guard breaks, also a chunk that is not full."""
    asked = []

    def guard():
        asked.append(1)
        if len(asked) > 25:
            raise ConnectionError("no answer")

    with pytest.raises(ConnectionError):
        run(path, double, range(100), pool, chunk=10, guard=guard)

    assert len(statuses(path)) == 25


# Deaths


def test_two_killers_are_set_aside_and_all_others_finish(path):
    """Suspects run alone, three times each; what was beside them is not blamed."""
    summary = run(path, fatal, range(200))
    found = statuses(path)

    assert (summary.ok, summary.quarantined, summary.pending) == (198, 2, 0)
    assert {id for id, status in found.items() if status == "quarantined"} == {"7", "150"}
    crashes = [line["crashes"] for line in lines(path, "died") if line["died"] == "7"]
    assert crashes == [0, 1, 2]
    assert "3 times" in Checkpoint(path, read_only=True)["7"].error.message


def test_an_executor_that_was_passed_in_and_broke_stops_the_batch(path, caplog):
    """It cannot be made anew here; what it was at is pending, and runs alone next time."""
    with make_pool() as executor, pytest.raises(UsageError, match="executor=make_pool") as caught:
        run(path, fatal, range(20), executor)

    assert isinstance(caught.value.__cause__, BrokenExecutor)
    assert set(statuses(path).values()) <= {"ok"}
    suspects = [line["died"] for line in lines(path, "died")]
    assert "7" in suspects
    assert not [record for record in caplog.records if record.levelname == "ERROR"]

    summary = run(path, fatal, range(20), max_crashes=2)
    assert (summary.ok + summary.done_before, summary.quarantined) == (19, 1)
    begun = [next(iter(line.items())) for line in map(json.loads, path.read_text().splitlines())]
    first = begun.index(("run", 2))
    assert begun[first + 1][0] == "start"
    assert begun[first + 2][1] == begun[first + 1][1]  # nothing was begun beside it


def test_crashes_are_counted_over_restarts(path):
    """What died alone in a worker twice has one crash left in the next run."""
    for crashes in (1, 2):
        with make_pool() as executor, pytest.raises(UsageError):
            run(path, fatal, [7], executor)
        assert lines(path, "died")[-1]["crashes"] == crashes - 1
    with make_pool() as executor, pytest.raises(UsageError):
        run(path, fatal, [7], executor)
    Checkpoint(path).compact()
    with make_pool() as executor, pytest.raises(UsageError):
        run(path, fatal, [7], executor)

    assert statuses(path) == {"7": "quarantined"}


UNGUARDED = """
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from lockstitch import ResumableBatch, UsageError
def work(item):
    return item
def make_pool():
    return ProcessPoolExecutor(2, get_context("spawn"))
with ResumableBatch(sys.argv[1], range(9)) as batch:
    batch.run(work, executor=make_pool)
"""


def test_a_pool_that_cannot_start_blames_no_item(tmp_path, path):
    """The classical one: a script without its main guard breaks every pool it makes."""
    import subprocess

    script = tmp_path / "script.py"
    script.write_text(UNGUARDED)
    done = subprocess.run(
        [sys.executable, script, path], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 1
    assert "before it has worked on any item" in done.stderr
    assert '__name__ == "__main__"' in done.stderr
    assert statuses(path) == {}


def test_an_interrupted_worker_answers_nothing(path):
    """A KeyboardInterrupt in a worker is no error of the item; without a stop it runs alone."""
    summary = run(path, engine_lab.interrupt_twice, range(5), max_crashes=2)

    assert (summary.ok, summary.errors, summary.quarantined) == (4, 0, 1)


CTRL_C = """
import multiprocessing, os, sys
from concurrent.futures import ProcessPoolExecutor
from engine_lab import wait_for_file
from lockstitch import ResumableBatch
def make_pool():
    return ProcessPoolExecutor(2, multiprocessing.get_context("fork"))
items = [{"id": str(n), "folder": sys.argv[2]} for n in range(20)]
with ResumableBatch(sys.argv[1], items, key="id") as batch:
    batch.run(wait_for_file, executor=make_pool)
"""


def test_what_a_ctrl_c_kills_in_the_workers_is_pending(child, path, tmp_path, monkeypatch):
    """A terminal sends it to all of the group: nothing is booked, and the next run goes on."""
    monkeypatch.setenv("PYTHONPATH", engine_lab.HERE)
    process = child(CTRL_C, path, tmp_path, start_new_session=True)
    deadline = time.monotonic() + PATIENCE
    while len(list(tmp_path.glob("begun-*"))) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    said = process.stderr.readline()
    (tmp_path / "go").touch()  # what waited in front of the workers is finished
    _, err = process.communicate(timeout=PATIENCE)

    assert process.returncode == -signal.SIGINT, err
    assert "SIGINT: finishing 4 items" in said
    assert "finishing" not in err  # the workers have nothing to say about it
    assert statuses(path) == {"2": "ok", "3": "ok"}
    assert lines(path, "end")[-1]["reason"] == "signal"
    assert not lines(path, "died")

    items = [{"id": str(n), "folder": str(tmp_path)} for n in range(20)]
    assert run(path, engine_lab.wait_for_file, items, key="id").ok == 18


# Whose it is


def test_an_executor_that_was_passed_in_is_left_open(path, pool):
    """Whoever made it closes it; the batch may be one of many users."""
    run(path, double, range(9), pool)

    assert pool.submit(double, 4).result() == 8


def test_an_executor_of_a_factory_is_shut_down(path):
    """Made here, closed here; a class is a factory too."""
    made = []

    def make():
        made.append(ThreadPoolExecutor(2))
        return made[-1]

    run(path, double, range(9), make)

    assert len(made) == 1
    with pytest.raises(RuntimeError, match="shutdown"):
        made[0].submit(double, 1)


def test_map_gives_the_records_of_an_executor(path, pool):
    """Every item's record comes by, as with threads."""
    with ResumableBatch(path, range(20)) as batch:
        records = list(batch.map(double, executor=pool))

    assert {record.id: record.result for record in records} == {str(n): 2 * n for n in range(20)}


# Decorated functions


def test_a_decorated_function_runs_bare_in_the_workers(tmp_path, monkeypatch):
    """It is found by its name there, and only the coordinator writes its checkpoint."""
    monkeypatch.setattr(decorated, "checkpoint", Checkpoint(tmp_path / "d.jsonl", fsync=False))
    summary = decorated.run(range(20), executor=make_pool)
    results = {record.result for record in decorated.map(range(20), executor=make_pool)}

    assert (summary.ok, results) == (20, set(range(0, 60, 3)))


def test_a_plain_decorated_call_in_a_worker_names_the_other_form(pool):
    """A second writer is refused before it opens anything."""
    with pytest.raises(UsageError, match=r"decorated\.run\(items, executor=…\)"):
        pool.submit(decorated, 3).result()


def test_a_decorated_function_that_no_name_leads_to_is_not_sent(path, pool):
    """It is refused where it is sent from, not by the death of who receives it."""
    local = functools.partial(engine_lab.resumable(path))(lambda item: item)

    with pytest.raises(UsageError, match="top level of a module"):
        local.run([1], executor=pool)


# Refused


def shut_down():
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    return executor


async def make_async():
    return ThreadPoolExecutor(1)


@pytest.mark.parametrize(
    ("executor", "message"),
    [
        (5, "takes a concurrent.futures.Executor"),
        ("dask", "takes a concurrent.futures.Executor"),
        (asyncio.Runner(), "takes a concurrent.futures.Executor"),
        (lambda: 5, "returned 5"),
        (make_async, "returned <coroutine"),
        (shut_down(), "has it been shut down"),
    ],
)
def test_what_is_no_executor_is_refused(path, executor, message):
    """A clear word, and nothing is booked."""
    with pytest.raises(UsageError, match=message):
        run(path, double, range(9), executor)

    assert statuses(path) == {}


@pytest.mark.parametrize("chunk", [1, 4])
def test_a_function_that_cannot_be_sent_is_refused_at_the_first_item(path, pool, chunk):
    """A lambda has no name in its module; no item is to blame."""
    with pytest.raises(UsageError, match="not a lambda"):
        run(path, lambda item: item, range(9), pool, chunk)

    assert statuses(path) == {}
    assert run(path, double, range(9), pool).ok == 9


def test_an_item_that_cannot_be_sent_is_named(path, pool):
    """It stops the batch; its id says which one it is."""
    items = [{"id": "a", "lock": None}, {"id": "b", "lock": multiprocessing.get_context}]
    items[1]["lock"] = lambda: None
    with pytest.raises(UsageError, match="'b' could not be sent"):
        run(path, str, items, pool, key="id")


async def coroutine(item):
    return item


def test_arguments_that_do_not_go_together_are_refused(path, pool):
    """affinity= and chunk= are each for one kind of worker; coroutines are for arun."""
    with ResumableBatch(path, range(3)) as batch:
        with pytest.raises(UsageError, match="affinity="):
            batch.run(double, executor=pool, affinity=True)
        with pytest.raises(UsageError, match="goes with executor="):
            batch.run(double, chunk=5)
        with pytest.raises(UsageError, match="chunk="):
            batch.run(double, executor=pool, chunk=0)
        with pytest.raises(UsageError, match="arun"):
            batch.run(coroutine, executor=pool)
        with pytest.raises(UsageError, match=r"batch\.run"):
            asyncio.run(batch.arun(coroutine, executor=pool))


class Strange(Executor):
    """An engine that does not tell its size, and answers equal calls with what it has."""

    def __init__(self):
        self.answers = {}

    def submit(self, fn, /, *args):
        key = pickle.dumps((fn, args))
        if key not in self.answers:
            with ThreadPoolExecutor(1) as executor:
                self.answers[key] = executor.submit(fn, *args)
        return self.answers[key]


def test_an_engine_that_knows_equal_calls_again_swallows_no_retry(path):
    """No two submissions are equal, not even two of one attempt that a limit lies between."""
    with fake_clock():
        summary = run(path, engine_lab.fail_twice, range(6), Strange(), retry=Backoff(attempts=3))

    assert (summary.ok, summary.attempts) == (6, 18)
