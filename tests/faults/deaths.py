"""Deaths of a process and of the power: when they come, what they leave, the start after them."""

import errno
import os

from lockstitch import Checkpoint

from .disk import CHANGES, Killed
from .oracle import PATH, Promise, judge, on, records_of, recover
from .workloads import User


class Recorder:
    """Collects each state that a power cut may leave, with what was promised at that moment."""

    def __init__(self, user):
        self._user = user
        #: (names and bytes, what was promised) of each different state.
        self.found = {}
        user.disk.before = self

    def __call__(self, call):
        if call in CHANGES:
            self.take()

    def take(self):
        may = self._user.promise.may
        for state in self._user.disk.states():
            # Each promise is kept here, so no other gets its id.
            self.found.setdefault((*sorted(state.items()), id(may)), (state, may))

    def judge(self, *, damaged=False):
        """Recover each; return how many there were."""
        for state, may in self.found.values():
            recover(state, may, damaged=damaged)

        return len(self.found)


#: Ways to die, and the calls in which one can die so.
DEATHS = {"kill": CHANGES, "torn write": {"write"}, "failed sync": {"sync"}}


class Death:
    """Kills the process at the k-th call of those in which it can die so."""

    def __init__(self, at, how):
        self._left = at
        self._how = how
        #: True once it is dying: no call is made any more.
        self.came = False

    def __call__(self, call):
        if self.came:
            raise Killed
        if call not in DEATHS[self._how]:
            return None
        self._left -= 1
        if self._left >= 0:
            return None
        self.came = True
        if self._how == "torn write":
            return 20
        if self._how == "failed sync":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        raise Killed


def resumed(before, workload, how):
    """Start again after a death; return the new user, who relies on what is shown."""
    disk = before.disk
    disk.before = lambda _call: None
    disk.fine = False
    user = User(disk, Promise(before.promise.may))
    recorder = Recorder(user)
    if workload.damaged:
        on(disk, lambda: Checkpoint.repair(PATH))
    found = records_of(user.checkpoint)
    judge(found, before.promise.may)
    if how == "kill":
        assert before.returned.items() <= found.items()
    user.promise.told(found)

    return user, recorder
