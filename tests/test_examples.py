"""The example scripts are what they claim to be: batches that no kill and no Ctrl-C can harm.

Each test runs the script as its user does, in a process of its own, on real files and commands.
"""

import ast
import importlib.util
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import tokenize
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import lockstitch

EXAMPLES = Path(__file__).parents[1] / "examples"
STDLIB = Path(sysconfig.get_path("stdlib"))
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(lockstitch.__file__).parents[1])}

posix_only = pytest.mark.skipif(os.name != "posix", reason="signals and process groups of POSIX")
with_lizard = pytest.mark.skipif(
    importlib.util.find_spec("lizard") is None, reason="pip install '.[examples]'"
)


def start(script, folder, *arguments, **options):
    """Start an example in `folder`, in a session of its own, as from a terminal."""
    return subprocess.Popen(
        [sys.executable, str(EXAMPLES / script), *arguments],
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def run(script, folder, *arguments):
    """Run an example to its end; return exit code, standard output and standard error."""
    process = start(script, folder, *arguments)
    out, err = process.communicate(timeout=60)

    return process.returncode, out, err


def wait_until(condition, process):
    """Poll until `condition()` holds; fail when the process ends before."""
    deadline = time.monotonic() + 30
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.003)


def lines(path, kind):
    """Return the complete lines of a checkpoint that begin with `kind`, parsed."""
    if not path.exists():
        return []
    complete = path.read_bytes().split(b"\n")[:-1]

    return [json.loads(line) for line in complete if line.startswith(b'{"%s":' % kind.encode())]


def recorded(path):
    """Return the ids of the records in a checkpoint, in order, repetitions included."""
    return [line["id"] for line in lines(path, "id")]


def count(path):
    """Return how many records are in a checkpoint; cheap enough to be asked all the time."""
    return path.read_bytes().count(b'\n{"id":') if path.exists() else 0


def statuses(path):
    """Return the last status of each id in a checkpoint."""
    return {line["id"]: line["status"] for line in lines(path, "id")}


# audit_stdlib.py

SAMPLE = 300
KILLS = 20


def parses(file):
    """Tell whether a file of the standard library is Python, by the parser's own word."""
    try:
        with tokenize.open(STDLIB / file) as opened, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(opened.read())
    except (SyntaxError, ValueError):
        return False

    return True


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Run the audit, with kill -9 at random moments, until it comes to its end."""
    folder = tmp_path_factory.mktemp("killed")
    path = folder / "audit_stdlib.jsonl"
    moments = sorted(random.Random(20).sample(range(1, SAMPLE - 1), KILLS))
    acknowledged = []
    for moment in moments:
        process = start("audit_stdlib.py", folder, "--limit", str(SAMPLE))
        wait_until(lambda moment=moment: count(path) >= moment, process)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        acknowledged.append(recorded(path))

    return path, acknowledged, run("audit_stdlib.py", folder, "--limit", str(SAMPLE))


@posix_only
@with_lizard
def test_twenty_kills_lose_no_file_and_pay_for_none_twice(killed):
    """What was on the disk at a kill is kept and never begun again; each file has one record."""
    path, acknowledged, _ = killed
    final = recorded(path)

    assert len(final) == len(set(final)) == SAMPLE
    for before in acknowledged:
        assert final[: len(before)] == before
    done = set()
    for record in map(json.loads, path.read_text().splitlines()):
        assert "start" not in record or record["start"] not in done
        done.add(record.get("id"))
    begun = [line["start"] for line in lines(path, "start")]
    assert SAMPLE <= len(begun) <= SAMPLE + KILLS


@posix_only
@with_lizard
def test_a_file_that_does_not_parse_is_an_error_record(killed):
    """Exactly the files that are not Python are booked as errors, and they decide the exit code."""
    path, _, (code, out, _) = killed
    errors = {id for id, status in statuses(path).items() if status == "error"}

    assert errors == {id for id in recorded(path) if not parses(id)}
    assert code == (1 if errors else 0)
    assert f"Files that do not parse: {len(errors)}\n" in out


@posix_only
@with_lizard
def test_the_table_covers_earlier_runs(killed):
    """The last of many starts tells of all files, and names the longest function there is."""
    path, _, (_, out, err) = killed
    results = {line["id"]: line["result"] for line in lines(path, "id") if "result" in line}
    longest = max(r["longest"]["lines"] for r in results.values() if r["longest"])
    total = sum(r["lines"] for r in results.values())

    assert f"{len(results):,} files, {total:,} lines" in out
    assert re.search(rf"lines\n +{longest:,}  \S+:\d+ \w+\n", out)
    assert err.splitlines()[-1].startswith(f"{SAMPLE} of {SAMPLE} files")


@posix_only
@with_lizard
def test_retry_errors_measures_failed_files_only(killed, tmp_path):
    """--retry-errors begins the files with an error again, and no other."""
    path = Path(shutil.copy(killed[0], tmp_path))
    before, errors = recorded(path), [i for i, s in statuses(path).items() if s == "error"]
    code, _, _ = run("audit_stdlib.py", tmp_path, "--limit", str(SAMPLE), "--retry-errors")

    assert recorded(path) == before + errors
    assert code == (1 if errors else 0)


@with_lizard
def test_fresh_begins_anew_and_keeps_the_old_file(tmp_path):
    """--fresh sets the old checkpoint aside, and --checkpoint says where it is."""
    for _ in range(2):
        run("audit_stdlib.py", tmp_path, "--limit", "2", "--checkpoint", "a.jsonl", "--fresh")

    assert len(recorded(tmp_path / "a.jsonl")) == len(recorded(tmp_path / "a.jsonl.old-1")) == 2


@posix_only
@with_lizard
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_signal_finishes_the_file_and_then_ends_the_audit(tmp_path, number):
    """It dies of the signal, later: what was begun is finished, and the next start goes on."""
    path = tmp_path / "audit_stdlib.jsonl"
    process = start("audit_stdlib.py", tmp_path, "--limit", "40")
    wait_until(lambda: count(path) >= 3, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)

    assert process.returncode == -number
    assert f"{number.name}: finishing" in err
    first = recorded(path)
    assert first == [line["start"] for line in lines(path, "start")]
    assert {id for id, status in statuses(path).items() if status == "error"} == {
        id for id in first if not parses(id)
    }

    code, out, _ = run("audit_stdlib.py", tmp_path, "--limit", "40")
    assert code in (0, 1)
    assert f"{len(first)} done before" in out
    assert recorded(path)[: len(first)] == first
    assert len(recorded(path)) == len(set(recorded(path))) == 40


# audit_on_dask.py


@with_lizard
def test_the_audit_goes_on_where_it_stopped_on_a_dask_cluster(tmp_path):
    """What the serial audit has measured is not measured again, and the table is the same."""
    pytest.importorskip("distributed")
    path = tmp_path / "audit_stdlib.jsonl"
    run("audit_stdlib.py", tmp_path, "--limit", "10")
    before = recorded(path)
    code, out, err = run("audit_on_dask.py", tmp_path, "--limit", "40", "--workers", "1")
    _, serial, _ = run("audit_stdlib.py", tmp_path, "--limit", "40", "--checkpoint", "serial.jsonl")

    assert re.search(r"^dashboard: http://\S+/status$", out, re.MULTILINE), err
    assert set(before) < set(recorded(path))
    assert len(recorded(path)) == len(set(recorded(path)))
    assert statuses(path).items() >= statuses(tmp_path / "serial.jsonl").items()
    assert code == (1 if "error" in statuses(path).values() else 0)
    assert out.partition("\n\n")[2].splitlines()[1:] == serial.partition("\n\n")[2].splitlines()[1:]


# e2e_batch.py

LOG_LINE = re.compile(r"run (\d+) \| (\S+) \| \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00 \| .*")

PASS = "print('fine')"
FAIL = "raise SystemExit(3)"
#: Tells its process id, and lasts until a file named `go` is there.
LASTS = """\
import os, time
print('ready', os.getpid(), flush=True)
while not os.path.exists('go'):
    time.sleep(0.01)
"""


@pytest.fixture
def batch(tmp_path):
    """Return a function that writes a manifest of Python snippets, and returns its argument."""

    def write(timeout=30, **tests):
        return write_manifest(
            tmp_path, timeout, {n: ["{python}", "-c", code] for n, code in tests.items()}
        )

    return write


def write_manifest(folder, timeout, commands):
    """Write a manifest; return the argument that names it."""
    tables = [
        f"[tests.{name}]\ncommand = {json.dumps(command)}\ntimeout = {timeout}\n"
        for name, command in commands.items()
    ]
    (folder / "manifest.toml").write_text("\n".join(tables))

    return "--manifest=manifest.toml"


def e2e(folder, *arguments):
    """Run the batch of tests to its end."""
    return run("e2e_batch.py", folder, *arguments)


def log(folder, name):
    """Return the log of a test; empty if it has none."""
    path = folder / "e2e-logs" / f"{name}.log"

    return path.read_text() if path.exists() else ""


def times_run(folder, name):
    """Tell how often a test was started, by its log."""
    return log(folder, name).count("| $ ")


def alive(pid):
    """Tell whether a process runs; a dead one that nobody has reaped yet does not."""
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True, check=False
    )

    return bool(state.stdout.strip()) and not state.stdout.startswith("Z")


def ready(folder, name):
    """Return the process id that a test says it has; None before it runs."""
    said = re.search(r"\| ready (\d+)", log(folder, name))

    return said and said[1]


def told(process, text):
    """Read what a process writes to standard error, up to the line that holds `text`."""
    for line in process.stderr:
        if text in line:
            return

    pytest.fail(f"{text!r} was never said")


@posix_only
def test_the_shipped_manifest_passes_as_it_is(tmp_path):
    """Without a single argument the script runs its own tests, from any folder."""
    code, out, err = e2e(tmp_path)

    assert (code, err) == (0, "")
    assert set(statuses(tmp_path / "e2e.jsonl").values()) == {"pass"}
    assert "4 done" in out


@posix_only
def test_an_exit_code_is_an_answer_and_what_could_not_run_is_an_error(tmp_path):
    """Non-zero is "fail", no such program is "error", either makes 1; the other tests still run."""
    commands = {
        "absent": ["no-such-program"],
        "fails": ["{python}", "-c", FAIL],
        "passes": ["{python}", "-c", PASS],
    }
    manifest = write_manifest(tmp_path, 30, commands)
    code, out, _ = e2e(tmp_path, manifest)

    assert statuses(tmp_path / "e2e.jsonl") == {
        "absent": "error",
        "fails": "fail",
        "passes": "pass",
    }
    assert code == 1
    assert re.search(r"^fail +fails +exit code 3; see e2e-logs/fails.log$", out, re.MULTILINE)

    assert e2e(tmp_path, manifest)[0] == 1
    assert times_run(tmp_path, "fails") == 1


@posix_only
def test_a_failure_alone_makes_1(tmp_path, batch):
    """A run whose only blemish is a "fail" exits with 1, in this start and in the next."""
    manifest = batch(fails=FAIL)

    assert [e2e(tmp_path, manifest)[0] for _ in range(2)] == [1, 1]


@posix_only
def test_retry_errors_runs_tests_with_an_error_only(tmp_path, batch):
    """--retry-errors runs what timed out, with a longer timeout if there is one; no failed test."""
    manifest = batch(timeout=0.5, slow=LASTS, fails=FAIL, passes=PASS)
    e2e(tmp_path, manifest)
    assert statuses(tmp_path / "e2e.jsonl")["slow"] == "error"

    (tmp_path / "go").touch()
    manifest = batch(timeout=30, slow=LASTS, fails=FAIL, passes=PASS)
    code, _, _ = e2e(tmp_path, manifest, "--retry-errors")

    assert code == 1
    assert statuses(tmp_path / "e2e.jsonl") == {"slow": "pass", "fails": "fail", "passes": "pass"}
    assert [times_run(tmp_path, name) for name in ("slow", "fails", "passes")] == [2, 1, 1]


@posix_only
def test_a_timeout_kills_everything_that_the_test_has_started(tmp_path, batch):
    """A test that takes too long is an error, and neither it nor its children are left."""
    family = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {LASTS!r}])"
    code, _, _ = e2e(tmp_path, batch(timeout=1.5, family=family))

    assert code == 1
    assert statuses(tmp_path / "e2e.jsonl") == {"family": "error"}
    assert not alive(ready(tmp_path, "family"))


@posix_only
def test_logs_are_appended_to_and_every_line_says_where_it_is_from(tmp_path, batch):
    """No start shortens a log, and each of its lines has run, test and time in front."""
    manifest = batch(noisy="print('one\\ntwo'); import no_such_module")
    e2e(tmp_path, manifest)
    first = log(tmp_path, "noisy")
    e2e(tmp_path, manifest, "--fresh")
    second = log(tmp_path, "noisy")

    assert second.startswith(first)
    assert second.count("\n") == 2 * first.count("\n")
    for line in second.splitlines():
        assert LOG_LINE.fullmatch(line)[2] == "noisy"
    assert "| one\n" in first
    assert "ModuleNotFoundError" in first


@posix_only
def test_a_run_is_numbered_in_the_log(tmp_path, batch):
    """Lines of a second run say so."""
    manifest = batch(timeout=0.3, slow=LASTS)
    for arguments in ([], ["--retry-errors"]):
        e2e(tmp_path, manifest, *arguments)

    runs = [LOG_LINE.fullmatch(line)[1] for line in log(tmp_path, "slow").splitlines()]
    assert sorted(set(runs)) == ["1", "2"]


@posix_only
def test_fresh_runs_all_and_keeps_the_old_checkpoint(tmp_path, batch):
    """--fresh sets the old file aside; --checkpoint and --logs say where things are."""
    arguments = [batch(a=PASS, b=PASS), "--checkpoint=c.jsonl", "--logs=out/logs"]
    e2e(tmp_path, *arguments)
    code, _, _ = e2e(tmp_path, *arguments, "--fresh")

    assert code == 0
    assert len(recorded(tmp_path / "c.jsonl")) == len(recorded(tmp_path / "c.jsonl.old-1")) == 2
    assert (tmp_path / "out/logs/a.log").read_text().count("| $ ") == 2


@posix_only
def test_tests_narrows_the_batch_to_those_named(tmp_path, batch):
    """--tests runs these alone and answers for these alone; a later start runs the others."""
    manifest = batch(a=PASS, b=FAIL, c=PASS)

    assert e2e(tmp_path, manifest, "--tests", "a", "c")[0] == 0
    assert set(statuses(tmp_path / "e2e.jsonl")) == {"a", "c"}
    assert e2e(tmp_path, manifest)[0] == 1
    assert [times_run(tmp_path, name) for name in "abc"] == [1, 1, 1]
    code, _, err = e2e(tmp_path, manifest, "--tests", "d")
    assert code == 64
    assert "no test 'd'" in err


@posix_only
def test_the_guard_holds_the_batch_back_until_its_file_is_gone(tmp_path, batch):
    """Limited: exit code 2, one line that says until when and why, and nothing is run."""
    arguments = [batch(a=PASS), "--status-file=status.json"]
    status = tmp_path / "status.json"
    status.write_text('{"resume_at": "2099-01-01T00:00:00Z", "reason": "deployment"}')
    code, out, err = e2e(tmp_path, *arguments)

    assert code == 2
    assert out == "limited until 2099-01-01 00:00:00 UTC (deployment); run this again then\n"
    assert "1 pending" in err
    assert times_run(tmp_path, "a") == 0

    status.unlink()
    assert e2e(tmp_path, *arguments)[0] == 0


@posix_only
def test_a_limit_that_comes_up_midway_parks_the_batch(tmp_path, batch):
    """The guard is asked before each test; the rest is pending, and runs when the time has come."""
    limit = (
        "import datetime, json\n"
        "at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=1.5)\n"
        "json.dump({'resume_at': at.isoformat(), 'reason': 'quota'}, open('status.json', 'w'))"
    )
    arguments = [batch(first=limit, second=PASS), "--status-file=status.json"]
    code, out, _ = e2e(tmp_path, *arguments)

    assert code == 2
    assert out.splitlines()[-1].endswith("UTC (quota); run this again then")
    assert statuses(tmp_path / "e2e.jsonl") == {"first": "pass"}

    codes = [code]
    while codes[-1] == 2 and len(codes) < 60:
        codes.append(e2e(tmp_path, *arguments)[0])
    assert codes[-1] == 0
    assert times_run(tmp_path, "first") == 1


@posix_only
def test_ctrl_c_lets_the_running_test_finish_and_books_no_failure(tmp_path, batch):
    """Ctrl-C reaches the whole group of a terminal, and still the test ends by itself."""
    manifest = batch(lasts=LASTS, next=PASS)
    process = start("e2e_batch.py", tmp_path, manifest)
    wait_until(lambda: ready(tmp_path, "lasts"), process)
    os.killpg(process.pid, signal.SIGINT)
    told(process, "finishing 1 item")
    (tmp_path / "go").touch()
    process.communicate(timeout=30)

    assert process.returncode == -signal.SIGINT
    assert statuses(tmp_path / "e2e.jsonl") == {"lasts": "pass"}
    assert e2e(tmp_path, manifest)[0] == 0
    assert [times_run(tmp_path, name) for name in ("lasts", "next")] == [1, 1]


@posix_only
def test_a_second_ctrl_c_kills_the_running_test_and_leaves_it_pending(tmp_path, batch):
    """It ends at once and without an orphan; the next start runs the test again."""
    manifest = batch(lasts=LASTS)
    process = start("e2e_batch.py", tmp_path, manifest)
    wait_until(lambda: ready(tmp_path, "lasts"), process)
    pid = ready(tmp_path, "lasts")
    os.killpg(process.pid, signal.SIGINT)
    told(process, "finishing 1 item")
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=30)

    assert process.returncode == -signal.SIGINT
    assert not alive(pid)
    assert recorded(tmp_path / "e2e.jsonl") == []

    (tmp_path / "go").touch()
    assert e2e(tmp_path, manifest)[0] == 0
    assert times_run(tmp_path, "lasts") == 2


@posix_only
def test_a_test_that_ctrl_c_reaches_all_the_same_stays_pending(tmp_path, batch):
    """Dying of the user's Ctrl-C is not an answer of the test."""
    process = start("e2e_batch.py", tmp_path, batch(lasts=LASTS))
    wait_until(lambda: ready(tmp_path, "lasts"), process)
    os.killpg(process.pid, signal.SIGINT)
    told(process, "finishing 1 item")
    os.kill(int(ready(tmp_path, "lasts")), signal.SIGINT)
    process.communicate(timeout=30)

    assert process.returncode == -signal.SIGINT
    assert recorded(tmp_path / "e2e.jsonl") == []


@posix_only
def test_a_timeout_after_ctrl_c_is_not_booked(tmp_path, batch):
    """Once a stop was asked for, nothing becomes an error: the test stays pending."""
    process = start("e2e_batch.py", tmp_path, batch(timeout=1.5, lasts=LASTS))
    wait_until(lambda: ready(tmp_path, "lasts"), process)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=30)

    assert process.returncode == -signal.SIGINT
    assert "not finished after 1.5 s" in log(tmp_path, "lasts")
    assert recorded(tmp_path / "e2e.jsonl") == []


@posix_only
def test_a_test_gets_no_input(tmp_path, batch):
    """What is typed at the batch is not eaten by a test: its standard input is empty."""
    manifest = batch(reads="import sys; raise SystemExit(len(sys.stdin.read()))")
    process = start("e2e_batch.py", tmp_path, manifest, stdin=subprocess.PIPE)
    process.communicate("typed\n", timeout=30)

    assert process.returncode == 0


@posix_only
def test_another_command_is_refused_and_another_timeout_is_not(tmp_path, batch):
    """Records of other commands are not mixed in unless --keep-results says so."""
    e2e(tmp_path, batch(a=PASS, b=PASS))
    assert e2e(tmp_path, batch(timeout=9, a=PASS, b=PASS))[0] == 0

    manifest = batch(a=PASS, b=FAIL, c=PASS)
    code, out, err = e2e(tmp_path, manifest)
    assert (code, out) == (64, "")
    assert "another config" in err
    assert FAIL in err
    assert e2e(tmp_path, manifest, "--keep-results")[0] == 0
    assert [times_run(tmp_path, name) for name in "abc"] == [1, 1, 1]


@posix_only
@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ('[tests.a]\ncommand = ["true", ""]\ntimeout = 1', "argument 1 of command is empty"),
        ('[tests.a]\ncommand = "true"\ntimeout = 1', "needs a command"),
        ("[tests.a]\ncommand = []\ntimeout = 1", "needs a command"),
        ('[tests.a]\ncommand = ["true"]', "needs a timeout"),
        ('[tests.a]\ncommand = ["true"]\ntimeout = 1\ntimeuot = 2', "unknown 'timeuot'"),
        ('[tests."a/b"]\ncommand = ["true"]\ntimeout = 1', "names a log file"),
        ('[test.a]\ncommand = ["true"]\ntimeout = 1', "has no tests"),
        ("[tests]\na = 1", "needs to be a table"),
        ("[tests", "manifest.toml: "),
    ],
)
def test_a_wrong_manifest_is_refused_before_anything_is_written(tmp_path, manifest, message):
    """The message names file, test and mistake; the exit code is neither 1 nor 2."""
    (tmp_path / "manifest.toml").write_text(manifest)
    code, out, err = e2e(tmp_path, "--manifest=manifest.toml")

    assert (code, out) == (64, "")
    assert err.startswith("e2e_batch.py: manifest.toml: ")
    assert message in err
    assert os.listdir(tmp_path) == ["manifest.toml"]


@posix_only
def test_cleanup_says_what_it_removes_and_removes_no_more(tmp_path, batch):
    """Checkpoint, lock and the tests' logs go; whatever else lies there stays."""
    manifest = batch(a=PASS)
    e2e(tmp_path, manifest)
    (tmp_path / "e2e-logs" / "mine.txt").touch()
    code, out, _ = e2e(tmp_path, manifest, "--cleanup")

    assert code == 0
    assert out.splitlines() == [
        "removing e2e.jsonl",
        "removing e2e.jsonl.lock",
        "removing e2e-logs/a.log",
    ]
    assert sorted(os.listdir(tmp_path)) == ["e2e-logs", "manifest.toml"]
    assert os.listdir(tmp_path / "e2e-logs") == ["mine.txt"]


@posix_only
def test_cleanup_refuses_while_the_batch_runs(tmp_path, batch):
    """The files of a running batch are not pulled away from under it."""
    manifest = batch(a=PASS)
    e2e(tmp_path, manifest)
    with lockstitch.Checkpoint(tmp_path / "e2e.jsonl"):
        code, out, err = e2e(tmp_path, manifest, "--cleanup")

    assert (code, out) == (64, "")
    assert "in use by pid" in err
    assert times_run(tmp_path, "a") == 1


# Several tests at a time

#: Passes once all four of them run, and never before.
MEETS = (
    "import os, pathlib, sys, time\n"
    "pathlib.Path(f'here-{os.getpid()}').touch()\n"
    "while len(list(pathlib.Path().glob('here-*'))) < 4: time.sleep(0.01)\n"
)


def all_ready(folder, names):
    """Tell whether all these tests have said that they run."""
    return all(ready(folder, name) for name in names)


@posix_only
def test_concurrency_runs_so_many_tests_at_a_time(tmp_path, batch):
    """Tests that need each other meet; the answers are those of any order, a line for each."""
    manifest = batch(a=MEETS, b=MEETS + FAIL, c=MEETS, d=MEETS)
    code, out, _ = e2e(tmp_path, manifest, "--concurrency=4")

    expected = {"a": "pass", "b": "fail", "c": "pass", "d": "pass"}
    assert code == 1
    assert statuses(tmp_path / "e2e.jsonl") == expected
    told = re.findall(r"^(pass|fail) +(\w)  \d+\.\d s$", out, re.MULTILINE)
    assert sorted((name, status) for status, name in told) == sorted(expected.items())

    code, out, _ = e2e(tmp_path, manifest, "--concurrency=2")
    assert code == 1
    assert not re.search(r"^pass", out, re.MULTILINE)
    assert [times_run(tmp_path, name) for name in "abcd"] == [1, 1, 1, 1]


@posix_only
def test_tests_that_run_at_once_do_not_write_into_each_others_lines(tmp_path, batch):
    """Each log has its own test's lines, all of them, whole and in order."""
    writes = "for number in range(300): print(number, '{}' * 200, flush=number % 7 == 0)"
    e2e(tmp_path, batch(**{name: writes.format(name) for name in "abcd"}), "--concurrency=4")

    for name in "abcd":
        lines = [LOG_LINE.fullmatch(line) for line in log(tmp_path, name).splitlines()]
        assert {line[2] for line in lines} == {name}
        texts = [line[0].rpartition(" | ")[2] for line in lines[-301:]]
        assert texts == [f"{number} {name * 200}" for number in range(300)] + ["exit code 0"]


@posix_only
def test_ctrl_c_lets_all_running_tests_finish(tmp_path, batch):
    """Each of them gets its answer, none of them "fail"; what had not begun does not begin."""
    manifest = batch(a=LASTS, b=LASTS, c=LASTS, d=LASTS, next=PASS)
    process = start("e2e_batch.py", tmp_path, manifest, "--concurrency=4")
    wait_until(lambda: all_ready(tmp_path, "abcd"), process)
    os.killpg(process.pid, signal.SIGINT)
    told(process, "finishing 4 items")
    (tmp_path / "go").touch()
    process.communicate(timeout=30)

    assert process.returncode == -signal.SIGINT
    assert statuses(tmp_path / "e2e.jsonl") == dict.fromkeys("abcd", "pass")
    assert times_run(tmp_path, "next") == 0


@posix_only
def test_a_second_ctrl_c_kills_all_running_tests_and_leaves_them_pending(tmp_path, batch):
    """No thread's test is left behind as a process, and none is booked; the next start runs all."""
    manifest = batch(a=LASTS, b=LASTS, c=LASTS, d=LASTS)
    process = start("e2e_batch.py", tmp_path, manifest, "--concurrency=4")
    wait_until(lambda: all_ready(tmp_path, "abcd"), process)
    pids = [ready(tmp_path, name) for name in "abcd"]
    os.killpg(process.pid, signal.SIGINT)
    told(process, "finishing 4 items")
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=30)

    assert process.returncode == -signal.SIGINT
    assert not any(alive(pid) for pid in pids)
    assert recorded(tmp_path / "e2e.jsonl") == []

    (tmp_path / "go").touch()
    assert e2e(tmp_path, manifest, "--concurrency=4")[0] == 0


@posix_only
def test_a_limit_within_max_wait_is_waited_for(tmp_path, batch):
    """With --max-wait the same start goes on when the time in the status file has come."""
    resume_at = datetime.now(UTC) + timedelta(seconds=3)
    (tmp_path / "status.json").write_text(
        json.dumps({"resume_at": resume_at.isoformat(), "reason": "deployment"})
    )
    code, out, err = e2e(tmp_path, batch(a=PASS), "--status-file=status.json", "--max-wait=30")

    assert code == 0
    assert "deployment" in err
    assert "1 done" in out
    assert datetime.now(UTC) > resume_at
