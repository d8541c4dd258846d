"""Finite scalar quantisation: every channel is bounded and rounded to one of a few levels.

Left out: what quantizers with an implied codebook share (`parts/implicit.py`), and losses: it needs none.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from einops import reduce
from torch import Tensor

from tokenizer.bottlenecks import BottleneckConfig
from tokenizer.bottlenecks.parts.implicit import MOST_CODES, Implicit
from tokenizer.variants import require

# How much wider than its outermost levels tanh's range is, so that rounding can reach them.
MARGIN = 1e-3


@dataclass(frozen=True)
class FSQConfig(BottleneckConfig, kind="fsq"):
    """A grid of levels per channel in place of a learnt codebook; nothing to tune, no losses of its own."""

    levels: tuple[int, ...] = (8, 5, 5, 5)
    """Levels L of each channel; their product is the codebook's size. 5 or more per channel do best
    (Mentzer et al. 2023, arXiv 2309.15505, section 4.1)."""
    dim: int = 8
    """Channels that the encoder gives and the decoder takes; if they are not as many as levels, linear
    projections lead there and back."""
    bound: Literal["even", "tanh"] = "even"
    """What squashes a channel into the range of its levels: even, the normal distribution function, under
    which all levels are equally wide; tanh, as in the paper, whose outer levels have half the width."""

    def __post_init__(self) -> None:
        require(len(self.levels) >= 1, "levels is empty, expected at least one number of levels")
        low = min(self.levels)
        require(low >= 2, f"levels has {low}, expected 2 or more: a channel of one level carries nothing")
        size = math.prod(self.levels)
        require(size <= MOST_CODES, f"levels {self.levels} make {size} codes, expected at most 2^24")
        require(1 <= self.dim <= 4096, f"dim is {self.dim}, expected 1 to 4096")
        require(
            self.bound == "even" or low > 2,
            "levels has 2, which bound tanh cannot serve: it would part them at z = -3.8; use bound even",
        )

    def build(self) -> "FSQ":
        return FSQ(self)


class FSQ(Implicit):
    """z_q = round(f(z)), f into [0, L − 1] per channel and the result scaled to [-1, 1] (Mentzer et al. 2023,
    arXiv 2309.15505, section 3.1)."""

    levels: Tensor
    place: Tensor

    def __init__(self, config: FSQConfig) -> None:
        advice = "levels of the channels differ in use; try fewer levels"
        if config.bound != "even":
            advice += ", or bound even"
        super().__init__(config.dim, len(config.levels), math.prod(config.levels), advice)
        self.config = config
        self.make_unsaved()

    def make_unsaved(self) -> None:
        """Levels and what each counts: whole numbers, which no change of the module's type may round."""
        levels = self.config.levels
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        places = [math.prod(levels[:i]) for i in range(len(levels))]
        self.register_buffer("place", torch.tensor(places), persistent=False)

    def quantized(self, z_e: Tensor) -> tuple[Tensor, Tensor]:
        levels = self.levels.to(z_e.dtype)
        if self.config.bound == "even":
            # The normal distribution function makes a standard normal z uniform, so all levels are used
            # alike. The range reaches half a level beyond the outermost, so that these are as wide.
            position = levels * torch.special.ndtr(z_e) - 0.5
        else:
            half = (levels - 1) * (1 + MARGIN) / 2
            offset = torch.where(self.levels % 2 == 0, 0.5, 0.0).to(z_e.dtype)
            # Shifted so that z = 0 is a level also where L is even and the range therefore lopsided.
            position = half * torch.tanh(z_e + torch.atanh(offset / half)) - offset + self.levels // 2
        # Clamped as whole numbers: at the ends of the range rounding could go one beyond.
        level = (position + 0.5).floor().long().clamp(min=torch.zeros_like(self.levels), max=self.levels - 1)
        codes: Tensor = reduce(level * self.place, "m d -> m", "sum")
        return self._scaled(position), codes

    def entries(self, codes: Tensor, dtype: torch.dtype) -> Tensor:
        return self._scaled((codes[:, None] // self.place % self.levels).to(dtype))

    def _scaled(self, position: Tensor) -> Tensor:
        """Positions (M, D), levels being 0 … L − 1, on a scale of [-1, 1]."""
        if self.config.bound == "even":
            return position / ((self.levels - 1).to(position.dtype) / 2) - 1
        # In the paper 0 is a level also for even L, which then end below 1 (appendix A.1).
        return position / (self.levels // 2).to(position.dtype) - 1
