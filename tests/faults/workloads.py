"""What people do with a checkpoint: short programs that every kind of fault is tried on.

Each gets a `User`, who notes what the checkpoint has acknowledged, and goes on after the errors
that the documentation names. Any other error is the test's.
"""

import contextlib
import threading

import attrs

from lockstitch import Backoff, Checkpoint, DurabilityUnknown, Limit, RateLimited, ResumableBatch
from lockstitch.testing import fake_clock

from .disk import Disk
from .oracle import ABSENT, JSON, PATH, Promise, on, records_of

#: The items of the batch, and what each gives.
ITEMS = {f"b{number}": f"result {number}" for number in range(5)}


class User:
    """One process's worth of calls on one checkpoint."""

    def __init__(self, disk, promise=None, **options):
        self.disk = disk
        self.promise = promise or Promise()
        #: Every error met, in order.
        self.errors = []
        #: What saves that have returned, and the death of the process does not undo, have stored.
        self.returned = {}
        self._options = options
        self.checkpoint = self.new()

    def new(self, **options):
        """Return a checkpoint that is not open yet."""
        return on(
            self.disk, lambda: Checkpoint(PATH, serializer=JSON, **{**self._options, **options})
        )

    @contextlib.contextmanager
    def trying(self, unchanged=()):
        """Go on after a refusal. `unchanged` ids are then what they were, as is documented."""
        before = {id: self.promise.allowed(id) for id in unchanged}
        try:
            yield
        except DurabilityUnknown as error:
            self.errors.append(error)
        except OSError as error:
            self.errors.append(error)
            for id, allowed in before.items():
                self.promise.is_again(id, allowed)

    def save(self, id, result, status="ok"):
        with self.trying([id]):
            self.promise.asked(id, (status, result))
            self.checkpoint.save(id, result, status=status)
            self.promise.is_now(id, (status, result))

    def forget(self, *ids):
        with self.trying(ids):
            for id in ids:
                self.promise.asked(id, ABSENT)
            self.checkpoint.forget(ids)
            for id in ids:
                self.promise.is_now(id, ABSENT)

    def compact(self):
        with self.trying():
            self.checkpoint.compact()

    def close(self):
        with self.trying():
            self.checkpoint.close()

    def reopen(self, **options):
        """Close, open with other options, and rely on what is shown."""
        self.close()
        self.checkpoint = self.new(**options)
        self.look()

    def look(self):
        with self.trying():
            self.promise.told(records_of(self.checkpoint))

    def die(self):
        """Leave everything as a killed process leaves it."""
        if self.checkpoint._finalizer is not None:
            self.checkpoint._finalizer.detach()
        self.disk.restart()


# The programs


def save(user):
    """A new file; several saves, one of them of an id that has a record."""
    for number in range(3):
        user.save(f"i{number}", number)
    user.save("i1", "x" * 40, status="fail")
    user.close()


def crowd(user):
    """Threads whose saves share writes and syncs."""

    def work(thread):
        for number in range(3):
            user.save(f"t{thread}-{number}", f"{thread}.{number}")

    user.save("first", 1)
    threads = [threading.Thread(target=work, args=(each,)) for each in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    user.close()


def compact(user):
    """A rewrite in the middle of saving, of a file with superseded lines."""
    user.look()
    user.save("i0", "new")
    user.compact()
    user.save("after", 1)
    user.close()


def forget(user):
    """Records that are to go, among others that are not."""
    user.look()
    user.forget("i0", "i2")
    user.save("i2", "once more")
    user.close()


def repair(user):
    """A damaged file, repaired and used."""
    with user.trying():
        on(user.disk, lambda: Checkpoint.repair(PATH))
        user.look()
        user.save("after", 1)
    user.close()


def resume(user):
    """A file that a crash has left torn, with a hole and whole lines behind it."""
    user.look()
    for number in range(4):
        user.save(f"i{number}", f"resumed {number}")
    user.close()


def close(user):
    """Opened and closed several times, with little in between."""
    for number in range(3):
        user.save(f"i{number}", number)
        user.reopen()
    user.close()


def keep(user):
    """Another config, kept; closed before a run has come by, and with one."""
    user.reopen(config={"model": "m2"}, on_config_change="keep")
    user.reopen(config={"model": "m3"}, on_config_change="keep")
    user.save("i9", 9)
    user.close()


def unsynced(user):
    """`fsync=False`: what was flushed holds; what was not may or may not."""

    def save(id):
        with user.trying([id]):
            user.promise.asked(id, ("ok", id))
            user.checkpoint.save(id, id)
            user.returned[id] = ("ok", id)

    user.checkpoint = user.new(fsync=False)
    for id in ("i0", "i1", "i2"):
        save(id)
    with user.trying():
        user.checkpoint.flush()
        user.promise.told(records_of(user.checkpoint))
    for id in ("i3", "i4"):
        save(id)
    with user.trying():
        user.checkpoint.close()
        if not any(isinstance(error, DurabilityUnknown) for error in user.errors):
            for id, value in user.returned.items():
                user.promise.is_now(id, value)
    user.close()


def batch(user):
    """A batch whose items are retried, limited, stepped through and left."""
    seen = dict.fromkeys(ITEMS, 0)
    with fake_clock(), user.trying():
        retry = Backoff(attempts=9, jitter="none")
        with ResumableBatch(
            user.checkpoint, list(ITEMS), retry=retry, handle_signals=False
        ) as work:
            user.promise.told(records_of(work.checkpoint))
            for id in work:
                with work.attempt(id) as attempt:
                    seen[id] += 1
                    if id == "b1" and seen[id] == 1:
                        raise ValueError("comes round again")
                    if id == "b2" and seen[id] == 1:
                        raise RateLimited(Limit.after(30))
                    attempt.save_cursor(seen[id])
                    attempt.step("part", lambda: 1)
                    before = user.promise.allowed(id)
                    user.promise.asked(id, ("ok", ITEMS[id]))
                    try:
                        attempt.save(ITEMS[id])
                    except OSError:
                        user.promise.is_again(id, before)
                        raise
                    user.promise.is_now(id, ("ok", ITEMS[id]))
    user.close()


# What they start with


def _image(fill):
    """Return the bytes that a program leaves, and what they hold."""
    disk = Disk()
    user = User(disk)
    fill(user)

    return disk.bytes(PATH), user.promise


def _history(user):
    for number in range(4):
        user.save(f"i{number}", f"old {number}")
    user.save("i1", "newer")
    user.close()


def nothing():
    return {}, Promise()


def history():
    """Return a file that was closed in order."""
    data, promise = _image(_history)

    return {PATH: data}, promise


def torn():
    """Return a file whose unsynced end has a hole, whole lines, and half a line."""

    def fill(user):
        user.checkpoint = user.new(fsync=False)
        for number in range(6):
            user.promise.is_now(f"i{number}", ("ok", number))
            user.checkpoint.save(f"i{number}", number)

    disk = Disk()
    user = User(disk)
    fill(user)
    lines = disk.bytes(PATH).splitlines(keepends=True)
    user.checkpoint.close()
    user.promise.is_now("i2", ABSENT)
    data = b"".join([*lines[:3], bytes(30) + b"\n", *lines[4:], b'{"id":"i6","st'])

    return {PATH: data}, user.promise


def damaged():
    """Return a file with a flipped bit in a record that had been stored."""
    data, promise = _image(_history)
    at = data.index(b'"old 2"')
    promise.is_now("i2", ABSENT)

    return {PATH: data[: at + 2] + bytes([data[at + 2] ^ 1]) + data[at + 3 :]}, promise


@attrs.frozen
class Workload:
    """A program, and the folder that it begins with."""

    run: object
    begin: object = nothing
    #: The file was damaged by hand: whoever goes on may have to repair it first.
    damaged: bool = False

    def start(self):
        """Return a user with a disk of their own, who has run nothing yet."""
        files, promise = self.begin()

        return User(Disk(files), Promise(promise.may))


WORKLOADS = {
    "save": Workload(save),
    "crowd": Workload(crowd),
    "compact": Workload(compact, history),
    "forget": Workload(forget, history),
    "repair": Workload(repair, damaged, damaged=True),
    "resume": Workload(resume, torn),
    "close": Workload(close),
    "keep": Workload(keep, history),
    "unsynced": Workload(unsynced),
    "batch": Workload(batch),
}

#: Those in which the calls come in the same order each time.
STEADY = [name for name in WORKLOADS if name != "crowd"]
