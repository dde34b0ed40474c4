"""`lockstitch doctor`: what a path can promise, found out by trying."""

import errno
import os
import stat

import pytest

from lockstitch import Checkpoint
from lockstitch.cli import main
from lockstitch.cli._grounds import (
    Mount,
    judge_file,
    judge_folder,
    judge_mount,
    judge_own_mount,
    judge_space,
    mount_of,
)

MOUNTS = """\
22 1 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 27 0:27 / /home rw - nfs4 server:/home rw
31 30 8:1 / /home/me/my\\040disk rw shared:5 master:1 - xfs /dev/sda1 rw
32 27 8:2 /a.jsonl /data/a.jsonl ro,noatime - btrfs /dev/sdb rw
33 27 0:40 / /over rw - tmpfs none rw
34 27 0:41 / /over rw - overlay overlay rw,lowerdir=x - y
broken
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/x/run.jsonl", Mount("/", "ext4", False)),
        ("/home/run.jsonl", Mount("/home", "nfs4", False)),
        ("/homework/run.jsonl", Mount("/", "ext4", False)),
        ("/home/me/my disk/run.jsonl", Mount("/home/me/my disk", "xfs", False)),
        ("/data/a.jsonl", Mount("/data/a.jsonl", "btrfs", True)),
        ("/data/a.jsonl.lock", Mount("/", "ext4", False)),
        ("/over/run.jsonl", Mount("/over", "overlay", False)),
    ],
)
def test_the_innermost_mount_counts_and_of_several_the_last(path, expected):
    """As the kernel resolves a path; names are unescaped, and not taken for prefixes of others."""
    assert mount_of(path, MOUNTS) == expected


def test_a_system_that_does_not_tell_is_not_judged():
    """Elsewhere than on Linux only the trials speak."""
    assert mount_of("/x", "") is None
    assert [each.grade for each in judge_mount(None)] == ["note"]


@pytest.mark.parametrize(
    ("type", "grade", "word"),
    [
        ("ext4", "ok", ""),
        ("xfs", "ok", ""),
        ("nfs4", "limit", "network"),
        ("cifs", "limit", "network"),
        ("fuse.sshfs", "limit", "network"),
        ("9p", "limit", "network"),
        ("fuse.mergerfs", "limit", "program behind it"),
        ("fuseblk", "limit", "program behind it"),
        ("tmpfs", "limit", "restart of the machine"),
        ("overlay", "limit", "container"),
        ("vfat", "limit", "no journal"),
        ("novelfs", "note", "not known"),
    ],
)
def test_a_file_system_is_judged_by_its_type(type, grade, word):
    """Every limit says what it means and what to do."""
    (finding,) = judge_mount(Mount("/m", type, False))

    assert (finding.grade, f"{type} at /m" in finding.found) == (grade, True)
    assert word in finding.means
    assert (grade == "limit") == bool(finding.do)


def test_a_file_that_is_mounted_by_itself_cannot_be_replaced():
    """Its folder can be mounted instead."""
    assert list(judge_own_mount("/data/a", Mount("/data", "ext4", False))) == []
    (finding,) = judge_own_mount("/data/a", Mount("/data/a", "ext4", False))

    assert finding.grade == "limit"


@pytest.mark.parametrize(
    ("mode", "grade"), [(0o700, "ok"), (0o775, "ok"), (0o1777, "note"), (0o777, "limit")]
)
def test_a_folder_that_everybody_writes_to_is_named(mode, grade):
    """With the sticky bit, nobody can exchange the files of others."""
    assert judge_folder("/f", stat.S_IFDIR | mode).grade == grade


@pytest.mark.parametrize(
    ("mode", "links", "grades"),
    [
        (stat.S_IFREG | 0o600, 1, ["ok"]),
        (stat.S_IFREG | 0o644, 1, ["note"]),
        (stat.S_IFREG | 0o664, 1, ["limit"]),
        (stat.S_IFREG | 0o600, 2, ["ok", "limit"]),
        (stat.S_IFIFO | 0o600, 1, ["limit"]),
    ],
)
def test_a_file_that_others_can_read_or_write_is_named(mode, links, grades):
    """Whoever can write the file can forge results."""
    assert [each.grade for each in judge_file("/f", mode, links)] == grades


@pytest.mark.parametrize(
    ("free", "size", "grade"),
    [(1 << 30, 0, "ok"), (1 << 30, 2 << 30, "limit"), (1 << 20, 0, "limit")],
)
def test_there_must_be_room_for_a_copy(free, size, grade):
    """A rewrite needs as much as there is."""
    assert judge_space(free, size).grade == grade


# Trials


@pytest.fixture
def doctor(tmp_path, capsys):
    """Run it on a path in an empty folder; nothing may be left there that was not before."""
    tmp_path.chmod(0o700)

    def run(path=tmp_path / "run.jsonl"):
        before = sorted(os.listdir(tmp_path))
        code = main(["doctor", str(path)])
        assert sorted(os.listdir(tmp_path)) == before

        return code, capsys.readouterr().out

    return run


def test_it_tries_out_what_a_checkpoint_needs(doctor):
    """Syncing, linking, replacing, and a lock that keeps a second process out."""
    _, said = doctor()

    for found in (
        "ok    fsync of a file works",
        "ok    files can be replaced at once",
        "ok    locks exclude: a second process was refused",
    ):
        assert found in said


def test_a_folder_will_do(doctor, tmp_path):
    """The checkpoint need not exist."""
    _, said = doctor(tmp_path)

    assert said.startswith(f"{tmp_path}\n")
    assert "mount point" not in said


def test_a_checkpoint_in_use_is_not_touched(doctor, tmp_path):
    """A live run is not disturbed, whatever is tried beside it."""
    with Checkpoint(tmp_path / "run.jsonl") as checkpoint:
        checkpoint.save("a")
        before = (tmp_path / "run.jsonl").read_bytes()
        code, said = doctor()
        checkpoint.save("b")

    assert "file: mode 0600" in said
    assert (tmp_path / "run.jsonl").read_bytes().startswith(before)
    assert code in (0, 1)


@pytest.mark.parametrize(
    ("call", "code", "found"),
    [
        ("sync", errno.EIO, "fsync of a file: Input/output error"),
        ("replace", errno.EBUSY, "replacing a file: Device or resource busy"),
        ("create", errno.EROFS, "no file can be made here: Read-only file system"),
        ("write", errno.ENOSPC, "no file can be made here: No space left on device"),
    ],
)
def test_what_fails_is_a_limit(doctor, files, call, code, found):
    """It is told, with what to do, and the exit code is 1."""
    files.on[call] = files.failing(code)
    exit_code, said = doctor()

    assert exit_code == 1
    assert f"limit {found}" in said
    assert "what to do: " in said


def test_pages_that_cannot_be_dropped_are_no_limit(doctor, files):
    """Opening copies the file instead."""
    files.on["drop_cache"] = lambda *_: False
    _, said = doctor()

    assert "note  cached pages cannot be dropped here" in said


def test_locks_that_do_not_exclude_are_found(doctor, monkeypatch):
    """The second process really tries."""
    from lockstitch._lock import RunLock

    monkeypatch.setattr(RunLock, "acquire", lambda _self: None)
    code, said = doctor()

    assert code == 1
    assert "limit locks do not exclude" in said


def test_a_link_is_told(doctor, tmp_path):
    """The checkpoint is where it leads to."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    _, said = doctor(tmp_path / "link" / "run.jsonl")

    assert f"leads through a symbolic link to {tmp_path / 'real' / 'run.jsonl'}" in said


def test_a_folder_open_to_everybody_ends_with_1(doctor, tmp_path):
    """What to do is told as a command."""
    tmp_path.chmod(0o777)
    code, said = doctor()
    tmp_path.chmod(0o700)

    assert code == 1
    assert f"chmod o-w {tmp_path}" in said


def test_a_missing_folder_ends_with_66(tmp_path, capsys):
    """As for every verb."""
    assert main(["doctor", str(tmp_path / "typo" / "run.jsonl")]) == 66
    assert "there is no such folder" in capsys.readouterr().err


def test_what_is_printed_does_nothing_to_a_terminal(tmp_path, capsys):
    """A path is a text from outside, too."""
    main(["doctor", str(tmp_path / "\x1b[2Jx\n")])
    said = capsys.readouterr().out

    assert "".join(said.split("\n")).isprintable()
    assert r"\x1b[2Jx\n" in said


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="no tmpfs here")
def test_a_file_system_in_memory_is_found(capsys):
    """On the real thing."""
    code = main(["doctor", "/dev/shm/run.jsonl"])
    said = capsys.readouterr().out

    assert code == 1
    assert "limit file system: tmpfs at /dev/shm" in said
    assert not [name for name in os.listdir("/dev/shm") if name.startswith("lockstitch")]
