"""The tokenizer: encoder, bottleneck and decoder as one model, for any modality and bottleneck.

Left out: training loops and files of data (`pipelines/`), saving and loading (`tokenizer.hub`).
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from tokenizer.bottlenecks import BottleneckConfig
from tokenizer.bottlenecks.gaussian import Gaussian, Posterior
from tokenizer.bottlenecks.vq import VQConfig
from tokenizer.card import describe
from tokenizer.config import config_to_dict, require
from tokenizer.distributed import Step
from tokenizer.hub import HubModel
from tokenizer.losses import default_weights, reconstruction_losses, validate_weights
from tokenizer.modalities import ModalityConfig
from tokenizer.modalities.image import ImageConfig


def _default_losses() -> dict[str, float]:
    return {**default_weights(), "l2": 1.0}


@dataclass(frozen=True)
class TokenizerConfig:
    """What a tokenizer is made of."""

    modality: ModalityConfig = field(default_factory=ImageConfig)
    """Pictures or sound, and the networks for them."""
    bottleneck: BottleneckConfig = field(default_factory=VQConfig)
    """Between encoder and decoder: a quantizer, or the Gaussian posterior of a VAE."""
    losses: dict[str, float] = field(default_factory=_default_losses)
    """Weights of the reconstruction losses."""

    def __post_init__(self) -> None:
        validate_weights(self.losses, self.modality.kind)
        if isinstance(self.modality, ImageConfig):
            used = {name for name, weight in self.losses.items() if weight > 0}
            probabilities = self.modality.output == "tanh" and self.modality.channels == 1
            require(
                "bernoulli" not in used or probabilities,
                "the loss bernoulli needs output tanh and channels 1",
            )
            require(
                "ms_ssim" not in used or min(self.modality.size) >= 7,
                "the loss ms_ssim needs 7 pixels or more",
            )


class TokenizerOutput(NamedTuple):
    """What a forward pass gives. `codes` is None for a VAE. The sum of `losses` is the training objective;
    `stats` are detached, unweighted values for people. All losses and stats are scalars."""

    x_hat: Tensor
    codes: Tensor | None
    z_e: Tensor
    z_q: Tensor
    losses: dict[str, Tensor]
    stats: dict[str, Tensor]


class Tokenizer(HubModel):
    """Turns data x (B, C, *size) in [-1, 1] into codes (B, K, *grid) int64 and back; or into a posterior
    (VAE)."""

    model_type: ClassVar[str] = "tokenloom-tokenizer"
    config_class: ClassVar[type] = TokenizerConfig
    config: TokenizerConfig

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.modality = config.modality.build()
        self.bottleneck = config.bottleneck.build()
        self.encoder = self.modality.build_encoder(self.bottleneck.in_dim)
        self.decoder = self.modality.build_decoder(self.bottleneck.out_dim)

    def forward(self, x: Tensor, step: Step | None = None) -> TokenizerOutput:
        """x: (B, C, *size). In training `step` keys the noise and tells when statistics are updated."""
        z_e = self._latents(x)
        z_q, codes, losses, stats = self.bottleneck(z_e, step)
        x_hat = self._crop(self._decoded(z_q), x.shape[2:])
        # Reconstruction losses are means over the elements of x; sums over an example are brought to that
        # unit.
        per_element = 1 / math.prod(x.shape[1:])
        losses = {k: v * per_element if k in self.bottleneck.summed_losses else v for k, v in losses.items()}
        terms = reconstruction_losses(x_hat, x, self.config.losses)
        losses |= {k: self.config.losses[k] * v for k, v in terms.items()}
        stats |= {k: v.detach() for k, v in terms.items()}
        return TokenizerOutput(x_hat, codes, z_e, z_q, losses, stats)

    @torch.no_grad()
    def encode(self, x: Tensor, lengths: Tensor | None = None, num_codebooks: int | None = None) -> Tensor:
        """x: (B, C, *size) float in [-1, 1] → codes: (B, K, *grid) int64, grid = ceil(size / stride).

        `TypeError` for a VAE (use `posterior`); `ValueError` for x of a wrong shape or type, for `lengths`
        (padded batches) of a modality that has no lengths, and for more codebooks than there are.
        """
        self._require_codes("encode")
        if lengths is not None:
            raise ValueError(
                f"lengths are for padded batches of sound; this tokenizer is for {self.modality.name}s"
            )
        k = self.num_codebooks if num_codebooks is None else num_codebooks
        if not 1 <= k <= self.num_codebooks:
            raise ValueError(f"num_codebooks is {k}, this tokenizer has {self.num_codebooks}")
        return self.bottleneck.encode(self._latents(x))[:, :k]

    @torch.no_grad()
    def decode(self, codes: Tensor, size: int | tuple[int, ...] | None = None) -> Tensor:
        """codes: (B, K, *grid) int64 → x_hat: (B, C, *size). `size`: (H, W) to crop to, at most grid ·
        stride.

        `TypeError` for a VAE; `ValueError` for codes of a wrong shape, type or range, and for a size that
        does not fit the grid.
        """
        self._require_codes("decode")
        self._check_codes(codes)
        return self.decode_latents(self.bottleneck.decode(codes), size)

    def decode_latents(self, z: Tensor, size: int | tuple[int, ...] | None = None) -> Tensor:
        """z: (B, out_dim, *grid), a quantized z_q or a VAE's z, → x_hat: (B, C, *size). Differentiable."""
        wanted = self.bottleneck.out_dim
        if z.ndim != 2 + len(self.modality.axes) or z.shape[1] != wanted:
            raise ValueError(f"expected z (B, {wanted}, *grid), got {tuple(z.shape)}")
        full = tuple(n * self.stride for n in z.shape[2:])
        size = full if size is None else ((size,) if isinstance(size, int) else tuple(size))
        lowest = tuple(n - self.stride + 1 for n in full)
        if len(size) != len(full) or not all(a <= s <= b for a, s, b in zip(lowest, size, full, strict=True)):
            raise ValueError(
                f"size is {size}; a grid of {tuple(z.shape[2:])} decodes to between {lowest} and {full}"
            )
        return self._crop(self._decoded(z), size)

    def posterior(self, x: Tensor) -> Posterior:
        """x: (B, C, *size) → the VAE's q(z | x) over (B, dim, *grid). `TypeError` for a tokenizer with
        codes."""
        if not isinstance(self.bottleneck, Gaussian):
            raise TypeError(
                "posterior is for a VAE (bottleneck gaussian); this tokenizer has codes: use encode"
            )
        return self.bottleneck.posterior(self._latents(x))

    def preprocess(self, source: Any) -> Tensor:
        """A file or object (or a list of them) as x (B, C, *size) in [-1, 1], on the model's device."""
        return self.modality.preprocess(source).to(self.device)

    def postprocess(self, x_hat: Tensor) -> list[Any]:
        """x_hat (B, C, *size) as a list of PIL images, or of (waveform, sample_rate)."""
        return self.modality.postprocess(x_hat)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def stride(self) -> int:
        """Pixels (along each axis) or samples per code."""
        return self.modality.stride

    @property
    def num_codebooks(self) -> int:
        """Codes per position, K. `TypeError` for a VAE."""
        self._require_codes("num_codebooks")
        return self.bottleneck.num_codebooks

    @property
    def codebook_size(self) -> int:
        """Entries of each codebook, N. `TypeError` for a VAE."""
        self._require_codes("codebook_size")
        return self.bottleneck.codebook_size

    @property
    def bits_per_code(self) -> float:
        """log2 N. `TypeError` for a VAE."""
        return math.log2(self.codebook_size)

    def fingerprint(self) -> str:
        """A hash (16 hex digits) of all that decides what a code means: config, encoder and codebooks.

        Equal after saving and loading and after a change of the decoder's weights or of the losses.
        """
        described = {
            "modality": config_to_dict(self.config.modality),
            "bottleneck": config_to_dict(self.config.bottleneck),
        }
        digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
        state = {f"encoder.{k}": v for k, v in self.encoder.state_dict().items()}
        skipped = self.bottleneck.not_coding
        state |= {f"bottleneck.{k}": v for k, v in self.bottleneck.state_dict().items() if k not in skipped}
        for name in sorted(state):
            values = state[name].detach().to("cpu", torch.float32).contiguous()
            digest.update(name.encode() + str(tuple(values.shape)).encode() + values.numpy().tobytes())
        return digest.hexdigest()[:16]

    def extra_config(self) -> dict[str, Any]:
        return {"fingerprint": self.fingerprint()}

    def check_extra_config(self, extra: Mapping[str, Any]) -> None:
        if extra.get("fingerprint") != self.fingerprint():
            raise ValueError(
                f"config.json gives fingerprint {extra.get('fingerprint')!r}, but config and weights make "
                f"{self.fingerprint()!r}: the files do not belong together; download or save the model again"
            )

    def preprocessor_config(self) -> dict[str, Any]:
        return self.modality.preprocessor_config()

    def card_fields(self) -> dict[str, Any]:
        codes = (self.num_codebooks, self.bits_per_code) if self.bottleneck.num_codebooks else None
        kind = self.config.bottleneck.kind
        return describe(self.modality, self.stride, kind, codes, self.bottleneck.out_dim)

    def _latents(self, x: Tensor) -> Tensor:
        """The encoder's z_e (B, in_dim, *grid) for x of any size."""
        axes = self.modality.axes
        if x.ndim != 2 + len(axes) or x.shape[1] != self.modality.channels or 0 in x.shape:
            expected = f"(B, {self.modality.channels}, {', '.join(axes)})"
            raise ValueError(f"expected x {expected} with no empty axis, got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"expected x as float in [-1, 1], got {x.dtype}; preprocess() makes it so")
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(next(self.parameters()).dtype)
        latents: Tensor = self.encoder(self.modality.pad(x))
        return latents

    def _decoded(self, z: Tensor) -> Tensor:
        """The decoder's output; quantizers work in float32 or more, so z goes back to the weights' type."""
        if not torch.is_autocast_enabled(z.device.type):
            z = z.to(next(self.parameters()).dtype)
        x_hat: Tensor = self.decoder(z)
        return x_hat

    def _crop(self, x_hat: Tensor, size: tuple[int, ...]) -> Tensor:
        for axis, n in enumerate(size):
            x_hat = x_hat.narrow(2 + axis, 0, n)
        return x_hat

    def _require_codes(self, name: str) -> None:
        if self.bottleneck.num_codebooks == 0:
            raise TypeError(f"{name}: a VAE has no codes; use posterior(x) and decode_latents(z)")

    def _check_codes(self, codes: Tensor) -> None:
        k, n = self.num_codebooks, self.codebook_size
        if codes.dtype != torch.int64 or codes.ndim != 2 + len(self.modality.axes):
            shape = ", ".join(a.lower() for a in self.modality.axes)
            raise ValueError(f"expected codes (B, K, {shape}) int64, got {tuple(codes.shape)} {codes.dtype}")
        if not 1 <= codes.shape[1] <= k or 0 in codes.shape:
            raise ValueError(
                f"expected codes of 1 to {k} codebooks and no empty axis, got {tuple(codes.shape)}"
            )
        low, high = (int(v) for v in codes.aminmax())
        if low < 0 or high >= n:
            raise ValueError(f"codes range from {low} to {high}, but the codebook has entries 0 to {n - 1}")
