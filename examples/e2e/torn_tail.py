"""A line that a crash cut short is dropped, and every line before it is kept."""

import sys
import tempfile
from pathlib import Path

from lockstitch import Checkpoint

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "run.jsonl")
    with Checkpoint(path) as checkpoint:
        checkpoint.save("whole", 1)
    with path.open("a") as file:
        file.write('{"id":"half","status":"o')
    with Checkpoint(path) as checkpoint:
        found = list(checkpoint)

print("found:", found)
if found != ["whole"]:
    sys.exit("a torn tail cost more, or less, than itself")
