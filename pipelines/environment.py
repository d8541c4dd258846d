"""Variables of the environment that torch and OpenMP read when they are loaded, which scripts set before.

Left out: what can be set later (`heap.py`).
"""

import os
import sys

# Turns of a thread that waits for the next product before it sleeps: some microseconds. OpenMP's own default,
# 300,000, makes steps beside another busy process several times as slow, as whoever waits holds a core. Not
# turning at all (OMP_WAIT_POLICY=PASSIVE) is no better there, and costs a quarter to a half of the time on a
# quiet virtual machine, where waking a thread takes long. Measured figures: README, under "Threads".
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
