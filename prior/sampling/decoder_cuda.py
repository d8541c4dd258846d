"""The decoder's steps as one function of fixed shapes, of which torch.compile makes a CUDA graph: a step on
a GPU is so short that starting its operations one by one would take longer than they do.

Left out: the steps of a prefix and depth transformers, which are those of `decoder.py`, and CPUs
(`sampling/cpu/decoder.py`).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from prior.layers import rotate
from prior.network import PriorNetwork
from prior.sampling.decoder import Decoder
from prior.sampling.weights import PreparedWeights

INDUCTOR: dict[str, Any] = {"backend": "inductor", "mode": "reduce-overhead"}


def static_decoder(prior: PriorNetwork, prepared: PreparedWeights, rows: int) -> "StaticDecoder":
    """The decoder for so many sequences of all steps that `prepared` keeps, at its beginning: its graph reads
    the cache where it is, so a new one would have to be captured anew."""
    kept = prepared.kept
    if not isinstance(kept, StaticDecoder) or kept.rows != rows:
        kept = prepared.kept = StaticDecoder(prior, prepared, rows, prior.pattern.num_steps)
    kept.length = 0
    return kept


class StaticDecoder(Decoder):
    """As `Decoder`; `options` are those of torch.compile."""

    def __init__(
        self,
        prior: PriorNetwork,
        prepared: PreparedWeights,
        rows: int,
        steps: int,
        options: dict[str, Any] = INDUCTOR,
    ) -> None:
        super().__init__(prior, prepared, rows, steps)
        self.cache.zero_()  # what is masked must still be numbers
        self.position = torch.zeros(1, dtype=torch.int64, device=self.cache.device)
        self.numbers = torch.arange(steps, device=self.cache.device)
        self.turns = torch.view_as_real(self.rotary[:, 0, 0]).contiguous()
        # A graph reads these where they are; other tensors it would copy before every step.
        kept = [self.cache, *self.both, self.position, self.numbers, self.turns, *prepared.tensors(rows)]
        for tensor in kept if self.target is None else [*kept, self.target]:
            torch._dynamo.mark_static_address(tensor)
        self.run = torch.compile(self.step, fullgraph=True, dynamic=False, **options)

    def advance(self, x: Tensor) -> Tensor:
        if x.shape[1] > 1:
            return super().advance(x)
        self.position.fill_(self.length)
        self.length += 1
        torch.compiler.cudagraph_mark_step_begin()
        hidden: Tensor = self.run(x[:, 0])
        if self.depth is not None:
            self.depth.begin(hidden)
        return hidden

    def step(self, x: Tensor) -> Tensor:
        """The input (rows, dim) of the step at `self.position` → the last hidden layer (rows, dim)."""
        at, dtype = self.position, self.cache.dtype
        seen = self.numbers <= at
        turn = self.turns.index_select(0, at)
        h = x.to(dtype) if self.target is None else (x + self.target.index_select(0, at)).to(dtype)
        for layer, cache in zip(self.layers, self.both, strict=True):
            parts = layer.qkv(layer.attention_norm(h)).to(dtype).view(self.rows, 3, self.heads, self.width)
            qk, v = parts[:, :2], parts[:, 2]
            if layer.qk_norm is not None:
                qk = layer.qk_norm(qk)
            q, k = rotate(qk, turn).unbind(1)
            cache.index_copy_(3, at, torch.stack([k, v])[:, :, :, None])
            y = F.scaled_dot_product_attention(q[:, :, None], cache[0], cache[1], attn_mask=seen[None])
            h = h + layer.out(y.reshape(self.rows, self.dim))
            x = layer.ffn_norm(h)
            gate = layer.gate(x)
            gate, up = gate.chunk(2, dim=1) if layer.up is None else (gate, layer.up(x))
            h = h + layer.down(F.silu(gate) * up)
        return self.norm(h)
