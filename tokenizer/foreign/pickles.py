"""Checkpoints of VQGANs that their authors left as a pickle: read without running what they hold, and written
as a folder that `Tokenizer.from_pretrained` and the library of their kind take.

Left out: what the authors call their tensors (`authors.py`).
"""

import argparse
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.serialization import safe_globals

from tokenizer.checks import all_finite
from tokenizer.foreign import Family, read_family
from tokenizer.foreign.authors import Checkpoint, Renamed, renamed
from tokenizer.hub.files import CONFIG, folder_beside, write_json
from tokenizer.hub.meta import outline_of
from tokenizer.hub.model import CardInfo
from tokenizer.model import Tokenizer
from tokenizer.variants import shortened

logger = logging.getLogger(__name__)

# Where a checkpoint keeps its weights, the preferred first: averaged ones are what their authors sample with.
PLACES = ("ema", "model", "state_dict")


class Untouched:
    """Stands for a class that a checkpoint only names: nothing of it is run."""


# What checkpoints of pytorch-lightning and of scripts with argparse hold beside their weights.
NAMED: list[Any] = [
    argparse.Namespace,
    (Untouched, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
]


def read_checkpoint(path: Path) -> Checkpoint:
    """The weights in a file of torch.save. `ValueError` for a file that is none, wants code to be run, or
    has no weights."""
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    try:
        with safe_globals(NAMED):
            held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of zip files, of pickles, and of its own checks, in many kinds
        raise ValueError(f"{path}: {_reason(error)}") from error
    place = next((k for k in PLACES if isinstance(held, dict) and isinstance(held.get(k), dict)), "")
    state = held[place] if place else held
    if not isinstance(state, dict) or not state:
        raise ValueError(f"{path}: holds {type(state).__name__}, expected weights by name")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"{path}: {shortened(name)} is {type(value).__name__}, expected a tensor; "
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


# Names of tensors in a message.
SHOWN = 3


def convert(path: Path, output: Path, picture_size: int, card: CardInfo) -> Tokenizer:
    """Write the checkpoint in `path` to the folder `output`, all or nothing; `card` is for its README.md.
    `ValueError` for a file that is no such checkpoint."""
    checkpoint = read_checkpoint(path)
    try:
        found = renamed(checkpoint, picture_size)
        family = read_family(found.config, Path(CONFIG))
        _check_tensors(family, found)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    logger.info("%s: weights in %s", path, checkpoint.place or "the file itself")
    if family.name == "janus_vqgan" and "codebook_l2_norm" not in checkpoint.options:
        logger.info("taken as trained with codebook_l2_norm, LlamaGen's default, of which no tensor tells")
    output.parent.mkdir(parents=True, exist_ok=True)
    beside = folder_beside(output)
    beside.mkdir()
    try:
        write_json(beside / CONFIG, found.config)
        # Each in memory of its own, as the file's may be parts of one.
        state = {
            name: value.clone(memory_format=torch.contiguous_format) for name, value in found.state.items()
        }
        save_file(state, beside / family.weights, metadata={"format": "pt"})
        tok = Tokenizer.from_pretrained(beside)
        tok.save_pretrained(beside, card)
        beside.replace(output)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return tok


def _check_tensors(family: Family, found: Renamed) -> None:
    """`ValueError` that names the first tensors that the library's model does not have alike; those that are
    linear there may be convolutions of one pixel, and become linear."""
    expected = outline_of(family.whole).state_dict()
    unknown = [found.old[name] for name in found.state if name not in expected]
    missing = [name for name in expected if name not in found.state]
    if unknown or missing:
        parts = [
            f"{len(names)} {what}: {', '.join(shortened(n) for n in names[:SHOWN])}"
            for what, names in (("unknown", unknown), (f"missing for {family.model_class}", missing))
            if names
        ]
        raise ValueError(f"has not the tensors of a {family.model_class}: {'; '.join(parts)}")
    for name, wanted in expected.items():
        value = found.state[name]
        if value.shape[2:] == (1, 1) and value.shape[:2] == wanted.shape:
            found.state[name] = value = value[:, :, 0, 0]
        if value.shape != wanted.shape:
            raise ValueError(
                f"tensor {found.old[name]!r} has shape {tuple(value.shape)}, expected {tuple(wanted.shape)} "
                "by the others"
            )
        if not value.is_floating_point() or not all_finite(value):
            raise ValueError(f"tensor {found.old[name]!r} is not of finite floating-point numbers")
