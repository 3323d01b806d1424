"""Memory of this process, for tests that nothing is left behind."""

import gc
import os
from pathlib import Path

from deepen_core.members.memory import return_freed

STATM = Path("/proc/self/statm")


def resident():
    """Returns MiB in memory, after the allocator has given back what it does not need: that alone varies by tens."""
    gc.collect()
    return_freed()
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def least_resident(work, times):
    """Returns the least of the MiB in memory after each of some repetitions.

    Single values vary by several MiB, but a leak lifts even the least of them.
    """
    found = []
    for _ in range(times):
        work()
        found.append(resident())
    return min(found)
