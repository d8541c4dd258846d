"""Memory of tensors on a CPU: what is freed is kept for the next step.

Left out: huge pages (`environment.py`), and memory of GPUs, which torch keeps itself.
"""

import ctypes
import os
import sys

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
