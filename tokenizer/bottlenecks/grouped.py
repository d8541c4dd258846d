"""Product quantisation: the channels in groups, each with a quantizer of its own, one code (or more) a group.

Left out: the quantizer of a group, which is any bottleneck with codes.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
from einops import rearrange
from torch import Tensor

from tokenizer.bottlenecks import MAX_PARTS, Bottleneck, BottleneckConfig, Bottlenecked
from tokenizer.bottlenecks.parts.several import Several
from tokenizer.bottlenecks.vq import VQConfig
from tokenizer.checks import require_finite
from tokenizer.distributed import Step
from tokenizer.variants import require


@dataclass(frozen=True)
class GroupedConfig(BottleneckConfig, kind="grouped"):
    """Groups of channels with a codebook each: N to the power of `groups` combinations from N · `groups`
    entries."""

    groups: int = 2
    """Groups G of channels."""
    base: BottleneckConfig = field(default_factory=lambda: VQConfig(dim=4, codebook_dim=4))
    """The quantizer of each group; its `dim` is the channels of a group."""

    def __post_init__(self) -> None:
        require(1 <= self.groups <= 256, f"groups is {self.groups}, expected 1 to 256")
        require(not isinstance(self.base, GroupedConfig), "base is grouped itself; give it more groups")
        require(self.parts <= MAX_PARTS, f"{self.parts} quantizers in all, expected at most {MAX_PARTS}")

    @property
    def parts(self) -> int:
        return self.groups * self.base.parts

    @property
    def start_steps(self) -> int:
        return self.base.start_steps

    def starting_within(self, steps: int) -> Self:
        return replace(self, base=self.base.starting_within(steps))

    def build(self) -> "Grouped":
        return Grouped(self)


class Grouped(Several):
    """z_q = [q_1(z_1), ..., q_G(z_G)] for z = [z_1, ..., z_G] (Jégou et al. 2011, "Product quantization for
    nearest neighbor search", equation 8; for tokenizers Baevski et al. 2019, arXiv 1910.05453, section 3.2).
    """

    members: ClassVar[str] = "groups"

    def __init__(self, config: GroupedConfig) -> None:
        super().__init__(config.base, config.groups)
        self.config = config
        first = next(self.each())
        self.in_dim, self.out_dim = config.groups * first.in_dim, config.groups * first.out_dim
        self.identity_gradient = first.identity_gradient
        self.prefix_decodes = config.groups == 1 and first.prefix_decodes
        self.not_coding = self.names_of_members([m.not_coding for m in self.each()])
        self.statistics = self.names_of_members([m.statistics for m in self.each()])

    def forward(self, z: Tensor, step: Step | None = None) -> Bottlenecked:
        require_finite(z, "z_e", step)  # before a group learns what another one then refuses
        outs = [member(part, step) for member, part in self._parts(z)]
        losses, stats = self.merged(outs)
        z_q, codes = (
            torch.cat(parts, dim=1) for parts in zip(*((o.z_q, o.codes) for o in outs), strict=True)
        )
        return Bottlenecked(z_q, codes, losses, stats)

    def encode(self, z: Tensor) -> Tensor:
        return torch.cat([member.encode(part) for member, part in self._parts(z)], dim=1)

    def encode_first(self, z: Tensor, count: int) -> Tensor:
        if self.config.groups > 1:
            return super().encode_first(z, count)
        return next(self.each()).encode_first(z, count)

    def decode(self, codes: Tensor) -> Tensor:
        parts = rearrange(codes, "b (g k) ... -> g b k ...", g=self.config.groups)
        return torch.cat([member.decode(c) for member, c in zip(self.each(), parts, strict=True)], dim=1)

    @torch.no_grad()
    def frozen(self, z: Tensor, step: Step | None = None) -> Tensor:
        return torch.cat([member.frozen(part, step) for member, part in self._parts(z)], dim=1)

    @torch.no_grad()
    def gaps(self, z: Tensor, codes: Tensor) -> Tensor:
        chosen = rearrange(codes, "b (g k) ... -> g b k ...", g=self.config.groups)
        parts = zip(self._parts(z), chosen, strict=True)
        return torch.cat([member.gaps(part, c) for (member, part), c in parts], dim=1)

    def compared(self, z: Tensor) -> Tensor | None:
        seen = [member.compared(part) for member, part in self._parts(z)]
        known = [s for s in seen if s is not None]
        return torch.cat(known) if len(known) == len(seen) else None

    def _parts(self, z: Tensor) -> list[tuple[Bottleneck, Tensor]]:
        """Each group's quantizer with its channels (B, in_dim / G, *grid)."""
        parts = rearrange(z, "b (g d) ... -> g b d ...", g=self.config.groups)
        return list(zip(self.each(), parts, strict=True))
