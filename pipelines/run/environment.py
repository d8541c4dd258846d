"""The process a script runs in: variables that torch and OpenMP read when they are loaded, which scripts set
before, and the memory that the C library keeps.
"""

import ctypes
import os
import sys

# Turns of a thread that waits for the next product before it sleeps: some microseconds. OpenMP's own default,
# 300,000, makes steps beside another busy process several times as slow, as whoever waits holds a core. Not
# turning at all (OMP_WAIT_POLICY=PASSIVE) is no better there, and costs a quarter to a half of the time on a
# quiet virtual machine, where waking a thread takes long. Measured figures: cards/speed.md.
TURNS = "1000"


def prepare_environment() -> None:
    """Set what is unset; call it before torch is imported.

    GOMP_SPINCOUNT: threads of OpenMP sleep after `TURNS` turns of waiting, unless OMP_WAIT_POLICY says what
    they are to do. THP_MEM_ALLOC_ENABLE: torch asks Linux for huge pages for large tensors, a tenth or so of
    the time of training on a CPU.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", TURNS)
    if sys.platform.startswith("linux"):
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


# Parameters of mallopt(3): what stays at the end of the heap, and from what size on a block is mapped alone.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 1 << 30
# What people set to tune the allocator themselves.
TUNED_BY = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")


def keep_freed_memory() -> bool:
    """Have glibc reuse the pages of freed tensors, which it else gives back and gets anew, zeroed, at every
    step: a tenth of the time of training small networks on a CPU. Returns whether it will: not with another
    C library, nor where the environment tunes the allocator already."""
    if not sys.platform.startswith("linux") or any(name in os.environ for name in TUNED_BY):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # The block size first: to set only the other one would keep the size from growing by itself.
    return mallopt is not None and all(mallopt(p, KEPT_BYTES) for p in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD))
