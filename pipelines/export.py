"""Export a tokenizer, and a prior over its codes, to ONNX: `python pipelines/export.py --tokenizer DIR
--output DIR`; or write a VQGAN that is a pickle as a folder of safetensors: `--from-pickle FILE --output
DIR`.

To ONNX: writes encoder.onnx, decoder.onnx, with --prior also prior.onnx (one cached step), and export.json,
once onnxruntime was seen to agree with torch on held-out data. From a pickle, a checkpoint of
taming-transformers or LlamaGen that is read without running what it holds: writes what diffusers (VQModel) or
transformers (JanusVQVAE) would, which every script takes as --tokenizer.

Left out: running the files without torch (cards/onnx.md shows how).
"""

if __name__ == "__main__":  # before anything imports torch
    from pipelines.run.environment import prepare_environment

    prepare_environment()

import dataclasses
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.data.batches import load_splits
from pipelines.data.config import DataConfig
from pipelines.data.kinds import to_float
from pipelines.graphs.agreement import Agreement, Session, compare_prior, compare_tokenizer
from pipelines.graphs.files import (
    Axis,
    Port,
    described,
    padded,
    require_packages,
    to_onnx,
    versions,
    write,
)
from pipelines.graphs.networks import Decoder, Encoder, check_exportable, padding_of
from pipelines.graphs.step import PriorStep, check_prior
from pipelines.run.command_line import parse, run
from pipelines.run.folder import require_writable
from pipelines.run.models import load_models, require_models
from pipelines.run.processes import plain_accelerator
from prior import Prior
from tokenizer import Tokenizer
from tokenizer.foreign.pickles import convert
from tokenizer.hub.embedded import EMBEDDED
from tokenizer.hub.files import folder_beside, write_json
from tokenizer.hub.model import CardInfo, library_version
from tokenizer.variants import at_least, require

logger = logging.getLogger(__name__)

ENCODER, DECODER, PRIOR, INFO = "encoder.onnx", "decoder.onnx", "prior.onnx", "export.json"
# Stands for the embedded set of the tokenizer's modality.
OWN = f"{EMBEDDED}own"
# By modality and channels; None: any number of them.
OWN_SETS = {("image", 1): "digits", ("image", None): "emoji", ("audio", None): "speech"}


@dataclass(frozen=True)
class ExportOptions:
    """Options of export.py."""

    tokenizer: str = ""
    """Folder or Hub id of a tokenizer, or embedded:NAME; left out, the one that the prior names."""
    prior: str = ""
    """Folder or Hub id of a prior over its codes, or embedded:NAME, of which one step with a cache is
    exported too."""
    from_pickle: Path | None = None
    """Checkpoint of a VQGAN to write as safetensors instead: a .ckpt of taming-transformers, a .pt of
    LlamaGen."""
    picture_size: int = 256
    """With --from-pickle: side of the pictures that it was trained on, which its tensors do not tell."""
    license: str = "unknown"
    """With --from-pickle: licence of its weights, as the Hub names it, for the folder's card."""
    output: Path = Path("runs/onnx")
    """Folder for the files; there may be nothing in it."""
    data: DataConfig = field(default_factory=lambda: DataConfig(path=OWN))
    """Data to check the files on: their held-out part, or all if none is held out. embedded:own stands for
    embedded:digits, emoji or speech, as fits the tokenizer."""
    items: int = 64
    """Examples to check on, the first ones."""
    batch_size: int = 16
    """Pictures per pass of the check; sound goes clip by clip."""

    def __post_init__(self) -> None:
        at_least(self, 1, "items", "batch_size", "picture_size")
        require(
            self.from_pickle is None or not (self.tokenizer or self.prior),
            "--from-pickle reads a checkpoint and writes safetensors, --tokenizer and --prior write ONNX: "
            "give one or the other; the folder that is written can be given as --tokenizer then",
        )


def main() -> None:
    """Check the options, export, compare, and move what is whole to its place."""
    options = parse(ExportOptions, __doc__ or "")
    plain_accelerator(options)  # of which the log is wanted
    warn_of_ignored(options)
    if options.from_pickle is not None:
        return write_folder(options.from_pickle, options)
    require_models(options.prior, options.tokenizer)
    check_output(options.output)
    require_packages()
    prior, tok = load_models(options.prior, options.tokenizer, "cpu")
    check_exportable(tok, options.tokenizer or "the prior's tokenizer")
    if prior is not None:
        check_prior(prior, options.prior)
    data = list(held_out(options, tok))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    beside = folder_beside(options.output)
    beside.mkdir()
    try:
        info = export_tokenizer(tok, beside, data)
        if prior is not None:
            info["files"][PRIOR], info["prior"] = export_prior(prior, beside)
        write_json(beside / INFO, info, allow_nan=False)
        beside.replace(options.output)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    sizes = ", ".join(f"{name} {file['bytes'] / 1e6:.3g} MB" for name, file in info["files"].items())
    logger.info("written to %s: %s", options.output, sizes)


def write_folder(path: Path, options: ExportOptions) -> None:
    """Write a checkpoint as a folder, and say what it is."""
    check_output(options.output)
    notes = f"Written by `export.py --from-pickle` from {path.name}."
    card = CardInfo(title=path.stem, license=options.license, notes=notes)
    tok = convert(path, options.output, options.picture_size, card)
    logger.info(
        "written to %s: %s, %d codes, one for %d × %d pixels, fingerprint %s",
        *(options.output, type(tok.family).__name__, tok.codebook_size, tok.stride, tok.stride),
        tok.fingerprint(),
    )


def warn_of_ignored(options: ExportOptions) -> None:
    """Say which of the options that are given have no use here."""
    if options.from_pickle is None:
        ignored, why = ["picture_size", "license"], "it goes with --from-pickle"
    else:
        ignored, why = ["data", "items", "batch_size"], "nothing is compared with --from-pickle"
    default = ExportOptions()
    for name in ignored:
        if getattr(options, name) != getattr(default, name):
            logger.warning("--%s is ignored: %s", name.replace("_", "-"), why)


def check_output(folder: Path) -> None:
    """`ValueError` for a folder that cannot be written, or has files."""
    require_writable(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"--output {folder} is not empty; choose another, or delete what is in it")


def held_out(options: ExportOptions, tok: Tokenizer) -> Iterator[Tensor]:
    """The data to check on, x (b, C, *size) in [-1, 1], `options.items` examples in all."""
    config = options.data
    if config.path == OWN:
        name, channels = tok.modality.name, tok.modality.channels
        found = OWN_SETS.get((name, channels), OWN_SETS.get((name, None)))
        if found is None:
            raise ValueError(f"no {name} data come with the project; give some to check on: --data.path")
        config = dataclasses.replace(config, path=EMBEDDED + found)
    splits = load_splits(config, tok.modality)
    examples = splits.held_out if len(splits.held_out) else splits.train
    if not len(splits.held_out):
        logger.warning("nothing is held out in %s: checking on all of it", config.path)
    passes = islice(examples.inputs(min(options.batch_size, options.items)), options.items)
    left = options.items
    for x, _ in passes:
        if left <= 0:
            return
        yield to_float(x[:left])
        left -= len(x)


def export_tokenizer(tok: Tokenizer, folder: Path, data: list[Tensor]) -> dict[str, Any]:
    """Write encoder and decoder to a folder and compare them with the tokenizer; what export.json says."""
    modality, stride = tok.modality, tok.stride
    names = tuple(axis.lower() for axis in modality.axes)
    grid: tuple[Axis, ...] = tuple((f"grid_{name}", 1) for name in names)
    sizes: tuple[Axis, ...] = tuple((f"grid_{name}", stride) for name in names)
    x = Port("x", (("batch", 1), modality.channels, *sizes))
    x_hat = Port("x_hat", x.axes)
    if tok.is_discrete:
        coded = [Port("codes", (("batch", 1), tok.num_codebooks, *grid))]
    else:
        width = tok.bottleneck.out_dim
        coded = [Port(name, (("batch", 1), width, *grid)) for name in ("mean", "logvar")]
    into = Port("codes" if tok.is_discrete else "latents", coded[0].axes)
    # Sizes that differ, and of more than 1, which tracing would take for those of all data.
    example = torch.zeros(2, modality.channels, *(stride * (3 + i) for i in range(len(names))))
    with torch.no_grad():
        codes = tok.encode(example) if tok.is_discrete else tok.posterior(example).mean
    logger.info("exporting %s", ENCODER)
    mode = padding_of(tok)
    encoder = to_onnx(Encoder(tok).eval(), ENCODER, [example], [x], coded)
    if stride > 1:
        encoder = padded(encoder, stride, mode, [f"size_{name}" for name in names])
    whole = Port("x", (("batch", 1), modality.channels, *((f"size_{name}", 1) for name in names)))
    write(encoder, folder / ENCODER)
    logger.info("exporting %s", DECODER)
    write(to_onnx(Decoder(tok).eval(), DECODER, [codes], [into], [x_hat]), folder / DECODER)
    found = compare_tokenizer(tok, Session(folder / ENCODER), Session(folder / DECODER), data)
    logger.info("compared with torch: %s", found.in_words())
    facts = (
        {"num_codebooks": tok.num_codebooks, "codebook_size": tok.codebook_size} if tok.is_discrete else {}
    )
    return {
        "tokenloom": library_version(),
        **versions(),
        "files": {
            ENCODER: described(folder / ENCODER, [whole], coded),
            DECODER: described(folder / DECODER, [into], [x_hat]),
        },
        "tokenizer": {
            "fingerprint": tok.fingerprint(),
            "modality": modality.name,
            "bottleneck": tok.config.bottleneck.kind,
            "channels": modality.channels,
            "sample_rate": tok.sample_rate,
            "stride": stride,
            **facts,
            "checked": found.figures,
        },
    }


def export_prior(prior: Prior, folder: Path) -> tuple[Any, dict[str, Any]]:
    """Write a prior's step to a folder and compare it with the prior; what export.json says of the file, and
    of the prior: `steps` has the (codebook, position in raster order) of every step's codes, -1 for none."""
    logger.info("exporting %s", PRIOR)
    config, pattern = prior.config, prior.pattern
    batch: Axis = ("batch", 1)
    one = (config.depth, 2, batch, config.heads, ("before", 1), config.dim // config.heads)
    inputs = [
        Port("codes", (batch, pattern.width)),
        Port("step", (1,)),
        Port("label", (batch,)),
        Port("cache", one),
    ]
    outputs = [
        Port("logits", (batch, pattern.width, config.codebook_size)),
        Port("next_cache", tuple(("after", 1) if a == ("before", 1) else a for a in one)),
    ]
    examples = [
        torch.zeros(2, pattern.width, dtype=torch.int64),
        torch.tensor([3]),
        torch.zeros(2, dtype=torch.int64),
        torch.zeros(config.depth, 2, 2, config.heads, 3, config.dim // config.heads),
    ]
    write(to_onnx(PriorStep(prior).eval(), PRIOR, examples, inputs, outputs), folder / PRIOR)
    found: Agreement = compare_prior(prior, Session(folder / PRIOR))
    logger.info("compared with torch: %s", found.in_words())
    facts = {
        "tokenizer_fingerprint": config.tokenizer_fingerprint,
        "pattern": config.pattern,
        # Of a prior of every order too: `steps` are those of this one.
        "order": "raster",
        "grid": list(config.grid),
        "class_names": list(config.class_names),
        "unconditional": config.unconditional,
        "steps": [[list(code) for code in step] for step in pattern.layout()],
        "checked": found.figures,
    }
    return described(folder / PRIOR, inputs, outputs), facts


if __name__ == "__main__":
    run(main)
