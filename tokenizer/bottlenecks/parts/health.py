"""How well a codebook is used: usage, perplexity and the age of dead codes over a window of all processes.

Left out: remedies, which are up to the bottlenecks (`codebook.py` revives dead entries).
"""

import math

import torch
from torch import Tensor, nn

from tokenizer.bottlenecks import Event
from tokenizer.distributed import Step, all_reduce_sum

# Optimizer steps that usage and perplexity look back on.
WINDOW = 100
# Usage below this share of what the window's number of codes allows gets a warning, once in so many windows.
LOW, WARN_AGAIN = 0.5, 10

# Statistics of how a bottleneck stands after its latest optimizer step; all others are means over the
# examples of a pass.
STANDING = frozenset({"usage", "usage_least", "perplexity", "dead_age", "kl_factor"})


class Health(nn.Module):
    """Counts the codes of one codebook of `size` entries over all processes and accumulation passes.

    `advice` is what a warning tells people to try. Nothing here is saved with a model; `training_state` is
    what an exact resume needs.
    """

    recent: Tensor
    age: Tensor
    seen: Tensor
    pending: Tensor

    def __init__(self, size: int, advice: str) -> None:
        super().__init__()
        self.size, self.advice = size, advice
        self.make_unsaved()
        self._quiet_until = 2 * WINDOW

    def make_unsaved(self) -> None:
        """All counts at their beginning."""
        # Counts that fade by a factor of e in a window, and steps since a code was used last.
        self.register_buffer("recent", torch.zeros(self.size), persistent=False)
        self.register_buffer("age", torch.full((self.size,), torch.inf), persistent=False)
        # Optimizer steps so far, and codes in the last of them.
        self.register_buffer("seen", torch.zeros(2), persistent=False)
        self.register_buffer("pending", torch.zeros(self.size), persistent=False)

    @torch.no_grad()
    def count(self, codes: Tensor, step: Step | None) -> None:
        """Take in the codes (any shape) of a training pass. On the last accumulation pass all processes' are
        added, so every process must call this on every pass."""
        self.pending += counts_of(codes, self.size)
        if step is None or step.last:
            self.observe(all_reduce_sum(self.pending.clone()))
            self.pending.zero_()

    @torch.no_grad()
    def observe(self, counts: Tensor) -> None:
        """Take in how often each code was used in a whole optimizer step: (size,), of all processes."""
        self.recent.mul_(1 - 1 / WINDOW).add_(counts)
        self.age.copy_(torch.where(counts > 0, 0.0, self.age + 1))
        self.seen[0] += 1
        self.seen[1] = counts.sum()

    def stats(self) -> dict[str, Tensor]:
        """Scalars: `usage`, the share of codes used in the window; `perplexity` of their use, recent ones
        weighing more; `dead_age`, the optimizer steps since the longest unused code was used."""
        return {
            "usage": self._usage(),
            "perplexity": perplexity(self.recent),
            "dead_age": torch.minimum(self.age, self.seen[0]).amax(),
        }

    def _usage(self) -> Tensor:
        return (self.age < WINDOW).to(self.recent.dtype).mean()

    def events(self) -> list[Event]:
        """A warning, if usage stays low. It reads values from the device: for log steps only."""
        steps, codes = self.seen.tolist()
        if steps < self._quiet_until:
            return []
        usage, possible = float(self._usage()), -math.expm1(-codes * WINDOW / self.size)
        if usage >= LOW * possible:
            return []
        self._quiet_until = int(steps) + WARN_AGAIN * WINDOW
        return [
            Event(
                f"warning: {usage:.1%} of {self.size} codes were used in the last {WINDOW} steps, of "
                f"{possible:.1%} that so many codes could reach; {self.advice}"
            )
        ]

    @property
    def young(self) -> bool:
        """Whether so few steps were seen that unused codes are no bad sign yet. Reads the device."""
        return float(self.seen[0]) < 2 * WINDOW

    def training_state(self) -> dict[str, Tensor]:
        """What an exact resume needs."""
        return {"health.recent": self.recent, "health.age": self.age, "health.seen": self.seen}

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        """Restore `training_state`; counts of an unfinished optimizer step are dropped."""
        for name, value in self.training_state().items():
            if state[name].shape != value.shape:  # which `copy_` might repeat to fit
                raise ValueError(f"{name} is {tuple(state[name].shape)}, expected {tuple(value.shape)}")
            value.copy_(state[name])
        self.pending.zero_()


def perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of a histogram (..., N): the number of entries that would carry as much if used
    evenly."""
    p = counts / counts.sum(-1, keepdim=True).clamp(min=1e-12)
    entropy: Tensor = torch.special.entr(p).sum(-1)
    return entropy.exp()


def counts_of(codes: Tensor, size: int) -> Tensor:
    """How often each of `size` codes is among `codes` (any shape): (size,) int64. Unlike bincount, this does
    not look for the largest one, for which a GPU would stand still."""
    rows = codes.flatten()
    return rows.new_zeros(size).scatter_add_(0, rows, torch.ones_like(rows))


def batch_stats(codes: Tensor, size: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """usage and perplexity of these codes (any shape) alone, for eval mode."""
    counts = counts_of(codes, size).to(dtype)
    return {"usage": (counts > 0).to(dtype).mean(), "perplexity": perplexity(counts)}
