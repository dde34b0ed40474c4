"""Every state that a power cut may leave, in one run and over several."""

import itertools
from contextlib import suppress

import pytest

from lockstitch import CheckpointDamaged

from .deaths import DEATHS, Death, Recorder, resumed
from .disk import Disk, Killed
from .oracle import PATH, Promise, goes_on, recover
from .workloads import STEADY, WORKLOADS, User, history

pytestmark = pytest.mark.timeout(300)  # they may share their cores with others


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_power_cut_at_any_moment_keeps_what_was_acknowledged(name, trials):
    """One run, every state after every call: the promise holds and the checkpoint goes on."""
    workload = WORKLOADS[name]
    user = workload.start()
    recorder = Recorder(user)
    workload.run(user)
    recorder.take()

    trials(4, recorder.judge(damaged=workload.damaged))
    assert not user.errors


def test_a_power_cut_while_a_file_is_set_aside_loses_neither_file(trials):
    """With `fresh` the old records are where they were, or beside it."""
    files, promise = history()
    user = User(Disk(files), fresh=True)
    recorder = Recorder(user)
    user.save("i9", 9)
    user.close()
    recorder.take()
    for state, may in recorder.found.values():
        assert files[PATH] in state.values()
        if state.get(PATH) == files[PATH]:
            recover(state, promise.may)
        else:
            recover(state, may)

    trials(4, len(recorder.found))


def killed(workload, at, how, drops):
    """Run a workload until its death; return its user, None if it came to its end before."""
    user = workload.start()
    user.disk.drops = drops
    death = user.disk.before = Death(at, how)
    with suppress(Killed):
        workload.run(user)
    user.die()

    return user if death.came else None


@pytest.mark.parametrize("drops", [True, False], ids=["cache dropped", "cache kept"])
@pytest.mark.parametrize("how", DEATHS)
@pytest.mark.parametrize("name", STEADY)
def test_what_a_second_run_reports_survives_a_power_cut(name, how, drops, trials):
    """Killed at each call, with what it wrote still in the cache.

    The next start reports only what is on the disk, and every state after its own calls keeps it.
    """
    workload, count = WORKLOADS[name], 0
    for at in itertools.count():
        before = killed(workload, at, how, drops)
        if before is None:
            break
        user, recorder = resumed(before, workload, how)
        user.save("second", 2)
        user.close()
        recorder.take()
        count += recorder.judge(damaged=workload.damaged)
        goes_on(user.disk, user.promise.may)

    trials(5, count)
    assert count


@pytest.mark.parametrize("how", DEATHS)
@pytest.mark.parametrize("name", ["save", "resume", "batch"])
def test_what_a_third_run_reports_survives_a_power_cut(name, how, trials):
    """Killed, started again, killed while it opens or saves, started again, power cut."""
    workload, count = WORKLOADS[name], 0
    for first in itertools.count(0, 6):
        for second in itertools.count():
            before = killed(workload, first, how, drops=True)
            if before is None:
                break
            user = User(before.disk, Promise(before.promise.may))
            death = user.disk.before = Death(second, how)
            try:
                user.look()
                user.save("second", 2)
                user.close()
            except Killed:
                pass
            user.die()
            if not death.came:
                break
            last, recorder = resumed(user, workload, how)
            last.close()
            recorder.take()
            count += recorder.judge()
        if before is None:
            break

    trials(5, count)
    assert count


@pytest.mark.parametrize("how", DEATHS)
def test_a_batch_that_was_killed_anywhere_is_finished_by_the_next_start(how, trials):
    """Every item has its result in the end, and what was acknowledged is not run again."""
    workload = WORKLOADS["batch"]
    for at in itertools.count():
        before = killed(workload, at, how, drops=True)
        if before is None:
            break
        before.disk.before = lambda _call: None
        user = User(before.disk, Promise(before.promise.may))
        workload.run(user)
        assert not user.errors
        assert all(allowed != {None} for allowed in user.promise.may.values())
        goes_on(user.disk, user.promise.may)
        trials(5)


# The judge itself


class NoSync(Disk):
    def sync(self, fd):
        self._called("sync")


class NoDirectorySync(Disk):
    def sync_directory(self, path):
        self._called("sync_directory")


class Careless(Disk):
    """Says that it has dropped its cache, and has not."""

    def drop_cache(self, fd, start, size):
        self._called("drop_cache")

        return True


@pytest.mark.parametrize("kind", [NoSync, NoDirectorySync], ids=["file", "folder"])
@pytest.mark.parametrize("name", ["save", "compact", "forget"])
def test_the_judge_notices_a_sync_that_does_nothing(kind, name):
    """On a disk that lies, acknowledged records are lost, and that is found."""
    files, promise = WORKLOADS[name].begin()
    user = User(kind(files), promise)
    recorder = Recorder(user)
    WORKLOADS[name].run(user)
    recorder.take()

    with pytest.raises((AssertionError, CheckpointDamaged)):
        recorder.judge()


def test_the_judge_notices_a_report_that_only_the_cache_supports():
    """After a failed sync that killed the process, the file shows what is not on the disk."""
    found = 0
    for at in range(40):
        user = User(Careless())
        death = user.disk.before = Death(at, "failed sync")
        with suppress(Killed):
            WORKLOADS["save"].run(user)
        user.die()
        if not death.came:
            break
        last, recorder = resumed(user, WORKLOADS["save"], "failed sync")
        last.close()
        recorder.take()
        try:
            recorder.judge()
        except AssertionError:
            found += 1

    assert found
