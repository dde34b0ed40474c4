"""The scheduler as tables: no threads, no files, no clock, no waiting."""

import math

import pytest

from lockstitch import Failure, Limit, UsageError
from lockstitch._model import ErrorInfo
from lockstitch._scheduler import (
    SHORTEST_WAIT,
    UNKNOWN_WAIT,
    Entry,
    Need,
    Rules,
    Run,
    Scheduler,
    Stop,
    Verdict,
    Wait,
    lane_of,
)


def failure(attempt=1):
    return Failure("x", attempt, ErrorInfo("ValueError", "bad"))


class Driver:
    """Feeds a scheduler with named items and writes down what it decides."""

    def __init__(self, items, slots=1, affinity=False, **rules):
        self.scheduler = Scheduler(Rules(**rules), 0.0)
        self.scheduler.slots = slots
        self.scheduler.affinity = affinity
        self.items = [Entry(each, each) if isinstance(each, str) else each for each in items]
        self.now = 0.0

    def decide(self):
        while True:
            decision = self.scheduler.next(self.now)
            if decision is not Need.ITEM:
                return decision
            if self.items:
                self.scheduler.drawn(self.items.pop(0), self.now)
            else:
                self.scheduler.exhausted()

    def run(self):
        decision = self.decide()
        assert isinstance(decision, Run), decision
        return decision.entry


def test_items_run_in_the_order_of_the_input():
    """Items are handed out in input order, and after the last the batch is through."""
    driver = Driver("abc")
    seen = []
    for _ in range(3):
        entry = driver.run()
        seen.append(entry.id)
        driver.scheduler.finished(entry)

    assert seen == ["a", "b", "c"]
    assert driver.decide() == Stop(None)


def test_no_more_run_than_there_are_slots():
    """With n slots, n items run at once and the next waits for one of them."""
    driver = Driver("abc", slots=2)
    first, _ = driver.run(), driver.run()

    assert driver.decide() == Wait(None, "busy")
    driver.scheduler.finished(first)
    assert driver.run().id == "c"


def test_nothing_is_drawn_ahead_of_need():
    """The input is drawn one item at a time, so a generator of millions costs a window."""
    driver = Driver("abc", slots=1)
    driver.run()

    assert [entry.id for entry in driver.items] == ["b", "c"]


def test_a_failure_without_policy_is_booked():
    """Without a retry policy the first failure is the answer."""
    driver = Driver("a")
    entry = driver.run()

    assert driver.scheduler.failed(entry, failure(), 0.0) is Verdict.BOOK


def test_a_retry_comes_round_when_it_is_due_and_others_go_first():
    """A failed item waits for its time without holding up the rest."""
    driver = Driver("ab", retry=lambda failure: 10.0 if failure.attempt < 2 else None)
    first = driver.run()
    assert driver.scheduler.failed(first, failure(), 0.0) is Verdict.RETRY
    second = driver.run()
    assert second.id == "b"
    driver.scheduler.finished(second)

    assert driver.decide() == Wait(10.0, "retry")
    driver.now = 10.0
    assert driver.run() is first
    assert first.number == 2
    assert driver.scheduler.failed(first, failure(2), 10.0) is Verdict.BOOK


def test_a_dead_provider_does_not_pull_the_whole_input_into_memory():
    """While a thousand items wait for a retry, no new ones are drawn."""
    driver = Driver([f"i{n}" for n in range(5000)], retry=lambda _failure: 60.0)
    while isinstance(decision := driver.decide(), Run):
        driver.scheduler.failed(decision.entry, failure(), driver.now)

    assert decision == Wait(60.0, "retry")
    assert len(driver.items) == 4000


@pytest.mark.parametrize("answer", [-1.0, math.nan, math.inf, "soon", True])
def test_a_policy_that_answers_nonsense_is_refused(answer):
    """A retry policy returns seconds or None; anything else is a usage error."""
    driver = Driver("a", retry=lambda _failure: answer)
    entry = driver.run()

    with pytest.raises(UsageError):
        driver.scheduler.failed(entry, failure(), 0.0)


def test_a_limit_stops_all_and_uses_no_attempt_up():
    """A limited item is pending again with its attempts unchanged, and nothing starts before."""
    driver = Driver("ab", slots=2)
    entry = driver.run()
    driver.scheduler.limited(entry, Limit.after(30), 30.0, 0.0)

    assert driver.decide() == Wait(30.0, "limit")
    driver.now = 29.9
    assert driver.decide() == Wait(30.0, "limit")
    driver.now = 30.0
    assert driver.run() is entry
    assert entry.number == 1


def test_of_several_limits_the_latest_end_counts():
    """A second, shorter limit does not shorten the wait."""
    driver = Driver("a")
    driver.scheduler.impose(Limit.after(50), 50.0, 0.0)
    driver.scheduler.impose(Limit.after(20), 20.0, 0.0)

    assert driver.decide() == Wait(50.0, "limit")


def test_a_limit_beyond_max_wait_parks():
    """A wait longer than max_wait stops the batch at once, and resume_at says until when."""
    driver = Driver("a", max_wait=60.0)
    driver.scheduler.impose(Limit.after(61), 61.0, 0.0)

    assert driver.decide() == Stop("limit")
    assert driver.scheduler.resume_at == 61.0


def test_waits_without_progress_add_up_to_one_episode():
    """Limits in a row, with nothing finished between them, share one max_wait."""
    driver = Driver("ab", max_wait=60.0)
    entry = driver.run()
    driver.scheduler.limited(entry, Limit.after(40), 40.0, 0.0)
    driver.now = 40.0
    entry = driver.run()
    driver.scheduler.limited(entry, Limit.after(40), 80.0, 40.0)

    assert driver.decide() == Stop("limit")


def test_a_finished_item_ends_the_episode():
    """After progress the full max_wait is there again."""
    driver = Driver("ab", max_wait=60.0)
    entry = driver.run()
    driver.scheduler.limited(entry, Limit.after(40), 40.0, 0.0)
    driver.now = 40.0
    driver.scheduler.finished(driver.run())
    entry = driver.run()
    driver.scheduler.limited(entry, Limit.after(40), 80.0, 40.0)

    assert driver.decide() == Wait(80.0, "limit")


def test_an_unknown_end_is_waited_for_in_doubling_steps():
    """A limit that does not say when it ends waits 60 s, then 120 s, until something finishes."""
    driver = Driver("a", max_wait=10_000.0)
    waits = []
    for _ in range(3):
        entry = driver.run()
        driver.scheduler.limited(entry, Limit(), None, driver.now)
        decision = driver.decide()
        waits.append(decision.until - driver.now)
        driver.now = decision.until

    assert waits == [UNKNOWN_WAIT, 2 * UNKNOWN_WAIT, 4 * UNKNOWN_WAIT]


@pytest.mark.parametrize(("known", "first"), [(False, UNKNOWN_WAIT), (True, SHORTEST_WAIT)])
def test_a_finished_item_makes_the_next_wait_short_again(known, first):
    """Waits double in a row only: a limit met hours later is no part of an old one."""
    driver = Driver("ab", max_wait=10_000.0)
    waits = []
    for finish_before in (False, False, True):
        if finish_before:
            driver.scheduler.finished(driver.run())
        entry = driver.run()
        driver.scheduler.limited(entry, Limit(), driver.now if known else None, driver.now)
        decision = driver.decide()
        waits.append(decision.until - driver.now)
        driver.now = decision.until

    assert waits == [first, 2 * first, first]


@pytest.mark.parametrize(("end", "waits"), [(None, 60.0), (0.5, 1.0)])
def test_a_burst_of_limits_is_one_limit(end, waits):
    """Fifty items that meet the same limit at once do not double its wait fifty times."""
    driver = Driver([f"i{n}" for n in range(50)], slots=50)
    for entry in [driver.run() for _ in range(50)]:
        driver.scheduler.limited(entry, Limit(), end, 0.0)

    assert driver.decide() == Wait(waits, "limit")


def test_what_runs_is_finished_before_a_parked_batch_stops():
    """Parking drains: items that run are waited for, none is handed out."""
    driver = Driver("abc", slots=2, max_wait=1.0)
    first, second = driver.run(), driver.run()
    driver.scheduler.limited(first, Limit.after(99), 99.0, 0.0)

    assert driver.decide() == Wait(None, "busy")
    driver.scheduler.finished(second)
    assert driver.decide() == Stop("limit")


def test_max_time_stops_handing_out():
    """At its time the batch hands nothing more out, and says why."""
    driver = Driver("ab", max_time=100.0)
    driver.scheduler.finished(driver.run())
    driver.now = 100.0

    assert driver.decide() == Stop("time")


def test_a_wait_that_would_pass_max_time_parks_at_once():
    """Nobody waits for a limit that ends after the batch's own time."""
    driver = Driver("a", max_time=30.0)
    driver.scheduler.impose(Limit.after(40), 40.0, 0.0)

    assert driver.decide() == Stop("limit")


def test_a_retry_due_after_max_time_is_not_waited_for():
    """When only retries are left and they are due too late, the batch stops at once."""
    driver = Driver("a", max_time=30.0, retry=lambda _failure: 40.0)
    driver.scheduler.failed(driver.run(), failure(), 0.0)

    assert driver.decide() == Stop("time")


def test_a_retry_due_after_max_wait_parks():
    """When only retries beyond max_wait are left, the batch parks until the first is due."""
    driver = Driver("a", max_wait=30.0, retry=lambda _failure: 40.0)
    driver.scheduler.failed(driver.run(), failure(), 0.0)

    assert driver.decide() == Stop("limit")
    assert driver.scheduler.resume_at == 40.0


def test_errors_in_a_row_stop_the_batch():
    """After max_consecutive_errors booked in a row the batch stops; a success in between counts."""
    driver = Driver("abcde", max_consecutive_errors=2)
    for ok in (False, True, False, False):
        driver.scheduler.finished(driver.run(), ok=ok)

    assert driver.decide() == Stop("errors")
    assert [entry.id for entry in driver.items] == ["e"]


def test_after_a_stop_request_a_failure_is_not_booked():
    """What fails after a signal is left pending, whatever the policy says."""
    driver = Driver("a", retry=lambda _failure: 1.0)
    entry = driver.run()
    driver.scheduler.stop("signal")

    assert driver.scheduler.failed(entry, failure(), 0.0) is Verdict.LEAVE
    assert driver.decide() == Stop("signal")


def test_a_signal_overrules_every_other_reason():
    """A batch that is stopping for errors and is then interrupted ends as interrupted."""
    driver = Driver("a")
    driver.scheduler.stop("errors")
    driver.scheduler.stop("signal")
    driver.scheduler.stop("time")

    assert driver.decide() == Stop("signal")


def test_a_guard_is_asked_before_each_item_and_only_when_there_is_one():
    """One question an item; none when nothing is left to hand out."""
    driver = Driver("ab", guarded=True)
    questions = 0
    while (decision := driver.decide()) != Stop(None):
        if decision is Need.GUARD:
            questions += 1
            driver.scheduler.passed()
        else:
            driver.scheduler.finished(decision.entry)

    assert questions == 2


def test_a_suspect_runs_alone():
    """An item that was running when a process died waits for the others, and they for it."""
    driver = Driver(["a", Entry("s", "s", solo=True), "b"], slots=3)
    first = driver.run()
    assert driver.decide() == Wait(None, "busy")
    driver.scheduler.finished(first)
    suspect = driver.run()
    assert suspect.id == "s"
    assert driver.decide() == Wait(None, "busy")
    driver.scheduler.finished(suspect)
    assert driver.run().id == "b"


def test_an_item_with_a_pending_retry_from_before_waits_for_it():
    """A retry that was due later when the process ended is not tried early by the next one."""
    driver = Driver([Entry("a", "a", used=1, due=50.0), "b"])

    assert driver.run().id == "b"


def test_what_died_together_runs_alone_next():
    """Nobody is blamed for a death beside others; each of them then runs with nothing beside it."""
    driver = Driver("abcd", slots=3)
    together = [driver.run() for _ in range(3)]
    verdicts = [driver.scheduler.died(entry, 0.0) for entry in together]

    assert verdicts == [Verdict.RETRY] * 3
    assert [entry.crashes for entry in together] == [0, 0, 0]
    for expected in "abc":
        entry = driver.run()
        assert (entry.id, entry.number) == (expected, 1)
        assert driver.decide() == Wait(None, "busy")
        driver.scheduler.finished(entry)
    assert driver.run().id == "d"


def test_who_dies_alone_is_set_aside_after_max_crashes():
    """Only deaths without company count, and the others go on afterwards."""
    driver = Driver("ab", slots=2, max_crashes=2)
    killer, other = driver.run(), driver.run()
    verdicts = [driver.scheduler.died(killer, 0.0)]
    driver.scheduler.finished(other)
    verdicts += [driver.scheduler.died(driver.run(), 0.0) for _ in range(2)]

    assert verdicts == [Verdict.RETRY, Verdict.RETRY, Verdict.QUARANTINE]
    driver.scheduler.finished(killer, ok=False)
    assert driver.decide() == Stop(None)


def test_nothing_is_handed_out_beside_a_suspect_that_waits_for_the_others():
    """It waits until those that are at work are through, and nothing new is begun meanwhile."""
    driver = Driver("abc", slots=2)
    first, second = driver.run(), driver.run()
    driver.scheduler.died(first, 0.0)
    assert driver.decide() == Wait(None, "busy")
    driver.scheduler.finished(second)

    assert driver.run() is first


def test_a_death_after_a_stop_request_is_not_a_crash():
    """The same Ctrl-C has reached the worker: the item is pending, as if it had not been tried."""
    driver = Driver([Entry("a", "a", solo=True, crashes=2)], max_crashes=3)
    entry = driver.run()
    driver.scheduler.stop("signal")

    assert driver.scheduler.died(entry, 0.0) is Verdict.LEAVE
    assert (entry.crashes, driver.decide()) == (2, Stop("signal"))


def test_a_retry_that_is_due_while_its_worker_is_busy_waits_for_it():
    """With nothing else to do, the worker is waited for, and not a time in the past."""
    first, second = [id for id in map(str, range(50)) if lane_of(id, 2) == 0][:2]
    driver = Driver([first, second], slots=2, affinity=True, retry=lambda _failure: 1.0)
    failing = driver.run()
    driver.scheduler.failed(failing, failure(), 0.0)
    assert driver.run().id == second
    driver.now = 2.0

    assert driver.decide() == Wait(None, "busy")
