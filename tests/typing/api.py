"""Never run: type checkers prove here that the public API says what it means."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, assert_type

from lockstitch import (
    Attempt,
    Backoff,
    Checkpoint,
    Failure,
    Limit,
    Plan,
    RateLimitGuard,
    Record,
    ResumableBatch,
    RetryPolicy,
    Summary,
    current_attempt,
    resumable,
)
from lockstitch.testing import crash_everywhere


class Case:
    id: str = ""


@resumable("run.jsonl", key="id")
def evaluate(case: Case) -> float:
    return 0.5


assert_type(evaluate(Case()), float)
assert_type(evaluate.run([Case()]), Summary)
assert_type(evaluate.map([Case()]), Iterator[Record])
evaluate(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@resumable("run.jsonl", key="id", on_error="record", retry=Backoff())
def recorded(case: Case) -> float:
    return 0.5


assert_type(recorded(Case()), float | None)


@resumable("run.jsonl", key="id")
def loop(cases: Iterable[Case]) -> Iterator[float]:
    for _case in cases:
        yield 0.5


assert_type(loop([Case()]), Summary)

with evaluate as scope:
    assert_type(scope.summary, Summary)
    assert_type(scope.exit_code, int)

with ResumableBatch("run.jsonl", [Case()], key="id") as batch:
    for case in batch:
        assert_type(case, Case)
        with batch.attempt(case) as attempt:
            assert_type(attempt, Attempt)
            assert_type(attempt.step("sum", max, 1, 2), int)
    assert_type(batch.plan(), Plan)
    assert_type(batch.run(lambda case: case.id), Summary)
    assert_type(batch.run(lambda case: case.id, executor=ThreadPoolExecutor, chunk=2), Summary)
    with ThreadPoolExecutor() as executor:
        assert_type(batch.map(lambda case: case.id, executor=executor), Iterator[Record])
    batch.save(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

with Checkpoint("run.jsonl") as checkpoint:
    assert_type(checkpoint["a"], Record)
    assert_type(checkpoint.get("a"), Record | None)
    assert_type(list(checkpoint), list[str])
    assert_type("a" in checkpoint, bool)
    assert_type(list(checkpoint.records(status="error")), list[Record])

assert_type(current_attempt(), Attempt | None)


def redact(text: str) -> str:
    return text.replace("secret", "…")


Checkpoint("run.jsonl", redact=redact)
Checkpoint("run.jsonl", redact=str.encode)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
assert_type(crash_everywhere(lambda: "any result"), int)


class Quota:
    def check(self) -> Limit | None:
        return Limit.after(5)


def policy(failure: Failure, /) -> float | None:
    return 1.0 if failure.matches(TimeoutError, "openai.RateLimitError") else None


guard: RateLimitGuard = Quota()
retry: RetryPolicy = policy
backoff: RetryPolicy = Backoff()
everything: ResumableBatch[Any] = ResumableBatch(
    Checkpoint("run.jsonl", config={"model": "m"}), [], guard=[guard, lambda: None], retry=retry
)
