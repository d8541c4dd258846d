"""Draw new data: from a prior (`python pipelines/sample.py --prior DIR`) or from a VAE (`--tokenizer DIR`);
without either, emoji, ten of each class, from models that ship with the project.

Left out: measures of the samples (`evaluate.py`).
"""

if __name__ == "__main__":  # before anything imports torch
    from pipelines.run.environment import prepare_environment

    prepare_environment()

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from accelerate import Accelerator

from pipelines.reports.kinds import Drawn, report_of
from pipelines.reports.neighbours import training_items, write_neighbours
from pipelines.run.command_line import NOTHING, is_given, parse, run
from pipelines.run.folder import require_writable
from pipelines.run.generator import Generator
from pipelines.run.models import load_models, require_models
from pipelines.run.processes import quiet_logging
from pipelines.run.progress import progress
from prior import Prior
from prior.sampling.choice import ByName, Choice, CodeOptions, SamplingOptions
from prior.sampling.weights import Weights
from tokenizer import Tokenizer
from tokenizer.distributed import keyed_generator
from tokenizer.hub.embedded import EMBEDDED
from tokenizer.variants import at_least, require

logger = logging.getLogger(__name__)

# Of every modality: what is written last.
SHEET = "samples.png"
# Samples from one class to another, both included.
BETWEEN = 9


@dataclass(frozen=True)
class SampleOptions:
    """Options of sample.py."""

    prior: str = ""
    """Folder or Hub id of a prior, or one that ships with the project: embedded:NAME. Left out, with
    --tokenizer left out too: embedded:emoji, of which other defaults hold (--num 10, --cfg-scale 2,
    --temperature 0.9, and every class)."""
    tokenizer: str = ""
    """Folder or Hub id of the tokenizer (ID:FOLDER for one in a folder within), or embedded:NAME; left out,
    the one that the prior names. Alone: a VAE to draw from."""
    output: Path = Path("runs/samples")
    """Folder for the samples, as files, and as the sheet samples.png (sound: also the page samples.html)."""
    num: int = 16
    """Samples, per label if there are labels."""
    label: Annotated[tuple[str, ...], NOTHING] = ()
    """Class names (or numbers), each a row of the sheet; `all` is every class, or the one of that name if
    there is one; "*" is every class in any case. Left out: no class."""
    interpolate: Annotated[tuple[str, ...], NOTHING] = ()
    """Two classes: each of --num rows goes from one to the other by the same random numbers."""
    temperature: float = 1.0
    """Below 1 is safer, above 1 more varied; 0 takes the likeliest codes."""
    top_k: int | None = None
    """Draw only from this many of the likeliest codes."""
    top_p: float | None = None
    """Draw from the likeliest codes that together have this probability."""
    min_p: float | None = None
    """Draw only from codes with at least this fraction of the likeliest one's probability, 0 to 1."""
    seconds: float | None = None
    """Sound and series: seconds to draw. Left out: the prior's window. More are drawn window by window."""
    prefix: str = ""
    """Sound and series: a file that every sample continues; --seconds are those after it."""
    cfg_scale: float = 1.0
    """Classifier-free guidance: above 1 follows the label more closely. Needs labels."""
    cfg_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Guidance from the first code on, or growing from none to --cfg-scale at the last one."""
    steps: int | None = None
    """Draw in so many steps, several positions in each, which is faster; 8 to 16 suit tens of positions.
    Needs a prior trained with --model.order any. Left out: one position at a time, in raster order."""
    order: ByName | None = None
    """With such a prior: which positions come next, any of them or those whose codes are likeliest. Left out:
    random with --steps."""
    choice_temperature: float = Choice.choice_temperature
    """--order confidence: noise in choosing positions, which fades to none at the last step. 0: none."""
    weights: Weights = "full"
    """How the prior reads its weights: as they are; rounded to bf16; or to int8, the fastest for one sample
    at once (on a CPU). Both draw a little other codes, which without --compile depend on how many are drawn
    at once too."""
    compile: bool = False
    """Compile the steps of the prior (on a CPU: needs numba). They start after some seconds and then take
    half the time or less; only more than 30 samples at once in bf16 are faster without."""
    tokens: str = ""
    """Folder of the tokens that the prior learnt: each sample is shown above the training item nearest to it
    (neighbours.png; sound: neighbours.html), so that you see what is new."""
    seed: int = 0
    """Decides all noise."""
    batch_size: int = 64
    """Samples drawn at once."""

    def __post_init__(self) -> None:
        at_least(self, 1, "num", "batch_size")
        Choice(**self.choice)  # checks itself
        between = self.interpolate
        require(len(between) in (0, 2), f"interpolate is {between}, expected two classes or nothing")
        clash = self.label or self.prefix or self.seconds
        require(not (between and clash), "--interpolate goes without --label, --prefix and --seconds")
        require(
            not (between and (self.steps or self.order)),
            "--interpolate draws in raster order; leave --steps and --order out",
        )
        seconds = self.seconds
        require(seconds is None or 0 < seconds <= 86400, f"seconds is {seconds}, expected above 0, to 86400")

    @property
    def of_codes(self) -> CodeOptions:
        """How a code is chosen, for the prior."""
        return CodeOptions(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            cfg_scale=self.cfg_scale,
            cfg_schedule=self.cfg_schedule,
        )

    @property
    def choice(self) -> SamplingOptions:
        """And which positions are drawn when."""
        return {
            **self.of_codes,
            "steps": self.steps,
            "order": self.order,
            "choice_temperature": self.choice_temperature,
        }


# What is drawn where nobody says of what.
SHOWN = SampleOptions(prior=f"{EMBEDDED}emoji", label=("*",), num=10, cfg_scale=2.0, temperature=0.9)
# Flags with which something else is meant.
OTHERS = ("--prior", "--tokenizer", "--config", "--interpolate")


def main() -> None:
    """Draw, decode, write."""
    options = parse(SampleOptions, __doc__ or "")
    if not is_given(OTHERS):
        options = parse(SampleOptions, __doc__ or "", default=SHOWN)
    accelerator = Accelerator()
    quiet_logging(accelerator)
    if accelerator.num_processes > 1:
        raise ValueError(
            f"samples are drawn by one process, and {accelerator.num_processes} would each draw all of them; "
            "start it by python pipelines/sample.py"
        )
    require_models(options.prior, options.tokenizer)
    require_writable(options.output)
    if (options.output / SHEET).exists():
        raise ValueError(
            f"{options.output} already holds samples; choose another --output or delete that folder"
        )
    prior, tok = load_models(options.prior, options.tokenizer, accelerator.device)
    if not tok.modality.timed and (options.seconds or options.prefix):
        raise ValueError(
            "--seconds and --prefix are for sound, and this tokenizer is for pictures; leave them out"
        )
    # Read before anything is drawn: they may not fit.
    items = training_items(tok, options.tokens) if options.tokens and prior is not None else None
    if prior is None:
        rows = sample_vae(options, tok)
    else:
        if options.compile and (options.steps or options.order):
            logger.warning("--compile has no effect: only raster order, one position at a time, is compiled")
        generator = Generator(prior.for_sampling(options.weights, options.compile), tok)
        rows = (interpolate if options.interpolate else sample_prior)(options, generator)
    options.output.mkdir(parents=True, exist_ok=True)
    first = report_of(tok.modality).samples(tok, rows, options.output)
    logger.info("%d samples in %s; look at %s", sum(len(row.x) for row in rows), options.output, first)
    if items is not None:
        write_neighbours(options.output, tok, rows, items)


def sample_prior(options: SampleOptions, generator: Generator) -> list[Drawn]:
    """`num` samples of each label."""
    prior, tok = generator.prior, generator.tokenizer
    labels = wanted_labels(options.label, prior.config.class_names)
    indices = [label_number(prior, label) for label in labels] or [-1]
    unnamed = "no class" if prior.config.class_names else "samples"
    names = [prior.config.class_names[i] if i >= 0 else unnamed for i in indices]
    prefix = tok.encode(tok.preprocess(options.prefix)) if options.prefix else None
    given = 0 if prefix is None else prefix.shape[2] * tok.stride
    rows = []
    bar = progress(len(indices) * options.num, "sample")
    how = (options.seconds, prefix, options.seed, options.batch_size)
    for name, index in zip(names, indices, strict=True):
        parts, shown = [], []
        for codes in generator.draw(index, options.num, *how, **options.choice):
            parts.append(codes)
            shown.append(generator.decode(codes).cpu())
            bar.update(len(codes))
        rows.append(Drawn(name, torch.cat(shown), torch.cat(parts), given))
    bar.close()
    return rows


def interpolate(options: SampleOptions, generator: Generator) -> list[Drawn]:
    """`num` rows of `BETWEEN` samples that go from one class to another."""
    first, second = (label_number(generator.prior, label) for label in options.interpolate)
    name = " to ".join(options.interpolate)
    rows = []
    with progress(options.num, "sample") as bar:
        for i in range(options.num):
            chance = keyed_generator(options.seed, "interpolate", i)
            codes = generator.prior.interpolate(first, second, BETWEEN, chance, **options.of_codes)
            rows.append(Drawn(f"{name} {i + 1}", generator.decode(codes).cpu(), codes))
            bar.update(1)
    return rows


def wanted_labels(label: tuple[str, ...], class_names: tuple[str, ...]) -> tuple[str, ...]:
    """The classes that --label names. `ValueError` for every class of none."""
    if label == ("*",) or (label == ("all",) and "all" not in class_names):
        if not class_names:
            raise ValueError(
                f"--label {label[0]}: this prior has no classes; leave it out, or give a --prior with classes"
            )
        return class_names
    return label


def label_number(prior: Prior, label: str) -> int:
    """The number of a class that a person gave by name, or by number if no class has that name."""
    if label in prior.config.class_names or not label.lstrip("-").isdigit():
        return prior.label_index(label)
    return prior.label_index(int(label))


def sample_vae(options: SampleOptions, tok: Tokenizer) -> list[Drawn]:
    """`num` samples decoded from z ~ N(0, I)."""
    if tok.bottleneck.num_codebooks:
        raise ValueError(
            f"{options.tokenizer} has codes; new codes come from a prior: give --prior DIR as well"
        )
    for name, value, neutral in (
        ("label", options.label, ()),
        ("interpolate", options.interpolate, ()),
        ("top-k", options.top_k, None),
        ("top-p", options.top_p, None),
        ("min-p", options.min_p, None),
        ("cfg-scale", options.cfg_scale, 1.0),
        ("cfg-schedule", options.cfg_schedule, "constant"),
        ("steps", options.steps, None),
        ("order", options.order, None),
        ("tokens", options.tokens, ""),
        ("weights", options.weights, "full"),
        ("compile", options.compile, False),
    ):
        if value != neutral:
            raise ValueError(
                f"--{name} is for priors, and a VAE has no classes and no codes to choose from; leave it "
                "out, or give a --prior"
            )
    if options.prefix:
        raise ValueError(
            "--prefix is for priors, and a VAE draws the whole at once; leave it out, or give a --prior"
        )
    size = tok.modality.size
    if options.seconds is not None:
        size = (max(1, round(options.seconds * tok.modality.sample_rate)),)
    shape = (tok.bottleneck.out_dim, *(-(-n // tok.stride) for n in size))
    latents = options.temperature * torch.randn(
        (options.num, *shape), generator=keyed_generator(options.seed)
    )
    with torch.no_grad():
        parts = [tok.decode_latents(z.to(tok.device), size).cpu() for z in latents.split(options.batch_size)]
    return [Drawn("samples", torch.cat(parts), None)]


if __name__ == "__main__":
    run(main)
