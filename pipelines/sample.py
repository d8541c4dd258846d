"""Draw new data: from a prior (`python pipelines/sample.py --prior DIR`) or from a VAE (`--tokenizer DIR`).

Left out: measures of the samples (`evaluate.py`).
"""

import logging
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from pipelines.cli import parse, run
from pipelines.models import load_models
from pipelines.report import progress, sample_sheet
from pipelines.training import quiet_logging
from prior import Prior
from tokenizer import Tokenizer
from tokenizer.config import require
from tokenizer.distributed import keyed_generator

logger = logging.getLogger(__name__)

# Pictures in a line of the sheet; a class with more takes several lines.
COLUMNS = 12
SHEET = "samples.png"


@dataclass(frozen=True)
class SampleOptions:
    """Options of sample.py."""

    prior: str = ""
    """Folder or Hub id of a prior."""
    tokenizer: str = ""
    """Folder or Hub id of the tokenizer; left out, the one that the prior names. Alone: a VAE to draw from.
    """
    output: Path = Path("runs/samples")
    """Folder for the pictures and the sheet samples.png."""
    num: int = 16
    """Samples, per label if there are labels."""
    label: tuple[str, ...] = ()
    """Class names (or numbers), each a row of the sheet; `all` is every class. Left out: no class."""
    temperature: float = 1.0
    """Below 1 is safer, above 1 more varied; 0 takes the likeliest codes."""
    top_k: int | None = None
    """Draw from the so many likeliest codes only."""
    top_p: float | None = None
    """Draw from the likeliest codes that together have this probability."""
    cfg_scale: float = 1.0
    """Classifier-free guidance: above 1 follows the label more closely. Needs labels."""
    seed: int = 0
    """Decides all noise."""
    batch_size: int = 64
    """Samples drawn at once."""

    def __post_init__(self) -> None:
        require(self.num >= 1, f"num is {self.num}, expected 1 or more")
        require(self.batch_size >= 1, f"batch_size is {self.batch_size}, expected 1 or more")


def main() -> None:
    """Draw, decode, write."""
    options = parse(SampleOptions, __doc__ or "")
    accelerator = Accelerator()
    quiet_logging(accelerator)
    if (options.output / SHEET).exists():
        raise ValueError(
            f"{options.output} already holds samples; choose another --output or delete that folder"
        )
    prior, tok = load_models(options.prior, options.tokenizer, accelerator.device)
    rows = sample_prior(options, prior, tok) if prior is not None else sample_vae(options, tok)
    if accelerator.is_main_process:
        write_samples(options.output, tok, rows)


def sample_prior(options: SampleOptions, prior: Prior, tok: Tokenizer) -> list[tuple[str, Tensor]]:
    """Per label its name and pictures (num, C, *size) in [-1, 1]."""
    labels = prior.config.class_names if options.label == ("all",) else options.label
    if options.label == ("all",) and not labels:
        raise ValueError("--label all: this prior has no classes")
    indices = [label_number(prior, label) for label in labels] or [-1]
    names = [prior.config.class_names[i] if i >= 0 else "no class" for i in indices]
    rows = []
    bar = progress(len(indices) * options.num, "sample")
    for name, index in zip(names, indices, strict=True):
        parts = []
        # One stream per label, so that a sample depends neither on the other labels nor on the batch size.
        generator = keyed_generator(options.seed, index)
        for start in range(0, options.num, options.batch_size):
            count = min(options.batch_size, options.num - start)
            codes = prior.sample(
                count,
                label=index,
                temperature=options.temperature,
                top_k=options.top_k,
                top_p=options.top_p,
                cfg_scale=options.cfg_scale,
                generator=generator,
            )
            parts.append(tok.decode(codes, tok.modality.size).cpu())
            bar.update(count)
        rows.append((name, torch.cat(parts)))
    bar.close()
    return rows


def label_number(prior: Prior, label: str) -> int:
    """The number of a class that a person gave by name, or by number if no class has that name."""
    if label in prior.config.class_names or not label.lstrip("-").isdigit():
        return prior.label_index(label)
    return prior.label_index(int(label))


def sample_vae(options: SampleOptions, tok: Tokenizer) -> list[tuple[str, Tensor]]:
    """`num` pictures decoded from z ~ N(0, I)."""
    if tok.bottleneck.num_codebooks:
        raise ValueError(
            f"{options.tokenizer} has codes; new codes come from a prior: give --prior DIR as well"
        )
    for name, value, neutral in (
        ("label", options.label, ()),
        ("top-k", options.top_k, None),
        ("top-p", options.top_p, None),
        ("cfg-scale", options.cfg_scale, 1.0),
    ):
        if value != neutral:
            raise ValueError(f"--{name} is for priors; a VAE has no classes and no codes to choose from")
    size = tok.modality.size
    shape = (tok.bottleneck.out_dim, *(-(-n // tok.stride) for n in size))
    latents = options.temperature * torch.randn(
        (options.num, *shape), generator=keyed_generator(options.seed)
    )
    with torch.no_grad():
        parts = [tok.decode_latents(z.to(tok.device), size).cpu() for z in latents.split(options.batch_size)]
    return [("samples", torch.cat(parts))]


def write_samples(folder: Path, tok: Tokenizer, rows: list[tuple[str, Tensor]]) -> None:
    """samples.png (a row per class) and every picture as a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [(name if i == 0 else "", part) for name, x in rows for i, part in enumerate(x.split(COLUMNS))]
    sample_sheet(lines, folder / SHEET)
    used = set[str]()
    for row, (name, x) in enumerate(rows):
        stem = re.sub(r"[^\w-]+", "-", name)
        stem = f"{stem}-{row}" if stem in used else stem
        used.add(stem)
        for i, picture in enumerate(tok.postprocess(x)):
            picture.save(folder / f"{stem}-{i:04d}.png")
    count = sum(len(x) for _, x in rows)
    logger.info("%d samples in %s; look at %s", count, folder, folder / SHEET)


if __name__ == "__main__":
    run(main)
