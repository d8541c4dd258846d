"""The decoder's steps for few sequences on a CPU, in loops compiled by numba (`tokenloom[fast]`): all blocks
of a step in one call, so that it takes little longer than reading the weights.

Left out: the loops (`decoder_kernels.py`); the steps of a prefix, many sequences, and GPUs (`decoder.py`).

Each thread owns some heads and some rows of every matrix. Where one needs what others make they meet: each
looks at a counter until all have come. The workers do so from the first step to the last.
"""

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from prior.decoder import Decoder
from prior.decoder_kernels import SIGNALS, STOPPED, step_kernel
from prior.network import Network
from prior.prepared import MANY_ROWS, Int8, Matrix, Prepared

# More threads would wait longer for each other than they save.
MOST_THREADS = 16


def serves(prior: Network, prepared: Prepared, rows: int) -> bool:
    """Whether these loops are there for so many sequences of this prior."""
    return prepared.compiled and prior.head.dtype == torch.float32 and rows < MANY_ROWS


class CompiledDecoder(Decoder):
    """As `Decoder`, with threads that end with the context."""

    def __init__(self, prior: Network, prepared: Prepared, rows: int, steps: int) -> None:
        super().__init__(prior, prepared, rows, steps)
        config = prior.config
        self.threads = max(1, min(torch.get_num_threads(), MOST_THREADS, config.heads))
        matrices: list[Matrix] = []
        for layer in self.layers:
            assert layer.up is not None
            matrices += [layer.qkv, layer.out, layer.gate, layer.up, layer.down]
        matrices += self.codebook_heads
        numbers = [stored(matrix) for matrix in matrices]
        # Kept here, as the loops know addresses only.
        self.kept = [m.scale.float() if isinstance(m, Int8) else torch.empty(0) for m in matrices], numbers
        norms = [norm for layer in self.layers for norm in (layer.attention_norm, layer.ffn_norm)]
        of_heads = [layer.qk_norm for layer in self.layers if layer.qk_norm is not None]
        self.books = prior.pattern.codebook.numpy()
        self.hidden = torch.zeros(rows, config.dim)
        self.h, y = np.zeros((2, rows, config.dim), np.float32)
        self.slots = [{book: q for q, book in enumerate(held)} for held in self.books.tolist()]
        self.out = torch.zeros(self.books.shape[1], rows, config.codebook_size)
        self.signals = np.zeros(SIGNALS, np.int64)
        self.kernel = step_kernel(prepared.weights)
        self.arguments = (
            self.signals,
            self.h,
            self.hidden.numpy(),
            y,
            np.zeros((rows, config.ffn_dim), np.float32),
            self.cache.numpy(),
            prior.rotary().numpy(),
            np.stack([norm.scale.numpy() for norm in (*norms, self.norm)]),
            np.stack([norm.scale[:, 0].numpy() for norm in of_heads])
            if of_heads
            else np.zeros((0, 2, self.width), np.float32),
            np.array([self.norm.shift, of_heads[0].shift if of_heads else 0], np.float32),
            *(np.array([t.data_ptr() for t in tensors]) for tensors in (numbers, self.kept[0])),
            np.array([t.shape[1] for t in numbers]),
            self.books,
            self.out.numpy(),
        )
        self.origin = -1
        self.pool: ThreadPoolExecutor | None = None
        self.workers: list[Future[None]] = []

    def __exit__(self, *_: object) -> None:
        self.signals[STOPPED] = 1
        if self.pool:
            self.pool.shutdown()

    def advance(self, x: Tensor) -> Tensor:
        if x.shape[1] > 1:
            return super().advance(x)
        step, self.length = self.length, self.length + 1
        self.h[:] = (x[:, 0] if self.target is None else x[:, 0] + self.target[step]).numpy()
        if self.origin < 0:
            self.origin = step
            self._start()
        for worker in self.workers:
            if worker.done():  # before the last step: only an error ends it
                worker.result()
        self._run(0, step, step + 1)
        return self.hidden

    def _start(self) -> None:
        """Have the other threads take part from now on."""
        if self.threads > 1:
            self.pool = ThreadPoolExecutor(self.threads - 1)
            last = self.cache.shape[4]
            for thread in range(1, self.threads):
                self.workers.append(self.pool.submit(self._run, thread, self.origin, last))

    def _run(self, thread: int, first: int, last: int) -> None:
        self.kernel(first, last, thread, self.threads, self.origin, *self.arguments)

    def logits(self, hidden: Tensor, codebook: int, before: Tensor) -> Tensor:
        if self.origin < 0:
            return super().logits(hidden, codebook, before)
        return self.out[self.slots[self.length - 1][codebook]]


def stored(matrix: Matrix) -> Tensor:
    """A matrix's numbers (out, in) as they lie in memory."""
    numbers = matrix.weight if isinstance(matrix, Int8) else matrix.weight.T  # type: ignore[attr-defined]
    assert numbers.is_contiguous()
    return numbers
