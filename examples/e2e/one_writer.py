"""While a process holds a checkpoint, another one is refused, and a reader is not."""

import subprocess
import sys
import tempfile
from pathlib import Path

from lockstitch import Checkpoint

SECOND = """
import sys
from lockstitch import Checkpoint, CheckpointLocked

if Checkpoint(sys.argv[1], read_only=True)["a"].result != 1:
    sys.exit("the reader does not see what is saved")
try:
    Checkpoint(sys.argv[1]).save("a", 2)
except CheckpointLocked as refusal:
    print(refusal)
else:
    sys.exit("two processes write one file")
"""

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "run.jsonl")
    with Checkpoint(path) as checkpoint:
        checkpoint.save("a", 1)
        second = subprocess.run([sys.executable, "-c", SECOND, str(path)], check=False)

sys.exit(second.returncode)
