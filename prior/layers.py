"""The transformer's parts: a pre-norm block of rotary, QK-normalised attention and SwiGLU.

Left out: embeddings, heads and the order of codes (`network.py`, `patterns.py`), and the same blocks
for sampling, one step after the other (`sampling/decoder.py`).
"""

import math
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

# Up to so many steps products of whole score matrices are faster than the backward pass of torch's flash
# attention. Measured on a CPU with bfloat16 products, 16,384 queries of 64 channels: 64 steps 4.1 instead of
# 39 ms, 256 steps 7.4 instead of 18, 512 steps 13.6 instead of 25, 1024 steps 35 instead of 27.
MOST_STEPS = 512
# Scores that are held at once.
MOST_SCORES = 1 << 22


class ByProducts(torch.autograd.Function):
    """Attention whose backward pass computes the scores again, of some heads at once, and multiplies whole
    matrices.

    In bfloat16 the scores are rounded to it, as other products are: gradients of sharp attention are less
    exact than torch's, which keeps float32 (relative error 0.4 instead of 0.25 % where scores have a standard
    deviation of 1, 1.5 instead of 0.5 % where of 6).
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v (B, heads, S, d) → (B, heads, S, d)."""
        ctx.save_for_backward(q, k, v)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        batch, _, steps, width = grad.shape
        every = [rearrange(x, "b h s d -> (b h) s d") for x in (*ctx.saved_tensors, grad)]
        found = [torch.empty_like(every[0]) for _ in range(3)]
        later = every[0].new_full((steps, steps), -math.inf).triu_(1)
        scale, count = width**-0.5, max(1, MOST_SCORES // steps**2)
        for first in range(0, len(every[0]), count):
            q, k, v, dy = (x[first : first + count] for x in every)
            dq, dk, dv = (x[first : first + count] for x in found)
            share = torch.baddbmm(later, q, k.mT, alpha=scale).softmax(dim=-1)
            torch.bmm(share.mT, dy, out=dv)
            of_scores = torch._softmax_backward_data(torch.bmm(dy, v.mT), share, -1, share.dtype)
            of_scores.mul_(scale)
            torch.bmm(of_scores, k, out=dq)
            torch.bmm(of_scores.mT, q, out=dk)
        return tuple(rearrange(x, "(b h) s d -> b h s d", b=batch) for x in found)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of q, k, v (B, heads, S, d) → (B, heads, S, d)."""
    own = q.dtype == torch.bfloat16 and q.device.type == "cpu" and q.shape[2] <= MOST_STEPS
    if own and torch.is_grad_enabled():
        y: Tensor = ByProducts.apply(q, k, v)
        return y
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


NORM_EPS = 1e-6


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or as it is if it is float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class FewPasses(torch.autograd.Function):
    """RMSNorm (arXiv 1910.07467) in about half of the passes over memory that torch takes on a CPU, where it
    has no kernel for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x (..., d) and weight (d,) of one dtype → x · weight / √(mean x² + eps), (..., d)."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        y: Tensor = (x * inverse).mul_(weight)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse = ctx.saved_tensors
        width = x.shape[-1]
        product = (grad * x).reshape(-1, width)
        of_weight = product.T.mv(inverse.flatten())
        # √(mean x² + eps) depends on all channels.
        along = product.mv(weight).view(inverse.shape).mul_(inverse.pow(3)).div_(-width)
        return (grad * weight).mul_(inverse).addcmul_(x, along), of_weight, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., d) normalised over its last axis and scaled by weight (d,)."""
    own = x.dtype == weight.dtype and x.dtype in (torch.float32, torch.float64)
    if own and x.device.type == "cpu" and not torch.compiler.is_compiling():
        y: Tensor = FewPasses.apply(x, weight, eps)
        return y
    return F.rms_norm(x, weight.shape, weight, eps)


class RMSNorm(nn.RMSNorm):
    """As torch's, with `rms_norm`."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., dim) → (..., dim)."""
        return rms_norm(x, self.weight, NORM_EPS)


def rotary_table(coordinates: Tensor, head_dim: int, theta: float) -> Tensor:
    """coordinates (S, axes) int64 → (S, head_dim / 2, 2), cosine and sine by which pairs of channels turn.

    RoPE (arXiv 2104.09864) in as many dimensions as the grid has: the axes share the channels evenly (axial,
    arXiv 2403.13298). Computed anew for each pass: a float table in the model would follow it to bf16.
    """
    pairs = head_dim // (2 * coordinates.shape[1])
    frequencies = theta ** (-torch.arange(pairs, device=coordinates.device, dtype=torch.float32) / pairs)
    angles = rearrange(coordinates[:, :, None] * frequencies, "s a pair -> s (a pair)")
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """x (..., S, head_dim) with channel pairs (2i, 2i + 1) turned by `table` (..., S, head_dim / 2, 2)."""
    pairs = rearrange(x, "... (pair two) -> ... pair two", two=2)
    if torch.compiler.is_compiling():  # which knows no complex numbers
        (a, b), (cos, sin) = pairs.unbind(-1), table.to(x.dtype).unbind(-1)
        return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)
    turned = torch.view_as_complex(pairs) * torch.view_as_complex(table)
    return torch.view_as_real(turned).flatten(-2)


def normalise(x: Tensor, norm: nn.RMSNorm | None) -> Tensor:
    """`norm(x)`, or x, in at least float32, whatever the dtypes of `x` and of the weights under autocast."""
    if norm is None:
        return at_least_float32(x)
    return rms_norm(at_least_float32(x), at_least_float32(norm.weight), NORM_EPS)


class Attention(nn.Module):
    """Causal self-attention; queries and keys are normalised if asked to (arXiv 2010.04245), then rotated."""

    def __init__(self, dim: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads, self.dim = heads, dim
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_norm = RMSNorm(dim // heads) if qk_norm else None
        self.k_norm = RMSNorm(dim // heads) if qk_norm else None
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, rotary: Tensor) -> Tensor:
        """x (B, S, dim) → (B, S, dim)."""
        q, k, v = (
            rearrange(part, "b s (h d) -> b h s d", h=self.heads)
            for part in self.qkv(x).split(self.dim, dim=-1)
        )
        q = rotate(normalise(q, self.q_norm), rotary).to(v.dtype)
        k = rotate(normalise(k, self.k_norm), rotary).to(v.dtype)
        out: Tensor = self.out(rearrange(attend(q, k, v), "b h s d -> b s (h d)"))
        return out


class SwiGLU(nn.Module):
    """Feed-forward layer with a gated hidden layer (arXiv 2002.05202)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        # Two layers, not one cut in two: on a CPU joining the halves' gradients costs more than it saves.
        self.gate = nn.Linear(dim, hidden, bias=False)
        self.up = nn.Linear(dim, hidden, bias=False)
        self.out = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, S, dim) → (B, S, dim)."""
        out: Tensor = self.out(F.silu(self.gate(x)) * self.up(x))
        return out


class Block(nn.Module):
    """Pre-norm residual block. `dropout` is an argument, so that likelihoods and samples can leave it out."""

    def __init__(self, dim: int, heads: int, ffn_dim: int, qk_norm: bool) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(dim)
        self.attention = Attention(dim, heads, qk_norm)
        self.ffn_norm = RMSNorm(dim)
        self.ffn = SwiGLU(dim, ffn_dim)

    def forward(self, x: Tensor, rotary: Tensor, dropout: float) -> Tensor:
        """x (B, S, dim) → (B, S, dim)."""
        x = x + F.dropout(self.attention(self.attention_norm(x), rotary), dropout)
        return x + F.dropout(self.ffn(self.ffn_norm(x)), dropout)


class Blocks(nn.ModuleList):
    """Blocks one after the other, of which training may keep the inputs only."""

    # Whether what is inside the blocks is computed once more in the backward pass (arXiv 1604.06174), which
    # takes less memory and about a third more time.
    checkpointing = False

    def __init__(self, depth: int, dim: int, heads: int, ffn_dim: int, qk_norm: bool) -> None:
        super().__init__(Block(dim, heads, ffn_dim, qk_norm) for _ in range(depth))

    def forward(self, x: Tensor, rotary: Tensor, dropout: float) -> Tensor:
        """x (B, S, dim) → (B, S, dim)."""
        for block in self:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, rotary, dropout, use_reentrant=False)
            else:
                x = block(x, rotary, dropout)
        return x
