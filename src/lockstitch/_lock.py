"""One writer at a time. The only module that knows filelock.

A file lock excludes other processes, and a second lock object on the same path in this process,
but not the threads that share one object; the journal's own mutex does that. The lock file is
never deleted (a waiter could hold the deleted one) and never taken over because of its age: the
kernel frees the lock at any death of its holder, and a stopped process is not a dead one.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Protocol

import filelock

from ._errors import CheckpointLocked, UsageError
from ._files import opener
from ._records import instant, iso


def host_name() -> str:
    """Return the name of this machine."""
    import socket  # noqa: PLC0415 - as dear as two modules of ours, and asked for once in a run

    return socket.gethostname()


class Lock(Protocol):
    """What the journal needs of a lock."""

    @property
    def is_held(self) -> bool:
        """True between `acquire` and `release`."""
        ...

    def acquire(self) -> None:
        """Take the lock without waiting; raises `CheckpointLocked`."""
        ...

    def release(self) -> None:
        """Free the lock; does nothing when it is not held."""
        ...


class RunLock:
    """The lock file beside a checkpoint; its text names the holder for those who come second."""

    def __init__(self, path: str, wall: Callable[[], float]) -> None:
        self._target = path
        self._path = f"{path}.lock"
        self._wall = wall
        # thread_local: with filelock's default a release in another thread would do nothing.
        # fallback_to_soft: a marker file outlives its holder, so a silent switch to one is refused.
        self._lock = filelock.FileLock(self._path, thread_local=False, fallback_to_soft=False)

    @property
    def is_held(self) -> bool:
        return self._lock.is_locked

    def acquire(self) -> None:
        folder = os.path.dirname(self._path) or "."
        if not os.path.isdir(folder):  # filelock would create it, and hide a typing error
            raise UsageError(f"{self._target}: there is no folder {folder}; create it first")
        # Reading the name of the holder from a pipe would never end.
        with suppress(OSError):
            if not stat.S_ISREG(os.lstat(self._path).st_mode):
                raise UsageError(
                    f"{self._path} is where the lock belongs, and is not a regular file; remove it"
                )
        try:
            self._lock.acquire(blocking=False)
        except NotImplementedError as error:
            raise UsageError(
                f"{self._path}: this file system has no file locks, so two runs could not be kept "
                "apart; put the checkpoint on a local disk"
            ) from error
        except (filelock.Timeout, RuntimeError):
            # RuntimeError: filelock has seen that this thread holds the path by another object.
            raise CheckpointLocked(self._target, *self._holder()) from None
        except OSError as error:
            error.add_note(
                "lockstitch keeps its lock beside the checkpoint: the folder must be writable"
            )
            raise
        self._sign()

    def release(self) -> None:
        self._lock.release()

    def _sign(self) -> None:
        about = {"pid": os.getpid(), "host": host_name(), "since": iso(self._wall())}
        # The name in the lock file is a courtesy to the second comer: where it cannot be written
        # (a full disk, something else in the lock file's place) the lock holds all the same.
        with suppress(OSError), open(self._path, "r+", encoding="ascii", opener=opener) as file:
            file.truncate()
            file.write(json.dumps(about))

    def _holder(self) -> tuple[int | None, str | None, datetime | None, bool]:
        try:
            with open(self._path, encoding="ascii", opener=opener) as file:
                about = json.loads(file.read(4096))
            pid, host, since = int(about["pid"]), str(about["host"]), instant(about["since"])
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return None, None, None, False

        return pid, host, since, (pid, host) == (os.getpid(), host_name())
