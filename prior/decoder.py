"""A prior's blocks as sampling uses them: one step after the other, on weights that are made ready once, with
a cache that is taken once.

Left out: choosing codes (`sampling.py`), the loop over steps (`generation.py`), and the same blocks for whole
sequences with gradients (`layers.py`).
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prior.layers import NORM_EPS, Block, at_least_float32
from prior.network import Network
from prior.numba_products import installed

Weights = Literal["full", "bf16", "int8"]
WEIGHTS: tuple[Weights, ...] = ("full", "bf16", "int8")
# Rows from which on a product is faster with the weights the other way round in memory. Measured on a CPU at
# 512 x 2752: 16 rows in 212 instead of 588 µs, 1 row in 139 instead of 127.
MANY_ROWS = 3
INT8_BLOCK = 16

# x (rows, in) → (rows, out).
Matrix = Callable[[Tensor], Tensor]


class Dense:
    """A matrix (out, in) in its dtype, which is also that of the products; `many` rows or few."""

    def __init__(self, weight: Tensor, many: bool) -> None:
        self.weight = weight.T.contiguous() if many else weight.T

    def __call__(self, x: Tensor) -> Tensor:
        return torch.mm(x.to(self.weight.dtype), self.weight)


class Int8:
    """A matrix (out, in) of which each row is whole numbers up to 127 times a scale; products in bfloat16.

    Only the weights are rounded, as what one sequence costs is reading them (arXiv 2208.07339, section 2.1,
    has this scaling by rows).
    """

    def __init__(self, weight: Tensor) -> None:
        # The product reads rows in blocks, beyond their end if they have no whole number of them.
        self.missing = -weight.shape[1] % INT8_BLOCK
        weight = F.pad(weight, (0, self.missing))
        largest = weight.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
        # The scale as the product reads it, so that rounding fits it.
        self.scale = (largest.float() / 127).bfloat16()
        self.weight = (weight.float() / self.scale[:, None]).round().clamp(-127, 127).to(torch.int8)

    def __call__(self, x: Tensor) -> Tensor:
        x = F.pad(x.bfloat16(), (0, self.missing)) if self.missing else x.bfloat16()
        y: Tensor = torch._weight_int8pack_mm(x, self.weight, self.scale)
        return y


class Norm:
    """An RMSNorm in at least float32, in fewer operations than torch has for it on a CPU."""

    def __init__(self, *norms: nn.RMSNorm) -> None:
        (width,) = norms[0].normalized_shape
        weights = torch.stack([at_least_float32(norm.weight.detach()) for norm in norms])
        # (width,), or (norms, 1, width) for as many parts with heads.
        self.scale = (weights * math.sqrt(width)).unsqueeze(1) if len(norms) > 1 else weights[0] * width**0.5
        self.shift = weights.new_tensor(math.sqrt(width * NORM_EPS))

    def __call__(self, x: Tensor) -> Tensor:
        # √(‖x‖² + width · ε) is √width times what RMSNorm divides by.
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot_(self.shift)
        return torch.div(x, length).mul_(self.scale)


class Layer(NamedTuple):
    """A block's norms and matrices."""

    attention_norm: Norm
    qkv: Matrix
    qk_norm: Norm | None
    out: Matrix
    ffn_norm: Norm
    gate: Matrix
    # None: `gate` gives both, one beside the other.
    up: Matrix | None
    down: Matrix


class Prepared:
    """The weights of a prior ready for sampling, as they are at their first use: `full`, in `bf16`, or
    rounded to `int8` (products of many rows then take bfloat16 as well).

    With `compiled` few sequences are drawn by compiled loops (`decoder_cpu.py`). Raises `ValueError` for int8
    or compiled loops on a device that has none, and for compiled ones without numba.
    """

    def __init__(self, prior: Network, weights: Weights = "full", compiled: bool = False) -> None:
        if weights not in WEIGHTS:
            raise ValueError(f"weights: unknown {weights!r}; known: {', '.join(WEIGHTS)}")
        device = prior.head.device.type
        if weights == "int8" and device != "cpu":
            raise ValueError(f"weights: int8 is for CPUs, and this prior is on {device}; take bf16")
        if compiled and device != "cpu":
            raise ValueError(f"compile: the loops are for CPUs, and this prior is on {device}; leave it out")
        if compiled and not installed():
            raise ValueError("compile: needs numba; pip install 'tokenloom[fast]', or leave it out")
        self.weights, self.compiled = weights, compiled
        self._made: dict[bool, tuple[list[Layer], Norm, list[Matrix]]] = {}

    def layers(self, prior: Network, rows: int) -> tuple[list[Layer], Norm, list[Matrix]]:
        """For products of so many rows: the layers, the norm after them, and the head of every codebook."""
        many = rows >= MANY_ROWS
        if many not in self._made:
            heads = [self._matrix(head, many) for head in prior.head.detach()]
            layers = [self._layer(block, many) for block in prior.blocks]  # type: ignore[arg-type]
            self._made[many] = (layers, Norm(prior.norm), heads)
        return self._made[many]

    def _layer(self, block: Block, many: bool) -> Layer:
        attention, ffn = block.attention, block.ffn
        qk_norm = None
        if attention.q_norm is not None and attention.k_norm is not None:
            qk_norm = Norm(attention.q_norm, attention.k_norm)
        linears = (attention.qkv, attention.out, ffn.gate, ffn.up, ffn.out)
        qkv, out, gate, up, down = (linear.weight.detach() for linear in linears)
        # Wide products are faster, but take a copy.
        wide = [torch.cat([gate, up])] if many else [gate, up]
        gates = [self._matrix(weight, many) for weight in wide]
        return Layer(
            attention_norm=Norm(block.attention_norm),
            qkv=self._matrix(qkv, many),
            qk_norm=qk_norm,
            out=self._matrix(out, many),
            ffn_norm=Norm(block.ffn_norm),
            gate=gates[0],
            up=None if many else gates[1],
            down=self._matrix(down, many),
        )

    def _matrix(self, weight: Tensor, many: bool) -> Matrix:
        if self.weights == "int8" and not many:
            return Int8(weight)
        # Products of many rows are faster in bfloat16 than with int8.
        return Dense(weight if self.weights == "full" else weight.bfloat16(), many)


class Projections:
    """Room for the queries, keys and values of n steps of all sequences, and views of it, made once."""

    def __init__(self, rows: int, steps: int, heads: int, width: int, like: Tensor) -> None:
        self.all = like.new_empty(rows * steps, 3 * heads * width)
        parts = self.all.view(rows, steps, 3, heads, width)
        # Queries and keys, (rows, steps, 2, heads, width), and the same in pairs of channels.
        self.turned = parts[:, :, :2]
        self.pairs = torch.view_as_complex(self.turned.view(rows, steps, 2, heads, width // 2, 2))
        # (rows, heads, steps, width), and as the cache has keys and values: (2, rows, heads, steps, width).
        self.queries = parts[:, :, 0].transpose(1, 2)
        self.keys_and_values = parts[:, :, 1:].permute(2, 0, 3, 1, 4)


class Decoder:
    """The blocks of `prior` for `rows` sequences of up to `steps` inputs, which come in order."""

    def __init__(self, prior: Network, prepared: Prepared, rows: int, steps: int) -> None:
        config = prior.config
        self.rows, self.dim, self.heads, self.length = rows, config.dim, config.heads, 0
        self.layers, self.norm, self.codebook_heads = prepared.layers(prior, rows)
        self.dtype = at_least_float32(prior.norm.weight.detach()).dtype
        self.target = None if prior.target_embedding is None else prior.target_embedding.detach()
        # One row for each step, the same for all queries and keys of all heads.
        self.rotary = prior.rotary()[:, None, None]
        self.width = config.dim // config.heads
        room = (config.depth, 2, rows, config.heads, steps, self.width)
        self.cache = torch.empty(room, dtype=self.dtype, device=prior.head.device)
        self.keys, self.values = (list(self.cache[:, i]) for i in (0, 1))
        self.both = list(self.cache)
        self.projections = Projections(rows, 1, config.heads, self.width, self.cache)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is left to be done."""

    def advance(self, x: Tensor) -> Tensor:
        """Inputs (rows, n, dim) of the next n steps → the last hidden layer (rows, dim) at the last of them.

        More than one at once only in the beginning.
        """
        start, steps = self.length, x.shape[1]
        self.length = stop = start + steps
        if self.target is not None:
            x = x + self.target[start:stop]
        h = x.to(self.dtype, copy=True).view(-1, self.dim)
        rotary, projections = self.rotary[start:stop], self.projections
        if steps > 1:
            projections = Projections(self.rows, steps, self.heads, self.width, self.cache)
        for layer, keys, values, both in zip(self.layers, self.keys, self.values, self.both, strict=True):
            projections.all.copy_(layer.qkv(layer.attention_norm(h)))
            if layer.qk_norm is not None:
                projections.turned.copy_(layer.qk_norm(projections.turned))
            projections.pairs.mul_(rotary)
            both.narrow(3, start, steps).copy_(projections.keys_and_values)
            y = F.scaled_dot_product_attention(
                projections.queries, keys.narrow(2, 0, stop), values.narrow(2, 0, stop), is_causal=steps > 1
            )
            h += layer.out(y.transpose(1, 2).reshape(-1, self.dim))
            x = layer.ffn_norm(h)
            gate = layer.gate(x)
            gate, up = gate.chunk(2, dim=1) if layer.up is None else (gate, layer.up(x))
            h += layer.down(F.silu(gate, inplace=True).mul_(up))
        return self.norm(h.view(self.rows, steps, self.dim)[:, -1])

    def logits(self, hidden: Tensor, codebook: int) -> Tensor:
        """The last hidden layer (rows, dim) → logits (rows, N) of a codebook, in at least float32."""
        return self.codebook_heads[codebook](hidden).to(self.dtype)
