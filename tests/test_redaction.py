"""Secrets stay out of the file: what is stored of errors and configs is for `redact` to say."""

import re

import pytest

from lockstitch import (
    Backoff,
    Checkpoint,
    ConfigMismatch,
    Limit,
    RateLimited,
    ResumableBatch,
    UsageError,
    resumable,
)
from lockstitch.testing import fake_clock

KEY = "sk-verysecret123"


def redact(text):
    return re.sub(r"sk-\w+", "sk-…", text)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.jsonl"


def fails(item):
    secret = f"{KEY}-local"
    if item == "limited":
        raise RateLimited(Limit.after(5, reason=f"quota of {KEY}", scope=KEY))
    raise ValueError(f"401 for {KEY}") from KeyError(secret)


def test_no_secret_of_an_error_or_a_limit_reaches_the_file(path):
    """Messages, tracebacks with causes, retried attempts, limits: all of it is redacted."""
    with (
        fake_clock(),
        ResumableBatch(
            Checkpoint(path, redact=redact), ["a", "limited"], retry=Backoff(attempts=2), max_wait=1
        ) as batch,
    ):
        batch.run(fails)
    with fake_clock(), ResumableBatch(Checkpoint(path, redact=redact), ["a"]) as batch:
        batch.run(fails)
    record = batch.checkpoint["a"]

    assert record.error.type == "ValueError"
    assert record.error.message == "401 for sk-…"
    assert "KeyError: 'sk-…-local'" in record.error.traceback
    assert b'"retry":"a"' in path.read_bytes()
    assert b'"pause":' in path.read_bytes()
    assert b"verysecret" not in path.read_bytes()


def test_a_policy_sees_the_error_as_it_is(path):
    """Only what is stored is redacted."""
    seen = []

    def policy(failure):
        seen.append(failure.error.message)

    with ResumableBatch(Checkpoint(path, redact=redact), ["a"], retry=policy) as batch:
        batch.run(fails)

    assert seen == [f"401 for {KEY}"]


def test_a_booked_error_and_a_decorated_call_are_redacted(path):
    """`fail` and `on_error="record"` go the same way."""
    with ResumableBatch(Checkpoint(path, redact=redact), ["a"]) as batch:
        for item in batch:
            batch.fail(item, ValueError(KEY))
    call = resumable(Checkpoint(path, redact=redact), on_error="record")(fails)
    with call:
        assert call("b") is None

    assert b"verysecret" not in path.read_bytes()


def test_a_redacted_config_is_equal_on_resume(path):
    """It is compared as it is kept, so a new key is no new config, and anything else is."""
    for key in (KEY, "sk-another"):
        config = {"model": "m1", "auth": {"key": key, "urls": [f"https://x/?k={key}", 1]}}
        with Checkpoint(path, config=config, redact=redact) as checkpoint:
            checkpoint.save(key)
    with pytest.raises(ConfigMismatch) as caught:
        Checkpoint(path, config={**config, "model": f"m2 {KEY}"}, redact=redact).save("c")

    assert caught.value.changes == {"model": ("m1", "m2 sk-…")}
    assert b"verysecret" not in path.read_bytes().replace(f'"id":"{KEY}"'.encode(), b"")


def test_a_config_that_is_kept_is_redacted(path):
    """Also where a changed one takes the old one's place."""
    Checkpoint(path, config={"a": 1}).save("a")
    with Checkpoint(path, config={"a": KEY}, on_config_change="keep", redact=redact) as checkpoint:
        checkpoint.save("b")

    assert b"sk-" in path.read_bytes()
    assert b"verysecret" not in path.read_bytes()


@pytest.mark.parametrize("wrong", [lambda _text: None, lambda text: text.encode()])
def test_a_hook_that_returns_no_text_stops_the_batch(path, wrong):
    """Nothing is stored of what it was given; the item is pending."""
    with (
        pytest.raises(UsageError, match="redact= must return a text"),
        ResumableBatch(Checkpoint(path, redact=wrong), ["a"]) as batch,
    ):
        batch.run(fails)

    assert b"verysecret" not in path.read_bytes()
    assert "a" not in Checkpoint(path, read_only=True)


def test_a_hook_that_raises_stops_the_batch(path):
    """Better no record than one with the secret in it."""

    def broken(_text):
        raise LookupError

    with (
        pytest.raises(LookupError),
        ResumableBatch(Checkpoint(path, redact=broken), ["a"]) as batch,
    ):
        batch.run(fails)

    assert b"verysecret" not in path.read_bytes()


def test_a_hook_is_a_function(path):
    """A pattern by itself says nothing about what to put in its place."""
    with pytest.raises(UsageError, match="redact="):
        Checkpoint(path, redact="sk-.*")


def test_a_traceback_holds_no_values_of_locals(path):
    """What was in a variable and in no message is not in the file, redacted or not."""

    def work(_item):
        password = "hunter" + "2"
        raise ValueError(len(password))

    with ResumableBatch(path, ["a"]) as batch:
        batch.run(work)

    assert "hunter2" not in path.read_text()
