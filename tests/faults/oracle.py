"""The one judge: what a checkpoint may hold after what its user was told, and what must be left.

1. What was acknowledged is there, with its exact value.
2. Nothing is there that nobody has saved.
3. What a crash may leave is never called damage.
4. It can be saved to, and everything is there when it is opened again.
5. No temporary file, descriptor or lock is left.
"""

import threading

from lockstitch import Checkpoint, JSONSerializer
from lockstitch._journal import STORAGE

from .disk import Disk

PATH = "/disk/run.jsonl"

#: What an id has that has no record.
ABSENT = None

#: One for all, because making one takes longer than all that is done with it here.
JSON = JSONSerializer()

#: Saved by the judge, to see that a checkpoint goes on.
MORE = {"more-1": ("ok", "x"), "more-2": ("pass", ["y"])}


def frozen(value):
    """Return a JSON value in a form that sets can hold."""
    return tuple(map(frozen, value)) if isinstance(value, (list, tuple)) else value


class Promise:
    """For each id, the (status, result) pairs that its record may have; `ABSENT` for none.

    `may` is replaced with each change, so that it can be kept as what held at a moment.
    """

    def __init__(self, may=()):
        self.may = dict(may)
        self._lock = threading.Lock()

    def _set(self, id, allowed):
        with self._lock:
            self.may = {**self.may, id: frozenset(allowed)}

    def allowed(self, id):
        return self.may.get(id, frozenset([ABSENT]))

    def asked(self, id, value):
        """`value` was asked for, and nobody was told yet whether it is stored."""
        self._set(id, self.allowed(id) | {frozen(value)})

    def is_now(self, id, value):
        """It was said that the record is this one."""
        self._set(id, [frozen(value)])

    def is_again(self, id, allowed):
        """It was said that nothing has changed."""
        self._set(id, allowed)

    def told(self, found):
        """A checkpoint was opened and has shown these records: from now on they are promised."""
        for id in self.may:
            self.is_now(id, found.get(id, ABSENT))


def judge(found, may):
    """Compare records with what they may be."""
    for id in found:
        assert id in may, f"{id!r} was never saved"
    for id, allowed in may.items():
        got = frozen(found.get(id, ABSENT))
        assert got in allowed, f"{id!r} is {got!r}, not one of {set(allowed)!r}"


def records_of(checkpoint):
    return {record.id: (record.status, record.result) for record in checkpoint.records()}


def on(disk, make):
    """Call `make` with checkpoints living on `disk`."""
    token = STORAGE.set(disk.storage())
    try:
        return make()
    finally:
        STORAGE.reset(token)


def recover(state, may, *, damaged=False, path=PATH):
    """Start again from a folder that a power cut has left, and judge what is there.

    With `damaged` the file was damaged by hand before, so that it may have to be repaired.
    """
    goes_on(Disk(state), may, damaged=damaged, path=path)


def goes_on(disk, may, *, damaged=False, path=PATH):
    """Open, judge, save, open again, judge again, and see that nothing is left behind."""
    if damaged:
        on(disk, lambda: Checkpoint.repair(path))
    with on(disk, lambda: Checkpoint(path, serializer=JSON)) as checkpoint:
        found = records_of(checkpoint)
        judge(found, may)
        for id, (status, result) in MORE.items():
            checkpoint.save(id, result, status=status)
    with on(disk, lambda: Checkpoint(path, serializer=JSON)) as checkpoint:
        assert records_of(checkpoint) == {**found, **MORE}
    report = on(disk, lambda: Checkpoint.verify(path))
    assert report.ok, str(report)
    assert not report.torn, str(report)
    is_tidy(disk)


def is_tidy(disk):
    """No temporary file, descriptor or lock is left."""
    temporary = [name for name in disk.names if ".tmp-" in name]

    assert (temporary, disk.handles, disk.is_locked) == ([], {}, False)
