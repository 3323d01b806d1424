"""Memory of this process, for tests that nothing is left behind."""

import ctypes
import gc
import os
from pathlib import Path

STATM = Path("/proc/self/statm")


def resident():
    """Returns MiB in memory, after the allocator has given back what it does not need: that alone varies by tens."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
