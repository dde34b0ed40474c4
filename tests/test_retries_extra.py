"""tenacity's policies decide for a batch; functions that retry by themselves simply work."""

import threading

import pytest

from lockstitch import Failure, ResumableBatch, UsageError
from lockstitch._model import ErrorInfo
from lockstitch.retries import from_tenacity
from lockstitch.testing import fake_clock

tenacity = pytest.importorskip("tenacity", reason="the library adapted to")


def failure(error=None, attempt=1, *, id="x", elapsed=0.0, here=True):
    error = error or ValueError("bad")
    info = ErrorInfo.from_exception(error)

    return Failure(id, attempt, info, error if here else None, elapsed)


def delays(policy, count=10, **more):
    """Return what a policy answers, attempt after attempt, until it gives up."""
    found = []
    for attempt in range(1, count + 1):
        found.append(policy(failure(attempt=attempt, **more)))
        if found[-1] is None:
            break

    return found


def test_the_number_of_attempts_is_kept():
    """stop_after_attempt(3) is three tries, by the count of the batch."""
    policy = from_tenacity(tenacity.Retrying(stop=tenacity.stop_after_attempt(3)))

    assert delays(policy) == [0.0, 0.0, None]
    assert policy(failure(attempt=3, id="of an earlier run")) is None


WAITS = [
    (tenacity.wait_none(), [0, 0, 0, 0]),
    (tenacity.wait_fixed(7), [7, 7, 7, 7]),
    (tenacity.wait_exponential(multiplier=1, min=2, max=10), [2, 2, 4, 8]),
    (tenacity.wait_incrementing(start=1, increment=5), [1, 6, 11, 16]),
    (tenacity.wait_chain(tenacity.wait_fixed(1), tenacity.wait_fixed(9)), [1, 9, 9, 9]),
    (tenacity.wait_fixed(3) + tenacity.wait_incrementing(increment=1), [3, 4, 5, 6]),
    (lambda state: state.attempt_number * 10, [10, 20, 30, 40]),
]


@pytest.mark.parametrize(("wait", "expected"), WAITS)
def test_the_waits_are_tenacitys(wait, expected):
    """Whatever computes the wait is asked, and what it says is waited."""
    assert delays(from_tenacity(tenacity.Retrying(wait=wait)), 4) == expected


@pytest.mark.parametrize(
    ("wait", "most"),
    [
        (tenacity.wait_random(2, 5), [5] * 4),
        (tenacity.wait_random_exponential(multiplier=1, max=4), [1, 2, 4, 4]),
        (tenacity.wait_exponential_jitter(initial=1, max=6, jitter=1), [2, 3, 5, 6]),
    ],
)
def test_random_waits_stay_random(wait, most):
    """Each item draws its own wait, within the bounds."""
    policy = from_tenacity(tenacity.Retrying(wait=wait))
    draws = [delays(policy, 4) for _ in range(50)]

    assert all(0 <= drawn <= bound for row in draws for drawn, bound in zip(row, most, strict=True))
    assert len({row[1] for row in draws}) > 20


def test_a_huge_number_of_attempts_does_not_overflow():
    """An item that has failed for weeks is asked about like any other."""
    policy = from_tenacity(tenacity.Retrying(wait=tenacity.wait_exponential(max=60)))

    assert policy(failure(attempt=10**6)) == 60


RETRIES = [
    (tenacity.retry_if_exception_type(OSError), TimeoutError(), True),
    (tenacity.retry_if_exception_type(OSError), ValueError(), False),
    (tenacity.retry_if_exception_type((KeyError, OSError)), KeyError(1), True),
    (tenacity.retry_if_not_exception_type(OSError), ValueError(), True),
    (tenacity.retry_if_not_exception_type(OSError), TimeoutError(), False),
    (tenacity.retry_if_exception(lambda error: "busy" in str(error)), OSError("busy"), True),
    (tenacity.retry_if_exception(lambda error: "busy" in str(error)), OSError("gone"), False),
    (tenacity.retry_if_exception_message(match="^bus"), OSError("busy"), True),
    (tenacity.retry_if_exception_message(match="^bus"), OSError("gone"), False),
    (tenacity.retry_unless_exception_type(OSError), OSError(), False),
    (tenacity.retry_if_result(lambda _: True), OSError(), False),
    (
        tenacity.retry_if_exception_type(OSError) | tenacity.retry_if_exception_type(KeyError),
        KeyError(1),
        True,
    ),
    (tenacity.retry_never, OSError(), False),
    (tenacity.retry_never, tenacity.TryAgain(), True),
]


@pytest.mark.parametrize("here", [True, False], ids=["this process", "another process"])
@pytest.mark.parametrize(("retry", "error", "again"), RETRIES)
def test_what_is_worth_another_try_is_tenacitys_to_say(retry, error, again, here):
    """The predicates get the exception, or one like it when it stayed in another process."""
    policy = from_tenacity(tenacity.Retrying(retry=retry, wait=tenacity.wait_fixed(1)))

    assert policy(failure(error, here=here)) == (1 if again else None)


class Particular(OSError):
    """An exception that is not made as others are."""

    def __new__(cls, one, *, two):
        return super().__new__(cls, one, two)

    def __init__(self, one, *, two):
        super().__init__(one, two)


def test_an_exception_that_is_not_here_is_replaced_by_the_nearest_that_is():
    """A class that is not loaded, or will not be made, is stood in for by its base."""
    foreign = ErrorInfo("far.away.Busy", "busy", bases=("far.away.Base", "TimeoutError", "OSError"))
    unheard = ErrorInfo("far.away.Busy", "busy", bases=())
    nested = ErrorInfo("os.path", "a module, and no class", bases=("OSError",))
    policy = from_tenacity(tenacity.Retrying(retry=tenacity.retry_if_exception_type(TimeoutError)))
    broad = from_tenacity(tenacity.Retrying(retry=tenacity.retry_if_exception_type(OSError)))

    assert policy(Failure("x", 1, foreign)) == 0
    assert policy(Failure("x", 1, unheard)) is None
    assert policy(Failure("x", 1, nested)) is None
    assert broad(Failure("x", 1, nested)) == 0
    assert broad(failure(Particular(1, two=2), here=False)) == 0


def test_the_time_of_tries_and_waits_counts_towards_a_delay():
    """stop_after_delay counts both the seconds of the tries and those of the waits."""
    retrying = tenacity.Retrying(stop=tenacity.stop_after_delay(60), wait=tenacity.wait_fixed(15))

    # over at 10, 35 and 60 s, or at 9, 33, 57 and 81
    assert delays(from_tenacity(retrying), elapsed=10) == [15, 15, None]
    assert delays(from_tenacity(retrying), elapsed=9) == [15, 15, 15, None]


def test_a_wait_that_would_pass_the_end_is_not_begun():
    """stop_before_delay looks at the wait that would follow."""
    retrying = tenacity.Retrying(stop=tenacity.stop_before_delay(60), wait=tenacity.wait_fixed(30))

    assert delays(from_tenacity(retrying), elapsed=1) == [30, None]


def test_each_item_has_its_own_delay_and_a_redo_starts_anew():
    """Items do not use each other's time up, and the first attempt begins at nothing."""
    policy = from_tenacity(tenacity.Retrying(stop=tenacity.stop_after_delay(60)))

    assert policy(failure(elapsed=50)) == 0
    assert policy(failure(elapsed=50, id="y")) == 0
    assert policy(failure(elapsed=50, attempt=1)) == 0
    assert policy(failure(elapsed=50, attempt=2)) is None
    assert policy(failure(elapsed=50, attempt=2)) == 0  # given up means forgotten


def test_memory_does_not_grow_with_the_items():
    """Of items that succeed after a retry nobody hears again; they are forgotten in time."""
    policy = from_tenacity(tenacity.Retrying(stop=tenacity.stop_after_delay(60)))
    policy(failure(id="first", elapsed=59))
    for number in range(10_050):
        policy(failure(id=str(number)))

    assert len(policy._spent) == 10_000
    assert policy(failure(id="first", attempt=2, elapsed=2)) == 0


def test_stops_combine():
    """Whatever `|` and `&` make of them is asked as one."""
    either = tenacity.stop_after_attempt(5) | tenacity.stop_after_delay(30)
    policy = from_tenacity(tenacity.Retrying(stop=either, wait=tenacity.wait_fixed(10)))
    event = threading.Event()
    when_set = from_tenacity(tenacity.Retrying(stop=tenacity.stop_when_event_set(event)))

    assert delays(policy, elapsed=5) == [10, 10, None]
    assert delays(policy) == [10, 10, 10, None]
    assert when_set(failure()) == 0
    event.set()
    assert when_set(failure()) is None


def test_tenacity_switched_off_gives_up_at_once():
    """`enabled=False`, as tests set it, means one try."""
    try:
        retrying = tenacity.Retrying(enabled=False)
    except TypeError:
        pytest.skip("this version of tenacity has no switch")

    assert from_tenacity(retrying)(failure()) is None


def test_the_policy_of_a_decorated_function_can_be_taken():
    """`.retry` of what tenacity has decorated is a Retrying."""

    @tenacity.retry(stop=tenacity.stop_after_attempt(2), wait=tenacity.wait_fixed(4))
    def decorated():
        raise NotImplementedError

    assert delays(from_tenacity(decorated.retry)) == [4, None]


def never(*_):
    raise AssertionError("the batch waits, and tenacity does not")


def test_a_batch_retries_as_tenacity_says_and_waits_itself(tmp_path):
    """Attempts are the batch's, waits are those of its clock, and errors are booked."""
    policy = from_tenacity(
        tenacity.Retrying(
            sleep=never,
            stop=tenacity.stop_after_attempt(3),
            wait=tenacity.wait_exponential(multiplier=4),
            retry=tenacity.retry_if_exception_type(OSError),
        )
    )
    tries = []

    def work(item):
        tries.append(item)
        if item == "hopeless" or (item == "flaky" and tries.count(item) < 3):
            raise OSError(item)
        if item == "wrong":
            raise ValueError(item)

    items = ["good", "flaky", "hopeless", "wrong"]
    with fake_clock() as clock, ResumableBatch(tmp_path / "r.jsonl", items, retry=policy) as batch:
        batch.run(work)
    records = {
        item: (batch.checkpoint[item].status, batch.checkpoint[item].attempt) for item in items
    }

    assert records == {
        "good": ("ok", 1),
        "flaky": ("ok", 3),
        "hopeless": ("error", 3),
        "wrong": ("error", 1),
    }
    assert clock.waits == [4, 8]


def test_attempts_count_across_runs(tmp_path):
    """A run that ends between two tries leaves the count in the file."""
    retrying = tenacity.Retrying(stop=tenacity.stop_after_attempt(2), wait=tenacity.wait_fixed(60))
    tries = []

    def work(_item):
        tries.append(1)
        raise OSError("down")

    with fake_clock() as clock:
        for _ in range(2):
            with ResumableBatch(
                tmp_path / "r.jsonl", [1], retry=from_tenacity(retrying), max_wait=10
            ) as batch:
                batch.run(work)
            clock.advance(60)

    assert len(tries) == 2
    assert batch.checkpoint["1"].attempt == 2


async def _asynchronous(_state):
    return True


@pytest.mark.parametrize("part", ["retry", "wait", "stop"])
def test_asynchronous_parts_are_refused(part):
    """A policy is asked and answers; nothing is left that was never awaited."""
    policy = from_tenacity(tenacity.AsyncRetrying(**{part: _asynchronous}))

    with pytest.raises(UsageError, match="plain"):
        policy(failure())


def test_an_asynchronous_retrying_with_plain_parts_is_a_policy():
    """Only what it decides is used, and not how it would sleep."""
    policy = from_tenacity(tenacity.AsyncRetrying(wait=tenacity.wait_fixed(4)))

    assert policy(failure()) == 4


@pytest.mark.parametrize("given", [None, 3, len, tenacity.Retrying, tenacity.stop_after_attempt(3)])
def test_what_is_no_retrying_is_refused(given):
    """The error names what is taken, and where it is found."""
    with pytest.raises(UsageError, match=r"\.retry"):
        from_tenacity(given)


# Functions that retry by themselves


class Flaky:
    """Work that fails twice for each item, and then succeeds."""

    def __init__(self):
        self.calls = 0

    def __call__(self, item):
        self.calls += 1
        if self.calls % 3:
            raise ConnectionError("reset by peer")
        return item * 2


def plain(fn):
    """Return a function: some decorators want a `__name__`."""

    def work(item):
        return fn(item)

    return work


def with_tenacity(fn):
    return tenacity.retry(stop=tenacity.stop_after_attempt(3), reraise=True)(fn)


def with_a_tenacity_caller(fn):
    retrying = tenacity.Retrying(stop=tenacity.stop_after_attempt(3))

    return lambda item: retrying(fn, item)


def with_stamina(fn):
    stamina = pytest.importorskip("stamina", reason="a decorator that must simply work")

    return stamina.retry(on=ConnectionError, attempts=3, wait_initial=0, wait_jitter=0)(plain(fn))


def with_backoff(fn):
    backoff = pytest.importorskip("backoff", reason="a decorator that must simply work")

    return backoff.on_exception(backoff.constant, ConnectionError, max_tries=3, interval=0)(
        plain(fn)
    )


DECORATORS = [with_tenacity, with_a_tenacity_caller, with_stamina, with_backoff]


@pytest.mark.parametrize("concurrency", [1, 2])
@pytest.mark.parametrize("decorate", DECORATORS)
def test_a_function_that_retries_by_itself_works_inside_an_item(tmp_path, decorate, concurrency):
    """Its tries are one attempt of the batch, and its result is the item's."""
    flaky = Flaky()
    with ResumableBatch(tmp_path / "r.jsonl", [1], retry=never) as batch:
        batch.run(decorate(flaky), concurrency=concurrency)
    record = batch.checkpoint["1"]

    assert (record.status, record.result, record.attempt, flaky.calls) == ("ok", 2, 1, 3)


@pytest.mark.parametrize("decorate", DECORATORS)
def test_a_function_that_gives_up_is_one_failed_attempt(tmp_path, decorate):
    """What comes out of it in the end is the item's error, whatever it is wrapped in."""
    work = decorate(lambda item: 1 / item)
    with ResumableBatch(tmp_path / "r.jsonl", [0]) as batch:
        batch.run(work)
    record = batch.checkpoint["0"]

    assert (record.status, record.attempt) == ("error", 1)
    assert record.error.matches(ZeroDivisionError, "tenacity.RetryError")


class Refused(Exception):
    def __init__(self):
        super().__init__("slow down")
        self.status_code = 429
        self.headers = {"Retry-After": "33"}


@pytest.mark.parametrize("decorate", DECORATORS)
def test_a_limit_that_a_decorator_could_not_outwait_is_a_limit(tmp_path, decorate):
    """Three refusals in a row are a pause and not an error, also inside tenacity's RetryError."""
    refusals = [Refused() for _ in range(3)]

    def work(item):
        if refusals:
            raise ConnectionError("refused") from refusals.pop()
        return item

    with fake_clock() as clock, ResumableBatch(tmp_path / "r.jsonl", [1]) as batch:
        batch.run(decorate(work))

    assert clock.waits == [33.0]
    assert (batch.exit_code, batch.checkpoint["1"].attempt) == (0, 1)
