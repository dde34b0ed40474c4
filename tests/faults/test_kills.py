"""SIGKILL at random moments, and at each byte of a record's write."""

import subprocess
import sys
from pathlib import Path

import pytest

from lockstitch import Checkpoint

ROOT = Path(__file__).parents[2]

EACH_BYTE = """
import os, signal, sys
from lockstitch import Checkpoint
from lockstitch._clock import CLOCK
from lockstitch._files import SystemFiles
from lockstitch._journal import STORAGE, Storage
from lockstitch._lock import RunLock

class Dying(SystemFiles):
    left = None
    def write(self, fd, data):
        if self.left is None:
            return super().write(fd, data)
        os.write(fd, bytes(data)[:self.left])
        os.kill(os.getpid(), signal.SIGKILL)

files = Dying()
STORAGE.set(Storage(files, lambda path: RunLock(path, CLOCK.get().wall)))
path = sys.argv[1]
Checkpoint(path).close()
size, acknowledged = 0, 0
while True:
    pid = os.fork()
    if pid == 0:
        checkpoint = Checkpoint(path)
        checkpoint.save(f"before {size}", size)
        files.left = size
        checkpoint.save("x" * 20, {"score": 0.5, "text": "y" * 60})
        os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), status
    with Checkpoint(path) as checkpoint:
        assert list(checkpoint)[-1:] != ["invented"]
        assert f"before {size}" in checkpoint
        done = "x" * 20 in checkpoint
        checkpoint.forget(list(checkpoint))
    assert Checkpoint.verify(path).ok
    assert not [name for name in os.listdir(os.path.dirname(path)) if ".tmp-" in name]
    if done:
        break
    size += 1
print(size)
"""


@pytest.mark.timeout(300)  # it may share its cores with others
def test_a_kill_at_any_byte_of_a_write_loses_nothing_acknowledged(tmp_path, run_child, trials):
    """The torn line is cut off; it counts as done only once its last byte is there."""
    length = int(run_child(EACH_BYTE, tmp_path / "run.jsonl"))
    trials(7, length + 1)

    assert length > 150


@pytest.mark.timeout(300)  # it may share its cores with others
def test_kills_at_random_moments_lose_and_double_nothing(tmp_path, trials):
    """Four processes with four threads each, records up to 1 MB, until all is done."""
    command = [sys.executable, "-m", "tests.faults.killing", str(tmp_path), "300"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    kills, finished = map(int, done.stdout.split())
    trials(8, kills)

    assert kills >= 300
    assert finished
    assert Checkpoint.verify(tmp_path / "shared").ok
