"""Real signals to real processes: drained, sealed, given back."""

import os
import signal
import subprocess
import sys

import pytest

from lockstitch import Checkpoint

BARE = """
with ResumableBatch(path, range(50)) as batch:
    for item in batch:
        begun(item)
        batch.save(item)
"""
ATTEMPT = """
with ResumableBatch(path, range(50)) as batch:
    for item in batch:
        with batch.attempt(item) as attempt:
            begun(item)
            attempt.save(item)
"""
RUN = """
with ResumableBatch(path, range(50)) as batch:
    batch.run(begun)
"""
MAP = """
with ResumableBatch(path, range(50)) as batch:
    for record in batch.map(begun):
        pass
"""
LOOP = """
@resumable(path)
def loop(items):
    for item in items:
        yield begun(item)
loop(range(50))
"""
PLAIN = """
work = resumable(path)(lambda item: begun(item))
with work:
    for item in range(50):
        work(item)
"""
FORMS = {"bare": BARE, "attempt": ATTEMPT, "run": RUN, "map": MAP, "loop": LOOP, "plain": PLAIN}

PRELUDE = """
import sys
from lockstitch import ResumableBatch, resumable
path = sys.argv[1]
def begun(item):
    # Item 3 tells that it is at work, and then waits to be told to go on.
    if item == 3:
        print("at work", flush=True)
        sys.stdin.readline()
        if "fail" in sys.argv:
            raise ValueError("killed by the same Ctrl-C")
    return item
"""


def start(form, path, *arguments):
    child = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + FORMS[form], str(path), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "at work\n"
    return child


def wait_for_answer(child):
    """Read what the first signal makes the library say; then the signal has been taken in."""
    return child.stderr.readline()


def finish(child):
    child.communicate("\n", timeout=30)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_finishes_what_runs_and_is_then_given_back(tmp_path, form, number):
    """The item in flight is stored, the rest is pending, and the process dies of the signal."""
    path = tmp_path / "run.jsonl"
    child = start(form, path)
    child.send_signal(number)
    said = wait_for_answer(child)
    finish(child)
    checkpoint = Checkpoint(path, read_only=True)

    assert child.returncode == -number
    assert f"{number.name}: finishing 1 item, once more to stop now" in said
    assert list(checkpoint) == ["0", "1", "2", "3"]
    assert checkpoint.stats().by_status == {"ok": 4}
    assert checkpoint.stats().stop_reason == "signal"


@pytest.mark.parametrize("form", ["attempt", "run", "map"])
def test_what_fails_after_a_stop_request_is_not_booked(tmp_path, form):
    """Ctrl-C kills the children too; their failure is not the item's."""
    path = tmp_path / "run.jsonl"
    child = start(form, path, "fail")
    child.send_signal(signal.SIGINT)
    wait_for_answer(child)
    finish(child)

    assert child.returncode == -signal.SIGINT
    assert list(Checkpoint(path, read_only=True)) == ["0", "1", "2"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_strikes_at_once(tmp_path, form, number):
    """Nobody has to wait for an item that takes hours; it is pending, and counts as no crash."""
    path = tmp_path / "run.jsonl"
    child = start(form, path)
    child.send_signal(number)
    wait_for_answer(child)
    child.send_signal(number)
    code = child.wait(timeout=30)
    child.communicate()

    assert code == -number
    assert list(Checkpoint(path, read_only=True)) == ["0", "1", "2"]
    with Checkpoint(path) as checkpoint:
        assert len(checkpoint) == 3


def test_an_ignored_signal_stays_ignored(tmp_path):
    """Under nohup a batch does not begin to listen."""
    code = (
        PRELUDE
        + """
import os, signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
with ResumableBatch(path, range(2)) as batch:
    for item in batch:
        os.kill(os.getpid(), signal.SIGINT)
        batch.save(item)
sys.exit(batch.exit_code)
"""
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "r")], check=False)

    assert done.returncode == 0


def test_the_callers_handler_gets_its_signal(tmp_path):
    """A handler that was there before is called in the end, once, and is in place again."""
    from lockstitch import ResumableBatch

    seen = []
    previous = signal.signal(signal.SIGTERM, lambda number, _frame: seen.append(number))
    try:
        handler = signal.getsignal(signal.SIGTERM)
        with ResumableBatch(tmp_path / "r", range(5)) as batch:
            for item in batch:
                if item == 2:
                    os.kill(os.getpid(), signal.SIGTERM)
                    assert seen == []
                batch.save(item)
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, previous)

    assert seen == [signal.SIGTERM]
    assert (batch.summary.ok, batch.summary.stopped_by, batch.exit_code) == (3, "signal", 2)


def test_handle_signals_false_leaves_signals_alone(tmp_path):
    """Who has an own way with signals keeps it."""
    from lockstitch import ResumableBatch

    before = signal.getsignal(signal.SIGINT)
    with ResumableBatch(tmp_path / "r", range(2), handle_signals=False) as batch:
        for item in batch:
            assert signal.getsignal(signal.SIGINT) is before
            batch.save(item)


def test_a_batch_in_another_thread_installs_nothing(tmp_path):
    """Only the main thread can, and only it does; the batch works all the same."""
    import threading

    from lockstitch import ResumableBatch

    batch = ResumableBatch(tmp_path / "r", range(5))

    def work():
        with batch:
            batch.run(str)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)

    assert batch.exit_code == 0


FORKS = """
import multiprocessing, signal, sys
from lockstitch import ResumableBatch
def child(sender):
    sender.send("up")
    signal.pause()
def work(item):
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(sender,))
    process.start()
    receiver.recv()
    process.terminate()
    process.join(20)
    return process.exitcode
context = multiprocessing.get_context("fork")
with ResumableBatch(sys.argv[1], ["a"]) as batch:
    batch.run(work)
"""


def test_a_forked_child_ends_of_a_signal_as_it_would_without_a_batch(run_child, tmp_path):
    """What an item forks can be terminated: the deferral is the parent's alone."""
    path = tmp_path / "run.jsonl"
    run_child(FORKS, path)

    assert Checkpoint(path, read_only=True)["a"].result == -signal.SIGTERM
