"""A batch that is killed in its fourth item goes on with the fourth."""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

LOOP = """
import os, signal, sys
from lockstitch import ResumableBatch

with ResumableBatch(sys.argv[1], range(10)) as batch:
    for item in batch:
        print(item, flush=True)
        if item == 3 and "dies" in sys.argv:
            os.kill(os.getpid(), signal.SIGKILL)
        batch.save(item, item * item)
"""


def run(*arguments: str) -> tuple[int, list[str]]:
    """Run the loop in a process of its own; return its exit code and the items it worked on."""
    command = [sys.executable, "-c", LOOP, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)

    return done.returncode, done.stdout.split()


with tempfile.TemporaryDirectory() as folder:
    path = str(Path(folder, "squares.jsonl"))
    first, second, third = run(path, "dies"), run(path), run(path)

print("killed:", first, "resumed:", second, "complete:", third, sep="\n")
if first != (-signal.SIGKILL, list("0123")) or second != (0, list("3456789")) or third != (0, []):
    sys.exit("an item was lost, or paid for twice")
