"""The language model example comes to its end through limits and kills, and pays for nothing twice.

The server is a process of its own and outlives the batch. It counts what it has answered.
"""

import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest

import lockstitch

EXAMPLE = Path(__file__).parents[1] / "examples" / "llm_batch.py"
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(Path(lockstitch.__file__).parents[1]),
    "NO_PROXY": "127.0.0.1",
}

posix_only = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


def client(name):
    """Return a client as a parameter, skipped where it is not installed."""
    absent = importlib.util.find_spec(name) is None

    return pytest.param(name, marks=pytest.mark.skipif(absent, reason="pip install '.[examples]'"))


HTTPX = client("httpx")
CLIENTS = [HTTPX, client("openai"), client("anthropic")]


class Server:
    """The example's server, seen from outside."""

    def __init__(self, url):
        self.url = url

    def told(self):
        """Return what it says it has answered and refused."""
        with urllib.request.urlopen(self.url) as response:
            return json.load(response)

    def answers(self):
        """Return how often each prompt was answered."""
        return self.told()["answers"]


@contextmanager
def serving(**limits):
    """Run the server in a process of its own."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in limits.items()]
    with start(Path.cwd(), "--serve=0", *flags) as process:
        try:
            yield Server(process.stdout.readline().strip())
        finally:
            process.kill()


def start(folder, *arguments):
    """Start the example in `folder`."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(EXAMPLE), *arguments],
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder, *arguments):
    """Run the example to its end; return exit code, standard output and standard error."""
    with start(folder, *arguments) as process:
        out, err = process.communicate(timeout=60)

    return process.returncode, out, err


def asking(server, client, reviews, *more):
    """Return the arguments of a batch."""
    return [f"--base-url={server.url}", f"--client={client}", f"--reviews={reviews}", *more]


def lines(folder, kind):
    """Return the complete lines of the checkpoint that begin with `kind`, parsed."""
    path = folder / "llm_batch.jsonl"
    complete = path.read_bytes().split(b"\n")[:-1] if path.exists() else []

    return [json.loads(line) for line in complete if line.startswith(b'{"%s":' % kind.encode())]


def wait_until(condition, process):
    """Poll until `condition()` holds; fail when the process ends before."""
    deadline = time.monotonic() + 30
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def expected_label(prompt):
    """Return the answer to a prompt, by the server's rule."""
    first = hashlib.sha256(prompt.encode()).digest()[0]

    return ("positive", "negative", "neutral")[first % 3]


@posix_only
@pytest.mark.parametrize("client", CLIENTS)
def test_paused_killed_and_parked_it_pays_for_each_answer_once(tmp_path, client):
    """A limit is a pause, or exit code 2 and a later start, and no error; kill -9 costs nothing."""
    with serving(per_minute=40, minute=2, per_day=60, day=3, latency=0.01) as server:
        arguments = asking(server, client, 80)
        with start(tmp_path, *arguments) as process:
            # In the pause nothing is on its way, so a kill costs no answer.
            wait_until(lambda: lines(tmp_path, "pause"), process)
            wait_until(lambda: len(lines(tmp_path, "id")) == 40, process)
            process.kill()
        assert process.returncode == -signal.SIGKILL

        code, out, _ = run(tmp_path, *arguments, "--max-wait=2.5")
        parked = server.told()
        assert code == 2
        assert "20 ok" in out
        assert "stopped by limit" in out
        assert len(lines(tmp_path, "id")) == len(parked["answers"]) == 60
        assert set(parked["refusals"]) == {"requests per minute", "requests per day"}

        code, out, _ = run(tmp_path, *arguments, "--max-wait=30")
        told = server.told()

    assert code == 0
    assert "60 done before" in out
    assert {line["status"] for line in lines(tmp_path, "id")} == {"ok"}
    assert len(told["answers"]) == 80
    assert set(told["answers"].values()) == {1}
    # Nothing was asked while the day lasted.
    assert told["refusals"]["requests per day"] == parked["refusals"]["requests per day"]
    labels = Counter(map(expected_label, told["answers"]))
    assert labels == Counter(line["result"]["label"] for line in lines(tmp_path, "id"))
    for label, count in labels.items():
        assert f"\n{label:<10}{count:>8}" in out


@posix_only
@pytest.mark.parametrize("client", [HTTPX])
def test_a_kill_costs_no_more_than_what_was_on_its_way(tmp_path, client):
    """What was stored is not asked for again; each review has one answer in the end."""
    with serving(per_minute=10_000, per_day=10_000, latency=0.05) as server:
        arguments = asking(server, client, 150, "--concurrency=10")
        with start(tmp_path, *arguments) as process:
            wait_until(lambda: len(lines(tmp_path, "id")) >= 50, process)
            process.kill()
        assert process.returncode == -signal.SIGKILL
        stored = [line["id"] for line in lines(tmp_path, "id")]

        code, _, _ = run(tmp_path, *arguments)
        answers = server.answers()

    ids = [line["id"] for line in lines(tmp_path, "id")]
    assert code == 0
    assert ids[: len(stored)] == stored
    assert len(ids) == len(set(ids)) == len(answers) == 150
    assert sum(answers.values()) <= 150 + 10


@posix_only
@pytest.mark.parametrize("client", [HTTPX])
def test_ctrl_c_waits_for_the_answers_that_are_paid_for(tmp_path, client):
    """It ends by the signal, nothing is booked as an error, and no answer is asked for again."""
    with serving(per_minute=10_000, per_day=10_000, latency=0.1) as server:
        arguments = asking(server, client, 150, "--concurrency=10")
        with start(tmp_path, *arguments) as process:
            wait_until(lambda: len(lines(tmp_path, "id")) >= 20, process)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
        assert process.returncode == -signal.SIGINT
        assert "finishing" in err
        assert 20 <= len(server.answers()) == len(lines(tmp_path, "id")) < 150

        assert run(tmp_path, *arguments)[0] == 0
        answers = server.answers()

    assert {line["status"] for line in lines(tmp_path, "id")} == {"ok"}
    assert len(answers) == 150
    assert set(answers.values()) == {1}


@pytest.mark.parametrize("client", [HTTPX])
def test_without_arguments_it_brings_its_own_server(tmp_path, client):
    """The example runs as it is; the server it has started ends with it."""
    code, out, _ = run(tmp_path, f"--client={client}", "--reviews=30", "--per-minute=100")

    assert code == 0
    assert "30 ok" in out


@posix_only
@pytest.mark.parametrize("client", [HTTPX])
def test_supervised_it_comes_to_its_end_by_itself(tmp_path, client):
    """`lockstitch supervise` starts it again when the limit that has parked it is over."""
    with serving(per_minute=10_000, per_day=20, day=2, latency=0.01) as server:
        command = [sys.executable, str(EXAMPLE), *asking(server, client, 40, "--max-wait=1")]
        supervised = subprocess.run(
            [sys.executable, "-m", "lockstitch", "supervise", "llm_batch.jsonl", "--", *command],
            cwd=tmp_path,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        answers = server.answers()

    assert supervised.returncode == 0, supervised.stderr
    assert [line["reason"] for line in lines(tmp_path, "end")] == ["limit", "complete"]
    assert len(answers) == 40
    assert set(answers.values()) == {1}
