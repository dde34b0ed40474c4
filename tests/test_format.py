"""A checkpoint edited, joined, sorted, converted, read by other programs."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from lockstitch import Checkpoint, CheckpointDamaged, UsageError
from lockstitch._frames import Scan, seal
from lockstitch._journal import current_storage
from lockstitch._records import Header, parse_header

#: Records in a file.
COUNT = 70


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.jsonl"


def killed_image(path):
    """Return the bytes of a checkpoint that was never closed."""
    with Checkpoint(path) as checkpoint:
        for number in range(COUNT):
            checkpoint.save(f"i{number}", number)
        return path.read_bytes()


def test_a_flipped_bit_of_a_real_file_is_refused_or_costs_an_unproven_record(path):
    """A sample on the disk of what is tried at every byte in memory (tests/faults)."""
    image = killed_image(path)
    for position in range(0, len(image), 397):
        changed = bytearray(image)
        changed[position] ^= 4
        path.write_bytes(changed)
        try:
            with Checkpoint(path) as checkpoint:
                assert {each.id: each.result for each in checkpoint.records()}.items() <= {
                    f"i{number}": number for number in range(COUNT)
                }.items()
                assert len(checkpoint) >= COUNT - 2
        except CheckpointDamaged:
            assert path.read_bytes() == changed


def change(path, edit):
    """Let `edit` change the list of lines of a checkpoint of 9 records that was killed."""
    checkpoint = Checkpoint(path)
    for number in range(9):
        checkpoint.save(f"i{number}", number)
    lines = path.read_bytes().splitlines(keepends=True)
    checkpoint.close()
    path.write_bytes(b"".join(edit(lines)))


EDITS = {
    "dropped": lambda lines: lines[:3] + lines[4:],
    "doubled": lambda lines: [*lines[:4], *lines[3:]],
    "swapped": lambda lines: [*lines[:3], lines[4], lines[3], *lines[5:]],
    "sorted backwards": lambda lines: [lines[0], *sorted(lines[1:], reverse=True)],
    "foreign": lambda lines: [*lines[:4], b'{"id":"x","status":"ok"}\n', *lines[4:]],
    "edited": lambda lines: [*lines[:4], lines[4].replace(b'"ok"', b'"no"'), *lines[5:]],
    "CR LF in one line": lambda lines: [*lines[:4], lines[4][:-1] + b"\r\n", *lines[5:]],
    "zeros": lambda lines: [*lines[:4], bytes(len(lines[4])), *lines[5:]],
    "joined to itself": lambda lines: lines + lines,
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_in_the_proven_part_is_refused_and_repaired(path, name):
    """The file stays as it is until `repair`, which keeps every intact record."""
    change(path, EDITS[name])
    before = path.read_bytes()
    with pytest.raises(CheckpointDamaged, match="lockstitch repair") as caught:
        Checkpoint(path).save("x", 1)
    assert path.read_bytes() == before
    assert 0 < caught.value.offset < len(before)
    assert not Checkpoint.verify(path).ok
    report = Checkpoint.repair(path)

    intact = {f"i{number}": number for number in range(9)}
    for id in {"dropped": ["i2"], "edited": ["i3"], "CR LF in one line": ["i3"]}.get(name, []):
        del intact[id]
    if name == "zeros":  # they have no line break, so the next line is glued to them
        del intact["i3"], intact["i4"]
    with Checkpoint(path) as checkpoint:
        assert {each.id: each.result for each in checkpoint.records()} == intact
    assert report.damage


def test_two_joined_files_are_refused(tmp_path):
    """`cat a b > c` is damage, and repair keeps the records of the first."""
    for name in "ab":
        with Checkpoint(tmp_path / name) as checkpoint:
            checkpoint.save(name, name)
    joined = tmp_path / "c"
    joined.write_bytes((tmp_path / "a").read_bytes() + (tmp_path / "b").read_bytes())
    with pytest.raises(CheckpointDamaged, match="joined"):
        Checkpoint(joined).save("x", 1)
    report = Checkpoint.repair(joined)

    assert b'"id":"b"' in Path(report.aside).read_bytes()
    with Checkpoint(joined, read_only=True) as checkpoint:
        assert list(checkpoint) == ["a"]


@pytest.mark.parametrize(
    ("convert", "cause"),
    [
        (lambda data: b"\xef\xbb\xbf" + data, "byte-order mark"),
        (lambda data: data.replace(b"\n", b"\r\n"), "CR LF"),
        (lambda _: b"", "empty"),
        (lambda _: b'{"my":"own"}\n{"json":"lines"}\n', "not a lockstitch checkpoint"),
        (lambda data: data[3:], "header"),
    ],
    ids=["BOM", "CR LF", "empty", "foreign", "header cut"],
)
def test_a_file_without_its_header_says_why(path, convert, cause):
    """Each cause has its word, for the writer, the reader and `verify`, and nothing is changed."""
    change(path, lambda lines: lines)
    path.write_bytes(convert(path.read_bytes()))
    before = path.read_bytes()
    for read_only in (False, True):
        with pytest.raises(CheckpointDamaged, match=cause):
            len(Checkpoint(path, read_only=read_only))

    assert cause in str(Checkpoint.verify(path))
    assert path.read_bytes() == before


def test_a_torn_tail_is_cut_and_counted(path, caplog):
    """What a crash leaves is legal; the next start says how much it was."""
    change(path, lambda lines: [*lines, b'{"id":"i9","sta'])
    with Checkpoint(path) as checkpoint:
        assert len(checkpoint) == 9
        assert checkpoint._store.journal.torn == 15

    assert "15 bytes" in caplog.text
    assert not list(path.parent.glob("*.torn-*"))


def test_complete_lines_of_a_torn_tail_are_kept_aside(path):
    """Bytes that hold a whole line may be somebody's data: they are cut, and kept."""
    foreign = b'{"id":"mine","status":"ok"}\n'
    change(path, lambda lines: [*lines, foreign, b"half"])
    with Checkpoint(path) as checkpoint:
        checkpoint.save("next", 1)
    (aside,) = path.parent.glob("*.torn-*")

    assert aside.read_bytes() == foreign + b"half"
    assert Checkpoint.verify(path).ok


def test_what_is_cut_off_is_on_the_disk_elsewhere_first(path, files):
    """A power cut between the two leaves the bytes in one place or in both."""
    change(path, lambda lines: [*lines, b'{"id":"mine","status":"ok"}\n'])
    order = []
    for name in ("create", "write", "sync", "sync_directory", "truncate"):
        files.on[name] = lambda *_, name=name: order.append(name)
    files.on["drop_cache"] = lambda *_: True  # or the file is copied, and nothing is cut
    with Checkpoint(path):
        cut = order.index("truncate")

    assert order[cut - 4 : cut] == ["create", "write", "sync", "sync_directory"]


def test_a_hole_behind_the_proven_part_is_copied_without_loss(path):
    """Unsynced records behind a hole are kept; the file that follows has no hole."""
    checkpoint = Checkpoint(path, fsync=False)
    for number in range(9):
        checkpoint.save(f"i{number}", number)
    lines = path.read_bytes().splitlines(keepends=True)
    checkpoint.close()
    path.write_bytes(b"".join([*lines[:3], bytes(40) + b"\n", *lines[5:], b"torn"]))
    with Checkpoint(path) as again:
        assert {each.id: each.result for each in again.records()} == {
            f"i{number}": number for number in range(9) if number not in (2, 3)
        }
        again.save("next", 1)

    assert Checkpoint.verify(path).ok
    assert not Checkpoint.verify(path).torn


def test_a_newer_format_is_refused_with_a_clear_word(path):
    """It is not damage: the file is fine, this library is old."""
    change(path, lambda lines: lines)
    header = parse_header(path.read_bytes().splitlines(keepends=True)[0])
    newer = header.line().replace(b'{"lockstitch":1,', b'{"lockstitch":2,')
    path.write_bytes(seal(newer[: newer.rindex(b',"n":')] + b"}", 0, 0, 0))
    before = path.read_bytes()
    for read_only in (False, True):
        with pytest.raises(UsageError, match=r"newer lockstitch.*pip install"):
            len(Checkpoint(path, read_only=read_only))
    for call in (Checkpoint.verify, Checkpoint.repair):
        with pytest.raises(UsageError, match="newer lockstitch"):
            call(path)

    assert path.read_bytes() == before


def test_a_record_of_an_unknown_kind_survives_a_compaction(path):
    """A newer writer's records are kept, in their place, by an older library."""
    change(path, lambda lines: lines)
    header = parse_header(path.read_bytes().splitlines(keepends=True)[0])
    with path.open("ab") as file:
        file.write(seal(b'{"comment":"from the future","x":[1]}', 10, 9, header.salt))
    with Checkpoint(path) as checkpoint:
        checkpoint.save("i0", "again")
        checkpoint.compact()
        assert len(checkpoint) == 9

    kinds = [next(iter(json.loads(line))) for line in path.read_bytes().splitlines()]
    assert kinds.count("comment") == 1
    assert b'"from the future","x":[1]' in path.read_bytes()


def test_a_proved_line_that_makes_no_sense_is_refused(path):
    """Nothing is guessed; repair puts the line aside and keeps the rest."""
    change(path, lambda lines: lines)
    header = parse_header(path.read_bytes().splitlines(keepends=True)[0])
    odd = seal(b'{"run":"one"}', 10, 9, header.salt)
    with path.open("ab") as file:
        file.write(odd)
    with pytest.raises(CheckpointDamaged, match="run record"):
        Checkpoint(path).save("x", 1)
    report = Checkpoint.repair(path)

    assert Path(report.aside).read_bytes() == odd
    assert report.damage[0].line == 11
    with Checkpoint(path, read_only=True) as checkpoint:
        assert len(checkpoint) == 9


@pytest.mark.parametrize("odd", ['"error":7', '"attempt":"first"', '"seconds":[]'])
def test_a_proved_record_that_makes_no_sense_is_refused_when_it_is_read(path, odd):
    """The other records are read; this one says in which file and where it is."""
    change(path, lambda lines: lines)
    header = parse_header(path.read_bytes().splitlines(keepends=True)[0])
    with path.open("ab") as file:
        file.write(seal(b'{"id":"odd","status":"ok",%b}' % odd.encode(), 10, 9, header.salt))
    with Checkpoint(path, read_only=True) as checkpoint:
        assert checkpoint["i0"].result == 0
        with pytest.raises(CheckpointDamaged, match="record 'odd'") as caught:
            checkpoint["odd"]
    assert caught.value.offset > 0


def test_what_repair_writes_is_proven(path):
    """Every line of a published file is on the disk, so any later loss in it is damage."""
    change(path, EDITS["dropped"])
    Checkpoint.repair(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))

    assert [wrong.reason for wrong in Checkpoint.verify(path).damage] == [
        f"record {len(lines) - 1} is missing at the end"
    ]


def test_a_header_from_another_salt_does_not_fit(path):
    """A header put over the lines of another file proves none of them."""
    change(path, lambda lines: lines)
    lines = path.read_bytes().splitlines(keepends=True)
    other = Header("b", "2026-01-01T00:00:00.000Z", "json", {}, 12345, 9)
    path.write_bytes(b"".join([other.line(), *lines[1:]]))

    with pytest.raises(CheckpointDamaged):
        Checkpoint(path).save("x", 1)


def test_a_line_from_before_a_rewriting_proves_nothing_after_it(path):
    """A block of the old file that comes back is a torn tail, though its number would fit."""
    with Checkpoint(path) as checkpoint:
        checkpoint.save("kept", 1)
        checkpoint.save("gone", 2)
        stale = path.read_bytes().splitlines(keepends=True)[-1]
        checkpoint.forget(["gone"])
        killed = path.read_bytes()
    path.write_bytes(killed + stale)

    with Checkpoint(path) as checkpoint:
        assert list(checkpoint) == ["kept"]
        assert checkpoint._store.journal.torn == len(stale)


def test_a_line_longer_than_the_limit_is_refused_in_pieces(path, monkeypatch):
    """A reader never holds more than the limit of a line that does not end."""
    monkeypatch.setattr("lockstitch._reading.MAX_LINE", 1 << 20)
    change(path, lambda lines: [*lines, b"x" * (4 << 20)])
    with Checkpoint(path, read_only=True) as checkpoint:
        assert len(checkpoint) == 9


def test_no_line_relies_on_its_number(path):
    """A scan needs no more than the salt to find the lines."""
    change(path, lambda lines: lines)
    first, *lines = path.read_bytes().splitlines(keepends=True)
    scan = Scan(salt=parse_header(first).salt, proven=0, start=len(first))

    assert [line for _, line in scan.frames([lines])] == lines


# Other programs


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")
def test_jq_reads_the_file_beside_the_writer(path):
    """Each look sees a beginning of what was written, and never an error."""
    with Checkpoint(path, fsync=False) as checkpoint:
        for number in range(40):
            checkpoint.save(f"i{number}", {"score": number}, status="pass")
            if number % 8 == 0:
                found = subprocess.run(
                    ["jq", "-r", 'select(.status=="pass") | "\\(.id) \\(.result.score)"', path],
                    capture_output=True,
                    text=True,
                    check=True,
                ).stdout.split("\n")[:-1]
                assert found == [f"i{each} {each}" for each in range(number + 1)]


def test_pandas_reads_the_file_beside_the_writer(path):
    """`read_json(lines=True)` gives a row per line, also while the batch runs."""
    pandas = pytest.importorskip("pandas")
    with Checkpoint(path, fsync=False) as checkpoint:
        for number in range(30):
            checkpoint.save(f"i{number}", number, status="pass")
            if number % 10 == 0:
                frame = pandas.read_json(path, lines=True)
                done = frame[frame["status"] == "pass"]
                assert list(done["id"]) == [f"i{each}" for each in range(number + 1)]
                assert list(done["result"]) == list(range(number + 1))


def test_every_line_is_plain_ascii_json(path):
    """One object per line, line feeds only, no NaN, whatever the texts are."""
    with Checkpoint(path, config={"model": "日本"}) as checkpoint:
        checkpoint.save("é\u2028\r\n", ["\x85", "\ud800", "\0"], status="ängstlich")
    data = path.read_bytes()

    assert data.isascii()
    assert b"\r" not in data
    assert data.count(b"\n") == len([json.loads(line) for line in data.split(b"\n")[:-1]]) == 3


def test_the_storage_of_a_test_is_the_machines(path):
    """Outside of the helpers for tests, files are files."""
    with Checkpoint(path) as checkpoint:
        checkpoint.save("a", 1)

    assert path.stat().st_size
    assert type(current_storage().files).__name__ == "SystemFiles"
