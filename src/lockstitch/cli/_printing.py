"""What the command prints. Nothing reaches a terminal past `printable`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from lockstitch._printable import printable


def say(line: str) -> None:
    """Print one line to standard output."""
    _write(sys.stdout, line)


def complain(line: str) -> None:
    """Print one line to standard error, with the name of the command in front."""
    with suppress(OSError):  # nobody listens: no reason to stop, and no way to say so
        _write(sys.stderr, f"lockstitch: {line}")


def _write(stream: TextIO | None, line: str) -> None:
    if stream is None:  # started with the descriptor closed
        return
    # Where the locale has no letter for it, an escape is better than a traceback.
    encoding = stream.encoding or "utf-8"
    text = printable(line).encode(encoding, "backslashreplace").decode(encoding)
    stream.write(f"{text}\n")
    stream.flush()


def listed(ids: Iterable[str], most: int) -> str:
    """Return the first few ids for a message, and whether there are more."""
    every = list(ids)

    return ", ".join(map(repr, every[:most])) + (", …" if len(every) > most else "")


def count(number: int, noun: str) -> str:
    """Return `1 item`, `1,200 items`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


class _Complaints(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        complain(self.format(record))


@contextmanager
def warnings_shown() -> Iterator[None]:
    """Print the library's warnings as the command's own, for the length of the `with`."""
    logger, handler = logging.getLogger("lockstitch"), _Complaints(logging.WARNING)
    before = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = before
