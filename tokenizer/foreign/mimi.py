"""Mimi (Défossez et al. 2024, arXiv 2410.00037) of transformers: kyutai/mimi and its like.

Left out: its own streaming, with caches of layers and attention.
"""

from typing import Any, cast

from torch import Tensor, nn

from tokenizer.bottlenecks import Bottleneck
from tokenizer.foreign.sound import ForeignSound, SoundFamily, SoundNetwork, Stages
from tokenizer.modalities import Modality
from tokenizer.variants import require


class Mimi(SoundFamily, name="mimi"):
    """Causal, in attention too: what follows a signal does not matter, once it is padded to whole frames. The
    library pads each layer for itself instead, and there an item's last frame depends on the batch.

    A frame depends on as many as its attention and layers reach back, some minutes, so long sound goes
    through whole (`chunk_exact` is False).
    """

    config_class, model_class, reader_class = "MimiConfig", "MimiModel", "EncodecFeatureExtractor"
    decides = (
        *("sampling_rate", "audio_channels", "upsampling_ratios", "pad_mode", "dilation_growth_rate"),
        *(
            "num_semantic_quantizers",
            "sliding_window",
            "num_attention_heads",
            "rope_parameters",
            "hidden_act",
        ),
    )
    untraced = "transformers counts the padding of its layers (MimiConv1d) from tensors"
    statistics = (".initialized",)

    def strides(self) -> tuple[int, ...]:
        return (*self.theirs.upsampling_ratios, self.theirs.latent_stride)

    def check(self) -> None:
        super().check()
        config = self.theirs
        require(
            config.use_causal_conv and config.trim_right_ratio == 1.0 and config.pad_mode == "constant",
            "expected use_causal_conv, trim_right_ratio 1.0 and pad_mode constant, as in kyutai/mimi",
        )
        require(
            config.encoder_config is not None and config.decoder_config is not None,
            "encoder or decoder is left out (null), expected both",
        )

    def modality(self) -> Modality:
        return ForeignSound(self, batch_exact=True, chunk_exact=False)

    def encoder(self, whole: Any) -> nn.Module:
        parts = self.parts(whole, self.encoder_parts)
        return SoundNetwork(parts, self.encoded, self.theirs.hidden_size, takes=self.stride, least=1)

    def bottleneck(self, whole: Any) -> Bottleneck:
        config = self.theirs
        return Stages(self, whole, config.hidden_size, config.num_quantizers, config.codebook_size)

    def decoder(self, whole: Any) -> nn.Module:
        parts = self.parts(whole, self.decoder_parts)
        return SoundNetwork(parts, self.decoded, self.channels(), gives=self.stride)

    def encoded(self, parts: nn.ModuleDict, x: Tensor) -> Tensor:
        z_e: Tensor = parts["encoder"](x).latents
        return z_e

    def decoded(self, parts: nn.ModuleDict, z: Tensor) -> Tensor:
        x_hat: Tensor = parts["decoder"](z).audio_values
        return x_hat

    def quantize(self, parts: nn.ModuleDict, z: Tensor, count: int) -> Tensor:
        codes: Tensor = self._fresh(parts).encode(z, max(count, self.theirs.num_semantic_quantizers))
        return codes[:count].transpose(0, 1)

    def dequantize(self, parts: nn.ModuleDict, codes: Tensor) -> Tensor:
        z_q: Tensor = self._fresh(parts).decode(codes)
        return z_q

    def _fresh(self, parts: nn.ModuleDict) -> Any:
        """The quantizer, which keeps the entries that it once made of sums and counts: they are made again
        where those were moved or loaded since, as far as that can be told."""
        quantizer = cast(Any, parts["quantizer"])
        for module in quantizer.modules():
            if hasattr(module, "_embed"):
                sources = [module.embed_sum, module.cluster_usage]
                told = not any(value.is_inference() for value in sources)  # such have no version
                versions = [value._version for value in sources] if told else []
                held, seen = getattr(module, "_made_of", ([], []))
                same = all(a is b for a, b in zip(sources, held, strict=False))
                if not told or versions != seen or not same:
                    module._embed, module._made_of = None, (sources, versions)
        return quantizer

    def reader_options(self) -> dict[str, Any]:
        return {"feature_size": self.channels(), "sampling_rate": self.theirs.sampling_rate}
