"""`lockstitch wait` and `supervise`, and commands side by side: real processes, real signals."""

from __future__ import annotations

import argparse
import io
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import lockstitch
from lockstitch import Backoff, Checkpoint, Limit, RateLimited, ResumableBatch
from lockstitch.cli import add_arguments, from_arguments, main
from lockstitch.testing import fake_clock

SOURCE = str(Path(lockstitch.__file__).parents[1])

#: A user's script. Each item it works on is a line of `log`; a file `limit-ID` holds the seconds
#: of a limit that the item runs into, once.
SCRIPT = """
import argparse, os, sys, time
from lockstitch import Checkpoint, Limit, RateLimited, ResumableBatch
from lockstitch.cli import add_arguments, from_arguments

parser = argparse.ArgumentParser()
add_arguments(parser, checkpoint="c.jsonl")
given = from_arguments(parser.parse_args())
open("launches", "a").write("x")

def work(item):
    if os.path.exists(f"limit-{item}"):
        seconds = float(open(f"limit-{item}").read())
        os.remove(f"limit-{item}")
        raise RateLimited(Limit.after(seconds, reason="quota"))
    open("log", "a").write(item)
    if item == "e":
        raise ValueError("bad")

with ResumableBatch(Checkpoint(**given.checkpoint), list("abcde"), **given.batch) as batch:
    batch.run(work, **given.run)
sys.exit(batch.exit_code)
"""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", SOURCE)
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    Path("script.py").write_text(SCRIPT)


def supervise(*command: str, options: tuple[str, ...] = ()) -> int:
    return main(["supervise", "c.jsonl", *options, "--", *command])


def script(*options: str) -> tuple[str, ...]:
    return (sys.executable, "script.py", "--max-wait", "0", *options)


def read(path: str) -> str:
    try:
        return Path(path).read_text()
    except FileNotFoundError:
        return ""


def limits(**seconds: float) -> None:
    for item, each in seconds.items():
        Path(f"limit-{item}").write_text(str(each))


def park(seconds: float, path: str = "c.jsonl") -> None:
    def limited(_item):
        raise RateLimited(Limit.after(seconds, reason="quota"))

    with ResumableBatch(path, ["a"], max_wait=0) as batch:
        batch.run(limited)
    assert batch.exit_code == 2


@contextmanager
def started(*args: str):
    """Run the command in a session, and so a process group, of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lockstitch", *args],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def until(condition) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to pass")


# Supervising


class TestParked:
    def test_a_parked_script_is_run_again_and_pays_nothing_twice(self):
        """Run again after each pause, a script started with `--fresh` works on no item twice."""
        limits(b=0.2, d=0.2)
        with Checkpoint("c.jsonl") as checkpoint:
            checkpoint.save("old")

        assert supervise(*script("--fresh")) == 1  # `e` is an error
        assert (read("launches"), read("log")) == ("xxx", "abcde")
        assert not Path("c.jsonl.old-2").exists()
        assert "old" in Checkpoint("c.jsonl.old-1", read_only=True)

    def test_what_was_redone_is_not_redone_by_a_restart(self):
        """Run again, a script started with `--retry-errors` leaves alone what failed once more."""
        with ResumableBatch("c.jsonl", ["e"]) as batch:
            for item in batch:
                batch.fail(item, ValueError("bad"))
        limits(b=0.2)
        Path("script.py").write_text(SCRIPT.replace('"abcde"', '"eab"'))

        assert supervise(*script("--retry-errors")) == 1
        assert (read("launches"), read("log")) == ("xx", "eab")

    def test_parked_again_before_its_time_counts_too(self):
        """A script that is started too early begins no run; it is waited for, and run again."""
        with fake_clock(datetime.now(UTC)) as clock:
            park(3600)

            assert supervise(*script()) == 2  # for the script, the hour is not over yet
            [waited] = clock.waits
        assert waited == pytest.approx(3600, abs=1)
        assert (read("launches"), read("log")) == ("xx", "")
        assert Checkpoint("c.jsonl", read_only=True).stats().run_count == 1

    def test_the_first_launch_is_no_relaunch(self):
        """LOCKSTITCH_RELAUNCH is in the environment of later launches only."""
        limits(a=0.1)
        shown = 'echo "<$LOCKSTITCH_RELAUNCH>" >>told; exec "$@"'

        assert supervise("sh", "-c", shown, "sh", *script()) == 1
        assert read("told") == "<>\n<1>\n"

    def test_it_ends_after_max_restarts(self, capfd):
        """After `--max-restarts` restarts a script that parks once more is given up, with 2."""
        limits(a=0.1, b=0.1, c=0.1)

        assert supervise(*script(), options=("--max-restarts", "1")) == 2
        assert read("launches") == "xx"
        assert "parked again after 1 restart;" in capfd.readouterr().err


class TestNotParked:
    @pytest.mark.parametrize("code", [0, 1, 2, 3, 64, 75])
    def test_the_code_of_the_command_is_passed_on(self, code):
        """A command without a parked run is not run again, whatever it exits with."""
        assert supervise("sh", "-c", f"echo >>ran; exit {code}") == code
        assert read("ran") == "\n"

    @pytest.mark.parametrize("seconds", [0.0, 3600.0])
    def test_a_run_parked_by_an_earlier_launch_does_not_count(self, seconds):
        """Exit code 2 of a command that never got as far as its batch is passed on at once."""
        park(seconds)

        assert supervise("sh", "-c", "echo >>ran; exit 2") == 2
        assert read("ran") == "\n"

    def test_a_parked_run_without_exit_code_2_does_not_count(self):
        """A command whose batch is parked, and that ends with another code, has its reasons."""
        limits(a=0.1)

        assert supervise("sh", "-c", '"$@"; exit 3', "sh", *script()) == 3
        assert read("launches") == "x"

    def test_a_run_that_ended_otherwise_does_not_count(self):
        """Exit code 2 of a run that was stopped by something else than a limit is passed on."""
        stopping = (
            "from lockstitch import ResumableBatch; import sys\n"
            "with ResumableBatch('c.jsonl', ['a', 'b']) as batch:\n"
            "    for item in batch: break\n"
            "open('ran', 'a').write('x'); sys.exit(batch.exit_code)"
        )

        assert supervise(sys.executable, "-c", stopping) == 2
        assert read("ran") == "x"

    def test_a_damaged_checkpoint_is_for_the_command_to_deal_with(self):
        """A checkpoint that cannot be read keeps no command from being run, nor its code."""
        Path("c.jsonl").write_text("not ours")

        assert supervise("sh", "-c", "exit 2") == 2
        assert supervise("true") == 0


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_stop_is_passed_on_once(self, number):
        """A stop lets the script finish its item, also if a terminal sent it, and ends both."""
        slow = SCRIPT.replace('open("log", "a").write(item)', SLOW)
        Path("script.py").write_text(slow)
        with started("supervise", "c.jsonl", "--", *script()) as process:
            until(lambda: Path("at-work").exists())
            if number == signal.SIGINT:
                os.killpg(process.pid, number)  # Ctrl-C
            else:
                process.send_signal(number)
            until(lambda: b"finishing 1 item" in os.read(process.stderr.fileno(), 4096))
            Path("go").touch()

            assert process.wait(30) == -number
        assert read("log") == "a"
        assert Checkpoint("c.jsonl", read_only=True).stats().stop_reason == "signal"

    def test_it_dies_as_the_command_died(self):
        """A command that is killed takes its supervisor along, by the same signal."""
        with started("supervise", "c.jsonl", "--", "sh", "-c", "kill -KILL $$") as process:
            assert process.wait(30) == -signal.SIGKILL

    def test_a_stop_that_ends_in_2_is_an_end(self):
        """A script that answers a stop with exit code 2 is not run again, parked or not."""
        parks_when_told = (
            "import signal, sys, time\n"
            "from lockstitch import Limit, RateLimited, ResumableBatch\n"
            "def stop(*_): raise RateLimited(Limit.after(0))\n"
            "signal.signal(signal.SIGTERM, stop)\n"
            "with ResumableBatch('c.jsonl', ['a'], max_wait=0, handle_signals=False) as batch:\n"
            "    for item in batch:\n"
            "        open('at-work', 'a').write('x'); time.sleep(30)\n"
            "sys.exit(batch.exit_code)"
        )
        command = (sys.executable, "-c", parks_when_told)
        with started("supervise", "c.jsonl", "--", *command) as process:
            until(lambda: Path("at-work").exists())
            process.terminate()

            assert process.wait(30) == 2
        assert read("at-work") == "x"

    def test_a_wait_can_be_ended(self):
        """While it waits for a limit to end, a signal ends it at once."""
        limits(a=3600)
        with started("supervise", "c.jsonl", "--", *script()) as process:
            until(lambda: b"going on in 1 h" in os.read(process.stderr.fileno(), 4096))
            process.terminate()

            assert process.wait(30) == -signal.SIGTERM
        assert read("launches") == "x"


#: Works until it is told to go on.
SLOW = """
    open("at-work", "w").close()
    while not os.path.exists("go"):
        time.sleep(0.01)
    open("log", "a").write(item)
"""


# Waiting


def wait(path: str = "c.jsonl") -> int:
    return main(["wait", path])


START = datetime(2030, 1, 1, tzinfo=UTC)


class TestWait:
    def test_it_sleeps_until_the_limit_is_over(self, capfd):
        """It waits for what is left of the limit, says once what for, and exits with 0."""
        with fake_clock(START) as clock:
            park(7200)
            capfd.readouterr()
            clock.advance(3600)

            assert wait() == 0
            assert clock.waits == [3600.0]
        out, err = capfd.readouterr()
        assert out == ""
        assert err == (
            f"lockstitch: {os.path.realpath('c.jsonl')}: limited (quota), going on in 1 h 0 min, "
            "at 2030-01-01 02:00:00 UTC\n"
        )

    def test_what_is_over_needs_no_wait(self):
        """A limit that is over is not waited for."""
        with fake_clock(START) as clock:
            park(60)
            clock.advance(61)

            assert (wait(), clock.waits) == (0, [])

    def test_a_clock_set_back_does_not_lengthen_it(self):
        """It waits for the length of the limit at the most."""
        with fake_clock(START) as clock:
            park(60)
            clock.set_wall(START - timedelta(days=400))

            assert (wait(), clock.waits) == (0, [60.0])

    def test_a_retry_that_is_due_later_is_waited_for(self):
        """A batch that parked because nothing but a retry was left waits for that."""

        def fail(_item):
            raise ValueError

        with fake_clock(START) as clock:
            retry = Backoff(initial=900, maximum=900, jitter="none")
            with ResumableBatch("c.jsonl", ["a"], retry=retry, max_wait=0) as batch:
                batch.run(fail)

            assert (wait(), clock.waits) == (0, [900.0])

    def test_nothing_to_wait_for_is_66(self, capfd):
        """A file that is not there, and a run that is not parked, exit with 66."""
        assert wait("none.jsonl") == 66
        with Checkpoint("c.jsonl"):
            pass
        assert wait() == 66
        with ResumableBatch("c.jsonl", ["a"]) as batch:
            batch.run(str)
        assert wait() == 66
        assert len(capfd.readouterr().err.splitlines()) == 3

    def test_a_terminal_shows_a_countdown(self, monkeypatch):
        """On a terminal the line is written over each second; anywhere else there is none."""

        class Terminal(io.StringIO):
            def isatty(self):
                return True

        with fake_clock(START) as clock:
            park(3)
            monkeypatch.setattr(sys, "stderr", Terminal())

            assert (wait(), clock.waits) == (0, [1.0, 1.0, 1.0])
        assert sys.stderr.getvalue().endswith(
            "\r3.0 s left\x1b[K\r2.0 s left\x1b[K\r1.0 s left\x1b[K\r\x1b[K"
        )

    def test_an_interrupt_ends_it(self):
        """Ctrl-C ends the wait, by the signal."""
        park(3600)
        with started("wait", "c.jsonl") as process:
            process.stderr.readline()
            process.send_signal(signal.SIGINT)

            assert process.wait(30) == -signal.SIGINT


class TestWrongCalls:
    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (("supervise", "c.jsonl"), "there is no command"),
            (("supervise", "c.jsonl", "--"), "there is no command"),
            (("supervise", "c.jsonl", "true"), "lockstitch supervise CKPT -- CMD"),
            (("supervise", "c.jsonl", "--", "no-such-command"), "no command 'no-such-command'"),
            (("supervise", "c.jsonl", "--", "./unfit"), "./unfit cannot be run"),
            (("supervise", "c.jsonl", "--max-restarts", "-1", "--", "true"), "whole number from 0"),
            (("supervise", ".", "--", "true"), "is not a regular file"),
            (("wait",), "required: CKPT"),
            (("run", "c.jsonl", "-j", "0", "--", "true"), "whole number from 1"),
        ],
    )
    def test_a_wrong_call_exits_with_64(self, args, message, capfd):
        """A wrong call says what is wrong, exits with 64, and makes no checkpoint."""
        Path("unfit").write_bytes(b"\x7fELF nonsense")
        Path("unfit").chmod(0o755)
        try:
            code = main(args)
        except SystemExit as error:
            code = error.code

        assert code == 64
        assert message in capfd.readouterr().err
        assert not Path("c.jsonl").exists()


# Commands side by side


class TestSideBySide:
    def test_j_runs_so_many_commands_at_a_time(self):
        """With `-j 2` two commands run at the same time: each waits for the other's file."""
        Path("items").write_text("1 2\n2 1\n")
        meet = 'set -- $1; touch "at-$1"; until [ -e "at-$2" ]; do sleep 0.01; done'
        code = main(["run", "c.jsonl", "-a", "items", "-j", "2", "--", "sh", "-c", meet, "sh"])

        assert code == 0
        assert len(Checkpoint("c.jsonl", read_only=True)) == 2

    def test_the_second_interrupt_kills_them_all(self):
        """The first Ctrl-C lets all commands go on; the second one leaves none of them alive."""
        Path("items").write_text("1\n2\n3\n")
        stay = 'echo $$ >"pid-$1"; sleep 60'
        args = ("run", "c.jsonl", "-a", "items", "-j", "3", "--", "sh", "-c", stay, "sh")
        with started(*args) as process:
            until(lambda: all(read(f"pid-{item}") for item in "123"))
            process.send_signal(signal.SIGINT)
            assert process.stderr.readline().startswith(b"SIGINT: finishing 3 items")
            process.send_signal(signal.SIGINT)

            assert process.wait(30) == -signal.SIGINT
        until(lambda: not any(alive(int(read(f"pid-{item}"))) for item in "123"))
        assert len(Checkpoint("c.jsonl", read_only=True)) == 0

    def test_progress_is_told(self, capfd):
        """With `--progress` a line tells how far it is where there is no terminal."""
        Path("items").write_text("1\n2\n")
        main(["run", "c.jsonl", "-a", "items", "--progress", "--", "true"])

        assert "lockstitch: 2/2 done" in capfd.readouterr().err

    def test_items_know_nothing_of_a_relaunch(self, monkeypatch, capfd):
        """A command of an item may have a batch of its own, which was not launched before."""
        monkeypatch.setenv("LOCKSTITCH_RELAUNCH", "1")
        Path("items").write_text("1\n")
        shown = 'echo "<$LOCKSTITCH_RELAUNCH>"'
        main(["run", "c.jsonl", "-a", "items", "--", "sh", "-c", shown])

        assert capfd.readouterr().out == "<>\n"


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


# A process that was launched again


class TestRelaunch:
    @pytest.mark.parametrize(("value", "again"), [("1", False), ("0", True), (None, True)])
    def test_fresh_and_redo_are_off(self, monkeypatch, value, again):
        """With LOCKSTITCH_RELAUNCH=1 nothing is begun anew or redone; with another value it is."""
        if value is None:
            monkeypatch.delenv("LOCKSTITCH_RELAUNCH", raising=False)
        else:
            monkeypatch.setenv("LOCKSTITCH_RELAUNCH", value)
        ran = []
        with Checkpoint("c.jsonl") as checkpoint:
            checkpoint.save("a", status="fail")
        with ResumableBatch("c.jsonl", ["a"], redo="fail") as batch:
            batch.run(ran.append)
        with ResumableBatch(Checkpoint("c.jsonl", fresh=True), ["a"]) as batch:
            batch.run(ran.append)

        assert ran == ["a", "a"] * again
        assert Path("c.jsonl.old-1").exists() == again


class TestArguments:
    @staticmethod
    def given(*args):
        parser = argparse.ArgumentParser()
        add_arguments(parser, checkpoint="c.jsonl")
        return from_arguments(parser.parse_args(args))

    def test_concurrency_is_an_argument_of_run(self):
        """`--concurrency` is for `run` and its kin, 1 unless given."""
        assert self.given().run == {"concurrency": 1}
        assert self.given("--concurrency", "8").run == {"concurrency": 8}

    def test_progress_is_an_argument_of_the_batch(self):
        """`--progress` shows a bar where there is one, and lines elsewhere; never an error."""
        assert self.given().batch["progress"] is False
        assert self.given("--progress").batch["progress"] == "auto"
