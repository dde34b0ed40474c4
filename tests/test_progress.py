"""What a batch shows: events to a function, lines without a terminal, a bar on one."""

import asyncio
import os
import select
import subprocess
import sys
from datetime import UTC

import pytest

from lockstitch import (
    Backoff,
    Checkpoint,
    Limit,
    RateLimited,
    ResumableBatch,
    UsageError,
    resumable,
)
from lockstitch._progress import Bar, Lines, Progress, as_reporter
from lockstitch.testing import fake_clock


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.jsonl"


def batch(path, items, progress, **settings):
    return ResumableBatch(Checkpoint(path, fsync=False), items, progress=progress, **settings)


def event(**changes):
    return Progress(**{
        "total": 10, "done_before": 0, "done": 0, "errors": 0, "in_flight": 0,
        "waiting_until": None, "reason": "", "wait_left": 0.0, "elapsed": 0.0, "waited": 0.0,
        **changes,
    })  # fmt: skip


# Events


def test_each_finished_item_is_an_event_and_so_is_the_end(path):
    """The counts grow by one with each item; errors are among them; the last event says so."""
    events = []

    def work(item):
        if item == 3:
            raise ValueError(item)

    with batch(path, range(6), events.append) as running:
        running.run(work)

    assert [each.done for each in events] == [1, 2, 3, 4, 5, 6, 6]
    assert [each.errors for each in events] == [0, 0, 0, 1, 1, 1, 1]
    assert [each.finished for each in events] == [False] * 6 + [True]
    assert {(each.total, each.done_before, each.waiting_until) for each in events} == {(6, 0, None)}


@pytest.mark.parametrize("concurrency", [1, 4])
def test_what_was_done_before_is_told_apart(path, concurrency):
    """An item of an earlier run is not done in this one."""
    with batch(path, range(4), False) as running:
        running.run(str)
    events = []
    with batch(path, range(10), events.append) as running:
        running.run(str, concurrency=concurrency)

    assert (events[0].done_before, events[0].total) == (4, 10)
    assert 1 <= events[0].done <= concurrency
    assert (events[-1].done_before, events[-1].done, events[-1].finished) == (4, 6, True)
    assert events[-1].in_flight == 0


def test_the_total_of_a_generator_is_known_at_its_end(path):
    """Until then there is neither a total nor an estimate."""
    events = []
    with batch(path, (item for item in range(3)), events.append) as running:
        running.run(str)

    assert (events[0].total, events[0].seconds_left) == (None, None)
    assert events[-1].total == 3


def test_the_estimate_leaves_out_earlier_runs_and_pauses(path):
    """Ten seconds an item are ten seconds an item, whatever was skipped and waited for."""
    events = []
    with fake_clock() as clock:
        limited = iter([True])

        def work(item):
            if item == 6 and next(limited, False):
                raise RateLimited(Limit.after(300, reason="quota"))
            clock.advance(10)

        with batch(path, range(4), False) as running:
            running.run(work)
        with batch(path, range(10), events.append) as running:
            running.run(work)
    finished = [each for each in events if each.waiting_until is None]

    assert [each.seconds_left for each in finished] == [50, 40, 30, 20, 10, 0, 0]
    assert (finished[-1].elapsed, finished[-1].waited) == (360, 300)


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_wait_counts_down(path, concurrency):
    """While a limit is waited for, each second tells what is left, until when, and why."""
    events = []
    with fake_clock() as clock:
        until = clock.wall() + 30
        limited = iter([True])

        def work(item):
            if next(limited, False):
                raise RateLimited(Limit.after(30, reason="quota"))

        with batch(path, [0], events.append) as running:
            running.run(work, concurrency=concurrency)
    waiting = [each for each in events if each.waiting_until is not None]

    assert [each.wait_left for each in waiting] == [float(left) for left in range(30, 0, -1)]
    assert {each.waiting_until.timestamp() for each in waiting} == {until}
    assert {(each.reason, each.waiting_until.tzinfo) for each in waiting} == {("quota", UTC)}
    assert [each.waiting_until for each in events[-2:]] == [None, None]


def test_a_wait_for_a_retry_is_no_limit(path):
    """A failed item that comes round later is not told as a limit."""
    events = []
    with fake_clock(), batch(path, [0], events.append, retry=Backoff(attempts=2)) as running:
        running.run(lambda item: 1 / item)

    assert [each.waiting_until for each in events] == [None] * len(events)
    assert events[-1].errors == 1


def test_a_parked_batch_tells_its_end(path):
    """The last event comes also when a limit stops the batch."""
    events = []

    def work(item):
        if item == 2:
            raise RateLimited(Limit.after(6 * 3600))

    with fake_clock(), batch(path, range(5), events.append) as running:
        running.run(work)

    assert (events[-1].finished, events[-1].done, events[-1].total) == (True, 2, 5)


def test_plain_calls_have_no_end(path):
    """Where the caller has the loop, nobody knows how many come: no total, and no last event."""
    events = []
    double = resumable(Checkpoint(path, fsync=False), progress=events.append)(lambda item: 2 * item)
    with double:
        for item in range(3):
            double(item)

    assert [(each.done, each.total, each.finished) for each in events] == [
        (1, None, False),
        (2, None, False),
        (3, None, False),
    ]


def with_loop(running):
    for item in running:
        running.save(item)


def with_arun(running):
    async def work(item):
        await asyncio.sleep(0)

    asyncio.run(running.arun(work, concurrency=4))


@pytest.mark.parametrize(
    "drive",
    [
        with_loop,
        with_arun,
        lambda running: running.run(str),
        lambda running: running.run(str, concurrency=8),
        lambda running: list(running.map(str, concurrency=4)),
    ],
    ids=["loop", "arun", "run", "run-8", "map-4"],
)
@pytest.mark.parametrize("always", [False, True], ids=["once", "always"])
def test_what_a_reporter_raises_is_the_callers(path, drive, always):
    """A mistake in it is not an item's error, and is not swallowed; what was finished is stored."""
    seen = []

    def report(progress):
        seen.append(progress)
        if len(seen) == 3 or (always and len(seen) > 3):
            raise ZeroDivisionError("in the reporter")

    with pytest.raises(ZeroDivisionError, match="in the reporter"):  # noqa: SIM117 - what leaves it
        with batch(path, range(50), report) as running:
            drive(running)
    with Checkpoint(path, read_only=True) as checkpoint:
        assert len(checkpoint) >= 3
        assert checkpoint.stats().by_status == {"ok": len(checkpoint)}
        assert checkpoint.stats().stop_reason == "failed"


# Lines


def test_without_a_terminal_there_is_a_line_now_and_then(path, capsys):
    """A log is told of each tenth, and not of each of a thousand items."""
    with batch(path, range(1000), True) as running:
        running.run(str)
    lines = capsys.readouterr().err.splitlines()

    assert 3 <= len(lines) <= 12
    assert lines[0].startswith("lockstitch: 1/1000 done")
    assert lines[-1] == "lockstitch: 1000/1000 done"


def test_a_line_comes_each_half_minute_and_with_each_wait(capsys):
    """A slow batch is heard of, a limit is told when it begins and when it is over."""
    report = Lines()
    until = Limit(None).resume_at
    for elapsed in range(0, 90, 10):
        report(event(total=None, done=1 + elapsed, elapsed=float(elapsed)))
    slow = capsys.readouterr().err.splitlines()
    with fake_clock() as clock:
        until = clock.instant
    for left in range(20, 0, -1):
        report(event(total=None, done=81, elapsed=100.0 - left, waiting_until=until, reason="quota",
                     wait_left=float(left)))  # fmt: skip
    report(event(total=None, done=82, elapsed=101.0))
    limited = capsys.readouterr().err.splitlines()

    assert slow == [f"lockstitch: {n} done" for n in (1, 31, 61)]
    assert limited == ["lockstitch: 81 done · limited (quota), going on in 20 s",
                       "lockstitch: 82 done"]  # fmt: skip


def test_an_event_reads_like_a_sentence():
    """Done, errors and the time left, where they are known."""
    assert (
        str(event(done=2, errors=1, elapsed=20.0)) == "2/10 done · 1 errors · about 1 min 20 s left"
    )
    assert str(event(total=None, done=2)) == "2 done"
    assert str(event(done_before=4, done=6, elapsed=9.0, finished=True)) == "10/10 done"


@pytest.mark.parametrize("wrong", [1, "yes", None, "True"])
def test_progress_of_another_kind_is_refused(wrong):
    """What is neither True, False, "auto" nor a function is told so before anything is written."""
    with pytest.raises(UsageError, match="progress="):
        as_reporter(wrong)


# The bar


@pytest.fixture
def bars(monkeypatch):
    """Bars that draw nowhere and live on a clock of their own; yields them and the clock."""
    tqdm = pytest.importorskip("tqdm").tqdm
    monkeypatch.setattr(tqdm, "monitor_interval", 0)  # no thread of its own
    now, made = [1000.0], []

    with open(os.devnull, "w") as nowhere:

        def make(**arguments):
            bar = tqdm(**{**arguments, "file": nowhere, "mininterval": 0})
            bar._time = lambda: now[0]
            bar.start_t = bar.last_print_t = now[0]
            made.append(bar)
            return bar

        report = Bar()
        report._make = make
        yield report, now, made
        for bar in made:
            bar.close()


def test_what_earlier_runs_did_is_no_speed(bars):
    """The bar moves on past it, and its rate and estimate are those of this run."""
    report, now, made = bars
    report(event(total=1000, done_before=400))
    for done in range(1, 11):
        now[0] += 10
        report(event(total=1000, done_before=400 + 50 * done, done=done, elapsed=10.0 * done))
    shown = made[0].format_dict

    assert (shown["n"], shown["initial"], shown["total"]) == (910, 900, 1000)
    assert shown["elapsed"] == 100
    rate = shown["rate"] or (shown["n"] - shown["initial"]) / shown["elapsed"]
    assert rate == pytest.approx(0.1)


def test_a_pause_is_no_slowness(bars):
    """After a wait of an hour the bar goes on with the pace it had."""
    report, now, made = bars
    with fake_clock() as clock:
        until = clock.instant
    report(event(total=1000))
    for done in range(1, 11):
        now[0] += 10
        if done == 5:
            for _ in range(3600):
                now[0] += 1
                report(event(total=1000, done=4, waiting_until=until, wait_left=1.0))
        report(event(total=1000, done=done))
    shown = made[0].format_dict

    assert shown["n"] == 10
    assert shown["elapsed"] < 120


ON_A_TERMINAL = """
import sys
if "missing" in sys.argv:
    sys.modules["tqdm"] = sys.modules["tqdm.auto"] = None
from lockstitch import Checkpoint, ResumableBatch, UsageError
progress = "auto" if "auto" in sys.argv else True
try:
    batch = ResumableBatch(Checkpoint(sys.argv[1], fsync=False), range(40), progress=progress)
except UsageError as error:
    sys.exit(str(error))
with batch:
    batch.run(lambda item: 1 / (item - 7))
sys.exit(batch.exit_code)
"""


def on_a_terminal(*arguments):
    """Run the script with standard error on a pseudo terminal; return its code and what it drew."""
    pty = pytest.importorskip("pty")
    termios = pytest.importorskip("termios")
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", ON_A_TERMINAL, *map(str, arguments)], stderr=theirs
        )
    finally:
        os.close(theirs)
    drawn = b""
    try:
        while select.select([ours], [], [], 60)[0]:
            block = os.read(ours, 65536)
            if not block:
                break
            drawn += block
    except OSError:  # how Linux tells that the other end is closed
        pass
    finally:
        os.close(ours)

    return process.wait(60), drawn.decode()


def test_on_a_terminal_there_is_a_bar(path):
    """With tqdm installed, the bar ends full and names the errors."""
    pytest.importorskip("tqdm")
    code, drawn = on_a_terminal(path)

    assert code == 1
    last = [each for each in drawn.split("\r") if "%|" in each][-1]
    assert "100%" in last
    assert "40/40" in last
    assert "1 errors" in last


def test_without_tqdm_a_bar_is_refused_with_the_way_to_get_it(path):
    """Who asked for a bar is told how to install it, before anything is written."""
    code, drawn = on_a_terminal(path, "missing")

    assert code == 1
    assert "pip install 'lockstitch[progress]'" in drawn
    assert not path.exists()


def test_without_tqdm_auto_writes_lines(path):
    """Who left the choice to the library gets what there is."""
    code, drawn = on_a_terminal(path, "missing", "auto")

    assert code == 1
    assert "lockstitch: 40/40 done · 1 errors" in drawn
