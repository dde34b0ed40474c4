"""Files that somebody hostile has written, with correct checksums: a checksum is no signature.

Whatever they say, only documented errors come of it, nothing is run or written because of it, and
nothing that is printed of it reaches a terminal as it is.
"""

import contextlib
import json
import pickle
import re
import sys

import pytest

from lockstitch import (
    Checkpoint,
    CheckpointDamaged,
    Limit,
    LockstitchError,
    RateLimited,
    ResumableBatch,
    UsageError,
)
from lockstitch._frames import seal
from lockstitch._journal import current_storage
from lockstitch.cli import main
from lockstitch.testing import fake_clock, memory_storage

SALT = 12345
AT = b'"2026-01-01T00:00:00.000Z"'

#: Texts to take over a terminal, a folder, a file name or an encoder with.
EVIL_TEXTS = [
    "\x1b]0;owned\x07\x1b[2J", "\x9b31m", "a\r\nlockstitch: all is well", "\x00", "\x7f",
    "\u202egnp.exe", "\u2066\u2069\u061c\u2028\u2029", "../../etc/passwd", "/etc/passwd", "con",
    "\ud800", "x" * 300, "x" * 5000, "=cmd|' /C calc'!A0", "-rf", "$(touch owned)", "`touch owned`",
]  # fmt: skip

#: Values, as JSON, in places where others are expected.
EVIL_VALUES = [
    b"null", b"true", b"-1", b"1e400", b"9" * 400, b"9" * 5000, b'""', b"[]", b"{}", b"NaN",
    b"[" * 100_000 + b"]" * 100_000, b'{"until":5}', b'"9999-12-31T23:59:59-23:59"',
    b'"0001-01-01T00:00:00+23:59"', json.dumps("".join(EVIL_TEXTS[:3])).encode(),
]  # fmt: skip

ERROR = b'{"type":"V","message":"m","traceback":"t","bases":["B"]}'

#: Of each kind of line a sound one, as the fields that it has.
SOUND = {
    "run": {"run": b"1", "at": AT, "pid": b"7", "host": b'"h"', "boot": b'"x"', "config": b"{}"},
    "start": {"start": b'"s"', "attempt": b"1"},
    "id": {"id": b'"a"', "status": b'"ok"', "result": b"1", "attempt": b"1", "seconds": b"1.000",
           "at": AT},
    "retry": {"retry": b'"r"', "attempt": b"1", "error": ERROR, "due": AT, "at": AT},
    "cursor": {"cursor": b'"c"', "value": b"1"},
    "step": {"step": b'"c"', "name": b'"n"', "value": b"1"},
    "back": {"back": b'"b"'},
    "waited": {"waited": b"1.5", "at": AT},
    "stop": {"stop": b'"SIGTERM"', "at": AT},
    "pause": {"pause": b'{"until":%b,"reason":"r","scope":"s","by":"response"}' % AT, "at": AT},
    "end": {"end": b"1", "reason": b'"limit"', "at": AT},
}  # fmt: skip

FAILED = {"id": b'"e"', "status": b'"error"', "error": ERROR, "attempt": b"1", "at": AT}

HEADER = {"lockstitch": b"1", "batch": b'"b"', "created_at": AT, "serializer": b'"json"',
          "config": b"{}", "salt": b"%d" % SALT}  # fmt: skip


def joined(fields):
    return b"{%b}" % b",".join(b'"%b":%b' % (name.encode(), fields[name]) for name in fields)


def forged(lines, header=HEADER):
    """Return the bytes of a file that proves itself."""
    sealed = [seal(joined(line), n, n - 1, SALT) for n, line in enumerate(lines, start=1)]

    return seal(joined(header), 0, len(lines), 0) + b"".join(sealed)


def put(path, data):
    """Make a file anew, on the disk or, within `memory_storage`, in memory."""
    files = current_storage().files
    for name in files.siblings(str(path)):
        files.unlink(name)
    fd = files.create(str(path), 0o600)
    files.write(fd, data)
    files.close(fd)


def lines_with(kind, fields):
    """Return the lines of a file that holds a bit of everything, one kind of line as given."""
    every = {**SOUND, kind: fields}

    return [every["run"], FAILED, *(every[name] for name in every if name != "run")]


def read(path):
    with Checkpoint(path, read_only=True) as checkpoint:
        str(checkpoint.stats())
        assert [record.id for record in checkpoint.records()] == list(checkpoint)


def verify(path):
    str(Checkpoint.verify(path))


def go_on(path):
    checkpoint = Checkpoint(path, fsync=False)
    with ResumableBatch(checkpoint, ["a", "b", "c", "e"], redo="error", max_wait=5) as batch:
        batch.plan()
        for item in batch:
            with batch.attempt(item) as attempt:
                attempt.save([attempt.cursor, attempt.step("n", int)])


def strangers(folder):
    """Return what lies in a folder and is neither a checkpoint nor what `repair` puts aside."""
    ours = re.compile(r"run\.jsonl(\.lock|\.damaged-\d{8}T\d{6}\.\d{3}Z-[0-9a-f]{4})?")

    return [each.name for each in folder.iterdir() if not ours.fullmatch(each.name)]


#: Each reads something that the others do not.
VERBS = [
    ("show", "--errors"),
    ("export", "--to", "csv"),
    ("wait",),
    ("forget", "e", "nobody"),
    ("repair",),
]

EVERY_VERB = [*VERBS, ("export",), ("export", "--to", "json"), ("verify",), ("show",)]


def printed_by(capsys, path, verb):
    """Run a verb; return its exit code and what it printed, which must do nothing to a terminal."""
    code = main([verb[0], str(path), *verb[1:]])
    said = capsys.readouterr()
    printed = (said.out + said.err).encode("utf-8", "surrogateescape").decode("utf-8", "replace")

    assert code in (0, 1, 64, 65, 66), (verb, code, printed)
    assert "".join(printed.split("\n")).isprintable(), (verb, printed)

    return code, printed


def survives(path, capsys, data, verbs=VERBS):
    """Do all that can be done with a file; what is not a documented error is let through."""
    with fake_clock():
        for use in (read, verify, go_on):
            put(path, data)
            with contextlib.suppress(LockstitchError):
                use(path)
        for verb in verbs:
            put(path, data)
            printed_by(capsys, path, verb)


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """Keep checkpoints in memory, in an empty folder of the disk; return the path of one."""
    monkeypatch.chdir(tmp_path)
    with memory_storage():
        yield tmp_path / "run.jsonl"


@pytest.mark.parametrize(
    ("kind", "field"), [(kind, field) for kind, fields in SOUND.items() for field in fields]
)
def test_any_value_in_any_place_is_answered_with_a_documented_error(
    tmp_path, memory, capsys, kind, field
):
    """Missing, huge, deep, infinite, of another type: read, go on, and every verb."""
    for value in [None, *EVIL_VALUES]:
        fields = dict(SOUND[kind])
        del fields[field]
        if value is not None:
            fields = {name: value if name == field else SOUND[kind][name] for name in SOUND[kind]}
        if fields:
            survives(memory, capsys, forged(lines_with(kind, fields)))

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("field", HEADER)
def test_any_value_in_the_header_is_answered_with_a_documented_error(memory, capsys, field):
    """A forged first line is refused or read, and nothing else."""
    for value in [*EVIL_VALUES, b'{"a":"\\u001b[2J"}', b'"os.system"', b"0", b"1"]:
        data = forged(lines_with("id", SOUND["id"]), {**HEADER, field: value})
        survives(memory, capsys, data)


@pytest.mark.parametrize(
    "field", [{"attempt": b'"x"'}, {"seconds": b"1e400"}, {"error": b"[]"}, {"result": b"[[,]"}]
)
def test_a_record_that_cannot_be_read_is_found_by_verify_and_put_aside_by_repair(tmp_path, field):
    """The error that reading it raises says `repair`, so `repair` must mend it."""
    path = tmp_path / "run.jsonl"
    put(path, forged([SOUND["run"], {**SOUND["id"], **field}, FAILED]))
    with Checkpoint(path, read_only=True) as checkpoint, pytest.raises(CheckpointDamaged):
        checkpoint["a"]
    found = Checkpoint.verify(path)
    Checkpoint.repair(path)

    assert [wrong.line for wrong in found.damage] == [3]
    assert Checkpoint.verify(path).ok
    with Checkpoint(path, read_only=True) as checkpoint:
        assert [record.id for record in checkpoint.records()] == ["e"]


def test_a_run_line_that_is_no_json_does_not_stop_the_repair_of_a_header(tmp_path):
    """What proves itself and makes no sense is put aside, with what is damaged."""
    path = tmp_path / "run.jsonl"
    run = {**SOUND["run"], "salt": b"%d" % SALT, "config": b"[" * 100_000}
    put(path, b"x" + forged([SOUND["run"] | {"salt": b"%d" % SALT}, run, FAILED]))
    Checkpoint.repair(path)

    assert list(Checkpoint(path, read_only=True)) == ["e"]


@pytest.mark.parametrize("part", ["type", "message", "traceback", "bases"])
def test_any_value_in_an_error_is_answered_with_a_documented_error(memory, capsys, part):
    """The error of a record is read with care, too."""
    for value in EVIL_VALUES:
        error = {"type": b'"V"', "message": b'"m"', "traceback": b'"t"', "bases": b"[]"}
        failed = {**FAILED, "error": joined({**error, part: value})}
        survives(memory, capsys, forged([SOUND["run"], failed, SOUND["end"]]))


@pytest.mark.parametrize("text", EVIL_TEXTS, ids=lambda text: ascii(text)[:20])
def test_texts_from_outside_do_nothing(tmp_path, capsys, monkeypatch, text):
    """Ids, statuses, messages, reasons, names of steps and signals: data, wherever they are.

    They come back as they were, they do nothing to a terminal, and they name no file.
    """
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run.jsonl"
    quoted = json.dumps(text).encode()
    error = {"type": quoted, "message": quoted, "traceback": quoted, "bases": b"[%b]" % quoted}
    data = forged(
        [
            {**SOUND["run"], "host": quoted, "boot": quoted},
            {"start": quoted, "attempt": b"1"},
            {"id": quoted, "status": quoted, "result": quoted, "attempt": b"1", "at": AT},
            {"id": b'"e"', "status": b'"error"', "error": joined(error), "attempt": b"1", "at": AT},
            {"step": quoted, "name": quoted, "value": quoted},
            {"retry": quoted, "attempt": b"1", "error": joined(error), "due": AT, "at": AT},
            {"stop": quoted, "at": AT},
            {"pause": b'{"reason":%b,"scope":%b}' % (quoted, quoted), "at": AT},
            {"end": b"1", "reason": quoted, "at": AT},
        ],
        {**HEADER, "config": joined({"key": quoted})},
    )
    put(path, data)
    record = Checkpoint(path, read_only=True)[text] if len(text) <= 4096 else None

    assert record is None or (record.id, record.status, record.result) == (text, text, text)
    survives(path, capsys, data, EVERY_VERB)
    put(path, data)
    with pytest.raises(LockstitchError) as refused:
        Checkpoint(path, config={"key": "another"}).save("b")
    assert "another" in str(refused.value)
    assert strangers(tmp_path) == []


def test_a_second_key_of_the_same_name_does_not_make_another_item(tmp_path):
    """The id is the one that comes first, for the index and for everything else."""
    path = tmp_path / "run.jsonl"
    put(path, forged([SOUND["run"], {**SOUND["id"], "at": AT + b',"id":"b"'}]))
    checkpoint = Checkpoint(path, read_only=True)

    assert list(checkpoint) == ["a"]
    assert checkpoint["a"].id == "a"
    assert "b" not in checkpoint
    checkpoint.close()


def test_a_line_of_gigabytes_is_refused_before_it_is_read(tmp_path):
    """What is longer than a line may be is no line, and costs no more memory than one."""
    import tracemalloc

    path = tmp_path / "run.jsonl"
    put(path, forged([SOUND["run"]]))
    with path.open("r+b") as file:
        file.seek(0, 2)
        file.write(b'{"id":"a","status":"ok","result":"')
        file.truncate(512 << 20)  # a hole: it takes no space on the disk
    tracemalloc.start()
    try:
        found = Checkpoint.verify(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert found.ok
    assert peak < 288 << 20


class Bomb:
    def __reduce__(self):
        return (sys.exit, ("it was run",))


@pytest.mark.parametrize("name", ["pickle", "marshal", "os", "json:evil", "builtins.eval"])
def test_a_serializer_that_only_the_file_names_is_never_used(tmp_path, capsys, name):
    """The word of the file loads nothing; the command shows such results as text."""
    import base64

    path = tmp_path / "run.jsonl"
    bomb = b'"%b"' % base64.b64encode(pickle.dumps(Bomb()))
    data = forged(
        [SOUND["run"], {**SOUND["id"], "result": bomb}],
        {**HEADER, "serializer": b'"%b"' % name.encode()},
    )
    put(path, data)
    for use in (read, go_on):
        with pytest.raises(UsageError, match="the file's word is not enough"):
            use(path)
    with fake_clock():
        for verb in EVERY_VERB:
            assert printed_by(capsys, path, verb)[0] in (0, 1, 66)


def test_the_reason_of_a_limit_does_nothing_to_a_terminal(memory, capsys):
    """A line of progress shows what a server, or a file, has said."""
    limits = [RateLimited(Limit.after(5, reason="".join(EVIL_TEXTS[:8])))]

    def work(_item):
        while limits:
            raise limits.pop()

    with fake_clock(), ResumableBatch(memory, ["a"], progress="auto") as batch:
        batch.run(work)
    said = capsys.readouterr().err

    assert "limited (" in said
    assert "".join(said.split("\n")).isprintable()


@pytest.mark.parametrize("value", EVIL_VALUES, ids=lambda value: ascii(value[:12]))
def test_rows_to_adopt_are_taken_in_or_refused_in_words(tmp_path, capsys, value):
    """What was written elsewhere is read with the same care."""
    rows, path = tmp_path / "rows.jsonl", tmp_path / "run.jsonl"
    for row in (b'{"id":%b}', b'{"id":"a","x":%b}', b"%b"):
        rows.write_bytes(row % value + b"\n")
        code = main(["adopt", str(path), str(rows), "--key", "id"])
        said = capsys.readouterr()

        assert code in (0, 64, 65), said
        assert "".join((said.out + said.err).split("\n")).isprintable()


def test_a_pickle_in_a_json_file_stays_text(tmp_path):
    """A result that looks like one of another serializer is read as what the header says."""
    path = tmp_path / "run.jsonl"
    put(path, forged([SOUND["run"], {**SOUND["id"], "result": b'"gASVIAAAAA=="'}]))

    assert Checkpoint(path, read_only=True)["a"].result == "gASVIAAAAA=="


#: These send to and take from the processes of an executor, and never see a file.
WITH_WORKERS = ("worker", "pools", "engine")


def test_no_module_of_the_library_can_load_code_by_name():
    """No pickle, eval or exec is in the source, but for what comes straight from a worker."""
    from pathlib import Path

    import lockstitch

    words = re.compile(r"\b(pickle\.\w+\(|marshal|eval\(|exec\(|__import__|shelve)")
    package = Path(lockstitch.__file__).parent
    for path in {*package.rglob("*.py")} - {package / f"_{name}.py" for name in WITH_WORKERS}:
        found = [line for line in path.read_text("utf-8").splitlines() if words.search(line)]
        assert not found, (path.name, found)
