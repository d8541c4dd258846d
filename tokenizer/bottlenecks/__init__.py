"""The contract of bottlenecks, what stands between encoder and decoder, and the registry that finds them.

Left out: the bottlenecks themselves. Each is one file beside this one; a new file is found without touching
others.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from tokenizer.distributed import Step
from tokenizer.variants import Variant


class Bottlenecked(NamedTuple):
    """What a bottleneck makes of z: `z_q` (B, out_dim, *grid) for the decoder, `codes` (B, K, *grid) int64
    (None if it has no codes), `losses` (weighted terms of the objective) and `stats` (unweighted, for
    people), both scalars."""

    z_q: Tensor
    codes: Tensor | None
    losses: dict[str, Tensor]
    stats: dict[str, Tensor]


class Event(NamedTuple):
    """Something that a bottleneck did by itself, in a sentence; `step` is how many optimizer steps were done
    by then, None for what is not of one step."""

    text: str
    step: int | None = None


class Bottleneck(nn.Module):
    """Base of all bottlenecks. The layout is turned once, at the bottleneck's own boundary.

    `in_dim` channels come from the encoder and `out_dim` go to the decoder. Discrete bottlenecks have
    `num_codebooks` = K and `codebook_size` = N; for the others both are 0 and `encode`/`decode` raise
    `TypeError`.
    """

    in_dim: int
    out_dim: int
    num_codebooks: int = 0
    codebook_size: int = 0
    # Losses that are sums over one example, in nats; the tokenizer divides them by the elements of x.
    summed_losses: ClassVar[frozenset[str]] = frozenset()
    # Whether the first k codes of a position decode alone, to less detail.
    prefix_decodes: bool = False
    # Whether q(z) has exactly the gradient of z, so that z − q(z) has none.
    identity_gradient: bool = False
    # Names in the state_dict that do not decide which code a z gets (left out of the fingerprint), and those
    # of them that do not decide what a code decodes to either.
    not_coding: frozenset[str] = frozenset()
    statistics: frozenset[str] = frozenset()

    def forward(self, z: Tensor, step: Step | None = None) -> Bottlenecked:
        """z: (B, in_dim, *grid). z_q has a gradient of z in eval mode too, which only ends updates, noise and
        dropout. `step` keys the noise of training and says when to update statistics;
        without it noise comes from torch's generator and every training pass is a whole optimizer step."""
        raise TypeError(f"{type(self).__name__} does not define forward")

    def encode(self, z: Tensor) -> Tensor:
        """z: (B, in_dim, *grid) → codes: (B, K, *grid) int64."""
        raise TypeError(f"{type(self).__name__} has no codes; use posterior(x) and decode_latents(z)")

    def encode_first(self, z: Tensor, count: int) -> Tensor:
        """z: (B, in_dim, *grid) → the first `count` codes of each position, (B, count, *grid) int64; where
        `prefix_decodes` without computing the others."""
        return self.encode(z)[:, :count]

    def decode(self, codes: Tensor) -> Tensor:
        """codes: (B, K, *grid) int64 → z_q: (B, out_dim, *grid)."""
        raise TypeError(f"{type(self).__name__} has no codes; use posterior(x) and decode_latents(z)")

    @torch.no_grad()
    def frozen(self, z: Tensor, step: Step | None = None) -> Tensor:
        """z: (B, in_dim, *grid) → what a decoder is given of it that learns while all codes stay as they are:
        (B, out_dim, *grid), with no gradient, and nothing counted or moved. `step` keys what is random."""
        return self.decode(self.encode(z))

    @property
    def ready(self) -> bool:
        """False while training still passes z through unquantized, as before a k-means start."""
        return True

    def codebook_vectors(self) -> Tensor | None:
        """The entries of the codebook (N, D), or of several (K, N, D), for plots; None if there are none."""
        return None

    def compared(self, z: Tensor) -> Tensor | None:
        """z: (B, in_dim, *grid) → (K, M, D): what its M = B · positions vectors are compared with the
        `codebook_vectors` as, for plots; None if those are."""
        return None

    def with_entries(self, z: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """z: (B, in_dim, *grid), codes: (B, K, *grid) → two (K, M, D): what its M = B · positions vectors are
        compared as, and the entries of `codes`. `TypeError` where entries cannot be told."""
        rows, vectors = self.compared(z), self.codebook_vectors()
        if rows is None or vectors is None:
            raise TypeError(f"{type(self).__name__} does not tell its entries: it defines no with_entries")
        books = vectors.to(rows.device).expand(len(rows), *vectors.shape[-2:])
        numbers = codes.transpose(0, 1).flatten(1)
        return rows, torch.stack([book[n] for book, n in zip(books, numbers, strict=True)])

    @torch.no_grad()
    def gaps(self, z: Tensor, codes: Tensor) -> Tensor:
        """z: (B, in_dim, *grid), codes: (B, K, *grid) → (B, K, *grid) float64: by what share of the sum of
        both distances each code's entry is farther than the nearest one, given the codes before it; 0 where
        it is that. Tells codes that only rounding changed from wrong ones."""
        distances = []
        for chosen in (codes, self.encode(z)):
            rows, entries = self.with_entries(z, chosen)
            distances.append(torch.linalg.vector_norm(rows.double() - entries.double(), dim=-1))
        given, nearest = distances
        share: Tensor = (given - nearest) / (given + nearest).clamp(min=torch.finfo(torch.float64).tiny)
        return share.reshape(codes.transpose(0, 1).shape).transpose(0, 1)

    def training_state(self) -> dict[str, Tensor]:
        """Tensors that an exact resume needs and a saved model does not."""
        return {}

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        """Restore what `training_state` gave."""

    def events(self) -> list[Event]:
        """What the bottleneck did by itself since the last call, for the log."""
        return []


# Quantizers within each other multiply, and each takes a millisecond to make.
MAX_PARTS = 1024


@dataclass(frozen=True)
class BottleneckConfig(Variant):
    """Base of the bottlenecks' configs; `--model.bottleneck.*` sets the fields of the preset's choice."""

    home: ClassVar[str] = __name__

    @property
    def parts(self) -> int:
        """Quantizers that it is made of, those within others included."""
        return 1

    @property
    def start_steps(self) -> int:
        """Optimizer steps that pass z through unquantized before the codes start."""
        return 0

    def starting_within(self, steps: int) -> Self:
        """This config with a start that takes at most `steps`, or as few as it can."""
        return self

    def build(self) -> Bottleneck:
        """The bottleneck that this config describes."""
        raise TypeError(f"{type(self).__name__} does not define build")


def kinds() -> dict[str, Any]:
    """All registered bottleneck configs by name."""
    return dict(BottleneckConfig.members())
