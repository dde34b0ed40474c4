"""The file calls: all of them go through one small object."""

import errno
import os
import stat

import pytest

from lockstitch._files import SystemFiles, read_lines, temporary_name, write_all
from lockstitch.testing import MemoryFiles


@pytest.fixture(params=[SystemFiles, MemoryFiles], ids=["system", "memory"])
def each(request, tmp_path):
    """Yield (files, path) for the machine's files and for those in memory: one contract."""
    return request.param(), str(tmp_path / "run.jsonl")


def put(files, path, data=b""):
    fd = files.create(path, 0o600)
    write_all(files, fd, data)
    files.close(fd)


def get(files, path):
    fd = files.open_read(path)
    data = files.read(fd, 1 << 20, 0)
    files.close(fd)
    return data


def test_what_is_appended_is_read_back(each):
    """Writes go to the end, reads to an offset, and neither moves the other."""
    files, path = each
    put(files, path, b"abc")
    fd = files.open_append(path)
    assert files.read(fd, 2, 1) == b"bc"
    assert files.write(fd, b"def") == 3
    files.truncate(fd, 4)
    write_all(files, fd, b"XY")
    files.sync(fd)
    files.sync_directory(path)

    assert (files.read(fd, 100, 0), files.stat(fd).st_size) == (b"abcdXY", 6)
    files.close(fd)


def test_only_create_creates(each):
    """Opening a file that is not there says so; creating one that is there too."""
    files, path = each
    for call in (files.open_append, files.open_read, files.unlink):
        with pytest.raises(FileNotFoundError):
            call(path)
    put(files, path)
    with pytest.raises(FileExistsError):
        files.create(path, 0o600)


def test_a_link_never_replaces_and_a_replace_does(each):
    """A new file comes only where none is; the loser is untouched."""
    files, path = each
    put(files, path, b"old")
    put(files, path + ".tmp", b"new")
    with pytest.raises(FileExistsError):
        files.link_new(path + ".tmp", path)
    assert get(files, path) == b"old"
    fd = files.open_append(path)
    files.replace(path + ".tmp", path)
    assert get(files, path) == b"new"
    assert files.stat(fd).st_nlink == 0
    files.close(fd)
    files.link_new(path, path + ".old-1")

    assert files.siblings(path) == [path + ".old-1"]
    with pytest.raises(FileNotFoundError):
        files.link_new(path, path + ".old-2")


def test_a_file_system_without_hard_links_is_served_by_a_rename(tmp_path, monkeypatch):
    """And still nothing is replaced."""
    files, path = SystemFiles(), str(tmp_path / "run.jsonl")

    def refuse(*_):
        raise OSError(errno.EPERM, "no links")

    monkeypatch.setattr(os, "link", refuse)
    put(files, path + ".a", b"a")
    put(files, path + ".b", b"b")
    files.link_new(path + ".a", path)
    with pytest.raises(FileExistsError):
        files.link_new(path + ".b", path)

    assert get(files, path) == b"a"


def test_short_writes_are_continued(files, tmp_path):
    """The system may take fewer bytes than it was given."""
    files.on["write"] = lambda fd, data: os.write(fd, data[:3])
    put(files, str(tmp_path / "x"), b"0123456789")

    assert get(files, str(tmp_path / "x")) == b"0123456789"
    assert files.calls["write"] == 4


def test_lines_are_read_whole_across_blocks(tmp_path):
    """A line may span many reads; the last may lack its line break."""
    lines = [b"x" * size + b"\n" for size in (0, 1, 1 << 20, 3 << 20, 5)] + [b"tail"]
    path = str(tmp_path / "x")
    files = SystemFiles()
    put(files, path, b"".join(lines))
    fd = files.open_read(path)

    assert list(read_lines(files, fd, 0, 8 << 20)) == lines
    assert list(read_lines(files, fd, len(lines[0]), 8 << 20)) == lines[1:]
    assert max(map(len, read_lines(files, fd, 0, 1 << 20))) <= 3 << 20
    assert b"".join(read_lines(files, fd, 0, 1 << 20)) == b"".join(lines)
    files.close(fd)


def test_a_symbolic_link_is_not_followed(tmp_path):
    """Paths are real paths; a link that appears there later is somebody's trap."""
    (tmp_path / "target").write_bytes(b"precious")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for call in (SystemFiles().open_append, SystemFiles().open_read):
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is looked at
            call(str(tmp_path / "link"))
        assert caught.value.errno == errno.ELOOP


def test_new_files_are_private(tmp_path):
    """Results may be secrets; others may read them when their owner says so."""
    put(SystemFiles(), str(tmp_path / "x"))

    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o600


def test_a_file_never_becomes_a_standard_stream(run_child, tmp_path):
    """With 0 to 2 closed, the next file opened would be what `print` writes to."""
    program = """
import os, sys
from lockstitch._files import SystemFiles
for fd in (0, 1):
    os.close(fd)
fd = SystemFiles().create(sys.argv[1], 0o600)
free = []
for low in (0, 1):
    try: os.fstat(low)
    except OSError: free.append(low)
os.write(2, b"")
sys.exit(0 if fd > 2 and free == [0, 1] else 1)
"""
    run_child(program, tmp_path / "x")


def test_a_folder_that_cannot_be_synced_is_not_a_failure(tmp_path, monkeypatch):
    """Some file systems answer EINVAL; anything else is an error."""
    codes = iter([errno.EINVAL, errno.EIO])

    def refuse(_):
        raise OSError(next(codes), "no")

    monkeypatch.setattr(os, "fsync", refuse)
    SystemFiles().sync_directory(str(tmp_path / "x"))
    with pytest.raises(OSError, match="no"):
        SystemFiles().sync_directory(str(tmp_path / "x"))


def read_from_disk():
    """Return how many bytes this process has had the system read from its disks."""
    with open("/proc/self/io", encoding="ascii") as told:
        return next(int(line.split()[1]) for line in told if line.startswith("read_bytes"))


@pytest.mark.skipif(not os.access("/proc/self/io", os.R_OK), reason="the system does not tell")
def test_the_cache_is_dropped_or_it_says_so(tmp_path):
    """A true answer means that the next reads come from the disk."""
    files, path = SystemFiles(), str(tmp_path / "x")
    put(files, path, b"x" * 3_000_000)
    fd = files.open_append(path)
    files.sync(fd)
    before = read_from_disk()
    if files.drop_cache(fd, 0, 3_000_000):
        assert files.read(fd, 3_000_000, 0) == b"x" * 3_000_000
        assert read_from_disk() - before >= 3_000_000
    assert files.drop_cache(fd, 0, 0) in (True, False)
    files.close(fd)


def test_a_temporary_name_lies_beside_its_file():
    """A rename never crosses file systems, and two names never collide."""
    names = {temporary_name("/a/b.jsonl") for _ in range(100)}

    assert len(names) == 100
    assert all(name.startswith("/a/b.jsonl.tmp-") for name in names)


def test_a_file_has_a_name_on_the_disk_at_every_moment(tmp_path):
    """The new name is synced before the old one goes: a power cut may undo either change."""

    class Watched(SystemFiles):
        def sync_directory(self, path):
            there.append(sorted(os.listdir(tmp_path)))
            super().sync_directory(path)

    there, files, path = [], Watched(), str(tmp_path / "run.jsonl")
    put(files, path, b"data")
    files.link_new(path, f"{path}.old-1")

    assert there == [["run.jsonl", "run.jsonl.old-1"]]
    assert os.listdir(tmp_path) == ["run.jsonl.old-1"]
