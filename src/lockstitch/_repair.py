"""What is wrong with a file, and how to go on with what is left of it."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator

import attrs

from ._clock import CLOCK
from ._errors import CheckpointDamaged
from ._files import Files, discard, read_blocks, read_lines
from ._frames import MAX_LINE, Scan, Wrong, strip_seal, unseal
from ._journal import Storage
from ._ledger import Ledger
from ._publish import keep_aside, new_salt, write_new
from ._reading import find_salts, load_header, refuse_special
from ._records import (
    Header,
    Malformed,
    error_from,
    instant,
    iso,
    kind_of,
    numbers_from,
    parse,
)


@attrs.frozen
class Verification:
    """What a file was found to hold."""

    path: str
    #: Valid lines, the header not counted.
    lines: int
    #: Finished items.
    items: int
    #: How many of the lines had provably been on the disk.
    proven: int
    #: What is wrong with stored bytes.
    damage: tuple[Wrong, ...]
    #: What a crash (or a writer that is at it right now) leaves at the end.
    torn: tuple[Wrong, ...]
    #: Where `repair` has put the damaged bytes.
    aside: str | None = None

    @property
    def ok(self) -> bool:
        """True when nothing that had been stored is damaged."""
        return not self.damage

    def __str__(self) -> str:
        verdict = "ok" if self.ok else "DAMAGED"
        told = [f"{self.path}: {self.items} items in {self.lines} lines, {verdict}"]
        told += [
            f"  line {wrong.line} (byte {wrong.start}): {wrong.reason}" for wrong in self.damage
        ]
        told += [
            f"  torn: line {wrong.line} (byte {wrong.start}): {wrong.reason}" for wrong in self.torn
        ]
        if self.aside:
            told.append(f"  the damaged bytes are in {self.aside}")

        return "\n".join(told)


def _read(files: Files, fd: int, header: Header, start: int) -> tuple[Scan, Ledger, list[bytes]]:
    """Return what was found, and the fold and the list of every intact line, in their order."""
    scan = Scan(salt=header.salt, proven=header.proven, start=start)
    intact: dict[int, tuple[int, int, bytes]] = {}

    def notice(blocks: Iterable[list[bytes]]) -> Iterator[list[bytes]]:
        # A line that stands in the wrong place is whole all the same: one that was moved to the
        # top would otherwise cost all those that it has overtaken.
        number, offset = 1, start
        for lines in blocks:
            for line in lines:
                number += 1
                found = unseal(line[:-1], header.salt)
                if found is not None and line[-1:] == b"\n":
                    intact.setdefault(found[0], (number, offset, line))
                offset += len(line)
            yield lines

    for _ in scan.frames(notice(read_blocks(files, fd, start, MAX_LINE))):
        pass
    ledger, good, end = Ledger(), [], start
    for _, (number, offset, line) in sorted(intact.items()):
        try:
            _check_item(line)
            ledger.apply(end, line)
        except Malformed as error:
            scan.wrong.append(Wrong(-1, number, offset, offset + len(line), f"{error}"))
        else:
            good.append(line)
            end += len(line)

    return scan, ledger, good


def _check_item(line: bytes) -> None:
    """Read an item's record to its end, which opening does not: it leaves results in the file."""
    if kind_of(line) == "id":
        data = parse(line)
        error_from(data.get("error"))
        numbers_from(data)


def _report(path: str, scan: Scan, ledger: Ledger, lines: int) -> Verification:
    damage = scan.damage

    return Verification(
        path=path,
        lines=lines,
        items=len(ledger.index),
        proven=scan.proven,
        damage=tuple(damage),
        torn=tuple(wrong for wrong in scan.wrong if wrong not in damage),
    )


def verify(path: str, storage: Storage) -> Verification:
    """See `Checkpoint.verify`."""
    files = storage.files
    fd = files.open_read(path)
    try:
        refuse_special(files, fd, path)
        header, start = load_header(files, fd, path)
        scan, ledger, good = _read(files, fd, header, start)
    except CheckpointDamaged as error:
        wrong = Wrong(-1, error.line, error.offset, error.offset, error.reason)
        return Verification(path, 0, 0, 0, (wrong,), ())
    finally:
        files.close(fd)

    return _report(path, scan, ledger, len(good))


def repair(path: str, storage: Storage) -> Verification:
    """See `Checkpoint.repair`."""
    files, lock = storage.files, storage.lock(path)
    lock.acquire()
    try:
        fd = files.open_read(path)
        try:
            report, temporary = _repair_open(path, files, fd)
        finally:
            files.close(fd)  # before the replace: Windows replaces no file that is open
        if temporary is None:
            return report
        try:
            files.replace(temporary, path)
        except BaseException:
            discard(files, temporary)
            raise
        files.sync_directory(path)
    finally:
        lock.release()

    return report


def _repair_open(path: str, files: Files, fd: int) -> tuple[Verification, str | None]:
    """Return the report, and the name of the file that is to take the place of this one."""
    refuse_special(files, fd, path)
    lost: list[Wrong] = []
    try:
        header, start = load_header(files, fd, path)
    except CheckpointDamaged as error:
        header, start = _rebuild_header(files, fd, error)
        lost = [Wrong(-1, 1, 0, start, error.reason)]
    scan, ledger, good = _read(files, fd, header, start)
    scan.wrong[:0] = lost
    report = _report(path, scan, ledger, len(good))
    if not scan.wrong:
        return report, None
    aside = keep_aside(files, fd, path, scan.wrong, "damaged", whole_lines=False)
    fresh = header._replace(salt=new_salt(), proven=len(good))
    temporary = write_new(files, path, fresh, map(strip_seal, good), files.stat(fd))

    return attrs.evolve(report, aside=aside), temporary


def _rebuild_header(files: Files, fd: int, error: CheckpointDamaged) -> tuple[Header, int]:
    """Make a header of what the other lines repeat of it."""
    salt = next(find_salts(files, fd), None)
    if salt is None:
        raise error
    first = next(read_lines(files, fd, 0, MAX_LINE))
    header = Header(str(uuid.uuid4()), iso(CLOCK.get().wall()), "json", {}, salt)
    told = {**_told_by_runs(files, fd, len(first), salt), **_remains(first)}
    serializer, config = told.get("serializer"), told.get("config")
    created = told.get("created_at")

    return (
        header._replace(
            batch=str(told.get("batch", header.batch)),
            created_at=str(created) if instant(created) else header.created_at,
            serializer=serializer if isinstance(serializer, str) else "json",
            config=config if isinstance(config, dict) else {},
        ),
        len(first),
    )


def _remains(line: bytes) -> dict[str, object]:
    """Return what a line still says, if it is still JSON."""
    try:
        return parse(line)
    except Malformed:
        return {}


def _told_by_runs(files: Files, fd: int, start: int, salt: int) -> dict[str, object]:
    told: dict[str, object] = {}
    scan = Scan(salt=salt, proven=0, start=start)
    lines = scan.frames(read_blocks(files, fd, start, MAX_LINE))
    for _, line in lines:
        if line.startswith(b'{"run":'):
            said = _remains(line)
            told.update({key: said[key] for key in ("batch", "config") if key in said})

    return told
