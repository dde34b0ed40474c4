"""What is wrong with a file, and how to go on with what is left of it."""

import json
from pathlib import Path

import pytest

from lockstitch import Checkpoint, CheckpointDamaged, UsageError
from lockstitch._checkpoint import opened

COUNT = 8


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.jsonl"


@pytest.fixture
def lines(path):
    """Return the lines of a checkpoint with a run, a config and 8 records."""
    with Checkpoint(path, config={"model": "m1"}) as checkpoint:
        store = opened(checkpoint)
        store.begin_run()
        for number in range(COUNT):
            store.start(f"i{number}", 1)
            checkpoint.save(f"i{number}", number)
        store.seal("complete")
    return path.read_bytes().splitlines(keepends=True)


def put(path, lines):
    path.write_bytes(b"".join(lines))


def results(path):
    with Checkpoint(path, read_only=True) as checkpoint:
        return {record.id: record.result for record in checkpoint.records()}


def record_at(lines, id):
    return next(k for k, line in enumerate(lines) if line.startswith(b'{"id":"%b"' % id.encode()))


def test_a_sound_file_is_ok_and_repair_leaves_it_alone(path, lines):
    """Not a byte changes, and no file appears."""
    before = sorted(path.parent.iterdir())
    for report in (Checkpoint.verify(path), Checkpoint.repair(path)):
        assert report.ok
        assert (report.items, report.lines) == (COUNT, len(lines) - 1)
        assert (report.damage, report.torn, report.aside) == ((), (), None)
        assert "ok" in str(report)

    assert path.read_bytes() == b"".join(lines)
    assert sorted(path.parent.iterdir()) == before


def test_verify_says_where(path, lines):
    """Line, byte and reason of each damage; nothing is written, no lock is needed."""
    at = record_at(lines, "i3")
    put(path, [*lines[:at], b"garbage\n", *lines[at + 1 :]])
    with Checkpoint(path.parent / "other", fsync=False):
        report = Checkpoint.verify(path)

    assert not report.ok
    assert (report.damage[0].line, report.damage[0].start) == (at + 1, len(b"".join(lines[:at])))
    assert f"line {at + 1} " in str(report)
    assert "DAMAGED" in str(report)


def test_repair_keeps_every_intact_record_and_the_damaged_bytes(path, lines):
    """The items concerned run again; history, config and batch stay."""
    at = record_at(lines, "i3")
    put(path, [*lines[:at], b"garbage\n", *lines[at + 1 :]])
    report = Checkpoint.repair(path)

    assert Path(report.aside).read_bytes() == b"garbage\n"
    assert Path(report.aside).name.startswith("run.jsonl.damaged-")
    assert report.aside in str(report)
    assert set(results(path)) == {f"i{number}" for number in range(COUNT) if number != 3}
    assert Checkpoint.verify(path).ok
    with Checkpoint(path, config={"model": "m1"}) as checkpoint:
        stats = checkpoint.stats()
        assert (stats.run_count, stats.stop_reason) == (1, "complete")
        assert (
            json.loads(path.read_bytes().splitlines()[0])["batch"] == json.loads(lines[0])["batch"]
        )


def test_repair_makes_a_lost_header_of_what_run_lines_repeat(path, lines):
    """A header of garbage: the salt and the batch come from the `run` line."""
    put(path, [b"\0" * len(lines[0][:-1]) + b"\n", *lines[1:]])
    with pytest.raises(CheckpointDamaged, match="header"):
        len(Checkpoint(path))
    report = Checkpoint.repair(path)

    assert Path(report.aside).read_bytes() == b"\0" * len(lines[0][:-1]) + b"\n"
    assert results(path) == {f"i{number}": number for number in range(COUNT)}
    new, old = json.loads(path.read_bytes().splitlines()[0]), json.loads(lines[0])
    assert (new["batch"], new["serializer"]) == (old["batch"], "json")


def test_repair_takes_from_a_damaged_header_what_it_still_says(path):
    """Without a run line, the salt that is left must prove a line before it is believed."""
    with Checkpoint(path, config={"model": "m1"}) as checkpoint:
        checkpoint.save("a", 1)
    data = path.read_bytes()
    for old, new in ((b'"lockstitch":1', b'"Lockstitch":1'), (b'"m1"', b'"m2"')):
        path.write_bytes(data.replace(old, new))
        Checkpoint.repair(path)
        assert results(path) == {"a": 1}
        header = json.loads(path.read_bytes().splitlines()[0])
        assert header["config"] == json.loads(data.replace(old, new).splitlines()[0])["config"]


def test_repair_takes_a_byte_order_mark_off(path, lines):
    """An editor put it there; all the rest is intact."""
    put(path, [b"\xef\xbb\xbf", *lines])
    Checkpoint.repair(path)

    assert results(path) == {f"i{number}": number for number in range(COUNT)}


@pytest.mark.parametrize(
    "data",
    [b"", b"x", b'{"my":"json"}\n' * 9, b"\0" * 1000, b'{"lockstitch":1}\n'],
    ids=["empty", "x", "foreign", "zeros", "header alone"],
)
def test_where_nothing_proves_itself_there_is_nothing_to_repair(path, data):
    """A foreign file is left as it is, by verify and by repair."""
    path.write_bytes(data)
    assert not Checkpoint.verify(path).ok
    with pytest.raises(CheckpointDamaged):
        Checkpoint.repair(path)

    assert path.read_bytes() == data
    assert {each.name for each in path.parent.iterdir()} == {"run.jsonl", "run.jsonl.lock"}


def test_a_line_in_the_wrong_place_is_kept(path, lines):
    """A file that was sorted, or a line that was moved to the top, costs no record."""
    for order in ([lines[-2], *lines[1:-2], lines[-1]], sorted(lines[1:])):
        put(path, [lines[0], *order])
        with pytest.raises(CheckpointDamaged):
            len(Checkpoint(path))
        Checkpoint.repair(path)
        assert results(path) == {f"i{number}": number for number in range(COUNT)}
        assert Checkpoint.verify(path).ok


def test_of_two_records_of_one_id_the_later_number_counts(path):
    """Order in the file can be lost; the numbers say which was last."""
    with Checkpoint(path) as checkpoint:
        checkpoint.save("a", "old")
        checkpoint.save("b", 1)
        checkpoint.save("a", "new")
    first, old, b, new, end = path.read_bytes().splitlines(keepends=True)
    put(path, [first, new, b, old, end])
    Checkpoint.repair(path)

    assert results(path) == {"a": "new", "b": 1}


def test_a_repair_that_fails_changes_nothing(path, lines, files):
    """At each file call that it makes, refused in turn."""
    broken = [*lines[:4], b"garbage\n", *lines[5:]]
    for name in ("create", "write", "sync", "replace", "open_read", "read"):
        put(path, broken)
        files.on[name] = files.failing(28, after=0)
        with pytest.raises(OSError, match="No space"):
            Checkpoint.repair(path)
        files.on.clear()
        assert path.read_bytes() == b"".join(broken)
    Checkpoint.repair(path)
    assert Checkpoint.verify(path).ok


def test_a_repaired_file_is_on_the_disk_under_its_name(path, lines, files):
    """A power cut after `repair` has returned does not bring the damaged file back."""
    put(path, [*lines[:4], b"garbage\n", *lines[5:]])
    order = []
    for name in ("write", "sync", "replace", "sync_directory"):
        files.on[name] = lambda *_, name=name: order.append(name)
    Checkpoint.repair(path)

    assert order[-4:] == ["write", "sync", "replace", "sync_directory"]


def test_a_torn_tail_is_no_damage(path, lines):
    """Verify tells of it and is content; repair cuts it off and keeps it."""
    put(path, [*lines, b'{"id":"i9","st'])
    report = Checkpoint.verify(path)
    assert (report.ok, len(report.torn)) == (True, 1)
    assert "torn" in str(report)
    Checkpoint.repair(path)

    assert not Checkpoint.verify(path).torn
    assert results(path) == {f"i{number}": number for number in range(COUNT)}


def test_verify_and_repair_need_a_file(tmp_path):
    """A missing file, and a folder, are told as what they are."""
    for call in (Checkpoint.verify, Checkpoint.repair):
        with pytest.raises(FileNotFoundError):
            call(tmp_path / "none")
        with pytest.raises(UsageError, match="not a regular file"):
            call(tmp_path)


def test_mode_and_place_survive_a_repair(path, lines):
    """Who could read the file can still read it."""
    path.chmod(0o640)
    put(path, [*lines[:4], *lines[5:]])
    Checkpoint.repair(path)

    assert path.stat().st_mode & 0o777 == 0o640
