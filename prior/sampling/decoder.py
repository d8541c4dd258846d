"""A prior's blocks as sampling uses them: one step after the other, with a cache that is taken once.

Left out: the weights and their forms (`weights.py`), choosing codes (`choice.py`), the loop over steps
(`generate.py`), several positions at once (`parallel.py`), and the same blocks for whole sequences with
gradients (`layers.py`).
"""

from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from prior.layers import at_least_float32
from prior.network import DepthTransformer, PriorNetwork
from prior.sampling.weights import Matrix, PreparedWeights, Stack


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


class Steps:
    """Blocks `width` channels wide for `rows` sequences of up to `steps` inputs, which come in order.

    `rotary` (S, channels of a head / 2, 2): by what channels turn at each step. `like`: a tensor of the
    dtype and on the device of what is computed.
    """

    def __init__(
        self, stack: Stack, rotary: Tensor, rows: int, steps: int, heads: int, width: int, like: Tensor
    ) -> None:
        self.rows, self.dim, self.heads, self.length = rows, width, heads, 0
        self.layers, self.norm = stack
        # One row for each step, the same for all queries and keys of all heads.
        self.rotary = torch.view_as_complex(rotary)[:, None, None]
        self.width = width // heads
        self.cache = like.new_empty(len(self.layers), 2, rows, heads, steps, self.width)
        self.keys, self.values = (list(self.cache[:, i]) for i in (0, 1))
        self.both = list(self.cache)
        self.projections = Projections(rows, 1, heads, self.width, self.cache)

    def advance(self, x: Tensor) -> Tensor:
        """Inputs (rows, n, width) of the next n steps → the last hidden layer (rows, width) at the last of
        them.

        More than one at once only in the beginning.
        """
        start, steps = self.length, x.shape[1]
        self.length += steps
        return self.norm(self.through(x, self.turns(start, steps), start)[:, -1])

    def turns(self, start: int, steps: int) -> Tensor:
        """By what channels turn at so many steps from `start` on, (steps, 1, 1, channels of a head / 2), or
        with an axis for the sequences before it."""
        return self.rotary[start : start + steps]

    def through(self, x: Tensor, rotary: Tensor, start: int, seen: Tensor | None = None) -> Tensor:
        """Inputs (rows, n, width), whose keys and values come to lie from `start` on in the cache → (rows, n,
        width) after all blocks.

        `seen` (n, start + n) bool: what of the cache each attends to; left out, itself and all before it,
        which more than one may at `start` 0 only.
        """
        steps, stop = x.shape[1], start + x.shape[1]
        h = x.to(self.cache.dtype, copy=True).view(-1, self.dim)
        projections = self.projections
        if steps > 1:
            projections = Projections(self.rows, steps, self.heads, self.width, self.cache)
        for layer, keys, values, both in zip(self.layers, self.keys, self.values, self.both, strict=True):
            projections.all.copy_(layer.qkv(layer.attention_norm(h)))
            if layer.qk_norm is not None:
                projections.turned.copy_(layer.qk_norm(projections.turned))
            projections.pairs.mul_(rotary)
            both.narrow(3, start, steps).copy_(projections.keys_and_values)
            y = F.scaled_dot_product_attention(
                projections.queries,
                keys.narrow(2, 0, stop),
                values.narrow(2, 0, stop),
                attn_mask=seen,
                is_causal=seen is None and steps > 1,
            )
            h += layer.out(y.transpose(1, 2).reshape(-1, self.dim))
            x = layer.ffn_norm(h)
            gate = layer.gate(x)
            gate, up = gate.chunk(2, dim=1) if layer.up is None else (gate, layer.up(x))
            h += layer.down(F.silu(gate, inplace=True).mul_(up))
        return h.view(self.rows, steps, self.dim)


class DepthSteps(Steps):
    """The codebooks of one position after the other, by the depth transformer."""

    def __init__(
        self, network: DepthTransformer, start: Matrix, stack: Stack, rows: int, like: Tensor
    ) -> None:
        config = network.config
        books = config.num_codebooks
        super().__init__(stack, network.rotary(), rows, books, config.inner_heads, config.inner_dim, like)
        self.start, self.shape = start, (rows, books, config.inner_dim)
        self.table = network.code_embedding.weight.detach()
        self.first_row = network.first_row.tolist()

    def begin(self, hidden: Tensor) -> None:
        """Go on to the position that the large transformer's hidden layer (rows, dim) tells of."""
        self.inputs, self.length = self.start(hidden).view(self.shape), 0

    def reach(self, codebook: int, before: Tensor) -> Tensor:
        """The codes (rows, `codebook`) of the codebooks before this one → its hidden layer (rows, width)."""
        for book in range(self.length, codebook + 1):
            x = self.inputs[:, book]
            if book:
                x = x + F.embedding(before[:, book - 1] + self.first_row[book - 1], self.table)
            self.hidden = self.advance(x[:, None])
        return self.hidden


class Decoder(Steps):
    """The steps of `prior` for `rows` sequences of up to `steps` inputs, `at_once` of them in one product."""

    def __init__(
        self, prior: PriorNetwork, prepared: PreparedWeights, rows: int, steps: int, at_once: int = 1
    ) -> None:
        config, ready = prior.config, prepared.of(prior, rows * at_once)
        like = at_least_float32(prior.norm.weight.detach())
        super().__init__(ready.stack, prior.rotary(), rows, steps, config.heads, config.dim, like)
        self.codebook_heads = ready.heads
        self.target = None if prior.target_embedding is None else prior.target_embedding.detach()
        self.depth: DepthSteps | None = None
        if prior.inner is not None:
            self.depth = DepthSteps(prior.inner, *ready.inner, rows, like)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is left to be done."""

    def advance(self, x: Tensor) -> Tensor:
        """As `Steps.advance`, of inputs that know what is already there, but not what they predict."""
        if self.target is not None:
            x = x + self.targets(self.length, x.shape[1])
        hidden = super().advance(x)
        if self.depth is not None:
            self.depth.begin(hidden)
        return hidden

    def targets(self, start: int, steps: int) -> Tensor:
        """What tells so many steps from `start` on what they predict, (steps, dim), or (rows, steps, dim)."""
        assert self.target is not None
        return self.target[start : start + steps]

    def logits(self, hidden: Tensor, codebook: int, before: Tensor) -> Tensor:
        """The last hidden layer (rows, dim) → logits (rows, N) of a codebook, in at least float32. `before`
        (rows, q): the codes that its step has so far."""
        if self.depth is not None:
            hidden = self.depth.reach(codebook, before)
        return self.codebook_heads[codebook](hidden).to(self.cache.dtype)


class OrderedDecoder(Decoder):
    """As `Decoder`, for codes in an `order` (1 or rows, P) of their positions."""

    def __init__(
        self, prior: PriorNetwork, prepared: PreparedWeights, rows: int, steps: int, order: Tensor
    ) -> None:
        super().__init__(prior, prepared, rows, steps)
        self.order = prior.pattern.steps_in(order)
        # Where inputs stand: the class before all steps, then the step before.
        self.places = F.pad(self.order[:, :-1] + 1, (1, 0))
        self.standing = torch.view_as_complex(prior.standing())[:, None, None]

    def turns(self, start: int, steps: int) -> Tensor:
        return self.standing[self.places[:, start : start + steps]]

    def targets(self, start: int, steps: int) -> Tensor:
        assert self.target is not None
        return F.embedding(self.order[:, start : start + steps], self.target)
