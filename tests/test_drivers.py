"""One contract for every driver: whoever drives a batch, the same rules hold.

Each driver is a small adapter with one signature, and each rule is one test that runs on all of
them. Where several items are in flight at once, a rule that says "then it stops" allows for those:
`ahead` is how many more may have been handed out than a driver that works one by one would.
"""

import asyncio
import contextlib
import contextvars
import threading
from collections import Counter

import attrs
import pytest
from engine_lab import ENGINES, WORKERS, CallHome, Home

from lockstitch import (
    Backoff,
    Checkpoint,
    Limit,
    RateLimited,
    ResumableBatch,
    SerializationFailed,
    UsageError,
    current_attempt,
    resumable,
)
from lockstitch.testing import fake_clock

HOURS = 6 * 3600.0


def awaited(work):
    """Return the function as a coroutine function that lets others have their turn."""

    async def call(item):
        await asyncio.sleep(0)
        return work(item)

    return call


def loop_with_save(path, items, work, **settings):
    with ResumableBatch(Checkpoint(path, fsync=False), items, **settings) as batch:
        for item in batch:
            batch.save(item, work(item))
    return batch.summary


def loop_with_attempt(path, items, work, **settings):
    with ResumableBatch(Checkpoint(path, fsync=False), items, **settings) as batch:
        for item in batch:
            with batch.attempt(item) as attempt:
                attempt.save(work(item))
    return batch.summary


def run_of(concurrency):
    def drive(path, items, work, **settings):
        with ResumableBatch(Checkpoint(path, fsync=False), items, **settings) as batch:
            batch.run(work, concurrency=concurrency)
        return batch.summary

    return drive


def map_of(concurrency):
    def drive(path, items, work, **settings):
        with ResumableBatch(Checkpoint(path, fsync=False), items, **settings) as batch:
            for _ in batch.map(work, concurrency=concurrency):
                continue
        return batch.summary

    return drive


def async_loop_with_save(path, items, work, **settings):
    async def main():
        call = awaited(work)
        with ResumableBatch(Checkpoint(path, fsync=False), items, **settings) as batch:
            async for item in batch:
                await batch.asave(item, await call(item))
        return batch.summary

    return asyncio.run(main())


def async_loop_with_attempt(path, items, work, **settings):
    async def main():
        call = awaited(work)
        with ResumableBatch(Checkpoint(path, fsync=False), items, **settings) as batch:
            async for item in batch:
                async with batch.attempt(item) as attempt:
                    await attempt.asave(await call(item))
        return batch.summary

    return asyncio.run(main())


def arun_of(concurrency):
    def drive(path, items, work, **settings):
        async def main():
            with ResumableBatch(Checkpoint(path, fsync=False), items, **settings) as batch:
                await batch.arun(awaited(work), concurrency=concurrency)
            return batch.summary

        return asyncio.run(main())

    return drive


def amap_of(concurrency):
    def drive(path, items, work, **settings):
        async def main():
            with ResumableBatch(Checkpoint(path, fsync=False), items, **settings) as batch:
                async with contextlib.aclosing(
                    batch.amap(awaited(work), concurrency=concurrency)
                ) as records:
                    async for _ in records:
                        continue
            return batch.summary

        return asyncio.run(main())

    return drive


def decorated_run(path, items, work, **settings):
    @resumable(Checkpoint(path, fsync=False), **settings)
    def function(item):
        return work(item)

    return function.run(items)


def decorated_arun(path, items, work, **settings):
    function = resumable(Checkpoint(path, fsync=False), **settings)(awaited(work))

    return asyncio.run(function.run(items, concurrency=4))


def run_on(executor):
    def drive(path, items, work, **settings):
        with Home(work) as home:
            with ResumableBatch(Checkpoint(path, fsync=False), items, **settings) as batch:
                batch.run(CallHome(home.address), executor=executor)
            return batch.summary

    return drive


@attrs.frozen
class Driver:
    name: str
    drive: object
    #: Items in flight beside the one that a rule is about.
    ahead: int = 0
    #: It works with an event loop.
    loop: bool = False
    #: What starts the engine that it runs on.
    engine: object = None
    #: It swallows and books an item's exception; else that leaves the `with`.
    books: bool = True

    def __call__(self, path, items, work, **settings):
        return self.drive(path, items, work, **settings)


DRIVERS = [
    # First, so that each has the same place in every list of drivers: pytest goes by that when it
    # puts tests together for an engine to be started once.
    *(
        Driver(name, run_on, ahead=2 * WORKERS - 1, engine=engine)
        for name, engine in ENGINES.items()
    ),
    Driver("loop", loop_with_save, books=False),
    Driver("loop-attempt", loop_with_attempt),
    Driver("run", run_of(1)),
    Driver("run-8", run_of(8), ahead=7),
    Driver("map", map_of(1)),
    Driver("map-4", map_of(4), ahead=3),
    Driver("async-loop", async_loop_with_save, loop=True, books=False),
    Driver("async-loop-attempt", async_loop_with_attempt, loop=True),
    Driver("arun", arun_of(1), loop=True),
    Driver("arun-50", arun_of(50), ahead=49, loop=True),
    Driver("amap-5", amap_of(5), ahead=4, loop=True),
    Driver("decorated-run", decorated_run),
    Driver("decorated-arun", decorated_arun, ahead=3, loop=True),
]


def drivers(wanted):
    return pytest.mark.parametrize(
        "driver", list(filter(wanted, DRIVERS)), ids=lambda each: each.name, indirect=True
    )


every_driver = drivers(lambda _each: True)
booking = drivers(lambda each: each.books)


@pytest.fixture(scope="module")
def driver(request):
    """Start the engine of a driver that has one, for all rules."""
    if request.param.engine is None:
        yield request.param
        return
    with request.param.engine() as executor:
        yield attrs.evolve(request.param, drive=request.param.drive(executor))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.jsonl"


class Work:
    """Returns twice the item, and notes what it was called with."""

    def __init__(self, *, fails=()):
        self.fails = set(fails)
        self.seen = []
        self.threads = threading.Lock()

    def __call__(self, item):
        with self.threads:
            self.seen.append(item)
        if item in self.fails:
            raise ValueError(f"bad {item}")
        return 2 * item


class Provider(Work):
    """Answers so many calls, then refuses for `pause` seconds, and so on."""

    def __init__(self, clock, calls, pause):
        super().__init__()
        self.clock = clock
        self.calls = calls
        self.pause = pause
        self.used = 0
        self.until = 0.0
        self.refusals = 0

    def __call__(self, item):
        with self.threads:
            now = self.clock.now()
            if self.used == self.calls and now >= self.until:
                self.used = 0
            if self.used == self.calls:
                self.refusals += 1
                raise RateLimited(Limit.after(self.until - now, reason="quota"))
            self.used += 1
            if self.used == self.calls:
                self.until = now + self.pause
        return super().__call__(item)


def stored(path):
    """Return what the file says: id to status, result and error type."""
    return {
        record.id: (record.status, record.result, record.error and record.error.type)
        for record in Checkpoint(path, read_only=True).records()
    }


def attempts(path):
    return Counter(record.attempt for record in Checkpoint(path, read_only=True).records())


# What runs


@every_driver
def test_each_pending_item_runs_exactly_once(driver, path):
    """Every id of the input is worked on once and has one record."""
    work = Work()
    summary = driver(path, range(100), work)

    assert sorted(work.seen) == list(range(100))
    assert stored(path) == {str(item): ("ok", 2 * item, None) for item in range(100)}
    assert (summary.total, summary.ok, summary.pending, summary.attempts) == (100, 100, 0, 100)
    assert (summary.unsaved, summary.stopped_by, summary.exit_code) == ((), None, 0)


@every_driver
def test_a_generator_works_like_a_list(driver, path):
    """The total of an input that is drawn lazily is known at its end."""
    summary = driver(path, (item for item in range(20)), Work())

    assert (summary.total, summary.ok, summary.pending, summary.exit_code) == (20, 20, 0, 0)


@every_driver
def test_what_is_done_before_is_left_out(driver, path):
    """A second start works only on what the first one did not finish."""
    loop_with_save(path, range(0, 60, 2), Work())
    work = Work()
    summary = driver(path, range(60), work)

    assert sorted(work.seen) == list(range(1, 60, 2))
    assert (summary.done_before, summary.ok, summary.exit_code) == (30, 30, 0)


@every_driver
def test_a_finished_batch_does_nothing(driver, path):
    """Started again after its end, it calls nothing and writes not even a run."""
    driver(path, range(10), Work())
    before = path.read_bytes()
    work = Work()
    summary = driver(path, range(10), work)

    assert work.seen == []
    assert (summary.done_before, summary.attempts, summary.exit_code) == (10, 0, 0)
    assert path.read_bytes() == before


@every_driver
def test_an_empty_input_is_complete(driver, path):
    """Nothing to do is done."""
    summary = driver(path, [], Work())

    assert (summary.total, summary.ok, summary.exit_code) == (0, 0, 0)


@every_driver
@pytest.mark.parametrize("lazy", [False, True], ids=["sized", "lazy"])
def test_two_items_with_one_id_are_refused(driver, path, lazy):
    """Which of the two a record is of, nobody could tell; a sized input costs nothing first."""
    items, work = [1, 2, 3, 2, 4], Work()
    with pytest.raises(UsageError, match="'2'"):
        driver(path, iter(items) if lazy else items, work)

    assert len(work.seen) == len(set(work.seen))
    assert 4 not in work.seen
    assert lazy or work.seen == []


@booking
def test_redo_runs_what_failed_again_and_nothing_else(driver, path):
    """`redo="error"` is the second try of a whole batch, with a fresh budget of attempts."""
    driver(path, range(30), Work(fails=[3, 7]))
    work = Work()
    summary = driver(path, range(30), work, redo="error")

    assert sorted(work.seen) == [3, 7]
    assert (summary.ok, summary.errors_before, summary.exit_code) == (2, 0, 0)
    assert attempts(path) == {1: 30}


@every_driver
def test_every_driver_writes_the_records_of_a_serial_run(driver, path):
    """Id, status, result and type of error are the same whoever drives."""
    fails = range(0, 70, 7) if driver.books else ()
    driver(path, range(70), Work(fails=fails))

    assert stored(path) == {
        str(item): ("error", None, "ValueError") if item in fails else ("ok", 2 * item, None)
        for item in range(70)
    }


# What the work sees


@booking
def test_the_work_knows_its_attempt(driver, path):
    """`current_attempt()` inside the work is the attempt at that very item, and None outside."""
    seen = {}

    def work(item):
        attempt = current_attempt()
        seen[item] = attempt.id, attempt.item, attempt.number, attempt.run

    driver(path, range(60), work)

    assert seen == {item: (str(item), item, 1, 1) for item in range(60)}
    assert current_attempt() is None


FLAVOUR = contextvars.ContextVar("flavour", default="none")


def without_engine(driver):
    reason = "what is sent to a worker does not bring its sender's context"
    skipped = [pytest.mark.skip(reason=reason)] if driver.engine else []

    return pytest.param(driver, id=driver.name, marks=skipped)


@pytest.mark.parametrize("driver", [without_engine(each) for each in DRIVERS], indirect=True)
def test_the_work_sees_the_callers_context(driver, path):
    """A context variable that the caller has set holds in its items, as in a plain loop."""
    token = FLAVOUR.set("vanilla")
    try:
        driver(path, range(60), lambda _item: FLAVOUR.get())
    finally:
        FLAVOUR.reset(token)

    assert {result for _, result, _ in stored(path).values()} == {"vanilla"}


@every_driver
def test_guard_and_input_see_the_callers_context(driver, path):
    """What is called on behalf of the caller, in whatever thread, sees what the caller has set."""
    seen = set()

    def items():
        for item in range(5):
            seen.add(("items", FLAVOUR.get()))
            yield item

    token = FLAVOUR.set("vanilla")
    try:
        driver(path, items(), Work(), guard=lambda: seen.add(("guard", FLAVOUR.get())))
    finally:
        FLAVOUR.reset(token)

    assert seen == {("items", "vanilla"), ("guard", "vanilla")}


# Errors


@booking
def test_an_error_is_booked_and_the_rest_goes_on(driver, path):
    """An item's exception is its record; its neighbours do not notice."""
    summary = driver(path, range(60), Work(fails=[0, 5, 59]))

    assert (summary.ok, summary.errors, summary.pending, summary.exit_code) == (57, 3, 0, 1)
    assert stored(path)["5"] == ("error", None, "ValueError")


@drivers(lambda each: not each.books)
def test_without_an_attempt_an_exception_is_the_callers(driver, path):
    """An exception that reaches the caller is not booked, and its item is pending."""
    with pytest.raises(ValueError, match="bad 5"):
        driver(path, range(20), Work(fails=[5]))

    assert sorted(stored(path), key=int) == ["0", "1", "2", "3", "4"]


@booking
def test_retries_come_round_with_their_attempts_counted(driver, path):
    """A failed item is tried again after the delay of the policy, until it works or gives up."""
    numbers = {}

    def work(item):
        numbers.setdefault(item, []).append(current_attempt().number)
        if item == 9 or (item == 3 and len(numbers[3]) < 3):
            raise ConnectionError("again")
        return item

    with fake_clock() as clock:
        retry = Backoff(attempts=3, initial=2.0, jitter="none")
        summary = driver(path, range(20), work, retry=retry)

    assert (numbers[3], numbers[9], numbers[0]) == ([1, 2, 3], [1, 2, 3], [1])
    assert (summary.ok, summary.errors, summary.attempts) == (19, 1, 24)
    assert attempts(path) == {1: 18, 3: 2}
    assert clock.now() >= 6.0
    assert summary.waits == 0


@booking
def test_errors_in_a_row_stop_the_batch(driver, path):
    """After ten in a row nothing more is handed out: ten are booked, and those in flight."""
    with fake_clock():
        summary = driver(path, range(300), Work(fails=range(300)), max_consecutive_errors=10)

    assert 10 <= summary.errors <= 10 + driver.ahead
    assert summary.pending == 300 - summary.errors
    assert (summary.stopped_by, summary.exit_code) == ("errors", 1)


@every_driver
def test_a_result_that_cannot_be_stored_stops_the_batch(driver, path):
    """It would strike every item alike, so the first one stops the batch, and is pending."""
    work = Work()
    with pytest.raises(SerializationFailed) as caught:
        driver(path, range(300), lambda item: object() if item == 5 else work(item))
    assert caught.value.id == "5"
    assert "5" not in stored(path)
    # An engine takes its time to bring a failure home; meanwhile its other workers go on.
    assert 5 <= len(work.seen) <= (299 if driver.engine else 5 + 2 * driver.ahead)
    assert len(stored(path)) == len(work.seen)

    summary = driver(path, range(300), work)
    assert (summary.total, summary.pending, summary.exit_code) == (300, 0, 0)
    assert sorted(work.seen) == list(range(300))


# Limits


@booking
def test_a_short_limit_is_waited_out_and_uses_no_attempt(driver, path):
    """An item that runs into a limit is tried again when it is over, as if for the first time."""
    with fake_clock() as clock:
        work = Provider(clock, calls=25, pause=30.0)
        summary = driver(path, range(50), work)

    assert work.refusals >= 1
    assert (summary.ok, summary.errors, summary.exit_code) == (50, 0, 0)
    assert summary.waits >= 1
    assert summary.waited_seconds >= 30.0
    assert attempts(path) == {1: 50}


@booking
def test_the_second_and_third_limit_are_waited_out_like_the_first(driver, path):
    """A pause leaves nothing behind that would make the next one different."""
    with fake_clock() as clock:
        summary = driver(path, range(100), Provider(clock, calls=26, pause=30.0))

    # With several in flight, a refusal may be told only after its limit is over; that is met with
    # a wait of its own, of a second.
    assert summary.waits == 3 or (driver.ahead and summary.waits > 3)
    assert summary.waited_seconds >= 90.0
    assert (summary.ok, summary.errors, attempts(path)) == (100, 0, {1: 100})


@every_driver
def test_a_long_limit_parks_and_the_next_start_finishes(driver, path):
    """Longer than `max_wait`: exit code 2; the limit is stored and holds for the next start."""
    with fake_clock() as clock:
        work = Provider(clock, calls=20, pause=HOURS)
        first = driver(path, range(30), work)
        assert (first.ok, first.pending, first.errors) == (20, 10, 0)
        assert (first.stopped_by, first.exit_code) == ("limit", 2)
        assert first.resume_at.timestamp() == pytest.approx(clock.wall() + HOURS)
        parked = Checkpoint(path, read_only=True).stats().parked_until
        assert parked.timestamp() == pytest.approx(first.resume_at.timestamp(), abs=0.01)

        refusals = work.refusals
        clock.advance(HOURS / 2)
        again = driver(path, range(30), work)
        assert (again.ok, again.attempts, again.exit_code) == (0, 0, 2)
        assert again.resume_at.timestamp() == pytest.approx(first.resume_at.timestamp(), abs=0.01)
        assert work.refusals == refusals

        clock.advance(HOURS / 2 + 1)
        last = driver(path, range(30), work)

    assert (last.done_before, last.ok, last.errors, last.exit_code) == (20, 10, 0, 0)
    assert attempts(path) == {1: 30}


@every_driver
def test_the_second_and_third_park_like_the_first(driver, path):
    """A batch that is parked again and again gets through, with nothing booked as an error."""
    codes = []
    with fake_clock() as clock:
        work = Provider(clock, calls=26, pause=HOURS)
        while not codes or codes[-1] == 2:
            codes.append(driver(path, range(100), work).exit_code)
            clock.advance(HOURS + 1)

    assert codes == [2, 2, 2, 0]
    assert sorted(work.seen) == list(range(100))
    assert (attempts(path), set(stored(path)["99"])) == ({1: 100}, {"ok", 198, None})


@booking
def test_a_limit_halfway_through_a_thousand_items_books_no_error(driver, path):
    """What a provider refuses is not the items' fault, however many are in flight."""
    # Workers answer in real time, and a wait takes none: what was refused before it is heard after
    # it, and is one more limit. However many these are, none is to park the batch.
    with fake_clock() as clock:
        provider = Provider(clock, calls=500, pause=300.0)
        summary = driver(path, range(1000), provider, max_wait=1e6)

    assert (summary.ok, summary.errors, summary.pending) == (1000, 0, 0)
    assert attempts(path) == {1: 1000}
    assert Checkpoint(path, read_only=True).stats().by_status == {"ok": 1000}


# Guards


class Guard:
    """Says "not now" once, after so many questions."""

    def __init__(self, limit, after):
        self.limit = limit
        self.after = after
        self.asked = 0

    def check(self):
        self.asked += 1
        return self.limit if self.asked == self.after + 1 else None


class AsyncGuard(Guard):
    async def check(self):
        await asyncio.sleep(0)
        return super().check()


def guards_for(driver):
    return [Guard, AsyncGuard] if driver.loop else [Guard]


@pytest.mark.parametrize(
    ("driver", "kind"),
    [pytest.param(each, kind, id=f"{each.name}-{kind.__name__}")
     for each in DRIVERS for kind in guards_for(each)],
    indirect=["driver"],
)  # fmt: skip
def test_a_guard_is_asked_before_each_item_and_waited_for(driver, kind, path):
    """Nothing is handed out against a guard; once its limit is over, it is asked again."""
    with fake_clock():
        guard = kind(Limit.after(30.0, reason="off-peak"), after=10)
        summary = driver(path, range(30), Work(), guard=guard)

    assert guard.asked == 31
    assert (summary.ok, summary.waits, summary.waited_seconds) == (30, 1, 30.0)
    assert summary.exit_code == 0


@pytest.mark.parametrize(
    ("driver", "kind"),
    [pytest.param(each, kind, id=f"{each.name}-{kind.__name__}")
     for each in DRIVERS for kind in guards_for(each)],
    indirect=["driver"],
)  # fmt: skip
def test_a_guard_with_a_long_limit_parks(driver, kind, path):
    """What is in flight is finished, nothing more is begun, and the run parks."""
    with fake_clock():
        guard = kind(Limit.after(HOURS), after=10)
        summary = driver(path, range(30), Work(), guard=guard)

    assert (summary.ok, summary.pending, summary.exit_code) == (10, 20, 2)
    assert summary.stopped_by == "limit"


@drivers(lambda each: not each.loop)
def test_an_async_guard_needs_an_async_driver(driver, path):
    """Where nobody can await it, an asynchronous guard is refused and not taken for a "go"."""
    work = Work()
    with pytest.raises(UsageError, match="asynchronous"):
        driver(path, range(3), work, guard=AsyncGuard(Limit.after(1), after=0))

    assert work.seen == []


@every_driver
def test_a_guard_that_raises_stops_the_batch(driver, path):
    """Its exception is the caller's; what is in flight is finished first."""
    calls = []

    def guard():
        calls.append(1)
        if len(calls) > 10:
            raise ConnectionError("no answer")

    with pytest.raises(ConnectionError, match="no answer"):
        driver(path, range(100), Work(), guard=guard)

    assert len(stored(path)) == 10


# Time


@every_driver
def test_after_max_time_nothing_more_is_handed_out(driver, path):
    """The batch ends with exit code 2, and the next start goes on."""
    with fake_clock() as clock:

        def work(item):
            clock.advance(10)
            return item

        summary = driver(path, range(200), work, max_time=35)
        rest = driver(path, range(200), Work())

    assert 4 <= summary.ok <= 4 + driver.ahead
    assert (summary.stopped_by, summary.exit_code, summary.errors) == ("time", 2, 0)
    assert summary.pending == 200 - summary.ok
    assert (rest.done_before, rest.ok, rest.exit_code) == (summary.ok, 200 - summary.ok, 0)
