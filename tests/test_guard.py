"""Guards answer "not before T, because R", and their answer is never an error."""

from datetime import UTC, datetime, timedelta

import pytest

from lockstitch import BatchStopped, Checkpoint, Limit, RateLimited, ResumableBatch, UsageError
from lockstitch.testing import fake_clock


class Quota:
    """A guard that lets a number of items through and is then limited for a while."""

    def __init__(self, allowed, limit):
        self.allowed = allowed
        self.limit = limit
        self.asked = 0

    def check(self):
        self.asked += 1
        self.allowed -= 1
        return self.limit if self.allowed == -1 else None


def test_a_short_limit_is_waited_out_and_nothing_is_lost(tmp_path):
    """Within max_wait the batch waits exactly as told and goes on."""
    with (
        fake_clock() as clock,
        ResumableBatch(
            tmp_path / "r.jsonl", range(5), guard=Quota(2, Limit.after(90, reason="quota"))
        ) as batch,
    ):
        batch.run(str)

    assert clock.waits == [90.0]
    assert batch.exit_code == 0
    assert (batch.summary.ok, batch.summary.waits, batch.summary.waited_seconds) == (5, 1, 90.0)


def test_a_long_limit_parks_with_exit_code_2(tmp_path):
    """Beyond max_wait the batch stops at once, and says when it may go on."""
    with fake_clock() as clock:
        until = clock.instant + timedelta(hours=5)
        with ResumableBatch(
            tmp_path / "r.jsonl", range(5), guard=Quota(2, Limit(until, reason="weekly"))
        ) as batch:
            batch.run(str)

    assert clock.waits == []
    assert batch.exit_code == 2
    assert batch.summary.stopped_by == "limit"
    assert batch.summary.resume_at == until
    assert batch.summary.pending == 3
    assert Checkpoint(tmp_path / "r.jsonl", read_only=True).stats().parked_until == until


def limited_after(count, limit):
    """Return work that meets a rate-limited response at the item after `count` others."""
    done = []

    def work(item):
        if len(done) == count:
            raise RateLimited(limit)
        done.append(item)

    return work


def test_a_restart_before_its_time_parks_again_and_after_it_goes_on(tmp_path):
    """The pause is stored: a new process neither forgets it, nor asks, nor counts it twice."""
    with fake_clock() as clock:
        until = clock.instant + timedelta(hours=5)
        path = tmp_path / "r.jsonl"
        for work in (limited_after(2, Limit(until, reason="weekly")), str):
            with ResumableBatch(path, range(5)) as batch:
                batch.run(work)
            assert (batch.exit_code, batch.summary.pending) == (2, 3)
            assert batch.summary.resume_at == until
        stats = batch.checkpoint.stats()
        clock.advance(5 * 3600)
        with ResumableBatch(path, range(5)) as batch:
            batch.run(str)

    assert (stats.pause_count, stats.parked_until) == (1, until)
    assert batch.exit_code == 0
    assert batch.summary.ok == 3


def test_a_guard_that_lets_go_lifts_its_stored_pause(tmp_path):
    """What a guard has said, the guard is asked again: a topped-up quota counts at once."""
    with fake_clock() as clock:
        limit = Limit(clock.instant + timedelta(hours=5))
        for allowed in (2, 99):
            with ResumableBatch(
                tmp_path / "r.jsonl", range(5), guard=Quota(allowed, limit)
            ) as batch:
                batch.run(str)

    assert (batch.exit_code, batch.summary.ok) == (0, 3)


def test_a_stop_that_the_caller_has_caught_still_parks_the_run(tmp_path):
    """Catching BatchStopped of a plain call does not turn a parked run into a complete one."""
    from lockstitch import resumable

    work = resumable(tmp_path / "r.jsonl", guard=lambda: Limit.after(9000))(lambda item: item)
    with fake_clock() as clock:
        with pytest.raises(BatchStopped):
            work("a")
        work.close()
        stats = work.checkpoint.stats()

    assert (stats.stop_reason, stats.completed_at) == ("limit", None)
    assert stats.parked_until == clock.instant + timedelta(seconds=9000)


def test_a_restart_shortly_before_its_time_waits(tmp_path):
    """What is left of a stored pause is waited out when max_wait allows it."""
    with fake_clock() as clock:
        until = clock.instant + timedelta(hours=5)
        path = tmp_path / "r.jsonl"
        with ResumableBatch(path, range(2)) as batch:
            batch.run(limited_after(1, Limit(until)))
        clock.advance(5 * 3600 - 60)
        with ResumableBatch(path, range(2)) as batch:
            batch.run(str)

    assert clock.waits == [60.0]
    assert batch.exit_code == 0


def test_a_clock_set_back_does_not_lengthen_a_stored_pause(tmp_path):
    """A parked batch waits for the length that was asked for, at the most."""
    with fake_clock() as clock:
        path = tmp_path / "r.jsonl"
        with ResumableBatch(path, range(2)) as batch:
            batch.run(limited_after(1, Limit.after(3600)))
        clock.set_wall(clock.instant - timedelta(days=30))
        with ResumableBatch(path, range(2), max_wait=3600.0) as batch:
            batch.run(str)

    assert clock.waits == [3600.0]


def test_a_limit_raised_inside_an_item_uses_no_attempt_up(tmp_path):
    """`raise RateLimited` sends the item back to pending, and it comes round as attempt 1."""
    attempts = []
    with fake_clock() as clock, ResumableBatch(tmp_path / "r.jsonl", range(2)) as batch:
        for item in batch:
            with batch.attempt(item) as attempt:
                attempts.append((attempt.id, attempt.number))
                if len(attempts) == 1:
                    raise RateLimited(Limit.after(7))
                attempt.save()

    assert attempts == [("0", 1), ("0", 1), ("1", 1)]
    assert clock.waits == [7.0]
    assert batch.summary.errors == 0


def test_a_second_and_third_pause_work_like_the_first(tmp_path):
    """Every pause waits, and the history counts each."""
    limited = iter([True, False] * 3)

    def work(_item):
        if next(limited):
            raise RateLimited(Limit.after(10))

    with fake_clock() as clock, ResumableBatch(tmp_path / "r.jsonl", range(3)) as batch:
        batch.run(work)
    stats = Checkpoint(tmp_path / "r.jsonl", read_only=True).stats()

    assert clock.waits == [10.0] * 3
    assert (stats.pause_count, stats.total_wait_seconds) == (3, 30.0)


def test_a_limit_that_leaves_a_bare_loop_parks_the_run(tmp_path):
    """A rate-limited response that nobody caught ends the `with` as a pause, not as a crash."""
    with ResumableBatch(tmp_path / "r.jsonl", range(3)) as batch:
        for item in batch:
            if item == 1:
                raise RateLimited(Limit.after(3600))
            batch.save(item)

    assert batch.exit_code == 2
    assert batch.summary.stopped_by == "limit"
    assert batch.summary.pending == 2


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_while_a_limit_is_handled_is_an_interrupt(tmp_path, stop):
    """What leaves the `with` is judged by itself, and no interrupt is swallowed as a pause."""
    batch = ResumableBatch(tmp_path / "r.jsonl", range(3))
    with pytest.raises(stop), batch:
        for _item in batch:
            try:
                raise RateLimited(Limit.after(3600))  # noqa: TRY301 - as a client would
            except RateLimited:
                raise stop  # noqa: B904 - an interrupt comes without a cause

    assert batch.summary.stopped_by == "signal"
    assert batch.summary.resume_at is None


def test_several_guards_are_all_asked_and_the_latest_end_counts(tmp_path):
    """Guards compose: a list of them is one."""
    near, far = Quota(0, Limit.after(5)), Quota(0, Limit.after(9))
    with (
        fake_clock() as clock,
        ResumableBatch(tmp_path / "r.jsonl", range(1), guard=[near, far, lambda: None]) as batch,
    ):
        batch.run(str)

    assert clock.waits == [9.0]
    assert near.asked == far.asked == 2


def test_a_guard_that_raises_stops_the_batch_and_books_nothing(tmp_path):
    """A broken guard is the user's to see; every item stays pending."""

    def broken():
        raise OSError("no network")

    batch = ResumableBatch(tmp_path / "r.jsonl", range(3), guard=broken)
    with pytest.raises(OSError, match="no network"), batch:
        batch.run(str)

    assert len(batch.checkpoint) == 0


async def _asynchronous():
    return None


@pytest.mark.parametrize("guard", [lambda: True, lambda: "no", _asynchronous])
def test_a_guard_that_answers_nonsense_is_refused(tmp_path, guard):
    """An answer is a Limit or None; an asynchronous guard has no place in a plain loop."""
    with pytest.raises(UsageError), ResumableBatch(tmp_path / "r.jsonl", [1], guard=guard) as batch:
        batch.run(str)


@pytest.mark.parametrize("guard", [42, "guard", [None], Quota])
def test_what_is_no_guard_is_refused_when_the_batch_is_made(tmp_path, guard):
    """The error comes before anything is opened."""
    with pytest.raises(UsageError):
        ResumableBatch(tmp_path / "r.jsonl", [1], guard=guard)

    assert list(tmp_path.iterdir()) == []


def test_a_map_outside_of_a_with_raises_the_stop(tmp_path):
    """Where no `with` owns the stop, it reaches the caller after all records."""
    from lockstitch import resumable

    work = resumable(tmp_path / "r.jsonl", guard=Quota(2, Limit.after(9999)))(lambda item: item)
    seen = []
    with pytest.raises(BatchStopped) as stopped:
        seen.extend(record.id for record in work.map([1, 2, 3]))

    assert seen == ["1", "2"]
    assert stopped.value.reason == "limit"
    assert stopped.value.exit_code == 2


@pytest.mark.parametrize("resume_at", [datetime(2030, 1, 1), "tomorrow", 5])  # noqa: DTZ001
def test_a_limit_takes_an_aware_moment(resume_at):
    """A naive time would be wrong by hours somewhere, so it is refused."""
    with pytest.raises(UsageError, match="aware"):
        Limit(resume_at)


def test_a_limit_says_what_it_is():
    """A limit prints as a person would say it."""
    assert str(Limit.after(30, reason="429")) == "limited for 30 s (429)"
    assert "2030-01-01 05:00:00 UTC" in str(Limit(datetime(2030, 1, 1, 5, tzinfo=UTC)))
    assert str(Limit()) == "limited for an unknown time"
