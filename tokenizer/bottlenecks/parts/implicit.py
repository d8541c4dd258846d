"""Base of quantizers whose codebook is implied: a few numbers per position, each rounded by itself.

Left out: how the numbers are bounded and rounded (`fsq.py`, `lfq.py`, `bsq.py`), and learnt entries.
"""

import torch
from torch import Tensor

from tokenizer.bottlenecks import Bottlenecked, Event
from tokenizer.bottlenecks.parts.estimators import straight_through
from tokenizer.bottlenecks.parts.health import Health, batch_stats
from tokenizer.bottlenecks.parts.projected import Projected
from tokenizer.checks import require_finite
from tokenizer.distributed import Step

# Codes are counted in training, so there is a bound on how many there may be.
MOST_CODES = 1 << 24
# Larger codebooks are not written out for plots.
MOST_DRAWN = 1 << 16


class Implicit(Projected):
    """`width` numbers per position, rounded one by one: there is no search, and no entry that could die.

    A subclass says with `quantized` what is rounded and to which code, and with `entries` what a code stands
    for.
    """

    def __init__(self, dim: int, width: int, size: int, advice: str) -> None:
        super().__init__(dim, width, size)
        self.health = Health(size, advice)

    def quantized(self, z_e: Tensor) -> tuple[Tensor, Tensor]:
        """z_e: (M, width) → what is rounded (M, width), on the scale of the entries, and codes (M,) int64,
        which are whole numbers from the first."""
        raise TypeError(f"{type(self).__name__} does not define quantized")

    def entries(self, codes: Tensor, dtype: torch.dtype) -> Tensor:
        """codes: (M,) → (M, width)."""
        raise TypeError(f"{type(self).__name__} does not define entries")

    def terms(self, u: Tensor, e: Tensor, step: Step | None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses and stats of u (M, width), what was rounded, and its entries e. Called once in a pass."""
        return {}, {}

    def forward(self, z: Tensor, step: Step | None = None) -> Bottlenecked:
        require_finite(z, "z_e", step)
        with torch.autocast(z.device.type, enabled=False):
            u, codes = self.quantized(self.to_rows(z))
            e = self.entries(codes, u.dtype)
            losses, stats = self.terms(u, e, step)
            z_q = straight_through(u, e)
            if self.training:
                self.health.count(codes, step)
                health = self.health.stats()
            else:
                health = batch_stats(codes, self.codebook_size, u.dtype)
            z_q = self.to_grid(z_q, z.shape)
        stats |= {k: v.to(u.dtype) for k, v in health.items()}
        return Bottlenecked(z_q, self.codes_on_grid(codes, z.shape), losses, stats)

    def encode(self, z: Tensor) -> Tensor:
        require_finite(z, "z_e")
        with torch.autocast(z.device.type, enabled=False):
            return self.codes_on_grid(self.quantized(self.to_rows(z))[1], z.shape)

    def decode(self, codes: Tensor) -> Tensor:
        with torch.autocast(codes.device.type, enabled=False):
            e = self.entries(codes.flatten(), self._dtype)
            return self.to_grid(e, codes.shape)

    def compared(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            return self.quantized(self.to_rows(z))[0][None]

    def with_entries(self, z: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.compared(z)
        return rows, self.entries(codes.flatten(), rows.dtype)[None]

    def codebook_vectors(self) -> Tensor | None:
        if self.codebook_size > MOST_DRAWN:
            return None
        codes = torch.arange(self.codebook_size, device=self.health.recent.device)
        return self.entries(codes, self._dtype).cpu()

    @property
    def _dtype(self) -> torch.dtype:
        """That of the module, which may have no weights, and at least float32."""
        return torch.promote_types(self.health.recent.dtype, torch.float32)

    def training_state(self) -> dict[str, Tensor]:
        return self.health.training_state()

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        self.health.load_training_state(state)

    def events(self) -> list[Event]:
        return self.health.events()
