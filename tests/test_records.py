"""Kinds of record, to bytes and back."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstitch._frames import seal
from lockstitch._model import ErrorInfo
from lockstitch._records import (
    FORMAT,
    Header,
    Malformed,
    NewerFormat,
    error_from,
    id_of,
    instant,
    iso,
    item_payload,
    kind_of,
    parse,
    parse_header,
    payload,
    retry_payload,
    seconds_of,
    start_payload,
    status_of,
    value_payload,
)

AT = "2026-11-23T06:00:00.000Z"
HEADER = Header("b-1", AT, "json", {"model": "m1"}, 144_101_786, 12)
ERROR = ErrorInfo("ValueError", "bad", "Traceback…", ("Exception",))
ANY_ID = st.text(
    st.characters(codec=None, exclude_categories=()), min_size=1, max_size=30
) | st.sampled_from(['a"b', "a\\", '\\"', "\ud800", "\n", "\u2028", "日本", '","n":1'])


def every_kind(id):
    """Return a payload of each kind that carries an id."""
    return {
        "id": item_payload(id, "ok", b"1", None, 1, 1.5, AT),
        "start": start_payload(id, 1),
        "back": payload("back", id),
        "retry": retry_payload(id, 1, ERROR, 1.0, AT),
        "cursor": value_payload("cursor", id, b"[1]"),
        "step": value_payload("step", id, b"[1]", name="fetch"),
    }


@given(ANY_ID)
def test_the_id_of_every_kind_is_found_without_parsing(id):
    """Whatever characters an id has, the quick look and the parser see the same."""
    for kind, body in every_kind(id).items():
        line = seal(body, 3, 2, 9)
        assert kind_of(line) == kind
        assert id_of(line) == id == parse(line)[kind]
        assert line.isascii()
        assert line.count(b"\n") == 1


@given(ANY_ID, ANY_ID)
def test_the_status_is_found_without_parsing(id, status):
    """Ids and statuses full of quotes do not confuse the quick look."""
    line = seal(item_payload(id, status, b'{"status":"no"}', None, 1, None, AT), 3, 2, 9)

    assert status_of(line) == status


def test_an_items_record_says_what_it_was_given():
    """Each field is where a reader of the file expects it."""
    data = parse(item_payload("a", "error", None, ERROR, 2, 1.2345, AT))

    assert list(data) == ["id", "status", "error", "attempt", "seconds", "at"]
    assert (data["attempt"], data["seconds"], data["at"]) == (2, 1.234, AT)
    assert error_from(data["error"]) == ERROR


@pytest.mark.parametrize(
    "trap", [{"x": ',"seconds":9.000,"at":"z","n":'}, {"x": 1, "seconds": 9.125, "at": "z"}]
)
def test_the_seconds_are_found_from_the_right(trap):
    """A result that looks like the end of a record is not taken for it."""
    result = json.dumps(trap, separators=(",", ":")).encode()

    assert seconds_of(seal(item_payload("a", "ok", result, None, 1, 2.5, AT), 3, 2, 9)) == 2.5
    assert seconds_of(seal(item_payload("a", "ok", result, None, 1, None, AT), 3, 2, 9)) is None


def test_a_header_is_read_back_as_it_was_written():
    """Batch, time, serializer, config, salt and the proven number survive."""
    assert parse_header(HEADER.line()) == HEADER


def test_a_line_that_is_no_header_is_none():
    """Not proved, or of another kind: not a header."""
    assert parse_header(b"") is None
    assert parse_header(HEADER.line()[:-1]) is None
    assert parse_header(b'{"lockstitch":1}\n') is None
    assert parse_header(seal(start_payload("a", 1), 0, 0, 0)) is None


def headerish(**changes):
    data = {
        "lockstitch": FORMAT,
        "batch": "b",
        "created_at": AT,
        "serializer": "json",
        "config": {},
        "salt": 5,
        **changes,
    }
    data = {key: value for key, value in data.items() if value is not ...}
    return seal(json.dumps(data, separators=(",", ":")).encode(), 0, 0, 0)


def test_a_newer_format_is_told_apart_from_damage():
    """A whole header with a higher version says so."""
    with pytest.raises(NewerFormat):
        parse_header(headerish(lockstitch=FORMAT + 1))


def test_a_header_may_say_more_than_is_known():
    """Unknown keys of a header are left alone."""
    header = parse_header(headerish(colour="blue"))

    assert header is not None
    assert header.salt == 5


@pytest.mark.parametrize(
    "changes",
    [{"batch": ...}, {"salt": ...}, {"salt": 0}, {"salt": 1 << 32}, {"salt": "5"}, {"config": []}],
)
def test_a_header_that_says_nonsense_is_malformed(changes):
    """A sealed header with a missing or impossible value is refused."""
    with pytest.raises(Malformed):
        parse_header(headerish(**changes))


@pytest.mark.parametrize("raw", [b'"\\u 800"', b'"\\x"', b'"a\\"b\x01\\n"'])
def test_an_id_that_is_no_json_text_is_malformed(raw):
    """A checksum does not make a text of it; no other error comes through."""
    with pytest.raises(Malformed, match="its id is no text"):
        id_of(b'{"id":%b,"status":"ok"}' % raw)


@pytest.mark.parametrize("line", [b"[1]", b"{", b"[" * 100_000, b'{"a":' + b"9" * 5000 + b"}"])
def test_what_cannot_be_held_is_malformed(line):
    """Deep nesting, endless numbers and what is no object raise one error."""
    with pytest.raises(Malformed):
        parse(line)


@pytest.mark.parametrize("line", [b'{"id":5}', b'{"end":"a"}', b"", b'{"id":"a'])
def test_a_line_without_an_id_is_malformed(line):
    """An id is a text right behind its kind."""
    with pytest.raises(Malformed):
        id_of(line)


@pytest.mark.parametrize("data", [5, {"type": "x"}, [], "x", {"message": "x"}])
def test_an_error_that_is_none_is_malformed(data):
    """Something else in the place of an error is refused."""
    with pytest.raises(Malformed):
        error_from(data)


@given(st.integers(0, 4_000_000_000_000))
def test_an_instant_keeps_its_milliseconds(milliseconds):
    """What is written as a time is read back to the millisecond."""
    assert instant(iso(milliseconds / 1000)).timestamp() == pytest.approx(
        milliseconds / 1000, abs=0.0011
    )


@pytest.mark.parametrize("text", [None, 5, "", "yesterday"])
def test_a_time_that_cannot_be_read_is_none(text):
    """A time is information; an odd one is no reason to refuse a record."""
    assert instant(text) is None


def test_a_kind_is_the_first_key():
    """Where there is no first key, there is no kind."""
    assert kind_of(b'{"newer_kind":1}') == "newer_kind"
    assert kind_of(b"{}") == kind_of(b"[]") == kind_of(b"") == ""
