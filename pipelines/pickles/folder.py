"""A checkpoint as a folder that `Tokenizer.from_pretrained` and the library of its kind take.

Left out: reading the file (`files.py`) and what its tensors are called (`names.py`).
"""

import logging
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from pipelines.pickles.files import read_checkpoint
from pipelines.pickles.names import Renamed, renamed
from tokenizer import Tokenizer
from tokenizer.checks import all_finite
from tokenizer.foreign import Family, read_family
from tokenizer.hub.files import CONFIG, folder_beside, write_json
from tokenizer.hub.meta import outline_of
from tokenizer.hub.model import CardInfo
from tokenizer.variants import shortened

logger = logging.getLogger(__name__)

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
        raise ValueError(f"--from-pickle {path}: {error}") from error
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
