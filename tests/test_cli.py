"""The `lockstitch` command: real processes, real signals, real files."""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import pytest

import lockstitch
from lockstitch import Checkpoint, ErrorInfo, Record, ResumableBatch
from lockstitch._printable import printable
from lockstitch.cli import add_arguments, from_arguments, main
from lockstitch.testing import fake_clock

ENV = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(
        [str(Path(lockstitch.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    ),
}

ENV.pop("PYTHONUNBUFFERED", None)  # what is buffered is what can still go wrong at the exit

#: Stored text as somebody hostile would have it.
EVIL = "\x1b]0;owned\x07\x9b31m\u202e\u2028\x7f\r\n"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def cli(*args: str, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "lockstitch", *args],
        input=stdin,
        env=ENV,
        capture_output=True,
        timeout=60,
        check=False,
    )
    out, err = (text.decode(errors="surrogateescape") for text in (done.stdout, done.stderr))
    assert "Traceback" not in err

    return subprocess.CompletedProcess(done.args, done.returncode, out, err)


def statuses(path: str = "c.jsonl") -> dict[str, str]:
    checkpoint = Checkpoint(path, read_only=True)

    return {record.id: record.status for record in checkpoint.records()}


def save(path: str = "c.jsonl", **records: str) -> None:
    with Checkpoint(path) as checkpoint:
        for id, status in records.items():
            checkpoint.save(id, {"of": id}, status=status)


# Running


class TestRun:
    def test_each_line_is_an_item(self):
        """Each line replaces `{}` in every word; empty lines are none; output passes through."""
        done = cli("run", "c.jsonl", "--", "echo", "<{}>", "{}", stdin=b"a b\n\n  \nc\r\nd")

        assert done.returncode == 0
        assert done.stdout == "<a b> a b\n<c> c\n<d> d\n"
        assert statuses() == {"a b": "ok", "c": "ok", "d": "ok"}
        assert Checkpoint("c.jsonl", read_only=True)["c"].result == {"returncode": 0}

    def test_without_braces_the_item_comes_last(self):
        """A command without `{}` gets the item as its last argument."""
        assert cli("run", "c.jsonl", "--", "echo", "x", stdin=b"a\n").stdout == "x a\n"

    def test_words_of_the_command_stay_its_own(self):
        """Options and a second `--` after the first `--` belong to the command."""
        done = cli("run", "c.jsonl", "--", "echo", "--fresh", "--", "-a", stdin=b"i\n")

        assert done.stdout == "--fresh -- -a i\n"

    def test_a_finished_item_never_runs_again(self):
        """A second run works on new items only, and failed ones count as finished."""
        command = ("--", "sh", "-c", "echo $1; test $1 != 2", "sh", "{}")
        first = cli("run", "c.jsonl", *command, stdin=b"1\n2\n")
        second = cli("run", "c.jsonl", *command, stdin=b"1\n2\n3\n")

        assert (first.returncode, first.stdout) == (1, "1\n2\n")
        assert (second.returncode, second.stdout) == (1, "3\n")
        assert "2 done before" in second.stderr

    def test_an_error_names_code_or_signal(self):
        """A command that ends badly is booked with its exit code, or the name of its signal."""
        items = b"exit 7\nkill -KILL $$\n"
        cli("run", "c.jsonl", "--", "sh", "-c", 'eval "$1"', "sh", stdin=items)
        errors = [record.error for record in Checkpoint("c.jsonl", read_only=True).records()]

        assert [error.message for error in errors] == ["exited with 7", "died of SIGKILL"]
        assert {error.type for error in errors} == {"lockstitch.cli.CommandFailed"}

    def test_retry_errors_runs_failed_items_again(self):
        """`--retry-errors` runs failed items again; with words, those whose error has one."""
        command = ("--", "sh", "-c", "echo $1; exit $1", "sh")
        cli("run", "c.jsonl", *command, stdin=b"0\n3\n4\n")
        some = cli("run", "c.jsonl", "--retry-errors", "nothing,WITH 4", *command, stdin=b"0\n3\n4")
        every = cli("run", "c.jsonl", "--retry-errors", *command, stdin=b"0\n3\n4\n")

        assert (some.stdout, every.stdout) == ("4\n", "3\n4\n")

    def test_fresh_sets_the_old_file_aside(self):
        """`--fresh` runs all items again and keeps the old file."""
        cli("run", "c.jsonl", "--", "echo", stdin=b"1\n")
        again = cli("run", "c.jsonl", "--fresh", "--", "echo", stdin=b"1\n")

        assert again.stdout == "1\n"
        assert statuses("c.jsonl.old-1") == {"1": "ok"}

    def test_items_come_from_a_file(self):
        """`-a FILE` reads the items from a file; one that is missing exits with 66."""
        Path("items").write_text("x\ny\n")

        assert cli("run", "c.jsonl", "-a", "items", "--", "echo").stdout == "x\ny\n"
        missing = cli("run", "d.jsonl", "-a", "none", "--", "echo")
        assert (missing.returncode, Path("d.jsonl").exists()) == (66, False)

    def test_any_bytes_are_an_item(self):
        """A file name that is no text reaches the command, and the file, unharmed."""
        script = "import os, sys; print(os.fsencode(sys.argv[1]).hex())"
        command = ("run", "c.jsonl", "--", sys.executable, "-c", script)
        first = cli(*command, stdin=b"caf\xe9\n")

        assert (first.returncode, first.stdout) == (0, b"caf\xe9".hex() + "\n")
        assert cli(*command, stdin=b"caf\xe9\n").stdout == ""
        assert statuses() == {"caf\udce9": "ok"}

    def test_commands_read_nothing(self):
        """A command finds its standard input empty, whatever that of `lockstitch` holds."""
        Path("items").write_text("1\n2\n")
        command = ("--", "sh", "-c", "cat; echo $1", "sh")
        done = cli("run", "c.jsonl", "-a", "items", *command, stdin=b"not yours\n")

        assert done.stdout == "1\n2\n"

    @pytest.mark.parametrize("code", [2, 75])
    def test_not_now_parks_the_run(self, code):
        """A command that exits with 2 or 75 leaves its item pending, and the run exits with 2."""
        command = ("--max-wait", "1", "--", "sh", "-c", f"echo ran; exit {code}", "sh")
        first = cli("run", "c.jsonl", *command, stdin=b"1\n2\n")
        second = cli("run", "c.jsonl", *command, stdin=b"1\n2\n")

        assert (first.returncode, first.stdout) == (2, "ran\n")
        assert (second.returncode, second.stdout) == (2, "")  # the limit holds over restarts
        assert statuses() == {}
        shown = cli("show", "c.jsonl").stdout
        assert f"(sh exited with {code})" in shown
        assert "ended by 'limit'" in shown

    def test_a_limit_within_max_wait_is_waited_out(self, capfd):
        """After a limit the same item runs again, in the same run, and no error is booked."""
        Path("items").write_text("1\n")
        script = "test -e once || { touch once; exit 75; }; echo ran"
        with fake_clock(datetime(2030, 1, 1, tzinfo=UTC)) as clock:
            code = main(["run", "c.jsonl", "-a", "items", "--", "sh", "-c", script])

        assert (code, clock.waits) == (0, [60.0])
        assert capfd.readouterr().out == "ran\n"


class TestWrongCalls:
    @pytest.mark.parametrize(
        ("args", "message"),
        [
            ((), "required: VERB"),
            (("mend", "c.jsonl"), "invalid choice: 'mend'"),
            (("run",), "required: CKPT"),
            (("run", "c.jsonl"), "there is no command"),
            (("run", "c.jsonl", "--"), "there is no command"),
            (("run", "c.jsonl", "echo", "{}"), "put -- before the command"),
            (("run", "c.jsonl", "--", "no-such-command"), "no command 'no-such-command'"),
            (("run", "c.jsonl", "--fresh", "--retry-errors", "--", "echo"), "not allowed with"),
            (("run", "c.jsonl", "--max-wait", "-1", "--", "echo"), "not a number of seconds"),
            (("run", "c.jsonl", "--max-wait", "nan", "--", "echo"), "not a number of seconds"),
            (("run", "c.jsonl", "--shell", "--", "echo", "{}"), "one word"),
            (("run", "c.jsonl", "--shell", "--", 'echo "a {} b"'), "outside of quotes"),
            (("run", "c.jsonl", "--shell", "--", "echo '{}' {}"), "outside of quotes"),
            (("show", "c.jsonl", "x"), "unrecognized arguments: x"),
            (("forget", "c.jsonl"), "forget what?"),
            (("adopt", "c.jsonl", "f.jsonl"), "required: --key"),
            (("export", "c.jsonl", "--to", "xml"), "invalid choice: 'xml'"),
            (("show", "."), "is not a regular file"),
            (("run", "", "--", "echo"), "takes the path of a file"),
        ],
    )
    def test_a_wrong_call_exits_with_64(self, args, message):
        """A wrong call says what is wrong, exits with 64, and makes no file."""
        done = cli(*args, stdin=b"1\n")

        assert (done.returncode, done.stdout) == (64, "")
        assert message in done.stderr
        assert done.stderr.splitlines()[-1].startswith("lockstitch")
        assert os.listdir() == []

    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            (b"a\nb\n\na\n", "lines 1 and 4 are the same item, 'a'"),
            (b"ok\n" + b"x" * 5000 + b"\n", "line 2 has 5,000 characters"),
            (b"a\0b\n", "line 1 holds a NUL byte"),
        ],
    )
    def test_wrong_items_are_found_before_anything_runs(self, lines, message):
        """Lines that cannot be items are named by their numbers before the first command runs."""
        done = cli("run", "c.jsonl", "--", "echo", stdin=lines)

        assert (done.returncode, done.stdout) == (64, "")
        assert message in done.stderr
        assert os.listdir() == []

    def test_a_file_that_cannot_run_is_a_wrong_call(self):
        """A command that turns out not to be executable stops the run; its item stays pending."""
        Path("tool").write_bytes(b"\x7fELF nonsense")
        Path("tool").chmod(0o755)
        done = cli("run", "c.jsonl", "--", "./tool", stdin=b"1\n2\n")

        assert done.returncode == 64
        assert "./tool cannot be run: Exec format error" in done.stderr
        assert statuses() == {}

    def test_an_item_that_is_no_command_is_an_error_of_its_own(self):
        """Where the item names the command, a missing one is booked and the rest goes on."""
        done = cli("run", "c.jsonl", "--", "{}", stdin=b"no-such-command\ntrue\n")

        assert done.returncode == 1
        assert statuses() == {"no-such-command": "error", "true": "ok"}

    @pytest.mark.parametrize(
        "args",
        [
            *([verb] for verb in ("show", "export", "verify", "repair", "compact", "clean")),
            ["forget", "ID"],
            ["adopt", "rows.jsonl", "--key", "id"],
        ],
        ids=lambda args: args[0],
    )
    def test_a_missing_file_exits_with_66(self, args):
        """What reads a file that is not there says so, exits with 66, and makes no checkpoint."""
        done = cli(args[0], "none.jsonl", *args[1:])

        assert (done.returncode, done.stdout) == (66, "")
        assert "no such" in done.stderr.lower()
        assert len(done.stderr.splitlines()) == 1
        assert not Path("none.jsonl").exists()

    def test_another_command_exits_with_78(self):
        """A run with another command is refused with both; `--keep` keeps the records."""
        cli("run", "c.jsonl", "--", "echo", "one", stdin=b"1\n")
        refused = cli("run", "c.jsonl", "--", "echo", "two", stdin=b"1\n2\n")
        kept = cli("run", "c.jsonl", "--keep", "--", "echo", "two", stdin=b"1\n2\n")
        after = cli("run", "c.jsonl", "--", "echo", "two", stdin=b"1\n2\n3\n")

        assert (refused.returncode, refused.stdout) == (78, "")
        assert "command: echo one -> echo two" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
        assert (kept.stdout, after.stdout) == ("two 2\n", "two 3\n")

    def test_records_without_a_command_can_be_gone_on_with(self):
        """A checkpoint of a script without config, or of adopted results, takes any command."""
        save(old="ok")

        assert cli("run", "c.jsonl", "--", "echo", stdin=b"old\nnew\n").stdout == "new\n"
        assert cli("run", "c.jsonl", "--", "true", stdin=b"old\nnew\n").returncode == 78

    def test_damage_exits_with_65(self):
        """A run on a damaged checkpoint does not start, and names the command that repairs it."""
        damage()
        done = cli("run", "c.jsonl", "--", "echo", stdin=b"new\n")

        assert (done.returncode, done.stdout) == (65, "")
        assert "lockstitch repair" in done.stderr

    def test_a_full_disk_exits_with_74(self):
        """Output that cannot be written is one line on stderr and exit code 74."""
        if not os.path.exists("/dev/full"):
            pytest.skip("this system has no /dev/full")
        save(a="ok")
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                [sys.executable, "-m", "lockstitch", "show", "c.jsonl"],
                env=ENV,
                stdout=full,
                stderr=subprocess.PIPE,
                check=False,
            )

        assert done.returncode == 74
        assert len(done.stderr.splitlines()) == 1

    def test_a_broken_pipe_is_quiet(self):
        """A reader that leaves early ends the command without a word."""
        with Checkpoint("c.jsonl", fsync=False) as checkpoint:
            for number in range(3000):
                checkpoint.save(f"{number}", "x" * 100)
        with start("export", "c.jsonl") as process:
            process.stdout.readline()
            process.stdout.close()

            assert process.wait() == 141
            assert process.stderr.read() == b""

    @pytest.mark.parametrize("verb", ["show", "export", "verify"])
    def test_a_pipe_that_was_broken_before_is_quiet(self, verb):
        """Nor does the command speak up when nobody has ever listened."""
        save(a="ok")
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [sys.executable, "-m", "lockstitch", verb, "c.jsonl"],
            env=ENV,
            stdout=writer,
            stderr=subprocess.PIPE,
            check=False,
        )
        os.close(writer)

        assert (done.returncode, done.stderr) == (141, b"")

    def test_help_and_version_exit_with_0(self):
        """Help of the command and of each verb names the exit codes and what is to be given."""
        assert "64 wrong call" in cli("--help").stdout
        assert "-- CMD [ARG ...]" in cli("run", "--help").stdout
        assert cli("--version").stdout.startswith("lockstitch ")


class TestShell:
    def test_a_line_of_shell_gets_the_item_quoted(self):
        """Under `--shell` an item is one word for the shell, whatever it holds."""
        items = [b"a  b", b"$(touch owned)", b"`touch owned`", b"'; touch owned; '", b'"', b"*"]
        done = cli(
            "run",
            "c.jsonl",
            "--shell",
            "--",
            "printf '%s\\n' {} | tr a-z A-Z",
            stdin=b"\n".join(items),
        )

        assert done.returncode == 0
        assert done.stdout.lower() == "\n".join(map(bytes.decode, items)) + "\n"
        assert not Path("owned").exists()

    @pytest.mark.parametrize(
        "line", ["cat <<END\n{}\nEND", "eval echo $(echo {} | wc -c)", 'echo \\"{}\\"', "echo"]
    )
    def test_no_item_is_ever_read_as_shell(self, line):
        """Not even where the text is read twice does an item become code."""
        done = cli(
            "run", "c.jsonl", "--shell", "--", line, stdin=b"$(touch owned)\n`touch owned`\n"
        )

        assert done.returncode == 0
        assert not Path("owned").exists()


# Signals


def deaf_to_nothing() -> None:
    """Undo what a shell does to jobs in the background, and nohup to all: they ignore signals."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def start(*args: str, stdin: bytes = b""):
    """Start the command in a group of its own, as a terminal would."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lockstitch", *args],
        env=ENV,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=None if os.name == "nt" else deaf_to_nothing,  # noqa: PLW1509 - no threads here
    )
    try:
        process.stdin.write(stdin)
        process.stdin.close()
        yield process
    finally:
        if process.poll() is None and os.name != "nt":
            process.send_signal(signal.SIGHUP)  # takes the running command along, as kill does not
        elif process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()


def wait_for(stream: IO[bytes], word: bytes) -> bytes:
    for line in stream:
        if word in line:
            return line
    raise AssertionError(f"it ended without saying {word!r}")


posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals and named pipes")


@posix
class TestSignals:
    #: Says that it has begun, and goes on when somebody opens the gate; a child of its own waits.
    COMMAND = ("--", "sh", "-c", "echo begun $1; cat gate; echo ended $1", "sh")

    @pytest.fixture(autouse=True)
    def _gate(self):
        os.mkfifo("gate")

    def open_gate(self):
        with open("gate", "wb"):  # returns once somebody reads; closing it lets them go on
            pass

    def test_ctrl_c_lets_the_running_command_finish(self):
        """A Ctrl-C does not reach the running command; it finishes, is booked, and the run ends."""
        with start("run", "c.jsonl", *self.COMMAND, stdin=b"1\n2\n") as process:
            wait_for(process.stdout, b"begun 1")
            os.killpg(process.pid, signal.SIGINT)
            wait_for(process.stderr, b"finishing 1 item")
            self.open_gate()
            rest = process.stdout.read()

            assert process.wait() == -signal.SIGINT
            assert rest == b"ended 1\n"
            assert b"run it again to go on" in process.stderr.read()
        assert statuses() == {"1": "ok"}
        assert "ended by 'signal'" in cli("show", "c.jsonl").stdout

    def test_what_fails_after_a_stop_request_is_not_booked(self):
        """A command that fails after a Ctrl-C leaves its item pending."""
        command = ("--", "sh", "-c", "echo begun; read x < gate; exit 1", "sh")
        with start("run", "c.jsonl", *command, stdin=b"1\n") as process:
            wait_for(process.stdout, b"begun")
            process.send_signal(signal.SIGINT)
            wait_for(process.stderr, b"finishing")
            self.open_gate()

            assert process.wait() == -signal.SIGINT
        assert statuses() == {}

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
    def test_the_second_signal_kills_at_once(self, number):
        """The second signal kills the command and all it has started, and books nothing."""
        with start("run", "c.jsonl", *self.COMMAND, stdin=b"1\n2\n") as process:
            wait_for(process.stdout, b"begun 1")
            process.send_signal(number)
            wait_for(process.stderr, b"finishing")
            process.send_signal(number)

            assert process.wait() == -number
            assert process.stdout.read() == b""  # the end comes when nobody holds the pipe
        assert statuses() == {}
        self.assert_not_in_doubt()

    @pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGQUIT], ids=lambda n: n.name)
    def test_a_hangup_leaves_no_orphan(self, number):
        """The loss of the terminal kills the command at once, and books nothing."""
        with start("run", "c.jsonl", *self.COMMAND, stdin=b"1\n2\n") as process:
            wait_for(process.stdout, b"begun 1")
            process.send_signal(number)

            assert process.wait() == -number
            assert process.stdout.read() == b""
        assert statuses() == {}
        self.assert_not_in_doubt()

    def assert_not_in_doubt(self):
        assert "in doubt" not in cli("show", "c.jsonl").stdout

    def test_a_stop_request_ends_a_wait(self):
        """A Ctrl-C while the run waits for a limit ends it at once; the item stays pending."""
        with start("run", "c.jsonl", "--", "sh", "-c", "exit 75", stdin=b"1\n") as process:
            wait_for(process.stderr, b"going on in")
            process.send_signal(signal.SIGINT)

            assert process.wait() == -signal.SIGINT
        assert statuses() == {}

    def test_a_killed_run_goes_on_where_it_was(self):
        """After `kill -9` the finished items stay finished, and the one in flight runs again."""
        with start("run", "c.jsonl", *self.COMMAND, stdin=b"1\n2\n3\n") as process:
            wait_for(process.stdout, b"begun 1")
            self.open_gate()
            wait_for(process.stdout, b"begun 2")
            process.kill()
            process.wait()
            shown = cli("show", "c.jsonl").stdout
            self.open_gate()
            wait_for(process.stdout, b"ended 2")  # nobody is left to stop the command

        assert "in doubt (begun, not finished): '2'" in shown
        assert "has no end" in shown
        assert statuses() == {"1": "ok"}
        with start("run", "c.jsonl", *self.COMMAND, stdin=b"1\n2\n3\n") as process:
            wait_for(process.stdout, b"begun 2")
            self.open_gate()
            wait_for(process.stdout, b"begun 3")
            self.open_gate()

            assert process.wait() == 0
        assert statuses() == {"1": "ok", "2": "ok", "3": "ok"}

    def test_one_writer_and_any_number_of_readers(self):
        """While a run goes on, writers exit with 75 and change nothing; readers work."""
        with start("run", "c.jsonl", *self.COMMAND, stdin=b"1\n2\n") as process:
            wait_for(process.stdout, b"begun 1")
            before = Path("c.jsonl").read_bytes()
            Path("rows.jsonl").write_text('{"id": "x"}\n')
            for words in (
                ("run", "c.jsonl", *self.COMMAND),
                ("compact", "c.jsonl"),
                ("repair", "c.jsonl"),
                ("forget", "c.jsonl", "1"),
                ("adopt", "c.jsonl", "rows.jsonl", "--key", "id"),
                ("clean", "c.jsonl", "--all", "--yes"),
            ):
                refused = cli(*words, stdin=b"x\n")
                assert (refused.returncode, refused.stdout) == (75, ""), words
                assert f"pid {process.pid}" in refused.stderr
            assert "has no end" in cli("show", "c.jsonl").stdout
            assert cli("export", "c.jsonl").returncode == 0
            assert cli("verify", "c.jsonl").returncode == 0
            assert Path("c.jsonl").read_bytes() == before

    def test_nohup_stays_in_force(self):
        """A signal that is ignored at the start stays ignored."""
        script = "trap '' HUP; exec \"$@\""
        words = [sys.executable, "-m", "lockstitch", "run", "c.jsonl", *self.COMMAND]
        process = subprocess.Popen(
            ["sh", "-c", script, "sh", *words],
            env=ENV,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        process.stdin.write(b"1\n")
        process.stdin.close()
        wait_for(process.stdout, b"begun 1")
        process.send_signal(signal.SIGHUP)
        self.open_gate()

        assert process.wait() == 0
        process.stdout.close()


# Looking


def damage(path: str = "c.jsonl") -> None:
    save(path, one="ok", two="ok")
    data = Path(path).read_bytes()
    Path(path).write_bytes(data.replace(b'{"id":"one"', b'{"id":"0ne"'))


class TestShow:
    def test_it_tells_counts_and_history(self):
        """`show` prints items by status, runs, and how the last one ended."""
        cli("run", "c.jsonl", "--", "sh", "-c", "exit $1", "sh", stdin=b"0\n1\n3\n")
        done = cli("show", "c.jsonl")

        assert done.returncode == 0
        assert "3 items finished: 1 ok, 2 error" in done.stdout
        assert "1 run since 20" in done.stdout
        assert "last run: complete at 20" in done.stdout
        assert "exited with" not in done.stdout

    def test_errors_are_grouped(self):
        """`--errors` groups by type and first line of the message, most frequent first."""
        with ResumableBatch("c.jsonl", [f"{number}" for number in range(9)]) as batch:
            for item in batch:
                batch.fail(item, ValueError(f"rare\n{item}") if item == "8" else KeyError("often"))
        done = cli("show", "c.jsonl", "--errors")

        assert done.stdout.index("8 x KeyError: 'often'") < done.stdout.index(
            "1 x ValueError: rare"
        )
        assert "'0', '1', '2', …" in done.stdout
        assert "no errors" in cli("show", "--errors", self.without_errors()).stdout

    def without_errors(self) -> str:
        save("other.jsonl", a="ok")

        return "other.jsonl"

    def test_many_kinds_of_errors_are_cut(self):
        """A checkpoint with a message for each item does not flood the terminal."""
        with ResumableBatch("c.jsonl", [f"{number}" for number in range(30)]) as batch:
            for item in batch:
                batch.fail(item, ValueError(f"message {item}"))

        assert "and 10 more kinds" in cli("show", "c.jsonl", "--errors").stdout


class TestEscaping:
    def test_stored_text_does_nothing_to_a_terminal(self):
        """No control, direction or line-break character of a stored text is ever printed."""
        items = [f"a{EVIL}", f"b{EVIL}"]
        with ResumableBatch("c.jsonl", items) as batch:
            for item in batch:
                batch.fail(item, ValueError(f"no {EVIL.strip()}"))
        save(**{f"s{EVIL}": f"st{EVIL}"})
        for words in (
            ("show", "c.jsonl", "--errors"),
            ("export", "c.jsonl", "--to", "csv"),
            ("export", "c.jsonl", "--to", "json"),
            ("export", "c.jsonl", "--to", "jsonl"),
            ("forget", "c.jsonl", EVIL),
            ("run", "c.jsonl", "--", f"no{EVIL}"),
        ):
            done = cli(*words)
            printed = (done.stdout + done.stderr).replace("\n", "")
            assert printed, words
            assert printed.isprintable(), words
        assert (
            r"\x1b]0;owned\x07\x9b31m\u202e\u2028\x7f\r\n"
            in cli("export", "c.jsonl", "--to", "csv").stdout
        )

    @pytest.mark.parametrize("text", ["plain", "naïve 日本 🙂", "a\\b"])
    def test_harmless_text_is_left_alone(self, text):
        """Letters of any script are printed as they are."""
        assert printable(text) == text

    def test_a_poor_locale_gets_escapes(self):
        """Where the terminal has no letter for it, an escape is printed instead of a traceback."""
        save(日本="日")
        poor = {**ENV, "PYTHONIOENCODING": "ascii"}
        for words in (("show",), ("export", "--to", "csv")):
            done = subprocess.run(
                [sys.executable, "-m", "lockstitch", words[0], "c.jsonl", *words[1:]],
                env=poor,
                capture_output=True,
                check=False,
            )
            assert (done.returncode, b"\\u65e5" in done.stdout) == (0, True)


class TestExport:
    @pytest.fixture(autouse=True)
    def _checkpoint(self):
        def work(item: str) -> dict[str, str]:
            if item == "bad":
                raise ValueError("a, b\nc")

            return {"said": "é"}

        with ResumableBatch("c.jsonl", ["good", "bad"]) as batch:
            batch.run(work)

    def test_json_lines(self):
        """Each record is a line of JSON with every field."""
        rows = [json.loads(line) for line in cli("export", "c.jsonl").stdout.splitlines()]
        good, bad = rows

        assert list(good) == [
            *("id", "status", "result", "error_type", "error_message"),
            *("attempt", "run", "seconds", "at"),
        ]
        assert (good["id"], good["status"], good["result"]) == ("good", "ok", {"said": "é"})
        assert (bad["error_type"], bad["error_message"]) == ("ValueError", "a, b\nc")
        assert (bad["attempt"], bad["run"]) == (1, 1)
        assert datetime.fromisoformat(bad["at"]).tzinfo is not None

    def test_json(self):
        """`--to json` is one array, also when there is nothing."""
        with Checkpoint("empty.jsonl"):
            pass

        assert len(json.loads(cli("export", "c.jsonl", "--to", "json").stdout)) == 2
        assert json.loads(cli("export", "empty.jsonl", "--to", "json").stdout) == []

    def test_csv(self):
        """`--to csv` is read by any CSV reader; `--raw` leaves line breaks in texts as they are."""

        def rows(*options: str) -> list[dict[str, str]]:
            text = cli("export", "c.jsonl", "--to", "csv", *options).stdout

            return list(csv.DictReader(io.StringIO(text)))

        assert [row["error_message"] for row in rows()] == ["", "a, b\\nc"]
        assert [row["error_message"] for row in rows("--raw")] == ["", "a, b\nc"]
        assert json.loads(rows()[0]["result"]) == {"said": "é"}

    def test_into_a_file(self):
        """`-o FILE` writes the same; never over the checkpoint itself."""
        printed = cli("export", "c.jsonl").stdout
        cli("export", "c.jsonl", "-o", "out.jsonl")
        before = Path("c.jsonl").read_bytes()
        refused = cli("export", "c.jsonl", "-o", "c.jsonl")

        assert Path("out.jsonl").read_text() == printed
        assert (refused.returncode, Path("c.jsonl").read_bytes()) == (64, before)

    def test_jq_reads_it(self):
        """What is exported, and the checkpoint itself, are input for jq."""
        if shutil.which("jq") is None:
            pytest.skip("jq is not installed")
        query = 'select(.status == "ok") | .result.said'
        for text in (cli("export", "c.jsonl").stdout, Path("c.jsonl").read_text()):
            found = subprocess.run(
                ["jq", "-r", query], input=text, capture_output=True, text=True, check=True
            )
            assert found.stdout == "é\n"

    def test_nothing_is_ever_unpickled(self):
        """Results of another serializer are exported as the text they are in the file."""
        import pickle

        with Checkpoint("p.jsonl", serializer=pickle) as checkpoint:
            checkpoint.save("a", {1, 2})
        (row,) = map(json.loads, cli("export", "p.jsonl").stdout.splitlines())

        assert isinstance(row["result"], str)
        assert cli("show", "p.jsonl").returncode == 0
        assert cli("compact", "p.jsonl").returncode == 0
        assert Checkpoint("p.jsonl", serializer=pickle, read_only=True)["a"].result == {1, 2}


class TestVerifyAndRepair:
    def test_a_sound_file(self):
        """A sound file verifies with 0, and repairing it changes nothing."""
        save(a="ok")
        before = Path("c.jsonl").read_bytes()

        assert cli("verify", "c.jsonl").returncode == 0
        assert cli("repair", "c.jsonl").returncode == 0
        assert Path("c.jsonl").read_bytes() == before

    def test_a_damaged_file(self):
        """Damage verifies with 1 and the line's number; after a repair the rest is there."""
        damage()
        found = cli("verify", "c.jsonl")
        repaired = cli("repair", "c.jsonl")

        assert found.returncode == 1
        assert "DAMAGED" in found.stdout
        assert "line 2" in found.stdout
        assert repaired.returncode == 0
        assert "the damaged bytes are in" in repaired.stdout
        assert statuses() == {"two": "ok"}
        assert cli("verify", "c.jsonl").returncode == 0

    def test_a_file_that_is_no_checkpoint(self):
        """What is no checkpoint at all is not repaired, read, or touched."""
        Path("c.jsonl").write_text("dear diary\n")

        assert cli("verify", "c.jsonl").returncode == 1
        for verb in ("repair", "show", "export", "compact"):
            done = cli(verb, "c.jsonl")
            assert (done.returncode, len(done.stderr.splitlines())) == (65, 1), verb
        assert Path("c.jsonl").read_text() == "dear diary\n"


class TestKeeping:
    def test_compact(self):
        """`compact` drops superseded lines and keeps every record."""
        for _ in range(5):
            save(a="ok", b="error")
        before = Path("c.jsonl").stat().st_size
        done = cli("compact", "c.jsonl")

        assert (done.returncode, statuses()) == (0, {"a": "ok", "b": "error"})
        assert Path("c.jsonl").stat().st_size < before
        assert f"{before:,} bytes, now" in done.stdout

    def test_forget(self):
        """`forget` drops ids, or a status; an unknown id is named, and exits with 1."""
        save(a="ok", b="error", c="error", d="ok")
        by_id = cli("forget", "c.jsonl", "a", "nobody")
        by_status = cli("forget", "c.jsonl", "--status", "error")

        assert by_id.returncode == 1
        assert "forgot 1 item;" in by_id.stdout
        assert "no record of 'nobody'" in by_id.stderr
        assert (by_status.returncode, statuses()) == (0, {"d": "ok"})

    def test_adopt_json_lines(self):
        """`adopt` makes each row the result of its id; ids that are there keep their record."""
        save(a="pass")
        Path("rows.jsonl").write_text('{"id": "a"}\n\n{"id": 7, "score": 0.5}\n')
        done = cli("adopt", "c.jsonl", "rows.jsonl", "--key", "id", "--status", "old")

        assert "1 new record" in done.stdout
        assert statuses() == {"a": "pass", "7": "old"}
        assert Checkpoint("c.jsonl", read_only=True)["7"].result == {"id": 7, "score": 0.5}

    def test_adopt_csv(self):
        """A file whose name ends in .csv is read as CSV, with its first line as names."""
        Path("rows.CSV").write_bytes(b'\xef\xbb\xbfid,text\r\n1,"a, b"\r\n')
        cli("adopt", "c.jsonl", "rows.CSV", "--key", "id")

        assert Checkpoint("c.jsonl", read_only=True)["1"].result == {"id": "1", "text": "a, b"}

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("rows.jsonl", '{"id": 1}\n{"id"\n', "line 2 is not JSON"),
            ("rows.jsonl", "[1]\n", "line 1 is not an object with the field 'id'"),
            ("rows.jsonl", '{"ID": 1}\n', "line 1 is not an object with the field 'id'"),
            ("rows.jsonl", '{"id": 1, "x": NaN}\n', "$.x"),
            ("rows.csv", "a,b\n1,2\n", "no column 'id'"),
            ("rows.csv", "id,b\n1\n", "line 2 has not as many fields"),
            ("rows.csv", 'id,b\n1,"2\n', "line 2"),
            ("rows.csv", "id,b\n1,caf\udce9\n", "is not UTF-8"),
            ("rows.jsonl", '{"id": "caf\udce9"}\n', "is not UTF-8"),
        ],
    )
    def test_adopt_refuses_what_does_not_fit(self, name, text, message):
        """A row that cannot be taken in is named by file and line, and exits with 65."""
        Path(name).write_text(text, encoding="utf-8", errors="surrogateescape")
        done = cli("adopt", "c.jsonl", name, "--key", "id")

        assert (done.returncode, done.stdout) == (65, "")
        assert message in done.stderr


class TestClean:
    @pytest.fixture(autouse=True)
    def _leftovers(self):
        save(a="ok")
        damage("c.jsonl.tmp")  # somebody else's file: its name only looks alike
        Path("c.jsonl.old-stuff").touch()
        with Checkpoint("c.jsonl", fresh=True) as checkpoint:
            checkpoint.save("b")
        Path("c.jsonl.torn-20300101T000000.000Z-abcd").touch()
        Path("c.jsonl.damaged-20300101T000000.000Z-abcd").touch()
        Path(self.LEFTOVER).touch()

    LEFTOVER = "c.jsonl.tmp-123-0123abcd"
    ASIDE = frozenset(
        {
            "c.jsonl.old-1",
            "c.jsonl.torn-20300101T000000.000Z-abcd",
            "c.jsonl.damaged-20300101T000000.000Z-abcd",
            LEFTOVER,
            "c.jsonl.lock",
        }
    )

    def test_it_asks(self):
        """`clean` lists what it would delete, and deletes nothing without a yes."""
        before = set(os.listdir())
        done = cli("clean", "c.jsonl", stdin=b"\n")

        assert done.returncode == 1
        assert {Path(line.strip()).name for line in done.stdout.splitlines()[:-1]} == self.ASIDE
        assert set(os.listdir()) == before
        os.unlink(self.LEFTOVER)

    @pytest.mark.parametrize(("options", "answer"), [((), b"yes\n"), (("--yes",), b"")])
    def test_it_deletes_what_lockstitch_left(self, options, answer):
        """With a yes it deletes what lockstitch left there, and no other file."""
        before = set(os.listdir())
        done = cli("clean", "c.jsonl", *options, stdin=answer)

        assert done.returncode == 0
        assert before - set(os.listdir()) == self.ASIDE
        assert statuses() == {"b": "ok"}

    def test_all_means_the_checkpoint_too(self):
        """`--all` deletes the checkpoint as well."""
        before = set(os.listdir())
        cli("clean", "c.jsonl", "--all", "--yes")

        assert before - set(os.listdir()) == self.ASIDE | {"c.jsonl"}

    def test_nothing_to_delete(self):
        """Where nothing lies beside a checkpoint, nothing is asked."""
        cli("clean", "c.jsonl", "--yes")
        done = cli("clean", "c.jsonl")

        assert (done.returncode, "nothing lies beside" in done.stdout) == (0, True)


# For scripts of one's own


def parsed(*args: str, **options: str):
    parser = argparse.ArgumentParser()
    add_arguments(parser, **options)

    return from_arguments(parser.parse_args(list(args)))


class TestArguments:
    def test_they_fit_checkpoint_and_batch(self):
        """The parsed options are keyword arguments of `Checkpoint` and `ResumableBatch`."""
        a = parsed("--checkpoint", "run.jsonl", "--max-wait", "5")
        with ResumableBatch(Checkpoint(**a.checkpoint), ["x"], **a.batch) as batch:
            batch.run(str.upper)
        again = parsed("--checkpoint", "run.jsonl", "--fresh")
        with ResumableBatch(Checkpoint(**again.checkpoint), ["x"], **again.batch) as batch:
            summary = batch.run(str.upper)

        assert (a.batch["max_wait"], summary.done_before) == (5.0, 0)
        assert Path("run.jsonl.old-1").exists()

    def test_retry_errors(self):
        """`--retry-errors` alone means every error; with words, those that name one."""
        record = Record("1", "error", error=ErrorInfo("openai.RateLimitError", "slow down"))
        redo = parsed("--checkpoint", "c", "--retry-errors", "timeout, ratelimit").batch["redo"]
        other = parsed("--checkpoint", "c", "--retry-errors", "timeout").batch["redo"]
        message = parsed("--checkpoint", "c", "--retry-errors", "Slow").batch["redo"]

        assert parsed("--checkpoint", "c").batch["redo"] is None
        assert parsed("--checkpoint", "c", "--retry-errors").batch["redo"] == "error"
        assert (redo(record), other(record), message(record)) == (True, False, True)
        assert not redo(Record("1", "ok"))

    def test_a_script_may_bring_its_own_path(self):
        """`checkpoint=` is the path where none is given; without it, one must be."""
        assert parsed(checkpoint="mine.jsonl").checkpoint == {"path": "mine.jsonl", "fresh": False}
        with pytest.raises(SystemExit):
            parsed()

    def test_a_wrong_value_is_a_wrong_call(self):
        """What `--max-wait` would not take is refused when parsing."""
        with pytest.raises(SystemExit):
            parsed("--checkpoint", "c", "--max-wait", "soon")


def test_main_leaves_the_process_as_it_was(capsys):
    """In a process of yours, `main` returns the code and puts handlers and logging back."""
    import logging

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    Path("items").write_text("1\n")

    assert main(["run", "c.jsonl", "-a", "items", "--", "true"]) == 0
    assert main(["show", "none"]) == 66
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert logging.getLogger("lockstitch").propagate
    assert "lockstitch: " in capsys.readouterr().err
