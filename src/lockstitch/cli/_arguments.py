"""The options of a resumable script, for users' own parsers and for `lockstitch run`."""

from __future__ import annotations

import argparse
from typing import Any

import attrs

from lockstitch._errors import UsageError
from lockstitch._input import Redo
from lockstitch._model import Record, to_seconds


@attrs.frozen
class Arguments:
    """Keyword arguments for the two classes that a script builds its batch of."""

    #: For `Checkpoint`: `path` and `fresh`.
    checkpoint: dict[str, Any]
    #: For `ResumableBatch`: `redo` and `max_wait`.
    batch: dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser, *, checkpoint: str | None = None) -> None:
    """Give a parser `--checkpoint`, `--fresh`, `--retry-errors [MATCH]` and `--max-wait SECONDS`.

    `checkpoint` is the path when `--checkpoint` is not given; without it, it must be given.
    """
    group = parser.add_argument_group("resuming")
    group.add_argument(
        "--checkpoint",
        metavar="FILE",
        default=checkpoint,
        required=checkpoint is None,
        help="where finished items are recorded"
        + ("" if checkpoint is None else " (default: %(default)s)"),
    )
    add_policy_arguments(group)


def add_policy_arguments(parser: argparse._ActionsContainer) -> None:
    """Give a parser `--fresh`, `--retry-errors [MATCH]` and `--max-wait SECONDS`."""
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument(
        "--fresh", action="store_true", help="start over; the old file is set aside as FILE.old-1"
    )
    begin.add_argument(
        "--retry-errors",
        nargs="?",
        const="",
        metavar="MATCH",
        help="run failed items again: all, or those with one of these words "
        "(separated by commas) in the error's type or message",
    )
    parser.add_argument(
        "--max-wait",
        type=_seconds,
        default=600.0,
        metavar="SECONDS",
        help="wait for a rate limit up to so long, and stop at a longer one (default: %(default)g)",
    )


def from_arguments(args: argparse.Namespace) -> Arguments:
    """Return what `add_arguments` put into the parsed arguments, as keyword arguments.

    ```python
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    a = from_arguments(parser.parse_args())
    with ResumableBatch(Checkpoint(**a.checkpoint), cases, key="id", **a.batch) as batch:
        ...
    ```

    Add your own to either: `Checkpoint(**a.checkpoint, config={...})`.
    """
    return Arguments(
        checkpoint={"path": args.checkpoint, "fresh": args.fresh},
        batch={"redo": errors_with(args.retry_errors), "max_wait": args.max_wait},
    )


def errors_with(match: str | None) -> Redo | None:
    """Return the `redo=` that `--retry-errors [MATCH]` stands for; None when it was not given."""
    if match is None:
        return None
    words = [word.strip().casefold() for word in match.split(",") if word.strip()]
    if not words:
        return "error"

    def matches(record: Record) -> bool:
        if record.status != "error" or record.error is None:
            return False
        text = f"{record.error.type}\n{record.error.message}".casefold()

        return any(word in text for word in words)

    return matches


def _seconds(text: str) -> float:
    try:
        return to_seconds(float(text), "it")
    except (ValueError, UsageError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of seconds, 0 or more"
        ) from None
