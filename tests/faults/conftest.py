"""Counting trials, and the table of them at the end."""

import logging
import os
from collections import Counter

import pytest

from .rows import table

#: These faults need signals, limits and forks.
collect_ignore = (
    []
    if os.name == "posix"
    else [
        "test_disk_full.py",
        "test_interrupts.py",
        "test_kills.py",
        "test_surroundings.py",
        "test_system_calls.py",
    ]
)


@pytest.fixture
def trials(request):
    """Return a function that counts trials of a row; they add up over all tests and processes."""

    def count(row, number=1):
        request.node.user_properties.append(("trials", [row, number]))

    return count


@pytest.fixture(autouse=True)
def quiet():
    """Let torn tails and failed syncs go untold: there are tens of thousands."""
    logger = logging.getLogger("lockstitch")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(before)


def pytest_terminal_summary(terminalreporter):
    """Print how many trials each row has had."""
    counts = Counter()
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        if report.when == "call":
            for name, value in report.user_properties:
                if name == "trials":
                    counts[value[0]] += value[1]
            counts[22] += 1
    if counts:
        terminalreporter.section("trials per kind of fault")
        terminalreporter.write_line("\n".join(table(counts)))
