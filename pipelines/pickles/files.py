"""Checkpoints of torch, read without running what they hold.

Left out: what their tensors are called (`names.py`).
"""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.serialization import safe_globals

from tokenizer.variants import shortened

# Where a checkpoint keeps its weights, the preferred first: averaged ones are what their authors sample with.
PLACES = ("ema", "model", "state_dict")


class Untouched:
    """Stands for a class that a checkpoint only names: nothing of it is run."""


# What checkpoints of pytorch-lightning and of scripts with argparse hold beside their weights.
NAMED: list[Any] = [
    argparse.Namespace,
    (Untouched, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
]


class Checkpoint(NamedTuple):
    """Weights by name, where in the file they stood ("" for the file itself), and the options of the run that
    wrote them, as far as it tells."""

    state: dict[str, Tensor]
    place: str
    options: Mapping[str, Any]


def read_checkpoint(path: Path) -> Checkpoint:
    """The weights in a file of torch.save. `ValueError` for a file that is none, wants code to be run, or
    has no weights."""
    if not path.is_file():
        raise ValueError(f"--from-pickle {path}: there is no such file")
    try:
        with safe_globals(NAMED):
            held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of zip files, of pickles, and of its own checks, in many kinds
        raise ValueError(f"--from-pickle {path}: {_reason(error)}") from error
    place = next((k for k in PLACES if isinstance(held, dict) and isinstance(held.get(k), dict)), "")
    state = held[place] if place else held
    if not isinstance(state, dict) or not state:
        raise ValueError(f"--from-pickle {path}: holds {type(state).__name__}, expected weights by name")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"--from-pickle {path}: {shortened(name)} is {type(value).__name__}, expected a tensor; "
                f"weights are looked for in {', '.join(PLACES)}, and in the file itself"
            )
    options = held.get("args", {}) if place else {}
    return Checkpoint(dict(state), place, vars(options) if isinstance(options, argparse.Namespace) else {})


def _reason(error: Exception) -> str:
    """Why a file was not read, without torch's advice to read it in another way."""
    text = " ".join(str(error).split())
    wanted = re.search(r"GLOBAL `?([\w.]+)", text)
    if wanted is not None:
        return (
            f"wants {wanted[1]} to be run or made, beside its tensors, which is never done here; where you "
            "trust it, load it yourself and torch.save its state_dict alone"
        )
    text = text.rpartition("WeightsUnpickler error: ")[2].partition(" Check the documentation")[0]
    reason = text.partition(". ")[0] or type(error).__name__
    return f"not a checkpoint of torch that holds tensors alone ({reason:.150}); download it again"
