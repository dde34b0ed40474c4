"""A folder in which others may put files: links, pipes and names that were taken before."""

import os
import threading

import pytest

from lockstitch import Checkpoint, CheckpointLocked, UsageError
from lockstitch._lock import RunLock
from lockstitch._publish import write_new

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links and pipes of POSIX")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.jsonl"


@pytest.fixture
def victim(tmp_path):
    """A file of the user's that somebody else would like to see overwritten."""
    file = tmp_path / "victim"
    file.write_text("precious")
    yield file
    assert file.read_text() == "precious"


def test_a_lock_file_that_is_a_link_is_refused(path, victim):
    """Nothing is written through it."""
    os.symlink(victim, f"{path}.lock")
    with pytest.raises(UsageError, match="not a regular file"):
        Checkpoint(path).save("a")

    assert not path.exists()


def test_a_lock_file_that_becomes_a_link_is_not_written_through(path, victim, monkeypatch):
    """Whoever owns the lock file may exchange it right after it was locked."""
    lock = RunLock(str(path), lambda: 0.0)
    sign = lock._sign

    def exchanged():
        os.unlink(f"{path}.lock")
        os.symlink(victim, f"{path}.lock")
        sign()

    monkeypatch.setattr(lock, "_sign", exchanged)
    lock.acquire()
    lock.release()


def test_a_lock_file_that_becomes_a_pipe_hangs_nobody(path):
    """Who comes second is told that it is locked, though nobody tells by whom."""
    with Checkpoint(path) as checkpoint:
        checkpoint.save("a")
        os.rename(f"{path}.lock", f"{path}.kept")
        os.mkfifo(f"{path}.lock")
        found = []
        thread = threading.Thread(
            target=lambda: found.append(RunLock(str(path), lambda: 0.0)._holder()), daemon=True
        )
        thread.start()
        thread.join(10)

    assert found == [(None, None, None, False)]


@pytest.mark.parametrize("make", [os.symlink, os.link], ids=["symlink", "hard link"])
def test_a_temporary_file_that_is_there_already_is_never_used(path, victim, monkeypatch, make):
    """Its name cannot be guessed; and if it were, creating it is refused."""
    with Checkpoint(path) as checkpoint:
        checkpoint.save("a")
        taken = f"{path}.tmp-guessed"
        make(victim, taken)
        monkeypatch.setattr("lockstitch._publish.temporary_name", lambda _path: taken)
        with pytest.raises(FileExistsError):
            checkpoint.compact()
        checkpoint.save("b")
        os.unlink(taken)

    assert sorted(Checkpoint(path, read_only=True)) == ["a", "b"]


def test_names_of_temporary_files_cannot_be_foretold(path):
    """They are random, and the file is the user's alone from the first moment."""
    from lockstitch._files import SystemFiles, temporary_name
    from lockstitch._records import Header

    files, header = SystemFiles(), Header("b", "", "json", {}, 5)
    made = write_new(files, str(path), header, (), None)
    mode = os.stat(made).st_mode & 0o777
    files.unlink(made)

    assert mode == 0o600
    assert len({temporary_name(str(path)) for _ in range(100)}) == 100


def test_leftovers_that_are_links_are_unlinked_and_not_followed(path, victim):
    """What is cleared away at opening is the name beside the checkpoint."""
    Checkpoint(path).save("a")
    os.symlink(victim, f"{path}.tmp-7-00000000")
    with Checkpoint(path) as checkpoint:
        assert "a" in checkpoint

    assert not os.path.lexists(f"{path}.tmp-7-00000000")


def test_a_checkpoint_that_becomes_a_link_is_refused(path, tmp_path):
    """A link given by the user is resolved when the object is made; one that comes later is not."""
    Checkpoint(tmp_path / "other").save("a")
    checkpoint = Checkpoint(path)
    os.symlink(tmp_path / "other", path)
    with pytest.raises(OSError, match="symbolic links"):
        checkpoint.save("b")

    assert list(Checkpoint(tmp_path / "other", read_only=True)) == ["a"]


def test_a_new_checkpoint_is_the_users_alone_whatever_the_umask(path):
    """Results may be private; the lock file says no more than who has it."""
    before = os.umask(0)
    try:
        with Checkpoint(path) as checkpoint:
            checkpoint.save("a")
            checkpoint.compact()
    finally:
        os.umask(before)

    assert path.stat().st_mode & 0o777 == 0o600


def test_a_lock_file_of_somebody_else_in_a_sticky_folder_is_refused(tmp_path):
    """Its owner could exchange it while it is held; only root can make one here."""
    if os.getuid() != 0:
        pytest.skip("needs to give a file away")
    tmp_path.chmod(0o1777)
    os.close(os.open(tmp_path / "run.jsonl.lock", os.O_CREAT, 0o666))
    os.chown(tmp_path / "run.jsonl.lock", 12345, 12345)
    with pytest.raises((PermissionError, CheckpointLocked, UsageError)) as refused:
        Checkpoint(tmp_path / "run.jsonl").save("a")
    tmp_path.chmod(0o700)

    assert refused.type is PermissionError
    assert not (tmp_path / "run.jsonl").exists()
