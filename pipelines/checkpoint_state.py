"""state.json of a checkpoint: where the run stands, and what else is no tensor.

Left out: the tensors (`pipelines.checkpoints`, `pipelines.optimizer_state`).
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from tokenizer.config import config_from_dict, require
from tokenizer.files import read_json


@dataclass(frozen=True)
class CheckpointState:
    """What state.json says. Checks itself."""

    step: int
    """Optimizer steps that were done."""
    processes: int
    threads: int
    """Of each process; sums are rounded otherwise with another number."""
    scaler: dict[str, float] | None = None
    """State of the scaler of gradients, with fp16."""
    skipped: int = 0
    """Steps that were left out, in all and just before the next one; older releases left none out."""
    skipped_in_a_row: int = 0
    model_written: bool | None = None
    """Whether the model that a run ends with was written from this checkpoint; older releases did not say."""

    def __post_init__(self) -> None:
        lowest = {"step": 0, "processes": 1, "threads": 1, "skipped": 0, "skipped_in_a_row": 0}
        for name, low in lowest.items():
            value = asdict(self)[name]
            require(value >= low, f"{name} is {value}, expected {low} or more")


def read_state(path: Path) -> CheckpointState:
    """state.json at a path; `ValueError` if it is missing or anything in it cannot be."""
    return config_from_dict(CheckpointState, read_json(path), str(path))
