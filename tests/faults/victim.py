"""A program for other programs to fail and kill: `python -m tests.faults.victim PLAN`.

PLAN is a JSON file: {"folder", "acks", "trials": [[call, number of calls to make before], ...]}.
Each trial runs in a fork, so that it costs milliseconds. It tells how far it came by bytes in a
mapped file: no system call, so that none of its own can be the one that fails.
"""

import contextlib
import fcntl
import json
import mmap
import os
import sys
from collections import Counter
from typing import ClassVar

from lockstitch import Checkpoint, DurabilityUnknown
from lockstitch._files import Files, SystemFiles
from lockstitch._journal import STORAGE, Storage
from lockstitch._lock import RunLock

#: What each trial does, in order. A save is (id, result).
STEPS = (
    ("save", ("i0", 0)),
    ("save", ("i1", "first")),
    ("save", ("i2", "x" * 300)),
    ("save", ("i1", "second")),
    ("compact", ()),
    ("save", ("i3", [1, 2])),
    ("forget", ("i0",)),
    ("save", ("i4", None)),
    ("close", ()),
)

#: What a byte of the mapped file says about a step; the last byte is how the trial ended.
BEGUN, DONE, REFUSED, IN_DOUBT, ODD = 1, 2, 3, 4, 5
WIDTH = len(STEPS) + 1

#: No descriptor has this number.
NOT_OPEN = 1 << 20

#: Calls that fail by themselves, to bring the counter of a system call where it is wanted.
BURN = {
    "write": lambda: os.write(NOT_OPEN, b""),
    "fdatasync": lambda: os.fdatasync(NOT_OPEN),
    "fsync": lambda: os.fsync(NOT_OPEN),
    "ftruncate": lambda: os.ftruncate(NOT_OPEN, 0),
    "pread64": lambda: os.pread(NOT_OPEN, 1, 0),
    "preadv2": lambda: os.preadv(NOT_OPEN, [bytearray(1)], 0, os.RWF_NOWAIT),
    "fadvise64": lambda: os.posix_fadvise(NOT_OPEN, 0, 0, 0),
    "fchmod": lambda: os.fchmod(NOT_OPEN, 0o600),
    "fchown": lambda: os.fchown(NOT_OPEN, 0, 0),
    "flock": lambda: fcntl.flock(NOT_OPEN, fcntl.LOCK_UN),
    "close": lambda: os.close(NOT_OPEN),
    "openat": lambda: os.open("/no/such/file", os.O_RDONLY),
    "rename": lambda: os.rename("/no/such/file", "/no/such/name"),
    "link": lambda: os.link("/no/such/file", "/no/such/name"),
    "unlink": lambda: os.unlink("/no/such/file"),
}


def work(path, told, at):
    """Do the steps, and tell what came of each."""
    checkpoint = Checkpoint(path)
    for number, (what, arguments) in enumerate(STEPS, start=at):
        told[number] = BEGUN
        try:
            if what == "save":
                checkpoint.save(*arguments)
            elif what == "forget":
                checkpoint.forget(arguments)
            else:
                getattr(checkpoint, what)()
            told[number] = DONE
        except DurabilityUnknown:
            told[number] = IN_DOUBT
        except OSError:
            told[number] = REFUSED
        except Exception:
            told[number] = ODD
            raise


def trial(number, call, before, folder, told):
    """Run one trial in a fork; its last byte tells how it ended."""
    pid = os.fork()
    if pid == 0:
        try:
            for _ in range(before):
                with contextlib.suppress(OSError):
                    BURN[call]()
            work(f"{folder}/{number}/run.jsonl", told, number * WIDTH)
            os._exit(0)
        except BaseException:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    told[(number + 1) * WIDTH - 1] = 0x80 | os.WTERMSIG(status) or os.waitstatus_to_exitcode(status)


class Counting(SystemFiles):
    """The machine's files, counted."""

    calls: ClassVar = Counter()


def _counted(name):
    def call(self, *arguments):
        self.calls[name] += 1
        return getattr(super(Counting, self), name)(*arguments)

    return call


for _name in [name for name in vars(Files) if not name.startswith("_")]:
    setattr(Counting, _name, _counted(_name))


def count(path):
    """Do the steps once and print how often each file call was made."""
    from lockstitch._clock import CLOCK

    STORAGE.set(Storage(Counting(), lambda path: RunLock(path, CLOCK.get().wall)))
    work(path, bytearray(WIDTH), 0)
    print(json.dumps(Counting.calls))


def main():
    with open(sys.argv[1], encoding="ascii") as file:
        plan = json.load(file)
    if "count" in plan:
        count(plan["count"])
        return
    with open(plan["acks"], "r+b") as file:
        told = mmap.mmap(file.fileno(), 0)
    # What is imported at first use is imported here, so that all trials make the same calls.
    work(f"{plan['folder']}/run.jsonl", bytearray(WIDTH), 0)
    for number, (call, before) in enumerate(plan["trials"]):
        trial(number, call, before, plan["folder"], told)


if __name__ == "__main__":
    main()
