"""The public store, as its users call it."""

import errno
import json
import os
import shutil
import stat
import tempfile
from datetime import timedelta
from pathlib import Path

import pytest

from lockstitch import (
    Checkpoint,
    CheckpointDamaged,
    ConfigMismatch,
    ErrorInfo,
    LockstitchError,
    UsageError,
)
from lockstitch._checkpoint import opened
from lockstitch._model import Limit
from lockstitch.testing import memory_storage


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.jsonl"


# Saving and reading


def test_what_is_saved_is_there_now_and_in_the_next_process(path):
    """By id, by status, by number, in order."""
    with Checkpoint(path) as checkpoint:
        checkpoint.save("test-001", {"score": 0.5}, status="pass")
        checkpoint.save("test-002", status="fail")
        for each in (checkpoint, Checkpoint(path, read_only=True)):
            assert "test-001" in each
            assert "test-003" not in each
            assert each["test-001"].result == {"score": 0.5}
            assert each["test-002"].status == "fail"
            assert (len(each), list(each)) == (2, ["test-001", "test-002"])
            assert each.get("test-003") is None
            with pytest.raises(KeyError):
                each["test-003"]


def test_nothing_happens_before_the_first_use(path):
    """Making one opens, locks and creates nothing."""
    checkpoint = Checkpoint(path)

    assert not checkpoint.is_open
    assert "closed" in repr(checkpoint)
    assert not list(path.parent.iterdir())
    checkpoint.close()
    checkpoint.flush()


def test_a_closed_checkpoint_can_be_read_and_used_again(path):
    """Reading takes a look without the lock; saving opens it again."""
    checkpoint = Checkpoint(path)
    checkpoint.save("a", 1)
    checkpoint.close()
    checkpoint.close()
    assert checkpoint["a"].result == 1
    with Checkpoint(path) as other:
        other.save("b", 2)
    assert "b" not in checkpoint
    checkpoint.refresh()
    assert "b" in checkpoint
    checkpoint.save("c", 3)
    assert list(checkpoint) == ["a", "b", "c"]
    checkpoint.close()


def test_a_forgotten_object_is_sealed_and_frees_its_lock(path):
    """A courtesy that nothing relies on."""
    checkpoint = Checkpoint(path)
    checkpoint.save("a", 1)
    del checkpoint
    with Checkpoint(path) as again:
        assert len(again) == 1


def test_ids_are_texts_by_contract(path):
    """Whole numbers and paths become texts on every way in; the rest is refused."""
    with Checkpoint(path) as checkpoint:
        checkpoint.save(1, "one")
        checkpoint.save(Path("a/b"), "path")
        assert list(checkpoint) == ["1", "a/b"]
        assert 1 in checkpoint
        assert checkpoint["1"].id == checkpoint[1].id == "1"
        assert checkpoint.forget([1]) == 1
        for odd in (None, 1.5, b"a", "", ("a",), True, "x" * 5000):
            with pytest.raises(UsageError):
                checkpoint.save(odd, 1)


def test_an_empty_checkpoint_is_true(path):
    """`checkpoint or default` must not drop it."""
    with Checkpoint(path) as checkpoint:
        assert checkpoint
        assert len(checkpoint) == 0


def test_records_are_lazy_ordered_and_narrowed_by_status(path, files):
    """The last record of each id, in the order of the file; results are read when asked for."""
    with Checkpoint(path) as checkpoint:
        for number in range(10):
            checkpoint.save(f"i{number}", number, status="even" if number % 2 == 0 else "odd")
        checkpoint.save("i0", "again", status="odd")
        reads = files.calls["read"]
        records = checkpoint.records(status="odd")
        assert files.calls["read"] == reads
        assert next(records).id == "i1"
        assert files.calls["read"] <= reads + 2
        assert [each.id for each in records] == ["i3", "i5", "i7", "i9", "i0"]
        assert [each.id for each in checkpoint.records(status=["even"])] == ["i2", "i4", "i6", "i8"]
        assert len(list(checkpoint.records())) == 10
        assert list(checkpoint.records(status="unknown")) == []
        some = checkpoint.records()
        next(some)
        checkpoint.forget(["i5"])
        checkpoint.compact()
        assert "i5" not in [each.id for each in some]


def test_a_record_says_what_it_was(path):
    """Run, attempt, seconds, time and error."""
    with Checkpoint(path) as checkpoint:
        store = opened(checkpoint)
        store.begin_run()
        error = ErrorInfo("ValueError", "bad", "Traceback", ("Exception",))
        store.finish("a", "error", error=error, attempt=2, seconds=1.25)
        record = checkpoint["a"]

    assert (record.status, record.result, record.error) == ("error", None, error)
    assert (record.attempt, record.run, record.seconds) == (2, 1, 1.25)
    assert record.at.utcoffset() == timedelta(0)


@pytest.mark.parametrize("status", ["", None, 5, b"ok"])
def test_a_status_is_a_word(path, status):
    """Anything else is refused and not written."""
    with Checkpoint(path) as checkpoint:
        with pytest.raises(UsageError, match="status="):
            checkpoint.save("a", 1, status=status)
        assert len(checkpoint) == 0


def test_statuses_are_few(path):
    """A thousand different ones are a mistake: data in the place of a word."""
    with memory_storage(), Checkpoint(path, fsync=False) as checkpoint:
        for number in range(1001):
            checkpoint.save(f"i{number}", status=f"s{number}")
        with pytest.raises(UsageError, match="1,000 different statuses"):
            checkpoint.save("x", status="one more")
        checkpoint.save("x", status="s5")


BAD_ARGUMENTS = [
    {"on_config_change": "ignore"},
    {"config": [1]},
    {"config": {"a": (1, 2)}},
    {"config": {1: 2}},
    {"config": {"x": float("nan")}},
    {"fsync": -1},
    {"fsync": "yes"},
    {"fsync": float("nan")},
    {"fresh": True, "read_only": True},
]


@pytest.mark.parametrize("arguments", BAD_ARGUMENTS)
def test_a_wrong_argument_is_refused_before_anything_happens(path, arguments):
    """When it is made, not at the first save after an hour."""
    with pytest.raises(UsageError):
        Checkpoint(path, **arguments)

    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("odd", [None, 5, "", b"x"])
def test_a_path_is_a_text_or_a_path(odd):
    """Anything else is refused."""
    with pytest.raises(UsageError, match="path"):
        Checkpoint(odd)


# Config


def test_a_changed_config_is_refused_with_a_diff(path):
    """Stored and given, per changed value; the file is as it was."""
    with Checkpoint(path, config={"model": "m1", "deep": {"a": 1, "b": [1]}, "old": 0}) as first:
        first.save("a", 1)
    before = path.read_bytes()
    with pytest.raises(ConfigMismatch) as caught:
        len(Checkpoint(path, config={"model": "m2", "deep": {"a": 1, "b": [2]}, "new": 0}))

    assert caught.value.changes == {
        "model": ("m1", "m2"),
        "deep.b": ([1], [2]),
        "old": (0, None),
        "new": (None, 0),
    }
    assert "model: m1 -> m2" in str(caught.value)
    assert path.read_bytes() == before
    with Checkpoint(path) as unasked:
        assert len(unasked) == 1


def test_the_same_config_in_another_order_is_the_same(path):
    """Keys have no order, and texts are texts."""
    with Checkpoint(path, config={"a": 1, "b": {"x": "é", "y": None}}) as first:
        first.save("a", 1)
    with Checkpoint(path, config={"b": {"y": None, "x": "é"}, "a": 1}) as again:
        assert len(again) == 1


def test_a_config_is_kept_even_when_nothing_is_saved(path):
    """Opening with it was the decision."""
    with Checkpoint(path, config={"model": "m1"}) as first:
        first.save("a", 1)
    for _ in range(2):
        with Checkpoint(path, config={"model": "m2"}, on_config_change="keep") as kept:
            assert len(kept) == 1
    size = path.stat().st_size
    with Checkpoint(path, config={"model": "m2"}) as again:
        assert len(again) == 1
    assert path.stat().st_size == size


@pytest.mark.parametrize("run", [False, True], ids=["plain", "batch"])
def test_a_kept_config_is_the_config_from_then_on(path, run):
    """The records stay, the next start with it is not asked again, and the old one is refused."""
    with Checkpoint(path, config={"model": "m1"}) as first:
        first.save("a", 1)
    with Checkpoint(path, config={"model": "m2"}, on_config_change="keep") as kept:
        if run:
            opened(kept).begin_run()
        kept.save("b", 1)
    with Checkpoint(path, config={"model": "m2"}) as again:
        assert list(again) == ["a", "b"]
        again.compact()
    with pytest.raises(ConfigMismatch):
        len(Checkpoint(path, config={"model": "m1"}))
    with Checkpoint(path, config={"model": "m2"}) as again:
        assert list(again) == ["a", "b"]


# Fresh


def test_fresh_sets_the_old_file_aside(path):
    """As .old-1, .old-2; nothing is deleted, and only the first opening is fresh."""
    for number in range(3):
        checkpoint = Checkpoint(path, fresh=True)
        checkpoint.save(f"i{number}", number)
        checkpoint.close()
        assert list(checkpoint) == [f"i{number}"]
        checkpoint.save("more", 1)
        assert len(checkpoint) == 2
        checkpoint.close()
    for number in (1, 2):
        with Checkpoint(f"{path}.old-{number}", read_only=True) as old:
            assert list(old) == [f"i{number - 1}", "more"]

    assert not os.path.exists(f"{path}.old-3")


def test_fresh_goes_past_a_damaged_or_foreign_file(path):
    """It is set aside as it is."""
    path.write_bytes(b"not ours")
    with Checkpoint(path, fresh=True) as checkpoint:
        checkpoint.save("a", 1)

    assert Path(f"{path}.old-1").read_bytes() == b"not ours"


def test_fresh_moves_no_folder(tmp_path):
    """What is not a file is not a checkpoint of old."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious").write_bytes(b"x")
    with pytest.raises(UsageError, match="not a regular file"):
        Checkpoint(tmp_path / "data", fresh=True).save("a", 1)

    assert (tmp_path / "data" / "precious").read_bytes() == b"x"


# Forget and compact


def test_forgotten_ids_are_pending_and_history_stays(path):
    """All lines about them go, also those of runs; runs, pauses and other records stay."""
    with Checkpoint(path, config={"m": 1}) as checkpoint:
        store = opened(checkpoint)
        store.begin_run()
        for id in "abc":
            store.start(id, 1)
            checkpoint.save(id, id)
        store.start("d", 1)
        store.back("d")
        store.save_cursor("e", 5)
        store.save_step("e", "fetch", 6)
        store.pause(Limit.after(5, reason="quota"), 1_800_000_000.0, "guard")
        store.waited(5.0)
        before = checkpoint.stats()
        assert checkpoint.forget(["a", "e", "unknown", "d"]) == 1
        assert list(checkpoint) == ["b", "c"]
        assert store.cursor("e") is None
        after = checkpoint.stats()
        assert (after.run_count, after.pause_count) == (before.run_count, before.pause_count)
        assert after.total_wait_seconds == 5.0
        checkpoint.save("a", "again")
    text = path.read_text()

    assert '"d"' not in text
    assert '"e"' not in text
    with Checkpoint(path, config={"m": 1}) as again:
        assert list(again) == ["b", "c", "a"]


def test_forget_takes_several_ids(path):
    """A single text would be taken for its letters."""
    with Checkpoint(path) as checkpoint, pytest.raises(UsageError, match="several ids"):
        checkpoint.forget("abc")


def test_a_compaction_keeps_records_and_history_and_drops_the_rest(path):
    """Same answers before and after, in a smaller file with the same batch."""
    with Checkpoint(path) as checkpoint:
        store = opened(checkpoint)
        store.begin_run()
        for _ in range(20):
            for id in "abc":
                store.start(id, 1)
                checkpoint.save(id, {"x": 1})
        store.save_cursor("d", [1])
        store.save_cursor("d", [2])
        store.save_step("d", "fetch", {"page": 1})
        before, told, size = checkpoint.stats(), list(checkpoint.records()), path.stat().st_size
        batch = store.journal.header.batch
        checkpoint.compact()
        assert path.stat().st_size < size / 5
        assert (checkpoint.stats(), list(checkpoint.records())) == (before, told)
        assert (store.cursor("d"), store.step("d", "fetch")) == ([2], {"page": 1})
        assert store.journal.header.batch == batch
        checkpoint.save("e", 1)
    with Checkpoint(path) as again:
        assert list(again) == ["a", "b", "c", "e"]
        assert opened(again).cursor("d") == [2]


# Stats


def test_stats_tell_the_history(path):
    """Runs, pauses, waits, counts and why the last run ended."""
    with Checkpoint(path) as checkpoint:
        empty = checkpoint.stats()
        assert (empty.run_count, empty.resume_count, empty.by_status) == (0, 0, {})
        store = opened(checkpoint)
        store.begin_run()
        checkpoint.save("a", status="pass")
        checkpoint.save("b", status="fail")
        store.pause(Limit.after(60, reason="quota"), 1_800_000_000.0, "guard")
        store.seal("limit")
        stats = checkpoint.stats()
        assert (stats.stop_reason, stats.pause_count) == ("limit", 1)
        assert stats.parked_until.timestamp() == 1_800_000_000
        assert stats.completed_at is None
    with Checkpoint(path) as checkpoint:
        store = opened(checkpoint)
        store.begin_run()
        store.waited(61.5)
        checkpoint.save("b", status="pass")
        store.seal("complete")
    stats = Checkpoint(path, read_only=True).stats()

    assert (stats.run_count, stats.resume_count, stats.pause_count) == (2, 1, 1)
    assert (stats.total_wait_seconds, stats.by_status) == (61.5, {"pass": 2})
    assert (stats.stop_reason, stats.parked_until) == ("complete", None)
    assert stats.started_at <= stats.completed_at


# Adopt


def test_results_from_before_become_records(path):
    """Each row is the result of its id; ids that are there keep theirs."""
    with Checkpoint(path) as checkpoint:
        checkpoint.save("a", "mine")
    rows = [{"id": each, "x": each} for each in "abc"]
    assert Checkpoint.adopt(path, iter(rows), key="id") == 2
    assert Checkpoint.adopt(path, rows, key="id", status="old") == 0
    with Checkpoint(path, read_only=True) as checkpoint:
        assert checkpoint["a"].result == "mine"
        assert checkpoint["b"].result == {"id": "b", "x": "b"}
        assert checkpoint["c"].status == "ok"
    with pytest.raises(UsageError, match="no such field"):
        Checkpoint.adopt(path, [{"id": "d"}, {"no": 1}], key="id")
    assert "d" in Checkpoint(path, read_only=True)


# What may be at the path


def test_a_new_file_is_private_and_keeps_its_mode(path):
    """0600 until its owner says otherwise; a compaction keeps what he said."""
    with Checkpoint(path) as checkpoint:
        checkpoint.save("a", 1)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        checkpoint.compact()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        path.chmod(0o664)
        checkpoint.compact()
        checkpoint.forget(["a"])
        assert stat.S_IMODE(path.stat().st_mode) == 0o664


def test_a_symbolic_link_is_written_through(tmp_path):
    """Also by a compaction: the link stays a link, lock and copies lie beside the target."""
    (tmp_path / "real").mkdir()
    link = tmp_path / "link.jsonl"
    link.symlink_to(tmp_path / "real" / "run.jsonl")
    for number in range(2):
        with Checkpoint(link) as checkpoint:
            checkpoint.save(f"i{number}", number)
            checkpoint.compact()
    with Checkpoint(tmp_path / "real" / "run.jsonl") as checkpoint:
        assert len(checkpoint) == 2

    assert link.is_symlink()
    assert {each.name for each in tmp_path.iterdir()} == {"real", "link.jsonl"}


def make_folder(path):
    path.mkdir()


def make_fifo(path):
    os.mkfifo(path)


def make_device(path):
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes devices")


def make_loop(path):
    path.symlink_to(path)


SPECIAL = {
    "folder": (make_folder, UsageError, "folder|not a regular file"),
    "fifo": (make_fifo, UsageError, "not a regular file"),
    "device": (make_device, UsageError, "not a regular file"),
    "loop of links": (make_loop, OSError, "symbolic links"),
}


@pytest.mark.parametrize("name", SPECIAL)
@pytest.mark.parametrize("read_only", [False, True], ids=["writer", "reader"])
def test_what_is_not_a_file_is_refused_at_once(path, name, read_only):
    """No hang, a clear word, and it is what it was."""
    make, kind, word = SPECIAL[name]
    make(path)
    before = path.lstat()
    with pytest.raises(kind, match=word):
        len(Checkpoint(path, read_only=read_only))
    after = path.lstat()

    assert (after.st_mode, after.st_ino, after.st_size) == (
        before.st_mode,
        before.st_ino,
        before.st_size,
    )


@pytest.mark.parametrize(
    "data", [b"", b"\n", b"hello\n", b'{"id": 1}\n{"id": 2}\n', b"\x89PNG\r\n\x1a\n" * 9, b"[1, 2]"]
)
def test_a_file_of_somebody_elses_is_never_written_to(path, data):
    """Refused with a way on, for saving, reading and repairing."""
    path.write_bytes(data)
    for call in (
        lambda: Checkpoint(path).save("a", 1),
        lambda: len(Checkpoint(path, read_only=True)),
        lambda: Checkpoint.repair(path),
        lambda: Checkpoint.adopt(path, ["x"]),
    ):
        with pytest.raises(CheckpointDamaged, match=r"path|copy|delete|original"):
            call()

    assert path.read_bytes() == data


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="plays another user")
def test_a_folder_that_cannot_be_written_is_told():
    """The system's own error, with a word on the lock; a reader needs no leave to write."""
    folder = tempfile.mkdtemp()
    path = os.path.join(folder, "run.jsonl")
    try:
        with Checkpoint(path) as checkpoint:
            checkpoint.save("a", 1)
        os.chmod(path, 0o644)
        os.unlink(f"{path}.lock")
        os.chmod(folder, 0o555)
        os.seteuid(65534)
        try:
            with pytest.raises(PermissionError) as caught:
                Checkpoint(path).save("b", 1)
            with Checkpoint(path, read_only=True) as reader:
                assert list(reader) == ["a"]
        finally:
            os.seteuid(0)
        assert "lock" in "".join(caught.value.__notes__)
    finally:
        os.chmod(folder, 0o755)
        shutil.rmtree(folder)


def test_an_error_other_than_missing_never_makes_a_new_file(path, files):
    """A file that cannot be looked at may well be there."""
    with Checkpoint(path) as checkpoint:
        checkpoint.save("a", 1)
    before = path.read_bytes()
    for code in (errno.EACCES, errno.EIO, errno.ESTALE, errno.ELOOP, errno.EMFILE):
        files.on["open_append"] = files.failing(code)
        with pytest.raises(OSError, match=r".") as caught:
            Checkpoint(path).save("b", 1)
        assert caught.value.errno == code
    files.on.clear()

    assert path.read_bytes() == before


def test_a_file_that_appears_meanwhile_is_not_replaced(path, files):
    """A new checkpoint comes by a link, which never takes a name that is taken."""
    files.on["link_new"] = lambda *_: path.write_bytes(b"mine") and None
    with pytest.raises(FileExistsError):
        Checkpoint(path).save("a", 1)

    assert path.read_bytes() == b"mine"


def test_a_reader_sees_each_state_only_after_a_refresh(path):
    """A snapshot stands still; a refresh that fails leaves the last look."""
    with Checkpoint(path) as writer:
        writer.save("a", 1)
        reader = Checkpoint(path, read_only=True)
        assert len(reader) == 1
        writer.save("b", 1)
        writer.compact()
        assert (len(reader), reader["a"].result) == (1, 1)
        reader.refresh()
        assert len(reader) == 2
    data = path.read_bytes()
    path.write_bytes(b"x" * 200)
    with pytest.raises(LockstitchError):
        reader.refresh()
    assert len(reader) == 2
    path.write_bytes(data)
    reader.refresh()
    assert reader["b"].result == 1
    reader.close()


def test_a_finding_counts_only_at_the_second_look(path, files):
    """What a writer is just changing is wrong in one look and right in the next."""
    with Checkpoint(path) as writer:
        for number in range(5):
            writer.save(f"i{number}", number)
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"i2"', b'"i7"'))
    opens = []

    def open_read(_):
        opens.append(1)
        if len(opens) == 2:
            path.write_bytes(data)

    files.on["open_read"] = open_read
    reader = Checkpoint(path, read_only=True)
    assert len(reader) == 5
    assert len(opens) == 2
    reader.close()


def test_a_run_line_tells_a_reader_who_wrote(path):
    """Pid, host, batch and salt, so that a lost header can be made again."""
    with Checkpoint(path) as checkpoint:
        opened(checkpoint).begin_run()
        header, run = (json.loads(line) for line in path.read_bytes().splitlines()[:2])

    assert run["pid"] == os.getpid()
    assert (run["batch"], run["salt"]) == (header["batch"], header["salt"])
