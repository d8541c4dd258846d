"""The decoder's steps on a CPU, in loops compiled by numba (the extra `fast`): all blocks of a step in one
call, so that one sequence takes little longer than reading the weights, and many do not wait for operations
to start. What a sequence gets does not depend on how many there are, to the bit.

Left out: the loops (`kernels.py`), how they read matrices (`layout.py`), depth transformers
(`sampling/decoder.py`), and GPUs (`sampling/decoder_cuda.py`).

Each thread owns some heads and some outputs of every matrix. Where one needs what others make they meet:
each looks at a counter until all have come. The workers do so from the first step to the last; torch has one
thread as long, as its own would wait for the cores that these hold.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from prior.network import PriorNetwork
from prior.sampling.cpu.kernels import SIGNALS, STOPPED, step_kernel
from prior.sampling.cpu.layout import PackedPrior
from prior.sampling.decoder import DepthSteps
from prior.sampling.weights import PreparedWeights

# More threads would wait longer for each other than they save.
MOST_THREADS = 16


def serves(prior: PriorNetwork, prepared: PreparedWeights) -> bool:
    """Whether these loops are there for this prior."""
    return prepared.compiled and prior.head.dtype == torch.float32


class CompiledDecoder:
    """As `Decoder`, within a context, with which its threads end."""

    def __init__(self, prior: PriorNetwork, prepared: PreparedWeights, rows: int, steps: int) -> None:
        config = prior.config
        if not isinstance(prepared.kept, PackedPrior):
            prepared.kept = PackedPrior(prior, prepared.weights)
        self.config, self.packed, self.rows, self.steps, self.length = config, prepared.kept, rows, steps, 0
        self.kernel = step_kernel(prepared.weights)
        self.target = None if prior.target_embedding is None else prior.target_embedding.detach().numpy()
        self.rotary = prior.rotary().numpy()
        self.cache = torch.empty(config.depth, 2, rows, config.heads, steps, config.dim // config.heads)
        self.hidden = torch.zeros(rows, config.dim)
        self.depth: DepthSteps | None = None
        self.books = prior.pattern.codebook.numpy()
        if prior.inner is not None:
            ready = prepared.of(prior, rows)
            self.depth, self.heads = DepthSteps(prior.inner, *ready.inner, rows, self.cache), ready.heads
            self.books = self.books[:, :0]  # the codebooks' heads are beyond the depth transformer
        self.slots = [{book: q for q, book in enumerate(books)} for books in self.books.tolist()]
        # As wide as the panels, of which the last may have outputs that are none.
        self.out = torch.zeros(self.books.shape[1], rows, self.packed.matrices[-1].outputs)
        self.h = np.zeros((rows, config.dim), np.float32)
        self.signals = np.zeros(SIGNALS, np.int64)
        self.arguments: tuple[Any, ...] = ()
        self.workers: list[Future[None]] = []

    def __enter__(self) -> Self:
        self.torch_threads = torch.get_num_threads()
        self.threads = max(1, min(self.torch_threads, MOST_THREADS, self.config.heads))
        self.pool = ThreadPoolExecutor(max(1, self.threads - 1))
        torch.set_num_threads(1)
        return self

    def __exit__(self, *_: object) -> None:
        self.signals[STOPPED] = 1
        self.pool.shutdown()
        torch.set_num_threads(self.torch_threads)

    def advance(self, x: Tensor) -> Tensor:
        """As `Decoder.advance`."""
        start, steps = self.length, x.shape[1]
        self.length += steps
        inputs = x.numpy() if self.target is None else x.numpy() + self.target[start : self.length]
        if steps > 1:
            self._begin(inputs)
        else:
            if not self.arguments:
                self.arguments = self._arguments(start, 1, self.signals, self.h)
                self.workers = self._others(start, self.steps, self.arguments)
            self.h[:] = inputs[:, 0]
            for worker in self.workers:
                if worker.done():  # before the last step: only an error ends it
                    worker.result()
            self.kernel(start, start + 1, 0, self.threads, *self.arguments)
        if self.depth is not None:
            self.depth.begin(self.hidden)
        return self.hidden

    def _begin(self, inputs: Any) -> None:
        """The steps of a prefix at once, from inputs (rows, n, dim)."""
        h = np.ascontiguousarray(inputs, np.float32).reshape(-1, self.config.dim)
        arguments = self._arguments(0, inputs.shape[1], np.zeros(SIGNALS, np.int64), h)
        workers = self._others(0, 1, arguments)
        self.kernel(0, 1, 0, self.threads, *arguments)
        for worker in workers:
            worker.result()

    def _arguments(self, origin: int, span: int, signals: Any, h: Any) -> tuple[Any, ...]:
        """What the loops take, in their order, beside steps and threads."""
        config, packed = self.config, self.packed
        _, out, gate, *_ = packed.matrices
        room = (
            np.zeros((len(h), config.dim), np.float32),
            np.zeros((len(h), out.outputs), np.float32),
            np.zeros((2, len(h), gate.outputs), np.float32),
        )
        of_weights = (packed.norms, packed.head_norms, packed.shifts, packed.addresses, packed.scales)
        return (
            *(origin, span, config.ffn_dim, signals, h, self.hidden.numpy(), *room),
            *(self.cache.numpy(), self.rotary, *(part.numpy() for part in (*of_weights, packed.panels))),
            *(self.books, self.out.numpy()),
        )

    def _others(self, first: int, last: int, arguments: tuple[Any, ...]) -> list[Future[None]]:
        """All threads but this one, from step `first` to the one before `last`."""
        others = range(1, self.threads)
        return [self.pool.submit(self.kernel, first, last, t, self.threads, *arguments) for t in others]

    def logits(self, hidden: Tensor, codebook: int, before: Tensor) -> Tensor:
        """As `Decoder.logits`."""
        if self.depth is not None:
            return self.heads[codebook](self.depth.reach(codebook, before)).float()
        return self.out[self.slots[self.length - 1][codebook], :, : self.config.codebook_size]
