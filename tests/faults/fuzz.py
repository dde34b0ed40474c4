"""Bytes that nobody has written, fed to everything that reads a checkpoint.

The suite feeds it the kept corpus and what hypothesis makes up; `nightly` runs `main` under
atheris.
"""

import logging
import sys
from contextlib import suppress

from lockstitch import Checkpoint, CheckpointDamaged, UsageError
from lockstitch._frames import seal
from lockstitch._records import Header

from .disk import Disk
from .oracle import JSON, PATH, is_tidy, on, records_of

HEADER = Header("batch", "2030-01-01T00:00:00.000Z", "json", {}, 20300101)


def file_of(data):
    """Return the bytes of a file: `data` itself, or lines of it that prove themselves.

    A checksum keeps nearly all random bytes out, so half of all inputs get a right one.
    """
    if data[:1] < b"\x80":
        return data
    lines = [HEADER.line()]
    for n, payload in enumerate(data[1:].split(b"\n"), start=1):
        lines.append(seal(payload if len(payload) > 1 else b"{}", n, n - 1, HEADER.salt))

    return b"".join(lines)


def feed(data):
    """Open for reading and writing, verify, repair: the documented errors and no other.

    What is accepted is the same when it is opened again. Returns whether it was.
    """
    disk = Disk({PATH: file_of(data)})
    with suppress(CheckpointDamaged, UsageError):
        on(disk, lambda: Checkpoint.verify(PATH))
    accepted = None
    try:
        with on(disk, lambda: Checkpoint(PATH, serializer=JSON)) as checkpoint:
            accepted = ids(checkpoint)
            checkpoint.stats()
            checkpoint.save("new", 1)
    except (CheckpointDamaged, UsageError):
        # Refused: nothing has changed. What was repaired is accepted, or there was nothing to keep.
        assert disk.bytes(PATH) == file_of(data) or accepted is not None
        with suppress(CheckpointDamaged, UsageError):
            on(disk, lambda: Checkpoint.repair(PATH))
    else:
        with on(disk, lambda: Checkpoint(PATH, serializer=JSON)) as checkpoint:
            assert ids(checkpoint) == [each for each in accepted if each != "new"] + ["new"]
    is_tidy(disk)

    return accepted is not None


def ids(checkpoint):
    """Return the ids, and read each record as far as it can be read."""
    with suppress(CheckpointDamaged, UsageError):
        records_of(checkpoint)

    return list(checkpoint)


def main():
    """Let atheris make up inputs; its options are those of the command line."""
    import atheris

    logging.getLogger("lockstitch").setLevel(logging.CRITICAL)
    atheris.Setup(sys.argv, feed_silently)
    atheris.Fuzz()


def feed_silently(data):
    feed(data)
