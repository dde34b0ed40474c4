"""The fold over the lines of a file."""

import itertools
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstitch._frames import seal
from lockstitch._ledger import Ledger
from lockstitch._model import ErrorInfo
from lockstitch._records import (
    Malformed,
    item_payload,
    payload,
    retry_payload,
    start_payload,
    value_payload,
)

AT = "2026-11-23T06:00:00.000Z"
ERROR = ErrorInfo("ValueError", "bad")


def run(number, boot="b1", **more):
    return payload("run", number, at=AT, boot=boot, **more)


def end(number, reason="complete"):
    return payload("end", number, reason=reason, at=AT)


def item(id, status="ok", seconds=1.0):
    return item_payload(id, status, b"1", None, 1, seconds, AT)


def pause(reason="limit"):
    return payload("pause", {"until": AT, "reason": reason, "scope": ""}, at=AT)


def fold(payloads, *, twice=False):
    """Return the ledger of these records, with their lines by offset."""
    ledger, offset, lines = Ledger(), 100, {}
    for n, body in enumerate(payloads, start=1):
        lines[offset] = seal(body, n, n - 1, 9)
        for _ in range(2 if twice else 1):
            ledger.apply(offset, lines[offset])
        offset += len(lines[offset])
    return ledger, lines


IDS = st.sampled_from(["a", "b", "c"])
EVENTS = st.one_of(
    st.builds(item, IDS, st.sampled_from(["ok", "error", "pass"])),
    st.builds(start_payload, IDS, st.integers(1, 3)),
    st.builds(lambda id: payload("back", id), IDS),
    st.builds(lambda id, n: payload("died", id, crashes=n, at=AT), IDS, st.integers(0, 2)),
    st.builds(lambda id, n: retry_payload(id, n, ERROR, 1.0, AT), IDS, st.integers(1, 3)),
    st.builds(lambda id: value_payload("cursor", id, b"1"), IDS),
    st.builds(
        lambda id, name: value_payload("step", id, b"1", name=name), IDS, st.sampled_from("xy")
    ),
    st.builds(pause),
    st.just(payload("waited", 2.0, at=AT)),
    st.just(payload("stop", "SIGTERM", at=AT)),
    st.just(payload("newer", {"x": 1})),
    st.sampled_from(["RUN", "END", "LIMIT"]),
    st.sampled_from(["RUN", "END", "LIMIT"]),
)


def numbered(events):
    """Turn RUN and END into the lines of runs that follow one another."""
    number, boots = 0, 0
    for event in events:
        if event == "RUN":
            number += 1
            boots += number % 3 == 0
            yield run(number, f"b{boots}")
        elif event in ("END", "LIMIT"):
            if number:
                yield end(number, "complete" if event == "END" else "limit")
        else:
            yield event


def told(ledger):
    """Return all that a ledger says, without offsets."""
    return {
        "statuses": {id: ledger.status(id) for id in ledger.index},
        "runs_of_items": {id: ledger.run_at(ledger.offset(id)) for id in ledger.index},
        "order": [id for id, _ in ledger.offsets(None)],
        "runs": [(each.number, each.boot, each.stop, each.end) for each in ledger.runs],
        "pauses": list(ledger.pauses.values()),
        "waited": list(ledger.waited.values()),
        "retries": {id: used for id, (used, _) in ledger.retries.items()},
        "due": ledger.due,
        "cursors": set(ledger.cursors),
        "steps": {id: set(names) for id, names in ledger.steps.items()},
        "crashes": ledger.crashes,
        "suspects": ledger.suspects,
        "next": ledger.after_death("b0"),
        "in_doubt": set(ledger.in_doubt),
        "parked": ledger.parked,
        "limit": ledger.pending_limit,
        "config": ledger.config,
        "by_status": ledger.by_status(),
    }


@given(st.lists(EVENTS, max_size=25))
def test_a_line_applied_twice_changes_nothing(events):
    """An interrupt may make the writer repeat a line; the state is the same."""
    payloads = list(numbered(events))

    assert told(fold(payloads, twice=True)[0]) == told(fold(payloads)[0])
    assert fold(payloads, twice=True)[0].seconds == fold(payloads)[0].seconds


def interrupted_after(steps):
    """Return a trace function that interrupts the fold when it has done so many lines of code."""
    left = iter(range(steps))

    def trace(frame, event, _):
        if not frame.f_code.co_filename.endswith("_ledger.py"):
            return None
        if event == "line" and next(left, None) is None:
            sys.settrace(None)
            raise KeyboardInterrupt
        return trace

    return trace


def test_a_line_whose_application_was_interrupted_is_applied_again():
    """At every line of code, in every kind of record: the state is that of a quiet day."""
    payloads = [
        run(1, config={"x": 1}),
        start_payload("a", 1),
        run(2, config={"x": 2}),
        start_payload("a", 2),
        payload("died", "a", crashes=2, at=AT),
        start_payload("b", 1),
        retry_payload("b", 1, ERROR, 1.0, AT),
        value_payload("cursor", "c", b"1"),
        value_payload("step", "c", b"1", name="x"),
        item("b", "fail"),
        item("b"),
        pause(),
        end(2, "limit"),
    ]
    whole, lines = fold(payloads)
    interrupts, previous = 0, sys.gettrace()
    for steps in itertools.count():
        ledger, before = Ledger(), interrupts
        for offset, line in lines.items():
            try:
                sys.settrace(interrupted_after(steps))
                ledger.apply(offset, line)
            except KeyboardInterrupt:
                interrupts += 1
                ledger.apply(offset, line)
            finally:
                sys.settrace(previous)
        assert told(ledger) == told(whole), steps
        if interrupts == before:
            break

    assert interrupts > 100


@settings(max_examples=400)
@given(st.lists(EVENTS, max_size=25), st.lists(st.integers(1, 8), max_size=25))
def test_by_the_many_lines_say_what_they_say_one_by_one(events, sizes):
    """However a file is cut into blocks, opening it finds what its writer knew."""
    ledger, lines = fold(numbered(events))
    again, rest = Ledger(), list(lines.items())
    for size in [*sizes, max(1, len(rest))]:
        block, rest = rest[:size], rest[size:]
        if block:
            again.apply_all([tuple(zip(*block, strict=True))])

    assert told(again) == told(ledger)
    assert list(again.by_status()) == list(ledger.by_status())
    assert (again.last, again.last_item, again.sealed) == (
        ledger.last,
        ledger.last_item,
        ledger.sealed,
    )


@settings(max_examples=400)
@given(st.lists(EVENTS, max_size=25))
def test_a_compaction_changes_nothing_that_is_told(events):
    """Lines that are not needed can go: the fold of the others says the same."""
    payloads = list(numbered(events))
    ledger, lines = fold(payloads)
    kept = [
        body
        for body, (at, line) in zip(payloads, lines.items(), strict=True)
        if ledger.needs(at, line)
    ]
    again, _ = fold(kept)

    assert told(again) == told(ledger)


@given(st.lists(EVENTS, max_size=25))
def test_a_compacted_file_compacts_to_itself(events):
    """What one compaction keeps, the next keeps too."""
    payloads = list(numbered(events))
    for _ in range(2):
        ledger, lines = fold(payloads)
        before = payloads
        payloads = [
            body
            for body, (at, line) in zip(payloads, lines.items(), strict=True)
            if ledger.needs(at, line)
        ]

    assert payloads == before


def test_the_last_record_of_an_id_counts():
    """A second record replaces the first, in its place in the file too."""
    ledger, _ = fold([item("a", "error"), item("b"), item("a", "ok")])

    assert ledger.status("a") == "ok"
    assert [id for id, _ in ledger.offsets(None)] == ["b", "a"]
    assert ledger.by_status() == {"ok": 2}


DEATHS = {
    "alone": ([run(1), start_payload("a", 1)], {"a"}, {"a": 1}),
    "among others": ([run(1), start_payload("a", 1), start_payload("b", 1)], {"a", "b"}, {}),
    "after a stop request": ([run(1), start_payload("a", 1), payload("stop", "X")], set(), {}),
    "by a reboot": ([run(1, "b0"), start_payload("a", 1)], set(), {}),
    "after its end": ([run(1), start_payload("a", 1), end(1)], set(), {}),
    "given back": ([run(1), start_payload("a", 1), payload("back", "a")], set(), {}),
    "finished": ([run(1), start_payload("a", 1), item("a")], set(), {}),
    "nothing begun": ([run(1)], set(), {}),
}


@pytest.mark.parametrize("name", DEATHS)
def test_a_death_counts_against_an_item_only_if_it_ran_alone(name):
    """And only if nobody had asked to stop, and the machine had not been restarted."""
    payloads, suspects, crashes = DEATHS[name]
    ledger, _ = fold(payloads)

    assert ledger.after_death("b1") == (suspects, crashes)
    ledger, _ = fold([*payloads, run(2)])
    assert (ledger.suspects, ledger.crashes) == (suspects, crashes)


def test_a_death_of_a_worker_tells_its_count():
    """What died in a worker is suspect, with as many crashes as the line says, in the next run."""
    begun = [run(1), start_payload("a", 1), start_payload("b", 1)]
    died = [payload("died", "a", crashes=0, at=AT), payload("died", "b", crashes=2, at=AT)]
    ledger, _ = fold([*begun, *died, end(1, "failed")])
    ledger_of_the_next, _ = fold([*begun, *died, end(1, "failed"), run(2), item("b")])

    assert ledger.after_death("b1") == ({"a", "b"}, {"b": 2})
    assert (ledger_of_the_next.suspects, ledger_of_the_next.crashes) == ({"a"}, {})


def test_a_worker_that_died_is_no_longer_at_work():
    """When the coordinator dies later, it is not taken for what it died of."""
    died = payload("died", "a", crashes=1, at=AT)
    ledger, _ = fold([run(1), start_payload("a", 1), died, start_payload("b", 1)])

    assert set(ledger.in_doubt) == {"b"}
    assert ledger.after_death("b1") == ({"a", "b"}, {"a": 1, "b": 1})


def test_a_finished_item_has_no_past():
    """Its attempts, cursor, steps and crashes are dropped."""
    ledger, _ = fold(
        [
            run(1),
            start_payload("a", 1),
            run(2),
            retry_payload("a", 2, ERROR, 1.0, AT),
            value_payload("cursor", "a", b"1"),
            value_payload("step", "a", b"1", name="x"),
            item("a"),
        ]
    )

    assert (ledger.retries, ledger.due, ledger.cursors, ledger.steps) == ({}, {}, {}, {})
    assert (ledger.crashes, ledger.suspects) == ({}, set())


def test_a_parked_run_is_one_that_ended_with_a_limit():
    """A new run is not parked; a pause that was waited out is over."""
    parked, _ = fold([run(1), pause(), end(1, "limit")])
    assert parked.parked is not None
    again, _ = fold([run(1), pause(), end(1, "limit"), run(2)])
    assert (again.parked, again.pending_limit is not None) == (None, True)
    over, _ = fold([run(1), pause(), payload("waited", 1.0)])
    assert over.pending_limit is None


def test_an_item_that_finished_after_a_limit_says_that_it_is_over():
    """Also where nobody wrote how long the wait was; the next start does not wait again."""
    met, _ = fold([run(1), item("a"), pause()])
    over, _ = fold([run(1), pause(), item("a")])

    assert met.pending_limit is not None
    assert over.pending_limit is None


def test_a_kind_that_is_not_known_is_kept():
    """A newer writer's record says nothing here and survives a compaction."""
    ledger, lines = fold([payload("zebra", {"x": 1}), item("a")])

    assert ledger.needs(100, lines[100])
    assert list(ledger.index) == ["a"]


@pytest.mark.parametrize(
    "body",
    [
        b'{"run":"x","at":"z"}',
        b'{"run":1}',
        b'{"pause":5}',
        b'{"step":"a"}',
        b'{"waited":"long"}',
        b'{"retry":"a"}',
        b'{"id":"a"}',
        b'{"id":5,"status":"ok"}',
        b'{"5":1}',
    ],
)
def test_a_record_that_lacks_what_its_kind_must_say_is_malformed(body):
    """A proved line that makes no sense is refused, not guessed at."""
    with pytest.raises(Malformed):
        fold([body])
