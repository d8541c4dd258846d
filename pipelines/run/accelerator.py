"""An Accelerator for scripts that do not train, and its log lines.

Left out: that of trainings (`training/setup.py`).
"""

import logging
import sys
from typing import Any

from accelerate import Accelerator, InitProcessGroupKwargs

from pipelines.run.processes import STEP_TIMEOUT, require_same_options


def process_group() -> InitProcessGroupKwargs:
    """How processes are connected: none waits for long for another in the midst of a step."""
    return InitProcessGroupKwargs(timeout=STEP_TIMEOUT)


def plain_accelerator(options: Any) -> Accelerator:
    """An Accelerator, with its log lines, for scripts that do not train; `require_same_options`."""
    accelerator = Accelerator(kwargs_handlers=[process_group()])
    quiet_logging(accelerator)
    require_same_options(accelerator, options)
    return accelerator


def quiet_logging(accelerator: Accelerator) -> None:
    """Messages as plain lines on stderr, from the main process only; errors from all."""
    level = logging.INFO if accelerator.is_main_process else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr, force=True)
    for noisy in ("httpx", "httpx2", "torch.distributed", "accelerate", "matplotlib", "PIL"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
