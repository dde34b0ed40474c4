"""Results to bytes and back: equal, or refused with the path."""

import dataclasses
import enum
import json
import math
import pickle
import types
import uuid
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path, PurePosixPath

import attrs
import cattrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstitch import Checkpoint, JSONSerializer, SerializationFailed, Serializer, UsageError
from lockstitch._checkpoint import opened
from lockstitch._serializers import Codec
from lockstitch.testing import memory_storage

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec=None, exclude_categories=())),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=25,
)


class Colour(enum.Enum):
    RED = "red"


@attrs.frozen
class Score:
    value: float
    of: datetime
    tags: frozenset[str] = frozenset()
    colour: Colour = Colour.RED


@dataclasses.dataclass
class Plain:
    id: uuid.UUID
    path: Path
    price: Decimal
    raw: bytes
    took: timedelta
    inner: list[Score] = dataclasses.field(default_factory=list)
    pair: tuple[int, str] = (1, "a")
    by_number: dict[int, str] = dataclasses.field(default_factory=dict)


SCORE = Score(0.5, datetime(2026, 11, 23, 6, 0, 0, 123456, tzinfo=UTC), frozenset({"a"}))
PLAIN = Plain(
    uuid.UUID(int=7),
    Path("/a/b"),
    Decimal("1.10"),
    b"\x00\xff",
    timedelta(seconds=1.5),
    [SCORE],
    (2, "b"),
    {1: "one"},
)


def there_and_back(value, **arguments):
    """Save in one checkpoint, read in another."""
    with memory_storage():
        with Checkpoint("/run", fsync=False, **arguments) as checkpoint:
            checkpoint.save("a", value)
            assert checkpoint["a"].result == value
        with Checkpoint("/run", read_only=True, **arguments) as reader:
            return reader["a"].result


def refused(value, **arguments):
    """Return where and why a value is refused; nothing is written."""
    with memory_storage(), Checkpoint("/run", fsync=False, **arguments) as checkpoint:
        size = opened(checkpoint).journal.size
        with pytest.raises(SerializationFailed) as caught:
            checkpoint.save("bad", value)
        assert list(checkpoint) == []
        assert caught.value.id == "bad"
        assert "'bad'" in str(caught.value)
        assert opened(checkpoint).journal.size == size
    return caught.value.where, caught.value.reason


@given(JSON_VALUES)
def test_json_comes_back_equal(value):
    """Whatever JSON can hold, lone surrogates and huge whole numbers included."""
    codec = Codec(None, None)
    fragment = codec.encode("a", value)

    assert fragment.isascii()
    assert b"\n" not in fragment
    assert codec.decode(json.loads(fragment)) == codec.decode_fragment(fragment) == value


@settings(max_examples=40)
@given(JSON_VALUES)
def test_json_survives_the_file(value):
    """Through save, close, and a reader."""
    assert there_and_back(value) == value


@pytest.mark.parametrize(
    ("value", "where", "reason"),
    [
        (math.nan, "$", "not JSON"),
        ({"a": [1, -math.inf]}, "$.a[1]", "not JSON"),
        ({1: "x"}, "$", "key 1 would come back as the text '1'"),
        ({"a": {None: 1}}, "$.a", "use texts as keys"),
        ({"a": {True: 1}}, "$.a", "use texts as keys"),
        ({"a": {(1, 2): 1}}, "$.a", "is not a text"),
        ((1, 2), "$", "tuple would come back as list"),
        ({"a": [{"b": (1,)}]}, "$.a[0].b", "tuple would come back as list"),
        ({"a": {1, 2}}, "$.a", "set would come back as list"),
        ([b"x"], "$[0]", "bytes would come back as str"),
        ({"t": datetime(2026, 1, 1, tzinfo=UTC)}, "$.t", "would come back as str"),
        ({"e": Colour.RED}, "$.e", "an enum would come back as str"),
        (Decimal("1.1"), "$", "result_type=Decimal"),
        (SCORE, "$", "result_type=Score"),
        ({"f": object()}, "$.f", "object is not JSON"),
        ({"s": [1, {"x": math.nan}]}, "$.s[1].x", "not JSON"),
        ([10**5000], "$", "ValueError"),
        (attrs.make_class("Odd", ["x"])(lambda: 1), "$.x", "function is not JSON"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str) else "",
)
def test_what_would_not_come_back_equal_is_refused_with_its_path(value, where, reason):
    """The message leads to the very place, and nothing is written."""
    found_where, found_reason = refused(value)

    assert found_where == where
    assert reason in found_reason


def cycle(kind):
    if kind == "list":
        value = []
        value += [value, value, 1]
    elif kind == "dict":
        value = {}
        value["me"] = value
    else:
        value = {"a": [1, []]}
        value["a"][1].append(value["a"])
    return value


@pytest.mark.parametrize(
    ("kind", "where"), [("list", "$[0]"), ("dict", "$.me"), ("inside", "$.a[1][0]")]
)
def test_a_value_that_contains_itself_is_refused_at_once(kind, where):
    """However often it does."""
    assert refused(cycle(kind)) == (where, "it contains itself")


@pytest.mark.parametrize("depth", [200, 500, 800, 900, 950, 1000, 5000, 200_000])
@pytest.mark.parametrize("core", [1, (1,), math.nan], ids=["fine", "tuple", "nan"])
def test_deep_nesting_is_stored_or_refused_and_never_a_bare_recursion_error(depth, core):
    """Whatever lies at the bottom."""
    value = core
    for _ in range(depth):
        value = [value]
    codec = Codec(None, None)
    try:
        fragment = codec.encode("a", value)
    except SerializationFailed:
        assert core != 1 or depth > 400
    else:
        assert core == 1
        assert codec.decode_fragment(fragment) == value


TYPED = [
    (SCORE, Score),
    (PLAIN, Plain),
    ([SCORE, SCORE], list[Score]),
    ({"a": SCORE}, dict[str, Score]),
    ((1, "a"), tuple[int, str]),
    ({1: "a"}, dict[int, str]),
    ({1, 2}, set[int]),
    (datetime(2026, 1, 1, 12, tzinfo=UTC), datetime),
    (date(2026, 1, 1), date),
    (timedelta(days=1, seconds=0.5), timedelta),
    (Colour.RED, Colour),
    (Path("a/b"), Path),
    (PurePosixPath("/a"), PurePosixPath),
    (uuid.UUID(int=5), uuid.UUID),
    (Decimal("0.1000000000000000000000001"), Decimal),
    (b"\x00\x80", bytes),
    (None, Score | None),
    (SCORE, Score | None),
]


@pytest.mark.parametrize(("value", "kind"), TYPED, ids=[str(kind)[:40] for _, kind in TYPED])
def test_a_result_type_brings_it_back_as_it_was(value, kind):
    """Same type, same value, in this process and in the next."""
    back = there_and_back(value, result_type=kind)

    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    ("value", "kind"),
    [(SCORE, Plain), (Score(math.nan, SCORE.of), Score), ({"value": 1}, Score), ("x", int)],
    ids=["another class", "NaN inside", "a dict", "another type"],
)
def test_a_result_that_is_not_of_its_type_is_refused(value, kind):
    """Before it is written, not when it is read."""
    refused(value, result_type=kind)


@given(
    st.builds(
        Score,
        st.floats(allow_nan=False, allow_infinity=False),
        st.datetimes(timezones=st.just(UTC)),
        st.frozensets(st.text()),
    )
)
def test_a_class_comes_back_equal(score):
    """Every microsecond, every tag."""
    codec = Codec(None, Score)

    assert codec.decode(json.loads(codec.encode("a", score))) == score


def test_a_users_converter_is_used_and_not_changed():
    """Its hooks decide; ours are not added to it."""
    converter = cattrs.Converter()
    converter.register_unstructure_hook(complex, lambda z: [z.real, z.imag])
    converter.register_structure_hook(complex, lambda pair, _: complex(*pair))

    assert there_and_back(
        1 + 2j, serializer=JSONSerializer(converter), result_type=complex
    ) == complex(1, 2)
    with pytest.raises(cattrs.StructureHandlerNotFoundError):
        converter.structure(1.0, timedelta)


# Other serializers


def test_orjson_and_json_read_each_other():
    """All that write JSON share a name, because they share the format."""
    orjson = pytest.importorskip("orjson")
    value = {"é": ["\u2028", 1.5, None, "日本"], "n": 2**53}
    with memory_storage():
        with Checkpoint("/run", serializer=orjson) as checkpoint:
            checkpoint.save("a", value)
        with Checkpoint("/run") as checkpoint:
            assert checkpoint["a"].result == value
            checkpoint.save("b", {"s": "\ud800"})
        with Checkpoint("/run", serializer=orjson, read_only=True) as checkpoint:
            assert checkpoint["a"].result == value
            assert checkpoint.get("a").status == "ok"


@settings(max_examples=60)
@given(JSON_VALUES)
def test_a_json_module_stores_it_equal_or_refuses(value):
    """Whatever orjson thinks of surrogates and huge numbers."""
    codec = Codec(pytest.importorskip("orjson"), None)
    try:
        fragment = codec.encode("a", value)
    except SerializationFailed:
        return
    assert fragment.isascii()
    assert codec.decode(json.loads(fragment)) == value


def test_pickle_only_when_it_is_passed():
    """The word of the file is not enough to load a pickle; a wrong reader stays refused."""
    value = {"set": {1, 2}, 5: (1, 2), "score": SCORE}
    with memory_storage():
        with Checkpoint("/run", serializer=pickle) as checkpoint:
            checkpoint.save("a", value)
            checkpoint.save("none", None)
            with pytest.raises(SerializationFailed, match=r"at \$: \w+Error"):
                checkpoint.save("b", lambda: 1)
        for read_only in (False, True):
            reader = Checkpoint("/run", read_only=read_only)
            for _ in range(2):
                with pytest.raises(UsageError, match="'pickle', not 'json'"):
                    reader["a"]
            reader.close()
        with Checkpoint("/run", serializer=pickle, read_only=True) as checkpoint:
            assert checkpoint["a"].result == value
            assert checkpoint["none"].result is None


class Reversed:
    """A user's serializer: bytes that are not JSON."""

    name = "reversed"
    is_json = False

    def dumps(self, value):
        return value[::-1].encode()

    def loads(self, data):
        return data.decode()[::-1]


def test_a_users_serializer_travels_as_base64():
    """Whatever its bytes are, the file stays JSON Lines."""
    assert isinstance(Reversed(), Serializer)
    assert there_and_back("a\nb\0", serializer=Reversed()) == "a\nb\0"
    with pytest.raises(UsageError, match="result_type="):
        Checkpoint("/run", serializer=Reversed(), result_type=str)


class Claims:
    """A user's serializer that says it writes JSON."""

    name = "claims"
    is_json = True

    def __init__(self, dumps, loads=json.loads):
        self.dumps, self.loads = dumps, loads


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"hello", "cannot be read back"),
        (b'1,"x":2', "cannot be read back"),
        (b"", "cannot be read back"),
        (b"[1,\n2]", "more than one line"),
        (b"[1,\r2]", "more than one line"),
        (b"NaN", "JSON does not have"),
        (b'{"a":-Infinity}', "JSON does not have"),
        (b'"\xff\xfe"', "UTF-8"),
        (b"9" * 5000, "cannot be read back"),
        ("text", "not bytes"),
        (None, "not bytes"),
    ],
)
def test_a_serializer_that_does_not_write_json_is_found_out(data, reason):
    """Before the line is written; a line that is no JSON could never be read again."""
    _, found = refused("x", serializer=Claims(lambda _: data, lambda _: "x"))

    assert reason in found


def test_what_a_reader_would_see_is_what_is_compared():
    """Decimals in JSON pass through floats on the way back, so the odd ones are refused."""
    exact = Claims(
        lambda value: str(value).encode(), lambda data: json.loads(data, parse_float=Decimal)
    )
    assert there_and_back(Decimal("1.5"), serializer=exact) == Decimal("1.5")
    refused(Decimal("0.1234567890123456789012345"), serializer=exact)
    refused(Decimal("1e400"), serializer=exact)


def test_a_json_module_may_emit_utf8_but_no_nan():
    """What a module writes is made ASCII; NaN is refused, and the text NaN is not."""
    module = types.ModuleType("loose")
    module.dumps = lambda value: json.dumps(value, ensure_ascii=False)
    module.loads = json.loads
    assert there_and_back({"é": "NaN \ud800 日本"}, serializer=module) == {"é": "NaN \ud800 日本"}
    assert "NaN" in refused([math.nan], serializer=module)[1]
    module.dumps = lambda value: json.dumps(value, indent=1)
    assert "more than one line" in refused({"a": 1}, serializer=module)[1]


@pytest.mark.parametrize(
    "given",
    [
        5,
        "json",
        JSONSerializer,
        object(),
        math,
        types.SimpleNamespace(name="", is_json=True, dumps=bytes, loads=bytes),
        types.SimpleNamespace(name="x", dumps=bytes, loads=bytes),
    ],
    ids=["int", "str", "class", "object", "module", "no name", "no is_json"],
)
def test_what_is_no_serializer_is_refused_before_anything_happens(tmp_path, given):
    """The message says what one needs."""
    with pytest.raises(UsageError, match="serializer"):
        Checkpoint(tmp_path / "x", serializer=given)

    assert not list(tmp_path.iterdir())


def test_a_module_that_cannot_write_everything_is_no_json():
    """A property list has no None: its bytes travel as base64."""
    import plistlib

    assert there_and_back({"a": [1, "b"]}, serializer=plistlib) == {"a": [1, "b"]}


def test_a_value_that_cannot_be_compared_is_refused():
    """Equality decides; where there is none, nobody could promise the same result."""
    _, reason = refused(Uncomparable(), serializer=pickle)

    assert "cannot be compared" in reason


class Uncomparable:
    def __eq__(self, other):
        raise TypeError("no")

    __hash__ = None


def test_none_is_a_result():
    """It is stored as null, and an id with it is done."""
    assert there_and_back(None) is None
    assert there_and_back({"error": "this is an answer"}) == {"error": "this is an answer"}
