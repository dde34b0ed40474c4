"""For tests of scripts that use lockstitch: no waiting, no files, and deaths to order.

`crash_everywhere` kills a whole job in every place there is, and says what it lost. The other
helpers are context managers. Each holds for checkpoints and batches that are *made* inside its
`with`, in the same thread or task; the script under test stays as it is.
"""

from ._clock import FakeClock, fake_clock
from ._dying import SimulatedCrash, crash_after
from ._everywhere import crash_everywhere
from ._memory import MemoryFiles, memory_storage

__all__ = [
    "FakeClock",
    "MemoryFiles",
    "SimulatedCrash",
    "crash_after",
    "crash_everywhere",
    "fake_clock",
    "memory_storage",
]
