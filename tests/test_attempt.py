"""What the code that works on an item can do: save, cursor, steps, and know where it is."""

import pytest

from lockstitch import ResumableBatch, SerializationFailed, UsageError, current_attempt


class Dies(BaseException):
    """Stands for whatever ends a process in the middle of an item."""


def attempt_at(path, work, item="a"):
    with ResumableBatch(path, [item]) as batch:
        batch.run(lambda _item: work(current_attempt()))
    return batch


def test_a_cursor_is_handed_back_when_the_item_runs_again(tmp_path):
    """How far an item had come survives the process, until the item is finished."""
    seen = []

    def work(attempt):
        seen.append(attempt.cursor)
        for page in range(attempt.cursor or 0, 5):
            attempt.save_cursor(page + 1)
            if page == 2 and len(seen) == 1:
                raise Dies
        return "done"

    with pytest.raises(Dies):
        attempt_at(tmp_path / "r.jsonl", work)
    batch = attempt_at(tmp_path / "r.jsonl", work)

    assert seen == [None, 3]
    assert batch.checkpoint["a"].result == "done"
    with ResumableBatch(tmp_path / "r.jsonl", ["a"], redo="ok") as batch:
        batch.run(lambda _item: seen.append(current_attempt().cursor))
    assert seen[-1] is None


def test_a_step_runs_once_over_all_attempts(tmp_path):
    """A finished part of an item is not paid for again."""
    calls = []

    def work(attempt):
        fetched = attempt.step("fetch", lambda url: calls.append(url) or {"url": url}, "u")
        if len(calls) == 1 and attempt.cursor is None:
            attempt.save_cursor("fetched")
            raise Dies
        return fetched

    with pytest.raises(Dies):
        attempt_at(tmp_path / "r.jsonl", work)
    batch = attempt_at(tmp_path / "r.jsonl", work)

    assert calls == ["u"]
    assert batch.checkpoint["a"].result == {"url": "u"}


def test_steps_with_different_names_are_different(tmp_path):
    """The name is what identifies a step within its item."""
    batch = attempt_at(
        tmp_path / "r.jsonl",
        lambda attempt: [attempt.step("a", str, 1), attempt.step("b", str, 2)],
    )

    assert batch.checkpoint["a"].result == ["1", "2"]


def test_the_idempotency_key_is_the_same_in_every_run_and_nowhere_else(tmp_path):
    """It names item and checkpoint, so a repeated request is recognised as one."""
    keys = []

    def work(attempt):
        keys.append(attempt.idempotency_key)
        if len(keys) == 1:
            raise Dies

    with pytest.raises(Dies):
        attempt_at(tmp_path / "r.jsonl", work)
    attempt_at(tmp_path / "r.jsonl", work)
    attempt_at(tmp_path / "other.jsonl", work)

    assert keys[0] == keys[1]
    assert keys[0] != keys[2]


def test_an_attempt_knows_its_item_number_and_run(tmp_path):
    """Inside the work, and only there, current_attempt() says where it is."""
    seen = []

    def work(attempt):
        seen.append((attempt.id, attempt.item, attempt.number, attempt.run, attempt.saved))

    attempt_at(tmp_path / "r.jsonl", work, 5)

    assert seen == [("5", 5, 1, 1, False)]
    assert current_attempt() is None


def test_a_save_inside_the_work_gives_the_status(tmp_path):
    """A function that saves by itself decides the status; what it returns is not saved again."""
    batch = attempt_at(
        tmp_path / "r.jsonl", lambda attempt: attempt.save({"x": 1}, status="fail") or "ignored"
    )

    assert (batch.checkpoint["a"].status, batch.checkpoint["a"].result) == ("fail", {"x": 1})


def test_nothing_can_be_added_to_a_saved_item(tmp_path):
    """After the save the item is done: a second save, a cursor or a step is a mistake."""
    path = tmp_path / "r.jsonl"
    with ResumableBatch(path, ["a"]) as batch:
        for item in batch:
            with batch.attempt(item) as attempt:
                attempt.save(1)
                for use in (
                    lambda: attempt.save(2),
                    lambda: attempt.save_cursor(2),
                    lambda: attempt.step("s", str),
                ):
                    with pytest.raises(UsageError, match="saved already"):
                        use()

    assert batch.checkpoint["a"].result == 1


def test_an_exception_after_the_save_is_the_callers(tmp_path):
    """The item has its record; what comes after it is not swallowed."""
    batch = ResumableBatch(tmp_path / "r.jsonl", ["a"])
    with pytest.raises(ValueError, match="later"), batch:
        for item in batch:
            with batch.attempt(item) as attempt:
                attempt.save(1)
                raise ValueError("later")

    assert batch.checkpoint["a"].status == "ok"


@pytest.mark.parametrize("value", [{1, 2}, float("nan"), (1,), object()])
def test_what_would_not_come_back_equal_is_neither_cursor_nor_step(tmp_path, value):
    """Cursors and steps are held to the rule of results."""
    for use in (
        lambda attempt: attempt.save_cursor(value),
        lambda attempt: attempt.step("s", lambda: value),
    ):
        with pytest.raises(SerializationFailed):
            attempt_at(tmp_path / "r.jsonl", use)


@pytest.mark.parametrize("name", ["", None, 3])
def test_a_step_has_a_name(tmp_path, name):
    """Without a name it could not be found again."""
    with pytest.raises(UsageError, match="step"):
        attempt_at(tmp_path / "r.jsonl", lambda attempt: attempt.step(name, str))
