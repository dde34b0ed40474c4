"""The writing end: group commit, failures of the disk, interrupts."""

import errno
import itertools
import json
import logging
import os
import signal
import sys
import threading
import tracemalloc
from collections import Counter
from contextlib import suppress

import pytest

from lockstitch import (
    Checkpoint,
    CheckpointDamaged,
    CheckpointLocked,
    DurabilityUnknown,
    ErrorInfo,
    Limit,
    ResumableBatch,
    SerializationFailed,
    UsageError,
)
from lockstitch._frames import seal

#: Ways in which a write can be refused.
REFUSALS = [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.jsonl"


def ids_in(path):
    """Return how often each id has a record in the file."""
    return Counter(
        data["id"] for data in map(json.loads, path.read_bytes().splitlines()) if "id" in data
    )


def fill(checkpoint, count=3):
    for number in range(count):
        checkpoint.save(f"i{number}", number)


# Durability that was asked for


def test_with_fsync_every_save_is_one_sync(path, files):
    """Written once, synced once, before the call returns."""
    with Checkpoint(path) as checkpoint:
        before = files.calls.copy()
        fill(checkpoint, 50)
        assert files.calls["sync"] - before["sync"] == 50
        assert files.calls["write"] - before["write"] == 50


KEPT = {
    "cursor": lambda store: store.save_cursor("a", 1),
    "step": lambda store: store.save_step("a", "fetch", 1),
    "retry": lambda store: store.retry("a", 1, ErrorInfo("ValueError", "bad"), 0.0),
    "pause": lambda store: store.pause(Limit.after(1), 0.0, "guard"),
}


@pytest.mark.parametrize("kind", KEPT)
def test_what_is_kept_for_the_next_run_is_as_durable_as_a_result(path, files, kind):
    """Cursors, steps, retries and pauses: synced, before the call returns."""
    with Checkpoint(path) as checkpoint:
        checkpoint.save("first", 1)
        before = files.calls["sync"]
        KEPT[kind](checkpoint._store)
        assert files.calls["sync"] == before + 1


def test_without_fsync_only_flush_and_close_sync(path, files):
    """The saves themselves go to the system and no further."""
    with Checkpoint(path, fsync=False) as checkpoint:
        before = files.calls["sync"]
        fill(checkpoint, 50)
        assert files.calls["sync"] == before
        checkpoint.flush()
        checkpoint.flush()
        assert files.calls["sync"] == before + 1
        checkpoint.save("x", 1)
    assert files.calls["sync"] >= before + 2


def test_seconds_of_fsync_sync_many_saves_at_once(path, files):
    """A timer syncs what was saved since; the lines say how far it got."""
    synced = threading.Event()
    with Checkpoint(path, fsync=0.05) as checkpoint:
        before = files.calls["sync"]
        files.on["sync"] = lambda _: synced.set()
        fill(checkpoint, 100)
        assert synced.wait(30)
        # The hook comes before the sync; the mutex tells when it is over.
        checkpoint.save("later", 1)
        assert files.calls["sync"] - before < 100
        assert json.loads(path.read_bytes().splitlines()[-1])["s"] >= 1
        assert checkpoint._store.journal._commit.proven >= 1


def test_a_failed_timed_sync_gives_the_handle_up_or_copies(path, files, caplog):
    """Nobody waits for the timer, so the next save raises when a copy cannot be made either."""
    reached = threading.Event()

    def sync(_):
        reached.set()
        raise OSError(errno.EIO, "no disk")

    checkpoint = Checkpoint(path, fsync=0.01)
    checkpoint.save("a", 1)
    files.on["sync"] = sync
    checkpoint.save("b", 2)
    assert reached.wait(30)
    with checkpoint._store.journal._commit._mutex:
        pass  # the timer has done what it does
    with pytest.raises(DurabilityUnknown):
        checkpoint.save("c", 3)
    files.on.clear()
    checkpoint.close()


def test_every_line_says_what_was_on_the_disk_before_it(path):
    """With fsync, each line proves all the lines before it."""
    with Checkpoint(path) as checkpoint:
        fill(checkpoint, 20)
        lines = [json.loads(line) for line in path.read_bytes().splitlines()]

    assert [line["s"] for line in lines] == [0, *range(20)]


def test_an_end_follows_a_sync_and_is_synced_itself(path, files):
    """It says that the writer ended in order, so nothing before it may be missing on the disk."""
    order = []
    with Checkpoint(path, fsync=False) as checkpoint:
        with ResumableBatch(checkpoint, ["a"]) as batch:
            batch.run(str)
            for name in ("write", "sync", "close"):
                files.on[name] = lambda *_, name=name: order.append(name)
        assert order == ["sync", "write", "sync"]
        checkpoint.save("b", 1)
        order.clear()

    assert order == ["sync", "write", "sync", "close"]


def test_what_an_opening_has_found_is_called_stored_from_then_on(path):
    """It was synced before it was believed; its loss is damage, whatever the policy is now."""
    with Checkpoint(path, fsync=False) as checkpoint:
        fill(checkpoint)
    with Checkpoint(path, fsync=False) as checkpoint:
        checkpoint.save("later", 1)
        line = json.loads(path.read_bytes().splitlines()[-1])

    assert line["n"] > 3
    assert line["s"] == line["n"] - 1


def test_saving_costs_the_same_at_the_end_as_at_the_beginning(path, files):
    """The 100,000th save writes what the 10th did, but for the digits of its numbers."""
    costs = {}
    with Checkpoint(path, fsync=False) as checkpoint:
        for number in range(1, 100_001):
            before = files.written
            checkpoint.save(f"i{number:06}", {"score": 1})
            costs[number] = files.written - before

    assert costs[100_000] - costs[10] == len("100000") - len("10")
    assert files.calls["write"] <= 100_000 + 3


# Threads


def test_thirty_two_savers_share_their_syncs(path, files):
    """Each record is written once and acknowledged after its sync; the syncs are fewer."""
    threads, each = 32, 20
    begin = threading.Barrier(threads)
    failures = []

    def save(thread):
        begin.wait()
        for number in range(each):
            id = f"{thread}-{number}"
            checkpoint.save(id, number)
            if checkpoint[id].result != number:
                failures.append(id)

    with Checkpoint(path) as checkpoint:
        before = files.calls["sync"]
        workers = [threading.Thread(target=save, args=(each,)) for each in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        syncs = files.calls["sync"] - before
        assert len(checkpoint) == threads * each

    assert not failures
    assert set(ids_in(path).values()) == {1}
    assert len(ids_in(path)) == threads * each
    assert syncs < threads * each
    assert Checkpoint.verify(path).ok


def test_compactions_and_readers_do_not_disturb_savers(path):
    """Records move while they are read; each look finds the right one."""
    stop, wrong = threading.Event(), []

    def read():
        while not stop.is_set():
            wrong.extend(each for each in checkpoint.records() if each.result != {"of": each.id})

    def compact():
        while not stop.is_set():
            checkpoint.compact()

    def save(thread):
        for number in range(60):
            checkpoint.save(f"{thread}-{number % 20}", {"of": f"{thread}-{number % 20}"})

    with Checkpoint(path, fsync=False) as checkpoint:
        others = [threading.Thread(target=each) for each in (read, compact)]
        savers = [threading.Thread(target=save, args=(each,)) for each in range(4)]
        for thread in others + savers:
            thread.start()
        for thread in savers:
            thread.join()
        stop.set()
        for thread in others:
            thread.join()
        assert len(checkpoint) == 80

    assert not wrong
    assert Checkpoint.verify(path).ok


def test_a_save_that_races_with_close_is_stored_or_refused(path):
    """It never goes to a closed descriptor, which may be another file by then."""
    for attempt in range(20):
        checkpoint = Checkpoint(path, fsync=False)
        checkpoint.save("first", 1)
        acknowledged, odd = [], []

        store = checkpoint._store

        def save(thread, store=store, acknowledged=acknowledged, odd=odd, attempt=attempt):
            for number in range(1000):
                id = f"{attempt}-{thread}-{number}"
                try:
                    store.finish(id, "ok", result=number)
                except UsageError:  # it is closed
                    return
                except BaseException as error:
                    odd.append(error)
                    return
                acknowledged.append(id)

        threads = [threading.Thread(target=save, args=(each,)) for each in range(3)]
        for thread in threads:
            thread.start()
        while len(acknowledged) < 20 and any(thread.is_alive() for thread in threads):
            pass
        checkpoint.close()
        for thread in threads:
            thread.join()
        assert not odd
        with Checkpoint(path, read_only=True) as reader:
            assert all(id in reader for id in acknowledged)


# Writes that fail


@pytest.mark.parametrize("code", REFUSALS, ids=errno.errorcode.get)
def test_a_refused_write_is_undone_and_the_next_save_succeeds(path, files, code):
    """The file is as before, the error is the system's own, and the handle stays usable."""
    with Checkpoint(path) as checkpoint:
        fill(checkpoint)
        before = path.read_bytes()
        files.on["write"] = files.failing(code)
        with pytest.raises(OSError, match=os.strerror(code)) as caught:
            checkpoint.save("bad", 1)
        assert caught.value.errno == code
        assert path.read_bytes() == before
        assert "bad" not in checkpoint
        checkpoint.save("good", 1)
    assert list(ids_in(path)) == ["i0", "i1", "i2", "good"]
    assert Checkpoint.verify(path).ok


def test_a_write_that_fails_half_way_is_undone(path, files):
    """Half a line is cut off again, and the cut is synced before anything else is written."""
    for size in (1, 40, 100):
        with Checkpoint(path) as checkpoint:
            fill(checkpoint)
            before = path.read_bytes()
            answers = iter([lambda fd, data, size=size: os.write(fd, data[:size])])

            def write(fd, data, answers=answers):
                for answer in answers:
                    return answer(fd, data)
                files.on.clear()
                raise OSError(errno.ENOSPC, "disk full")

            files.on["write"] = write
            syncs = files.calls["sync"]
            with pytest.raises(OSError, match="disk full"):
                checkpoint.save("bad", 1)
            assert path.read_bytes() == before
            assert files.calls["sync"] == syncs + 1
            checkpoint.save("good", 1)
        assert Checkpoint.verify(path).ok


def test_a_write_that_cannot_be_undone_gives_the_handle_up(path, files):
    """Nobody knows what is on the disk: the ids are named, and no more is taken."""
    for call in ("truncate", "sync"):
        checkpoint = Checkpoint(path)
        fill(checkpoint)
        half = iter([1])

        def write(fd, data, half=half):
            if next(half, None):
                return os.write(fd, data[:10])
            raise OSError(errno.ENOSPC, "disk full")

        files.on.update({"write": write, call: files.failing(errno.EIO, times=99)})
        with pytest.raises(DurabilityUnknown) as caught:
            checkpoint.save("bad", 1)
        assert caught.value.ids == ("bad",)
        files.on.clear()
        with pytest.raises(DurabilityUnknown):
            checkpoint.save("good", 1)
        checkpoint.close()
        with Checkpoint(path) as again:
            assert sorted(again) == ["i0", "i1", "i2"]


def test_all_that_wait_for_a_refused_write_are_told(path, files):
    """A group fails as a group; each saver gets the error, and each may try again."""
    told, begin = [], threading.Barrier(8)
    with Checkpoint(path) as checkpoint:
        checkpoint.save("first", 1)
        files.on["write"] = files.failing(errno.ENOSPC, times=1 << 20)

        def save(thread):
            begin.wait()
            try:
                checkpoint.save(f"t{thread}", 1)
            except OSError as error:
                told.append(error)

        threads = [threading.Thread(target=save, args=(each,)) for each in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        files.on.clear()
        assert [error.errno for error in told] == [errno.ENOSPC] * 8
        assert len(set(map(id, told))) == 8
        checkpoint.save("after", 1)
    assert list(ids_in(path)) == ["first", "after"]


def calls_of(path, files, action):
    """Return which file calls `action` makes on an open checkpoint, in order."""
    seen = []
    with Checkpoint(path) as checkpoint:
        fill(checkpoint)
        for name in (
            "write",
            "sync",
            "create",
            "replace",
            "link_new",
            "sync_directory",
            "truncate",
        ):
            files.on[name] = lambda *_, name=name: seen.append(name)
        action(checkpoint)
        files.on.clear()
    return seen


ACTIONS = {
    "save": lambda checkpoint: checkpoint.save("new", 1),
    "compact": lambda checkpoint: checkpoint.compact(),
    "forget": lambda checkpoint: checkpoint.forget(["i0"]),
}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def test_a_disk_that_fails_at_any_call_loses_nothing_acknowledged(tmp_path, files, action, code):
    """Each single call of each action, refused in turn."""
    plan = calls_of(tmp_path / "plan.jsonl", files, ACTIONS[action])
    assert plan
    for position, name in enumerate(plan):
        path = tmp_path / f"{position}.jsonl"
        checkpoint = Checkpoint(path)
        fill(checkpoint)
        files.on[name] = files.failing(code, after=plan[:position].count(name))
        try:
            ACTIONS[action](checkpoint)
            done = True
        except (OSError, DurabilityUnknown):
            done = False
        files.on.clear()
        try:
            checkpoint.save("next", 1)
            more = ["next"]
        except DurabilityUnknown:
            more = []
        checkpoint.close()
        with Checkpoint(path) as again:
            got = set(again)
        must = {"i1", "i2", *more} | ({"new"} if done and action == "save" else set())
        assert must <= got <= {"i0", "i1", "i2", "new", "next"}, (name, position)
        assert ("i0" in got) or (action == "forget"), (name, position)
        assert Checkpoint.verify(path).ok
        assert not list(tmp_path.glob("*.tmp-*"))


@pytest.mark.parametrize("name", ["create", "write", "sync", "link_new", "sync_directory"])
def test_a_new_file_is_whole_or_not_there(path, files, name):
    """When it cannot be created, nothing is left but the lock, and the next start works."""
    files.on[name] = files.failing(errno.ENOSPC)
    with pytest.raises(OSError, match="No space"):
        Checkpoint(path).save("a", 1)
    files.on.clear()
    assert {each.name for each in path.parent.iterdir()} <= {"run.jsonl", "run.jsonl.lock"}
    with Checkpoint(path) as checkpoint:
        checkpoint.save("a", 1)

    assert list(ids_in(path)) == ["a"]


# Syncs that fail


def test_after_a_failed_sync_a_copy_is_published_and_the_save_holds(path, files, caplog):
    """The sync is never tried again on that file; the acknowledged save is in a new one."""
    with Checkpoint(path) as checkpoint:
        fill(checkpoint)
        inode = path.stat().st_ino
        fds = []
        hook = files.failing(errno.EIO)

        def sync(fd):
            fds.append(os.fstat(fd).st_ino)
            hook(fd)

        files.on["sync"] = sync
        checkpoint.save("kept", {"x": 1})
        assert fds.count(inode) == 1
        assert path.stat().st_ino != inode
        assert "a sync failed" in caplog.text
        assert checkpoint["kept"].result == {"x": 1}
        checkpoint.save("next", 1)
        checkpoint.compact()
    assert ids_in(path) == Counter(["i0", "i1", "i2", "kept", "next"])
    assert Checkpoint.verify(path).ok


@pytest.mark.parametrize("broken", ["create", "write", "sync", "replace", "sync_directory"])
def test_when_the_copy_fails_too_the_ids_are_named(path, files, broken):
    """The save is in doubt, the handle takes no more, and the next opening shows the truth."""
    checkpoint = Checkpoint(path)
    fill(checkpoint)
    syncs = files.failing(errno.EIO)
    seen = []

    def sync(fd):
        seen.append(fd)
        if broken == "sync" or len(seen) == 1:
            syncs(fd)
        if broken == "sync":
            raise OSError(errno.EIO, "no disk")
        if len(seen) == 1:
            raise AssertionError("not reached")

    files.on["sync"] = sync
    if broken != "sync":
        # The first write is the save's own.
        files.on[broken] = files.failing(errno.ENOSPC, after=broken == "write")
    with pytest.raises(DurabilityUnknown, match="'bad'") as caught:
        checkpoint.save("bad", 1)
    assert caught.value.ids == ("bad",)
    assert caught.value.path == str(path)
    files.on.clear()
    size = path.stat().st_size
    for call in (
        lambda: checkpoint.save("x", 1),
        checkpoint.flush,
        checkpoint.compact,
        lambda: checkpoint.forget(["i0"]),
    ):
        with pytest.raises(DurabilityUnknown):
            call()
    assert path.stat().st_size == size
    checkpoint.close()
    with Checkpoint(path) as again:
        assert {"i0", "i1", "i2"} <= set(again)


def test_a_file_that_cannot_be_opened_again_frees_its_lock(path, files):
    """Out of descriptors in the middle of a compaction: given up, and close still unlocks."""
    checkpoint = Checkpoint(path)
    fill(checkpoint)
    files.on["open_append"] = files.failing(errno.EMFILE)
    with pytest.raises(DurabilityUnknown):
        checkpoint.compact()
    for call in (lambda: checkpoint.save("x", 1), lambda: checkpoint["i0"]):
        with pytest.raises(DurabilityUnknown):
            call()
    files.on.clear()
    checkpoint.close()
    with Checkpoint(path) as again:
        assert sorted(again) == ["i0", "i1", "i2"]


def test_an_unsynced_file_is_copied_before_it_is_believed(path, files, caplog):
    """When the sync at opening fails, what is read may be the only copy: it is written anew."""
    with Checkpoint(path) as checkpoint:
        fill(checkpoint)
    inode = path.stat().st_ino
    files.on["sync"] = files.failing(errno.EIO)
    with Checkpoint(path) as checkpoint:
        assert len(checkpoint) == 3
        assert path.stat().st_ino != inode
    files.on["sync"] = files.failing(errno.EIO, times=9)
    with pytest.raises(OSError, match="Input/output"):
        len(Checkpoint(path))
    files.on.clear()
    with Checkpoint(path) as checkpoint:
        assert len(checkpoint) == 3


def test_a_cache_that_cannot_be_dropped_is_copied_unless_it_was_sealed(path, files):
    """A run that died may have left what is only in memory."""
    files.on["drop_cache"] = lambda *_: False
    with Checkpoint(path) as checkpoint:
        fill(checkpoint)
        killed = path.read_bytes()
    inode = path.stat().st_ino
    with Checkpoint(path) as checkpoint:
        assert path.stat().st_ino == inode
        assert len(checkpoint) == 3
    path.write_bytes(killed)
    with Checkpoint(path) as checkpoint:
        assert path.stat().st_ino != inode
        assert len(checkpoint) == 3


def test_where_a_cache_cannot_be_dropped_the_last_line_of_a_sealed_file_is_renewed(path, files):
    """Its own sync may have failed with nobody left to see it; all before it was on the disk."""
    with Checkpoint(path) as checkpoint:
        fill(checkpoint)
    sealed, order = path.read_bytes(), []
    files.on["drop_cache"] = lambda *_: False
    for name in ("truncate", "sync", "write"):
        files.on[name] = lambda *_, name=name: order.append(name)
    with Checkpoint(path) as checkpoint:
        assert order[-4:] == ["truncate", "sync", "write", "sync"]
        assert path.read_bytes() == sealed
        assert len(checkpoint) == 3


def test_opening_syncs_and_drops_before_it_reads(path, files):
    """What is believed is what the disk holds."""
    with Checkpoint(path) as checkpoint:
        fill(checkpoint)
    order = []
    for name in ("open_append", "sync", "sync_directory", "drop_cache", "read"):
        files.on[name] = lambda *_, name=name: order.append(name)
    with Checkpoint(path):
        pass

    trusted = order[order.index("open_append") :]  # a look at the header comes before the lock
    assert trusted[:5] == ["open_append", "sync", "sync_directory", "drop_cache", "read"]


def test_only_a_file_that_ends_in_order_is_read_from_memory(path, files):
    """Its end comes from the disk, and says that all before it is there too."""
    with Checkpoint(path) as checkpoint:
        fill(checkpoint)
    dropped = []
    files.on["drop_cache"] = lambda fd, start, size: dropped.append(start) or True
    with Checkpoint(path) as checkpoint:
        checkpoint.save("large", "x" * 200_000)
    assert dropped == [0]
    with Checkpoint(path):
        pass
    size = path.stat().st_size
    assert dropped[1:] == [(size - 65536) // 65536 * 65536]
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex(b'{"end":')])
    with Checkpoint(path):
        pass
    assert dropped[2:] == [(path.stat().st_size - 65536) // 65536 * 65536, 0]


def test_an_end_that_follows_what_was_not_synced_proves_nothing(path, files):
    """The whole file is read from the disk then."""
    with Checkpoint(path, fsync=False) as checkpoint:
        header = checkpoint._store.journal.header
    # As no writer leaves it: an end whose records were not on the disk when it was written.
    lines = [b'{"id":"a","status":"ok"}', b'{"end":0,"reason":"closed"}']
    sealed = [seal(line, n, 0, header.salt) for n, line in enumerate(lines, start=1)]
    path.write_bytes(header.line() + b"".join(sealed))
    dropped = []
    files.on["drop_cache"] = lambda fd, start, size: dropped.append(size) or True
    with Checkpoint(path) as checkpoint:
        assert "a" in checkpoint
    assert len(dropped) == 2


def test_the_cut_of_a_torn_tail_is_on_the_disk_before_anything_follows(path, files):
    """A power cut must not bring half a line back in front of a record."""
    with Checkpoint(path) as checkpoint:
        fill(checkpoint)
    path.write_bytes(path.read_bytes() + b"half a line")
    order = []
    for name in ("truncate", "sync", "write"):
        files.on[name] = lambda *_, name=name: order.append(name)
    with Checkpoint(path) as checkpoint:
        checkpoint.save("next", 1)

    assert order[order.index("truncate") :][:3] == ["truncate", "sync", "write"]


def test_a_compaction_that_nobody_asked_for_may_fail(path, files, caplog, monkeypatch):
    """It only saves space; an opening is not refused for want of it."""
    monkeypatch.setattr("lockstitch._store._COMPACT_ABOVE", 100)
    with Checkpoint(path) as checkpoint:
        for _ in range(10):
            fill(checkpoint)
    size = path.stat().st_size
    files.on["create"] = files.failing(errno.ENOSPC)
    with Checkpoint(path) as checkpoint:
        assert len(checkpoint) == 3
    assert "could not be compacted" in caplog.text
    files.on.clear()
    with Checkpoint(path) as checkpoint:
        assert len(checkpoint) == 3
        assert path.stat().st_size < size / 2


# Somebody else


MEDDLING = {
    "deleted": (lambda path: path.unlink(), "deleted or replaced"),
    "grown": (lambda path: path.open("ab").write(b"x\n"), "bytes long"),
    "cut": (lambda path: os.truncate(path, 10), "bytes long"),
    "emptied": (lambda path: path.write_bytes(b""), "bytes long"),
    "replaced": (
        lambda path: (
            path.with_suffix(".new").write_bytes(b"mine"),
            path.with_suffix(".new").replace(path),
        ),
        "deleted or replaced",
    ),
}


@pytest.mark.parametrize("name", MEDDLING)
@pytest.mark.parametrize("action", ["save", "compact"])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_file_that_somebody_else_changed_is_left_as_it_is(path, name, action):
    """The next save says so; nothing is written over what the other one did."""
    meddle, word = MEDDLING[name]
    checkpoint = Checkpoint(path)
    fill(checkpoint)
    meddle(path)
    theirs = path.read_bytes() if path.exists() else None
    with pytest.raises(CheckpointDamaged, match=word):
        ACTIONS[action](checkpoint)
    with pytest.raises(CheckpointDamaged, match=word):
        checkpoint.save("again", 1)
    checkpoint.close()

    assert (path.read_bytes() if path.exists() else None) == theirs


@pytest.mark.parametrize(("name", "saves"), [("grown", 1), ("cut", 1), ("deleted", 100)])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_without_fsync_a_foreign_hand_is_noticed_all_the_same(path, name, saves):
    """A changed length at the next save, a lost name before many results go to a file of nobody."""
    meddle, word = MEDDLING[name]
    checkpoint = Checkpoint(path, fsync=False)
    fill(checkpoint)
    meddle(path)
    with pytest.raises(CheckpointDamaged, match=word):
        fill(checkpoint, saves)
    checkpoint.close()


def test_what_changed_under_a_reader_is_not_believed(path):
    """Each record is proved again when it is read."""
    with Checkpoint(path) as checkpoint:
        fill(checkpoint)
        data = path.read_bytes()
        path.write_bytes(data.replace(b'"result":1', b'"result":7'))
        with pytest.raises(CheckpointDamaged, match="changed after it was read"):
            checkpoint["i1"]
        assert checkpoint["i0"].result == 0
        path.write_bytes(data)


# Interrupts


def test_a_handler_that_interrupts_a_save_is_refused(path, files):
    """It would wait for its own thread; the save itself goes on."""
    refused = []

    def handler(*_):
        calls = (
            lambda: checkpoint.save("h", 1),
            lambda: checkpoint["i0"],
            checkpoint.flush,
            checkpoint.compact,
            checkpoint.close,
        )
        for call in calls:
            try:
                call()
            except UsageError as error:
                refused.append(str(error))

    previous = signal.signal(signal.SIGUSR1, handler)
    try:
        with Checkpoint(path) as checkpoint:
            fill(checkpoint)

            def write(*_):
                files.on.clear()
                signal.raise_signal(signal.SIGUSR1)

            files.on["write"] = write
            checkpoint.save("x", 1)
            assert "i0" in checkpoint
            checkpoint.save("y", 1)
    finally:
        signal.signal(signal.SIGUSR1, previous)

    assert len(refused) == 5
    assert all("signal handler" in each for each in refused)
    assert list(ids_in(path)) == ["i0", "i1", "i2", "x", "y"]
    assert Checkpoint.verify(path).ok


def test_an_interrupt_between_sync_and_commit_is_harmless(path, files, monkeypatch):
    """The group is written again, with the numbers of one that was not there before."""
    with Checkpoint(path) as checkpoint:
        fill(checkpoint)
        fold = checkpoint._store.journal.fold

        def interrupt(fd):
            files.on.clear()
            os.fdatasync(fd)
            raise KeyboardInterrupt

        files.on["sync"] = interrupt
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save("x", 1)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(type(fold), "apply", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            checkpoint.save("y", 1)
        checkpoint.save("z", 1)
        assert {"x", "y", "z"} <= set(checkpoint)
    assert ids_in(path) == Counter(["i0", "i1", "i2", "x", "y", "z"])
    assert Checkpoint.verify(path).ok


def test_without_fsync_an_interrupted_save_is_made_good(path, files):
    """It was not told that it is saved; the next save, or the end, writes it all the same."""
    with Checkpoint(path, fsync=False) as checkpoint:
        for name in ("x", "y"):

            def interrupt(fd, data):
                files.on.clear()
                os.write(fd, data[:9])
                raise KeyboardInterrupt

            files.on["write"] = interrupt
            with pytest.raises(KeyboardInterrupt):
                checkpoint.save(name, 1)
            if name == "x":
                checkpoint.save("z", 1)
                assert "x" in checkpoint
    assert ids_in(path) == Counter(["x", "y", "z"])
    assert Checkpoint.verify(path).ok


def interrupted(files, save, *, error=KeyboardInterrupt, call="write"):
    """Let `error` come up in the middle of a save, as a signal handler would raise it."""

    def interrupt(*_):
        files.on.clear()
        raise error

    files.on[call] = interrupt
    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        save()


@pytest.mark.parametrize(("fsync", "call"), [(True, "write"), (True, "sync"), (False, "write")])
def test_a_timeout_raised_by_a_handler_is_no_failure_of_the_disk(path, files, fsync, call, caplog):
    """`TimeoutError` is an `OSError`, too; the save is made good, and no copy is made."""
    with Checkpoint(path, fsync=fsync) as checkpoint:
        fill(checkpoint)
        inode = path.stat().st_ino
        interrupted(
            files, lambda: checkpoint.save("x", 1), error=TimeoutError("too long"), call=call
        )
        checkpoint.save("y", 1)
        assert {"x", "y"} <= set(checkpoint)
        assert path.stat().st_ino == inode
    assert ids_in(path) == Counter(["i0", "i1", "i2", "x", "y"])
    assert Checkpoint.verify(path).ok
    assert not caplog.records


@pytest.mark.parametrize("before", [True, False])
def test_a_timeout_while_the_file_is_replaced_gives_the_handle_up(path, files, before):
    """Nobody knows whether it came before or after; with the wrong salt nothing may be written."""
    checkpoint = Checkpoint(path)
    fill(checkpoint)

    def replace(source, target):
        files.on.clear()
        if not before:
            os.replace(source, target)
        raise TimeoutError("too long")

    files.on["replace"] = replace
    with pytest.raises(TimeoutError):
        checkpoint.compact()
    with pytest.raises(DurabilityUnknown):
        checkpoint.save("next", 1)
    checkpoint.close()
    with Checkpoint(path) as again:
        assert sorted(again) == ["i0", "i1", "i2"]


def two_that_share(checkpoint, id="t"):
    """Let two threads save in one group; return how each of their calls ended."""
    commit, ended = checkpoint._store.journal._commit, {}

    def save(number):
        try:
            checkpoint.save(f"{id}{number}", number)
        except BaseException as error:
            ended[f"{id}{number}"] = type(error)
        else:
            ended[f"{id}{number}"] = f"{id}{number}" in checkpoint

    threads = [threading.Thread(target=save, args=(number,)) for number in range(2)]
    with commit._mutex:
        for thread in threads:
            thread.start()
        while len(commit._queue) < 2:
            os.sched_yield()
    for thread in threads:
        thread.join()

    return ended


@pytest.mark.parametrize("error", [KeyboardInterrupt(), TimeoutError("too long"), UsageError("no")])
@pytest.mark.parametrize("call", ["write", "sync", "truncate"])
def test_what_interrupts_a_leader_is_not_told_to_who_follows(path, files, error, call):
    """The leader gets what its signal handler raised; the others' records are saved."""
    with Checkpoint(path) as checkpoint:
        fill(checkpoint)

        def interrupt(*_):
            files.on.clear()
            raise error

        files.on[call] = interrupt
        if call == "truncate":  # of a write that is being undone
            files.on["write"] = files.failing(errno.ENOSPC)
        ended = two_that_share(checkpoint)
        assert sorted(ended.values(), key=str) == sorted([type(error), True], key=str)
    assert ids_in(path) == Counter(["i0", "i1", "i2", "t0", "t1"])
    assert Checkpoint.verify(path).ok


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), ProcessLookupError(errno.ESRCH, "mine")])
def test_who_is_told_saved_finds_its_record(path, files, monkeypatch, broken, error):
    """Also where the leader was interrupted just after the commit, and the disk fails then."""
    checkpoint = Checkpoint(path)
    fill(checkpoint)
    fold = checkpoint._store.journal.fold
    apply = type(fold).apply

    def interrupt(*_):
        monkeypatch.setattr(type(fold), "apply", apply)
        if broken:
            files.on["truncate"] = files.failing(errno.EIO, times=99)
        raise error

    monkeypatch.setattr(type(fold), "apply", interrupt)
    ended = two_that_share(checkpoint)
    files.on.clear()
    assert sorted(ended.values(), key=str) == sorted([type(error), True], key=str)
    checkpoint.close()
    assert ids_in(path) == Counter(["i0", "i1", "i2", "t0", "t1"])


def interrupting_call(number):
    """Return a trace function that interrupts at so many calls in the committer from here."""
    left = iter(range(number))

    def trace(frame, event, _):
        ours = frame.f_globals.get("__name__") == "lockstitch._commit"
        if ours and event == "call" and next(left, None) is None:
            sys.settrace(None)
            raise KeyboardInterrupt

    return trace


@pytest.mark.parametrize("name", ["save", "flush", "undo"])
def test_an_interrupt_behind_a_failed_sync_does_not_hide_it(tmp_path, files, name):
    """At whatever call it strikes: the next sync would succeed, and the data not be on the disk."""
    previous, number, interrupted = sys.gettrace(), 0, True
    while interrupted:
        path = tmp_path / f"{number}.jsonl"
        checkpoint = Checkpoint(path, fsync=name == "save")
        fill(checkpoint)
        inode, interrupted = path.stat().st_ino, False

        def sync(_fd, number=number):
            files.on.clear()
            sys.settrace(interrupting_call(number))
            raise OSError(errno.EIO, "no")

        files.on["sync"] = sync
        if name == "undo":
            files.on["write"] = files.failing(errno.ENOSPC)
        try:
            checkpoint.flush() if name == "flush" else checkpoint.save("x", 1)
        except KeyboardInterrupt:
            interrupted = True
        except DurabilityUnknown:
            assert name == "undo"
        finally:
            sys.settrace(previous)
        try:
            checkpoint.save("y", 1)
            checkpoint.flush()
        except DurabilityUnknown:
            told = ["i0", "i1", "i2"]
        else:
            assert path.stat().st_ino != inode, number
            told = ["i0", "i1", "i2", "y"]
        checkpoint.close()
        assert set(told) <= set(ids_in(path)), number
        assert max(ids_in(path).values()) == 1, number
        number += 1

    assert number > 1


def test_an_interrupt_while_a_copy_is_told_of_writes_nothing_twice(path, files):
    """The copy has the record, and the file that is adopted says so in the same step."""

    class Interrupting(logging.Handler):
        def emit(self, record):
            raise KeyboardInterrupt

    handler = Interrupting()
    checkpoint = Checkpoint(path)
    fill(checkpoint)
    files.on["sync"] = files.failing(errno.EIO)
    logging.getLogger("lockstitch").addHandler(handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save("x", 1)
    finally:
        logging.getLogger("lockstitch").removeHandler(handler)
    checkpoint.save("y", 1)
    checkpoint.close()
    assert ids_in(path) == Counter(["i0", "i1", "i2", "x", "y"])


def test_a_timeout_while_an_opening_makes_its_copy_ends_the_opening(path, files):
    """Nobody gets a handle that takes nothing."""
    with Checkpoint(path) as checkpoint:
        fill(checkpoint)
    path.write_bytes(path.read_bytes().rpartition(b'{"end":')[0])
    files.on["drop_cache"] = lambda *_: False
    interrupted(files, Checkpoint(path).__enter__, error=TimeoutError("too long"), call="replace")
    with Checkpoint(path) as again:
        again.save("y", 1)
        assert sorted(again) == ["i0", "i1", "i2", "y"]


def test_a_flush_that_cannot_commit_what_an_interrupt_has_left_says_so(path, files):
    """The disk failed, and what was promised to be on it is not."""
    checkpoint = Checkpoint(path)
    fill(checkpoint)
    interrupted(files, lambda: checkpoint.save("x", 1))
    syncs = itertools.count(1)

    def sync(fd):
        if next(syncs) == 2:  # the first one is that of the cut
            raise OSError(errno.EIO, "no")
        os.fdatasync(fd)

    files.on.update({"sync": sync, "create": files.failing(errno.ENOSPC)})
    with pytest.raises(DurabilityUnknown):
        checkpoint.flush()
    files.on.clear()
    checkpoint.close()
    assert next(syncs) == 3, "a sync that failed was tried again"


def test_nothing_is_saved_on_a_handle_that_another_record_has_just_given_up(path, files):
    """What an interrupt had left is written first; that it fails is no success of the next."""
    checkpoint = Checkpoint(path, fsync=False)
    fill(checkpoint)
    interrupted(files, lambda: checkpoint.save("x", 1))
    checkpoint.save("y", 1)
    interrupted(files, lambda: checkpoint.save("z", 1))
    checkpoint._store.journal._commit.bring_to_order()

    def write(fd, data):
        files.on["truncate"] = files.failing(errno.EIO, times=99)
        del files.on["write"]
        raise OSError(errno.ENOSPC, "full")

    files.on["write"] = write
    with pytest.raises(DurabilityUnknown):
        checkpoint.save("next", 1)
    files.on.clear()
    checkpoint.close()
    assert "next" not in ids_in(path)


def test_what_is_forgotten_does_not_come_back_from_an_interrupted_save(path, files):
    """What an interrupt has left is written before the file is rewritten, and not after it."""
    with Checkpoint(path, fsync=False) as checkpoint:
        fill(checkpoint)
        interrupted(files, lambda: checkpoint.save("i0", "again"))
        checkpoint.forget(["i0"])
        checkpoint.save("y", 1)
    assert ids_in(path) == Counter(["i1", "i2", "y"])


def test_a_record_is_not_kept_in_memory_once_it_is_saved(path):
    """However large it was."""
    large = "x" * (4 << 20)
    with Checkpoint(path, fsync=False) as checkpoint:
        fill(checkpoint)
        tracemalloc.start()
        try:
            checkpoint.save("large", large)
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert kept < len(large) // 4


def test_a_compaction_interrupted_anywhere_loses_nothing(tmp_path, files):
    """At each file call: the old file is in use, or the handle takes no more."""
    plan = calls_of(tmp_path / "plan.jsonl", files, ACTIONS["compact"])
    names = sorted({*plan, "open_read", "open_append", "close", "stat", "read"})
    for name in names:
        for after in range(4):
            path = tmp_path / f"{name}-{after}.jsonl"
            checkpoint = Checkpoint(path)
            fill(checkpoint)
            left = iter(range(after))

            def interrupt(*arguments, left=left, name=name):
                if next(left, None) is None:
                    files.on.clear()
                    if name == "close":  # an interrupt can come after the call as well
                        os.close(*arguments)
                    raise KeyboardInterrupt

            files.on[name] = interrupt
            with suppress(KeyboardInterrupt):
                checkpoint.compact()
            files.on.clear()
            more = []
            with suppress(DurabilityUnknown):
                checkpoint.save("after", 1)
                more = ["after"]
            checkpoint.close()
            with Checkpoint(path) as again:
                assert sorted(again) == sorted(["i0", "i1", "i2", *more]), (name, after)
            assert Checkpoint.verify(path).ok


def test_an_interrupt_while_the_copy_is_made_does_not_hide_a_failed_sync(path, files):
    """The next sync would succeed without the data being on the disk, so there is none."""
    checkpoint = Checkpoint(path)
    fill(checkpoint)

    def interrupt(*_):
        raise KeyboardInterrupt

    files.on.update({"sync": files.failing(errno.EIO), "create": interrupt})
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save("bad", 1)
    files.on.clear()
    with pytest.raises(DurabilityUnknown, match="a sync failed"):
        checkpoint.save("next", 1)
    checkpoint.close()


# The rest


def test_a_record_longer_than_the_limit_is_refused(path):
    """A reader must be able to trust that no line is longer than 64 MiB."""
    with Checkpoint(path, fsync=False) as checkpoint:
        with pytest.raises(SerializationFailed, match="64 MiB"):
            checkpoint.save("huge", "x" * (64 * 1024 * 1024))
        checkpoint.save("large", "x" * 3_000_000)
        assert len(checkpoint["large"].result) == 3_000_000


def test_leftovers_of_a_dead_process_are_removed(path):
    """A half-written copy is nobody's; other people's files stay."""
    with Checkpoint(path) as checkpoint:
        fill(checkpoint)
    (path.parent / "run.jsonl.tmp-99-abcd").write_bytes(b"half")
    (path.parent / "run.jsonl.mine").write_bytes(b"mine")
    with Checkpoint(path):
        pass

    assert {each.name for each in path.parent.iterdir()} == {
        "run.jsonl",
        "run.jsonl.lock",
        "run.jsonl.mine",
    }


def test_a_failed_opening_frees_the_lock(path, files):
    """Whatever it was, the next opening is not locked out."""
    with Checkpoint(path) as checkpoint:
        fill(checkpoint)
    for name in ("open_append", "stat", "siblings", "sync_directory", "read"):
        files.on[name] = files.failing(errno.EIO)
        with pytest.raises(OSError, match="Input/output"):
            len(Checkpoint(path))
        files.on.clear()
        try:
            with Checkpoint(path) as checkpoint:
                assert len(checkpoint) == 3
        except CheckpointLocked:
            pytest.fail(f"still locked after a failed {name}")


def test_closing_when_the_disk_fails_frees_the_lock(path, files):
    """The error comes through, and nobody is locked out."""
    checkpoint = Checkpoint(path, fsync=False)
    fill(checkpoint)
    files.on["sync"] = files.failing(errno.EIO, times=99)
    with pytest.raises(DurabilityUnknown):
        checkpoint.close()
    files.on.clear()
    checkpoint.close()
    with Checkpoint(path) as again:
        assert len(again) == 3


@pytest.mark.parametrize("fsync", [False, 60.0])
@pytest.mark.parametrize("end", ["flush", "close"])
def test_a_file_that_was_deleted_is_noticed_when_it_is_synced(path, fsync, end):
    """Few saves without a sync may go into a file without a name; none is called synced."""
    checkpoint = Checkpoint(path, fsync=fsync)
    checkpoint.save("a", 1)
    path.unlink()
    checkpoint.save("b", 1)
    with pytest.raises(CheckpointDamaged, match="deleted or replaced"):
        getattr(checkpoint, end)()
    checkpoint.close()


def test_a_handler_that_saves_while_the_file_is_closed_is_refused(path, files):
    """It is told so; to wait for the closing would be to wait for itself."""
    checkpoint = Checkpoint(path)
    checkpoint.save("a", 1)
    refused = []

    def save(_fd):
        files.on.clear()
        with pytest.raises(UsageError) as caught:
            checkpoint.save("b", 1)
        refused.append(caught.value)

    files.on["close"] = save
    checkpoint.close()

    assert refused
