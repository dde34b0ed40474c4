"""The command: `python -m tests.mutants [--jobs N] [NAME ...]`.

Each mutant gets a copy of the sources, a fresh process and a folder of its own. First the tests
run that are expected to notice, and if they do not, the whole core of the suite. Before all that,
the unchanged sources must pass: where they do not, a failure says nothing.

A harness error looks exactly like a kill or a survival. Only a test that ran and failed is a kill;
everything else that is no clean pass is an error, and is told as one.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs

from .access import ACCESS
from .damage import DAMAGE
from .done import DONE
from .durability import DURABILITY
from .limits import LIMITS
from .mutant import SOURCE, Mutant
from .witness import REPORT
from .witness import SOURCE as UNDER_TEST

ROOT = SOURCE.parent
MUTANTS = (*DURABILITY, *DAMAGE, *ACCESS, *DONE, *LIMITS)

#: What says nothing about the promises that are broken here, or takes too long to ask: the
#: command, the examples, other people's clients, and the mutants themselves.
_NOT_CORE = ("benchmarks", "cli", "cli_supervise", "clients", "examples", "llm_example", "mutants")

#: Seconds for one run of pytest; a test that hangs ends with it, and is an error.
_PATIENCE = 900


@attrs.frozen
class Verdict:
    """What became of one mutant."""

    #: "killed", "survived" or "error".
    word: str
    #: The test that noticed, or what went wrong.
    why: str
    seconds: float


def judge(mutant: Mutant | None, killers: Iterable[str]) -> Verdict:
    """Run the tests against a copy of the sources that `mutant`, if there is one, has changed."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutant-") as scratch:
        source = Path(scratch).resolve() / "src"
        shutil.copytree(SOURCE, source, ignore=shutil.ignore_patterns("__pycache__"))
        word, why = "survived", ""
        try:
            if mutant is not None:
                mutant.apply(source)
            word, why = _run(source, killers)
            if word == "survived" and mutant is not None:
                word, why = _run_core(source)
        except (ValueError, subprocess.TimeoutExpired) as error:
            word, why = "error", f"{error}"

    return Verdict(word, why, time.monotonic() - began)


def _run_core(source: Path) -> tuple[str, str]:
    names = sorted(path.name for path in (ROOT / "tests").glob("test_*.py"))
    word, test = _run(source, [name for name in names if name[5:-3] not in _NOT_CORE])
    if word != "killed":
        return word, test
    # The unchanged sources have not passed this one here, and a busy machine fails a test as well.
    if _run(source, [test])[0] != "killed":
        return "error", f"{test} failed in the suite and passed alone"

    return word, f"{test} (not by the tests that were expected to)"


def _run(source: Path, tests: Iterable[str]) -> tuple[str, str]:
    report = source.parent / "report.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider"),
            *("-p", "tests.mutants.witness", "--basetemp", str(source.parent / "tmp")),
            *(f"tests/{test}" for test in tests),
        ],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(source),
            "PYTHONDONTWRITEBYTECODE": "1",
            UNDER_TEST: str(source),
            REPORT: str(report),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_PATIENCE,
        check=False,
    )
    if done.returncode == 0 and not report.exists():
        return "survived", ""
    if done.returncode == 1 and report.exists():
        seen = json.loads(report.read_text())
        if not seen["slip"]:
            return "killed", seen["test"].removeprefix("tests/")
        return "error", f"it is written wrong: {seen['message'].splitlines()[0]}"

    return "error", f"pytest ended with {done.returncode}: {done.stdout[-1500:]}"


def main() -> int:
    """Judge the control and the mutants, print a table, return 1 unless all were killed."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these mutants")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="default: %(default)s")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - {mutant.name for mutant in MUTANTS}:
        parser.error(f"no such mutant: {', '.join(sorted(unknown))}")
    # A shell ignores Ctrl-C for what it starts in the background; the tests would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    chosen = [each for each in MUTANTS if not arguments.names or each.name in arguments.names]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        tests = sorted({test for each in chosen for test in each.killers.split()})
        parts = [tests[each :: arguments.jobs] for each in range(min(arguments.jobs, len(tests)))]
        for control in pool.map(lambda part: judge(None, part), parts):
            if control.word != "survived":
                print(f"The unchanged sources do not pass: {control.word}, {control.why}")
                return 1
        print("The unchanged sources pass.\n")
        print("| mutant | what does not hold any more | result | seconds |")
        print("|---|---|---|---|", flush=True)
        verdicts = pool.map(lambda each: judge(each, each.killers.split()), chosen)
        words = []
        for mutant, verdict in zip(chosen, verdicts, strict=True):
            words.append(verdict.word)
            result = f"{verdict.word}: {verdict.why}" if verdict.why else verdict.word
            print(
                f"| {mutant.name} | {mutant.promise} | {result} | {verdict.seconds:.1f} |",
                flush=True,
            )
    killed, survived, errors = map(words.count, ("killed", "survived", "error"))
    print(f"\n{killed} of {len(chosen)} killed, {survived} survived, {errors} errors.")

    return int(killed < len(chosen))


if __name__ == "__main__":
    sys.exit(main())
