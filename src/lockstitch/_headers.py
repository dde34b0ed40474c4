"""What a response says about "not now": headers and exceptions to a moment or a length. Pure.

No client library is imported and none is named in a condition: exceptions are read by the shape
they have in common, so a client that appears next year works too. Where several headers answer,
the most exact one wins, in the order of `_TOLD`. A counter's reset says when the whole budget is
back, which is an upper bound: it counts only when nothing of that budget remains.

What others send is not trusted to be well-formed: whatever cannot be read is ignored, and nothing
here raises.

Sources: RFC 9110 10.2.3 (Retry-After), draft-ietf-httpapi-ratelimit-headers-11 and its older forms,
the documentation of GitHub, OpenAI, Azure, Anthropic and AWS, google/rpc/error_details.proto.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

#: When it ends: seconds from now, a moment, or None where only "not now" was said.
Reset = float | datetime | None

#: A bare number from here on is a moment in seconds since 1970 (2001 and later), not a length.
_EPOCH = 1e9
_EPOCH_MS = 1e12

#: No header that is meant to be read is longer; some patterns below take its square in time.
_LONGEST = 2000

_DURATION = re.compile(
    r"(\d+(?:\.\d+)?)(ms|[u\u00b5\u03bc]s|ns|h|m|s|d)"
)  # Go writes both kinds of mu
_UNITS = MappingProxyType(
    {
        "ns": 1e-9,
        "us": 1e-6,
        "\u00b5s": 1e-6,
        "\u03bcs": 1e-6,
        "ms": 1e-3,
        "s": 1.0,
        "m": 60.0,
        "h": 3600.0,
        "d": 86400.0,
    }
)
#: A parameter of a structured field: `r=0` in `"default";r=0;t=30`.
_PARAMETER = re.compile(r'(?:^|[;,\s])([a-z]+)\s*=\s*"?(-?\d+(?:\.\d+)?)"?\s*(?=[;,]|$)')

#: AWS says "slow down" in the error's code, with whatever HTTP status; after botocore's own list.
_THROTTLED = frozenset(
    {
        "BandwidthLimitExceeded",
        "EC2ThrottledException",
        "LimitExceededException",
        "PriorRequestNotComplete",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "SlowDown",
        "ThrottledException",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
        "TransactionInProgressException",
    }
)

_TOO_MANY_REQUESTS = 429

#: With another status a counter at 0 only says that this answer was the last one.
_REFUSALS = frozenset({403, _TOO_MANY_REQUESTS, 503, 529})


def parse_moment(text: str) -> Reset:
    """Return what a header's value says: a length, a moment, or None where it cannot be read.

    Numbers are seconds, or moments where they are too large for that; durations may be written
    as Go does (`6m0s`, `12ms`); dates as HTTP, RFC 3339 or JavaScript write them.
    """
    text = text.strip().strip('"')
    if len(text) > _LONGEST:
        return None
    try:
        number = _length(float(text))
    except ValueError:
        length = _duration(text)
        return _date(text) if length is None else length
    if number is None or number < _EPOCH:
        return number

    return _instant(number / 1000 if number >= _EPOCH_MS else number)


def _length(number: float) -> float | None:
    """Return a number if it can be a length of time."""
    return number if math.isfinite(number) and number >= 0 else None


def _number(text: str) -> float | None:
    try:
        return _length(float(text))
    except ValueError:
        return None


def _milliseconds(text: str) -> Reset:
    number = _number(text)

    return None if number is None else number / 1000


def _instant(seconds: float) -> datetime | None:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return None


def _duration(text: str) -> float | None:
    if not text or len(text) > _LONGEST or _DURATION.sub("", text):
        return None

    return _length(sum(float(number) * _UNITS[unit] for number, unit in _DURATION.findall(text)))


def _date(text: str) -> datetime | None:
    # The standard library's parser of mail dates loads half of `email`; only a date pays for it.
    from email.utils import parsedate_to_datetime  # noqa: PLC0415

    # JavaScript's own form: `Tue Feb 16 2021 09:02:42 GMT+0100 (Central European Standard Time)`.
    text = re.sub(r"\s*\([^()]*\)$", "", text).replace("GMT+", "+").replace("GMT-", "-")
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            moment = parse(text)
            # A date without a zone is UTC: HTTP knows no other, and wrong by hours helps nobody.
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
        except (ValueError, TypeError, IndexError, OverflowError):
            continue

    return None


# Headers


def reset_from_headers(given: object, status: int | None = None) -> tuple[bool, Reset, str]:
    """Return (limited, when it ends, which header said so) for the headers of a response.

    Anything with `items()` and any list of pairs is taken, whatever the case of the names. With a
    `status`, counters are read only where it is one that refuses.
    """
    headers = _lower(given)
    if _forbids_retry(headers):
        return False, None, ""
    for name, read in _TOLD:
        if name in headers and (reset := read(headers[name])) is not None:
            return True, reset, name
    if status is not None and status not in _REFUSALS:
        return False, None, ""
    exhausted = list(_exhausted(headers))
    if not exhausted and status == _TOO_MANY_REQUESTS:
        exhausted = list(_uncounted(headers))
    if not exhausted:
        return False, None, ""
    reset, name = max(exhausted, key=_lateness)

    return True, reset, name


def _lower(given: object) -> dict[str, str]:
    headers: dict[str, str] = {}
    try:
        items = probe(given, "items")
        pairs: Any = items() if callable(items) else given if isinstance(given, Sequence) else ()
        for key, value in pairs:
            name, text = _text(key).lower(), _text(value)
            # The one of them that is a list may come in several lines, which mean the same.
            again = name == "ratelimit" and name in headers
            headers[name] = f"{headers[name]}, {text}" if again else text
    except Exception:  # noqa: BLE001 - what does not come in pairs is read as far as it does
        return headers

    return headers


def _text(value: object) -> str:
    try:
        return value.decode("latin-1") if isinstance(value, bytes) else str(value)
    except Exception:  # noqa: BLE001 - one value that cannot be read must not hide the others
        return ""


def _forbids_retry(headers: Mapping[str, str]) -> bool:
    return headers.get("x-should-retry", "").strip().lower() == "false"


#: Headers that say how long to wait, the most exact first.
_TOLD: tuple[tuple[str, Callable[[str], Reset]], ...] = (
    ("retry-after-ms", _milliseconds),
    ("x-amz-retry-after", _milliseconds),
    ("retry-after", parse_moment),
    ("x-ratelimit-retry-after", parse_moment),
)


def _lateness(found: tuple[Reset, str]) -> tuple[int, float]:
    """Order resets: lengths by length, moments by time.

    No service mixes the two, and to compare them would take the time of day.
    """
    reset = found[0]
    if isinstance(reset, datetime):
        return 2, reset.timestamp()

    return (0, 0.0) if reset is None else (1, reset)


#: Anthropic's plans count in windows of hours and days; a word says whether one is used up.
_PLAN = "anthropic-ratelimit-unified-"


def _is_counter(name: str) -> bool:
    return "ratelimit" in name or "rate-limit" in name


def _exhausted(headers: Mapping[str, str]) -> Iterator[tuple[Reset, str]]:
    """Yield (reset, header) of every counter that is at 0."""
    for name, value in headers.items():
        if name == "ratelimit":
            yield from ((reset, name) for reset in _structured(value))
        elif _is_counter(name) and "remaining" in name and _number(value) == 0:
            reset = name.replace("remaining", "reset")
            yield parse_moment(headers.get(reset, "")), reset
    if headers.get(f"{_PLAN}status", "").strip().lower() == "rejected":
        yield parse_moment(headers.get(f"{_PLAN}reset", "")), f"{_PLAN}reset"


def _uncounted(headers: Mapping[str, str]) -> Iterator[tuple[Reset, str]]:
    """Yield (reset, header) where a reset is sent and its counter is not."""
    for name, value in headers.items():
        if not _is_counter(name) or "reset" not in name:
            continue
        counter = name.replace("reset", "remaining")
        if name.startswith(_PLAN):  # each window has a reset; this one is of the window that counts
            counter = f"{_PLAN}status" if name == f"{_PLAN}reset" else name
        if counter not in headers and (reset := parse_moment(value)) is not None:
            yield reset, name


def _structured(value: str) -> Iterator[Reset]:
    """Read `"default";r=0;t=30` and the older `limit=100, remaining=0, reset=5`."""
    value = value.lower()
    old = dict(_PARAMETER.findall(value))
    if "remaining" in old:
        if _number(old["remaining"]) == 0:
            yield parse_moment(old.get("reset", ""))
        return
    for item in value.split(","):
        said = dict(_PARAMETER.findall(item))
        if _number(said.get("r", "")) == 0:
            yield parse_moment(said.get("t", ""))


# Exceptions


def causes(exception: BaseException) -> Iterator[BaseException]:
    """Yield an exception, what it was raised from, and the members of groups, each once.

    Nearest first. What an answer with a status was raised in the course of is history: a 400 that
    came while a 429 was handled is a 400.
    """
    seen: set[int] = set()
    waiting: list[BaseException | None] = [exception]
    while waiting:
        each = waiting.pop(0)
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        if isinstance(each, BaseExceptionGroup):
            waiting += each.exceptions
        waiting.append(each.__cause__)
        if not each.__suppress_context__ and _status(each) is None:
            waiting.append(each.__context__)


def reset_from_exception(exception: BaseException) -> tuple[bool, Reset, str]:
    """Return (limited, when it ends, who said so) for one exception, without its causes.

    Limited are: HTTP 429; any response with a header that says how long to wait, any refusal with a
    counter at 0; gRPC's RetryInfo; AWS's throttling codes; `retry_after` on the exception itself.
    """
    try:
        return _read(exception)
    except Exception:  # noqa: BLE001 - an exception that breaks when it is looked at is an error
        return False, None, ""


def _read(exception: BaseException) -> tuple[bool, Reset, str]:
    status = _status(exception)
    if status is not None and status < 400:
        return False, None, ""
    for headers in _headers(exception):
        if _forbids_retry(_lower(headers)):
            return False, None, ""
        limited, reset, source = reset_from_headers(headers, status)
        if limited:
            return True, reset, source
    delay = _retry_info(probe(exception, "details"))
    if delay is not None:
        return True, delay, "RetryInfo"
    told = probe(exception, "retry_after")
    after = parse_moment(told) if isinstance(told, str) else _seconds_of(told)
    if after is not None:
        return True, after, "retry_after"
    if status == _TOO_MANY_REQUESTS or _aws_code(exception) in _THROTTLED:
        return True, None, type(exception).__name__

    return False, None, ""


def probe(thing: object, name: str) -> Any:
    """Return an attribute, None where there is none: a property may raise whatever it likes."""
    try:
        return getattr(thing, name, None)
    except Exception:  # noqa: BLE001 - a client's broken property is no reason to lose the item
        return None


def _item(thing: object, name: str) -> Any:
    """Return a value of a mapping, None where there is none."""
    try:
        return thing.get(name) if isinstance(thing, Mapping) else None
    except Exception:  # noqa: BLE001 - as above
        return None


def _headers(exception: BaseException) -> Iterator[object]:
    response = probe(exception, "response")
    yield _item(_item(response, "ResponseMetadata"), "HTTPHeaders")  # botocore's is a dict
    yield probe(response, "headers")
    yield probe(exception, "headers")


def _status(exception: BaseException) -> int | None:
    for each in _statuses(exception):
        if isinstance(each, int) and not isinstance(each, bool) and 100 <= each < 600:
            return int(each)

    return None


def _statuses(exception: BaseException) -> Iterator[object]:
    """Yield what may be a status, one at a time: to read some of these gives a warning."""
    response = probe(exception, "response")
    yield _item(_item(response, "ResponseMetadata"), "HTTPStatusCode")
    for thing, name in (
        (exception, "status_code"),
        (exception, "status"),
        (response, "status_code"),
        (response, "status"),
        (exception, "code"),
    ):
        yield probe(thing, name)


def _aws_code(exception: BaseException) -> str:
    code = _item(_item(probe(exception, "response"), "Error"), "Code")

    return code if isinstance(code, str) else ""


def _retry_info(details: object, depth: int = 6) -> float | None:
    """Find google.rpc.RetryInfo: a list of protobuf messages, or the JSON that REST answers with.

    `depth` is what {"error": {"details": [{…}]}} takes; deeper nesting is somebody else's.
    """
    if not depth:
        return None
    told = _item(details, "retryDelay")
    if isinstance(told, str):
        return _duration(told)
    if isinstance(details, Mapping):
        return _retry_info([_item(details, "error"), _item(details, "details")], depth - 1)
    # A sequence, and not any iterable: nobody says that those end.
    if not isinstance(details, Sequence) or isinstance(details, (str, bytes)):
        return None
    for each in details:
        found = _seconds_of(probe(each, "retry_delay"))
        if found is None:
            found = _retry_info(each, depth - 1)
        if found is not None:
            return found

    return None


def _seconds_of(delay: object) -> float | None:
    """Read a number, a timedelta, or a protobuf Duration."""
    try:
        if isinstance(delay, timedelta):
            return _length(delay.total_seconds())
        if isinstance(delay, (int, float)) and not isinstance(delay, bool):
            return _length(float(delay))
        seconds, nanos = probe(delay, "seconds"), probe(delay, "nanos")
        if isinstance(seconds, int) and isinstance(nanos, int):
            return _length(seconds + nanos / 1e9)
    except OverflowError:
        pass

    return None
