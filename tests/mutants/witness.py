"""A pytest plugin: which code was under test, and which test failed first.

An exit code cannot tell a test that fails from a harness that does: a module that cannot be
imported, a fixture that breaks and a timeout all end with one that is not 0. So this writes down
what was really seen, and what it has not written did not happen.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import lockstitch

#: Where to write, and where the sources under test are.
REPORT, SOURCE = "MUTANT_REPORT", "MUTANT_SOURCE"

#: A mutant that dies of these was written wrong; it says nothing about the tests.
_SLIPS = ("ImportError", "ModuleNotFoundError", "NameError", "SyntaxError", "UnboundLocalError")


def pytest_configure() -> None:
    """Refuse to go on with any other copy of the library, here or in a child process."""
    command = [sys.executable, "-c", "import lockstitch; print(lockstitch.__file__)"]
    child = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    for found in (lockstitch.__file__, child):
        if not Path(found).is_relative_to(os.environ[SOURCE]):
            pytest.exit(f"{found} is under test, and not the copy", returncode=70)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write down the first failure of a test; that of a fixture's beginning is not one."""
    file = Path(os.environ[REPORT])
    if not report.failed or report.when == "setup" or file.exists():
        return
    crash = getattr(report.longrepr, "reprcrash", None)
    message = str(crash.message if crash is not None else report.longrepr)
    slip = message.startswith(_SLIPS)
    file.write_text(json.dumps({"test": report.nodeid, "message": message, "slip": slip}))
