"""Bytes that nobody has written: the kept corpus, and what hypothesis makes up."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .fuzz import HEADER, feed

CORPUS = sorted(Path(__file__).with_name("corpus").iterdir())

#: Lines as a writer makes them, whole and broken, so that deeper code is reached.
PIECES = st.sampled_from(
    [path.read_bytes() for path in CORPUS if path.stat().st_size < 400]
    + [HEADER.line(), b'{"id":"a","status":"ok"}', b'{"end":1}', b'{"run":1,"at":"x"}', b"\0" * 40]
)


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_a_kept_input_is_read_or_refused(path, trials):
    """What was once of interest stays harmless."""
    feed(path.read_bytes())
    trials(14)


@given(raw=st.binary(max_size=300), pieces=st.lists(PIECES, max_size=5), proved=st.booleans())
@settings(
    max_examples=2000,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    database=None,
)
def test_any_bytes_are_read_or_refused(raw, pieces, proved, trials):
    """Only the documented errors, and nothing is changed by a refusal."""
    feed((b"\x80" if proved else b"") + b"\n".join([*pieces, raw]))
    trials(14)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = """
run id start back retry cursor step pause waited stop end config at status result error attempt
seconds due name value reason comment
""".split()


@given(
    lines=st.lists(
        st.lists(st.tuples(st.sampled_from(KEYS), json_values), min_size=1, max_size=5), max_size=6
    )
)
@settings(
    max_examples=500,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    database=None,
)
def test_proved_lines_that_say_anything_are_read_or_refused(lines, trials):
    """Known kinds with values of any type: a checksum does not make sense of them."""
    said = [json.dumps(dict(line), separators=(",", ":")).encode() for line in lines]
    feed(b"\x80" + b"\n".join(said))
    trials(14)
