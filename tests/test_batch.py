"""The context manager: what runs, what is left out, what is stored, how it ends."""

import errno
import logging
import random
import subprocess
import sys

import pytest

from lockstitch import (
    Backoff,
    Checkpoint,
    ErrorInfo,
    Limit,
    RateLimited,
    ResumableBatch,
    SerializationFailed,
    Summary,
    UsageError,
    current_attempt,
)
from lockstitch.testing import fake_clock, memory_storage

CASES = [{"id": f"case-{number}"} for number in range(6)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.jsonl"


def ids_run(path, items, **arguments):
    """Run a batch over `items` that does nothing; return the ids that it ran."""
    ran = []
    with ResumableBatch(path, items, key="id", **arguments) as batch:
        batch.run(lambda case: ran.append(case["id"]))
    return ran


def test_only_pending_items_are_handed_out(path):
    """What is saved is not handed out again, in the same run or the next."""
    with ResumableBatch(path, CASES, key="id") as batch:
        for case in batch:
            batch.save(case, {"score": 1}, status="pass")
            if case is CASES[2]:
                break
    with ResumableBatch(path, CASES, key="id") as batch:
        assert [case["id"] for case in batch] == ["case-3", "case-4", "case-5"]


@pytest.mark.parametrize("seed", range(5))
def test_a_changed_input_runs_exactly_the_new_ids(path, seed):
    """Prepended, shuffled, shrunk, grown: done is a matter of the id and nothing else."""
    shuffle = random.Random(seed)
    known = [{"id": f"i{number}"} for number in range(50)]
    ids_run(path, known)
    changed = shuffle.sample(known, 30) + [{"id": f"new{number}"} for number in range(20)]
    shuffle.shuffle(changed)

    assert sorted(ids_run(path, changed)) == sorted(f"new{number}" for number in range(20))
    assert ids_run(path, [{"id": "first"}, *known]) == ["first"]


def test_every_status_counts_as_done_until_a_redo_is_asked_for(path):
    """pass, fail and error are answers; `redo` names those that are to be asked again."""
    with ResumableBatch(path, CASES[:3], key="id") as batch:
        for case, status in zip(batch, ["pass", "fail", None], strict=True):
            if status is None:
                batch.fail(case, ValueError("bad"))
            else:
                batch.save(case, status=status)

    assert ids_run(path, CASES[:3]) == []
    assert ids_run(path, CASES[:3], redo="error") == ["case-2"]
    assert ids_run(path, CASES[:3], redo=["fail", "error"]) == ["case-1"]
    assert ids_run(path, CASES[:3], redo=lambda record: record.status == "pass") == ["case-0"]
    assert ids_run(path, CASES[:3], redo="ok") == ["case-0", "case-1", "case-2"]


def test_an_exception_in_an_attempt_is_booked_and_the_loop_goes_on(path):
    """One bad item costs one error record and nothing else."""
    with ResumableBatch(path, CASES, key="id") as batch:
        for case in batch:
            with batch.attempt(case) as attempt:
                if case is CASES[1]:
                    raise ValueError("bad item")
                attempt.save({"score": 1})
    record = batch.checkpoint["case-1"]

    assert (batch.summary.ok, batch.summary.errors, batch.exit_code) == (5, 1, 1)
    assert (record.status, record.error.type, record.error.message) == (
        "error",
        "ValueError",
        "bad item",
    )
    assert "test_batch.py" in record.error.traceback
    assert "lockstitch/_" not in record.error.traceback


def test_run_books_what_attempts_book(path, tmp_path):
    """The bare loop and run() leave the same records behind."""

    def work(case):
        if case is CASES[3]:
            raise KeyError("k")
        return {"n": case["id"]}

    with ResumableBatch(path, CASES, key="id") as batch:
        for case in batch:
            with batch.attempt(case) as attempt:
                attempt.save(work(case))
    with ResumableBatch(tmp_path / "other.jsonl", CASES, key="id") as other:
        summary = other.run(work)

    def facts(checkpoint):
        return [
            (r.id, r.status, r.result, r.error and r.error.message, r.attempt, r.run)
            for r in checkpoint.records()
        ]

    assert facts(batch.checkpoint) == facts(other.checkpoint)
    assert summary.by_status == batch.summary.by_status == {"ok": 5, "error": 1}


def test_errors_of_an_earlier_run_keep_the_exit_code_at_1(path):
    """A second start that has nothing to do does not turn a failed batch into a good one."""
    for _ in range(2):
        with ResumableBatch(path, CASES, key="id") as batch:
            batch.run(lambda case: 1 / (case["id"] != "case-0"))
        assert batch.exit_code == 1

    assert batch.summary.errors_before == 1


def test_leaving_early_leaves_the_rest_pending_with_exit_code_2(path, caplog):
    """A break is not an end: exit code 2, and a line that says how to go on."""
    with ResumableBatch(path, CASES, key="id") as batch:
        for case in batch:
            batch.save(case)
            break

    assert (batch.exit_code, batch.summary.pending, batch.complete) == (2, 5, False)
    assert "run it again to go on" in caplog.text


def test_a_break_after_the_last_item_is_an_end(path):
    """Whoever leaves with nothing pending has finished."""
    with ResumableBatch(path, CASES[:1], key="id") as batch:
        for case in batch:
            batch.save(case)
            break

    assert (batch.exit_code, batch.complete) == (0, True)


@pytest.mark.parametrize("leave", ["continue", "fall through"])
def test_an_item_left_without_a_save_is_pending_and_named(path, caplog, leave):
    """An item handed out and never saved is not done, and the log says which one it was."""
    with ResumableBatch(path, CASES[:2], key="id") as batch:
        for case in batch:
            with batch.attempt(case) as attempt:
                if case is CASES[0]:
                    if leave == "continue":
                        continue
                else:
                    attempt.save()

    assert batch.summary.unsaved == ("case-0",)
    assert batch.checkpoint.stats().completed_at is None
    assert (batch.exit_code, batch.summary.pending) == (1, 1)
    assert "'case-0'" in caplog.text
    assert ids_run(path, CASES[:2]) == ["case-0"]


def test_items_may_be_saved_later_than_the_next_is_drawn(path):
    """Collecting items and saving them together works; each counts once."""
    with ResumableBatch(path, CASES, key="id") as batch:
        waiting = []
        for case in batch:
            waiting.append(case)
            if len(waiting) == 3:
                for each in waiting:
                    batch.save(each)
                waiting = []

    assert (batch.summary.ok, batch.summary.unsaved, batch.exit_code) == (6, (), 0)


def test_an_exception_that_leaves_the_with_leaves_its_item_pending(path):
    """What reached your code is not a record, and the run says that it failed."""
    batch = ResumableBatch(path, CASES, key="id")
    with pytest.raises(ValueError, match="mine"), batch:
        for case in batch:
            if case is CASES[2]:
                raise ValueError("mine")
            batch.save(case)

    assert batch.summary.stopped_by == "failed"
    assert (len(batch.checkpoint), batch.exit_code) == (2, 1)
    assert batch.checkpoint.stats().stop_reason == "failed"
    assert ids_run(path, CASES) == ["case-2", "case-3", "case-4", "case-5"]


def test_a_retry_comes_round_again_and_its_attempts_count_over_runs(path):
    """Attempts of an earlier process are not forgotten."""
    numbers = []

    def work(_case):
        numbers.append(current_attempt().number)
        if len(numbers) == 2:
            raise KeyboardInterrupt
        raise ValueError("again")

    with fake_clock():
        with (
            pytest.raises(KeyboardInterrupt),
            ResumableBatch(path, CASES[:1], key="id", retry=Backoff(attempts=3)) as batch,
        ):
            batch.run(work)
        with ResumableBatch(path, CASES[:1], key="id", retry=Backoff(attempts=3)) as batch:
            batch.run(work)

    assert numbers == [1, 2, 2, 3]
    assert batch.checkpoint["case-0"].attempt == 3
    assert batch.checkpoint["case-0"].run == 2


def test_a_retry_that_is_due_later_survives_a_restart(path):
    """A new process waits for what is left of the delay."""
    failed = []

    def once(_case):
        if not failed:
            failed.append(1)
            raise ValueError("again")

    with fake_clock() as clock:
        for max_wait in (10.0, 600.0):
            with ResumableBatch(
                path, CASES[:1], key="id", retry=lambda _failure: 300.0, max_wait=max_wait
            ) as batch:
                batch.run(once)
            clock.advance(100)

    assert batch.exit_code == 0
    assert clock.waits == [pytest.approx(200.0)]


def test_a_clock_set_back_does_not_delay_a_stored_retry(path):
    """A pending retry waits for the delay that was decided, at the most."""
    from datetime import timedelta

    failed = []

    def once(_case):
        if not failed:
            failed.append(1)
            raise ValueError("again")

    with fake_clock() as clock:
        for max_wait in (10.0, 600.0):
            with ResumableBatch(
                path, CASES[:1], key="id", retry=lambda _failure: 30.0, max_wait=max_wait
            ) as batch:
                batch.run(once)
            clock.set_wall(clock.instant - timedelta(days=365))

    assert batch.exit_code == 0
    assert clock.waits == [30.0]


def test_a_redo_starts_with_a_fresh_budget_of_attempts(path):
    """What was given up after two attempts has two again."""
    numbers = []

    def work(_case):
        numbers.append(current_attempt().number)
        raise ValueError

    with fake_clock():
        for redo in (None, "error"):
            with ResumableBatch(
                path, CASES[:1], key="id", redo=redo, retry=Backoff(attempts=2)
            ) as batch:
                batch.run(work)

    assert numbers == [1, 2, 1, 2]


def test_a_result_that_cannot_be_stored_stops_at_the_first_item(path):
    """A thousand items are not paid for nothing: the batch stops, the item is pending."""
    calls = []
    with (
        pytest.raises(SerializationFailed, match=r"case-0.*\$\.when"),
        ResumableBatch(path, CASES, key="id") as batch,
    ):
        batch.run(lambda case: calls.append(case) or {"when": {1, 2}})

    assert len(calls) == 1
    assert len(Checkpoint(path, read_only=True)) == 0


@pytest.mark.parametrize("concurrency", [1, 2])
def test_a_disk_that_is_full_when_an_error_is_booked_ends_the_batch(path, files, concurrency):
    """Nobody waits for the item whose record could not be written; it is pending."""
    told = []

    def work(item):
        files.on["write"] = files.failing(errno.ENOSPC, times=100)
        told.append(item)
        raise ValueError(item)

    with pytest.raises(OSError, match="No space"), ResumableBatch(path, ["a", "b"]) as batch:
        batch.run(work, concurrency=concurrency)
    del files.on["write"]
    with ResumableBatch(path, ["a", "b"]) as batch:
        batch.run(str.upper)

    assert told
    assert batch.summary.ok == 2


def test_a_full_disk_is_not_an_items_error(path, monkeypatch):
    """An OSError of the save reaches the caller; the item is pending and not booked."""
    from lockstitch._files import SystemFiles

    with pytest.raises(OSError, match="No space"), ResumableBatch(path, CASES, key="id") as batch:
        for case in batch:
            with batch.attempt(case) as attempt:
                if case is CASES[2]:

                    def full(*_arguments):
                        raise OSError(28, "No space left on device")

                    monkeypatch.setattr(SystemFiles, "write", full)
                attempt.save()
    monkeypatch.undo()

    assert ids_run(path, CASES) == ["case-2", "case-3", "case-4", "case-5"]


def test_a_map_yields_stored_records_and_new_ones(path):
    """Every item's record comes out, in whatever run it was made."""
    ids_run(path, CASES[:2])
    with ResumableBatch(path, CASES, key="id") as batch:
        records = list(batch.map(lambda case: case["id"]))

    assert [record.id for record in records] == [case["id"] for case in CASES]
    assert [record.result for record in records[2:]] == [case["id"] for case in CASES[2:]]


def test_a_map_that_is_left_keeps_what_it_has_finished(path):
    """Closing a map early loses nothing that was yielded."""
    with ResumableBatch(path, CASES, key="id") as batch:
        for record in batch.map(lambda case: case["id"]):
            if record.id == "case-1":
                break

    assert (batch.exit_code, batch.summary.stopped_by) == (2, "left")
    assert list(batch.checkpoint) == ["case-0", "case-1"]


def test_a_generator_is_drawn_from_lazily(path):
    """An input of a million items costs one item at a time."""
    drawn = []

    def endless():
        number = 0
        while True:
            drawn.append(number)
            yield number
            number += 1

    with ResumableBatch(path, endless()) as batch:
        for item in batch:
            batch.save(item)
            if item == 9:
                break

    assert drawn == list(range(10))
    assert batch.summary.total is None


def test_two_items_with_one_id_are_refused_before_the_first_runs(path):
    """A sized input is checked whole, and nothing is written."""
    with (
        pytest.raises(UsageError, match="'case-1'"),
        ResumableBatch(path, [*CASES, {"id": "case-1"}], key="id"),
    ):
        pass

    assert not path.exists()


def test_two_items_with_one_id_in_a_generator_are_refused_when_the_second_comes(path):
    """A stream cannot be checked before; what was finished until then is kept."""
    batch = ResumableBatch(path, iter([*CASES, {"id": "case-1"}]), key="id")
    with pytest.raises(UsageError, match="'case-1'"), batch:
        batch.run(lambda _case: None)

    assert len(batch.checkpoint) == 6


def test_an_input_without_a_single_known_id_is_pointed_out(path, caplog):
    """When the key has changed, everything would be paid for again: a warning says so."""
    ids_run(path, CASES)
    with ResumableBatch(path, ["a", "b"]):
        pass

    assert "has key= changed?" in caplog.text


def test_an_enum_of_texts_is_named_by_its_text(path):
    """An id is what the item is equal to, however it prints."""
    import enum

    class Kind(str, enum.Enum):  # noqa: UP042 - StrEnum prints its text; this one does not
        A = "a"

    with ResumableBatch(path, [Kind.A]) as batch:
        batch.run(lambda _item: None)

    assert Kind.A in batch.checkpoint
    assert "a" in batch.checkpoint


def test_a_plan_says_what_would_run(path):
    """plan() counts without running anything."""
    with ResumableBatch(path, CASES[:3], key="id") as batch:
        batch.run(lambda case: 1 / (case is not CASES[0]))
    with ResumableBatch(path, CASES[2:], key="id", redo="error") as batch:
        plan = batch.plan()

    assert (plan.total, plan.done, plan.pending, plan.new, plan.gone) == (4, 1, 3, 3, 2)
    assert plan.by_status == {"ok": 1}
    assert "3 of 4 pending" in str(plan)


def test_a_plan_of_a_generator_is_refused(path):
    """Reading a generator for the plan would use it up."""
    with ResumableBatch(path, iter(CASES), key="id") as batch, pytest.raises(UsageError):
        batch.plan()


def test_saving_what_was_not_handed_out_is_refused(path):
    """An unknown id and a second save are mistakes, and nothing is written."""
    with ResumableBatch(path, CASES[:2], key="id") as batch:
        with pytest.raises(UsageError, match="was not handed out"):
            batch.save({"id": "other"})
        for case in batch:
            batch.save(case, 1)
            with pytest.raises(UsageError, match="saved already"):
                batch.save(case, 2)
            with pytest.raises(UsageError, match="saved already"):
                batch.fail(case, ValueError())
            with pytest.raises(UsageError, match="saved already"):
                batch.attempt(case)

    assert [record.result for record in batch.checkpoint.records()] == [1, 1]


def test_a_second_batch_on_one_checkpoint_is_refused(path):
    """One batch at a time on one checkpoint, in one process too."""
    with Checkpoint(path) as checkpoint, ResumableBatch(checkpoint, [1]) as batch:
        with (
            pytest.raises(UsageError, match="one batch at a time"),
            ResumableBatch(checkpoint, [2]),
        ):
            pass
        batch.run(str)

    assert batch.exit_code == 0


def test_a_checkpoint_that_was_open_stays_open(path):
    """Whoever opens a checkpoint closes it."""
    with Checkpoint(path) as checkpoint:
        with ResumableBatch(checkpoint, [1]) as batch:
            batch.run(str)
        assert checkpoint.is_open
        checkpoint.save("extra")
    with ResumableBatch(checkpoint, [1, 2]) as batch:
        assert checkpoint.is_open
    assert not checkpoint.is_open


@pytest.mark.parametrize(
    "arguments",
    [
        {"key": 3},
        {"key": ""},
        {"redo": 5},
        {"redo": [5]},
        {"retry": 3},
        {"max_wait": -1},
        {"max_wait": "long"},
        {"max_time": -1},
        {"max_consecutive_errors": 0},
        {"max_crashes": 0},
        {"max_crashes": True},
    ],
)
def test_wrong_arguments_are_refused_and_nothing_is_written(tmp_path, arguments):
    """The error comes when the batch is made, and the folder stays empty."""
    with pytest.raises(UsageError):
        ResumableBatch(tmp_path / "run.jsonl", [1], **arguments)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("items", ["text", b"bytes", 7, None])
def test_what_is_no_collection_of_items_is_refused(path, items):
    """A text is not a list of items, though Python would iterate over it."""
    with pytest.raises(UsageError):
        ResumableBatch(path, items)


@pytest.mark.parametrize(
    ("items", "key", "message"),
    [
        ([{"a": 1}], None, "pass key="),
        ([1.5], None, "pass key="),
        ([True], None, "pass key="),
        ([""], None, "pass key="),
        ([{"a": 1}], "id", "no such field"),
        ([{"id": None}], "id", "pass key="),
        ([1], lambda _item: 1 / 0, "ZeroDivisionError"),
        (["x" * 5000], None, "limit"),
    ],
)
def test_an_item_without_an_id_is_refused_before_anything_runs(path, items, key, message):
    """The error names the item and what to pass; nothing is written."""
    with pytest.raises(UsageError, match=message), ResumableBatch(path, items, key=key):
        pass

    assert not path.exists()


def test_a_batch_works_only_inside_its_with(path):
    """Outside there is no lock, so there is no loop."""
    batch = ResumableBatch(path, [1])
    for use in (lambda: list(batch), lambda: batch.run(str), lambda: batch.save(1), batch.plan):
        with pytest.raises(UsageError, match="inside its with"):
            use()
    with pytest.raises(UsageError, match="not entered"):
        batch.summary  # noqa: B018


@pytest.mark.parametrize("fn", [None, "fn", 3])
def test_what_is_no_function_is_refused_before_an_item_pays_for_it(path, fn):
    """A mistake in the call is not an error of every item."""
    with ResumableBatch(path, [1]) as batch:
        with pytest.raises(UsageError, match="function"):
            batch.run(fn)
        with pytest.raises(UsageError, match="function"):
            list(batch.map(fn))

    assert len(batch.checkpoint) == 0


def test_max_time_ends_the_batch_with_exit_code_2(path):
    """Out of time means: run it again."""
    with fake_clock() as clock, ResumableBatch(path, CASES, key="id", max_time=10) as batch:
        batch.run(lambda _case: clock.advance(4))

    assert (batch.summary.stopped_by, batch.summary.ok, batch.exit_code) == ("time", 3, 2)


def test_a_provider_that_is_down_stops_the_batch(path):
    """After max_consecutive_errors the rest stays pending, with exit code 1."""
    with ResumableBatch(path, range(50), max_consecutive_errors=10) as batch:
        batch.run(lambda item: 1 / 0)

    assert (batch.summary.errors, batch.summary.pending, batch.exit_code) == (10, 40, 1)
    assert batch.summary.stopped_by == "errors"


CRASHING = """
import os, sys
from lockstitch import ResumableBatch
with ResumableBatch(sys.argv[1], ["a", "killer", "b"], max_crashes=2) as batch:
    for item in batch:
        if item == "killer":
            os._exit(9)
        batch.save(item)
print(batch.summary.quarantined, batch.exit_code)
"""


def test_an_item_that_kills_the_process_is_set_aside_and_the_rest_finishes(path):
    """After max_crashes deaths inside one item, it is quarantined, named, and not run again."""
    codes = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", CRASHING, path], capture_output=True, text=True, check=False
        )
        codes.append(done.returncode)
    record = Checkpoint(path, read_only=True)["killer"]

    assert codes == [9, 9, 0]
    assert done.stdout.split() == ["1", "1"]
    assert record.status == "quarantined"
    assert "2 times" in record.error.message
    assert ids_run(path, [{"id": "killer"}], redo="error") == []
    assert ids_run(path, [{"id": "killer"}], redo=lambda _record: True) == []
    assert ids_run(path, [{"id": "killer"}], redo="quarantined") == ["killer"]


def test_a_death_after_a_stop_request_is_not_a_crash(path):
    """SIGTERM, then SIGKILL before the item ends: nobody is to blame."""
    code = """
import os, signal, sys
from lockstitch import ResumableBatch
with ResumableBatch(sys.argv[1], ["a"], max_crashes=1) as batch:
    for item in batch:
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(9)
"""
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=False)
    with ResumableBatch(path, ["a"], max_crashes=1) as batch:
        batch.run(str)

    assert batch.summary.ok == 1


def test_the_summary_reads_like_a_sentence(path):
    """A person sees what was done, what was spared, what is left and why."""
    with memory_storage(), fake_clock() as clock:
        with ResumableBatch("run", range(4)) as batch:
            for item in batch:
                clock.advance(60)
                batch.save(item)
                if item == 1:
                    break
        assert "2 done in 2 min 0 s · 2 ok · 2 pending · stopped by left" in str(batch.summary)
        with ResumableBatch("run", range(4)) as batch:
            batch.run(lambda _item: clock.advance(60))
        assert "2 done before, 2 min 0 s not paid again" in str(batch.summary)
        assert isinstance(batch.summary, Summary)


def test_an_error_whose_text_cannot_be_made_is_booked_all_the_same(path):
    """A broken __str__ costs its message, not the record."""

    class Broken(Exception):
        def __str__(self):
            raise RuntimeError

    def work(_item):
        raise Broken

    with ResumableBatch(path, [1]) as batch:
        batch.run(work)
    error = batch.checkpoint["1"].error

    assert isinstance(error, ErrorInfo)
    assert "RuntimeError" in error.message


def test_a_with_that_finds_nothing_left_is_complete_without_a_loop(path):
    """There was nothing to run, so nothing was left."""
    ids_run(path, CASES)
    with ResumableBatch(path, CASES, key="id") as batch:
        pass
    assert (batch.complete, batch.exit_code) == (True, 0)
    with ResumableBatch(path, [*CASES, {"id": "new"}], key="id") as batch:
        pass
    assert (batch.complete, batch.exit_code) == (False, 2)


def test_a_redo_that_raises_at_the_end_leaves_the_checkpoint_free(path):
    """The exception is the caller's; the file is closed all the same."""
    ids_run(path, CASES)
    with (
        pytest.raises(KeyError),
        ResumableBatch(path, CASES, key="id", redo=lambda record: {}[record.id]) as batch,
    ):
        pass
    assert not batch.checkpoint.is_open
    assert ids_run(path, CASES) == []


def test_a_batch_with_errors_says_how_to_see_them_and_run_them_again(path, caplog):
    """It comes to its end, and the exit code is easily overlooked."""

    def work(item):
        if item != 2:
            raise ValueError(item)

    with caplog.at_level(logging.WARNING), ResumableBatch(path, [1, 2, 3]) as batch:
        batch.run(work)

    (record,) = caplog.records
    assert "2 error" in record.message
    assert f"lockstitch show --errors {path}" in record.message
    assert 'redo="error"' in record.message


def test_logs_are_quiet_when_all_is_well(path, caplog):
    """A complete batch writes no warning."""
    with caplog.at_level(logging.WARNING):
        ids_run(path, CASES)

    assert caplog.records == []


def test_a_second_item_with_the_id_of_one_that_waits_for_its_retry_is_refused(path):
    """It would be paid for twice: neither has a record yet, and neither is running."""
    calls = []

    def work(item):
        calls.append(item)
        if len(calls) == 1:
            raise ValueError

    with (
        fake_clock(),
        pytest.raises(UsageError, match="two items"),
        ResumableBatch(path, iter(["a", "b", "a", "c"]), retry=lambda _failure: 5.0) as batch,
    ):
        batch.run(work)

    assert calls.count("a") == 1


@pytest.mark.parametrize("rewrite", ["compact", "failed sync"])
def test_a_file_that_is_rewritten_during_a_run_does_not_change_what_is_done(path, files, rewrite):
    """Records of earlier runs move within the file, and are not taken for those of this one."""
    Checkpoint.adopt(path, [{"id": f"old{number}"} for number in range(300)], key="id")
    items = ["new0", "new1", *(f"old{number}" for number in range(300))]
    checkpoint = Checkpoint(path)

    def work(item):
        if item == "new1" and rewrite == "compact":
            checkpoint.compact()
        elif item == "new1":
            files.on["sync"] = files.failing(errno.EIO)

    with ResumableBatch(checkpoint, iter(items)) as batch:
        summary = batch.run(work)

    assert (summary.ok, summary.done_before, batch.exit_code) == (2, 300, 0)


def test_a_limit_beyond_all_calendars_parks(path):
    """It is a limit, however far away its end is said to be."""

    def work(_item):
        raise RateLimited(Limit.after(1e12))

    with ResumableBatch(path, ["a"]) as batch:
        batch.run(work)

    assert (batch.exit_code, batch.summary.stopped_by) == (2, "limit")


def test_an_id_of_two_surrogates_is_the_character_that_they_make(path):
    """As it is read from the file; else it would run at every start."""
    ids = ["\ud83d\ude00", "\ud83d", "é"]
    for _ in range(2):
        with ResumableBatch(path, ids) as batch:
            batch.run(lambda _item: None)

    assert (batch.summary.done_before, batch.exit_code) == (3, 0)


@pytest.mark.parametrize("drive", ["run", "map"])
def test_a_batch_is_not_driven_within_its_own_loop(path, drive):
    """The loop would wait for the driver, and the driver for the item that the loop is at."""
    with ResumableBatch(path, ["ab"]) as batch:
        for _ in batch:
            with pytest.raises(UsageError, match="its own loop is at 'ab'"):
                list(getattr(batch, drive)(lambda item: item) or ())


def test_a_coroutine_function_is_refused_where_nobody_would_await_it(path):
    """The message names the call that does."""

    async def work(item):
        return item

    with ResumableBatch(path, ["a"]) as batch, pytest.raises(UsageError, match="arun"):
        batch.run(work)


def test_a_limit_that_is_none_stops_the_batch_and_is_no_items_error(path):
    """`RateLimited(60)` is a slip in the program, and a limit is never booked as a failure."""

    def work(_item):
        raise RateLimited(60)

    with pytest.raises(UsageError, match=r"Limit\.after"), ResumableBatch(path, ["a"]) as batch:
        batch.run(work)

    assert len(Checkpoint(path, read_only=True)) == 0


def test_a_class_is_no_retry_policy(path):
    """`retry=Backoff` is refused at once, and not at the first failure."""
    with pytest.raises(UsageError, match=r"Backoff\(\)"):
        ResumableBatch(path, ["a"], retry=Backoff)


@pytest.mark.parametrize("begun", [False, True])
def test_what_ends_a_batch_before_its_first_item_is_told_by_its_exception_alone(
    path, caplog, begun
):
    """Where nothing was begun there is nothing to go on with."""
    with pytest.raises(UsageError), ResumableBatch(path, [1, 2]) as batch:
        if begun:
            next(iter(batch))
        batch.run(str, concurrency=0)

    assert bool(caplog.records) == begun
