"""The tokenizer's network: encoder, bottleneck and decoder as one module, and the checks of what goes in.

Left out: what people call (`model.py`), and sound in chunks (`streaming.py`).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from tokenizer.checks import Array, as_integers, as_tensor, check_codes, check_input
from tokenizer.config import TokenizerConfig
from tokenizer.foreign import Family, family_of

NO_CODES = "a VAE has no codes; use posterior(x) and decode_latents(z), or quantized(...).encode(x)"


class TokenizerNetwork(nn.Module):
    """Encoder, bottleneck and decoder, for any modality and bottleneck."""

    config: TokenizerConfig

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        if (family := family_of(config)) is None:
            self.modality = config.modality.build()
            self.bottleneck = config.bottleneck.build()
            self.encoder = self.modality.build_encoder(self.bottleneck.in_dim)
            mirrored = config.decoder.applied(config.modality).build()
            self.decoder = mirrored.build_decoder(self.bottleneck.out_dim)
        else:
            self.take(family, family.whole())
        # Whether `encode` and streams may use TF32 on a GPU, faster: codes then depend on the batch.
        self.tf32 = False

    def take(self, family: Family, whole: Any) -> None:
        """Take the networks of a model of another library."""
        own = self.config.bottleneck == family.bottleneck_config()
        self.modality = family.modality()
        self.bottleneck = family.bottleneck(whole) if own else self.config.bottleneck.build()
        self.encoder, self.decoder = family.encoder(whole), family.decoder(whole)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def stride(self) -> int:
        """Pixels (along each axis) or samples per code."""
        return self.modality.stride

    @property
    def sample_rate(self) -> int:
        """Samples of sound per second; 0 for pictures."""
        return self.modality.sample_rate

    @property
    def frame_rate(self) -> float:
        """Codes of sound per second and codebook, sample_rate / stride; 0.0 for pictures."""
        return self.sample_rate / self.stride

    @property
    def batch_exact(self) -> bool:
        """Whether a padded batch goes through the encoder at once. False for some networks of other
        libraries: items of equal length go together then. Codes are those of an item alone in any case."""
        return self.modality.batch_exact

    @property
    def chunk_exact(self) -> bool:
        """Whether long sound goes through in chunks, in bounded memory. False for some networks of other
        libraries: it goes through whole then. Codes are those of the whole in any case."""
        return self.modality.chunk_exact

    @property
    def is_discrete(self) -> bool:
        """Whether there are codes; False for a VAE, which has a posterior."""
        return self.bottleneck.num_codebooks > 0

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

    def _latents(self, x: Tensor) -> Tensor:
        """The encoder's z_e (B, in_dim, *grid) for x of any size, as `prepared` gives it."""
        latents: Tensor = self.encoder(self.modality.pad(x))
        return latents

    def _decoded(self, z: Tensor) -> Tensor:
        x_hat: Tensor = self.decoder(self.in_weights_type(z))
        return x_hat

    def in_weights_type(self, z: Tensor) -> Tensor:
        """z in the type of the weights, unless autocast sees to it; quantizers work in float32 or more."""
        return z if torch.is_autocast_enabled(z.device.type) else z.to(next(self.parameters()).dtype)

    def prepared(self, x: Array, empty: bool = False) -> Tensor:
        """x (B, C, *size), checked, in the weights' type; `empty` allows sizes of 0."""
        if not isinstance(x, Tensor):
            x = as_tensor(x, "x", "preprocess() makes it of files and pictures").to(self.device)
        check_input(x, self.modality.channels, self.modality.axes, empty)
        return self.in_weights_type(x)

    def checked_num_codebooks(self, num_codebooks: int | None) -> int:
        """The number asked for, or all; `ValueError` for one out of range."""
        k = self.num_codebooks if num_codebooks is None else num_codebooks
        if not 1 <= k <= self.num_codebooks:
            most = f"{self.num_codebooks}, all that this tokenizer has"
            raise ValueError(f"num_codebooks is {k}, expected 1 to {most}")
        self._require_decodable(k)
        return k

    def _require_decodable(self, k: int) -> None:
        if k < self.num_codebooks and not self.bottleneck.prefix_decodes:
            raise ValueError(
                f"{k} of {self.num_codebooks} codebooks: those of {self.config.bottleneck.kind} only make "
                "sense together; rvq's first ones do alone"
            )

    def _crop(self, x_hat: Tensor, size: tuple[int, ...]) -> Tensor:
        for axis, n in enumerate(size):
            x_hat = x_hat.narrow(2 + axis, 0, n)
        return x_hat

    def _require_codes(self, name: str) -> None:
        if not self.is_discrete:
            raise TypeError(f"{name}: {NO_CODES}")

    def check_codes(self, codes: Array) -> Tensor:
        """codes as int64; `ValueError` unless they are (B, k, *grid) codes of this tokenizer, 1 ≤ k ≤ K."""
        if not isinstance(codes, Tensor):
            codes = as_tensor(codes, "codes", "encode() gives them").to(self.device)
        codes = as_integers(codes, "codes", "encode() gives them")
        check_codes(codes, self.num_codebooks, self.codebook_size, self.modality.axes)
        self._require_decodable(codes.shape[1])
        return codes
