"""What quantizers of bits share: their options, and the entropies that keep all codes in use.

Left out: which numbers the bits are the signs of (`lfq.py`, `bsq.py`).
"""

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.bottlenecks.parts.implicit import Implicit
from tokenizer.distributed import Step, all_reduce_sum
from tokenizer.variants import require, training_only

# Probabilities below count as this in logarithms.
LEAST = 1e-12
# Weight of the uniform distribution that the moving average starts from, against 1 − decay of each step.
START = 1e-6

ADVICE = "try a higher entropy_weight or diversity, or fewer bits"


@dataclass(frozen=True)
class BitOptions:
    """The fields that the configs of quantizers of bits have in common."""

    bits: int = 10
    """Bits of a code; the codebook has 2^bits entries."""
    dim: int = 8
    """Channels that the encoder gives and the decoder takes; if they are not as many as bits, linear
    projections lead there and back."""
    beta: float = training_only(0.25)
    """Weight β of the commitment loss ‖z_e − sg[e]‖²."""
    entropy_weight: float = training_only(0.02)
    """Weight of the entropy objective E[H(q(z))] − γ · H(E[q(z)]), in nats: every z sure of its code, and all
    codes in use."""
    diversity: float = training_only(2.0)
    """Weight γ of the second term, that all codes be in use. With 1 bits that are sure of the same side from
    the start may stay there."""
    temperature: float = training_only(1.0)
    """τ of q(c | z) ∝ exp(−‖z − c‖² / τ), the soft assignment that the entropies are of, on a scale on which
    entries are ±1."""
    group_bits: int = training_only(12)
    """Codes of more bits count as several of at most so many in H(E[q(z)]), with a table of 2^group_bits
    numbers each (Zhao et al. 2024, arXiv 2406.07548, section 3.2)."""
    decay: float = training_only(0.9)
    """Decay per optimizer step of the moving average that stands for E[q(z)]."""

    def __post_init__(self) -> None:
        require(1 <= self.bits <= 24, f"bits is {self.bits}, expected 1 to 24")
        require(1 <= self.dim <= 4096, f"dim is {self.dim}, expected 1 to 4096")
        for name in ("beta", "entropy_weight", "diversity"):
            value = getattr(self, name)
            require(0 <= value < float("inf"), f"{name} is {value}, expected 0 or more")
        require(
            0 < self.temperature < float("inf"), f"temperature is {self.temperature}, expected more than 0"
        )
        require(1 <= self.group_bits <= 16, f"group_bits is {self.group_bits}, expected 1 to 16")
        require(0 <= self.decay < 1, f"decay is {self.decay}, expected 0 or more and less than 1")


class Bits(Implicit):
    """Codes made of the signs of `bits` numbers; entries are ±`scale` in each."""

    statistics = frozenset({"mean_entropy.ema"})
    not_coding = Implicit.not_coding | statistics

    place: Tensor

    def __init__(self, options: BitOptions, scale: float) -> None:
        super().__init__(options.dim, options.bits, 1 << options.bits, ADVICE)
        self.options, self.scale = options, scale
        self.mean_entropy = MeanEntropy(options.bits, options.group_bits, options.decay)
        self.make_unsaved()

    def make_unsaved(self) -> None:
        """What each bit counts."""
        self.register_buffer("place", 1 << torch.arange(self.options.bits), persistent=False)

    def quantized(self, z_e: Tensor) -> tuple[Tensor, Tensor]:
        # Index(z) = Σ_i 2^(i−1) 1{z_i > 0} (Yu et al. 2023, arXiv 2310.05737, section 3.1)
        return z_e, torch.where(z_e > 0, self.place, 0).sum(1)

    def entries(self, codes: Tensor, dtype: torch.dtype) -> Tensor:
        signs = torch.where((codes[:, None] & self.place) > 0, 1, -1)
        return signs.to(dtype) * self.scale

    def terms(self, u: Tensor, e: Tensor, step: Step | None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        options = self.options
        commitment = F.mse_loss(u, e)
        # ‖u − c‖² grows by 4 u_i c_i when bit i of c is turned, so q(c | u) is a product over bits.
        logits = u * (4 / self.scale / options.temperature)
        sure = binary_entropy(logits).sum(1).mean()
        used = self.mean_entropy(logits, step)
        losses = {
            "commitment": options.beta * commitment,
            "entropy": options.entropy_weight * (sure - options.diversity * used),
        }
        stats = {
            "commitment": commitment.detach(),
            "entropy_sample": sure.detach(),
            "entropy_mean": self.mean_entropy.now().to(u.dtype),
        }
        return losses, stats

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        super().load_training_state(state)
        self.mean_entropy.pending.zero_()


class MeanEntropy(nn.Module):
    """The entropy of the mean p of q(c | z) over the global batch, as a loss that any process can take on any
    accumulation pass.

    H(p) of a pass is not a share of that of the whole batch, and p itself is only known after the last pass.
    So a moving average p̄ of earlier optimizer steps stands in the logarithm: the loss is H(p_pass, p̄) =
    −Σ_c p_pass(c) log p̄(c). It is linear in p_pass, so its mean over passes and processes is that of the
    whole batch, and so is its gradient, which is that of H where p̄ = p. The price: p̄ lags about
    1 / (1 − decay) steps behind. It starts uniform, under which the gradient is zero, and forgets that in the
    first step: a start that lingers lets bits settle on one side before anything pulls them apart.

    Bits are cut into groups of about the same size, at most `group_bits`; their entropies are added, which is
    an upper bound of the whole (Zhao et al. 2024, arXiv 2406.07548, section 3.2).
    """

    ema: Tensor
    pending: Tensor

    def __init__(self, bits: int, group_bits: int, decay: float) -> None:
        super().__init__()
        groups = math.ceil(bits / group_bits)
        self.sizes = [(bits + g) // groups for g in range(groups)]
        self.decay = decay
        uniform = torch.cat([torch.full((1 << k,), 0.5**k) for k in self.sizes])
        # The moving average of distributions, and of 1: divided by that, p̄ does not remember its start.
        self.register_buffer("ema", START * torch.cat([uniform, torch.ones(1)]))
        self.make_unsaved()

    def make_unsaved(self) -> None:
        """Sums of q(c | z) and the number of z since the last optimizer step: one tensor, one collective."""
        size = sum(1 << k for k in self.sizes)
        self.register_buffer("pending", torch.zeros(size + 1), persistent=False)

    def forward(self, logits: Tensor, step: Step | None) -> Tensor:
        """logits: (M, bits) of the single bits → H(p_pass, p̄) in nats. In training it also takes them into
        p̄, once the last pass of an optimizer step is through."""
        table = torch.cat([mean_of_products(part) for part in torch.split(logits, self.sizes, dim=1)])
        entropy = -(table * self.mean().to(table.dtype).clamp(min=LEAST).log()).sum()
        if self.training:
            self._update(table.detach(), len(logits), step)
        return entropy

    @torch.no_grad()
    def _update(self, table: Tensor, count: int, step: Step | None) -> None:
        rows = torch.cat([table * count, table.new_full((1,), count)])
        self.pending += rows.to(self.pending.dtype)
        if step is None or step.last:
            total = all_reduce_sum(self.pending.clone())
            self.pending.zero_()
            self.ema.lerp_(total / total[-1], 1 - self.decay)

    def mean(self) -> Tensor:
        """p̄: (Σ 2^size,), the groups one after another."""
        return self.ema[:-1] / self.ema[-1]

    def now(self) -> Tensor:
        """H(p̄) in nats."""
        entropy: Tensor = torch.special.entr(self.mean()).sum()
        return entropy


def binary_entropy(logits: Tensor) -> Tensor:
    """H(σ(x)) in nats, elementwise, exact also where σ(x) is close to 0 or 1."""
    plus, minus = F.logsigmoid(logits), F.logsigmoid(-logits)
    return -(plus.exp() * plus + minus.exp() * minus)


def mean_of_products(logits: Tensor) -> Tensor:
    """logits: (M, k) of independent bits → (2^k,): the mean over M of the probability of each combination,
    bit i counting 2^i.

    The mean over rows of an outer product is a matrix product, so of each row only the two halves are written
    out: M · 2^(k/2) numbers, not M · 2^k.
    """
    low, high = (_products(half) for half in torch.tensor_split(logits, 2, dim=1))
    return rearrange(high.T @ low, "h l -> (h l)") / len(logits)


def _products(logits: Tensor) -> Tensor:
    """(M, k) → (M, 2^k): the probability of each combination of a row's bits, by one outer product a bit."""
    table = logits.new_ones(len(logits), 1)
    for plus, minus in zip(logits.sigmoid().T, (-logits).sigmoid().T, strict=True):
        table = torch.cat([table * minus[:, None], table * plus[:, None]], dim=1)
    return table
