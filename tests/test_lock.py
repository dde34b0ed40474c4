"""One writer; readers need no lock."""

import json
import os
import signal
import socket
import time
from datetime import UTC, datetime, timedelta

import pytest

from lockstitch import Checkpoint, CheckpointLocked, UsageError
from lockstitch._lock import RunLock

HOLDER = """
import sys
from lockstitch import Checkpoint
with Checkpoint(sys.argv[1]) as checkpoint:
    checkpoint.save("a", 1)
    print("ready", flush=True)
    sys.stdin.readline()
"""

WRITER = """
import sys
from lockstitch import Checkpoint
count = int(sys.argv[2])
with Checkpoint(sys.argv[1], fsync=False) as checkpoint:
    print("ready", flush=True)
    for number in range(count):
        checkpoint.save(f"i{number}", {"value": number, "text": "x" * (number % 300)})
        if number % 400 == 399:
            checkpoint.compact()
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.jsonl"


def test_a_second_process_is_told_who_has_it(path, child):
    """The error names pid, host and since when; the file is untouched."""
    holder = child(HOLDER, path)
    assert holder.stdout.readline() == "ready\n"
    before = path.read_bytes()
    with pytest.raises(CheckpointLocked, match=f"pid {holder.pid} on ") as caught:
        Checkpoint(path).save("b", 2)
    error = caught.value

    assert (error.pid, error.host, error.own) == (holder.pid, socket.gethostname(), False)
    assert timedelta(0) <= datetime.now(UTC) - error.since < timedelta(minutes=5)
    assert path.read_bytes() == before
    with pytest.raises(CheckpointLocked):
        Checkpoint.repair(path)
    holder.communicate("\n")
    with Checkpoint(path) as checkpoint:
        checkpoint.save("b", 2)


def test_a_killed_holder_frees_it_and_a_stopped_one_does_not(path, child):
    """The kernel knows who is dead; nobody guesses by age."""
    holder = child(HOLDER, path)
    holder.stdout.readline()
    os.kill(holder.pid, signal.SIGSTOP)
    os.utime(f"{path}.lock", (0, 0))
    with pytest.raises(CheckpointLocked):
        Checkpoint(path).save("b", 2)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with Checkpoint(path) as checkpoint:
        assert checkpoint["a"].result == 1


def test_the_lock_is_held_until_the_last_line_is_on_the_disk(path, files):
    """Who comes while a checkpoint is closing is refused, or two would write one file."""
    refused = []

    def come(*_):
        other = RunLock(str(path), lambda: 0.0)
        try:
            other.acquire()
        except CheckpointLocked:
            refused.append(True)
        else:
            other.release()
            refused.append(False)

    checkpoint = Checkpoint(path)
    checkpoint.save("a", 1)
    files.on.update({"write": come, "sync": come, "close": come})
    checkpoint.close()

    assert refused == [True] * 3
    come()
    assert refused[3:] == [False]


def test_the_same_process_is_told_that_it_is_itself(path):
    """A notebook cell that ran twice reads a hint, also from another thread's object."""
    with Checkpoint(path) as first:
        first.save("a", 1)
        for _ in range(2):
            with pytest.raises(CheckpointLocked, match="this very process") as caught:
                Checkpoint(path).save("b", 2)
            assert caught.value.own
    with Checkpoint(path) as second:
        second.save("b", 2)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"pid":"x"}', "\xff", '{"pid":1}', '{"pid":1e400}', '{"pid":' + "[" * 4000],
    ids=lambda text: text[:12],
)
def test_a_lock_file_that_does_not_tell_is_no_error(path, text):
    """The name in it is a courtesy; the lock is the kernel's."""
    with Checkpoint(path) as first:
        first.save("a", 1)
        with open(f"{path}.lock", "w", encoding="latin-1") as file:
            file.write(text)
        with pytest.raises(CheckpointLocked) as caught:
            Checkpoint(path).save("b", 2)

    assert caught.value.pid is None
    assert "another process" in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda lock: os.symlink("x", lock)])
def test_what_is_no_file_in_the_place_of_the_lock_is_refused(path, make):
    """Nobody waits for the other end of a pipe, and nothing is removed."""
    make(f"{path}.lock")
    with pytest.raises(UsageError, match="not a regular file"):
        Checkpoint(path).save("a", 1)

    assert [each.name for each in path.parent.iterdir()] == ["run.jsonl.lock"]


def test_the_lock_file_stays_and_says_who_held_it(path):
    """A waiter could hold a deleted lock file, so it is never deleted."""
    for _ in range(2):
        with Checkpoint(path) as checkpoint:
            checkpoint.save("a", 1)

    assert json.loads((path.parent / "run.jsonl.lock").read_text())["pid"] == os.getpid()


def test_any_thread_may_release(path):
    """The lock belongs to the process, not to the thread that took it."""
    import threading

    lock = RunLock(str(path), time.time)
    lock.acquire()
    thread = threading.Thread(target=lock.release)
    thread.start()
    thread.join()
    again = RunLock(str(path), time.time)
    again.acquire()
    again.release()
    again.release()


def test_a_missing_folder_is_not_created(tmp_path):
    """A typing error in a path is told, not obeyed."""
    with pytest.raises(UsageError, match="there is no folder"):
        Checkpoint(tmp_path / "typo" / "run.jsonl").save("a", 1)

    assert not list(tmp_path.iterdir())


FORK = """
import os, sys
from lockstitch import Checkpoint, CheckpointLocked, UsageError
checkpoint = Checkpoint(sys.argv[1])
checkpoint.save("a", 1)
size = os.path.getsize(sys.argv[1])
pid = os.fork()
if pid == 0:
    refused = 0
    for call in (
        lambda: checkpoint.save("b", 2), lambda: checkpoint["a"], checkpoint.compact,
        checkpoint.flush, lambda: checkpoint.forget(["a"]),
    ):
        try: call()
        except UsageError as error: refused += "fork" in str(error)
    checkpoint.close()
    beside = Checkpoint(sys.argv[1], read_only=True)
    os._exit(refused if beside["a"].result == 1 else 99)
_, status = os.waitpid(pid, 0)
assert os.waitstatus_to_exitcode(status) == 5, status
assert os.path.getsize(sys.argv[1]) == size
print("forked", flush=True)
sys.stdin.readline()
checkpoint.save("c", 3)
checkpoint.close()
"""


def test_a_forked_child_has_no_part_in_the_file(path, child):
    """Its handle refuses, writes nothing when it ends, and the parent's lock still holds."""
    parent = child(FORK, path)
    assert parent.stdout.readline() == "forked\n", parent.stderr.read()
    with pytest.raises(CheckpointLocked):
        Checkpoint(path).save("x", 1)
    parent.communicate("\n", timeout=60)

    assert parent.returncode == 0
    assert sorted(Checkpoint(path, read_only=True)) == ["a", "c"]


FORK_AND_END = """
import os, sys
from lockstitch import resumable
upper = resumable(sys.argv[1])(str.upper)
upper("a")
if os.fork() == 0:
    sys.exit(0)
os.wait()
upper("b")
"""


def test_the_end_of_a_forked_child_is_quiet(path, child):
    """It does not try to seal the run of plain calls that its parent goes on with."""
    parent = child(FORK_AND_END, path)
    _, complaints = parent.communicate(timeout=60)

    assert complaints == ""
    assert sorted(Checkpoint(path, read_only=True)) == ["a", "b"]


def test_a_reader_beside_the_writer_always_sees_a_beginning(path, child):
    """Hundreds of looks while it writes and compacts: never an error, never a step back."""
    count = 1500
    writer = child(WRITER, path, count)
    writer.stdout.readline()
    reader, looks, before = Checkpoint(path, read_only=True), 0, 0
    growing = set()
    while writer.poll() is None or looks < 300:
        reader.refresh()
        looks += 1
        now = len(reader)
        assert now >= before
        if now:
            assert reader[f"i{now - 1}"].result["value"] == now - 1
            assert f"i{now}" not in reader
        growing.add(now)
        before = now
    reader.refresh()
    found = len(reader)
    reader.close()

    assert found == count
    assert looks >= 300
    assert len(growing) > 2, "no look fell between the first record and the last"


def test_a_reader_writes_nothing_and_locks_nothing(path):
    """Not even the lock file; a missing file is an error of its own."""
    with pytest.raises(FileNotFoundError):
        len(Checkpoint(path, read_only=True))
    assert not list(path.parent.iterdir())
    with Checkpoint(path) as checkpoint:
        checkpoint.save("a", 1)
    os.unlink(f"{path}.lock")
    with path.open("ab") as file:
        file.write(b"half a line")
    before = path.read_bytes()
    with Checkpoint(path, read_only=True) as reader:
        assert list(reader) == ["a"]
        for call in (
            lambda: reader.save("b", 1),
            reader.compact,
            lambda: reader.forget(["a"]),
        ):
            with pytest.raises(UsageError, match="read-only"):
                call()

    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == ["run.jsonl"]
