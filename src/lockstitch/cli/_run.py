"""`lockstitch run`: a command for each line, as a batch. A resumable `xargs`.

Each command gets a session of its own, because a terminal sends Ctrl-C to everything that runs
in it: the batch lets the running commands finish after the first one, and it could not if they
had died of the same key. So the second one has to kill them by hand.
"""

from __future__ import annotations

import argparse
import errno
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, Self

from lockstitch._batch import ResumableBatch
from lockstitch._checkpoint import Checkpoint
from lockstitch._errors import ConfigMismatch, RateLimited, UsageError
from lockstitch._ids import as_id
from lockstitch._model import Limit

from ._arguments import from_arguments
from ._printing import complain

#: What a command says that could not do its work now: this very command when it is parked, and
#: EX_TEMPFAIL of sysexits.h.
_LIMITED = frozenset({2, 75})

#: Set to 1 by `lockstitch supervise` when it runs a script again; see `Checkpoint`.
RELAUNCH = "LOCKSTITCH_RELAUNCH"

#: A command that cannot be started for these reasons fails for every item alike.
_NO_COMMAND = frozenset({errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.ENOTDIR})

#: Everything in a shell's text that is not bare.
_QUOTED = re.compile(r"""\\.|'[^']*'|"(?:\\.|[^"\\])*\"""", re.DOTALL)


class CommandFailed(Exception):
    """A command of `lockstitch run` ended badly; the message says how."""


# It is stored under this name, and the module it lives in is nobody's business.
CommandFailed.__module__ = "lockstitch.cli"


class Struck(KeyboardInterrupt):
    """A signal asks this process to end at once."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def read_items(lines: Iterable[bytes], name: str) -> list[str]:
    """Return the lines that are not empty.

    Raises:
        UsageError: two lines are the same, or one cannot be an item.
    """
    seen: dict[str, int] = {}
    for number, raw in enumerate(lines, 1):
        # As the system spells file names: any bytes come through unharmed.
        item = os.fsdecode(raw.rstrip(b"\r\n"))
        if not item.strip():
            continue
        first = seen.setdefault(item, number)
        if first != number:
            raise UsageError(
                f"{name}: lines {first} and {number} are the same item, {item!r}; "
                "`sort -u` leaves one of each"
            )
        try:
            as_id(item)
        except UsageError:
            raise UsageError(
                f"{name}: line {number} has {len(item):,} characters, too long for an item"
            ) from None
        if "\0" in item:
            raise UsageError(f"{name}: line {number} holds a NUL byte; items are lines of text")

    return list(seen)


def words_for(command: list[str]) -> Callable[[str], list[str]]:
    """Return the function from an item to the words of its command.

    Raises:
        UsageError: there is no such command.
    """
    if "{}" not in command[0] and shutil.which(command[0]) is None:
        raise UsageError(f"there is no command {command[0]!r}, or it may not be run")
    template = command if any("{}" in word for word in command) else [*command, "{}"]

    return lambda item: [word.replace("{}", item) for word in template]


def shell_for(command: list[str]) -> Callable[[str], list[str]]:
    """Return the same for a line of shell.

    The item is never part of the text that the shell reads: `{}` becomes `"$1"`. Quoting the item
    instead would be undone where the text is read twice, in a here-document or `sh -c`.

    Raises:
        UsageError: there is no shell, or the line has `{}` within quotes.
    """
    if len(command) != 1:
        raise UsageError(
            "--shell takes the whole command as one word: "
            "lockstitch run CKPT --shell -- 'CMD {} | CMD'"
        )
    line, shell = command[0], shutil.which("sh")
    if shell is None:
        raise UsageError("--shell needs a command sh, and there is none")
    if "{}" not in line:
        line += " {}"
    if line.count("{}") != _QUOTED.sub(" ", line).count("{}"):
        raise UsageError(
            "--shell quotes the item itself: write {} outside of quotes, "
            'or "$1" in its place, which is the same'
        )
    text = line.replace("{}", '"$1"')

    return lambda item: [shell, "-c", text, "lockstitch", item]


class Commands:
    """Runs a command in each thread that calls it.

    Within its `with`, which is the main thread's, a signal that strikes leaves no orphan.
    """

    def __init__(self, argv: Callable[[str], list[str]], *, any_missing: bool) -> None:
        self._argv = argv
        #: A command that cannot be started is the item's error, for the item names it.
        self._any_missing = any_missing
        self._previous: dict[int, Any] = {}
        # Whether an outer run was launched again is nothing that the items have to know.
        self._environment = {key: value for key, value in os.environ.items() if key != RELAUNCH}
        self._children: set[subprocess.Popen[bytes]] = set()
        #: Held while a command is started or forgotten. The handler takes it, and may have
        #: interrupted its very holder, so it lets one thread in twice.
        self._changing = threading.RLock()
        #: The main thread itself runs a command.
        self._busy = False
        self._struck: int | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"):
                number = getattr(signal, name, None)
                # An ignored signal (nohup) stays ignored, and so does a caller's own handler.
                if number is not None and signal.getsignal(number) in (
                    signal.SIG_DFL,
                    signal.default_int_handler,
                ):
                    self._previous[number] = signal.signal(number, self._strike)

        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _strike(self, number: int, _frame: FrameType | None) -> None:
        self._struck = number
        with self._changing:
            for child in self._children:
                _kill(child)
        # While a child is being born or waited for, an exception here could lose sight of it.
        if not self._busy:
            raise Struck(number)

    def __call__(self, item: str) -> dict[str, int]:
        """Run the command of an item, and return what is stored of it.

        Raises:
            CommandFailed: it ended badly.
            RateLimited: it said "not now".
            UsageError: it cannot be run at all.
            Struck: a signal came; the command is dead.
        """
        argv = self._argv(item)
        code = self._run(argv)
        if self._struck is not None:
            raise Struck(self._struck)
        if code in _LIMITED:
            raise RateLimited(Limit(reason=f"{argv[0]} exited with {code}"))
        if code:
            raise CommandFailed(_ending(code))

        return {"returncode": code}

    def _run(self, argv: list[str]) -> int:
        here = threading.current_thread() is threading.main_thread()
        self._busy = self._busy or here
        child = None
        try:
            with self._changing:
                if self._struck is not None:
                    raise Struck(self._struck)
                child = subprocess.Popen(  # noqa: S603 - the user's own command
                    argv,
                    stdin=subprocess.DEVNULL,
                    env=self._environment,
                    start_new_session=True,
                    creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
                )
                self._children.add(child)
            if self._struck is not None:
                _kill(child)

            return child.wait()
        except OSError as error:
            if error.errno in _NO_COMMAND and not self._any_missing:
                raise UsageError(f"{argv[0]} cannot be run: {error.strerror}") from error
            raise
        finally:
            if child is not None:
                with self._changing:
                    self._children.discard(child)
            if here:
                self._busy = False


def _kill(child: subprocess.Popen[bytes]) -> None:
    if child.returncode is not None:
        return
    with suppress(ProcessLookupError):
        if hasattr(os, "killpg"):
            os.killpg(child.pid, signal.SIGKILL)
        else:
            child.kill()


def _ending(code: int) -> str:
    if code > 0:
        return f"exited with {code}"
    try:
        return f"died of {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal
        return f"died of signal {-code}"


def run(args: argparse.Namespace) -> int:
    """Do what `lockstitch run` was told; return the exit code."""
    command: list[str] = args.command
    if not command:
        raise UsageError("there is no command: lockstitch run CKPT -- CMD {}")
    argv = shell_for(command) if args.shell else words_for(command)
    if args.items == "-":
        items = read_items(sys.stdin.buffer, "standard input")
    else:
        with open(args.items, "rb") as file:
            items = read_items(file, args.items)
    config = {"command": command[0] if args.shell else shlex.join(command), "shell": args.shell}
    given = from_arguments(args)
    commands = Commands(argv, any_missing="{}" in command[0] or args.shell)
    with (
        commands,
        _opened(args, config) as checkpoint,
        ResumableBatch(checkpoint, items, **given.batch) as batch,
    ):
        batch.run(commands, **given.run)
    if batch.summary.stopped_by is None:  # any other end has been told by the batch
        complain(f"{checkpoint.path}: {batch.summary}")

    return batch.exit_code


def _opened(args: argparse.Namespace, config: dict[str, Any]) -> Checkpoint:
    """Return the checkpoint, open; the command is its config, for it changes results."""
    keep = Checkpoint(args.checkpoint, config=config, fresh=args.fresh, on_config_change="keep")
    if args.keep:
        return keep
    refuse = Checkpoint(args.checkpoint, config=config, fresh=args.fresh)
    try:
        return refuse.__enter__()
    except ConfigMismatch as mismatch:
        if all(stored is None for stored, _ in mismatch.changes.values()):
            return (
                keep  # results that were adopted, or saved by a script: no command to differ from
            )
        raise


def explained(mismatch: ConfigMismatch) -> str:
    """Return what a changed command means, in the words of the command line."""
    changes = "; ".join(f"{key}: {old} -> {new}" for key, (old, new) in mismatch.changes.items())

    return (
        f"{mismatch.path} was made with another command ({changes}). Give the old one, "
        "start over with --fresh (the old file is set aside), or keep its records with --keep"
    )
