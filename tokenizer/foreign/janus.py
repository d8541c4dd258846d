"""The VQ-16 of LlamaGen (Sun et al. 2024, arXiv 2406.06525) as Janus has it in transformers: JanusVQVAE.

Left out: the language model around it; a folder of the whole of Janus is not taken.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from tokenizer.bottlenecks import Bottleneck
from tokenizer.foreign.library import TransformersFamily
from tokenizer.foreign.pictures import ForeignPicture, NearestEntry, PictureNetwork
from tokenizer.modalities import Modality
from tokenizer.variants import require


class Janus(TransformersFamily, name="janus_vqgan"):
    """Its authors compare vectors and entries at length 1, and so does this adapter. `JanusVQVAE.encode` of
    transformers leaves that out, and gives other codes; its `decode` does not. Pictures may have any size;
    the library's own decode takes one only."""

    config_class, model_class = "JanusVQVAEConfig", "JanusVQVAE"
    kind: ClassVar[str] = "image"
    losses: ClassVar[Mapping[str, float]] = {"l1": 1.0}
    decides = ("channel_multiplier",)
    encoder_parts = ("encoder", "quant_conv")
    bottleneck_parts = ("quantize",)
    decoder_parts = ("post_quant_conv", "decoder")

    def check(self) -> None:
        config = self.theirs
        require(
            len(config.channel_multiplier) >= 2 and config.in_channels == config.out_channels == 3,
            "expected 2 levels in channel_multiplier or more, and 3 channels in and out",
        )

    def modality(self) -> Modality:
        levels = len(self.theirs.channel_multiplier) - 1
        return ForeignPicture(3, self.theirs.num_patches << levels, levels)

    def encoder(self, whole: Any) -> nn.Module:
        return PictureNetwork(self.parts(whole, self.encoder_parts), self.encoded)

    def bottleneck(self, whole: Any) -> Bottleneck:
        return NearestEntry(self, whole, self.entries, unit=True)

    def decoder(self, whole: Any) -> nn.Module:
        return PictureNetwork(self.parts(whole, self.decoder_parts), self.decoded)

    def encoded(self, parts: nn.ModuleDict, x: Tensor) -> Tensor:
        z_e: Tensor = parts["quant_conv"](parts["encoder"](x))
        return z_e

    def decoded(self, parts: nn.ModuleDict, z: Tensor) -> Tensor:
        x_hat: Tensor = parts["decoder"](parts["post_quant_conv"](z))
        return x_hat

    def entries(self, parts: nn.ModuleDict) -> Tensor:
        """The codebook (N, D)."""
        return cast(Tensor, cast(Any, parts["quantize"]).embedding.weight)

    def preprocessor(self) -> dict[str, Any]:
        height, width = self.modality().size
        half = [0.5, 0.5, 0.5]
        return {
            "image_processor_type": "JanusImageProcessor",
            "size": {"height": height, "width": width},
            "image_mean": half,
            "image_std": half,
        }
