"""A codebook learnt without gradients: k-means start, moving averages over all processes, revival of dead
entries.

Left out: the search (`tokenizer.search`) and the way to and from the layout of pictures (the bottlenecks).
"""

import math

import torch
from torch import Tensor, nn

from tokenizer.distributed import Step, all_reduce_sum, broadcast
from tokenizer.search import nearest

# Vectors of the global batch kept per step for revival; at most so many entries are revived in one step.
CANDIDATES = 128
# Vectors per entry that the k-means reservoir aims at, as far as the first steps have that many.
RESERVOIR_PER_ENTRY = 64
KMEANS_ITERATIONS = 10


class EMACodebook(nn.Module):
    """Entries (N, D) that follow the vectors assigned to them (van den Oord et al. 2017, appendix A.1).

    `update` only gathers until the last accumulation step of an optimizer step; then the sums of all
    processes are added and applied, so that every process holds the same codebook. Each collective is
    called on every step by every process, whatever its data are.
    """

    entries: Tensor
    ema_count: Tensor
    ema_sum: Tensor
    started: Tensor
    pending: Tensor

    def __init__(self, size: int, dim: int, decay: float, kmeans_steps: int, revive_below: float) -> None:
        super().__init__()
        self.decay, self.kmeans_steps, self.revive_below = decay, kmeans_steps, revive_below
        self.register_buffer("entries", torch.randn(size, dim))
        self.register_buffer("ema_count", torch.ones(size))
        self.register_buffer("ema_sum", self.entries.clone())
        self.register_buffer("started", torch.tensor(kmeans_steps == 0))
        # Sums (N, D) and counts (N, 1) since the last optimizer step, in one tensor for one collective.
        self.register_buffer("pending", torch.zeros(size, dim + 1), persistent=False)
        self._picked: Tensor | None = None
        self._reservoir: list[Tensor] = []
        self._revived = torch.zeros((), dtype=torch.int64)
        self._events: list[str] = []

    @torch.no_grad()
    def update(self, z_e: Tensor, codes: Tensor, examples: int, step: Step | None) -> Tensor:
        """Take in z_e (M, D) of `examples` examples and their codes (M,). Returns counts (N,): of the
        whole global batch on the last accumulation step, else of what this process has seen since the last
        one."""
        step = step or Step(int(torch.randint(1 << 31, ())), 0, 0, examples)
        self._pick(z_e, examples, step)
        ones = z_e.new_ones(z_e.shape[0], 1)
        self.pending.index_add_(0, codes, torch.cat([z_e, ones], dim=1).to(self.pending.dtype))
        if not step.last:
            return self.pending[:, -1].clone()
        total = all_reduce_sum(self.pending.clone())
        assert self._picked is not None
        picked = all_reduce_sum(self._picked)
        self.pending.zero_()
        self._picked = None
        sums, counts = total[:, :-1], total[:, -1]
        if bool(self.started):
            self._average(sums, counts)
            self._revive(picked, float(step.total * z_e.shape[0] / examples), step)
        else:
            self._reservoir.append(picked)
            if len(self._reservoir) >= self.kmeans_steps:
                self._start(step, step.total * z_e.shape[0] / examples)
        return counts

    def _pick(self, z_e: Tensor, examples: int, step: Step) -> None:
        """Copy this pass's share of the step's randomly picked rows of the global batch into `_picked` (P,
        D).

        The picks are a function of (seed, step); each row lies on one process and is zero on all others, so
        that a sum over processes gives the same vectors everywhere.
        """
        positions = z_e.shape[0] // examples
        rows, first = step.total * positions, step.offset * positions
        size = self.entries.shape[0]
        if bool(self.started):
            picks = torch.randint(rows, (min(CANDIDATES, size),), generator=step.generator("revive"))
        else:
            wanted = min(rows, math.ceil(RESERVOIR_PER_ENTRY * size / self.kmeans_steps))
            picks = torch.randperm(rows, generator=step.generator("reservoir"))[:wanted]
        picks = picks.to(z_e.device) - first
        here = (picks >= 0) & (picks < z_e.shape[0])
        mine = torch.where(here[:, None], z_e[picks.clamp(0, z_e.shape[0] - 1)], z_e.new_zeros(()))
        self._picked = mine.to(self.entries.dtype) + (0 if self._picked is None else self._picked)

    def _average(self, sums: Tensor, counts: Tensor) -> None:
        self.ema_count.lerp_(counts, 1 - self.decay)
        self.ema_sum.lerp_(sums, 1 - self.decay)
        # An entry whose count has vanished stays where it is instead of becoming 0 / 0.
        used = self.ema_count > 1e-6
        mean = self.ema_sum / self.ema_count.clamp(min=1e-6)[:, None]
        self.entries.copy_(torch.where(used[:, None], mean, self.entries))

    def _revive(self, picked: Tensor, rows: float, step: Step) -> None:
        """Move dead entries to vectors of the batch, with fresh statistics: stale ones would pull them
        back."""
        uniform = rows / self.entries.shape[0]
        least, index = self.ema_count.topk(picked.shape[0], largest=False)
        dead = least < self.revive_below * uniform
        count = torch.where(dead, uniform / 2, least)
        self.entries[index] = torch.where(dead[:, None], picked, self.entries[index])
        self.ema_sum[index] = torch.where(dead[:, None], picked * count[:, None], self.ema_sum[index])
        self.ema_count[index] = count
        self._revived = self._revived.to(dead.device) + dead.sum()

    def _start(self, step: Step, rows: float) -> None:
        """k-means over the reservoir, which is equal on all processes; process 0's result counts."""
        reservoir = torch.cat(self._reservoir)
        generator = step.generator("kmeans")
        size = self.entries.shape[0]
        missing = size - reservoir.shape[0]
        if missing > 0:
            again = torch.randint(reservoir.shape[0], (missing,), generator=generator).to(reservoir.device)
            jitter = torch.randn(missing, reservoir.shape[1], generator=generator).to(reservoir)
            scale = reservoir.std(0, correction=0).clamp(min=1e-3) * 0.01
            reservoir = torch.cat([reservoir, reservoir[again] + scale * jitter])
        entries, counts = kmeans(reservoir, size, generator)
        # Counts in units of one global batch, as the moving average keeps them.
        counts = counts * (rows / reservoir.shape[0])
        self.entries.copy_(broadcast(entries))
        self.ema_count.copy_(broadcast(counts))
        self.ema_sum.copy_(self.entries * self.ema_count[:, None])
        self.started.fill_(True)
        topped_up = f", {missing} of them jittered copies" if missing > 0 else ""
        self._events.append(f"k-means placed {size} entries among {len(reservoir)} vectors{topped_up}")
        self._reservoir = []

    def training_state(self) -> dict[str, Tensor]:
        """The reservoir while it fills; everything else that counts is in the state_dict."""
        return {"reservoir": torch.stack(self._reservoir)} if self._reservoir else {}

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        """Restore `training_state`; sums of an unfinished optimizer step are dropped."""
        self._reservoir = list(state["reservoir"].to(self.entries)) if "reservoir" in state else []
        self.pending.zero_()
        self._picked = None

    def events(self) -> list[str]:
        """What happened since the last call, for the log."""
        events, self._events = self._events, []
        if revived := int(self._revived):
            share = f"{self.revive_below:g}"
            events.append(f"revived {revived} codebook entries used below {share} of uniform use")
            self._revived.zero_()
        return events


@torch.no_grad()
def kmeans(x: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from random rows of x (M, D), M ≥ size → centres (size, D), counts (size,).

    A centre that loses all its rows moves to a random row; ten rounds suffice for a start that training
    refines.
    """
    centres = x[torch.randperm(x.shape[0], generator=generator)[:size].to(x.device)].clone()
    counts = x.new_zeros(size)
    for _ in range(KMEANS_ITERATIONS):
        codes = nearest(x, centres)
        counts = torch.bincount(codes, minlength=size).to(x.dtype)
        sums = torch.zeros_like(centres).index_add_(0, codes, x)
        random_rows = x[torch.randint(x.shape[0], (size,), generator=generator).to(x.device)]
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], random_rows)
    return centres, counts


def perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of a histogram (..., N): the number of entries that would carry as much if used
    evenly."""
    p = counts / counts.sum(-1, keepdim=True).clamp(min=1e-12)
    entropy: Tensor = torch.special.entr(p).sum(-1)
    return entropy.exp()
