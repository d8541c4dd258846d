"""Codebooks and what keeps them alive: a start by k-means, statistics of all processes, revival of dead
entries.

Left out: the kinds of codebooks (`codebooks.py`, `codebooks.py`), the search (`tokenizer.search.exact`),
and the way to and from the layout of pictures (the bottlenecks).
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.bottlenecks import Event
from tokenizer.bottlenecks.parts.health import Health, counts_of
from tokenizer.checks import require_finite
from tokenizer.devices import send
from tokenizer.distributed import Step, all_reduce_sum, broadcast

# Vectors of the global batch kept per step for revival; at most so many entries are revived in one step.
CANDIDATES = 128
# Vectors per entry that the k-means reservoir aims at, as far as the first steps have that many.
RESERVOIR_PER_ENTRY = 64
# Without a decay given, the moving averages reach back over about so many vectors of each entry, as far as
# that is between these decays. Measured on emoji, 512 entries after 300 steps: 21.8 dB with 0.99 at 8 vectors
# per entry and step, 22.5 with 0.97, 22.6 with 0.9.
VECTORS_PER_ENTRY, QUICKEST, SLOWEST = 64, 0.9, 0.99

ADVICE = "try a smaller codebook_size, a higher revive_below, or update simvq"


class Codebook(nn.Module):
    """Base of codebooks of `size` entries of `dim` dimensions, on the unit sphere if `spherical`.

    `update` only gathers until the last accumulation step of an optimizer step; then the sums of all
    processes are added and applied, so that every process holds the same codebook. Each collective is
    called on every step by every process, whatever its data are.
    """

    # Whether gradients reach the entries; then the bottleneck adds a loss that pulls them to their vectors.
    learnt: ClassVar[bool] = False
    # Share of uniform use below which an entry is dead, unless another one is given.
    least_use: ClassVar[float] = 0.1
    # Whether `_learn` needs the sums of vectors by code, besides their counts.
    sums: ClassVar[bool] = False

    ema_count: Tensor
    started: Tensor
    pending_sums: Tensor
    pending_counts: Tensor

    def __init__(
        self,
        size: int,
        dim: int,
        decay: float | None,
        kmeans_steps: int,
        revive_below: float | None,
        spherical: bool = False,
    ) -> None:
        super().__init__()
        self.size, self.dim, self.spherical = size, dim, spherical
        self.decay, self.kmeans_steps = decay, kmeans_steps
        self.revive_below = self.least_use if revive_below is None else revive_below
        self.register_buffer("ema_count", torch.ones(size))
        self.register_buffer("started", torch.tensor(kmeans_steps == 0))
        # The same for who must know it at once: a look at a tensor waits for a GPU.
        self.has_started = kmeans_steps == 0
        self.health = Health(size, ADVICE)
        self._picked: Tensor | None = None
        self._reservoir: list[Tensor] = []
        self._events: list[Event] = []
        self.make_unsaved()
        self._make()

    def make_unsaved(self) -> None:
        """Statistics at their beginning."""
        # Sums (N, D) of vectors by code, if they are needed, and counts (N,) since the last optimizer step.
        self.register_buffer("pending_sums", torch.zeros(self.size, self.dim * self.sums), persistent=False)
        self.register_buffer("pending_counts", torch.zeros(self.size), persistent=False)
        # Entries revived since the last report, but for the latest step; and in that.
        self._revived: Tensor | int = 0
        self._revived_last: Tensor | int = 0

    def _make(self) -> None:
        """Add random entries, or what they are made of."""
        raise TypeError(f"{type(self).__name__} does not define _make")

    @property
    def vectors(self) -> Tensor:
        """The entries (N, D) as the search compares them; on the unit sphere if `spherical`."""
        raise TypeError(f"{type(self).__name__} does not define vectors")

    def decay_for(self, rows: float) -> float:
        """The decay of the moving averages at `rows` vectors per optimizer step."""
        if self.decay is not None:
            return self.decay
        return min(SLOWEST, max(QUICKEST, 1 - rows / self.size / VECTORS_PER_ENTRY))

    def _learn(self, total: Tensor, share: float) -> None:
        """Apply the statistics (N, D + 1 or 1) of a whole optimizer step, which take `share` of the moving
        averages, after `ema_count` was updated."""

    def _begin(self, reservoir: Tensor, generator: torch.Generator) -> tuple[Tensor, str]:
        """Set the entries by a reservoir (M, D) of vectors, M ≥ N. Returns how many of its rows each entry
        has, (N,), and what was done, in words."""
        raise TypeError(f"{type(self).__name__} does not define _begin")

    def _move(self, index: Tensor, dead: Tensor, vectors: Tensor) -> None:
        """Set the entries `index` (P,) to `vectors` (P, D) where `dead` (P,) holds."""
        raise TypeError(f"{type(self).__name__} does not define _move")

    @torch.no_grad()
    def update(self, z_e: Tensor, codes: Tensor, examples: int, step: Step | None) -> None:
        """Take in z_e (M, D) of `examples` examples and their codes (M,)."""
        placed = None if step is None else step.index + 1
        step = step or Step(int(torch.randint(1 << 31, ())), 0, 0, examples)
        self._pick(z_e, examples, step)
        if self.sums:
            self.pending_sums.index_add_(0, codes, z_e.to(self.pending_sums.dtype))
        self.pending_counts += counts_of(codes, self.size)
        if not step.last:
            return
        # One tensor for one collective.
        total = all_reduce_sum(torch.cat([self.pending_sums, self.pending_counts[:, None]], dim=1))
        assert self._picked is not None
        picked = all_reduce_sum(self._picked)
        self._drop_pending()
        rows_of_step = step.total * z_e.shape[0] / examples
        if self.has_started:
            share = 1 - self.decay_for(rows_of_step)
            self.ema_count.lerp_(total[:, -1], share)
            self._learn(total, share)
            self._revive(picked, rows_of_step)
            self.health.observe(total[:, -1])
        else:
            self._reservoir.append(picked)
            if len(self._reservoir) >= self.kmeans_steps:
                done = self._start(step, rows_of_step)
                self._events.append(Event(done, placed))

    def _pick(self, z_e: Tensor, examples: int, step: Step) -> None:
        """Copy this pass's share of the step's randomly picked rows of the global batch into `_picked` (P,
        D).

        The picks are a function of (seed, step); each row lies on one process and is zero on all others, so
        that a sum over processes gives the same vectors everywhere.
        """
        positions = z_e.shape[0] // examples
        rows, first = step.total * positions, step.offset * positions
        if self.has_started:
            picks = torch.randint(rows, (min(CANDIDATES, self.size),), generator=step.generator("revive"))
        else:
            wanted = min(rows, math.ceil(RESERVOIR_PER_ENTRY * self.size / self.kmeans_steps))
            picks = torch.randperm(rows, generator=step.generator("reservoir"))[:wanted]
        picks = send(picks, z_e.device) - first
        here = (picks >= 0) & (picks < z_e.shape[0])
        mine = torch.where(here[:, None], z_e[picks.clamp(0, z_e.shape[0] - 1)], z_e.new_zeros(()))
        self._picked = mine.to(self.ema_count.dtype) + (0 if self._picked is None else self._picked)

    def _revive(self, picked: Tensor, rows: float) -> None:
        """Move dead entries to vectors of the batch, with fresh statistics: stale ones would pull them
        back."""
        uniform = rows / self.size
        least, index = self.ema_count.topk(picked.shape[0], largest=False)
        dead = least < self.revive_below * uniform
        self.ema_count[index] = torch.where(dead, uniform / 2, least)
        self._move(index, dead, picked)
        self._revived = self._revived + self._revived_last
        self._revived_last = dead.sum()

    def _start(self, step: Step, rows: float) -> str:
        """Begin with the reservoir, which is equal on all processes; process 0's result counts. Returns what
        was done, in words."""
        reservoir = torch.cat(self._reservoir)
        generator = step.generator("kmeans")
        missing = self.size - reservoir.shape[0]
        if missing > 0:
            again = torch.randint(reservoir.shape[0], (missing,), generator=generator)
            jitter = torch.randn(missing, reservoir.shape[1], generator=generator).to(reservoir.dtype)
            again, jitter = send(again, reservoir.device), send(jitter, reservoir.device)
            scale = reservoir.std(0, correction=0).clamp(min=1e-3) * 0.01
            reservoir = self.on_sphere(torch.cat([reservoir, reservoir[again] + scale * jitter]))
        counts, done = self._begin(reservoir, generator)
        # Counts in units of one global batch, as the moving average keeps them.
        self.ema_count.copy_(broadcast(counts * (rows / reservoir.shape[0])))
        self.started.fill_(True)
        self.has_started = True
        topped_up = f", {missing} of them jittered copies" if missing > 0 else ""
        self._reservoir = []
        return f"{done} {len(reservoir)} vectors{topped_up}"

    def on_sphere(self, vectors: Tensor) -> Tensor:
        """The vectors (M, D), scaled to length 1 if the codebook is `spherical`."""
        return F.normalize(vectors) if self.spherical else vectors

    def _load_from_state_dict(self, *arguments: Any, **named: Any) -> None:
        super()._load_from_state_dict(*arguments, **named)
        self.has_started = bool(self.started)

    def training_state(self) -> dict[str, Tensor]:
        """The reservoir while it fills, and the health; everything else that counts is in the state_dict."""
        reservoir = {"reservoir": torch.stack(self._reservoir)} if self._reservoir else {}
        return {**self.health.training_state(), **reservoir}

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        """Restore `training_state`; sums of an unfinished optimizer step are dropped."""
        self._reservoir = []
        if "reservoir" in state:
            reservoir = state["reservoir"].to(self.ema_count)
            if reservoir.ndim != 3 or reservoir.shape[2] != self.dim or 0 in reservoir.shape:
                shape = tuple(reservoir.shape)
                raise ValueError(f"reservoir is {shape}, expected (steps, vectors, {self.dim})")
            require_finite(reservoir, "reservoir")
            # A copy: what is read from a file may still be mapped from it, and goes when it is overwritten.
            self._reservoir = list(reservoir.clone())
        # What the latest step did may be undone by this, so there is nothing of it to report.
        self._revived_last = 0
        if not self.has_started:
            self._events = []
        self.health.load_training_state(state)
        self._drop_pending()

    def _drop_pending(self) -> None:
        self.pending_sums.zero_()
        self.pending_counts.zero_()
        self._picked = None

    def events(self) -> list[Event]:
        """What happened since the last call, for the log."""
        events, self._events = self._events, []
        if revived := int(self._revived) + int(self._revived_last):
            usual = ", as is usual early in a run" if self.health.young else ""
            events.append(
                Event(
                    f"revived {revived} codebook entries since the last report, used below "
                    f"{self.revive_below:g} of uniform use: moved to vectors of the batch{usual}"
                )
            )
            self._revived = self._revived_last = 0
        return events + self.health.events()
