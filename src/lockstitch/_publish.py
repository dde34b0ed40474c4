"""Whole files: write a new one beside the old, put an old one out of the way.

The one order that is safe at every step: temporary file in the same folder, write, sync, rename,
sync the folder. Every complete file a checkpoint ever becomes goes through `write_new`.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterable

from ._clock import CLOCK
from ._errors import UsageError
from ._files import Files, discard, temporary_name, write_all
from ._frames import Wrong, seal
from ._records import Header, iso

logger = logging.getLogger("lockstitch")

#: Bytes per write.
_BLOCK = 1 << 20


def new_salt() -> int:
    """Return a salt that no other file is likely to have."""
    return secrets.randbelow((1 << 32) - 1) + 1


def write_new(
    files: Files, path: str, header: Header, payloads: Iterable[bytes], like: os.stat_result | None
) -> str:
    """Write header and records to a new file beside `path`; return its name once it is synced.

    If this raises, the new file is gone again.
    """
    temporary = temporary_name(path)
    fd = files.create(temporary, 0o600)
    try:
        if like is not None:
            files.copy_owner(fd, like)
        batch, size = [header.line()], 0
        for n, payload in enumerate(payloads, start=1):
            batch.append(seal(payload, n, n - 1, header.salt))
            size += len(batch[-1])
            if size >= _BLOCK:
                write_all(files, fd, b"".join(batch))
                batch, size = [], 0
        write_all(files, fd, b"".join(batch))
        files.sync(fd)
    except BaseException:
        files.close(fd)
        discard(files, temporary)
        raise
    files.close(fd)

    return temporary


def create(files: Files, path: str, header: Header) -> None:
    """Create a checkpoint without records; raises `FileExistsError` and never replaces a file."""
    temporary = write_new(files, path, header, (), None)
    try:
        files.link_new(temporary, path)
    except BaseException:
        discard(files, temporary)
        raise
    files.sync_directory(path)


def set_aside(files: Files, path: str) -> str | None:
    """Rename a file to `<path>.old-1` or the next free number; None if there is no file."""
    for number in range(1, 10_000):
        aside = f"{path}.old-{number}"
        try:
            files.link_new(path, aside)
        except FileExistsError:
            continue
        except FileNotFoundError:
            return None
        files.sync_directory(path)
        logger.info("%s was set aside as %s", path, aside)

        return aside
    raise UsageError(f"{path}: 9,999 old files lie beside it; move some away first")


def keep_aside(
    files: Files,
    fd: int,
    path: str,
    wrongs: Iterable[Wrong],
    name: str,
    *,
    whole_lines: bool = True,
) -> str | None:
    """Copy the bytes of `wrongs` to `<path>.<name>-<time>`; return its name, None if not needed.

    With `whole_lines`, a rest without a complete line is not worth a file.
    """
    raw = b"".join(files.read(fd, wrong.stop - wrong.start, wrong.start) for wrong in wrongs)
    if not raw or (whole_lines and b"\n" not in raw):
        return None
    moment = iso(CLOCK.get().wall()).replace(":", "").replace("-", "")
    aside = f"{path}.{name}-{moment}-{secrets.token_hex(2)}"
    copy = files.create(aside, 0o600)
    try:
        write_all(files, copy, raw)
        files.sync(copy)
    finally:
        files.close(copy)
    files.sync_directory(path)

    return aside
