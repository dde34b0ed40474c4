"""The decorator: around the body of a loop, and around the whole loop."""

import itertools
import multiprocessing
import pickle
import re
import threading

import pytest

from lockstitch import (
    Backoff,
    BatchStopped,
    Checkpoint,
    CheckpointLocked,
    ItemFailed,
    Limit,
    RateLimited,
    UsageError,
    resumable,
)
from lockstitch.testing import fake_clock, memory_storage

CASES = [{"id": f"c{number}"} for number in range(5)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.jsonl"


def make(path, fail=(), **arguments):
    """Return a decorated function and the list of ids it was really called with."""
    calls = []

    @resumable(path, key="id", **arguments)
    def evaluate(case):
        """Evaluate a case."""
        calls.append(case["id"])
        if case["id"] in fail:
            raise ValueError("bad")
        return {"score": len(calls)}

    return evaluate, calls


def test_a_call_for_a_finished_item_returns_its_result_without_a_call(path):
    """The second pass over a loop costs nothing and gives the same results."""
    evaluate, calls = make(path)
    first = [evaluate(case) for case in CASES]
    evaluate.close()
    again, more_calls = make(path)

    assert [again(case) for case in CASES] == first
    assert (len(calls), more_calls) == (5, [])
    again.close()


def test_nothing_happens_before_the_first_call(tmp_path):
    """Decorating opens no file, so importing a module locks nothing."""
    make(tmp_path / "run.jsonl")

    assert list(tmp_path.iterdir()) == []


def test_an_exception_is_let_through_and_its_item_is_pending(path):
    """What reached your code is no record; the same call tries again."""
    evaluate, calls = make(path, fail=["c1"])
    for _ in range(2):
        with pytest.raises(ValueError, match="bad"):
            evaluate(CASES[1])
    evaluate.close()

    assert calls == ["c1", "c1"]
    assert "c1" not in evaluate.checkpoint


def test_on_error_record_books_the_error_and_returns_none(path):
    """With on_error="record" the loop goes on, now and in the next run."""
    evaluate, calls = make(path, fail=["c1"], on_error="record")
    results = [evaluate(case) for case in CASES]
    evaluate.close()
    again, more_calls = make(path, on_error="record")

    assert results[1] is None
    assert [again(case) for case in CASES] == results
    assert (len(calls), more_calls) == (5, [])
    again.close()


def test_an_item_that_was_booked_as_failed_raises_item_failed(path):
    """The function is not run; the exception carries the record, and says how to run it again."""
    evaluate, _ = make(path, fail=["c1"])
    evaluate.run(CASES)
    with pytest.raises(ItemFailed, match="redo='error'") as failed:
        evaluate(CASES[1])
    evaluate.close()

    assert failed.value.record.error.type == "ValueError"


def test_redo_runs_an_item_once_more_and_not_at_every_call(path):
    """In one run, a redone item is done."""
    evaluate, _ = make(path, fail=["c1"])
    evaluate.run(CASES)
    again, calls = make(path, redo="error")
    with again:
        for _ in range(3):
            again(CASES[1])

    assert calls == ["c1"]


def test_a_policy_retries_within_the_call(path):
    """A plain call is a batch of one: it waits and tries again before it raises."""
    tries = []

    @resumable(path, retry=Backoff(attempts=3, jitter="none"))
    def flaky(item):
        tries.append(item)
        if len(tries) < 3:
            raise ValueError
        return "good"

    with fake_clock() as clock, flaky:
        assert flaky("a") == "good"

    assert clock.waits == [1.0, 2.0]


def test_a_short_limit_is_waited_out_and_a_long_one_raises(path):
    """BatchStopped reaches the caller of a plain call; the item is pending."""
    limits = iter([Limit.after(30), None, Limit.after(9000)])

    @resumable(path)
    def limited(item):
        limit = next(limits)
        if limit is not None:
            raise RateLimited(limit)
        return item

    with fake_clock() as clock:
        assert limited("a") == "a"
        with pytest.raises(BatchStopped) as stopped:
            limited("b")
        with pytest.raises(BatchStopped):
            limited("b")
        limited.close()

    assert clock.waits == [30.0]
    assert (stopped.value.reason, stopped.value.exit_code) == ("limit", 2)
    assert "b" not in limited.checkpoint


def test_the_with_form_scopes_plain_calls(path):
    """It locks, seals and sums up; afterwards the file is free."""
    evaluate, _ = make(path)
    with evaluate as batch:
        for case in CASES:
            evaluate(case)
        with pytest.raises(CheckpointLocked, match="this very process"):
            Checkpoint(path).save("x")
    with Checkpoint(path) as checkpoint:
        assert checkpoint.stats().stop_reason == "complete"

    assert (batch.summary.ok, batch.exit_code) == (5, 0)


def test_the_with_form_catches_its_own_stop(path):
    """A long limit ends the `with`, not the program."""

    @resumable(path)
    def limited(item):
        raise RateLimited(Limit.after(9000))

    with fake_clock(), limited as batch:
        limited("a")

    assert (batch.exit_code, batch.summary.stopped_by) == (2, "limit")
    assert batch.summary.resume_at is not None


def test_run_and_map_drive_by_themselves(path):
    """Errors are booked, the rest goes on, and map gives every record."""
    evaluate, calls = make(path, fail=["c1"])
    summary = evaluate.run(CASES)
    for _record in evaluate.map([{"id": "left"}, {"id": "early"}]):
        break
    assert evaluate.checkpoint.stats().stop_reason == "left"
    records = list(evaluate.map([*CASES, {"id": "new"}]))

    assert (summary.ok, summary.errors, summary.exit_code) == (4, 1, 1)
    assert [record.status for record in records] == ["ok", "error", "ok", "ok", "ok", "ok"]
    assert calls == ["c0", "c1", "c2", "c3", "c4", "left", "new"]


def test_two_threads_that_ask_for_one_id_get_one_computation(path):
    """One runs, the other gets the same result."""
    inside, go_on = threading.Event(), threading.Event()
    calls = []

    @resumable(path)
    def slow(item):
        calls.append(item)
        inside.set()
        go_on.wait(10)
        return {"n": len(calls)}

    results = []
    threads = [
        threading.Thread(target=lambda: results.append(slow("a")), daemon=True) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    inside.wait(10)
    go_on.set()
    for thread in threads:
        thread.join(10)
    slow.close()

    assert calls == ["a"]
    assert results == [{"n": 1}] * 4


def test_a_function_that_asks_for_its_own_id_is_told_so(path):
    """Waiting for oneself would be a deadlock."""

    @resumable(path)
    def recursive(item):
        return recursive(item)

    with pytest.raises(UsageError, match="calls itself"):
        recursive("a")
    recursive.close()


def test_a_function_may_call_itself_for_other_ids(path):
    """Nested calls are separate items."""

    @resumable(path)
    def factorial(n):
        return 1 if n == 0 else n * factorial(n - 1)

    with factorial:
        assert factorial(5) == 120
        assert len(factorial.checkpoint) == 6


def test_a_generator_is_handed_only_what_is_pending(path):
    """The whole loop as a generator: drawn, yielded, stored, before the next is drawn."""
    drawn = []

    @resumable(path, key="id")
    def loop(cases):
        for case in cases:
            drawn.append(case["id"])
            yield case["id"].upper()

    loop(CASES[:3])
    summary = loop(CASES)

    assert drawn == ["c0", "c1", "c2", "c3", "c4"]
    assert (summary.ok, summary.done_before, summary.exit_code) == (2, 3, 0)
    assert loop.checkpoint["c4"].result == "C4"


def test_an_item_drawn_without_a_yield_stays_pending(path):
    """A `continue` in the generator skips the item for this run only."""

    @resumable(path, key="id")
    def loop(cases):
        for case in cases:
            if case["id"] != "c1":
                yield 1

    summary = loop(CASES)

    assert summary.unsaved == ("c1",)
    assert "c1" not in loop.checkpoint


def test_after_a_skipped_item_the_result_belongs_to_the_one_that_was_drawn_last(path):
    """Also at the end, where nothing is drawn any more."""

    @resumable(path, key="id")
    def loop(cases):
        for case in cases:
            if case["id"] in ("c0", "c2", "c4"):
                yield case["id"]

    summary = loop(CASES)

    assert summary.unsaved == ("c1", "c3")
    assert {record.id: record.result for record in loop.checkpoint.records()} == {
        "c0": "c0",
        "c2": "c2",
        "c4": "c4",
    }


@pytest.mark.parametrize("ahead", [2, 5])
def test_a_generator_that_draws_ahead_is_refused_before_it_stores_a_wrong_result(path, ahead):
    """Its first result is the first item's, and all that is known here is the last one drawn."""

    @resumable(path, key="id")
    def loop(cases):
        cases = iter(cases)
        while batch := list(itertools.islice(cases, ahead)):
            for case in batch:
                yield case["id"]

    with pytest.raises(UsageError, match="several ahead"):
        loop(CASES)

    assert list(loop.checkpoint) == []


def test_a_generator_that_stays_an_item_ahead_is_told_which_results_to_forget(path):
    """It looks like one that leaves its first item out, until it yields once more at the end."""

    @resumable(path, key="id")
    def loop(cases):
        before = None
        for case in cases:
            if case["id"] in ("c0", "c1"):  # in step so far
                yield case["id"]
                continue
            if before is not None:
                yield before["id"]
            before = case
        yield before["id"]

    with pytest.raises(UsageError, match="an item ahead") as caught:
        loop(CASES)
    checkpoint = loop.checkpoint
    wrong = [record.id for record in checkpoint.records() if record.id != record.result]
    command = re.search(r"checkpoint\.forget\(.*\)", str(caught.value))[0]
    eval(command)  # what the user is told to type

    assert wrong == ["c3", "c4"]
    assert list(checkpoint) == ["c0", "c1"]


@pytest.mark.parametrize("kind", ["twice", "before"])
def test_a_generator_yields_once_for_each_item(path, kind):
    """A second yield, or one before any item, belongs to no item."""

    @resumable(path, key="id")
    def loop(cases):
        if kind == "before":
            yield 0
        for _case in cases:
            yield 1
            yield 2

    with pytest.raises(UsageError, match="once for each item"):
        loop(CASES)


def test_an_exception_of_a_generator_is_the_callers(path):
    """The loop ends, its item is pending, and what was yielded is stored."""

    @resumable(path, key="id")
    def loop(cases):
        for case in cases:
            if case["id"] == "c2":
                raise ValueError("mine")
            yield 1

    with pytest.raises(ValueError, match="mine"):
        loop(CASES)

    assert list(loop.checkpoint) == ["c0", "c1"]


def test_a_method_needs_a_key_that_takes_the_same_arguments(path):
    """With a callable key, several parameters and methods are fine."""

    class Client:
        def __init__(self, name):
            self.name = name
            self.calls = 0

        @resumable(path, key=lambda self, item, mode="x": f"{self.name}/{item}/{mode}")
        def fetch(self, item, mode="x"):
            self.calls += 1
            return f"{self.name}:{item}:{mode}"

    one, two = Client("one"), Client("two")
    with Client.fetch:
        results = [one.fetch(1), two.fetch(1), one.fetch(1), one.fetch(1, mode="y")]
        with pytest.raises(UsageError, match="more than one argument"):
            Client.fetch.run([1])

    assert results == ["one:1:x", "two:1:x", "one:1:x", "one:1:y"]
    assert (one.calls, two.calls) == (2, 1)


def two(item, mode):
    return item


async def asynchronous(items):
    for item in items:
        yield item


def generator_of_two(items, mode):
    yield from items


class NotAFunction:
    pass


@pytest.mark.parametrize(
    "decorate",
    [
        lambda path: resumable(path)(two),
        lambda path: resumable(path, key="id")(two),
        lambda path: resumable(path)(lambda item, mode="m": item),
        lambda path: resumable(path)(generator_of_two),
        lambda path: resumable(path)(asynchronous),
        lambda path: resumable(path)(3),
        lambda path: resumable(path)(classmethod(two)),
        lambda path: resumable(path, on_error="ignore"),
        lambda path: resumable(path, concurency=3),
        lambda path: resumable(path, max_wait=-1),
        lambda path: resumable(path, key=3),
        lambda path: resumable(two),
        lambda path: resumable(3),
        lambda path: resumable(path, on_error="record")(lambda items: (yield)),
        lambda path: resumable(path, retry=Backoff())(lambda items: (yield)),
    ],
)
def test_what_cannot_work_is_refused_when_decorating(tmp_path, decorate):
    """The mistake is named at import, before anything is paid for."""
    with pytest.raises(UsageError):
        decorate(tmp_path / "run.jsonl")

    assert list(tmp_path.iterdir()) == []


@resumable("module-level.jsonl")
def at_module_level(item):
    return item * 2


def test_the_bare_function_stays_reachable():
    """Tests of your function need no checkpoint."""
    assert at_module_level.__wrapped__(4) == 8
    assert at_module_level.__name__ == "at_module_level"
    assert "module-level.jsonl" in repr(at_module_level)


def test_it_pickles_by_its_name():
    """A decorated function crosses to another process as its name."""
    assert pickle.loads(pickle.dumps(at_module_level)) is at_module_level


def test_a_forked_child_is_refused(path):
    """Only the parent may write: a call in a forked worker says so."""
    evaluate, _ = make(path)
    evaluate(CASES[0])
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def child():
        try:
            evaluate(CASES[1])
        except UsageError as error:
            answers.put(str(error))
        else:
            answers.put("no error")

    process = context.Process(target=child)
    process.start()
    answer = answers.get()
    process.join(10)
    evaluate(CASES[1])
    evaluate.close()

    assert "before a fork" in answer


def test_a_forgotten_close_is_made_up_for(path):
    """When the decorated function goes, its run is sealed; nothing relies on it."""
    evaluate, _ = make(path)
    evaluate(CASES[0])
    del evaluate

    assert Checkpoint(path, read_only=True).stats().stop_reason == "complete"


def test_a_batch_in_memory_leaves_no_file(tmp_path, monkeypatch):
    """With memory_storage, a test of a decorated function touches no disk."""
    monkeypatch.chdir(tmp_path)
    with memory_storage():
        evaluate, calls = make("run.jsonl")
        evaluate.run(CASES)
        evaluate.run(CASES)

    assert len(calls) == 5
    assert list(tmp_path.iterdir()) == []
