"""The helpers for users' tests, used as a user would."""

from datetime import UTC, datetime

import pytest

from lockstitch import Checkpoint, CheckpointLocked, ResumableBatch, UsageError
from lockstitch.testing import SimulatedCrash, crash_after, fake_clock, memory_storage


def test_a_fake_clock_moves_only_when_somebody_waits():
    """It stands still, it can be moved by hand, and it remembers every wait."""
    import queue

    with fake_clock(datetime(2030, 5, 1, tzinfo=UTC)) as clock:
        clock.advance(60)
        assert clock.instant == datetime(2030, 5, 1, 0, 1, tzinfo=UTC)
        assert clock.wait(queue.SimpleQueue(), 30) is None

    assert clock.waits == [30]
    assert clock.now() == 90


def test_an_event_that_is_there_ends_a_wait_at_once():
    """Time does not pass when there is something to do."""
    import queue

    with fake_clock() as clock:
        events = queue.SimpleQueue()
        events.put("now")
        assert clock.wait(events, 30) == "now"

    assert clock.waits == []


def test_a_fake_clock_takes_an_aware_start():
    """A naive moment would depend on the machine's time zone."""
    with pytest.raises(UsageError), fake_clock(datetime(2030, 1, 1)):  # noqa: DTZ001
        pass


def test_memory_storage_behaves_like_a_disk(tmp_path, monkeypatch):
    """Saving, resuming, compacting, forgetting, setting aside and locking all work."""
    monkeypatch.chdir(tmp_path)
    with memory_storage():
        with Checkpoint("run") as checkpoint:
            checkpoint.save("a", 1)
            checkpoint.save("b", 2)
            with pytest.raises(CheckpointLocked):
                Checkpoint("run").save("c")
            checkpoint.compact()
            checkpoint.forget(["a"])
        with Checkpoint("run") as checkpoint:
            assert list(checkpoint) == ["b"]
        with Checkpoint("run", fresh=True) as checkpoint:
            assert list(checkpoint) == []
        assert list(Checkpoint("run.old-1", read_only=True)) == ["b"]
        assert Checkpoint.verify("run").ok

    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        Checkpoint("run", read_only=True)["b"]


@pytest.mark.parametrize("memory", [True, False], ids=["memory", "disk"])
def test_a_loop_survives_a_crash_at_every_byte(tmp_path, memory):
    """Wherever the process dies, the next start loses nothing and doubles nothing."""
    import contextlib

    def script(path):
        with ResumableBatch(path, range(3)) as batch:
            for item in batch:
                batch.save(item)
                finished.append(item)
        return batch

    with memory_storage() if memory else contextlib.nullcontext():
        size = 0
        while True:
            path = tmp_path / f"run-{size}"
            finished = []
            try:
                with crash_after(size):
                    script(path)
            except SimulatedCrash:
                acknowledged = list(finished)
                batch = script(path)
                assert batch.exit_code == 0
                assert sorted(finished) == [0, 1, 2], "an acknowledged item ran twice"
                assert [record.id for record in batch.checkpoint.records()] == ["0", "1", "2"]
                assert finished[: len(acknowledged)] == acknowledged
            else:
                break
            size += 1

    assert size > 500


@pytest.mark.parametrize("size", [-1, 1.5, True, "3"])
def test_crash_after_takes_a_number_of_bytes(size):
    """Anything else is a mistake."""
    with pytest.raises(UsageError), crash_after(size):
        pass


def test_what_is_made_outside_is_not_touched(tmp_path):
    """A checkpoint made before the `with` keeps its disk."""
    checkpoint = Checkpoint(tmp_path / "run")
    with memory_storage(), checkpoint:
        checkpoint.save("a")

    assert (tmp_path / "run").exists()
