"""What takes longer than a push may: `python -m tests.faults.nightly [--minutes 60]`.

Ten thousand kills, random programs against all states of the disk, power cuts and failed syncs
on a real ext4 (as root), fuzz guided by coverage. Prints the table of trials; what cannot be done
here is skipped, with its reason.
"""

import argparse
import contextlib
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from lockstitch import Checkpoint

from .deaths import DEATHS, Death, resumed
from .disk import Disk, Killed
from .rows import table
from .workloads import WORKLOADS, User

ROOT = Path(__file__).parents[2]


class Skipped(Exception):
    """This row cannot be tried here."""


def run(*command, seconds, **options):
    """Run a program to its end and return what it printed."""
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False, **options
    )
    if done.returncode:
        raise AssertionError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")

    return done.stdout


def kills(seconds):
    """Row 24: processes killed at random moments."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.faults.killing", folder, "10000", str(seconds)]
        return int(run(*command, seconds=seconds + 300).split()[0])


def random_program(user, chance):
    """Do a random number of random things."""
    for _ in range(chance.randint(1, 6)):
        id = f"i{chance.randrange(4)}"
        match chance.randrange(8):
            case 0:
                user.compact()
            case 1:
                user.forget(id)
            case 2:
                user.reopen()
            case 3:
                user.reopen(config={"n": chance.randrange(3)}, on_config_change="keep")
            case _:
                user.save(
                    id, "x" * chance.choice([0, 5, 60, 700]), status=f"s{chance.randrange(3)}"
                )
    user.close()


def states(seconds):
    """Row 28: every state of the disk in random programs, with deaths before and in between."""
    until, count, seed = time.monotonic() + seconds, 0, random.randrange(1 << 30)
    while time.monotonic() < until and count < 200_000:
        seed += 1
        chance = random.Random(seed)
        try:
            user = User(Disk())
            user.disk.drops = chance.random() < 0.7
            how = chance.choice(list(DEATHS))
            user.disk.before = Death(chance.randrange(30), how)
            with contextlib.suppress(Killed):
                random_program(user, chance)
            user.die()
            user, recorder = resumed(user, WORKLOADS["save"], how)
            user.disk.fine = chance.random() < 0.3
            random_program(user, chance)
            recorder.take()
            count += recorder.judge()
        except BaseException as error:
            error.add_note(f"the seed of the random program is {seed}")
            raise

    return count


@contextlib.contextmanager
def mounted(image, folder):
    """Mount a file with a file system."""
    os.makedirs(folder, exist_ok=True)
    run("mount", "-o", "loop", str(image), str(folder), seconds=60)
    try:
        yield folder
    finally:
        run("umount", str(folder), seconds=60)


def needs_root():
    if os.geteuid() != 0:
        raise Skipped("mounting a file system needs root")
    if shutil.which("mkfs.ext4") is None:
        raise Skipped("mkfs.ext4 is not here")
    with tempfile.TemporaryDirectory() as work:
        new_image(f"{work}/image")
        try:
            with mounted(f"{work}/image", f"{work}/mounted"):
                pass
        except AssertionError as error:
            raise Skipped("no file can be mounted here") from error


def new_image(path):
    """Make a small ext4 in a file."""
    with open(path, "wb") as file:
        file.truncate(8 << 20)
    run("mkfs.ext4", "-q", "-F", path, seconds=60)


#: Saves until it is killed, and tells each id once its save has returned.
SAVER = """
import random, sys
from lockstitch import Checkpoint
checkpoint, number = Checkpoint(sys.argv[1]), 0
number = len(checkpoint)
for id in checkpoint:
    print(id, flush=True)
while True:
    checkpoint.save(f"i{number}", "x" * random.choice([3, 300, 9000]))
    print(f"i{number}", flush=True)
    number += 1
    if number % 20 == 0:
        checkpoint.compact()
    if number % 50 == 0:
        checkpoint.forget(f"i{k}" for k in range(number - 40))
        print(f"-{number - 40}", flush=True)
"""


def power_cuts(seconds):
    """Row 25: a mounted ext4, copied while a process saves: what a power cut leaves of it."""
    needs_root()
    until, count = time.monotonic() + seconds, 0
    with tempfile.TemporaryDirectory() as work:
        image, crashed = f"{work}/image", f"{work}/crashed"
        while time.monotonic() < until:
            new_image(image)
            with mounted(image, f"{work}/live") as live:
                said = open(f"{work}/said", "w+b")
                saver = subprocess.Popen(
                    [sys.executable, "-c", SAVER, f"{live}/run.jsonl"], stdout=said
                )
                try:
                    round_ends = min(until, time.monotonic() + 12)
                    while time.monotonic() < round_ends:
                        time.sleep(random.uniform(0, 0.1))
                        cut_power(saver, image, crashed)
                        check_image(crashed, f"{work}/look", acknowledged(f"{work}/said"))
                        os.kill(saver.pid, signal.SIGCONT)
                        count += 1
                finally:
                    saver.kill()
                    saver.wait()
                    said.close()

    return count


def cut_power(process, image, crashed):
    """Copy what the disk holds at this moment; the process stands still, so it is one moment."""
    os.kill(process.pid, signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)
    shutil.copyfile(image, crashed)


def acknowledged(path):
    """Return the ids that were told as saved and that nobody has asked to forget since."""
    lines = Path(path).read_text(encoding="ascii").split("\n")[:-1]
    ids = {line for line in lines if line and line[0] == "i"}
    forgotten = max((int(line[1:]) for line in lines if line[:1] == "-"), default=0)

    return {id for id in ids if int(id[1:]) >= forgotten}


def check_image(image, folder, ids):
    """Start again on a copy of the file system and compare with what was acknowledged."""
    with mounted(image, folder) as look:
        path = f"{look}/run.jsonl"
        if not ids and not os.path.exists(path):
            return
        with Checkpoint(path) as checkpoint:
            # A forgetting that was under way is not known here: its ids may be gone.
            newest = max((int(id[1:]) for id in ids), default=0)
            missing = {id for id in ids - set(checkpoint) if int(id[1:]) > newest - 30}
            assert not missing, missing
            checkpoint.save("more", 1)
        assert Checkpoint.verify(path).ok
        assert not [name for name in os.listdir(look) if ".tmp-" in name]


#: Only modules that are imported inside are guided by coverage.
FUZZ = """
import atheris
with atheris.instrument_imports(include=["lockstitch"]):
    from tests.faults.fuzz import main
main()
"""


def fuzz(seconds):
    """Row 29: atheris, which is installed into a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            run(
                *[sys.executable, "-m", "pip", "install", "--quiet", "--target", folder, "atheris"],
                seconds=300,
            )
        except AssertionError as error:
            raise Skipped("atheris cannot be installed here") from error
        corpus = f"{folder}/corpus"
        shutil.copytree(Path(__file__).with_name("corpus"), corpus)
        done = subprocess.run(
            [
                *[sys.executable, "-c", FUZZ, corpus],
                *[f"-max_total_time={int(seconds)}", f"-artifact_prefix={folder}/"],
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": folder},
            timeout=seconds + 300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-5000:]
        last = [line for line in done.stderr.splitlines() if line.startswith("Done ")]

        return int(last[0].split()[1])


#: Row, what it does, its share of the time.
PARTS = [(24, kills, 0.25), (28, states, 0.3), (25, power_cuts, 0.2), (29, fuzz, 0.2)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=55, help="for all of it (default: 55)")
    seconds = parser.parse_args().minutes * 60
    logging.getLogger("lockstitch").setLevel(logging.CRITICAL)
    counts, skipped, failed = Counter(), [], False
    for row, part, share in PARTS:
        try:
            counts[row] += part(seconds * share)
        except Skipped as reason:
            skipped.append((row, reason))
        except AssertionError:
            failed = True
            logging.getLogger("nightly").exception("row %d failed", row)
    print("\n".join(table(counts, skipped)))

    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
