"""The fixture that pytest finds by itself, in a project that has only lockstitch installed."""

import subprocess
import sys
from importlib import metadata

import pytest

SOUND = """
from lockstitch import Backoff, ResumableBatch

def test_it_survives(crash_everywhere):
    failed = set()
    def work(item):
        if item not in failed:
            failed.add(item)
            raise ValueError(item)
        return item
    def job():
        failed.clear()
        with ResumableBatch("job", range(3), retry=Backoff(initial=3600), max_wait=7200) as batch:
            batch.run(work)
    assert crash_everywhere(job) > 10
"""

UNSOUND = """
from lockstitch import Checkpoint

def test_it_survives(crash_everywhere):
    def job():
        with Checkpoint("job", fresh=True) as checkpoint:
            checkpoint.save("a")
    crash_everywhere(job)
"""

UNUSED = """
import sys

def test_nothing():
    assert not [name for name in sys.modules if name.partition(".")[0] == "lockstitch"]
"""


@pytest.fixture
def project(tmp_path):
    """Run pytest on a test file, in a folder and a process of its own."""

    def run(text):
        (tmp_path / "test_job.py").write_text(text)
        (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    return run


def test_pytest_finds_it():
    """The entry point names the module."""
    found = [each for each in metadata.entry_points(group="pytest11") if each.name == "lockstitch"]

    assert [each.value for each in found] == ["lockstitch_pytest"]


def test_a_sound_job_passes_without_waiting(project):
    """Hours between retries take no time."""
    done = project(SOUND)

    assert done.returncode == 0, done.stdout


def test_an_unsound_job_fails(project):
    """The report names the item."""
    done = project(UNSOUND)

    assert done.returncode == 1
    assert "paid twice: 'a' in job had its record" in done.stdout


def test_it_costs_nothing_where_nobody_asks_for_it(project):
    """Not one module of lockstitch is imported."""
    done = project(UNUSED)

    assert done.returncode == 0, done.stdout
