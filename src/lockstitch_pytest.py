"""A fixture for tests of resumable jobs. pytest finds it by itself where lockstitch is installed.

It stands outside of the package because pytest imports it at every start, and importing any part
of a package imports all that its `__init__` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest


@pytest.fixture
def crash_everywhere() -> Iterator[Callable[[Callable[[], object]], int]]:
    """`lockstitch.testing.crash_everywhere`, with the clock stopped: waits take no time."""
    from lockstitch.testing import crash_everywhere, fake_clock  # noqa: PLC0415 - see above

    with fake_clock():
        yield crash_everywhere
