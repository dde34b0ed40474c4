"""The kit that kills a user's job in every place: it passes sound jobs and names what is wrong."""

import asyncio
import itertools
import runpy
import sys

import pytest

from lockstitch import Backoff, Checkpoint, ResumableBatch, UsageError, resumable
from lockstitch.testing import SimulatedCrash, crash_everywhere, fake_clock

ITEMS = ["a", "b", "c"]


def bare_loop():
    with ResumableBatch("job", ITEMS) as batch:
        for item in batch:
            batch.save(item, item.upper())


def attempts():
    with ResumableBatch("job", ITEMS) as batch:
        for item in batch:
            with batch.attempt(item) as attempt:
                attempt.save_cursor(1)
                attempt.step("half", str.upper, item)
                attempt.save(item.upper())


def run():
    with ResumableBatch("job", ITEMS) as batch:
        batch.run(str.upper)


def threads():
    with ResumableBatch("job", ITEMS) as batch:
        batch.run(str.upper, concurrency=3)


def mapped():
    with ResumableBatch("job", ITEMS) as batch:
        assert [record.id for record in batch.map(str.upper)]


def coroutines():
    async def upper(item):
        return item.upper()

    async def main():
        with ResumableBatch("job", ITEMS) as batch:
            await batch.arun(upper, concurrency=2)

    asyncio.run(main())


def plain_calls():
    upper = resumable("job")(str.upper)
    assert [upper(item) for item in ITEMS] == ["A", "B", "C"]


def decorated_run():
    resumable("job")(str.upper).run(ITEMS)


def generator():
    @resumable("job")
    def upper(items):
        for item in items:
            yield item.upper()

    upper(ITEMS)


def store():
    with Checkpoint("job") as checkpoint:
        for item in ITEMS:
            if item not in checkpoint:
                checkpoint.save(item, item.upper())


def compacting():
    with Checkpoint("job") as checkpoint:
        for item in ITEMS:
            if item not in checkpoint:
                checkpoint.save(item, item.upper())
        checkpoint.compact()


def two_checkpoints():
    with ResumableBatch("first", ITEMS) as batch:
        batch.run(str.upper)
    with ResumableBatch("second", ITEMS) as batch:
        batch.run(str.lower)


def errors_and_retries():
    def fails(item):
        if item == "b":
            raise ValueError(item)
        return item

    with ResumableBatch("job", ITEMS, retry=Backoff(attempts=2), redo="error") as batch:
        batch.run(fails)
    sys.exit(batch.exit_code)


def without_sync():
    with ResumableBatch(Checkpoint("job", fsync=False), ITEMS) as batch:
        batch.run(str.upper)


def wears_another_coat():
    try:
        run()
    except BaseException as death:
        raise RuntimeError("something went wrong") from death


@pytest.mark.parametrize(
    "job",
    [
        bare_loop, attempts, run, threads, mapped, coroutines, plain_calls, decorated_run,
        generator, store, compacting, two_checkpoints, errors_and_retries, without_sync,
        wears_another_coat,
    ],
    ids=lambda job: job.__name__,
)  # fmt: skip
def test_a_sound_job_passes(job):
    """However a job uses the library, it survives; it is killed several times for each save."""
    with fake_clock():
        assert crash_everywhere(job) > 3 * len(ITEMS)


def test_a_script_is_run_from_its_file(tmp_path):
    """A script whose decorator stands at its top level is a job too, `sys.exit` included."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from lockstitch import resumable\n"
        "@resumable('job')\n"
        "def upper(item): return item.upper()\n"
        "if __name__ == '__main__':\n"
        "    sys.exit(upper.run(['a', 'b']).exit_code)\n"
    )

    assert crash_everywhere(lambda: runpy.run_path(str(script), run_name="__main__")) > 10


# Jobs that are wrong


def begins_anew():
    with ResumableBatch(Checkpoint("job", fresh=True), ITEMS) as batch:
        batch.run(str.upper)


def looks_at_nothing():
    with Checkpoint("job") as checkpoint:
        for item in ITEMS:
            checkpoint.save(item, item.upper())


def forgets():
    with Checkpoint("job") as checkpoint:
        later = "b" in checkpoint
        if later:
            checkpoint.forget(["a"])
        for item in ITEMS[later:]:
            if item not in checkpoint:
                checkpoint.save(item)


def saves_too_early():
    with Checkpoint("job") as checkpoint:
        for item in ITEMS:
            if item not in checkpoint:
                checkpoint.save(item, None, status="begun")
                checkpoint.save(item, item.upper())


def counts_its_calls():
    numbers = itertools.count()
    with ResumableBatch("job", ITEMS) as batch:
        batch.run(lambda _item: next(numbers))


def cannot_go_on():
    with Checkpoint("job") as checkpoint:
        if len(checkpoint):
            raise FileExistsError("job is there already")
        for item in ITEMS:
            checkpoint.save(item)


def ends_differently():
    with ResumableBatch("job", ITEMS) as batch:
        batch.run(str.upper)
    sys.exit(batch.summary.done_before)


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (begins_anew, "paid twice: 'a' in job had its record"),
        (looks_at_nothing, "paid twice: 'a' in job had its record"),
        (forgets, "lost: 'a' in job had its record"),
        (saves_too_early, "different: 'a' in job is begun, undisturbed ok A"),
        (counts_its_calls, "different: 'b' in job is ok 0, undisturbed ok 1"),
        (cannot_go_on, "the next start failed: FileExistsError: job is there already"),
        (ends_differently, "it ended with exit code 1, undisturbed with 0"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_unsound_job_is_told_what_and_where(job, message):
    """Lost, paid twice, not finished or different: the message says which item, and which byte."""
    with pytest.raises(AssertionError) as caught:
        crash_everywhere(job)

    assert message in str(caught.value)
    assert "bytes written)" in str(caught.value)


def test_a_job_is_killed_between_the_write_and_the_sync():
    """What is done after a save, and must be done again, is not done in that case."""
    seen = set()

    def job():
        told = []
        with Checkpoint("job") as checkpoint:
            for item in ITEMS:
                if item not in checkpoint:
                    try:
                        checkpoint.save(item)
                        told.append(item)
                    except SimulatedCrash:
                        seen.add((len(told), item))
                        raise

    crash_everywhere(job)

    assert {(0, "a"), (1, "b"), (2, "c")} <= seen


def test_a_job_that_does_not_do_the_same_each_time_cannot_be_judged():
    """It is told so, rather than that its results were damaged."""
    numbers = itertools.count()

    def job():
        with Checkpoint("job") as checkpoint:
            checkpoint.save("a", next(numbers))

    with pytest.raises(UsageError, match=r"does not do the same each time.*'a' in job"):
        crash_everywhere(job)


def test_a_checkpoint_from_outside_is_refused(tmp_path):
    """It is on the disk, where nothing would be killed and the job found sound."""
    upper = resumable(tmp_path / "job")(str.upper)
    with upper, pytest.raises(UsageError, match="make it inside of the job"):
        crash_everywhere(lambda: upper.run(ITEMS))


def test_a_checkpoint_that_is_kept_between_starts_is_refused():
    """A new process would not have it."""
    made = []

    def job():
        if len(made) % 2 == 0 or len(made) < 3:
            made.append(Checkpoint("job"))
        with made[-1] as checkpoint:
            if "a" not in checkpoint:
                checkpoint.save("a")
            made.append(made[-1])

    with pytest.raises(UsageError, match="first start"):
        crash_everywhere(job)


def test_what_a_job_raises_by_itself_is_let_through():
    """Before it is killed, its errors are its own."""

    def job():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        crash_everywhere(job)


def test_nothing_is_written(tmp_path, monkeypatch):
    """All of it happens in memory."""
    monkeypatch.chdir(tmp_path)
    crash_everywhere(run)

    assert list(tmp_path.iterdir()) == []
