"""Trials on files of our own in a folder: what works there. They are gone afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from lockstitch._errors import CheckpointLocked, UsageError
from lockstitch._files import Files, discard, temporary_name, write_all
from lockstitch._journal import Storage

from ._grounds import Finding

#: Seconds for a second process to start and try the lock.
_PATIENCE = 60.0

_SECOND = """
import sys, time
from lockstitch._errors import CheckpointLocked
from lockstitch._lock import RunLock
try:
    RunLock(sys.argv[1], time.time).acquire()
except CheckpointLocked:
    print("refused")
else:
    print("taken")
"""


def tried(folder: str, storage: Storage) -> Iterator[Finding]:
    """Try out all that a checkpoint needs of a folder.

    Raises:
        OSError: no file can be made there.
    """
    files = storage.files
    with _trial(files, folder) as (path, fd):
        yield _sync(files, fd)
        yield _sync_folder(folder)
        yield _drop_cache(files, fd)
        yield _link(path)
        yield _replace(files, path)
        yield _lock(path, storage)


@contextmanager
def _trial(files: Files, folder: str) -> Iterator[tuple[str, int]]:
    # Not named after the checkpoint: a run that is just beginning clears its leftovers away.
    path = temporary_name(os.path.join(folder, "lockstitch-doctor"))
    fd = files.create(path, 0o600)
    try:
        write_all(files, fd, b"{}\n" * 3000)
        yield path, fd
    finally:
        files.close(fd)
        for each in (path, f"{path}.link", f"{path}.new", f"{path}.lock"):
            discard(files, each)


def _sync(files: Files, fd: int) -> Finding:
    try:
        files.sync(fd)
    except OSError as error:
        return Finding(
            "limit",
            f"fsync of a file: {error.strerror}",
            "no save can be acknowledged as stored",
            "put the checkpoint on a local disk, or pass fsync=False and accept the loss",
        )

    return Finding("ok", "fsync of a file works")


def _sync_folder(folder: str) -> Finding:
    if os.name == "nt":
        return Finding("ok", "fsync of the folder is not needed on Windows")
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        return Finding(
            "limit",
            f"fsync of the folder: {error.strerror}",
            "after a power cut a new or rewritten checkpoint may be missing, or be the old one",
            "put the checkpoint on a local disk",
        )
    finally:
        os.close(fd)

    return Finding("ok", "fsync of the folder works")


def _drop_cache(files: Files, fd: int) -> Finding:
    if files.drop_cache(fd, 0, 9000):
        return Finding("ok", "cached pages can be dropped: what is believed is what the disk holds")

    return Finding(
        "note",
        "cached pages cannot be dropped here",
        "when a process was killed, the next start copies the file before it believes it",
    )


def _link(path: str) -> Finding:
    try:
        os.link(path, f"{path}.link")
    except (OSError, NotImplementedError):
        return Finding(
            "note", "no hard links", "a new checkpoint is made by a rename, under the lock"
        )

    return Finding("ok", "hard links work")


def _replace(files: Files, path: str) -> Finding:
    fd = files.create(f"{path}.new", 0o600)
    files.close(fd)
    with suppress(FileNotFoundError):
        files.unlink(f"{path}.link")
    try:
        files.replace(f"{path}.new", f"{path}.link")
    except OSError as error:
        return Finding(
            "limit",
            f"replacing a file: {error.strerror}",
            "compacting, forgetting and repairing fail",
            "put the checkpoint on a local disk",
        )

    return Finding("ok", "files can be replaced at once")


def _lock(path: str, storage: Storage) -> Finding:
    lock = storage.lock(path)
    try:
        lock.acquire()
    except (UsageError, CheckpointLocked, OSError) as error:
        return Finding(
            "limit",
            f"no lock can be taken: {error}",
            "no checkpoint can be opened for writing",
            "put the checkpoint on a local disk",
        )
    try:
        answer = _second_process(path)
    finally:
        lock.release()
    if answer == "refused":
        return Finding("ok", "locks exclude: a second process was refused")
    if answer == "taken":
        return Finding(
            "limit",
            "locks do not exclude: a second process got it, too",
            "two runs at once would write one file, and damage it",
            "put the checkpoint on a local disk, and never start two runs",
        )

    return Finding("note", f"locks: no second process could be started ({answer})")


def _second_process(path: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - this Python, and a program of our own
            [sys.executable, "-c", _SECOND, path],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["it failed"])[-1]

    return done.stdout.strip()
