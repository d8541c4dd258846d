"""DAC (Kumar et al. 2023, arXiv 2306.06546) of transformers: descript/dac_16khz, dac_24khz, dac_44khz.

Left out: the losses that its quantizer has in training.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.bottlenecks import Bottleneck
from tokenizer.foreign.sound import ForeignSound, SoundFamily, SoundNetwork, Stages, reach_of
from tokenizer.modalities import Modality


class Dac(SoundFamily, name="dac"):
    """Convolutions that look both ways, with zeros around the signal at every layer: the end of a signal is
    not what it is in a longer, padded one, so items of a batch go with those of equal length (`batch_exact`
    is False). What a frame depends on is a fraction of a second, so long sound goes through in chunks.

    Where strides are odd, as at 16 and 24 kHz, its decoder gives up to 8 samples less than the frames have;
    these are zeros here.
    """

    config_class, model_class, reader_class = "DacConfig", "DacModel", "DacFeatureExtractor"
    decides = ("sampling_rate", "downsampling_ratios")

    def strides(self) -> tuple[int, ...]:
        return tuple(self.theirs.downsampling_ratios)

    def modality(self) -> Modality:
        return ForeignSound(self, batch_exact=False, chunk_exact=True)

    def encoder(self, whole: Any) -> nn.Module:
        parts, dim, stride = self.parts(whole, self.encoder_parts), self.theirs.hidden_size, self.stride
        return SoundNetwork(parts, self.encoded, dim, takes=stride, reach=reach_of(parts))

    def bottleneck(self, whole: Any) -> Bottleneck:
        config = self.theirs
        return DacStages(self, whole, config.hidden_size, config.n_codebooks, config.codebook_size)

    def decoder(self, whole: Any) -> nn.Module:
        parts = self.parts(whole, self.decoder_parts)
        return SoundNetwork(parts, self.decoded, 1, gives=self.stride, reach=reach_of(parts))

    def quantize(self, parts: nn.ModuleDict, z: Tensor, count: int) -> Tensor:
        codes = []
        for layer in cast(Any, parts["quantizer"]).quantizers[:count]:
            q, _, _, found, _ = layer(z)
            codes.append(found)
            z = z - q
        return torch.stack(codes, dim=1)

    def dequantize(self, parts: nn.ModuleDict, codes: Tensor) -> Tensor:
        z_q: Tensor = cast(Any, parts["quantizer"]).from_codes(codes)[0]
        return z_q

    def reader_options(self) -> dict[str, Any]:
        return {"sampling_rate": self.theirs.sampling_rate, "hop_length": math.prod(self.strides())}


class DacStages(Stages):
    """Stages that compare vectors and entries of few dimensions, at length 1."""

    @torch.no_grad()
    def gaps(self, z: Tensor, codes: Tensor) -> Tensor:
        found = []
        z = self._in_own_type(z)
        for layer, chosen in zip(cast(Any, self.parts["quantizer"]).quantizers, codes.unbind(1), strict=True):
            rows = F.normalize(layer.in_proj(z).double(), dim=1).transpose(1, 2)
            entries = F.normalize(layer.codebook.weight.double(), dim=1)
            far = torch.cdist(rows, entries, compute_mode="donot_use_mm_for_euclid_dist")
            given, nearest = far.gather(2, chosen[..., None])[..., 0], far.amin(2)
            found.append((given - nearest) / (given + nearest).clamp(min=torch.finfo(torch.float64).tiny))
            z = z - layer.out_proj(layer.codebook(chosen).transpose(1, 2))
        return torch.stack(found, dim=1)
