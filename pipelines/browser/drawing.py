"""What a prior draws for the page: new codes part by part, and codes within a region. The only place here
that asks a prior for something.

Left out: how codes are shown.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.run.generator import Generator
from prior import Prior
from prior.config import PriorConfig
from prior.sampling.choice import Choice, SamplingOptions
from tokenizer import Tokenizer
from tokenizer.distributed import keyed_generator

# Samples of a part, after each of which a drawing can be stopped.
PICTURES_AT_ONCE = 4
MOST_SAMPLES, MOST_SECONDS = 64, 30.0
MOST_PROPOSALS = 8
NO_CLASS, SUGGESTED = "no class", "as the rest suggests"


@dataclass(frozen=True)
class Wish:
    """What a person asks a prior for. `ValueError` for what cannot be.

    `label` is a class's name, `NO_CLASS`, or, to fill a region, `SUGGESTED`: one drawn by how likely the rest
    makes it. `steps`, of a prior of every order: draw in so many, the likeliest positions first; 0: one
    position at a time.
    """

    label: str = NO_CLASS
    num: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    cfg_scale: float = 1.0
    seed: int = 0
    steps: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.num <= MOST_SAMPLES:
            raise ValueError(f"number of samples: expected 1 to {MOST_SAMPLES}, got {self.num}")
        if not 0 <= self.seed < 1 << 62:
            raise ValueError(f"seed: expected a whole number from 0 on, got {self.seed}")
        Choice(**self.options)  # checks itself

    @property
    def options(self) -> SamplingOptions:
        """How codes are chosen, for the prior."""
        top_p = None if self.top_p == 1 else self.top_p
        options = SamplingOptions(temperature=self.temperature, top_p=top_p, cfg_scale=self.cfg_scale)
        if self.steps:
            options |= SamplingOptions(steps=self.steps, order="confidence")
        return options

    def index(self, prior: Prior) -> int:
        """The number of the class, -1 for none; `ValueError` for one that the prior has not."""
        if self.label == NO_CLASS and NO_CLASS not in prior.config.class_names:
            return -1
        return prior.label_index(self.label)

    def leaves_class_open(self, prior: Prior) -> bool:
        """Whether what is known is to decide on the class."""
        return self.label == SUGGESTED and SUGGESTED not in prior.config.class_names


def classes_of(class_names: tuple[str, ...], unconditional: bool) -> list[str]:
    """What a person may choose of: the classes, after none if the prior has learnt that."""
    return [*([NO_CLASS] if unconditional or not class_names else []), *class_names]


def classes_to_fill(config: PriorConfig) -> list[str]:
    """The same for filling a region: first of all what the rest suggests, where a prior can tell that."""
    can_tell = config.order == "any" and bool(config.class_names)
    return [*([SUGGESTED] if can_tell else []), *classes_of(config.class_names, config.unconditional)]


def drawn(
    prior: Prior, tok: Tokenizer, wish: Wish, seconds: float | None, stopped: Callable[[], bool]
) -> Iterator[Tensor]:
    """Codes (b, K, *grid) of `wish.num` samples, some at a time, the same as of sample.py for a seed; fewer
    once `stopped` says so. `seconds` of sound; left out, the prior's window."""
    if seconds is not None and not 0 < seconds <= MOST_SECONDS:
        raise ValueError(f"seconds: expected above 0, to {MOST_SECONDS:g}, got {seconds:g}")
    generator = Generator(prior, tok)
    index = wish.index(prior)
    label = None if index < 0 else index
    at_once = 1 if tok.modality.timed else PICTURES_AT_ONCE
    parts = generator.draw(label, wish.num, seconds, None, wish.seed, at_once, **wish.options)
    for codes in parts:
        yield codes
        if stopped():
            return


def filled(
    prior: Prior, tok: Tokenizer, codes: Tensor, mask: Tensor, wish: Wish, stopped: Callable[[], bool]
) -> Iterator[Tensor]:
    """Proposals (1, K, *grid), one after the other: codes (1, K, *grid) with those where `mask` (K, *grid)
    bool holds drawn anew. Fewer once `stopped` says so.

    Sound of any length is drawn in windows of the prior. `ValueError` for nothing to draw, too many
    proposals, and a picture whose grid is not the prior's.
    """
    if not bool(mask.any()):
        raise ValueError("nothing is marked; paint a region, choose codes, or give seconds")
    if wish.num > MOST_PROPOSALS:
        raise ValueError(f"proposals: expected 1 to {MOST_PROPOSALS}, got {wish.num}")
    prior.check_tokenizer(tok.fingerprint())
    grid, given = tuple(prior.config.grid), tuple(codes.shape[2:])
    if not tok.modality.timed and grid != given:
        raise ValueError(
            f"this prior draws grids of {shown(grid)} codes, and the picture has {shown(given)}; bring the "
            "picture to the size of training"
        )
    index = None if wish.leaves_class_open(prior) else wish.index(prior)
    for i in range(wish.num):
        chance = keyed_generator(wish.seed, "fill", i)
        proposal = codes.clone()
        spans = windows(mask, grid[0]) if tok.modality.timed else [slice(0, given[0])]
        for span in spans:
            proposal[:, :, span] = _filled_window(
                prior, proposal[:, :, span], mask[:, span], index, wish, chance
            )
        yield proposal
        if stopped():
            return


def windows(mask: Tensor, frames: int) -> list[slice]:
    """Spans of at most `frames` frames that hold all marked ones of mask (K, t), each with half a window
    before what it draws where there is as much."""
    total = mask.shape[1]
    marked = mask.any(0).nonzero().flatten().tolist()
    spans, done = list[slice](), 0
    for frame in marked:
        if frame < done:
            continue
        start = max(0, min(frame - frames // 2, total - frames))
        spans.append(slice(start, min(total, start + frames)))
        done = spans[-1].stop
    return spans


def _filled_window(
    prior: Prior, codes: Tensor, mask: Tensor, index: int | None, wish: Wish, chance: torch.Generator
) -> Tensor:
    """codes (1, K, n, ...) drawn anew where mask (K, n, ...) holds, of class `index`, -1 for none; None: one
    that the rest suggests. What is missing to the prior's window is drawn too, and dropped."""
    frames = codes.shape[2]
    missing = prior.config.grid[0] - frames
    if missing:
        rest = codes.shape[3:]
        codes = torch.cat([codes, codes.new_zeros(1, codes.shape[1], missing, *rest)], dim=2)
        mask = torch.cat([mask, torch.ones(mask.shape[0], missing, *rest, dtype=torch.bool)], dim=1)
    if index is None:
        index = int(torch.multinomial(prior.label_posterior(codes, mask[None]), 1, generator=chance))
    new = prior.inpaint(codes, mask[None], index, chance, **wish.options)
    return new[:, :, :frames]


def shown(grid: tuple[int, ...]) -> str:
    """A grid for people."""
    return " × ".join(map(str, grid)) if math.prod(grid) else "no"
