"""Draw new data: from a prior (`python pipelines/sample.py --prior DIR`) or from a VAE (`--tokenizer DIR`).

Left out: measures of the samples (`evaluate.py`).
"""

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from torch import Tensor

from pipelines.cli import parse, run
from pipelines.models import load_models
from pipelines.report import progress, sample_sheet
from pipelines.sound_report import listening_page, mel_sheet, write_wavs
from pipelines.training import quiet_logging
from prior import Prior
from prior.continuation import continue_codes
from prior.decoder import Weights
from prior.sampling import Choice, SamplingOptions
from tokenizer import Tokenizer
from tokenizer.config import require
from tokenizer.distributed import keyed_generator

logger = logging.getLogger(__name__)

# Pictures in a line of the sheet; a class with more takes several lines.
COLUMNS = 12
SHEET, PAGE = "samples.png", "samples.html"
# Clips of sound on the page and the sheet, and seconds of each; all are written whole as files.
HEARD, HEARD_SECONDS = 24, 20


@dataclass(frozen=True)
class SampleOptions:
    """Options of sample.py."""

    prior: str = ""
    """Folder or Hub id of a prior."""
    tokenizer: str = ""
    """Folder or Hub id of the tokenizer; left out, the one that the prior names. Alone: a VAE to draw from.
    """
    output: Path = Path("runs/samples")
    """Folder for the samples, as files, and as the sheet samples.png (sound: also the page samples.html)."""
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
    min_p: float | None = None
    """Draw from the codes that are at least so many times as likely as the likeliest one, 0 to 1."""
    seconds: float | None = None
    """Sound: seconds to draw. Left out: the prior's window. More are drawn window by window."""
    prefix: str = ""
    """Sound: a file that every sample continues; --seconds are those after it."""
    cfg_scale: float = 1.0
    """Classifier-free guidance: above 1 follows the label more closely. Needs labels."""
    cfg_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Guidance from the first code on, or growing from none to --cfg-scale at the last one."""
    weights: Weights = "full"
    """How the prior reads its weights: as they are; in bf16, faster for batches; or rounded to int8, faster
    for one sample at once (on a CPU). Both draw a little other codes."""
    compile: bool = False
    """Compile the loops that draw one or two samples at once on a CPU (needs numba); the first one then takes
    some seconds, and long ones, or many, less in all."""
    seed: int = 0
    """Decides all noise."""
    batch_size: int = 64
    """Samples drawn at once."""

    def __post_init__(self) -> None:
        require(self.num >= 1, f"num is {self.num}, expected 1 or more")
        require(self.batch_size >= 1, f"batch_size is {self.batch_size}, expected 1 or more")
        Choice(**self.choice)  # checks itself
        seconds = self.seconds
        require(seconds is None or 0 < seconds <= 86400, f"seconds is {seconds}, expected above 0, to 86400")

    @property
    def choice(self) -> SamplingOptions:
        """How codes are chosen, for the prior."""
        return SamplingOptions(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            cfg_scale=self.cfg_scale,
            cfg_schedule=self.cfg_schedule,
        )


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
    if not tok.modality.sample_rate and (options.seconds or options.prefix):
        raise ValueError("--seconds and --prefix are for sound; this tokenizer is for pictures")
    rows = sample_prior(options, prior, tok) if prior is not None else sample_vae(options, tok)
    if accelerator.is_main_process:
        write_samples(options.output, tok, rows)


def sample_prior(options: SampleOptions, prior: Prior, tok: Tokenizer) -> list[tuple[str, Tensor]]:
    """Per label its name and samples (num, C, *size) in [-1, 1]."""
    prior = prior.for_sampling(options.weights, options.compile)
    labels = prior.config.class_names if options.label == ("all",) else options.label
    if options.label == ("all",) and not labels:
        raise ValueError("--label all: this prior has no classes")
    indices = [label_number(prior, label) for label in labels] or [-1]
    names = [prior.config.class_names[i] if i >= 0 else "no class" for i in indices]
    prefix = tok.encode(tok.preprocess(options.prefix)) if options.prefix else None
    rows = []
    bar = progress(len(indices) * options.num, "sample")
    for name, index in zip(names, indices, strict=True):
        parts = []
        # One stream per label, so that a sample depends neither on the other labels nor on the batch size.
        generator = keyed_generator(options.seed, index)
        for start in range(0, options.num, options.batch_size):
            count = min(options.batch_size, options.num - start)
            codes = draw_codes(options, prior, tok, count, index, prefix, generator)
            parts.append(decoded(tok, codes).cpu())
            bar.update(count)
        rows.append((name, torch.cat(parts)))
    bar.close()
    return rows


def draw_codes(
    options: SampleOptions,
    prior: Prior,
    tok: Tokenizer,
    count: int,
    label: int,
    prefix: Tensor | None,
    generator: torch.Generator,
) -> Tensor:
    """Codes (count, K, *grid): of a picture, or of the seconds of sound that were asked for, after `prefix`
    (1, K, t)."""
    if not tok.modality.sample_rate:
        return prior.sample(
            count,
            label=label,
            generator=generator,
            **options.choice,
        )
    frame_rate = tok.modality.sample_rate / tok.stride
    new = prior.config.grid[0] if options.seconds is None else max(1, round(options.seconds * frame_rate))
    return continue_codes(
        prior,
        count,
        new + (0 if prefix is None else prefix.shape[2]),
        label=label,
        prefix=prefix,
        generator=generator,
        **options.choice,
    )


def decoded(tok: Tokenizer, codes: Tensor) -> Tensor:
    """codes (B, K, *grid) → (B, C, *size): pictures of the size trained on, sound of the codes' length."""
    return tok.decode(codes, None if tok.modality.sample_rate else tok.modality.size)


def label_number(prior: Prior, label: str) -> int:
    """The number of a class that a person gave by name, or by number if no class has that name."""
    if label in prior.config.class_names or not label.lstrip("-").isdigit():
        return prior.label_index(label)
    return prior.label_index(int(label))


def sample_vae(options: SampleOptions, tok: Tokenizer) -> list[tuple[str, Tensor]]:
    """`num` samples decoded from z ~ N(0, I)."""
    if tok.bottleneck.num_codebooks:
        raise ValueError(
            f"{options.tokenizer} has codes; new codes come from a prior: give --prior DIR as well"
        )
    for name, value, neutral in (
        ("label", options.label, ()),
        ("top-k", options.top_k, None),
        ("top-p", options.top_p, None),
        ("min-p", options.min_p, None),
        ("cfg-scale", options.cfg_scale, 1.0),
        ("cfg-schedule", options.cfg_schedule, "constant"),
        ("weights", options.weights, "full"),
        ("compile", options.compile, False),
    ):
        if value != neutral:
            raise ValueError(
                f"--{name} is for priors; a VAE is no prior, and has no classes and no codes to choose from"
            )
    if options.prefix:
        raise ValueError("--prefix is for priors; a VAE draws the whole at once")
    size = tok.modality.size
    if options.seconds is not None:
        size = (max(1, round(options.seconds * tok.modality.sample_rate)),)
    shape = (tok.bottleneck.out_dim, *(-(-n // tok.stride) for n in size))
    latents = options.temperature * torch.randn(
        (options.num, *shape), generator=keyed_generator(options.seed)
    )
    with torch.no_grad():
        parts = [tok.decode_latents(z.to(tok.device), size).cpu() for z in latents.split(options.batch_size)]
    return [("samples", torch.cat(parts))]


def write_samples(folder: Path, tok: Tokenizer, rows: list[tuple[str, Tensor]]) -> None:
    """Every sample as a file of its own, and all of them on one sheet (pictures) or page (sound)."""
    folder.mkdir(parents=True, exist_ok=True)
    write = write_sounds if tok.modality.sample_rate else write_pictures
    first = write(folder, tok, rows)
    logger.info("%d samples in %s; look at %s", sum(len(x) for _, x in rows), folder, first)


def write_pictures(folder: Path, tok: Tokenizer, rows: list[tuple[str, Tensor]]) -> Path:
    """samples.png (a row per class) and every picture as a PNG; returns the former's path."""
    lines = [(name if i == 0 else "", part) for name, x in rows for i, part in enumerate(x.split(COLUMNS))]
    used = set[str]()
    for row, (name, x) in enumerate(rows):
        stem = re.sub(r"[^\w-]+", "-", name)
        stem = f"{stem}-{row}" if stem in used else stem
        used.add(stem)
        for i, picture in enumerate(tok.postprocess(x)):
            picture.save(folder / f"{stem}-{i:04d}.png")
    # The sheet comes last: a folder with it is complete.
    sample_sheet(lines, folder / SHEET)
    return folder / SHEET


def write_sounds(folder: Path, tok: Tokenizer, rows: list[tuple[str, Tensor]]) -> Path:
    """Every sample as a WAV file; samples.html to listen to the first ones, and samples.png, their
    spectrograms. Returns the page's path."""
    rate = tok.modality.sample_rate
    clips = [(f"{name} {i + 1}", {"": x[i].clamp(-1, 1)}) for name, x in rows for i in range(len(x))]
    write_wavs(folder, clips, rate)
    each = max(1, HEARD // len(rows))  # as many of every class
    heard = [
        (f"{name} {i + 1}", {"": x[i, :, : HEARD_SECONDS * rate].clamp(-1, 1)})
        for name, x in rows
        for i in range(min(each, len(x)))
    ][:HEARD]
    note = (
        f"{len(heard)} of {len(clips)} samples, at most {HEARD_SECONDS} s of each; all are files beside this."
    )
    listening_page(heard, rate, folder / PAGE, "Samples from the prior", [note])
    mel_sheet(heard, rate, folder / SHEET)
    return folder / PAGE


if __name__ == "__main__":
    run(main)
