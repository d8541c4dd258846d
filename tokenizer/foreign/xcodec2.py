"""X-codec 2 (Ye et al. 2025, arXiv 2502.04128) of transformers: HKUSTAudio/xcodec2-hf and its like.

Left out: NeuCodec, which hears 16 kHz and gives 24 kHz, while a tokenizer here has one rate.
"""

import math
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.bottlenecks import Bottleneck
from tokenizer.foreign.library import import_library
from tokenizer.foreign.sound import ForeignSound, SoundFamily, SoundNetwork, Stages
from tokenizer.modalities import Modality


class Xcodec2(SoundFamily, name="xcodec2"):
    """Attention over the whole sound, whose spectrum is scaled by its own mean and variance: every frame
    depends on all others. So items of a batch go with those of equal length (`batch_exact` is False), and
    long sound goes through whole (`chunk_exact` is False).

    As with its authors, a frame of silence follows the sound; its own code is left out.
    """

    config_class, model_class, reader_class = "Xcodec2Config", "Xcodec2Model", "Xcodec2FeatureExtractor"
    decides = ("sampling_rate", "downsampling_ratios", "quantization_levels")
    untraced = "its spectrum is made by transformers' Xcodec2FeatureExtractor, in numpy"
    encoder_parts = ("semantic_encoder", "semantic_adapter", "acoustic_encoder", "fc_encoder")
    decoder_parts = ("acoustic_decoder",)

    def strides(self) -> tuple[int, ...]:
        return tuple(self.theirs.downsampling_ratios)

    def modality(self) -> Modality:
        return ForeignSound(self, batch_exact=False, chunk_exact=False)

    def encoder(self, whole: Any) -> nn.Module:
        parts, dim = self.parts(whole, self.encoder_parts), self.theirs.quantization_dim
        return SoundNetwork(parts, self.encoded, dim, takes=self.stride)

    def bottleneck(self, whole: Any) -> Bottleneck:
        config = self.theirs
        return Stages(self, whole, config.quantization_dim, 1, math.prod(config.quantization_levels))

    def decoder(self, whole: Any) -> nn.Module:
        return SoundNetwork(self.parts(whole, self.decoder_parts), self.decoded, 1, gives=self.stride)

    def encoded(self, parts: nn.ModuleDict, x: Tensor) -> Tensor:
        with torch.no_grad():  # as the library has it
            semantic = parts["semantic_encoder"](self._features(x)).last_hidden_state
        acoustic = parts["acoustic_encoder"](F.pad(x, (0, self.stride)))
        both = torch.cat([parts["semantic_adapter"](semantic.transpose(1, 2)), acoustic], dim=1)
        z_e: Tensor = parts["fc_encoder"](both.transpose(1, 2)).transpose(1, 2)
        return z_e

    def _features(self, x: Tensor) -> Tensor:
        """x: (B, 1, T) → its mel spectrum (B, T / stride + 1, bins), by the library's reader, which works on
        a CPU and follows the sound by silence."""
        items = [item[0].numpy() for item in x.detach().float().cpu()]
        found = self._reader(items, sampling_rate=self.theirs.sampling_rate, return_tensors="pt")
        return cast(Tensor, found["input_features"]).to(x)

    @cached_property
    def _reader(self) -> Any:
        return getattr(import_library(self.library), self.reader_class)(**self.reader_options())

    def decoded(self, parts: nn.ModuleDict, z: Tensor) -> Tensor:
        x_hat: Tensor = parts["acoustic_decoder"](z.transpose(1, 2))
        return x_hat

    def quantize(self, parts: nn.ModuleDict, z: Tensor, count: int) -> Tensor:
        codes: Tensor = parts["quantizer"](z.transpose(1, 2))[1]
        return codes.transpose(1, 2).long()

    def dequantize(self, parts: nn.ModuleDict, codes: Tensor) -> Tensor:
        z_q: Tensor = cast(Any, parts["quantizer"]).from_codes(codes.transpose(1, 2))
        return z_q.transpose(1, 2)

    def reader_options(self) -> dict[str, Any]:
        return {"sampling_rate": self.theirs.sampling_rate, "hop_length": self.stride}
