"""The parser of the command, and what its exit codes mean."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import metadata
from typing import NoReturn

from lockstitch._errors import (
    CheckpointDamaged,
    CheckpointLocked,
    ConfigMismatch,
    DurabilityUnknown,
    LockstitchError,
    SerializationFailed,
    UsageError,
)
from lockstitch._printable import printable

from . import _doctor, _keeping, _looking, _run, _supervise, _waiting
from ._arguments import add_policy_arguments, number_from
from ._printing import complain, warnings_shown

#: sysexits.h, so that a script can tell a wrong call from work that went badly. Never 1 or 2:
#: those are answers of a batch. The first that fits counts.
_EXIT_CODES: tuple[tuple[type[Exception], int], ...] = (
    (UsageError, 64),
    (CheckpointDamaged, 65),
    (SerializationFailed, 65),
    (_keeping.BadInput, 65),
    (FileNotFoundError, 66),
    (DurabilityUnknown, 74),
    (OSError, 74),
    (CheckpointLocked, 75),
    (ConfigMismatch, 78),
    (LockstitchError, 70),
)
_EXPECTED = tuple(kind for kind, _ in _EXIT_CODES)

_EXITS = """\
exit codes:
  run: 0 all done, 1 done with errors, 2 not done (limited, or out of time): run it again
  wait: 0 go on, 66 nothing is parked;  supervise: that of the command
  verify: 1 damaged;  doctor: 1 there are limits
  64 wrong call, 65 damaged or unfit data, 66 no such file, 74 disk error,
  75 in use by another run, 78 made with another command"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """As argparse does it, but exit with 64: 2 is an answer of a batch."""
        self.print_usage(sys.stderr)
        self.exit(64, f"{self.prog}: {printable(message)}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with `argv` (default: that of the process), and return its exit code.

    A wrong call raises `SystemExit(64)`. An interrupt ends the process by that very signal.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    args = _parsed(words)
    act: Callable[[argparse.Namespace], int] = args.act
    try:
        with warnings_shown():
            code = act(args)
            if sys.stdout is not None:
                sys.stdout.flush()  # here, and not at exit, where nobody could catch a broken pipe
    except BrokenPipeError:
        _drop_output()
        return 128 + 13  # what a shell shows for a death of SIGPIPE
    except KeyboardInterrupt as interrupt:
        return _die_of(getattr(interrupt, "number", signal.SIGINT))
    except _EXPECTED as error:
        complain(_text(error))
        _drop_output()  # it may be the output that failed
        return next(code for kind, code in _EXIT_CODES if isinstance(error, kind))

    return code


def _text(error: Exception) -> str:
    if isinstance(error, ConfigMismatch):
        return _run.explained(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"

    return str(error)


def _drop_output() -> None:
    """Let what is still buffered go nowhere, so that the interpreter does not complain at exit."""
    with suppress(OSError), open(os.devnull, "wb") as nowhere:  # no descriptor: nothing to drop
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _die_of(number: int) -> int:
    """End as a program without handlers would, so that a calling shell stops its loop too."""
    sys.stdout.flush()
    _no_core()
    with suppress(OSError):  # SIGKILL takes no handler
        signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)

    return 128 + number  # where the signal is blocked


def _no_core() -> None:
    """Dump no core: it would take the place of the one that a supervised command has left."""
    with suppress(ImportError, OSError, ValueError):
        import resource  # noqa: PLC0415 - not on Windows

        _, hard = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (0, hard))


#: The verbs that take a command, and how they are called.
_WITH_COMMAND = {
    "run": "lockstitch run CKPT -- CMD {}",
    "supervise": "lockstitch supervise CKPT -- CMD",
}


def _parsed(words: list[str]) -> argparse.Namespace:
    # Cut by hand: argparse would take the options of a command for its own, and a `--` out of it.
    command: list[str] | None = None
    usage = _WITH_COMMAND.get(words[0]) if words else None
    if usage and "--" in words:
        cut = words.index("--")
        words, command = words[:cut], words[cut + 1 :]
    parser = _parser()
    args, rest = parser.parse_known_args(words)
    if rest and command is None and usage:
        parser.error(f"put -- before the command: {usage}")
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    args.command = command

    return args


def _parser() -> _Parser:
    parser = _Parser(
        prog="lockstitch",
        description="Run commands as a resumable batch, and look after checkpoints.",
        epilog=_EXITS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=_version())
    verbs = parser.add_subparsers(required=True, metavar="VERB", title="verbs")

    def verb(
        name: str, act: Callable[[argparse.Namespace], int], help: str, description: str = ""
    ) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=help, description=description or f"{help}.")
        made.set_defaults(act=act)
        made.add_argument("checkpoint", metavar="CKPT", help="the checkpoint's file")

        return made

    _add_run(verb("run", _run.run, "run a command for every line of input", _RUN))
    verb("wait", _waiting.wait, "sleep until the parked run may go on", _WAIT)
    _add_supervise(
        verb("supervise", _supervise.supervise, "run a script until it is done", _SUPERVISE)
    )
    each = verb("show", _looking.show, "print what a checkpoint holds, also beside a live run")
    each.add_argument("--errors", action="store_true", help="group the errors by their message")
    _add_export(verb("export", _looking.export, "write one row per record"))
    verb("verify", _looking.verify, "check every line; exit with 1 if stored bytes are damaged")
    verb(
        "doctor",
        _doctor.doctor,
        "say what a path can promise; exit with 1 if not all",
        _DOCTOR,
    )
    verb("repair", _keeping.repair, "keep every intact record, and put damaged bytes aside")
    verb("compact", _keeping.compact, "rewrite the file without superseded lines")
    each = verb("forget", _keeping.forget, "drop what is known of items, so that they run again")
    each.add_argument("ids", nargs="*", metavar="ID")
    each.add_argument("--status", help="all items of this status")
    _add_adopt(verb("adopt", _keeping.adopt, "take in results from before"))
    each = verb("clean", _keeping.clean, "delete old, torn and damaged files beside a checkpoint")
    each.add_argument("--all", action="store_true", help="the checkpoint itself, too")
    each.add_argument("--yes", action="store_true", help="do not ask")

    return parser


_RUN = (
    "Run CMD once for every line of input that has not been finished yet. {} stands for the line; "
    "without it, the line is the last argument. A command that exits with 2 or 75 says `not now` "
    "and is tried again later; with any other code but 0, it has failed. Commands read nothing "
    "from standard input and have no terminal. Ctrl-C lets what runs finish, a second one kills it."
)

_WAIT = (
    "Sleep until the run that is parked in CKPT may go on, and exit with 0; exit with 66 when the "
    "last run is not parked."
)

_DOCTOR = (
    "Look at the file system, the folder and the lock at CKPT, which need not exist and may be a "
    "folder: try them out on files of its own, which are removed again, and say what was found, "
    "what it means and what to do. Exit with 1 when something that is promised does not hold there."
)

_SUPERVISE = (
    "Run CMD, and run it again whenever it has exited with 2 and its batch, whose checkpoint is "
    "CKPT, is parked, as soon as the limit is over. Any other end is passed on. When CMD is run "
    "again, LOCKSTITCH_RELAUNCH=1 is in its environment, and `fresh` and `redo` do nothing. Ctrl-C "
    "and SIGTERM are passed on to CMD."
)


def _add_supervise(parser: argparse.ArgumentParser) -> None:
    parser.usage = "lockstitch supervise CKPT [--max-restarts N] -- CMD [ARG ...]"
    parser.add_argument(
        "--max-restarts",
        type=number_from(0),
        default=1000,
        metavar="N",
        help="run it again so often at most (default: %(default)s)",
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "lockstitch run CKPT [-a FILE] [-j N] [--fresh | --retry-errors [MATCH]]\n"
        "                      [--max-wait SECONDS] [--progress] [--keep] [--shell]\n"
        "                      -- CMD [ARG ...]"
    )
    parser.add_argument(
        "-a",
        "--arg-file",
        dest="items",
        default="-",
        metavar="FILE",
        help="where the lines are",
    )
    add_policy_arguments(parser, "-j")
    parser.add_argument(
        "--keep",
        action="store_true",
        help="the command is another one than before: keep the records all the same",
    )
    parser.add_argument(
        "--shell",
        action="store_true",
        help="CMD is one word, a line for sh; {} in it is quoted for you",
    )


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", choices=("jsonl", "json", "csv"), default="jsonl")
    parser.add_argument("-o", "--output", metavar="FILE", help="where to write")
    parser.add_argument(
        "--raw", action="store_true", help="csv: leave control characters of texts as they are"
    )


def _add_adopt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="JSON Lines; CSV if its name ends in .csv")
    parser.add_argument("--key", required=True, metavar="FIELD", help="the field that is the id")
    parser.add_argument("--status", default="ok", help="of the new records (default: %(default)s)")


def _version() -> str:
    try:
        return f"lockstitch {metadata.version('lockstitch')}"
    except metadata.PackageNotFoundError:  # run from a source tree
        return "lockstitch (not installed)"
