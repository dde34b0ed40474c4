"""A line of the file: sealed, unsealed, and what a bad one means.

Two rules live here. A line proves itself: its last key is a checksum of all bytes before it,
seeded with a salt of this very file. And damage is a decision, not a guess: each line says how
many lines before it were known to be on the disk (`s`); whatever is wrong at or before the
highest such number had been stored and is damage, whatever is wrong after it is the torn tail
that a crash may leave. No path, no record's meaning is known here.

The format is described byte by byte in docs/format.md.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple
from zlib import crc32

#: The longest line that is written or read, in bytes. A reader must be able to refuse a line of
#: gigabytes before it has all of it in memory; 64 MiB is far above any sensible result.
MAX_LINE = 64 * 1024 * 1024

#: The seal is taken from the right, so nothing inside a record can be mistaken for it.
_SEAL = re.compile(rb',"n":(\d{1,18}),"s":(\d{1,18}),"crc":"([0-9a-f]{8})"\}\Z')
_SEAL_LENGTH = len(b',"n":,"s":,"crc":"00000000"}') + 2 * 18
_CRC_LENGTH = len(b',"crc":"00000000"}')
_END_LENGTH = _CRC_LENGTH + 1  # with the newline


def seal(payload: bytes, n: int, s: int, salt: int) -> bytes:
    """Return the line, newline included, of a JSON object that has at least one key."""
    body = b'%b,"n":%d,"s":%d' % (payload[:-1], n, s)

    return b'%b,"crc":"%08x"}\n' % (body, crc32(body, salt))


def unseal(line: bytes, salt: int) -> tuple[int, int] | None:
    """Return (n, s) of a line without its newline, or None when it does not prove itself."""
    found = _SEAL.search(line, max(0, len(line) - _SEAL_LENGTH))
    if found is None or int(found[3], 16) != crc32(memoryview(line)[:-_CRC_LENGTH], salt):
        return None

    return int(found[1]), int(found[2])


def strip_seal(line: bytes) -> bytes:
    """Return the JSON object of a line that proved itself, without its seal."""
    return line[: line.rindex(b',"n":')] + b"}"


class Wrong(NamedTuple):
    """A place where the file is not as it was written."""

    #: The highest number that a reader had seen before; -1 where no crash can explain it.
    after: int
    #: Counted from 1.
    line: int
    #: Bytes of the file, `start` included, `stop` not; equal where lines are missing.
    start: int
    stop: int
    reason: str


class Scan:
    """What one reading of a file has found, line by line; `blocks` fills it in."""

    def __init__(self, *, salt: int, proven: int, start: int) -> None:
        self.salt = salt
        #: The highest number known to have been on the disk.
        self.proven = proven
        #: Where the header's line ends.
        self.start = start
        #: Where the last valid line begins and ends, and its number.
        self.begin: int = 0
        self.end: int = start
        self.last: int = 0
        #: Lines seen so far, the header included.
        self.lines: int = 1
        self.size: int = 0
        self.wrong: list[Wrong] = []

    def blocks(
        self, blocks: Iterable[list[bytes]]
    ) -> Iterator[tuple[Sequence[int], Sequence[bytes]]]:
        """Yield offsets and bytes (newline included) of the valid lines that follow the header.

        `blocks` are the raw lines after the header, by the many; joined they are the file. Exhaust
        the iterator before anything of this object is read.
        """
        self.size = self.start
        for lines in blocks:
            offsets = list(itertools.accumulate(map(len, lines), initial=self.size))
            if lines and self._follow(lines):
                self.size = self.end = offsets.pop()
                self.begin = offsets[-1]
                self.lines += len(lines)
                yield offsets, lines
                continue
            for start, raw in zip(offsets, lines, strict=False):
                self.size = start + len(raw)
                self.lines += 1
                if self._fits(raw, start):
                    self.begin, self.end = start, self.size
                    yield (start,), (raw,)
        if self.last < self.proven:
            self._note(
                self.last,
                self.size,
                self.size,
                f"{_missing(self.last + 1, self.proven)} at the end",
            )

    def frames(self, blocks: Iterable[list[bytes]]) -> Iterator[tuple[int, bytes]]:
        """As `blocks`, line by line."""
        for offsets, lines in self.blocks(blocks):
            yield from zip(offsets, lines, strict=True)

    def _follow(self, lines: list[bytes]) -> bool:
        """Take in lines that are as nearly all are: each the next one, with an `s` to be foretold.

        To compare with what must be there is faster than to take apart what is, and a million
        lines are read before the first item runs. If this is False, nothing was taken in.
        """
        proven = self.proven
        checksums = map(crc32, [raw[:-_END_LENGTH] for raw in lines], itertools.repeat(self.salt))
        for n, raw, crc in zip(itertools.count(self.last + 1), lines, checksums, strict=False):
            if proven < n and raw.endswith(b',"n":%d,"s":%d,"crc":"%08x"}\n' % (n, proven, crc)):
                continue  # nothing was synced between the one before and this one
            if not raw.endswith(b',"n":%d,"s":%d,"crc":"%08x"}\n' % (n, n - 1, crc)):
                return False
            proven = max(proven, n - 1)  # all before it was
        self.last += len(lines)
        self.proven = proven

        return True

    def _fits(self, raw: bytes, start: int) -> bool:
        """Take in one line, or note what is wrong with it."""
        stop = start + len(raw)
        if raw == b"\n":
            return False
        found = unseal(raw[:-1], self.salt) if raw[-1:] == b"\n" else None
        if found is None or found[1] >= found[0]:
            self._note_foreign(raw, start, stop)
            return False
        n, s = found
        if n <= self.last:
            self._note(-1, start, stop, f"record number {n} appears a second time")
            return False
        if n != self.last + 1:
            self._note(self.last, start, start, _missing(self.last + 1, n - 1))
        self.last = n
        self.proven = max(self.proven, s)

        return True

    def _note_foreign(self, raw: bytes, start: int, stop: int) -> None:
        if raw[-1:] != b"\n":
            self._note(self.last, start, stop, "the last line is not complete")
        elif unseal(raw[:-1], 0) is not None:
            self._note(-1, start, stop, "another checkpoint begins here (were two files joined?)")
        else:
            self._note(
                self.last, start, stop, "this line is not as it was written (its checksum differs)"
            )

    def _note(self, after: int, start: int, stop: int, reason: str) -> None:
        self.wrong.append(Wrong(after, self.lines, start, stop, reason))

    @property
    def damage(self) -> list[Wrong]:
        """What no crash explains: bytes that had been stored are gone or changed."""
        return [wrong for wrong in self.wrong if wrong.after < self.proven]

    @property
    def holes(self) -> list[Wrong]:
        """What lies before the last valid line, so that cutting there would lose records."""
        return [wrong for wrong in self.wrong if wrong.start < self.end]


def _missing(first: int, last: int) -> str:
    return (
        f"record {first} is missing" if first == last else f"records {first} to {last} are missing"
    )
