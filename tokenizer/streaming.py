"""Sound in chunks: codes and samples of a signal of any length in bounded memory, as those of the whole.

Left out: the layers' own states (`tokenizer.layers_1d`), and reading or playing sound.
"""

from collections.abc import Iterable, Iterator
from typing import ClassVar, Protocol, cast

import torch
from torch import Tensor

from tokenizer.layers_1d import State
from tokenizer.network import TokenizerNetwork
from tokenizer.precision import full_precision


class Streamed(Protocol):
    """A network for signals that takes them in chunks, as `tokenizer.layers_1d.Network` does."""

    def start(self, like: Tensor) -> State: ...
    def stream(self, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]: ...


class _Stream:
    """What both directions share: a network, its state, and the steps of input so far."""

    _takes: ClassVar[str]

    def __init__(self, tok: TokenizerNetwork, network: torch.nn.Module) -> None:
        if not tok.modality.timed:
            raise ValueError("streams are for sound; this tokenizer is for pictures")
        self._tok, self._network = tok, cast(Streamed, network)
        self.state: State = None
        self.steps = 0
        self._like: Tensor | None = None
        self._finished = False

    def _run(self, x: Tensor, last: bool) -> Tensor:
        """The next input (B, C, n) → what it completes of the output."""
        if self._finished:
            raise ValueError("the stream is finished; make a new one")
        if self._like is None:
            # New and empty: a view would keep the first chunk in memory.
            self._like, self.state = x.new_empty(*x.shape[:2], 0), self._network.start(x)
        if x.shape[0] != self._like.shape[0]:
            raise ValueError(
                f"{self._takes}: expected {self._like.shape[0]} examples in each, as in the first, got "
                f"{x.shape[0]}; make a new stream for others"
            )
        with full_precision(not self._tok.tf32):
            y, self.state = self._network.stream(x, self.state, last)
        self.steps += x.shape[2]
        self._finished = last
        return y


class EncodeStream(_Stream):
    """Waveforms in, codes out: `push` chunks as they come, then `finish`.

    `state` is what the encoder keeps: tensors (nested in tuples) whose sizes follow from its layers and do
    not grow. A causal encoder gives each frame with the last of its own samples; another one looks ahead
    as far as its layers do.
    """

    _takes = "chunks"

    def __init__(self, tok: TokenizerNetwork, num_codebooks: int | None = None) -> None:
        super().__init__(tok, tok.encoder)
        self._count = tok.checked_num_codebooks(num_codebooks)

    @torch.no_grad()
    def push(self, x: Tensor) -> Tensor:
        """x: (B, C, n) float in [-1, 1], any n → the codes (B, K, t) int64 that are now complete, t ≥ 0."""
        return self.push_prepared(self._tok.prepared(x, empty=True))

    @torch.no_grad()
    def push_prepared(self, x: Tensor) -> Tensor:
        """`push` of what `prepared` gave."""
        return self._codes(self._run(x, last=False))

    @torch.no_grad()
    def finish(self) -> Tensor:
        """The codes (B, K, t) that were waiting for the signal's end. `ValueError` if there was no sample."""
        if self._like is None or self.steps == 0:
            raise ValueError("chunks: expected a sample or more before the end, got none; push some first")
        padding = self._like.new_zeros(*self._like.shape[:2], -self.steps % self._tok.stride)
        return self._codes(self._run(padding, last=True))

    def _codes(self, z_e: Tensor) -> Tensor:
        if z_e.shape[2] == 0:
            return torch.empty((len(z_e), self._count, 0), dtype=torch.int64, device=z_e.device)
        with full_precision(not self._tok.tf32):
            return self._tok.bottleneck.encode_first(z_e, self._count)


class DecodeStream(_Stream):
    """Codes in, waveforms out: `push` frames as they come, then `finish`. `state` as in `EncodeStream`."""

    _takes = "codes"

    def __init__(self, tok: TokenizerNetwork) -> None:
        super().__init__(tok, tok.decoder)

    @torch.no_grad()
    def push(self, codes: Tensor) -> Tensor:
        """codes: (B, K, t) int64, t ≥ 1 → the samples (B, C, n) that are now complete, n ≥ 0."""
        codes = self._tok.check_codes(codes)
        return self._run(self._tok.in_weights_type(self._tok.bottleneck.decode(codes)), last=False)

    @torch.no_grad()
    def finish(self) -> Tensor:
        """The samples (B, C, n) that were waiting for the end. `ValueError` if there was no frame."""
        if self._like is None:
            raise ValueError("codes: expected a frame or more before the end, got none; push some first")
        return self._run(self._like, last=True)


def run_stream(stream: EncodeStream | DecodeStream, parts: Iterable[Tensor]) -> Iterator[Tensor]:
    """What the stream makes of `parts`, without empty pieces."""
    for part in parts:
        if (y := stream.push(part)).shape[2]:
            yield y
    if (y := stream.finish()).shape[2]:
        yield y
