"""From a file to a verdict: find the header, scan the lines, read one line again.

Shared by the writer, the read-only snapshot, `verify` and `repair`, so that all of them see the
same file in the same way. Nothing here writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

from ._errors import CheckpointDamaged, UsageError
from ._files import Files, is_regular, read_blocks, read_lines
from ._frames import MAX_LINE, Scan, Wrong, unseal
from ._records import FORMAT, Header, Malformed, NewerFormat, parse, parse_header

_SALT = re.compile(rb'"salt":(\d{1,10})\b')
_REPAIR: Final = (
    "`lockstitch repair {path}` keeps every intact record and puts the damaged bytes aside; "
    "the items concerned run again."
)


class Fold(Protocol):
    """What is made of the lines, one by one, in the order of the file."""

    @property
    def sealed(self) -> bool:
        """True when the last line says that its writer ended in order."""
        ...

    def apply(self, offset: int, line: bytes) -> None:
        """Take in a valid line; doing so twice changes nothing.

        Raises `Malformed`.
        """
        ...

    def apply_all(self, blocks: Iterable[tuple[Sequence[int], Sequence[bytes]]]) -> None:
        """As `apply`, for offsets and lines by the many; what is raised has its `offset`."""
        ...


def refuse_special(files: Files, fd: int, path: str) -> int:
    """Return the size of an open regular file; refuse folders, pipes and devices."""
    status = files.stat(fd)
    if not is_regular(status):
        raise UsageError(f"{path} is not a regular file; give the path of a file of its own")

    return status.st_size


def damaged(path: str, wrong: Wrong) -> CheckpointDamaged:
    """Return the error that tells a person about one wrong place."""
    return CheckpointDamaged(path, wrong.line, wrong.start, wrong.reason, _REPAIR.format(path=path))


def load_header(files: Files, fd: int, path: str) -> tuple[Header, int]:
    """Return the header of a file and where its line ends.

    Raises:
        UsageError: the file is of a later format.
        CheckpointDamaged: there is no valid header; says what is there instead.
    """
    first = next(read_lines(files, fd, 0, MAX_LINE), b"")
    try:
        header = parse_header(first)
    except NewerFormat as newer:
        raise UsageError(
            f"{path} was written by a newer lockstitch (format {newer}); this one reads formats "
            f"up to {FORMAT}: pip install -U lockstitch"
        ) from None
    except Malformed as error:
        raise damaged(path, Wrong(-1, 1, 0, len(first), f"the header is wrong: {error}")) from None
    if header is None:
        raise _no_header(files, fd, path, first)

    return header, len(first)


def _no_header(files: Files, fd: int, path: str, first: bytes) -> CheckpointDamaged:
    if not first:
        return CheckpointDamaged(
            path,
            1,
            0,
            "the file is empty, which lockstitch never leaves behind",
            "If you made it yourself, delete it; if it was a checkpoint, restore it from a copy.",
        )
    if first.startswith(b"\xef\xbb\xbf") or first.endswith(b"\r\n"):
        cause = "a byte-order mark" if first.startswith(b"\xef") else "Windows line ends (CR LF)"
        return CheckpointDamaged(
            path,
            1,
            0,
            f"an editor or a transfer put {cause} into the file",
            "Restore the original bytes.",
        )
    if first.startswith(b'{"lockstitch":') or next(find_salts(files, fd), None) is not None:
        return damaged(path, Wrong(-1, 1, 0, len(first), "the header is not as it was written"))

    return CheckpointDamaged(
        path,
        1,
        0,
        "this is not a lockstitch checkpoint",
        "Give another path; results you already have become a checkpoint with `lockstitch adopt`.",
    )


def find_salts(files: Files, fd: int) -> Iterator[int]:
    """Yield salts that prove at least one line of a file whose header is lost.

    They come from the rest of the header and from the `run` lines, which repeat it.
    """
    lines = read_lines(files, fd, 0, MAX_LINE)
    remains = _SALT.search(next(lines, b""))
    guess = int(remains[1]) if remains else None
    for line in lines:
        if guess is not None and guess < 1 << 32 and unseal(line[:-1], guess) is not None:
            yield guess
            guess = None
        if line.startswith(b'{"run":') and (told := _SALT.search(line)) is not None:
            salt = int(told[1])
            if 0 < salt < 1 << 32 and unseal(line[:-1], salt) is not None:
                yield salt


F = TypeVar("F", bound=Fold)


class Contents(NamedTuple, Generic[F]):
    """A file that has been read: its header, what was found, and what was made of its lines."""

    header: Header
    scan: Scan
    fold: F

    def check(self, path: str) -> None:
        """Raise `CheckpointDamaged` for the first damage, if there is any."""
        for wrong in self.scan.damage:
            raise damaged(path, wrong)


def load(files: Files, fd: int, path: str, fold: F) -> Contents[F]:
    """Read a whole file into `fold`.

    Raises:
        UsageError, CheckpointDamaged: there is no header to go by; see `load_header`.
        CheckpointDamaged: a line proves itself and yet makes no sense.
    """
    header, end = load_header(files, fd, path)
    scan = Scan(salt=header.salt, proven=header.proven, start=end)
    try:
        fold.apply_all(scan.blocks(read_blocks(files, fd, end, MAX_LINE)))
    except Malformed as error:
        offset = error.offset
        line = sum(map(len, read_blocks(files, fd, 0, MAX_LINE, offset))) + 1
        raise damaged(path, Wrong(-1, line, offset, offset, f"{error}")) from None

    return Contents(header, scan, fold)


def read_line(files: Files, fd: int, path: str, salt: int, offset: int) -> dict[str, object]:
    """Return the JSON object of the line at `offset`, proved anew.

    Raises:
        CheckpointDamaged: the bytes there are no longer those that were read or written before.
    """
    line = files.read(fd, 4096, offset)
    while b"\n" not in line and (more := files.read(fd, max(4096, len(line)), offset + len(line))):
        line += more
    line = line[: line.find(b"\n") + 1]
    if unseal(line[:-1], salt) is None:
        raise damaged(path, Wrong(-1, 0, offset, offset, "a record changed after it was read"))
    try:
        return parse(line)
    except Malformed as error:
        raise damaged(path, Wrong(-1, 0, offset, offset, f"{error}")) from None
