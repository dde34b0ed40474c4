"""Errors and kills at real system calls, by strace; kills at each byte of a real write."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from lockstitch import Checkpoint

from .oracle import ABSENT, Promise, judge, records_of
from .victim import BEGUN, BURN, DONE, IN_DOUBT, ODD, STEPS, WIDTH

ROOT = Path(__file__).parents[2]

#: What each call fails with.
ERRORS = {
    "write": "ENOSPC",
    "fdatasync": "EIO",
    "fsync": "EIO",
    "ftruncate": "EIO",
    "pread64": "EIO",
    "preadv2": "EIO",
    "fadvise64": "EINVAL",
    "fchmod": "EPERM",
    "fchown": "EPERM",
    "flock": "ENOLCK",
    "close": "EIO",
    "openat": "EMFILE",
    "rename": "EACCES",
    "link": "EDQUOT",
    "unlink": "EROFS",
}


def can_trace():
    """Tell whether strace is here and may trace."""
    if shutil.which("strace") is None:
        return False

    return (
        subprocess.run(
            ["strace", "-o", os.devnull, "true"], capture_output=True, check=False
        ).returncode
        == 0
    )


needs_strace = pytest.mark.skipif(not can_trace(), reason="strace is not here, or may not trace")


def run(plan, tmp_path, *strace):
    """Run the victim with a plan, under strace if its options are given; return what it printed."""
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    command = [sys.executable, "-m", "tests.faults.victim", str(tmp_path / "plan.json")]
    if strace:
        command[:0] = ["strace", "-f", "-qq", *strace]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]

    return done.stdout


def traced(tmp_path):
    """Return the lines of one traced trial, and of the process that forked it."""
    folder, acks = tmp_path / "traced", tmp_path / "acks"
    (folder / "0").mkdir(parents=True)
    acks.write_bytes(bytes(WIDTH))
    trace = tmp_path / "trace"
    plan = {"folder": str(folder), "acks": str(acks), "trials": [["write", 0]]}
    run(plan, tmp_path, "-o", str(trace), "-e", f"trace={','.join(BURN)}")
    lines = [line.split(None, 1) for line in trace.read_text(errors="replace").splitlines()]
    server = lines[0][0]

    return (
        Counter(rest.split("(")[0] for pid, rest in lines if pid != server and "(" in rest),
        Counter(rest.split("(")[0] for pid, rest in lines if pid == server and "(" in rest),
    )


def sweep(tmp_path, inject, when):
    """Let each call of a trial be the one; return the trials, (call, how it ended, steps) each."""
    own, servers = traced(tmp_path)
    trials, options = [], []
    for call, count in own.items():
        # Beyond what the forking process itself will have made.
        at = servers[call] + 100
        options += ["-e", f"inject={call}:{inject(call)}:when={at}{when}"]
        trials += [[call, at - k] for k in range(1, count + 1)]
    folder, acks = tmp_path / "swept", tmp_path / "acks"
    for number in range(len(trials)):
        (folder / str(number)).mkdir(parents=True)
    acks.write_bytes(bytes(WIDTH * len(trials)))
    plan = {"folder": str(folder), "acks": str(acks), "trials": trials}
    trace = tmp_path / "sweep"
    run(plan, tmp_path, "-o", str(trace), "-e", f"trace={','.join(own)}", *options)
    came = trace.read_text(errors="replace")
    assert came.count("(INJECTED)") + came.count("killed by SIGKILL") >= len(trials)
    told = acks.read_bytes()
    for number, (call, _) in enumerate(trials):
        *steps, end = told[number * WIDTH : (number + 1) * WIDTH]
        yield call, end, steps, folder / str(number) / "run.jsonl"


def promised(steps):
    """Return what a checkpoint may hold after steps that came to these ends."""
    promise = Promise()
    for (what, arguments), end in zip(STEPS, steps, strict=True):
        if what not in ("save", "forget") or end == 0:
            continue
        id = arguments[0]
        value = ABSENT if what == "forget" else ("ok", arguments[1])
        if end == DONE:
            promise.is_now(id, value)
        elif end in (BEGUN, IN_DOUBT):
            promise.asked(id, value)
        else:
            promise.is_again(id, promise.allowed(id))

    return promise.may


def go_on(path, may):
    """Open, judge, save, open again, and see that nothing is left behind."""
    with Checkpoint(path) as checkpoint:
        found = records_of(checkpoint)
        judge(found, may)
        checkpoint.save("more", 1)
    with Checkpoint(path) as checkpoint:
        assert records_of(checkpoint) == {**found, "more": ("ok", 1)}
    assert Checkpoint.verify(path).ok
    assert not list(path.parent.glob("*.tmp-*"))


@pytest.mark.timeout(300)  # it may share its cores with others
@needs_strace
@pytest.mark.parametrize("when", ["", "+"], ids=["once", "for ever"])
def test_an_error_of_any_system_call_loses_nothing_acknowledged(tmp_path, when, trials):
    """Real calls of a real process, each one refused in turn, and from then on."""
    for call, end, steps, path in sweep(tmp_path, lambda call: f"error={ERRORS[call]}", when):
        assert ODD not in steps, (call, steps)
        assert end == 0x80, (call, end)
        go_on(path, promised(steps))
        trials(2)


@pytest.mark.timeout(300)  # it may share its cores with others
@needs_strace
def test_a_kill_at_any_system_call_loses_nothing_acknowledged(tmp_path, trials):
    """SIGKILL in place of each call; the next start goes on."""
    for call, end, steps, path in sweep(tmp_path, lambda _: "signal=KILL", ""):
        assert end == 0x80 | 9, (call, end, path)
        go_on(path, promised(steps))
        trials(7)


@needs_strace
def test_no_file_call_goes_past_the_seam(tmp_path):
    """What the kernel saw of the file is what `Files` was asked for: so all faults can be tried."""
    folder, trace = tmp_path / "seen", tmp_path / "trace"
    folder.mkdir()
    path = folder / "run.jsonl"
    calls = "openat,write,pwrite64,writev,truncate,ftruncate,fsync,fdatasync,msync,"
    calls += "rename,renameat,renameat2,link,linkat,unlink,unlinkat"
    printed = run({"count": str(path)}, tmp_path, "-y", "-o", str(trace), "-e", f"trace={calls}")
    asked, seen = Counter(json.loads(printed)), Counter()
    for line in trace.read_text(errors="replace").splitlines():
        if str(folder) in line and ".lock" not in line and " = -1 " not in line:
            # The folder itself is opened to be listed and to be synced.
            name = "folder" if f'"{folder}", ' in line else re.search(r"(\w+)\(", line)[1]
            seen[name] += 1
    missing = 2  # looks for a file that is not there yet: before the lock, and under it

    assert seen == {
        "folder": asked["siblings"] + asked["sync_directory"],
        "openat": asked["open_append"] + asked["open_read"] + asked["create"] - missing,
        "write": asked["write"],
        "fdatasync": asked["sync"],
        "fsync": asked["sync_directory"],
        "rename": asked["replace"],
        "link": asked["link_new"],
        "unlink": asked["unlink"] + asked["link_new"],
    }
