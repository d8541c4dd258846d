"""What the processes of a run must agree on: options, data, models, what only one of them can find out, and
sums and means over all.

Left out: signals (`signals.py`).
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from pipelines.run.command_line import flag_of, flatten, in_words, options_to_dict

T = TypeVar("T")

# Options that machines may have their own of: places of what is compared by its content, and loaders.
OF_MACHINES = frozenset({"output", "resume", "tokens", "tokenizer", "prior", "data.path", "data.workers"})


def require_same_options(accelerator: Accelerator, options: Any) -> None:
    """`ValueError` on every process that names an option which two of them differ in, as when machines were
    started by different commands: they would wait for each other, or each learn something else."""
    found = gather_object([flatten(options_to_dict(options))])
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
    found = gather_object([said])
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
    """`values`, on the CPU, summed over all processes."""
    summed: Tensor = accelerator.reduce(values.to(accelerator.device), reduction="sum")
    return summed.cpu()
