"""Run the commands of a manifest as end-to-end tests, resumably (POSIX).

    python examples/e2e_batch.py --concurrency 4

A test is one real command that takes minutes and costs something. Its answer is "pass", or "fail"
for an exit code other than 0; a test that could not start or took too long is an "error". Whatever
has a record is not run again, however this script was ended.

Exit codes: 0 all pass; 1 some fail or error; 2 limited, run it again later; 64 wrong usage. Ctrl-C
finishes the running tests and then ends the script as it ends any other (130 in a shell); a second
Ctrl-C kills the running tests, which stay pending. Killed outright (kill -9), the script cannot
take the running tests with it: these go on to their end, and the next start runs them again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import threading
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, NoReturn

from lockstitch import (
    Checkpoint,
    Limit,
    LockstitchError,
    RateLimitGuard,
    Record,
    ResumableBatch,
    current_attempt,
)

#: Seconds to wait for the last output of a test whose processes are all killed. Only a process
#: that left the group can hold the pipe longer, and it must not hold the batch.
LAST_OUTPUT = 5.0


@dataclass(frozen=True)
class Test:
    """One entry of the manifest; `timeout` in seconds."""

    name: str
    command: tuple[str, ...]
    timeout: float


class ManifestError(ValueError):
    """The manifest is wrong; says where, and what to write instead."""


def read_manifest(path: Path) -> list[Test]:
    """Return the tests of a manifest, in its order."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path}: {error}") from error

    tables = content.get("tests")
    if not isinstance(tables, dict) or not tables:  # no test must not look like "all pass"
        raise ManifestError(f"{path}: it has no tests; each is a table, such as [tests.login]")

    return [read_test(f"{path}: [tests.{name}]", name, table) for name, table in tables.items()]


def read_test(where: str, name: str, table: Any) -> Test:
    """Return one test of a manifest."""
    if not isinstance(table, dict):
        raise ManifestError(f"{where} needs to be a table")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ManifestError(f"{where} names a log file: use letters, digits, '.', '_' and '-'")
    if unknown := sorted(table.keys() - {"command", "timeout"}):
        raise ManifestError(f"{where} has an unknown {unknown[0]!r}; known: 'command', 'timeout'")
    command, timeout = table.get("command"), table.get("timeout")
    if not isinstance(command, list) or not command or {type(part) for part in command} != {str}:
        raise ManifestError(f"{where} needs a command: a list of texts, the program first")
    if "" in command:
        # Nearly always a variable that came out empty, and many programs take it for ".".
        raise ManifestError(f"{where}: argument {command.index('')} of command is empty; remove it")
    if not isinstance(timeout, (int, float)) or not timeout > 0:
        raise ManifestError(f"{where} needs a timeout: a number of seconds above 0")

    return Test(name, tuple(command), timeout)


class StatusFileGuard(RateLimitGuard):
    """Holds the batch back for as long as a status file says so.

    The file is JSON: `{"resume_at": "2030-01-01T00:00:00Z", "reason": "deployment"}`. Any other
    source of "not now" looks the same: a quota, a maintenance window, a spent budget.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        #: The last answer, for the message at the end.
        self.limit: Limit | None = None

    def check(self) -> Limit | None:
        """Return the limit in the file; None if there is no file, or its time is over."""
        self.limit = None
        with suppress(FileNotFoundError):
            status = json.loads(self._path.read_text(encoding="utf-8"))
            resume_at = datetime.fromisoformat(status["resume_at"])
            if resume_at > datetime.now(UTC):
                self.limit = Limit(resume_at, reason=status["reason"])

        return self.limit


@dataclass(frozen=True)
class Log:
    """The log of one test. It is only ever appended to: each run adds to what is there."""

    path: Path
    test: str
    run: int

    def write(self, text: str) -> None:
        """Append a text, each of its lines with where it comes from in front."""
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            for line in text.splitlines() or [""]:
                file.write(f"run {self.run} | {self.test} | {at} | {line}\n")

    def copy(self, lines: IO[str]) -> None:
        """Append what a command writes, as it comes, until it closes its output."""
        with lines:
            for line in lines:
                self.write(line)


class Runner:
    """Runs tests, several at once if need be; none of their processes outlives it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False
        self._lock = threading.Lock()

    def run(self, test: Test, log: Log) -> int:
        """Run a test's command; return its exit code.

        However this ends, no process of the test's group is left.

        Raises:
            OSError: it could not be started, it took too long, or Ctrl-C reached it.
        """
        command = [part.replace("{python}", sys.executable) for part in test.command]
        log.write(f"$ {' '.join(command)}")
        process = self._start(command)
        output = threading.Thread(target=log.copy, args=[process.stdout], daemon=True)
        output.start()
        try:
            code = process.wait(test.timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"not finished after {test.timeout:g} s") from None
        finally:  # the end, the timeout, or a second Ctrl-C
            kill_group(process)
            self._running.discard(process)
            output.join(LAST_OUTPUT)
        if code == -signal.SIGINT or self._stopped:
            # Either Ctrl-C came in the moment before the session was new, or `stop` has killed it.
            # What is raised after a stop request is not booked, so the test is pending; as an exit
            # code it would be a "fail".
            raise InterruptedError("interrupted")

        return code

    def _start(self, command: Sequence[str]) -> subprocess.Popen[str]:
        with self._lock:  # or `stop` could miss one that begins at this moment
            if self._stopped:
                raise InterruptedError("interrupted")
            process = subprocess.Popen(
                command,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,  # a test that asks a question gets "end of file"
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="backslashreplace",
                # A terminal sends Ctrl-C to its whole foreground group. The test would die of it
                # and be booked as failed, while the batch wants to let it finish: so it gets a
                # group of its own.
                start_new_session=True,
            )
            self._running.add(process)

        return process

    def stop(self) -> None:
        """Kill what runs, in whatever thread, and start nothing more."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            kill_group(process)


def kill_group(process: subprocess.Popen[str]) -> None:
    """Kill a process that leads its group, and all it has started and left behind."""
    with suppress(ProcessLookupError):  # as a rule it has ended, and so has all it started
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_all(batch: ResumableBatch[Test], runner: Runner, logs: Path, concurrency: int) -> None:
    """Run what is pending and print a line for each test."""
    begun: set[str] = set()

    def run(test: Test) -> None:
        attempt = current_attempt()
        assert attempt is not None  # the batch calls this, and nobody else
        begun.add(test.name)
        log = Log(logs / f"{test.name}.log", test.name, attempt.run)
        try:
            code = runner.run(test, log)
        except OSError as error:  # TimeoutError is one
            log.write(f"error: {error}")
            raise  # the attempt books it
        log.write(f"exit code {code}")
        attempt.save({"exit_code": code}, status="fail" if code else "pass")

    try:
        for record in batch.map(run, concurrency=concurrency):
            if record.id in begun:  # the records of earlier runs come by, too
                print(f"{record.status:<6} {record.id}  {record.seconds or 0:.1f} s", flush=True)
    finally:  # after a second Ctrl-C there are tests that still run
        runner.stop()


def report(records: Sequence[Record], logs: Path) -> None:
    """Print what did not pass, and where to read about it."""
    for record in records:
        if record.status != "pass":
            why = (
                record.error.summary if record.error else f"exit code {record.result['exit_code']}"
            )
            print(f"{record.status:<6} {record.id}  {why}; see {logs / record.id}.log")


def clean_up(checkpoint: Path, logs: Path, tests: Sequence[Test]) -> None:
    """Remove the checkpoint, its lock and the tests' logs; say so first."""
    if checkpoint.exists():
        with Checkpoint(checkpoint):
            pass  # refuses while another process runs the batch
    files = [checkpoint, Path(f"{checkpoint}.lock"), *(logs / f"{test.name}.log" for test in tests)]
    for file in files:
        if file.exists():
            print(f"removing {file}", flush=True)
            file.unlink()
    if logs.is_dir() and not any(logs.iterdir()):
        logs.rmdir()


class Parser(argparse.ArgumentParser):
    """Exits with 64 for wrong usage: argparse's own 2 means "run it again" here."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and exit."""
        self.exit(64, f"{self.prog}: {message}\n")


def parser() -> Parser:
    """Return the parser of the command line."""
    here = Path(__file__).parent
    parser = Parser(description="Run end-to-end tests, resumably.")
    parser.add_argument("--manifest", type=Path, default=here / "e2e.toml", metavar="FILE")
    parser.add_argument("--checkpoint", type=Path, default=Path("e2e.jsonl"), metavar="FILE")
    parser.add_argument("--logs", type=Path, default=Path("e2e-logs"), metavar="DIR")
    parser.add_argument("--tests", nargs="+", metavar="NAME", help="only these")
    parser.add_argument(
        "--concurrency", type=int, default=1, metavar="N", help="run so many tests at a time"
    )
    parser.add_argument("--status-file", type=Path, metavar="FILE", help="holds the batch back")
    parser.add_argument(
        "--max-wait",
        type=float,
        default=0.0,  # a scheduler starts this script again; it need not sit here and wait
        metavar="SECONDS",
        help="wait so long for the status file, and exit with 2 if it takes longer (default: 0)",
    )
    parser.add_argument("--retry-errors", action="store_true", help="run tests with an error again")
    parser.add_argument("--fresh", action="store_true", help="run all; the old checkpoint is kept")
    parser.add_argument(
        "--keep-results", action="store_true", help="the manifest has changed: keep what is done"
    )
    parser.add_argument(
        "--cleanup", action="store_true", help="remove checkpoint, lock and logs, and run nothing"
    )

    return parser


def run(args: argparse.Namespace, tests: Sequence[Test]) -> int:
    """Run the batch and return the exit code."""
    selected = [test for test in tests if not args.tests or test.name in args.tests]
    if args.cleanup:
        clean_up(args.checkpoint, args.logs, tests)
        return 0
    guard = StatusFileGuard(args.status_file) if args.status_file else None
    args.logs.mkdir(parents=True, exist_ok=True)
    checkpoint = Checkpoint(
        args.checkpoint,
        # What changes results: the commands, all of them and as they are written, so that neither
        # --tests nor another path of Python makes a difference. Not the timeouts: raising one is
        # what people do before they say --retry-errors.
        config={"commands": {test.name: list(test.command) for test in tests}},
        on_config_change="keep" if args.keep_results else "refuse",
        fresh=args.fresh,
    )
    with ResumableBatch(
        checkpoint,
        selected,
        key="name",
        redo="error" if args.retry_errors else None,
        guard=guard,
        max_wait=args.max_wait,
    ) as batch:
        run_all(batch, Runner(args.manifest.parent), args.logs, args.concurrency)
    records = [record for test in selected if (record := checkpoint.get(test.name))]
    report(records, args.logs)
    print(f"{guard.limit}; run this again then" if guard and guard.limit else batch.summary)
    if batch.exit_code == 0 and any(record.status == "fail" for record in records):
        return 1  # to the library "fail" is an answer like any other

    return batch.exit_code


def main() -> int:
    """Check the arguments, and run."""
    line = parser()
    args = line.parse_args()
    try:
        tests = read_manifest(args.manifest)
        names = [test.name for test in tests]
        if unknown := [name for name in args.tests or () if name not in names]:
            line.error(f"no test {unknown[0]!r} in {args.manifest}; it has {', '.join(names)}")
        return run(args, tests)
    except (ManifestError, LockstitchError) as error:
        line.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
