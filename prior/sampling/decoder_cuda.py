"""The decoder's steps as one function of fixed shapes, of which torch.compile makes a CUDA graph: a step on
a GPU is so short that starting its operations one by one would take longer than they do.

Left out: the steps of a prefix and depth transformers, which are those of `decoder.py`, and CPUs
(`sampling/cpu/decoder.py`).
"""

import threading
from dataclasses import dataclass, field
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from prior.layers import rotate
from prior.network import PriorNetwork
from prior.sampling.decoder import Decoder
from prior.sampling.weights import PreparedWeights

INDUCTOR: dict[str, Any] = {"backend": "inductor", "mode": "reduce-overhead"}


@dataclass
class StaticDecoders:
    """The decoders of one prior by their rows, of the thread that made the first: a graph belongs to it."""

    thread: int = field(default_factory=threading.get_ident)
    by_rows: dict[int, "StaticDecoder"] = field(default_factory=dict)


def static_decoder(prior: PriorNetwork, prepared: PreparedWeights, rows: int) -> "StaticDecoder":
    """The decoder for so many sequences of all steps that `prepared` keeps, at its beginning: its graph reads
    the cache where it is, so a new one would have to be captured anew.

    There is one for every power of 2, which serves fewer sequences too. Raises `ValueError` in another thread
    than that of the first call.
    """
    kept = prepared.kept
    if not isinstance(kept, StaticDecoders):
        kept = prepared.kept = StaticDecoders()
    if kept.thread != threading.get_ident():
        raise ValueError(
            "compile: the steps of this prior were captured in another thread, the first that drew from it; "
            "draw there, or make one for this thread by for_sampling(compile=True), or leave compile out"
        )
    room = 1 << (rows - 1).bit_length()
    if room not in kept.by_rows:
        kept.by_rows[room] = StaticDecoder(prior, prepared, room, prior.pattern.num_steps)
    decoder = kept.by_rows[room]
    decoder.sequences, decoder.length = rows, 0
    return decoder


class StaticDecoder(Decoder):
    """As `Decoder`, with room for `rows` sequences, of which `sequences` are used; `options` are those of
    torch.compile."""

    def __init__(
        self,
        prior: PriorNetwork,
        prepared: PreparedWeights,
        rows: int,
        steps: int,
        options: dict[str, Any] = INDUCTOR,
    ) -> None:
        super().__init__(prior, prepared, rows, steps)
        self.sequences = rows
        self.cache.zero_()  # what is masked must still be numbers
        self.position = torch.zeros(1, dtype=torch.int64, device=self.cache.device)
        self.numbers = torch.arange(steps, device=self.cache.device)
        self.of_steps = torch.view_as_real(self.rotary[:, 0, 0]).contiguous()
        # A graph reads these where they are; other tensors it would copy before every step.
        kept = [
            self.cache,
            *self.both,
            self.position,
            self.numbers,
            self.of_steps,
            *prepared.tensors(prior, rows),
        ]
        for tensor in kept if self.target is None else [*kept, self.target]:
            torch._dynamo.mark_static_address(tensor)
        # Code of its own: torch counts, and limits, how often a function's code was compiled.
        code = type(self).step.__code__.replace()
        step = MethodType(FunctionType(code, type(self).step.__globals__), self)
        self.run = torch.compile(step, fullgraph=True, dynamic=False, **options)

    def advance(self, x: Tensor) -> Tensor:
        x = self._all_rows(x)
        if x.shape[1] > 1:
            return super().advance(x)[: self.sequences]
        self.position.fill_(self.length)
        self.length += 1
        torch.compiler.cudagraph_mark_step_begin()
        hidden: Tensor = self.run(x[:, 0])
        if self.depth is not None:
            self.depth.begin(hidden)
        return hidden[: self.sequences]

    def logits(self, hidden: Tensor, codebook: int, before: Tensor) -> Tensor:
        if self.depth is not None:
            hidden = self.depth.reach(codebook, self._all_rows(before))[: self.sequences]
        return self.codebook_heads[codebook](hidden).to(self.cache.dtype)

    def _all_rows(self, x: Tensor) -> Tensor:
        """x (sequences, ...) and zeros: (rows, ...)."""
        return torch.cat([x, x.new_zeros(self.rows - len(x), *x.shape[1:])])

    def step(self, x: Tensor) -> Tensor:
        """The input (rows, dim) of the step at `self.position` → the last hidden layer (rows, dim)."""
        at, dtype = self.position, self.cache.dtype
        seen = self.numbers <= at
        turn = self.of_steps.index_select(0, at)
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
