"""The options of a resumable script, for users' own parsers and for `lockstitch run`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import attrs

from lockstitch._errors import UsageError
from lockstitch._input import Redo
from lockstitch._model import Record, to_seconds


@attrs.frozen
class Arguments:
    """Keyword arguments for the three calls that a script makes a batch of."""

    #: For `Checkpoint`: `path` and `fresh`.
    checkpoint: dict[str, Any]
    #: For `ResumableBatch`: `redo`, `max_wait` and `progress`.
    batch: dict[str, Any]
    #: For `run`, `map`, `arun` or `amap`: `concurrency`.
    run: dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser, *, checkpoint: str | None = None) -> None:
    """Give a parser the options of a resumable script.

    They are `--checkpoint`, `--fresh`, `--retry-errors [MATCH]`, `--max-wait SECONDS`,
    `--concurrency N` and `--progress`.

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


def add_policy_arguments(parser: argparse._ActionsContainer, *short: str) -> None:
    """Give a parser all of them but `--checkpoint`; `short` is short for `--concurrency`."""
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
    parser.add_argument(
        *short,
        "--concurrency",
        type=number_from(1),
        default=1,
        metavar="N",
        help="work on so many items at a time (default: %(default)s)",
    )
    parser.add_argument(
        "--progress", action="store_true", help="show how far it is: a bar, or a line now and then"
    )


def from_arguments(args: argparse.Namespace) -> Arguments:
    """Return what `add_arguments` put into the parsed arguments, as keyword arguments.

    ```python
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    a = from_arguments(parser.parse_args())
    with ResumableBatch(Checkpoint(**a.checkpoint), cases, key="id", **a.batch) as batch:
        batch.run(evaluate, **a.run)
    ```

    Add your own to either: `Checkpoint(**a.checkpoint, config={...})`.
    """
    return Arguments(
        checkpoint={"path": args.checkpoint, "fresh": args.fresh},
        batch={
            "redo": errors_with(args.retry_errors),
            "max_wait": args.max_wait,
            # Where tqdm is missing, lines will do.
            "progress": "auto" if args.progress else False,
        },
        run={"concurrency": args.concurrency},
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


def number_from(least: int) -> Callable[[str], int]:
    """Return the argparse type of whole numbers that are `least` or more."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least}")

        return int(text)

    return number


def _seconds(text: str) -> float:
    try:
        return to_seconds(float(text), "it")
    except (ValueError, UsageError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of seconds, 0 or more"
        ) from None
