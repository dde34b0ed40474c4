"""A checkpoint of whatever serializer, as its file spells it.

The command never unpickles anything: what is not JSON stays the base64 text that it is in the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs

from lockstitch._checkpoint import Checkpoint
from lockstitch._errors import UsageError
from lockstitch._journal import current_storage
from lockstitch._ledger import Ledger
from lockstitch._reading import load_header
from lockstitch._serializers import Codec
from lockstitch._snapshot import Snapshot


@attrs.frozen
class _AsStored:
    """A serializer that answers to any name and reads the JSON that is in the file."""

    name: str
    is_json: bool = True

    def dumps(self, _value: Any, /) -> bytes:
        raise UsageError(f"this reads {self.name}, and does not write it")

    def loads(self, data: bytes, /) -> Any:
        return json.loads(data)


CODEC = Codec(_AsStored("any"), None)


@contextmanager
def snapshot(path: str) -> Iterator[Snapshot[Ledger]]:
    """Read a checkpoint as it is at this moment, beside a live writer.

    Raises:
        FileNotFoundError, CheckpointDamaged, UsageError.
    """
    seen = Snapshot(os.path.realpath(path), current_storage().files, Ledger)
    try:
        yield seen
    finally:
        seen.close()


def existing(path: str) -> Checkpoint:
    """Return the checkpoint at `path`, to be changed as a whole; never a new one.

    Raises:
        FileNotFoundError, CheckpointDamaged, UsageError.
    """
    real, files = os.path.realpath(path), current_storage().files
    fd = files.open_read(real)
    try:
        header, _ = load_header(files, fd, real)
    finally:
        files.close(fd)

    return Checkpoint(real, serializer=_AsStored(header.serializer))
