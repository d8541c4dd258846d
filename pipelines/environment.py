"""Variables of the environment that torch and OpenMP read when they are loaded, which scripts set before.

Left out: what can be set later (`heap.py`).
"""

import os
import sys


def prepare_environment() -> None:
    """Set what is unset; call it before torch is imported.

    OMP_WAIT_POLICY: threads wait without spinning. Beside other work, steps whose threads spin take many
    times as long; what PASSIVE costs on a quiet machine stands in the README, under "Threads".
    THP_MEM_ALLOC_ENABLE: torch asks Linux for huge pages for large tensors, a tenth or so of the time of
    training on a CPU.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if sys.platform.startswith("linux"):
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
