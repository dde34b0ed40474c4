"""Errors and deaths at each single file call, and what can be done after them."""

import errno
import itertools
import os

import pytest

from lockstitch import DurabilityUnknown

from .disk import CALLS, Disk, Killed
from .oracle import PATH, Promise, goes_on, recover
from .workloads import WORKLOADS, User, history, nothing, torn

#: What a disk, a quota, a network file system or a system without resources answers.
CODES = [
    errno.EIO,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EACCES,
    errno.EROFS,
    errno.EMFILE,
    errno.ENOMEM,
    errno.EINTR,
    errno.ESTALE,
]


class Failing:
    """Fails the k-th call of one kind, or all from it on; a write may take some bytes first."""

    def __init__(self, call, at, code, *, for_ever, short=False):
        self._call = call
        self._at = at
        self._code = code
        self._for_ever = for_ever
        self._short = short
        self._seen = 0
        self.came = False

    def __call__(self, call):
        if call != self._call:
            return None
        self._seen += 1
        if self._seen <= self._at or (self.came and not self._for_ever):
            return None
        if self._short and not self.came:
            self._at += 1  # this call takes a little, and the next one fails
            self._short = False
            return 7
        self.came = True
        raise OSError(self._code, os.strerror(self._code))


def fail(workload, call, at, code, **how):
    """Run a workload into an error and judge all that follows; False when it never came."""
    user = workload.start()
    failing = user.disk.before = Failing(call, at, code, **how)
    workload.run(user)
    if not failing.came:
        return False
    for error in user.errors:
        # The system's own word, or that of a handle that was given up: nothing else.
        assert isinstance(error, DurabilityUnknown) or error.errno == code, error
    user.disk.before, user.disk.fine = lambda _call: None, False
    user.close()
    # The process goes on when the cause is gone, and so does one that starts after a power cut.
    for state in user.disk.states():
        recover(state, user.promise.may, damaged=workload.damaged)
    goes_on(user.disk, user.promise.may, damaged=workload.damaged)

    return True


#: The codes differ in nothing but EIO, after which the system may forget what it could not write.
BY_CODE = [
    (name, code)
    for name in WORKLOADS
    for code in CODES
    if code in (errno.EIO, errno.ENOSPC) or name in ("save", "compact", "repair", "keep")
]


@pytest.mark.parametrize(("name", "code"), BY_CODE)
def test_an_error_at_any_call_loses_nothing_acknowledged(name, code, trials):
    """Every call of every kind fails once, and from then on; the cause goes; the work goes on."""
    for call, for_ever in itertools.product(CALLS, [False, True]):
        for at in itertools.count():
            if not fail(WORKLOADS[name], call, at, code, for_ever=for_ever):
                break
            trials(1)


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_write_that_took_some_bytes_before_it_failed_is_undone(name, trials):
    """Seven bytes of a record are in the file when the disk is full."""
    for at in itertools.count():
        if not fail(WORKLOADS[name], "write", at, errno.ENOSPC, for_ever=False, short=True):
            break
        trials(1)


@pytest.mark.parametrize("call", ["write", "truncate", "create", "stat", "read"])
@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
def test_a_handle_is_usable_again_when_the_cause_is_gone(call, code, trials):
    """After anything but a failed sync the same object saves and rewrites as before."""
    files, promise = history()
    user = User(Disk(files), promise)
    user.look()
    for run in (lambda: user.save("x", 1), user.compact, lambda: user.forget("i3")):
        user.disk.before = Failing(call, 0, code, for_ever=True)
        run()
        user.disk.before = lambda _call: None
        user.errors.clear()
        user.save("after", 1)
        assert not user.errors
        trials(1)
    user.close()
    goes_on(user.disk, user.promise.may)


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
def test_after_a_sync_that_failed_for_good_the_handle_takes_no_more(code, trials):
    """The record is in doubt and named; what had been acknowledged is not."""
    files, promise = history()
    user = User(Disk(files), promise)
    user.look()
    user.disk.before = Failing("sync", 0, code, for_ever=True)
    user.save("doubtful", 1)
    assert user.errors[0].ids == ("doubtful",)
    user.disk.before = lambda _call: None
    user.save("refused", 1)
    assert isinstance(user.errors[-1], DurabilityUnknown)
    user.close()
    user.checkpoint = user.new()
    user.save("again", 1)
    assert isinstance(user.errors[-1], DurabilityUnknown)
    user.close()
    goes_on(user.disk, user.promise.may)
    trials(1)


# While a file is being opened


def dirty():
    """Return what a process leaves that was killed between a write and its sync."""
    disk = Disk()
    user = User(disk)
    user.save("i0", 0)
    user.disk.before = lambda call: (_ for _ in ()).throw(Killed) if call == "sync" else None
    user.promise.asked("i1", ("ok", 1))
    with pytest.raises(Killed):
        user.checkpoint.save("i1", 1)
    user.die()

    return {PATH: disk.bytes(PATH)}, user.promise


def wasteful():
    """Return a file that opening compacts."""
    disk = Disk()
    user = User(disk)
    for number in range(12):
        user.save("i0", f"{number}" * 30)
    user.close()

    return {PATH: disk.bytes(PATH)}, user.promise


BEGINNINGS = {
    "none": nothing,
    "closed": history,
    "torn": torn,
    "killed": dirty,
    "compacted": wasteful,
}


@pytest.fixture
def compacting(monkeypatch):
    """Let opening compact small files."""
    monkeypatch.setattr("lockstitch._store._COMPACT_ABOVE", 100)


def opening(begin, *, fresh, drops, before):
    """Open a file with `before` in the way; return the user, the old files, and what they promise.

    The last of what is returned tells whether it was opened.
    """
    files, promise = begin()
    disk = Disk(files)
    disk.drops, disk.fine = drops, False
    user = User(disk, Promise(promise.may), fresh=fresh)
    disk.before = before
    try:
        len(user.checkpoint)
        opened = True
    except (OSError, DurabilityUnknown, Killed):
        opened = False
    disk.before = lambda _call: None
    if opened:
        user.close()

    return user, files, opened


@pytest.mark.parametrize("drops", [True, False], ids=["cache dropped", "cache kept"])
@pytest.mark.parametrize("begin", BEGINNINGS.values(), ids=BEGINNINGS)
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EACCES], ids=errno.errorcode.get)
def test_an_error_at_any_call_of_opening_leaves_a_file_that_opens(
    begin, code, drops, compacting, trials
):
    """Nothing is lost, no lock is held, and the next start recovers."""
    for call in CALLS:
        for at in itertools.count():
            failing = Failing(call, at, code, for_ever=False)
            user, _, _ = opening(begin, fresh=False, drops=drops, before=failing)
            if not failing.came:
                break
            assert not user.disk.is_locked
            goes_on(user.disk, user.promise.may)
            trials(6)


@pytest.mark.parametrize("fresh", [False, True], ids=["go on", "fresh"])
@pytest.mark.parametrize("begin", BEGINNINGS.values(), ids=BEGINNINGS)
def test_a_kill_at_any_call_of_opening_leaves_a_file_that_opens(begin, fresh, compacting, trials):
    """And so does every state that a power cut at that moment may leave."""
    for at in itertools.count():
        left = iter(range(at))

        def before(_call, left=left):
            if next(left, None) is None:
                raise Killed

        user, old, opened = opening(begin, fresh=fresh, drops=True, before=before)
        if opened:
            break
        user.die()
        for state in [*user.disk.states(), {n: bytes(f.seen) for n, f in user.disk.names.items()}]:
            assert not fresh or not old or old[PATH] in state.values()
            # Where the name of the old file has gone to another, a new one may begin.
            moved = fresh and state.get(PATH) != old.get(PATH)
            recover(state, {} if moved else user.promise.may)
            trials(6)
