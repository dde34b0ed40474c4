"""What a response says about "not now" is read whoever sends it; what cannot be read is ignored."""

import functools
import itertools
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lockstitch import Limit, RateLimited

MOMENT = datetime(2030, 5, 1, 12, 0, tzinfo=UTC)
EPOCH = int(MOMENT.timestamp())

#: Limited, but nobody says for how long.
UNKNOWN = "unknown"


def told(limit):
    """Return what a limit says: seconds, a moment, UNKNOWN, or None where there is no limit."""
    if limit is None:
        return None
    assert limit.resume_at is None or limit.seconds is None
    if limit.resume_at is not None:
        return limit.resume_at

    return UNKNOWN if limit.seconds is None else limit.seconds


def openai(remaining, reset, kind="requests"):
    return {f"x-ratelimit-remaining-{kind}": remaining, f"x-ratelimit-reset-{kind}": reset}


def anthropic(remaining, reset, kind="requests"):
    name = f"anthropic-ratelimit-{kind}"
    return {f"{name}-limit": "50", f"{name}-remaining": remaining, f"{name}-reset": reset}


def unified(status, reset=str(EPOCH)):
    return {
        "anthropic-ratelimit-unified-status": status,
        "anthropic-ratelimit-unified-reset": reset,
        "anthropic-ratelimit-unified-7d-reset": str(EPOCH + 600_000),
    }


def counter(remaining, reset, prefix="X-RateLimit-"):
    return {
        f"{prefix}Limit": "60",
        f"{prefix}Remaining": remaining,
        f"{prefix}Reset": reset,
    }


TOLD = [
    # milliseconds
    ({"retry-after-ms": "1500"}, 1.5),
    ({"retry-after-ms": "0.5"}, 0.0005),
    ({"x-amz-retry-after": "250"}, 0.25),
    # Retry-After: a length or a date, in every form that RFC 9110 has servers send or clients take
    ({"Retry-After": "120"}, 120),
    ({"Retry-After": " 7 "}, 7),
    ({"Retry-After": "0"}, 0),
    ({"Retry-After": "0.25"}, 0.25),
    ({"Retry-After": "604800"}, 604800),
    ({"Retry-After": "Wed, 01 May 2030 12:00:00 GMT"}, MOMENT),
    ({"Retry-After": "Wednesday, 01-May-30 12:00:00 GMT"}, MOMENT),
    ({"Retry-After": "Wed May  1 12:00:00 2030"}, MOMENT),
    ({"Retry-After": "Wed, 01 May 2030 12:00:00"}, MOMENT),
    ({"Retry-After": "Wed, 01 May 2030 14:00:00 +0200"}, MOMENT),
    ({"Retry-After": "2030-05-01T12:00:00"}, MOMENT),
    # moments where a length belongs: seen in the wild
    ({"Retry-After": str(EPOCH)}, MOMENT),
    ({"Retry-After": str(EPOCH * 1000)}, MOMENT),
    ({"Retry-After": "1m30s"}, 90),
    ({"X-RateLimit-Retry-After": "31"}, 31),
    # names and values as clients hand them out
    ({"RETRY-AFTER": "9"}, 9),
    ({b"Retry-After": b"9"}, 9),
    ({"Retry-After": 9}, 9),
    ([(b"retry-after", b"9")], 9),
    # RateLimit as a structured field
    ({"RateLimit": '"default";r=0;t=30'}, 30),
    ({"RateLimit": '"default";r=0'}, UNKNOWN),
    ({"RateLimit": '"default";r=50;t=30'}, None),
    ({"RateLimit": '"permin";r=0;t=20, "perhr";r=0;t=1800'}, 1800),
    ({"RateLimit": '"permin";r=0;t=20,"perhr";r=900;t=1800'}, 20),
    ({"RateLimit": '"a,b";r=0;t=5;pk=:cHsdRsa894=:'}, 5),
    ({"RateLimit": '"x-r";not-r=0;r=5;t=9'}, None),
    ([("RateLimit", '"a";r=0;t=8'), ("RateLimit", '"b";r=0;t=5')], 8),
    ({"RateLimit": '"default";r=0;t=30', "RateLimit-Policy": '"default";q=100;w=60'}, 30),
    ({"RateLimit-Policy": '"default";q=0;w=60'}, None),
    ({"RateLimit": '"default";r=zero;t=30'}, None),
    # its older drafts
    ({"RateLimit": "limit=100, remaining=0, reset=5"}, 5),
    ({"RateLimit": "limit=100, remaining=50, reset=5"}, None),
    ({"RateLimit": "limit=100, remaining=0"}, UNKNOWN),
    (counter("0", "12", "RateLimit-"), 12),
    (counter("3", "12", "RateLimit-"), None),
    # GitHub, and everybody who followed it, each with a clock of their own
    (counter("0", str(EPOCH), "x-ratelimit-"), MOMENT),
    (counter("4999", str(EPOCH), "x-ratelimit-"), None),
    (counter("0", f"{EPOCH}.0"), MOMENT),
    (counter("0", str(EPOCH * 1000)), MOMENT),
    (counter("0", "42"), 42),
    (counter("0.0", "42"), 42),
    (counter("0", "Wed, 01 May 2030 12:00:00 GMT"), MOMENT),
    (counter("0", "Wed May 01 2030 14:00:00 GMT+0200 (Central European Summer Time)"), MOMENT),
    (counter("0", "Wed May 01 2030 12:00:00 GMT"), MOMENT),
    (counter("0", "2030-05-01T12:00:00Z"), MOMENT),
    (counter("0", str(EPOCH), "x-rate-limit-"), MOMENT),
    ({"X-RateLimit-Remaining": "0"}, UNKNOWN),
    ({"X-RateLimit-Reset": "42"}, None),
    # OpenAI and Groq: durations as Go writes them, an upper bound, one for each budget
    (openai("0", "6m0s"), 360),
    (openai("0", "12ms"), 0.012),
    (openai("0", "1h2m3s"), 3723),
    (openai("0", "1s"), 1),
    (openai("0", "0s"), 0),
    (openai("0", "7.66s", "tokens"), 7.66),
    (openai("0", "500µs"), 0.0005),
    (openai("1", "6m0s"), None),
    (openai("1", "6m0s") | openai("0", "9s", "tokens"), 9),
    (openai("0", "6m0s") | openai("0", "9s", "tokens"), 360),
    # Azure: the same names, whole numbers, and numbers that mean nothing
    (openai("0", "17"), 17),
    (openai("0", "0"), 0),
    (openai("0", "-1"), UNKNOWN),
    (openai("-1", "17"), None),
    (openai("-1", "-1", "tokens"), None),
    # Anthropic: moments, and windows of a plan
    (anthropic("0", "2030-05-01T12:00:00Z"), MOMENT),
    (anthropic("0", "2030-05-01T14:00:00+02:00", "input-tokens"), MOMENT),
    (anthropic("0", "2030-05-01T12:00:00.123456789Z"), MOMENT.replace(microsecond=123456)),
    (anthropic("7", "2030-05-01T12:00:00Z", "output-tokens"), None),
    (
        anthropic("0", "2030-05-01T12:00:00Z")
        | anthropic("0", "2030-05-01T13:00:00Z", "output-tokens"),
        MOMENT + timedelta(hours=1),
    ),
    (unified("rejected"), MOMENT),
    (unified("allowed"), None),
    (unified("allowed_warning"), None),
    (unified("rejected", "soon"), UNKNOWN),
    # "do not try again" is obeyed
    ({"x-should-retry": "false", "Retry-After": "5"}, None),
    ({"X-Should-Retry": "False"} | openai("0", "5s"), None),
    ({"x-should-retry": "true", "Retry-After": "5"}, 5),
    ({"x-should-retry": "true"}, None),
    # nothing about limits
    ({}, None),
    (None, None),
    ("Retry-After: 5", None),
    (42, None),
    ({"Content-Type": "text/html", "X-Remaining": "0"}, None),
]


@pytest.mark.parametrize(("headers", "expected"), TOLD)
def test_every_family_of_headers_is_read(headers, expected):
    """A length stays a length, a moment a moment; a counter that is not at 0 says nothing."""
    assert told(Limit.from_headers(headers)) == expected


JUNK = [
    "",
    " ",
    "soon",
    "-1",
    "-5s",
    "nan",
    "NaN",
    "inf",
    "-inf",
    "1e400",
    "9" * 400,
    "9" * 400 + "s",
    "9" * 100_000,
    "9" * 100_000 + "x",
    "a=1" + " " * 50_000 + "x",
    ";a" * 50_000,
    "1.2.3",
    "5 s",
    "5x",
    "s",
    "m5",
    "--",
    "5, 5",
    "(comment)",
    "Wed, 99 May 2030 12:00:00 GMT",
    "Wed, 01 May 99999 12:00:00 GMT",
    "Wed, 01 May 2030 12:00:00 +9999999",
    "0001-01-01T00:00:00+14:00",
    "2030-13-01",
    "2030-05-01T25:00:00Z",
    "\x00",
    "٣ minutes",
    '{"seconds": 5}',
]


@pytest.mark.parametrize("junk", JUNK, ids=lambda junk: repr(junk[:30]))
@pytest.mark.parametrize(
    "name", ["retry-after", "retry-after-ms", "x-amz-retry-after", "x-ratelimit-retry-after"]
)
def test_what_cannot_be_read_is_ignored(name, junk):
    """A malformed header is as good as none, and the next one counts."""
    assert Limit.from_headers({name: junk}) is None
    assert told(Limit.from_headers({name: junk} | counter("0", "42"))) == 42


@pytest.mark.parametrize("junk", JUNK, ids=lambda junk: repr(junk[:30]))
def test_a_reset_that_cannot_be_read_leaves_the_end_open(junk):
    """A used-up budget is a limit even if nobody can say when it is back."""
    assert told(Limit.from_headers(counter("0", junk))) == UNKNOWN
    assert told(Limit.from_headers({"RateLimit": f"limit=1, remaining=0, reset={junk}"})) in (
        UNKNOWN,
        5.0,  # of "5, 5" and the like, a structured field has a first member
    )
    assert told(Limit.from_headers(counter(junk, "42"))) is None


def test_the_most_exact_header_wins():
    """What says how long to wait goes before counters, milliseconds before seconds."""
    headers = {
        "retry-after-ms": "1500",
        "x-amz-retry-after": "2500",
        "retry-after": "3",
        "x-ratelimit-retry-after": "4",
        **counter("0", "99"),
        "ratelimit": '"default";r=0;t=77',
    }
    found = []
    for name in list(headers)[:4]:
        found.append(told(Limit.from_headers(headers)))
        del headers[name]

    assert found == [1.5, 2.5, 3, 4]
    assert told(Limit.from_headers(headers)) == 99


def test_a_limit_names_the_header_it_was_read_from():
    """Whoever reads the log sees why the batch waits."""
    assert Limit.from_headers({"Retry-After": "5"}).reason == "retry-after"
    assert Limit.from_headers(openai("0", "5s")).reason == "x-ratelimit-reset-requests"


@pytest.mark.parametrize("zone", [UTC, None])
def test_every_moment_is_aware(zone):
    """A date without a zone is UTC, and so is every moment that is handed out."""
    for text in (format_datetime(MOMENT.replace(tzinfo=zone)), "2030-05-01T12:00:00"):
        resume_at = Limit.from_headers({"Retry-After": text}).resume_at
        assert resume_at == MOMENT
        assert resume_at.tzinfo is UTC


class Broken:
    """Whatever is asked of it raises."""

    def __getattr__(self, name):
        raise RuntimeError(name)

    def __str__(self):
        raise RuntimeError("str")

    def __iter__(self):
        raise RuntimeError("iter")


def test_one_value_that_breaks_does_not_hide_the_others():
    """Headers are read one by one."""
    assert told(Limit.from_headers({"x": Broken(), Broken(): 1, "Retry-After": "5"})) == 5
    assert Limit.from_headers(Broken()) is None
    assert Limit.from_headers([("a", "b"), "c", ("Retry-After", "5")]) is None


names = st.sampled_from(
    sorted({name for headers, _ in TOLD if isinstance(headers, dict) for name in headers}, key=str)
) | st.text(max_size=20)
values = (
    st.text(max_size=60)
    | st.binary(max_size=30)
    | st.none()
    | st.integers()
    | st.floats()
    | st.floats().map(str)
    | st.integers().map(str)
    | st.datetimes().map(str)
    | st.datetimes().map(format_datetime)
    | st.from_regex(r"[-0-9.]{1,40}(ms|s|m|h)", fullmatch=True)
    | st.from_regex(r'"[a-z,;]*";r=-?[0-9.]{0,9};t=-?[0-9]{0,40}', fullmatch=True)
)


@settings(deadline=None)
@given(st.dictionaries(names, values))
@example({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "9" * 40})
def test_no_header_can_break_it(headers):
    """Whatever a server sends, the answer is a limit with a usable end, or None."""
    limit = Limit.from_headers(headers)

    assert limit is None or limit.seconds is None or 0 <= limit.seconds < float("inf")
    assert limit is None or limit.resume_at is None or limit.resume_at.tzinfo is UTC


# Exceptions


class HTTPError(Exception):
    """An exception with attributes as clients have them."""

    def __init__(self, **attributes):
        super().__init__("refused")
        self.__dict__.update(attributes)


def response(status, headers=(), **more):
    return SimpleNamespace(status_code=status, headers=dict(headers), **more)


def botocore(code, status=400, headers=()):
    return HTTPError(
        response={
            "Error": {"Code": code, "Message": "…"},
            "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": dict(headers)},
        }
    )


def duration(seconds, nanos=0):
    return SimpleNamespace(retry_delay=SimpleNamespace(seconds=seconds, nanos=nanos))


def google(delay, **more):
    """Return the JSON that Google answers with over REST."""
    info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}
    return {"error": {"code": 429, "details": [{"@type": "…QuotaFailure"}, info], **more}}


FIVE = {"Retry-After": "5"}
EMPTY_BUDGET = counter("0", "42")
ORPHAN = {"X-RateLimit-Reset": "42"}

EXCEPTIONS = [
    # where clients keep their headers
    (HTTPError(response=response(429, FIVE)), 5),
    (HTTPError(response=response(429, FIVE), status_code=429), 5),
    (HTTPError(status=429, headers=FIVE), 5),
    (HTTPError(code=429, headers=FIVE), 5),
    (HTTPError(headers=FIVE), 5),
    (botocore("Whatever", 503, FIVE), 5),
    (HTTPError(response=None, retry_after=5), 5),
    (HTTPError(retry_after=timedelta(seconds=5)), 5),
    (HTTPError(retry_after="5"), 5),
    (HTTPError(retry_after="1m"), 60),
    # 429 is a limit whatever comes with it
    (HTTPError(response=response(429)), UNKNOWN),
    (HTTPError(status_code=429), UNKNOWN),
    (HTTPError(response=response(429, {"Retry-After": "soon"})), UNKNOWN),
    (HTTPError(response=response(429, counter("3", "42"))), UNKNOWN),
    (HTTPError(response=response(429, ORPHAN)), 42),
    (HTTPError(response=response(429, unified("allowed"))), UNKNOWN),
    (HTTPError(response=response(429, {"anthropic-ratelimit-unified-reset": str(EPOCH)})), MOMENT),
    (HTTPError(response=response(429, {"x-should-retry": "false", **FIVE})), None),
    (HTTPError(status_code=429, retry_after=5, headers={"x-should-retry": "false"}), None),
    # other refusals are one if something says so
    (HTTPError(response=response(403, EMPTY_BUDGET)), 42),
    (HTTPError(response=response(403, counter("0", str(EPOCH)))), MOMENT),
    (HTTPError(response=response(403, FIVE)), 5),
    (HTTPError(response=response(403)), None),
    (HTTPError(response=response(403, ORPHAN)), None),
    (HTTPError(response=response(503, FIVE)), 5),
    (HTTPError(response=response(503)), None),
    (HTTPError(response=response(529, FIVE)), 5),
    (HTTPError(response=response(529, EMPTY_BUDGET)), 42),
    # the last answer that a budget allows is an answer
    (HTTPError(response=response(404, EMPTY_BUDGET)), None),
    (HTTPError(response=response(400, openai("0", "6m0s"))), None),
    (HTTPError(response=response(301, FIVE)), None),
    (HTTPError(response=response(200, EMPTY_BUDGET)), None),
    # AWS says it in a code
    (botocore("ThrottlingException"), UNKNOWN),
    (botocore("SlowDown", 503), UNKNOWN),
    (botocore("Throttling", headers={"x-amz-retry-after": "250"}), 0.25),
    (botocore("AccessDenied", 403), None),
    (HTTPError(response={}), None),
    (HTTPError(response={"Error": "Throttling", "ResponseMetadata": None}), None),
    # Google says it in the body
    (HTTPError(code=429, details=[SimpleNamespace(reason="quota"), duration(53)]), 53),
    (HTTPError(details=(duration(1, 500_000_000),)), 1.5),
    (HTTPError(details=[SimpleNamespace(retry_delay=timedelta(seconds=7))]), 7),
    (HTTPError(code=429, details=google("58s")), 58),
    (HTTPError(code=429, details=google("58.123456789s")), 58.123456789),
    (HTTPError(details=google("58s")["error"]["details"]), 58),
    (HTTPError(code=429, details=google("soon")), UNKNOWN),
    (HTTPError(code=429, details=google(58)), UNKNOWN),
    (HTTPError(code=429, details=google("9" * 100_000 + "x")), UNKNOWN),
    (HTTPError(code=429, details=[duration(-5)]), UNKNOWN),
    (HTTPError(code=429, details=[duration(10**400)]), UNKNOWN),
    (HTTPError(code=429, details=lambda: "RetryInfo"), UNKNOWN),
    (HTTPError(details="retry later"), None),
    (HTTPError(details=itertools.repeat(duration(5))), None),
    # no answer of anybody
    (HTTPError(), None),
    (ValueError("429"), None),
    (TimeoutError(), None),
    (HTTPError(response=response(500)), None),
    (HTTPError(status_code=True, code=False), None),
    (HTTPError(status_code="429"), None),
    (HTTPError(code=1429), None),
    (HTTPError(retry_after=True), None),
    (HTTPError(retry_after=-1), None),
    (HTTPError(retry_after=float("nan")), None),
    (HTTPError(retry_after=float("inf")), None),
    (HTTPError(retry_after=10**400), None),
    (HTTPError(retry_after=timedelta(seconds=-1)), None),
    (HTTPError(limit=5), None),
    # said outright
    (RateLimited(Limit.after(8)), 8),
    (HTTPError(limit=Limit(MOMENT), response=response(429, FIVE)), MOMENT),
]


@pytest.mark.parametrize(("exception", "expected"), EXCEPTIONS)
def test_an_exception_is_read_by_its_shape(exception, expected):
    """Whatever the client, what tells of a limit is found, and an error stays an error."""
    assert told(Limit.from_exception(exception)) == expected


def reraise(*exceptions, explicit):
    """Raise the last of some exceptions while the one before it is handled."""
    *before, last = exceptions
    if not before:
        raise last
    try:
        reraise(*before, explicit=explicit)
    except Exception as cause:
        if explicit:
            raise last from cause
        raise last  # noqa: B904 - the other form is the line above


def raised(*exceptions, explicit):
    """Return the last of some exceptions, raised while the ones before it were handled."""
    with pytest.raises(type(exceptions[-1])) as caught:
        reraise(*exceptions, explicit=explicit)

    return caught.value


def limited(seconds=5):
    return HTTPError(response=response(429, {"Retry-After": str(seconds)}))


@pytest.mark.parametrize("explicit", [True, False])
def test_what_an_exception_was_raised_from_counts(explicit):
    """A client's or a user's own exception around a refusal is the same refusal."""
    chain = raised(limited(), KeyError("x"), ValueError("no answer"), explicit=explicit)
    outright = raised(RateLimited(Limit.after(8)), ValueError("no answer"), explicit=explicit)

    assert told(Limit.from_exception(chain)) == 5
    assert told(Limit.from_exception(outright)) == 8


def test_the_nearest_refusal_counts():
    """Of several refusals in a chain, the last one that came is the one in force."""
    chain = raised(limited(5), limited(6), ValueError(), explicit=True)

    assert told(Limit.from_exception(chain)) == 6


def test_a_suppressed_context_does_not_count():
    """`raise … from None` says that what came before has nothing to do with it."""
    chain = raised(limited(), ValueError(), explicit=False)
    chain.__suppress_context__ = True

    assert Limit.from_exception(chain) is None


def test_an_answer_that_came_while_a_limit_was_handled_is_an_answer():
    """A 400 after a 429 that the client has waited out is a 400; one that wraps it is not."""
    bad_request = HTTPError(response=response(400))

    assert Limit.from_exception(raised(limited(), bad_request, explicit=False)) is None
    assert told(Limit.from_exception(raised(limited(), bad_request, explicit=True))) == 5


def test_a_chain_that_bites_its_tail_is_read_once():
    """A cycle of causes and contexts ends."""
    one, two, three = ValueError(1), ValueError(2), ValueError(3)
    one.__cause__, two.__context__, three.__cause__ = two, three, one

    assert Limit.from_exception(one) is None
    three.__context__, three.__suppress_context__ = limited(), False
    assert told(Limit.from_exception(one)) == 5


def test_a_very_long_chain_is_read_to_its_end():
    """A chain may be longer than the stack."""
    current = last = ValueError()
    for _ in range(5000):
        last.__cause__ = last = ValueError()
    last.__cause__ = limited()

    assert told(Limit.from_exception(current)) == 5


def test_the_members_of_a_group_count():
    """A task group of requests is limited when one of them is."""
    group = ExceptionGroup("tasks", [ValueError(), ExceptionGroup("inner", [limited()])])

    assert told(Limit.from_exception(group)) == 5
    assert Limit.from_exception(ExceptionGroup("tasks", [ValueError()])) is None


ATTRIBUTES = ["response", "headers", "status", "status_code", "code", "details", "retry_after"]


def _breaking(error, attributes):
    def broken(_self):
        raise error

    return type("Breaking", (HTTPError,), {name: property(broken) for name in attributes})()


@pytest.mark.parametrize("name", [*ATTRIBUTES, "limit"])
@pytest.mark.parametrize("error", [RuntimeError("broken"), DeprecationWarning("old")])
def test_a_property_that_raises_is_as_good_as_none(name, error):
    """A client's broken property neither loses the item nor hides what the others say."""
    exception = _breaking(error, [name])
    exception.__dict__.update(
        {"response": response(429, FIVE), "headers": FIVE, "status_code": 429}
    )
    everything = _breaking(error, [*ATTRIBUTES, "limit"])

    assert told(Limit.from_exception(exception)) == 5
    assert Limit.from_exception(everything) is None


def test_a_body_that_contains_itself_is_read_once():
    """JSON that was put together by hand may be a ring."""
    ring = {"error": None}
    ring["error"] = ring
    knot = []
    knot.append(knot)

    assert told(Limit.from_exception(HTTPError(code=429, details=ring))) == UNKNOWN
    assert told(Limit.from_exception(HTTPError(code=429, details=knot))) == UNKNOWN


things = st.recursive(
    values | st.booleans() | st.timedeltas() | st.builds(Broken) | st.just(HTTPError),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("Error", "Code", "ResponseMetadata", "HTTPHeaders", "HTTPStatusCode"),
                    *("error", "details", "retryDelay", "Retry-After"),
                ]
            ),
            inner,
            max_size=4,
        )
        | st.builds(
            lambda made: SimpleNamespace(**made),
            st.dictionaries(
                st.sampled_from([*ATTRIBUTES, "retry_delay", "seconds", "nanos"]), inner, max_size=4
            ),
        )
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.dictionaries(st.sampled_from([*ATTRIBUTES, "limit"]), things), max_size=3))
def test_no_exception_can_break_it(layers):
    """Whatever an exception carries, the answer is a limit with a usable end, or None."""
    chain = functools.reduce(
        lambda cause, made: _caused(HTTPError(**made), cause), layers, ValueError()
    )
    limit = Limit.from_exception(chain)

    assert limit is None or limit.seconds is None or 0 <= limit.seconds < float("inf")
    assert limit is None or limit.resume_at is None or limit.resume_at.tzinfo is UTC


def _caused(exception, cause):
    exception.__cause__ = cause

    return exception
