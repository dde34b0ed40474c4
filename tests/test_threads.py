"""Threads: many at once, killed in the middle, slow to be asked, interrupted."""

import json
import os
import signal
import threading
from collections import Counter

import pytest

from lockstitch import Checkpoint, ResumableBatch, SerializationFailed, current_attempt
from lockstitch._clock import CLOCK
from lockstitch._files import SystemFiles
from lockstitch._journal import STORAGE, Storage
from lockstitch._lock import RunLock

PATIENCE = 30


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.jsonl"


def finished_ids(path):
    """Return the ids of all records in the file, by its bare bytes, with their number."""
    with open(path) as file:
        return Counter(entry["id"] for entry in map(json.loads, file) if "id" in entry)


# Killed

SAVES = """
import os, sys
from lockstitch import Checkpoint, ResumableBatch, current_attempt
def work(item):
    current_attempt().save(item)
    os.write(1, b"%d\\n" % item)  # said only after the save has returned
with ResumableBatch(Checkpoint(sys.argv[1], fsync=sys.argv[2] == "sync"), range(20000)) as batch:
    batch.run(work, concurrency=32)
sys.exit(batch.exit_code)
"""


@pytest.mark.parametrize("fsync", ["sync", "no sync"])
def test_four_kills_over_twenty_thousand_items_lose_nothing(child, path, fsync):
    """Killed four times under 32 threads: one record an item, and no returned save is lost."""
    acknowledged = []
    for kill_after in (3000, 4000, 100, 5000):
        process = child(SAVES, path, fsync)
        acknowledged += [int(process.stdout.readline()) for _ in range(kill_after)]
        process.kill()
        acknowledged += [int(line) for line in process.stdout if line.endswith("\n")]
        assert process.wait(PATIENCE) == -signal.SIGKILL
        kept = set(Checkpoint(path, read_only=True))
        assert {str(item) for item in acknowledged} <= kept

    process = child(SAVES, path, fsync)
    acknowledged += [int(line) for line in process.stdout]
    assert process.wait(PATIENCE) == 0
    records = finished_ids(path)

    assert len(acknowledged) == len(set(acknowledged))
    assert len(records) == 20000
    assert set(records.values()) == {1}
    assert Checkpoint(path, read_only=True).stats().run_count == 5


# Memory

COUNTS = """
import resource, sys, threading
from lockstitch import Checkpoint, ResumableBatch
count, drawn, done, widest, lock = int(sys.argv[2]), 0, 0, 0, threading.Lock()
def items():
    global drawn, widest
    for item in range(count):
        with lock:
            drawn += 1
            widest = max(widest, drawn - done)
        yield item
def work(item):
    global done
    with lock:
        done += 1
with ResumableBatch(Checkpoint(sys.argv[1], fsync=False), items()) as batch:
    batch.run(work, concurrency=8)
print(widest, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, batch.summary.ok)
"""


def test_a_long_generator_costs_a_window(run_child, tmp_path):
    """The input is drawn as threads become free, and memory grows by the index of ids alone."""
    pytest.importorskip("resource")
    few, many = 10_000, 60_000
    widest_few, small, _ = map(int, run_child(COUNTS, tmp_path / "few", few).split())
    widest_many, large, ok = map(int, run_child(COUNTS, tmp_path / "many", many).split())
    per_id = (large - small) * 1024 / (many - few)

    assert ok == many
    assert max(widest_few, widest_many) <= 8
    assert per_id < 200  # a text, an integer and their place in a dictionary


# Neighbours


def test_an_exception_takes_no_neighbour_down(path):
    """What runs beside a failing item, at the very same time, is finished and stored."""
    together = threading.Barrier(8)

    def work(item):
        together.wait(PATIENCE)
        if item % 8 == 3:
            raise ValueError(item)
        return item

    with ResumableBatch(path, range(64)) as batch:
        summary = batch.run(work, concurrency=8)

    assert (summary.ok, summary.errors) == (56, 8)


def test_what_stops_the_batch_lets_its_neighbours_finish(path):
    """A result that cannot be stored is raised when the others are through and stored."""
    together = threading.Barrier(8)

    def work(item):
        if item < 8:
            together.wait(PATIENCE)
        return object() if item == 3 else item

    with pytest.raises(SerializationFailed), ResumableBatch(path, range(64)) as batch:
        batch.run(work, concurrency=8)

    stored = set(Checkpoint(path, read_only=True))
    assert stored >= set("0124567")
    assert "3" not in stored


def test_an_exit_inside_an_item_is_not_booked(path):
    """`sys.exit` in a thread ends the program as it would in a loop, and leaves no thread."""

    def work(item):
        if item == 3:
            raise SystemExit(5)

    with pytest.raises(SystemExit), ResumableBatch(path, range(64)) as batch:
        batch.run(work, concurrency=4)

    assert "3" not in Checkpoint(path, read_only=True)
    assert Checkpoint(path, read_only=True).stats().by_status.keys() <= {"ok"}


# Group commit


class CountedSyncs(SystemFiles):
    """Counts syncs, and knows how much of the file they have covered."""

    def __init__(self):
        super().__init__()
        self.syncs = 0
        self.durable = 0
        self.before = lambda: None

    def sync(self, fd):
        size = os.fstat(fd).st_size
        self.before()
        super().sync(fd)
        self.syncs += 1
        self.durable = max(self.durable, size)


@pytest.fixture
def syncs():
    files = CountedSyncs()
    token = STORAGE.set(Storage(files, lambda path: RunLock(path, CLOCK.get().wall)))
    yield files
    STORAGE.reset(token)


def test_threads_that_save_together_share_a_sync(path, syncs):
    """While one sync is on its way, the others queue up, and the next one is for all of them."""
    together, ready = threading.Barrier(32), threading.Semaphore(0)
    rounds = 10

    def work(item):
        together.wait(PATIENCE)
        ready.release()
        return item

    def wait_for_the_others():
        for _ in range(31):
            if not ready.acquire(timeout=0.05):
                return

    with ResumableBatch(path, range(32 * rounds)) as batch:
        syncs.before = wait_for_the_others
        before = syncs.syncs
        batch.run(work, concurrency=32)
        used = syncs.syncs - before
        syncs.before = lambda: None

    assert batch.summary.ok == 32 * rounds
    assert used <= 32 * rounds / 4


def test_nobody_is_told_saved_before_the_sync(path, syncs):
    """When a save returns, a sync has covered the bytes of its record."""
    early = []

    def work(item):
        current_attempt().save(item)
        if b'{"id":"%d",' % item not in path.read_bytes()[: syncs.durable]:
            early.append(item)

    with ResumableBatch(path, range(300)) as batch:
        batch.run(work, concurrency=16)

    assert early == []
    assert batch.summary.ok == 300


# Affinity


def test_affinity_sends_an_id_to_the_same_thread_in_every_run(path):
    """What a thread keeps for its items, it finds again when they come back."""

    def work(item):
        return threading.current_thread().name

    def names(**settings):
        with ResumableBatch(path, range(200), **settings) as batch:
            batch.run(work, concurrency=4, affinity=True)
        return {each.id: each.result for each in Checkpoint(path, read_only=True).records()}

    first = names()

    assert names(redo="ok") == first
    assert len(set(first.values())) == 4


# map


def wait_until(condition):
    """Wait for what other threads are about to do."""
    pause = threading.Event()
    for _ in range(PATIENCE * 1000):
        if condition():
            return
        pause.wait(0.001)
    raise AssertionError("it did not come")


def test_a_slow_consumer_leaves_nothing_unsaved_and_is_not_run_away_from(path):
    """Items are stored when they finish, not when asked for; and no more than the window ahead."""
    drawn = []

    def items():
        for item in range(40):
            drawn.append(item)
            yield item

    with ResumableBatch(path, items()) as batch:
        for asked, _ in enumerate(batch.map(str, concurrency=4), 1):
            wait_until(lambda: len(batch.checkpoint) == len(drawn))
            assert len(drawn) <= asked + 4

    assert (asked, batch.summary.ok) == (40, 40)


def test_closing_a_map_early_finishes_what_runs(path):
    """Nothing more is begun; what had begun is finished, stored, and not named as unsaved."""
    begun, gate = [], threading.Event()

    def work(item):
        begun.append(item)
        if item:
            gate.wait(PATIENCE)
        return item

    with ResumableBatch(path, range(40)) as batch:
        records = batch.map(work, concurrency=4)
        assert next(records).id == "0"
        wait_until(lambda: len(begun) >= 4)
        gate.set()
        records.close()
        assert len(batch.checkpoint) == len(begun) < 10

    assert (batch.summary.unsaved, batch.summary.errors) == ((), 0)
    assert (batch.exit_code, batch.summary.pending) == (2, 40 - len(begun))


# Signals

PRELUDE = """
import asyncio, os, sys, threading
from lockstitch import Limit, RateLimited, ResumableBatch
path, lock, at_work, gate = sys.argv[1], threading.Lock(), [], threading.Event()

def enter(item):
    # When four are at work beside each other, they tell so.
    with lock:
        at_work.append(item)
        if len(at_work) == 4:
            os.write(1, b"at work\\n")
        return len(at_work) == 4

def leave(item):
    if "fail" in sys.argv:
        raise ValueError("killed by the same Ctrl-C")
    return item

def work(item):
    if item >= 3:
        if enter(item):
            os.read(0, 1)
            gate.set()
        gate.wait()
        leave(item)
    return item

async def awork(item):
    if item >= 3:
        # One gate for all; it is opened by what comes from standard input.
        loop = asyncio.get_running_loop()
        if not hasattr(loop_gate, "event"):
            loop_gate.event = asyncio.Event()
        if enter(item):
            loop.add_reader(0, lambda: (loop.remove_reader(0), loop_gate.event.set()))
        await loop_gate.event.wait()
        leave(item)
    return item

def loop_gate(): ...
"""
FORMS = {
    "run": """
with ResumableBatch(path, range(50)) as batch:
    batch.run(work, concurrency=4)
""",
    "map": """
with ResumableBatch(path, range(50)) as batch:
    for record in batch.map(work, concurrency=4):
        pass
""",
    "arun": """
async def main():
    with ResumableBatch(path, range(50)) as batch:
        await batch.arun(awork, concurrency=4)
asyncio.run(main())
""",
    "amap": """
async def main():
    with ResumableBatch(path, range(50)) as batch:
        async for record in batch.amap(awork, concurrency=4):
            pass
asyncio.run(main())
""",
}
END = """
sys.exit("the signal was not given back")
"""
every_form = pytest.mark.parametrize("form", FORMS)
both_signals = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


def start(child, form, path, *arguments):
    process = child(PRELUDE + FORMS[form] + END, path, *arguments)
    assert process.stdout.readline() == "at work\n"
    return process


def interrupt(process, number):
    """Send a signal and return what the library says; then it has been taken in."""
    process.send_signal(number)
    return process.stderr.readline()


def finish(process):
    process.stdin.write("\n")
    process.stdin.flush()
    return process.wait(PATIENCE)


@every_form
@both_signals
def test_the_first_signal_finishes_what_runs_and_the_next_start_the_rest(child, path, form, number):
    """All four in flight are stored, the rest is pending, and the process dies of the signal."""
    process = start(child, form, path)
    said = interrupt(process, number)
    code = finish(process)
    stats = Checkpoint(path, read_only=True).stats()

    assert code == -number
    assert f"{number.name}: finishing 4 items, once more to stop now" in said
    assert set(Checkpoint(path, read_only=True)) == set("0123456")
    assert (stats.by_status, stats.stop_reason) == ({"ok": 7}, "signal")

    with ResumableBatch(path, range(50)) as batch:
        batch.run(str, concurrency=4)
    assert (batch.summary.done_before, batch.summary.ok, batch.exit_code) == (7, 43, 0)


@every_form
def test_what_fails_after_a_stop_request_is_not_booked(child, path, form):
    """Ctrl-C kills what the items have started, too; their failure is not theirs."""
    process = start(child, form, path, "fail")
    interrupt(process, signal.SIGINT)
    code = finish(process)

    assert code == -signal.SIGINT
    assert set(Checkpoint(path, read_only=True)) == set("012")


@every_form
@both_signals
def test_a_second_signal_strikes_at_once(child, path, form, number):
    """Nobody has to wait for four items that take hours; they are pending."""
    process = start(child, form, path)
    interrupt(process, number)
    process.send_signal(number)

    assert process.wait(PATIENCE) == -number
    assert set(Checkpoint(path, read_only=True)) == set("012")
    with ResumableBatch(path, range(50)) as batch:
        batch.run(str, concurrency=4)
    assert (batch.summary.ok, batch.summary.quarantined, batch.exit_code) == (47, 0, 0)


LIMITED = {
    "loop": """
with ResumableBatch(path, range(5)) as batch:
    for item in batch:
        with batch.attempt(item):
            limited(item)
""",
    "run": """
with ResumableBatch(path, range(5)) as batch:
    batch.run(limited)
""",
    "threads": """
with ResumableBatch(path, range(5)) as batch:
    batch.run(limited, concurrency=4)
""",
    "arun": """
async def alimited(item):
    limited(item)
async def main():
    with ResumableBatch(path, range(5)) as batch:
        await batch.arun(alimited, concurrency=4)
asyncio.run(main())
""",
    "async-loop": """
async def main():
    with ResumableBatch(path, range(5)) as batch:
        async for item in batch:
            async with batch.attempt(item):
                limited(item)
asyncio.run(main())
""",
}
LIMIT = """
def limited(item):
    raise RateLimited(Limit.after(500))
"""


@pytest.mark.parametrize("form", LIMITED)
@both_signals
def test_a_wait_for_a_limit_ends_with_the_first_signal(child, path, form, number):
    """Nothing runs while a limit is waited for, so there is nothing to finish."""
    process = child(PRELUDE + LIMIT + LIMITED[form] + END, path)
    assert "going on in 8 min" in process.stderr.readline()
    process.send_signal(number)

    assert process.wait(PATIENCE) == -number
    assert Checkpoint(path, read_only=True).stats().stop_reason == "signal"


def test_threads_under_a_batch_in_another_thread(path):
    """Signals are the main thread's; the batch works all the same."""
    batch = ResumableBatch(path, range(50))

    def work():
        with batch:
            batch.run(str, concurrency=4)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(PATIENCE)

    assert (batch.summary.ok, batch.exit_code) == (50, 0)
