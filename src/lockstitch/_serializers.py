"""Results to bytes and back. The only module that knows cattrs.

A value is stored only if it comes back equal: what a resumed run reads must be what the first one
computed, or the second half of a job quietly works on other data than the first. So every value
is read back before it is written, and refused with the path of the first difference.
"""

from __future__ import annotations

import base64
import binascii
import enum
import functools
import importlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from decimal import Decimal
from json.encoder import c_make_encoder  # type: ignore[attr-defined] # not in the stubs
from json.encoder import encode_basestring_ascii as quote
from pathlib import Path, PurePath
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, SupportsIndex, cast, runtime_checkable

import attrs

from ._errors import SerializationFailed, UsageError

if TYPE_CHECKING:
    import cattrs

_ESCAPE = re.compile(r"[^\x00-\x7f]")

#: `json.loads` without its look at the encoding and at the white space around.
_scan = json.JSONDecoder().scan_once  # type: ignore[attr-defined] # not in the stubs


@runtime_checkable
class Serializer(Protocol):
    """How results are written. Called in any thread; must not keep state between calls."""

    @property
    def name(self) -> str:
        """Kept in the file: a file is only read with the serializer that wrote it."""
        ...

    @property
    def is_json(self) -> bool:
        """True when `dumps` returns JSON on one line; it is then readable in the file as it is."""
        ...

    def dumps(self, value: Any, /) -> bytes: ...

    def loads(self, data: bytes, /) -> Any: ...


def _converter() -> cattrs.Converter:
    # Imported here because it takes a sixth of what the whole package does, and a batch that stores
    # dictionaries, texts and numbers needs none of it.
    from uuid import UUID  # noqa: PLC0415

    from cattrs.preconf.json import make_converter  # noqa: PLC0415

    converter = make_converter()
    converter.register_unstructure_hook_func(
        lambda cls: isinstance(cls, type) and issubclass(cls, PurePath), str
    )
    converter.register_structure_hook_func(
        lambda cls: isinstance(cls, type) and issubclass(cls, PurePath),
        lambda value, cls: (Path if cls is PurePath else cls)(value),
    )
    converter.register_unstructure_hook(UUID, str)
    converter.register_structure_hook(UUID, lambda value, _: UUID(value))
    converter.register_unstructure_hook(Decimal, str)
    converter.register_structure_hook(Decimal, lambda value, _: Decimal(value))
    converter.register_unstructure_hook(timedelta, lambda value: value.total_seconds())
    converter.register_structure_hook(timedelta, lambda value, _: timedelta(seconds=value))

    return cast("cattrs.Converter", converter)


def _converter_of(serializer: Serializer) -> cattrs.Converter:
    import cattrs  # noqa: PLC0415 - see `_converter`

    converter = getattr(serializer, "converter", None)

    return converter if isinstance(converter, cattrs.Converter) else _converter()


class JSONSerializer:
    """The default: JSON, with everything cattrs knows made of it on the way.

    attrs classes, dataclasses, datetimes, enums, paths, UUIDs, Decimals, sets and bytes are
    written; they come back as what they were when the checkpoint has a `result_type`. Your own
    `converter` brings your own hooks; it is used as it is and never changed. Thread-safe.
    """

    name = "json"
    is_json = True

    def __init__(self, converter: cattrs.Converter | None = None) -> None:
        self._is_ours = converter is None
        if converter is not None:
            self.converter = converter
        unstructure = self._unstructure if converter is None else converter.unstructure
        #: The pieces of what `dumps` returns.
        self.iterencode: Callable[[object, int], Iterable[str]] = _encoder(unstructure)

    @functools.cached_property
    def converter(self) -> cattrs.Converter:
        """What makes plain values of all others, and back."""
        return _converter()

    def _unstructure(self, value: object) -> object:
        return self.converter.unstructure(value)

    def dumps(self, value: Any, /) -> bytes:
        """Return `value` as JSON on one line.

        Raises:
            ValueError, TypeError: `value` is nothing that JSON or the converter can hold.
        """
        return "".join(self.iterencode(value, 0)).encode("ascii")

    def loads(self, data: bytes, /) -> Any:
        """Return the plain value that the JSON holds; structuring is the checkpoint's part."""
        text = data.decode("utf-8")
        try:
            value, end = _scan(text, 0)
        except StopIteration:  # white space in front, or nothing that JSON can begin with
            return json.loads(text)

        return value if end == len(text) else json.loads(text)

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> Any:
        if type(self) is not JSONSerializer:
            return super().__reduce_ex__(protocol)  # it may have state that nobody knows of here
        if not self._is_ours:
            raise TypeError("a converter of your own cannot go to another process")

        return JSONSerializer, ()


class Encoded(NamedTuple):
    """A value that a worker has made JSON of, with the codec of the store that it goes into."""

    fragment: bytes


def _encoder(default: Callable[[Any], Any]) -> Callable[[object, int], Iterable[str]]:
    """As `json.JSONEncoder.iterencode`, which makes a new encoder in C at each call, made once."""
    if c_make_encoder is None:
        encoder = json.JSONEncoder(separators=(",", ":"), allow_nan=False, default=default)
        return lambda value, _: encoder.iterencode(value)

    # Markers of None: what contains itself ends in a RecursionError, and costs nobody else a thing.
    return c_make_encoder(None, default, quote, None, ":", ",", False, False, False)  # type: ignore[no-any-return] # not in the stubs


class _Module:
    """A module with `dumps` and `loads` as a serializer."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self.is_json: bool = _writes_json(module)

    @property
    def name(self) -> str:
        # The encoding is what a reader needs to know: orjson's JSON is read by any JSON reader.
        return "json" if self.is_json else self.module.__name__

    def dumps(self, value: Any, /) -> bytes:
        data = self.module.dumps(value)

        return data.encode("utf-8", "surrogatepass") if isinstance(data, str) else bytes(data)

    def loads(self, data: bytes, /) -> Any:
        return self.module.loads(data)

    def __reduce__(self) -> tuple[Any, ...]:
        return _imported, (self.module.__name__,)


def _imported(name: str) -> Serializer:
    return as_serializer(importlib.import_module(name))


def as_serializer(given: object) -> Serializer:
    """Return the serializer that a user's argument stands for.

    Raises:
        UsageError: it is neither a serializer nor a module with `dumps` and `loads`.
    """
    if given is None:
        return JSONSerializer()
    if isinstance(given, ModuleType) and hasattr(given, "dumps") and hasattr(given, "loads"):
        return _Module(given)
    if isinstance(given, type) or not isinstance(given, Serializer):
        raise UsageError(
            f"serializer= takes an object with name, is_json, dumps and loads, or a module such as "
            f"orjson or pickle, not {given!r}"
        )
    if not isinstance(given.name, str) or not given.name:
        raise UsageError(f"the serializer's name must be a word, not {given.name!r}")

    return given


def _writes_json(module: ModuleType) -> bool:
    probe = {"a": [1, 2.5, "é", None, True]}
    try:
        return bool(json.loads(module.dumps(probe)) == probe)
    except (ValueError, TypeError):  # not JSON, not text, or a format that has no such values
        return False


def _is_plain(module: ModuleType) -> bool:
    """Tell whether a module writes JSON on one line, and never what JSON does not have."""
    try:
        return _writes_json(module) and module.dumps([[math.inf], "\n"]) == b'[[null],"\\n"]'
    except (ValueError, TypeError):
        return False


class Codec:
    """A serializer and a `result_type`, as the store uses them: fragments of JSON in and out."""

    def __init__(self, serializer: object, result_type: Any) -> None:
        self.serializer: Serializer = as_serializer(serializer)
        self._type = result_type
        # Only our own JSON is known to hold no NaN, no newline and nothing but ASCII.
        self._strict = type(self.serializer) is JSONSerializer
        # A module has shown that it writes JSON; of a user's own object there is only its word.
        self._trusted = self._strict or isinstance(self.serializer, _Module)
        # What a value without a `result_type` is written with, the short way.
        self._iterencode: Callable[[object, int], Iterable[str]] | None = None
        self._module: ModuleType | None = None
        if result_type is None and isinstance(self.serializer, JSONSerializer) and self._strict:
            self._iterencode = self.serializer.iterencode
        if result_type is None and isinstance(self.serializer, _Module):
            module = self.serializer.module
            self._module = module if _is_plain(module) else None
        if result_type is not None and not self.serializer.is_json:
            raise UsageError(
                f"result_type= goes with JSON; {self.serializer.name} brings its own types back"
            )
        # Imported now and not in a save: a process that is forked while another thread imports
        # would wait for that thread, which it does not have.
        self._converter = None if result_type is None else _converter_of(self.serializer)

    def __reduce__(self) -> tuple[Any, ...]:
        plain = type(self.serializer) is JSONSerializer

        return _sent_codec, (None if plain else self.serializer, self._type)

    def encode(self, id: str, value: object) -> bytes:
        """Return the JSON that stands for `value` in a record.

        Raises:
            SerializationFailed: it cannot be written, or would not come back equal.
        """
        if type(value) is Encoded:
            return value.fragment
        # Nearly every value raises no question. Any other goes the long way, which meets the same
        # error again and says what is wrong.
        try:
            if self._iterencode is not None:
                text = "".join(self._iterencode(value, 0))
                if (_scan(text, 0)[0] == value) is True:
                    return text.encode("ascii")
            elif self._module is not None:
                data = self._module.dumps(value)
                if (self._module.loads(data) == value) is True and data.isascii():
                    return bytes(data)
        except Exception:  # noqa: BLE001, S110 - see above
            pass
        fragment = self._fragment(id, value)
        try:
            back = self._read_back(fragment)
        except Exception as error:
            raise SerializationFailed(
                id, "$", f"it cannot be read back ({type(error).__name__}: {error})"
            ) from error
        try:
            difference = None if bool(back == value) else _difference(value, back, self._type)
        except Exception as error:
            raise SerializationFailed(
                id,
                "$",
                f"it cannot be compared with what comes back ({type(error).__name__}: {error})",
            ) from error
        if difference is not None:
            raise SerializationFailed(id, *difference)

        return fragment

    def _read_back(self, fragment: bytes) -> Any:
        # What is not known to be JSON goes the way that a reader will take, through the line.
        if self._trusted:
            return self.decode_fragment(fragment)

        return self.decode(json.loads(fragment, parse_constant=_refuse_constant))

    def encode_plain(self, id: str, value: object) -> bytes:
        """As `encode`, for cursors and steps: without `result_type`."""
        if self._type is None:
            return self.encode(id, value)

        return Codec(self.serializer, None).encode(id, value)

    def decode(self, stored: object) -> Any:
        """Return the value of a record, given what its JSON holds."""
        if not self.serializer.is_json:
            return self.serializer.loads(_unpack(stored))
        if self._type is None and self._strict:
            return stored

        return self.decode_fragment(json.dumps(stored).encode("ascii"))

    def decode_plain(self, stored: object) -> Any:
        """As `decode`, for cursors and steps: without `result_type`."""
        return stored if self._strict else Codec(self.serializer, None).decode(stored)

    def decode_fragment(self, fragment: bytes) -> Any:
        """Return the value that a fragment stands for."""
        if not self.serializer.is_json:
            return self.serializer.loads(_unpack(json.loads(fragment)))
        value = self.serializer.loads(fragment)

        return value if self._converter is None else self._converter.structure(value, self._type)

    def _fragment(self, id: str, value: object) -> bytes:
        try:
            if self._converter is not None:
                value = self._converter.unstructure(value, unstructure_as=self._type)
            data = self.serializer.dumps(value)
        except Exception as error:
            found = _first_unfit(value) if self.serializer.is_json else None
            if found is None and isinstance(error, RecursionError):
                found = "$", "it is nested too deeply, or contains itself"
            where, reason = found or ("$", f"{type(error).__name__}: {error}")
            raise SerializationFailed(id, where, reason) from error
        if not isinstance(data, bytes):
            raise SerializationFailed(
                id, "$", f"{self.serializer.name}.dumps returned {type(data).__name__}, not bytes"
            )
        if not self.serializer.is_json:
            return b'"%b"' % base64.b64encode(data)

        return data if self._strict else _embeddable(id, data, self.serializer.name)


# A worker is sent the codec with every item, and a converter takes a while to make.
_kept_codec = functools.lru_cache(maxsize=8)(Codec)


def _sent_codec(serializer: object, result_type: Any) -> Codec:
    try:
        hash((serializer, result_type))
    except TypeError:
        return Codec(serializer, result_type)

    return _kept_codec(serializer, result_type)


def _unpack(stored: object) -> bytes:
    try:
        return base64.b64decode(str(stored), validate=True)
    except binascii.Error as error:
        raise ValueError(f"the stored value is not base64 ({error})") from error


def _embeddable(id: str, data: bytes, name: str) -> bytes:
    """Return foreign JSON in the form a line may hold: ASCII, no line break, no NaN."""
    if b"\n" in data or b"\r" in data:
        raise SerializationFailed(id, "$", f"{name}.dumps returned more than one line")
    if not data.isascii():
        try:
            text = data.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise SerializationFailed(
                id, "$", f"{name}.dumps returned no UTF-8 ({error})"
            ) from None
        data = _ESCAPE.sub(lambda found: json.dumps(found[0])[1:-1], text).encode("ascii")
    if b"NaN" in data or b"Infinity" in data:  # some writers emit these for floats
        try:
            json.loads(data, parse_constant=_refuse_constant)
        except ValueError as error:
            raise SerializationFailed(id, "$", f"{name}.dumps returned {error}") from error

    return data


def _refuse_constant(constant: str) -> object:
    raise ValueError(f"{constant}, which JSON does not have")


def _first_unfit(
    value: object, where: str = "$", above: tuple[object, ...] = ()
) -> tuple[str, str] | None:
    """Return path and reason of the first part that JSON cannot hold, for the error message."""
    if isinstance(value, float) and not math.isfinite(value):
        return where, f"{value} is not JSON; store None or a text instead"
    if any(value is each for each in above):
        return where, "it contains itself"
    if len(above) > 50:
        return None
    parts: list[tuple[str, object]] = []
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, (str, int, float, bool)) and key is not None:
                return where, f"the key {key!r} is not a text"
        parts = [(f"{where}.{key}", part) for key, part in value.items()]
    elif isinstance(value, (list, tuple)):
        parts = [(f"{where}[{index}]", part) for index, part in enumerate(value)]
    elif attrs.has(type(value)):
        parts = [
            (f"{where}.{field.name}", getattr(value, field.name))
            for field in attrs.fields(cast(type[attrs.AttrsInstance], type(value)))
        ]
    for path, part in parts:
        found = _first_unfit(part, path, (*above, value))
        if found is not None:
            return found
    if not parts and not isinstance(
        value, (str, int, float, bool, list, tuple, Mapping, type(None))
    ):
        return (
            where,
            f"{type(value).__name__} is not JSON, and no hook of the converter makes it so",
        )

    return None


def _difference(
    value: object, back: object, result_type: object, where: str = "$"
) -> tuple[str, str]:
    """Return path and reason of the first part that does not come back equal."""
    if isinstance(value, Mapping) and isinstance(back, Mapping):
        for key, part in value.items():
            if not isinstance(key, str):
                return (
                    where,
                    f"the key {key!r} would come back as the text {str(key)!r}; use texts as keys",
                )
            if key not in back or not bool(back[key] == part):
                return _difference(part, back.get(key), result_type, f"{where}.{key}")
    if type(value) is list and type(back) is list and len(value) == len(back):
        for index, (part, other) in enumerate(zip(value, back, strict=True)):
            if not bool(part == other):
                return _difference(part, other, result_type, f"{where}[{index}]")
    name = type(value).__name__
    if isinstance(value, enum.Enum):
        name = "an enum"
    hint = (
        f"Checkpoint(…, result_type={type(value).__name__}) brings it back as it was"
        if result_type is None and where == "$"
        else "give the checkpoint a result_type= that says so, or store plain values"
    )

    return where, f"{name} would come back as {type(back).__name__} {_short(back)}; {hint}"


def _short(value: object) -> str:
    text = repr(value)

    return text if len(text) <= 60 else f"{text[:57]}…"
