"""Guards made of costly guards, and of the limiters of other libraries."""

import asyncio
from datetime import timedelta
from types import SimpleNamespace

import pytest

from lockstitch import Limit, ResumableBatch, UsageError
from lockstitch.guards import cached, from_limiter
from lockstitch.testing import fake_clock


class Quota:
    """A guard that answers from a list, and go on when that is used up."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = 0

    def check(self):
        self.asked += 1
        return self.answers.pop(0) if self.answers else None


# cached


def test_go_on_holds_for_the_seconds_given():
    """A costly guard is asked at most every so many seconds."""
    quota = Quota()
    guard = cached(quota, timedelta(minutes=1))
    with fake_clock() as clock:
        for _ in range(6):
            assert guard.check() is None
            clock.advance(20)

    assert quota.asked == 2


def test_a_limit_stands_until_its_end_and_shrinks():
    """What was said to last 300 s lasts 300 s from then on, whoever asks in between."""
    quota = Quota(Limit.after(300, reason="weekly", scope="me"))
    guard = cached(quota, 10)
    with fake_clock() as clock:
        assert guard.check() == Limit.after(300, reason="weekly", scope="me")
        clock.advance(299)
        assert guard.check() == Limit.after(1, reason="weekly", scope="me")
        assert quota.asked == 1
        clock.advance(1)
        assert guard.check() is None

    assert quota.asked == 2


def test_a_limit_until_a_moment_stands_until_then():
    """A limit that names a moment is handed out as it is, and is over at that moment."""
    with fake_clock() as clock:
        limit = Limit(clock.instant + timedelta(hours=5))
        quota = Quota(limit)
        guard = cached(quota, 10)
        assert guard.check() is limit
        clock.advance(5 * 3600 - 1)
        assert guard.check() is limit
        clock.advance(1)
        assert guard.check() is None

    assert quota.asked == 2


@pytest.mark.parametrize("over", [Limit(), Limit.after(0)])
def test_a_limit_without_an_end_to_come_holds_as_long_as_go_on(over):
    """An unknown end, or one that is over, is asked about again after the seconds given."""
    quota = Quota(over)
    guard = cached(quota, 10)
    with fake_clock() as clock:
        assert guard.check() == over
        clock.advance(9)
        guard.check()
        assert quota.asked == 1
        clock.advance(1)
        assert guard.check() is None

    assert quota.asked == 2


def test_a_batch_waits_as_told_and_asks_rarely(tmp_path):
    """In a batch, a cached guard costs one question for many items, and its limits are kept."""
    quota = Quota(None, Limit.after(90))
    with fake_clock() as clock:

        def work(_item):
            clock.advance(1)

        with ResumableBatch(tmp_path / "r.jsonl", range(40), guard=cached(quota, 20)) as batch:
            batch.run(work)

    # asked at the start, after 20 items, after the wait, and after 20 more seconds never again
    assert quota.asked == 3
    assert clock.waits == [90.0]
    assert (batch.exit_code, batch.summary.ok) == (0, 40)


def test_a_limit_met_at_once_is_asked_about_again_when_it_is_over(tmp_path):
    """A cached limit neither ends early nor outlives its end, also when the next one follows."""
    quota = Quota(Limit.after(90), Limit.after(30))
    with (
        fake_clock() as clock,
        ResumableBatch(tmp_path / "r.jsonl", range(3), guard=cached(quota, 3600)) as batch,
    ):
        batch.run(str)

    assert (clock.waits, quota.asked, batch.exit_code) == ([90.0, 30.0], 3, 0)


def test_an_answer_means_nothing_on_another_clock():
    """A guard that lives in a module may be used by many tests, each with its own clock."""
    quota = Quota(Limit.after(90))
    guard = cached(quota, 10)
    with fake_clock():
        assert guard.check() == Limit.after(90)
    with fake_clock():
        assert guard.check() is None


def test_a_function_is_cached_too():
    """What is a guard for `guard=` is one for `cached`."""
    asked = []
    guard = cached(lambda: asked.append(1), 10)
    with fake_clock():
        guard.check()
        guard.check()

    assert asked == [1]
    assert repr(cached(len, 10)) == "cached(<built-in function len>, 10)"


def test_a_guard_that_raises_is_asked_again():
    """A failure is no answer, so it does not hold."""
    answers = iter([OSError("no network"), None])

    def check():
        answer = next(answers)
        if answer is not None:
            raise answer

    guard = cached(check, 3600)
    with fake_clock():
        with pytest.raises(OSError, match="no network"):
            guard.check()
        assert guard.check() is None


def test_an_asynchronous_guard_is_cached_for_loops_that_await():
    """What has to be awaited is awaited once, and then answered at once."""
    asked = []

    async def check():
        asked.append(1)
        return Limit.after(90)

    async def ask_twice(guard):
        return await guard.check(), guard.check()

    with fake_clock():
        first, second = asyncio.run(ask_twice(cached(check, 10)))

    assert first == second == Limit.after(90)
    assert asked == [1]


def test_an_asynchronous_guard_is_refused_by_a_plain_loop(tmp_path):
    """The error says so, and nothing is left that was never awaited."""

    async def check():
        return None

    with (
        pytest.raises(UsageError, match="asynchronous"),
        ResumableBatch(tmp_path / "r.jsonl", [1], guard=cached(check, 10)) as batch,
    ):
        batch.run(str)


@pytest.mark.parametrize("arguments", [(42, 10), ([Quota()], 10), (Quota, 10)])
def test_what_is_no_guard_is_refused(arguments):
    """The error comes when the guard is made."""
    with pytest.raises(UsageError, match="guard"):
        cached(*arguments)


@pytest.mark.parametrize("seconds", [-1, "10", None, float("nan")])
def test_what_is_no_duration_is_refused(seconds):
    """The error names the argument."""
    with pytest.raises(UsageError, match="cached"):
        cached(Quota(), seconds)


# pyrate-limiter


@pytest.fixture
def pyrate():
    """Make limiters of pyrate-limiter that go by a clock of ours."""
    pyrate_limiter = pytest.importorskip("pyrate_limiter", reason="the library adapted to")
    made = []

    class Clock(pyrate_limiter.AbstractClock):
        def __init__(self, clock):
            self.clock = clock

        def now(self):
            return round(self.clock.now() * 1000)

    def make(clock, *rates):
        bucket = pyrate_limiter.InMemoryBucket(
            [pyrate_limiter.Rate(count, seconds * 1000) for count, seconds in rates]
        )
        bucket._clock = Clock(clock)
        # Without the thread that cleans up: it goes by the real clock.
        factory = pyrate_limiter.SingleBucketFactory(bucket, schedule_leak=False)
        made.append(pyrate_limiter.Limiter(factory))
        return made[-1]

    yield make
    for limiter in made:
        limiter.close()


def test_a_pyrate_limiter_paces_a_batch(tmp_path, pyrate):
    """Of 7 items at 3 in 60 s, the batch waits out two windows, and the limiter never sleeps."""
    started = []
    with fake_clock() as clock:
        guard = from_limiter(pyrate(clock, (3, 60)))
        with ResumableBatch(tmp_path / "r.jsonl", range(7), guard=guard) as batch:
            batch.run(lambda _: started.append(clock.now()))

    assert [round(at) for at in started] == [0, 0, 0, 60, 60, 60, 120]
    assert len(clock.waits) == 2
    assert batch.exit_code == 0


def test_of_several_rates_of_a_pyrate_limiter_each_is_kept(tmp_path, pyrate):
    """The batch waits for the rate that is used up, the long one included."""
    started = []
    with fake_clock() as clock:
        guard = from_limiter(pyrate(clock, (2, 10), (4, 100)), "account")
        with ResumableBatch(tmp_path / "r.jsonl", range(5), guard=guard) as batch:
            batch.run(lambda _: started.append(clock.now()))

    assert [round(at) for at in started] == [0, 0, 10, 10, 100]
    assert batch.exit_code == 0


def test_a_long_window_of_a_pyrate_limiter_parks(tmp_path, pyrate):
    """A wait beyond max_wait is exit code 2, as for every guard, and names the limiter."""
    with fake_clock() as clock:
        guard = from_limiter(pyrate(clock, (1, 3600)), "account")
        with ResumableBatch(tmp_path / "r.jsonl", range(3), guard=guard) as batch:
            batch.run(str)
        limit = guard.check()

    assert (batch.exit_code, batch.summary.ok, clock.waits) == (2, 1, [])
    assert (limit.reason, limit.scope) == ("pyrate-limiter", "account")


def test_an_item_may_cost_more_than_one(pyrate):
    """`cost` is taken for each item; more than the limiter ever has is a mistake, not a wait."""
    with fake_clock() as clock:
        limiter = pyrate(clock, (5, 60))
        two = from_limiter(limiter, cost=2)
        assert two.check() is two.check() is None
        assert two.check() is not None
        with pytest.raises(UsageError, match="cost=6"):
            from_limiter(limiter, cost=6).check()


def test_a_pyrate_limiter_is_taken_as_it_is_made():
    """A limiter with its own clock and its thread that cleans up is no different."""
    pyrate_limiter = pytest.importorskip("pyrate_limiter", reason="the library adapted to")
    with pyrate_limiter.Limiter(pyrate_limiter.Rate(2, pyrate_limiter.Duration.HOUR)) as limiter:
        guard = from_limiter(limiter)
        assert guard.check() is guard.check() is None
        assert 3590 < guard.check().seconds < 3601


# limits


@pytest.fixture
def limits(monkeypatch):
    """Return the library `limits`, with storage that goes by the clock of a test."""
    limits = pytest.importorskip("limits", reason="the library adapted to")
    memory = pytest.importorskip("limits.storage.memory")
    strategies = pytest.importorskip("limits.strategies")
    timers = []

    def with_storage(clock, strategy):
        # It takes no clock, so the module it reads the time from is exchanged, for this storage.
        monkeypatch.setattr(memory, "time", SimpleNamespace(time=clock.wall))
        monkeypatch.setattr(strategies, "time", SimpleNamespace(time=clock.wall))
        storage = memory.MemoryStorage()
        timers.append(storage)
        return getattr(strategies, strategy)(storage)

    yield SimpleNamespace(parse=limits.parse, make=with_storage)
    for storage in timers:
        storage.timer.cancel()
        if storage.timer.is_alive():
            storage.timer.join()


@pytest.mark.parametrize(
    ("strategy", "starts"),
    [
        ("FixedWindowRateLimiter", [0, 0, 0, 60, 60, 60, 120]),
        # Its window is over a moment after the reset that it tells, so it is asked twice.
        ("MovingWindowRateLimiter", [0, 0, 0, 61, 61, 61, 122]),
    ],
)
def test_a_strategy_of_limits_paces_a_batch(tmp_path, limits, strategy, starts):
    """Of 7 items at 3 a minute, the batch waits out two windows."""
    started = []
    with fake_clock() as clock:
        guard = from_limiter(limits.make(clock, strategy), limits.parse("3/minute"), "me", "gpt")
        with ResumableBatch(tmp_path / "r.jsonl", range(7), guard=guard) as batch:
            batch.run(lambda _: started.append(clock.now()))

    assert [round(at) for at in started] == starts
    assert batch.exit_code == 0


def test_a_sliding_window_of_limits_is_never_exceeded(tmp_path, limits):
    """Where the reset is only an estimate, the batch asks again until it is let go."""
    started = []
    with fake_clock() as clock:
        limiter = limits.make(clock, "SlidingWindowCounterRateLimiter")
        guard = from_limiter(limiter, limits.parse("3/minute"))
        with ResumableBatch(tmp_path / "r.jsonl", range(7), guard=guard) as batch:
            batch.run(lambda _: started.append(clock.now()))

    assert batch.exit_code == 0
    assert started[2] == 0 < started[3]
    assert started[6] >= 60


def test_a_limit_of_limits_says_which(limits):
    """The reason is the item, the scope are the identifiers; each scope has its own budget."""
    with fake_clock() as clock:
        limiter = limits.make(clock, "FixedWindowRateLimiter")
        mine, yours = (from_limiter(limiter, limits.parse("1/hour"), who, "gpt") for who in "ab")
        assert mine.check() is None
        limit = mine.check()
        assert yours.check() is None

    assert limit == Limit.after(3600, reason="1 per 1 hour", scope="a/gpt")


def test_a_cost_that_never_fits_is_refused(limits):
    """An item that costs more than a window has would wait for ever."""
    with fake_clock() as clock:
        limiter = limits.make(clock, "MovingWindowRateLimiter")
        with pytest.raises(UsageError, match="cost=9"):
            from_limiter(limiter, limits.parse("3/minute"), cost=9).check()


def test_an_asynchronous_limiter_is_refused():
    """A plain loop cannot await; nothing is left that was never awaited."""
    aio = pytest.importorskip("limits.aio", reason="the library adapted to")
    import limits

    strategy = aio.strategies.FixedWindowRateLimiter(aio.storage.MemoryStorage())
    with pytest.raises(UsageError, match="synchronous"):
        from_limiter(strategy, limits.parse("3/minute")).check()


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        (42,),
        (SimpleNamespace(hit=len, get_window_stats=len),),
        (SimpleNamespace(try_acquire=len, bucket_factory=len), "name", "more"),
    ],
)
def test_what_is_no_limiter_is_refused(arguments):
    """The error says what is taken, and that a function is a guard already."""
    with pytest.raises((UsageError, TypeError), match="limiter"):
        from_limiter(*arguments)


@pytest.mark.parametrize("cost", [0, -1, True, 1.5])
def test_a_cost_is_a_whole_number(cost):
    """What could not be taken is refused when the guard is made."""
    with pytest.raises(UsageError, match="cost"):
        from_limiter(SimpleNamespace(try_acquire=len, bucket_factory=len), cost=cost)
