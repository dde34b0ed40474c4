"""Exceptions at any moment of a save; saves in handlers; forks; ends without exit hooks."""

import os
import subprocess
import sys

import pytest

from lockstitch import Checkpoint, CheckpointLocked

HANDLER_STORM = """
import faulthandler, signal, sys
from lockstitch import Checkpoint, UsageError
faulthandler.dump_traceback_later(100, exit=True)
counts = {"stored": 0, "refused": 0}
busy = False
def handler(*_):
    global busy
    if busy:
        return
    busy = True
    try:
        checkpoint.save("handler", counts["stored"])
        counts["stored"] += 1
    except UsageError:
        counts["refused"] += 1
    busy = False
with Checkpoint(sys.argv[1], fsync=False) as checkpoint:
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
    number = 0
    while number < 20_000 or sum(counts.values()) < 2000:
        checkpoint.save("main", number)
        number += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
assert Checkpoint.verify(sys.argv[1]).ok
print(counts["stored"], counts["refused"])
"""


def test_no_moment_of_a_save_makes_a_handler_wait_for_ever(tmp_path, run_child, trials):
    """Thousands of handlers that save, at any bytecode of a save: stored or refused."""
    stored, refused = map(int, run_child(HANDLER_STORM, tmp_path / "run.jsonl").split())
    trials(10, stored + refused)

    assert stored
    assert refused


INTERRUPTS = """
import faulthandler, json, random, signal, sys, threading
from collections import Counter
from lockstitch import Checkpoint
faulthandler.dump_traceback_later(200, exit=True)
path, fsync, others, goal = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
interrupts = [KeyboardInterrupt, TimeoutError]
armed, hits, calls, number = False, 0, Counter(), 0
rng, longest = random.Random(1), 6e-4 if not fsync else 4e-3
def handler(*_):
    global armed
    if armed:
        armed = False
        raise interrupts[hits % 2]("of a handler")
checkpoint = Checkpoint(path, fsync=fsync)
checkpoint.save("first", 0)
stop, done, failed = threading.Event(), [], []
def beside(thread):
    count = 0
    try:
        while not stop.is_set():
            checkpoint.save(f"t{thread}-{count}", count)
            done.append(f"t{thread}-{count}")
            count += 1
    except BaseException as error:
        failed.append(error)
threads = [threading.Thread(target=beside, args=(each,)) for each in range(others)]
for thread in threads:
    thread.start()
signal.signal(signal.SIGALRM, handler)
acknowledged = []
while hits < goal:
    signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, longest))
    try:
        armed = True
        calls[f"i{number}"] += 1
        checkpoint.save(f"i{number}", number)
        armed = False
        acknowledged.append(f"i{number}")
        number += 1
    except (KeyboardInterrupt, TimeoutError) as error:
        assert str(error) == "of a handler", error
        hits += 1
signal.setitimer(signal.ITIMER_REAL, 0)
stop.set()
for thread in threads:
    thread.join()
assert not failed, failed
for id in acknowledged + done:
    assert id in checkpoint, id
checkpoint.close()
assert Checkpoint.verify(path).ok
with Checkpoint(path, read_only=True) as reader:
    for id in acknowledged + done:
        assert reader[id].result == int(id.lstrip("i").split("-")[-1])
lines = Counter(
    data["id"] for data in map(json.loads, open(path, "rb").read().splitlines()) if "id" in data
)
for id, count in lines.items():
    assert count <= max(1, calls[id]), (id, count, calls[id])
print(hits, len(acknowledged), len(done))
"""


@pytest.mark.parametrize(
    ("fsync", "others", "goal"), [("false", 0, 2500), ("true", 0, 500), ("true", 4, 500)]
)
def test_an_interrupt_at_any_moment_loses_doubles_and_hangs_nothing(
    tmp_path, run_child, trials, fsync, others, goal
):
    """Ctrl-C and timeouts, again and again, alone and beside other savers, who notice nothing."""
    path = tmp_path / "run.jsonl"
    hits, saves, beside = map(int, run_child(INTERRUPTS, path, fsync, others, goal).split())
    trials(9, hits + saves + beside)

    assert hits == goal
    assert saves


# Forks

CHILDREN = """
import multiprocessing, os, sys
from lockstitch import Checkpoint, CheckpointLocked, UsageError

def use(path):
    # With `spawn` and `forkserver` the child has nothing of the parent's but the path.
    outcomes = []
    for call in (lambda: Checkpoint(path).save("b", 2), lambda: inherited.save("b", 2)):
        try:
            call()
            outcomes.append("saved")
        except (CheckpointLocked, UsageError, NameError) as error:
            outcomes.append(type(error).__name__)
    outcomes.append(Checkpoint(path, read_only=True)["a"].result)
    return outcomes

def main(path, method):
    global inherited
    inherited = Checkpoint(path)
    inherited.save("a", 1)
    context = multiprocessing.get_context(method)
    with context.Pool(1) as pool:
        outcomes = pool.apply(use, (path,))
    inherited.save("c", 3)  # the parent's handle and lock are as they were
    try:
        Checkpoint(path).save("d", 4)
        outcomes.append("free")
    except CheckpointLocked:
        outcomes.append("held")
    inherited.close()
    print(*outcomes)

if __name__ == "__main__":
    main(*sys.argv[1:])
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_child_of_any_kind_cannot_use_the_parents_file(tmp_path, method, trials):
    """It is refused, it may read, and what it does leaves the parent's file and lock alone."""
    program, path = tmp_path / "program.py", tmp_path / "run.jsonl"
    program.write_text(CHILDREN)
    done = subprocess.run(
        [sys.executable, str(program), str(path), method],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    inherited = "UsageError" if method == "fork" else "NameError"
    assert done.stdout.split() == ["CheckpointLocked", inherited, "1", "held"]
    assert sorted(Checkpoint(path, read_only=True)) == ["a", "c"]
    trials(10)


ENDS = {
    "terminated": "os.kill(os.getpid(), 15)",
    "killed": "os.kill(os.getpid(), 9)",
    "left without exit hooks": "os._exit(0)",
    "aborted": "os.abort()",
    "in a terminated pool": """
import multiprocessing
def work(path):
    checkpoint = Checkpoint(path)
    for number in range(1 << 30):
        checkpoint.save(f"i{number}", number)
        os.write(told, b".")
checkpoint.close()
there, told = os.pipe()
pool = multiprocessing.get_context("fork").Pool(1)
pool.apply_async(work, (sys.argv[1],))
for _ in range(20):
    os.read(there, 1)
pool.terminate()
pool.join()
""",
}


@pytest.mark.parametrize("end", ENDS)
def test_nothing_relies_on_how_a_process_ends(tmp_path, child, end, trials):
    """No exit hook, no `finally`: what was saved is there, and the lock is free."""
    path = tmp_path / "run.jsonl"
    program = f"""
import os, resource, sys
from lockstitch import Checkpoint
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
checkpoint = Checkpoint(sys.argv[1])
for number in range(20):
    checkpoint.save(f"i{{number}}", number)
{ENDS[end]}
"""
    process = child(program, path)
    process.communicate(timeout=60)
    with Checkpoint(path) as checkpoint:
        found = {record.id: record.result for record in checkpoint.records()}
    assert {f"i{number}": number for number in range(20)}.items() <= found.items()
    assert all(id == f"i{result}" for id, result in found.items())
    trials(10)


def test_the_lock_of_a_dead_parent_is_not_kept_by_a_program_it_has_started(tmp_path, child, trials):
    """Only a fork that has not become another program may hold it, for as long as it lives."""
    for become in ("pass", 'os.execvp("sleep", ["sleep", "30"])'):
        path = tmp_path / f"{len(become)}.jsonl"
        program = f"""
import os, signal, sys
from lockstitch import Checkpoint
checkpoint = Checkpoint(sys.argv[1])
checkpoint.save("a", 1)
there, told = os.pipe()
pid = os.fork()
if pid == 0:
    os.close(1)
    os.close(2)
    os.write(told, b".")
    {become}
    signal.pause()
os.read(there, 1)
print(pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
        process = child(program, path)
        orphan = int(process.stdout.readline())
        process.wait(timeout=60)
        try:
            with Checkpoint(path) as checkpoint:
                held = False
                assert checkpoint["a"].result == 1
        except CheckpointLocked:
            held = True
        finally:
            os.kill(orphan, 9)
        assert not held or become == "pass"
        trials(10)
