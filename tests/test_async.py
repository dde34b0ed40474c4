"""asyncio: nothing blocks the event loop, a cancellation books nothing, one id is computed once."""

import asyncio
import contextlib
import threading
import time

import pytest

from lockstitch import (
    Checkpoint,
    ItemFailed,
    Limit,
    RateLimited,
    ResumableBatch,
    UsageError,
    current_attempt,
    resumable,
)
from lockstitch._clock import CLOCK
from lockstitch._files import SystemFiles
from lockstitch._journal import STORAGE, Storage
from lockstitch._lock import RunLock
from lockstitch.testing import fake_clock

PATIENCE = 30


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.jsonl"


@pytest.fixture(scope="module", autouse=True)
def warm_loops():
    """What the first loop of a kind opens for good, it opens before the tests look for leaks."""
    asyncio.run(asyncio.sleep(0))
    with contextlib.suppress(pytest.skip.Exception):
        run_uvloop(asyncio.sleep(0))


def run_asyncio(main):
    return asyncio.run(main)


def run_uvloop(main):
    uvloop = pytest.importorskip("uvloop")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


every_loop = pytest.mark.parametrize("run", [run_asyncio, run_uvloop], ids=["asyncio", "uvloop"])


# Drivers


async def by_arun(batch, work, concurrency):
    await batch.arun(work, concurrency=concurrency)


async def by_amap(batch, work, concurrency):
    async with contextlib.aclosing(batch.amap(work, concurrency=concurrency)) as records:
        async for _ in records:
            continue


async def by_loop(batch, work, _concurrency):
    async for item in batch:
        await batch.asave(item, await work(item))


async def by_attempt(batch, work, _concurrency):
    async for item in batch:
        async with batch.attempt(item) as attempt:
            await attempt.asave(await work(item))


DRIVERS = {"arun": by_arun, "amap": by_amap, "loop": by_loop, "attempt": by_attempt}
every_driver = pytest.mark.parametrize("drive", DRIVERS.values(), ids=DRIVERS)


@every_loop
@every_driver
def test_every_driver_works_on_every_loop(path, run, drive):
    """Whatever loop it is, each item runs once, in that loop."""
    loops = set()

    async def work(item):
        loops.add(asyncio.get_running_loop())
        await asyncio.sleep(0)
        return item

    async def main():
        with ResumableBatch(path, range(30)) as batch:
            await drive(batch, work, 5)
        return batch, asyncio.get_running_loop()

    batch, loop = run(main())

    assert loops == {loop}
    assert (batch.summary.ok, batch.exit_code) == (30, 0)


def test_no_more_run_than_concurrency_says(path):
    """The window is full and never fuller."""
    running, widest, full = 0, 0, asyncio.Event()

    async def work(_item):
        nonlocal running, widest
        running += 1
        widest = max(widest, running)
        if running == 7:
            full.set()
        await asyncio.wait_for(full.wait(), 30)
        running -= 1

    async def main():
        with ResumableBatch(path, range(200)) as batch:
            await batch.arun(work, concurrency=7)

    asyncio.run(main())

    assert widest == 7


# The event loop is not blocked


class SlowFiles(SystemFiles):
    """A disk that takes its time to sync."""

    seconds = 0.0

    def sync(self, fd):
        time.sleep(self.seconds)
        super().sync(fd)


@pytest.fixture
def slow_files():
    files = SlowFiles()
    token = STORAGE.set(Storage(files, lambda path: RunLock(path, CLOCK.get().wall)))
    yield files
    STORAGE.reset(token)


async def longest_stall(work):
    """Return the longest time that a task which only wants its turn has waited for it."""
    longest = 0.0

    async def tick():
        nonlocal longest
        while True:
            before = time.monotonic()
            await asyncio.sleep(0)
            longest = max(longest, time.monotonic() - before)

    ticking = asyncio.create_task(tick())
    try:
        await work
    finally:
        ticking.cancel()

    return longest


class AskingFiles(SystemFiles):
    """A disk whose syncs end when the event loop has had a turn meanwhile."""

    loop = None
    syncs = starved = 0

    def sync(self, fd):
        if self.loop is not None:
            turn = threading.Event()
            self.loop.call_soon_threadsafe(turn.set)
            self.syncs += 1
            self.starved += not turn.wait(5)
        super().sync(fd)


@every_loop
@every_driver
def test_a_sync_does_not_block_the_event_loop(path, run, drive):
    """The event loop has its turn while the library syncs, in every driver."""
    files = AskingFiles()

    async def work(item):
        await asyncio.sleep(0)
        return item

    async def main():
        with ResumableBatch(path, range(6)) as batch:
            files.loop = asyncio.get_running_loop()
            await drive(batch, work, 3)
            files.loop = None

    token = STORAGE.set(Storage(files, lambda path: RunLock(path, CLOCK.get().wall)))
    run(main())
    STORAGE.reset(token)

    assert files.syncs
    assert not files.starved


def test_a_wait_for_a_limit_does_not_block_the_event_loop(path):
    """While the batch waits, others have their turn."""
    limited = iter([True])

    async def work(item):
        if next(limited, False):
            raise RateLimited(Limit.after(1.0))

    async def main():
        with ResumableBatch(path, range(6)) as batch:
            stall = await longest_stall(batch.arun(work, concurrency=3))
        return stall, batch.summary

    stall, summary = asyncio.run(main())

    assert (summary.ok, summary.waits) == (6, 1)
    assert stall < 1.0 / 2.5


# Cancellation


def cancel_halfway(path, drive, run=asyncio.run, **settings):
    """Cancel a batch whose items 0 to 2 are done, and return it."""

    async def main():
        stuck = asyncio.Event()

        async def work(item):
            if item >= 3:
                stuck.set()
                await asyncio.sleep(3600)
            return item

        batch = ResumableBatch(path, range(20), **settings)

        async def whole():
            with batch:
                await drive(batch, work, 4)

        task = asyncio.create_task(whole())
        await asyncio.wait_for(stuck.wait(), PATIENCE)
        while len(batch.checkpoint) < 3:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, PATIENCE)
        return batch

    return run(main())


@every_loop
@every_driver
def test_a_cancellation_leaves_items_pending(path, drive, run, caplog):
    """What was running is pending, not booked, not named as forgotten; the next start finishes."""
    batch = cancel_halfway(path, drive, run)

    assert set(Checkpoint(path, read_only=True)) == {"0", "1", "2"}
    assert (batch.summary.errors, batch.summary.pending, batch.exit_code) == (0, 17, 2)
    assert "never saved" not in caplog.text or drive is by_loop
    assert drive is by_loop or batch.summary.unsaved == ()

    with ResumableBatch(path, range(20)) as again:
        again.run(str)
    assert (again.summary.ok, again.summary.quarantined, again.exit_code) == (17, 0, 0)


def test_a_timeout_around_a_batch_is_a_cancellation(path):
    """`asyncio.timeout` ends it, and nothing is booked."""

    async def work(item):
        await asyncio.sleep(3600)

    async def main():
        with ResumableBatch(path, range(5)) as batch:
            async with asyncio.timeout(0.05):
                await batch.arun(work, concurrency=2)

    with pytest.raises(TimeoutError):
        asyncio.run(main())

    assert len(Checkpoint(path, read_only=True)) == 0


@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_timeout_inside_an_item_is_its_error(path, concurrency):
    """Who gives an item so many seconds gets a booked `TimeoutError`."""

    async def work(item):
        async with asyncio.timeout(0.01 if item == 2 else None):
            await asyncio.sleep(3600 if item == 2 else 0)

    async def main():
        with ResumableBatch(path, range(5)) as batch:
            await batch.arun(work, concurrency=concurrency)
        return batch.summary

    summary = asyncio.run(main())

    assert (summary.ok, summary.errors) == (4, 1)
    assert Checkpoint(path, read_only=True)["2"].error.type == "TimeoutError"


def test_a_cancelled_future_inside_an_item_is_its_error(path):
    """The batch was not cancelled, so the item is not called off: what it raised is booked."""

    async def work(item):
        if item == 2:
            future = asyncio.get_running_loop().create_future()
            future.cancel()
            await future

    async def main():
        with ResumableBatch(path, range(5)) as batch:
            await batch.arun(work, concurrency=2)
        return batch

    batch = asyncio.run(main())

    assert (batch.summary.ok, batch.summary.errors, batch.exit_code) == (4, 1, 1)
    assert Checkpoint(path, read_only=True)["2"].error.type.endswith("CancelledError")


def test_leaving_an_amap_early_finishes_what_runs(path):
    """Closed and not cancelled: what had begun is stored."""
    begun = []

    async def main():
        gate = asyncio.Event()

        async def work(item):
            begun.append(item)
            if item:
                await gate.wait()
            return item

        with ResumableBatch(path, range(40)) as batch:
            async with contextlib.aclosing(batch.amap(work, concurrency=4)) as records:
                async for _ in records:
                    while len(begun) < 4:
                        await asyncio.sleep(0)
                    gate.set()
                    break
            assert len(batch.checkpoint) == len(begun) < 10
        return batch

    batch = asyncio.run(main())

    assert (batch.summary.unsaved, batch.summary.errors, batch.exit_code) == ((), 0, 2)


def test_an_exit_inside_an_item_ends_the_program(path):
    """`sys.exit` is not booked, and what ran beside it is pending."""

    async def work(item):
        if item == 3:
            raise SystemExit(5)
        if item > 3:
            await asyncio.sleep(3600)

    async def main():
        with ResumableBatch(path, range(40)) as batch:
            await batch.arun(work, concurrency=4)

    with pytest.raises(SystemExit):
        asyncio.run(main())

    assert set(Checkpoint(path, read_only=True)) <= {"0", "1", "2"}


def test_a_function_that_returns_nothing_to_await_stops_the_batch(path):
    """It would be every item's error, booked one after the other."""

    async def main():
        with ResumableBatch(path, range(1000)) as batch:
            await batch.arun(lambda item: item, concurrency=3)

    with pytest.raises(UsageError, match="returned int, which cannot be awaited: use run or map"):
        asyncio.run(main())

    assert list(Checkpoint(path, read_only=True)) == []


# A decorated coroutine function


@every_loop
def test_two_tasks_that_ask_for_one_id_compute_it_once(path, run):
    """The second one waits for the first, and gets the same result."""
    calls = []

    @resumable(path)
    async def double(item):
        calls.append(item)
        await asyncio.sleep(0.01)
        return 2 * item

    async def main():
        with double:
            return await asyncio.gather(*(double(item % 3) for item in range(30)))

    assert run(main()) == [2 * (item % 3) for item in range(30)]
    assert sorted(calls) == [0, 1, 2]


def test_the_second_asker_gets_its_turn_when_the_first_fails(path):
    """A failure is the first one's; the item is pending, and the second one tries."""
    calls = []

    @resumable(path)
    async def work(item):
        calls.append(item)
        await asyncio.sleep(0)
        if len(calls) == 1:
            raise ValueError("first")
        return "second"

    async def main():
        with work:
            return await asyncio.gather(work("a"), work("a"), return_exceptions=True)

    first, second = asyncio.run(main())

    assert isinstance(first, ValueError)
    assert (second, calls) == ("second", ["a", "a"])


@pytest.mark.parametrize("way", ["itself", "by way of another", "in a task of its own"])
def test_a_function_that_asks_for_its_own_id_is_told_so(path, way):
    """It would wait for itself for ever."""

    @resumable(path)
    async def work(item):
        if way == "in a task of its own":
            return await asyncio.gather(work("a"))
        return await work("b" if way == "by way of another" and item == "a" else "a")

    async def main():
        with work:
            await asyncio.wait_for(work("a"), PATIENCE)

    with pytest.raises(UsageError, match="'a' calls itself"):
        asyncio.run(main())


def test_another_id_may_be_asked_for_from_within(path):
    """Recursion over different items is no mistake."""

    @resumable(path)
    async def factorial(item):
        return item * await factorial(item - 1) if item else 1

    async def main():
        with factorial:
            return await factorial(5), await factorial(5)

    assert asyncio.run(main()) == (120, 120)


def test_a_booked_failure_is_told_again_without_a_call(path):
    """As in the synchronous form: None where errors are recorded, else `ItemFailed`."""
    calls = []

    async def fails(item):
        calls.append(item)
        raise ValueError(item)

    recording, raising = resumable(path, on_error="record")(fails), resumable(path)(fails)

    async def main():
        with recording:
            assert await recording("a") is None
            assert await recording("a") is None
        with raising:
            await raising("a")

    with pytest.raises(ItemFailed):
        asyncio.run(main())

    assert calls == ["a"]


# Saving without blocking


def test_asave_cursor_and_astep_are_kept_for_the_next_attempt(path):
    """A step is computed once, a cursor is handed back, over a failure and a new start."""
    computed, cursors = [], []

    async def download(item):
        computed.append(item)
        return f"page {item}"

    async def work(item):
        attempt = current_attempt()
        cursors.append(attempt.cursor)
        page = await attempt.astep("download", download, item)
        await attempt.asave_cursor(7)
        if len(cursors) == 1:
            raise asyncio.CancelledError
        await attempt.asave(page, status="pass")

    async def main():
        with ResumableBatch(path, [1], retry=lambda failure: 0.0) as batch:
            await batch.arun(work)

    with fake_clock():
        asyncio.run(main())
    record = Checkpoint(path, read_only=True)["1"]

    assert (computed, cursors) == ([1], [None, 7])
    assert (record.result, record.status, record.attempt) == ("page 1", "pass", 2)


def test_a_cancellation_during_a_save_waits_for_it(path, slow_files):
    """What a thread is writing is not called back: the record is there, and counted."""
    saving = threading.Event()

    async def work(item):
        saving.set()
        await current_attempt().asave(item)

    async def main():
        with ResumableBatch(path, range(5)) as batch:
            slow_files.seconds = 0.05
            task = asyncio.create_task(batch.arun(work))
            while not saving.is_set():
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            slow_files.seconds = 0.0
        return batch

    batch = asyncio.run(main())
    stored = set(Checkpoint(path, read_only=True))

    assert stored == {"0"}
    assert (batch.summary.ok, batch.summary.unsaved, batch.summary.pending) == (1, (), 4)


def test_a_batch_in_an_event_loop_of_another_thread(path):
    """Signals are the main thread's; the batch works all the same."""
    summaries = []

    async def work(item):
        return item

    async def main():
        with ResumableBatch(path, range(20)) as batch:
            summaries.append(await batch.arun(work, concurrency=4))

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    thread.join(PATIENCE)

    assert [summary.ok for summary in summaries] == [20]
