"""What a line says: the kinds of record, to bytes and back. Format version 1.

The kind of a record is its first key, so it can be told from the first bytes of a line, and an
id comes right behind it: resuming reads a million ids without parsing a million results. A kind
that is not known here comes from a newer writer; it is kept and otherwise ignored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii as quote
from typing import Any, Final, NamedTuple

from ._frames import seal, unseal
from ._model import ErrorInfo, to_instant

#: The version this library writes, and the newest that it reads.
FORMAT: Final = 1

#: A header is read before its salt is known, so it is sealed with this seed.
HEADER_SEED: Final = 0

_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
_KIND = re.compile(rb'\{"([a-z_]+)":')
_ID = re.compile(rb'\{"(?:id|start|back|died|retry|cursor|step)":("(?:[^"\\]|\\.)*")')
_STATUS = re.compile(rb'\{"id":"(?:[^"\\]|\\.)*","status":("(?:[^"\\]|\\.)*")')
#: Bytes before `at` that hold all of `seconds`.
_SECONDS_LENGTH = len(b',"seconds":') + 16


class Malformed(Exception):
    """A line that proves itself does not say what its kind must say."""

    #: Where it is, in bytes, once somebody knows.
    offset: int = 0


class NewerFormat(Exception):
    """The header says a version that this library does not read."""


class Header(NamedTuple):
    """The first line of a file."""

    batch: str
    created_at: str
    serializer: str
    config: Mapping[str, Any]
    salt: int
    #: How many of the lines that follow were on the disk when the file was published.
    proven: int = 0

    def line(self) -> bytes:
        payload = _encode(
            {
                "lockstitch": FORMAT,
                "batch": self.batch,
                "created_at": self.created_at,
                "serializer": self.serializer,
                "config": self.config,
                "salt": self.salt,
            }
        )

        return seal(payload.encode("ascii"), 0, self.proven, HEADER_SEED)


def parse_header(line: bytes) -> Header | None:
    """Return the header of a first line, newline included; None if it does not prove itself.

    Raises:
        NewerFormat: the line is whole, and of a later version.
        Malformed: the line is whole, and not a header.
    """
    found = unseal(line[:-1], HEADER_SEED) if line[-1:] == b"\n" else None
    if found is None or not line.startswith(b'{"lockstitch":'):
        return None
    data = parse(line)
    if isinstance(data["lockstitch"], int) and data["lockstitch"] > FORMAT:
        raise NewerFormat(data["lockstitch"])
    try:
        header = Header(
            str(data["batch"]),
            str(data["created_at"]),
            str(data["serializer"]),
            data["config"],
            data["salt"],
            found[1],
        )
    except KeyError as missing:
        raise Malformed(f"the header has no {missing}") from missing
    if not isinstance(header.config, dict) or not isinstance(header.salt, int):
        raise Malformed("the header's config or salt is of the wrong type")
    if not 0 < header.salt < 1 << 32:
        raise Malformed("the header's salt is out of range")

    return header


def parse(line: bytes) -> dict[str, Any]:
    """Return the JSON object of a line that has proved itself.

    Raises:
        Malformed: it is no JSON object, or one that this Python cannot hold.
    """
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"it cannot be read as JSON ({type(error).__name__}: {error})") from error
    if not isinstance(data, dict):
        raise Malformed("it is not a JSON object")

    return data


def kind_of(line: bytes) -> str:
    """Return the first key of a line; empty when there is none that could be a kind."""
    found = _KIND.match(line)

    return found[1].decode("ascii") if found else ""


def id_of(line: bytes) -> str:
    """Return the id of a line whose kind carries one, without parsing the rest.

    Raises:
        Malformed: there is none.
    """
    return _text(_ID.match(line), "id")


def status_of(line: bytes) -> str:
    """Return the status of an item's record, without parsing the rest.

    Raises:
        Malformed: there is none.
    """
    return _text(_STATUS.match(line), "status")


def seconds_of(line: bytes) -> float | None:
    """Return how long an item took, without parsing the rest; None where it does not say."""
    # From the right: what lies before the last few keys may be a result of any shape.
    stop = line.rfind(b',"at":"')
    if line[stop - 4 : stop - 3] != b".":
        return None
    start = line.rfind(b',"seconds":', max(0, stop - _SECONDS_LENGTH), stop)
    if start < 0:
        return None
    try:
        return float(line[start + len(b',"seconds":') : stop])
    except ValueError:  # the end of a result, and not of a record that tells
        return None


def _text(found: re.Match[bytes] | None, what: str) -> str:
    if found is None:
        raise Malformed(f"it has no {what} where one belongs")
    raw = found[1]
    if b"\\" not in raw:
        return raw[1:-1].decode("ascii", "surrogateescape")
    try:
        text = json.loads(raw)
    except ValueError as error:
        raise Malformed(f"its {what} is no text ({error})") from error
    if not isinstance(text, str):
        raise Malformed(f"its {what} is no text")

    return text


# The records, to bytes. A payload is a JSON object without its seal.


def item_payload(
    id: str,
    status: str,
    result: bytes | None,
    error: ErrorInfo | None,
    attempt: int,
    seconds: float | None,
    at: str,
) -> bytes:
    """Return an item's record. `result` is JSON already; it is embedded as it is."""
    begin = f'{{"id":{quote(id)},"status":{quote(status)}'
    told = "" if error is None else f',"error":{_encode(_error_data(error))}'
    took = "" if seconds is None else f',"seconds":{seconds:.3f}'
    end = f'{told},"attempt":{attempt}{took},"at":"{at}"}}'
    if result is None:
        return f"{begin}{end}".encode("ascii")

    return b'%b,"result":%b%b' % (begin.encode("ascii"), result, end.encode("ascii"))


def start_payload(id: str, attempt: int) -> bytes:
    """Return the line that says: this item is begun."""
    return f'{{"start":{quote(id)},"attempt":{attempt}}}'.encode("ascii")


def value_payload(kind: str, id: str, value: bytes, *, name: str | None = None) -> bytes:
    """Return a cursor or a step: something an unfinished item wants to find again."""
    named = b"" if name is None else b',"name":%b' % quote(name).encode("ascii")

    return b'{"%b":%b%b,"value":%b}' % (
        kind.encode("ascii"),
        quote(id).encode("ascii"),
        named,
        value,
    )


def payload(kind: str, value: object, **fields: object) -> bytes:
    """Return any other record: its kind, then what it says; fields that are None are left out."""
    said = {name: field for name, field in fields.items() if field is not None}

    return _encode({kind: value, **said}).encode("ascii")


def retry_payload(id: str, attempt: int, error: ErrorInfo, due: float, at: str) -> bytes:
    """Return the line of a failed attempt that will be followed by another."""
    return payload("retry", id, attempt=attempt, error=_error_data(error), due=iso(due), at=at)


def _error_data(error: ErrorInfo) -> dict[str, Any]:
    return {
        "type": error.type,
        "message": error.message,
        "traceback": error.traceback,
        "bases": list(error.bases),
    }


def error_from(data: object) -> ErrorInfo | None:
    """Return the error that a record holds.

    Raises:
        Malformed: there is something else in its place.
    """
    if data is None:
        return None
    try:
        return ErrorInfo(
            str(data["type"]),  # type: ignore[index] # any other type is answered below
            str(data["message"]),  # type: ignore[index]
            str(data.get("traceback", "")),  # type: ignore[attr-defined]
            tuple(str(base) for base in data.get("bases", ())),  # type: ignore[attr-defined]
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise Malformed(f"its error is not one ({error})") from error


def numbers_from(data: Mapping[str, Any]) -> tuple[int, float | None]:
    """Return the attempt and the seconds that an item's record holds.

    Raises:
        Malformed: there is something else in their place.
    """
    attempt, seconds = data.get("attempt", 0), data.get("seconds")
    if not isinstance(attempt, int) or not (seconds is None or is_duration(seconds)):
        raise Malformed("its attempt or its seconds are not numbers that can be")

    return int(attempt), None if seconds is None else float(seconds)


def is_duration(value: object) -> bool:
    """Tell whether a value is a number of seconds, not infinite, and not before it began."""
    return isinstance(value, (int, float)) and 0 <= value < 1e12


def iso(seconds: float) -> str:
    """Return an instant as the file spells it: UTC, milliseconds, `Z`."""
    text = to_instant(seconds).isoformat(timespec="milliseconds")

    return text.removesuffix("+00:00") + "Z"


def instant(text: object) -> datetime | None:
    """Return the instant that a record holds, None when it holds none that can be read."""
    if not isinstance(text, str):
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None

    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
