"""One cached step of a prior as a graph: the codes of the step before in, logits of this step's codes out.

Left out: choosing codes from logits, guidance (two rows, one of them without a class), and the pattern
`depth`.
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.graphs.networks import check_float32
from prior import Prior
from prior.checks import UNCONDITIONAL
from prior.layers import Block, normalise, rotate


class PriorStep(nn.Module):
    """Step s of S, for B sequences whose cache holds the s steps before.

    codes (B, Q) int64 of step s - 1 (-1 where it holds none; at s = 0 anything), step (1,) int64, label (B,)
    int64 (-1: no class), cache (layers, 2, B, heads, s, width) → logits (B, Q, N) of the codes of step s,
    and the cache with one step more.
    """

    rotary: Tensor
    codebook: Tensor
    first_row: Tensor

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.prior = prior
        config, pattern = prior.config, prior.pattern
        self.heads, self.width = config.heads, config.dim // config.heads
        self.register_buffer("rotary", prior.rotary())
        self.register_buffer("codebook", pattern.codebook.clamp_min(0))
        self.register_buffer("first_row", prior.first_row)

    def forward(self, codes: Tensor, step: Tensor, label: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        prior = self.prior
        x = self._input(codes, step, label)
        if prior.target_embedding is not None:
            x = x + prior.target_embedding.index_select(0, step)
        rotary = self.rotary.index_select(0, step)
        kept = []
        for number, block in enumerate(prior.blocks):
            assert isinstance(block, Block)
            attended, both = self._attend(block, x, rotary, cache[number])
            kept.append(both)
            x = x + attended
            x = x + block.ffn(block.ffn_norm(x))
        heads = prior.head.index_select(0, self.codebook.index_select(0, step)[0])
        logits = torch.einsum("b d, q n d -> b q n", prior.norm(x), heads)
        return logits, torch.stack(kept)

    def _input(self, codes: Tensor, step: Tensor, label: Tensor) -> Tensor:
        """(B, dim): the class at the first step, then the codes of the step before, summed."""
        prior, classes = self.prior, self.prior.class_embedding.weight
        start = F.embedding(torch.where(label == UNCONDITIONAL, len(classes) - 1, label), classes)
        rows = codes + self.first_row.index_select(0, (step - 1).clamp_min(0))
        held = (codes >= 0)[..., None]
        before = (F.embedding(rows.clamp_min(0), prior.code_embedding.weight) * held).sum(dim=1)
        return torch.where(step[:, None] == 0, start, before)

    def _attend(self, block: Block, x: Tensor, rotary: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        """What attention adds to x (B, dim), and the cache (2, B, heads, s + 1, width) of this layer."""
        attention = block.attention
        q, k, v = (
            rearrange(part, "b (h w) -> b h 1 w", h=self.heads)
            for part in attention.qkv(block.attention_norm(x)).split(attention.dim, dim=-1)
        )
        q = rotate(normalise(q, attention.q_norm), rotary)
        k = rotate(normalise(k, attention.k_norm), rotary)
        both = torch.cat([cache, torch.stack([k, v])], dim=3)
        shares = (q @ both[0].mT * self.width**-0.5).softmax(dim=-1)
        y: Tensor = attention.out(rearrange(shares @ both[1], "b h 1 w -> b (h w)"))
        return y, both


def check_prior(prior: Prior, name: str) -> None:
    """`ValueError` with the reason for a prior that has no such step."""
    if prior.inner is not None:
        raise ValueError(
            f"{name} cannot be exported: with the pattern {prior.config.pattern} a second transformer "
            "(inner) predicts the codes of a step in turn, which one step of logits cannot give; train one "
            "with --pattern flatten or delay"
        )
    check_float32(prior, name)
