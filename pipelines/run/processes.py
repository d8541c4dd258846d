"""What the processes of a run must agree on: options, data, models, what only one of them can find out, and
sums and means over all; and how long they wait for each other. The Accelerator of scripts that do not train.

Left out: signals (`signals.py`), and the Accelerator of trainings (`training/setup.py`).
"""

import logging
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import lru_cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from pipelines.run.command_line import flag_of, flatten, in_words
from tokenizer.variants import config_to_dict

T = TypeVar("T")

# Options that machines may have their own of: places of what is compared by its content, and loaders.
OF_MACHINES = frozenset({"output", "resume", "tokens", "tokenizer", "prior", "data.path", "data.workers"})

# How long a collective waits: in the midst of a step processes are seconds apart, and NCCL does not notice
# by itself that a machine is lost. (Not ten minutes, which accelerate takes for no wish at all.)
STEP_TIMEOUT = timedelta(minutes=5)
# How long processes wait where one has more to do than the others, such as a report or a long sound.
MEETING_TIMEOUT = timedelta(hours=6)


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


def meet(accelerator: Accelerator) -> None:
    """Wait until all processes are here, for hours if need be. Every process must call it, before the first
    collective after what some do longer than others; and once in the beginning, when none is late."""
    if accelerator.num_processes > 1:
        dist.barrier(_meeting_group(accelerator, dist.group.WORLD))


@lru_cache(maxsize=1)
def _meeting_group(accelerator: Accelerator, _: object) -> Any:
    """A group over all processes of the group of this run, which is patient; on CPUs, whatever trains."""
    # To connect they wait as long, even for one that has ended; so all must be there first.
    accelerator.wait_for_everyone()
    return dist.new_group(backend="gloo", timeout=MEETING_TIMEOUT)


def gather_objects(accelerator: Accelerator, value: T) -> list[T]:
    """What every process has, by rank, on every one; some may have had longer to do for it than others."""
    meet(accelerator)
    # accelerate gathers the items of an object, so each process gives a list of one.
    gathered: list[T] = gather_object([value])
    return gathered


def require_same_options(accelerator: Accelerator, options: Any) -> None:
    """`ValueError` on every process that names an option which two of them differ in, as when machines were
    started by different commands: they would wait for each other, or each learn something else."""
    found = gather_objects(accelerator, flatten(config_to_dict(options)))
    for name in sorted({name for values in found for name in values} - OF_MACHINES):
        for process, values in enumerate(found):
            if values.get(name) != found[0].get(name):
                raise ValueError(
                    f"{flag_of(name)} is {found[0].get(name)!r} in process 0 and {values.get(name)!r} in "
                    f"process {process}; give every machine the same options"
                )


def load_alike(accelerator: Accelerator, what: str, load: Callable[[], T], digest: Callable[[T], str]) -> T:
    """What `load` gives, which must have the same digest on all processes; `what` is it in words.

    `ValueError` or `OSError` on every process if it does not, or if `load` raises one of them on any process:
    none is left waiting for others that are gone.
    """
    loaded, own, said = [], None, ("", "")
    try:
        loaded.append(load())
        said = (digest(loaded[0]), "")
    except (ValueError, OSError) as error:
        own, said = error, ("", in_words(error))
    found = gather_objects(accelerator, said)
    if own is not None:
        raise own
    for process, (_, problem) in enumerate(found):
        if problem:
            raise ValueError(f"process {process}: {problem}")
    if len({value for value, _ in found}) > 1:
        raise ValueError(
            f"{what} are not the same on all {accelerator.num_processes} processes; are all files there, "
            "readable and unchanged on every machine?"
        )
    return loaded[0]


def on_main(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """What `work` returns on the main process, on every one; its `ValueError` or `OSError` too, as a
    `ValueError`."""
    answer: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            answer[1] = work()
        except (OSError, ValueError) as error:
            answer[0] = in_words(error)
    meet(accelerator)
    # Every process learns of the failure, so that none is left waiting for the others.
    broadcast_object_list(answer)
    if answer[0] is not None:
        raise ValueError(answer[0])
    result: T = answer[1]
    return result


def mean_over_processes(accelerator: Accelerator, values: Mapping[str, Tensor]) -> dict[str, float]:
    """Scalars averaged over all processes, in one collective."""
    stacked = torch.stack([v.detach().float().reshape(()) for v in values.values()])
    reduced = accelerator.reduce(stacked, reduction="mean")
    return dict(zip(values, (float(v) for v in reduced), strict=True))


def sum_over_processes(accelerator: Accelerator, values: Tensor) -> Tensor:
    """`values`, on the CPU, summed over all processes, of which some may have had more to sum than others."""
    meet(accelerator)
    summed: Tensor = accelerator.reduce(values.to(accelerator.device), reduction="sum")
    return summed.cpu()
