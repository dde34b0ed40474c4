"""Retry policies decide; they neither wait nor know what runs them."""

import math
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstitch import Backoff, Failure, UsageError
from lockstitch._model import ErrorInfo


class Base(Exception):
    pass


class Special(Base):
    pass


def failure(error=None, attempt=1):
    error = error or ValueError("bad")
    return Failure("x", attempt, ErrorInfo.from_exception(error), error)


def test_the_delay_grows_by_the_factor():
    """Without jitter, attempt n is followed by initial * factor ** (n - 1) seconds."""
    policy = Backoff(attempts=9, initial=2, factor=3, maximum=1000, jitter="none")

    assert [policy(failure(attempt=n)) for n in range(1, 5)] == [2, 6, 18, 54]


def test_the_last_attempt_is_not_followed_by_another():
    """`attempts` is the number of tries in all."""
    policy = Backoff(attempts=2)

    assert policy(failure(attempt=1)) is not None
    assert policy(failure(attempt=2)) is None


@given(
    attempt=st.integers(1, 10**9),
    initial=st.floats(0, 1e300),
    factor=st.floats(1, 1e300),
    maximum=st.floats(0, 1e9),
)
def test_no_delay_exceeds_the_maximum_and_nothing_overflows(attempt, initial, factor, maximum):
    """The cap comes after the jitter, and huge attempt counts are as good as small ones."""
    policy = Backoff(attempts=10**10, initial=initial, factor=factor, maximum=maximum)
    delay = policy(failure(attempt=attempt))

    assert delay is not None
    assert 0 <= delay <= maximum


def test_full_jitter_spreads_over_the_whole_delay():
    """Many draws lie between 0 and the delay, and not all in one place."""
    policy = Backoff(initial=10, jitter="full")
    draws = {policy(failure()) for _ in range(100)}

    assert len(draws) > 50
    assert all(0 <= draw <= 10 for draw in draws)


@pytest.mark.parametrize(
    "on", [Base, (Base,), "Base", f"{__name__}.Base", Special, "Special", [Special, "Other"]]
)
def test_what_is_named_is_tried_again_subclasses_included(on):
    """`on` takes classes and names, one or several; subclasses fit their bases."""
    assert Backoff(on=on)(failure(Special())) is not None
    assert Backoff(on=on)(failure(KeyError())) is None


def test_a_name_with_a_module_fits_only_under_that_module():
    """`openai.RateLimitError` is not somebody else's RateLimitError."""
    info = ErrorInfo("openai._exceptions.RateLimitError", "x")

    assert info.matches("openai.RateLimitError")
    assert info.matches("RateLimitError")
    assert info.matches("openai._exceptions.RateLimitError")
    assert not info.matches("open.RateLimitError")
    assert not info.matches("anthropic.RateLimitError")
    assert not info.matches("Error")


@pytest.mark.parametrize(
    "arguments",
    [
        {"attempts": 0},
        {"attempts": True},
        {"attempts": 1.5},
        {"initial": -1},
        {"initial": "1"},
        {"factor": 0.5},
        {"factor": math.nan},
        {"maximum": math.nan},
        {"jitter": "some"},
        {"on": 42},
        {"on": int},
    ],
)
def test_wrong_arguments_are_refused(arguments):
    """A policy that could not mean anything is refused when it is made."""
    with pytest.raises((UsageError, TypeError)):
        Backoff(**arguments)


def test_durations_may_be_timedeltas():
    """Seconds and timedelta say the same."""
    assert Backoff(initial=timedelta(seconds=2)) == Backoff(initial=2)
