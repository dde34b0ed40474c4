"""Locks, crowds, clocks, scarce resources, permissions."""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from datetime import timedelta

import pytest

from lockstitch import (
    Checkpoint,
    CheckpointLocked,
    DurabilityUnknown,
    Limit,
    RateLimited,
    ResumableBatch,
    UsageError,
)
from lockstitch.testing import fake_clock


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.jsonl"


# Locks

HOLDER = """
import os, signal, sys
from lockstitch import Checkpoint
checkpoint = Checkpoint(sys.argv[1])
checkpoint.save("a", 1)
print("ready", flush=True)
sys.stdin.readline()
checkpoint.save("b", 2)
checkpoint.close()
"""


def test_a_stopped_holder_keeps_its_lock_and_goes_on(path, child, trials):
    """It is not dead: nobody gets in, the error names it, and what it saves later is stored."""
    holder = child(HOLDER, path)
    assert holder.stdout.readline() == "ready\n"
    os.kill(holder.pid, signal.SIGSTOP)
    for _ in range(5):
        with pytest.raises(CheckpointLocked, match=f"pid {holder.pid} "):
            Checkpoint(path).save("x", 1)
        trials(16)
    os.kill(holder.pid, signal.SIGCONT)
    holder.communicate("\n", timeout=60)
    with Checkpoint(path) as checkpoint:
        assert list(checkpoint) == ["a", "b"]


def test_a_killed_holder_has_freed_its_lock_once_it_is_gone(path, child, trials):
    """Stopped or not when it was killed."""
    for stop in (False, True):
        holder = child(HOLDER, path)
        assert holder.stdout.readline() == "ready\n"
        if stop:
            os.kill(holder.pid, signal.SIGSTOP)
        holder.kill()
        holder.wait()
        with Checkpoint(path) as checkpoint:
            assert list(checkpoint) == ["a"]
        trials(16)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EIO])
def test_a_file_system_without_locks_is_refused(path, code, monkeypatch, trials):
    """No silent fallback: two runs could not be kept apart."""

    def flock(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises((UsageError, OSError)):
        Checkpoint(path).save("a", 1)
    assert not path.exists()
    monkeypatch.undo()
    with Checkpoint(path) as checkpoint:
        checkpoint.save("a", 1)
    trials(16)


RIVALS = """
import os, sys, time
from lockstitch import Checkpoint, CheckpointLocked
path, inside = sys.argv[1], sys.argv[1] + ".inside"
entered = 0
while entered < 40:
    try:
        with Checkpoint(path, fsync=False) as checkpoint:
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # fails if another one is inside
            checkpoint.save(f"{os.getpid()}-{entered}", entered)
            entered += 1
            os.unlink(inside)
    except CheckpointLocked:
        time.sleep(0)
"""


def test_rivals_are_never_inside_together(path, child, trials):
    """Four processes that open and close the same checkpoint: one at a time, and none is lost."""
    rivals = [child(RIVALS, path) for _ in range(4)]
    for rival in rivals:
        _, err = rival.communicate(timeout=100)
        assert rival.returncode == 0, err[-2000:]
    with Checkpoint(path) as checkpoint:
        assert len(checkpoint) == 160
    trials(16, 160)


# Crowds


@pytest.mark.timeout(300)  # it may share its cores with others
def test_eight_threads_and_compactions_lose_and_double_nothing(path, files, trials):
    """20,000 saves with rewrites in between; savers share their syncs."""
    threads, each = 8, 2500
    wrong, stop = [], threading.Event()
    with Checkpoint(path) as checkpoint:
        before = files.calls["sync"]

        def save(thread):
            for number in range(each):
                id = f"{thread}-{number}"
                checkpoint.save(id, number)
                if number % 50 == 0 and checkpoint[id].result != number:
                    wrong.append(id)

        def compact():
            while not stop.wait(0.2):
                checkpoint.compact()

        savers = [threading.Thread(target=save, args=(thread,)) for thread in range(threads)]
        other = threading.Thread(target=compact)
        for thread in (*savers, other):
            thread.start()
        for thread in savers:
            thread.join()
        stop.set()
        other.join()
        syncs = files.calls["sync"] - before
    with Checkpoint(path, read_only=True) as reader:
        found = {record.id: record.result for record in reader.records()}
    assert not wrong
    assert found == {f"{t}-{n}": n for t in range(threads) for n in range(each)}
    assert syncs < threads * each
    assert Checkpoint.verify(path).lines <= threads * each + 2
    trials(17, threads * each)


# Clocks

JUMPS = [timedelta(hours=1), timedelta(days=1), timedelta(hours=-1), timedelta(days=-1)]


@pytest.mark.parametrize("jump", JUMPS, ids=str)
def test_a_clock_that_jumps_while_a_limit_is_waited_out_changes_nothing(path, jump, trials):
    """Neither an early end nor a long one: the wait is as long as was said."""
    with fake_clock() as clock:
        wait, seen = clock.wait, []

        def jumping(events, seconds):
            if seconds and not seen:
                seen.append(seconds)
                clock.set_wall(clock.instant + jump)
            return wait(events, seconds)

        clock.wait = jumping

        def work(id):
            if not limited:
                limited.append(clock.now())
                raise RateLimited(Limit.after(300))
            return clock.now()

        limited = []
        with ResumableBatch(path, ["a"]) as batch:
            batch.run(work)
        assert batch.exit_code == 0
        assert 299 <= batch.checkpoint["a"].result - limited[0] <= 302
        batch.checkpoint.close()
    trials(19)


@pytest.mark.parametrize("jump", JUMPS, ids=str)
def test_a_clock_that_jumps_while_parked_never_makes_the_wait_longer(path, jump, trials):
    """The next start waits until then, and at most as long as was asked for."""
    with fake_clock() as clock:

        def limited(id):
            raise RateLimited(Limit.after(1800))

        with ResumableBatch(path, ["a"], max_wait=10) as batch:
            batch.run(limited)
        assert batch.exit_code == 2
        clock.set_wall(clock.instant + jump)
        before = clock.now()
        with ResumableBatch(path, ["a"], max_wait=7200) as batch:
            batch.run(lambda id: 1)
        assert batch.exit_code == 0
        waited = clock.now() - before
        assert waited <= 1801
        assert (waited >= 1799) == (jump < timedelta(0))
        batch.checkpoint.close()
    trials(19)


# Scarce resources

NO_DESCRIPTORS = """
import errno, os, resource, sys
from lockstitch import Checkpoint, DurabilityUnknown
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
used = max(map(int, os.listdir("/proc/self/fd"))) if os.path.exists("/proc/self/fd") else 10
refused = 0
with Checkpoint(f"{sys.argv[1]}/warm") as checkpoint:
    checkpoint.save("a", 1)
    checkpoint.compact()
for spare in range(12):
    path, stored = f"{sys.argv[1]}/{spare}", []
    checkpoint = Checkpoint(path)
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare + 3, hard))
    def save(id):
        checkpoint.save(id, id)
    for call in (lambda: save("a"), checkpoint.compact, lambda: save("b")):
        try:
            call()
        except OSError as error:
            assert error.errno == errno.EMFILE, error
            refused += 1
        except DurabilityUnknown:
            refused += 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    stored = list(checkpoint) if checkpoint.is_open else []
    try:
        checkpoint.save("c", 3)
        stored.append("c")
    except DurabilityUnknown:
        pass
    checkpoint.close()
    with Checkpoint(path) as again:
        assert set(stored) <= set(again), (stored, list(again))
        again.save("d", 4)
    assert Checkpoint.verify(path).ok
    assert not [name for name in os.listdir(sys.argv[1]) if ".tmp-" in name]
print(refused)
"""


def test_without_descriptors_there_is_an_error_and_later_it_works(tmp_path, run_child, trials):
    """At each number of free descriptors; when there are some again, the work goes on."""
    assert int(run_child(NO_DESCRIPTORS, tmp_path)) > 3
    trials(20, 12)


NO_MEMORY = """
import os, resource, sys
from lockstitch import Checkpoint, SerializationFailed
def used():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
value, refused = "x" * (20 << 20), 0
checkpoint = Checkpoint(sys.argv[1])
checkpoint.save("first", 1)
stored = {"first": 1}
for spare in range(0, 160, 8):
    resource.setrlimit(resource.RLIMIT_AS, (used() + (spare << 20), -1))
    try:
        checkpoint.save(f"i{spare}", value)
        stored[f"i{spare}"] = value
    except (MemoryError, SerializationFailed) as error:
        assert "MemoryError" in repr(error), error
        refused += 1
    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
    checkpoint.save(f"after {spare}", spare)
    stored[f"after {spare}"] = spare
checkpoint.close()
assert Checkpoint.verify(sys.argv[1]).ok
with Checkpoint(sys.argv[1]) as again:
    assert all(again[id].result == result for id, result in stored.items())
print(refused)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="the system tells no sizes")
def test_without_memory_there_is_an_error_and_later_it_works(path, run_child, trials):
    """A save that does not fit is refused whole; the handle stays usable."""
    assert int(run_child(NO_MEMORY, path)) > 0
    trials(20, 20)


@pytest.fixture
def no_threads(monkeypatch):
    """Let no thread be started until the returned function is called."""

    def start(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    return monkeypatch.undo


def test_without_a_thread_for_the_timer_saves_sync_themselves(path, files, no_threads, trials):
    """`fsync=seconds` promises the same; the saves are slower."""
    with Checkpoint(path, fsync=60) as checkpoint:
        checkpoint.save("a", 1)
        assert checkpoint._store.journal._commit.proven == 1
        no_threads()
        checkpoint.save("b", 2)
        assert "b" in checkpoint
    trials(20)


def test_a_batch_that_gets_no_threads_leaves_its_items_pending(path, no_threads, trials):
    """The system's error comes through, the run is sealed, and the next start works."""
    batch = ResumableBatch(path, ["a", "b"], handle_signals=False)
    with pytest.raises(RuntimeError, match="start new thread"), batch:
        batch.run(str.upper, concurrency=2)
    no_threads()
    with ResumableBatch(path, ["a", "b"]) as batch:
        batch.run(str.upper, concurrency=2)
    assert batch.exit_code == 0
    assert sorted(record.result for record in batch.checkpoint.records()) == ["A", "B"]
    batch.checkpoint.close()
    trials(20)


# Permissions


@pytest.fixture
def as_nobody():
    """Return a function that runs a program as a user whom the system can refuse something.

    It gets a folder of its own, open to everybody.
    """
    folder = tempfile.mkdtemp()
    os.chmod(folder, 0o777)
    # What is imported at first use may lie where only root may read.
    become = """
import tempfile
for _ in range(2):
    with tempfile.TemporaryDirectory() as warm, lockstitch.Checkpoint(f"{warm}/x") as checkpoint:
        checkpoint.save("a", 1)
        checkpoint.compact()
        try:
            lockstitch.Checkpoint(f"{warm}/x").save("b", 2)
        except lockstitch.CheckpointLocked as error:
            str(error)
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
"""

    def run(program):
        command = [sys.executable, "-c", f"import lockstitch, os, sys, stat\n{become}{program}"]
        done = subprocess.run(
            [*command, f"{folder}/run.jsonl"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]

    yield run
    shutil.rmtree(folder)


REFUSED = {
    "a folder that may not be written": ("os.chmod(os.path.dirname(path), 0o555)", "save"),
    "a file that may not be read": ("os.chmod(path, 0)", "save"),
    "a file that may not be written": ("os.chmod(path, 0o444)", "save"),
    "a lock that may not be opened": ("os.chmod(path + '.lock', 0)", "save"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_system_refuses_is_its_own_error(case, as_nobody, trials):
    """`PermissionError`, and nothing has changed; with permission again, the work goes on."""
    change, _ = REFUSED[case]
    as_nobody(f"""
from lockstitch import Checkpoint
path = sys.argv[1]
with Checkpoint(path) as checkpoint:
    checkpoint.save("a", 1)
data = open(path, "rb").read()
if "folder" in {case!r}:
    os.unlink(path + ".lock")
folder, mode = os.path.dirname(path), os.stat(os.path.dirname(path)).st_mode
owns = os.stat(folder).st_uid == os.geteuid()
if "folder" in {case!r} and not owns:
    inner = folder + "/inner"
    os.mkdir(inner)
    os.rename(path, inner + "/run.jsonl")
    path = inner + "/run.jsonl"
{change}
try:
    Checkpoint(path).save("b", 2)
    raise SystemExit("it was not refused")
except PermissionError:
    pass
os.chmod(os.path.dirname(path), 0o777) if "folder" in {case!r} else None
for each in (path, path + ".lock"):
    if os.path.exists(each):
        os.chmod(each, 0o600)
assert open(path, "rb").read() == data
with Checkpoint(path) as checkpoint:
    checkpoint.save("b", 2)
    assert list(checkpoint) == ["a", "b"]
""")
    trials(21)


@pytest.mark.parametrize("mask", [0o000, 0o077, 0o777], ids=oct)
def test_a_new_file_is_readable_by_its_owner_alone_whatever_the_mask(mask, as_nobody, trials):
    """0600, or less where the mask says so; a mode that was given later is kept by a rewrite."""
    as_nobody(f"""
from lockstitch import Checkpoint
os.umask({mask})
checkpoint = Checkpoint(sys.argv[1])
checkpoint.save("a", 1) if {mask} != 0o777 else None
if {mask} != 0o777:
    assert stat.S_IMODE(os.stat(sys.argv[1]).st_mode) == 0o600, oct(os.stat(sys.argv[1]).st_mode)
    os.chmod(sys.argv[1], 0o640)
    checkpoint.compact()
    checkpoint.forget(["x"])
    assert stat.S_IMODE(os.stat(sys.argv[1]).st_mode) == 0o640
checkpoint.close()
""")
    trials(21)


def test_a_link_to_a_file_is_followed_and_stays(tmp_path, trials):
    """The file it points to is the checkpoint, its lock lies beside it, and rewrites keep both."""
    (tmp_path / "data").mkdir()
    target, link = tmp_path / "data" / "run.jsonl", tmp_path / "link.jsonl"
    os.symlink(target, link)
    with Checkpoint(link) as checkpoint:
        checkpoint.save("a", 1)
        checkpoint.compact()
        with pytest.raises(CheckpointLocked):
            Checkpoint(target).save("b", 2)
    assert link.is_symlink()
    assert sorted(each.name for each in target.parent.iterdir()) == ["run.jsonl", "run.jsonl.lock"]
    with Checkpoint(target) as checkpoint:
        assert list(checkpoint) == ["a"]
    trials(21)


def test_a_link_planted_in_the_place_of_a_temporary_file_is_not_followed(path, monkeypatch, trials):
    """In a folder that others may write to, nobody's file is overwritten."""
    victim = path.parent / "victim"
    victim.write_bytes(b"precious")
    planted = f"{path}.tmp-planted"
    os.symlink(victim, planted)
    monkeypatch.setattr("lockstitch._publish.temporary_name", lambda _: planted)
    with pytest.raises((OSError, DurabilityUnknown)):
        Checkpoint(path).save("a", 1)
    assert victim.read_bytes() == b"precious"
    if os.path.lexists(planted):
        os.unlink(planted)
    trials(21)
