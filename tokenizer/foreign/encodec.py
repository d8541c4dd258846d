"""EnCodec (Défossez et al. 2022, arXiv 2210.13438) of transformers: facebook/encodec_24khz and its like.

Bandwidths are numbers of codebooks: of 24 kHz, 1.5 kbit/s is `num_codebooks=2`, 6 is 8, 24 is all 32.

Left out: facebook/encodec_48khz, which scales every second of sound by its own loudness.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from tokenizer.bottlenecks import Bottleneck
from tokenizer.foreign.sound import ForeignSound, SoundFamily, SoundNetwork, Stages
from tokenizer.modalities import Modality
from tokenizer.variants import require


class Encodec(SoundFamily, name="encodec"):
    """Causal, so that a frame knows nothing of what follows; but its LSTM knows all that went before, so long
    sound goes through whole (`chunk_exact` is False)."""

    config_class, model_class, reader_class = "EncodecConfig", "EncodecModel", "EncodecFeatureExtractor"
    decides = ("sampling_rate", "audio_channels", "upsampling_ratios", "pad_mode", "dilation_growth_rate")
    untraced = "transformers counts the padding of its layers (EncodecConv1d) from tensors"
    statistics = (".inited", ".cluster_size", ".embed_avg")

    def strides(self) -> tuple[int, ...]:
        return tuple(self.theirs.upsampling_ratios)

    def check(self) -> None:
        super().check()
        config = self.theirs
        require(
            not config.normalize and config.chunk_length_s is None,
            "normalize and chunk_length_s are set, as in facebook/encodec_48khz: its codes are of single "
            "seconds that overlap, each divided by a loudness that is no code, so they alone are not the "
            "sound; take facebook/encodec_24khz",
        )
        require(
            config.use_causal_conv and config.norm_type == "weight_norm" and config.trim_right_ratio == 1.0,
            "expected use_causal_conv, norm_type weight_norm and trim_right_ratio 1.0, as in "
            "facebook/encodec_24khz",
        )
        require(
            config.codebook_dim == config.hidden_size,
            f"codebook_dim is {config.codebook_dim}, expected {config.hidden_size}, as hidden_size",
        )

    def modality(self) -> Modality:
        return ForeignSound(self, batch_exact=True, chunk_exact=False)

    def encoder(self, whole: Any) -> nn.Module:
        config, least = self.theirs, 1
        if config.pad_mode == "reflect":
            # A signal is reflected at its beginning, so that its first frames look ahead; where it is shorter
            # than what is reflected, they would look at padding.
            wide = config.dilation_growth_rate ** max(0, config.num_residual_layers - 1)
            residual = 1 + (config.residual_kernel_size - 1) * wide
            least = max(2, config.kernel_size, config.last_kernel_size, residual)
        parts = self.parts(whole, self.encoder_parts)
        return SoundNetwork(parts, self.encoded, config.hidden_size, takes=self.stride, least=least)

    def bottleneck(self, whole: Any) -> Bottleneck:
        config = self.theirs
        return Stages(self, whole, config.hidden_size, config.num_quantizers, config.codebook_size)

    def decoder(self, whole: Any) -> nn.Module:
        parts = self.parts(whole, self.decoder_parts)
        return SoundNetwork(parts, self.decoded, self.channels(), gives=self.stride)

    def quantize(self, parts: nn.ModuleDict, z: Tensor, count: int) -> Tensor:
        codes = []
        for layer in cast(Any, parts["quantizer"]).layers[:count]:
            codes.append(layer.encode(z))
            z = z - layer.decode(codes[-1])
        return torch.stack(codes, dim=1)

    def dequantize(self, parts: nn.ModuleDict, codes: Tensor) -> Tensor:
        z_q: Tensor = cast(Any, parts["quantizer"]).decode(codes.transpose(0, 1))
        return z_q

    def reader_options(self) -> dict[str, Any]:
        return {"feature_size": self.channels(), "sampling_rate": self.theirs.sampling_rate}
