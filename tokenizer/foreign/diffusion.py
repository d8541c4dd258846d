"""Autoencoders of diffusers: VQModel, which is taming-transformers' VQGAN, and AutoencoderKL, that of Stable
Diffusion.

Left out: tiles and slices, and scaling of latents for diffusion models.
"""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, cast

from safetensors import safe_open
from torch import Tensor, nn

from tokenizer.bottlenecks import Bottleneck, BottleneckConfig
from tokenizer.bottlenecks.gaussian import GaussianConfig
from tokenizer.foreign import Family
from tokenizer.foreign.library import (
    import_library,
    quietly,
    refused,
    require_all_loaded,
    require_finite_weights,
    save_whole,
    weights_file,
)
from tokenizer.foreign.pictures import ForeignPicture, NearestEntry, PictureNetwork
from tokenizer.hub.files import AGAIN, DIFFUSION_WEIGHTS
from tokenizer.hub.meta import outline_of
from tokenizer.modalities import Modality
from tokenizer.variants import require


class DiffusersFamily(Family):
    """What both have in common: networks that halve a picture's size at every level but the last."""

    library = "diffusers"
    untraced = "diffusers' Upsample2D goes another way for batches of 64 and more"
    weights = DIFFUSION_WEIGHTS
    kind: ClassVar[str] = "image"
    losses: ClassVar[Mapping[str, float]] = {"l1": 1.0}
    decides = ("block_out_channels", "norm_num_groups", "act_fn")

    @property
    def _class(self) -> Any:
        return getattr(import_library(self.library), self.model_class)

    @cached_property
    def theirs(self) -> Any:
        make = self._class.from_config  # imported before the device meta is the default
        try:
            return outline_of(lambda: make(dict(self.raw))).config
        except Exception as error:  # of its own checks, of many kinds
            raise refused(self, error) from error

    def check(self) -> None:
        config = self.theirs
        require(
            len(config.block_out_channels) >= 2 and config.in_channels == config.out_channels,
            "expected 2 levels in block_out_channels or more, and as many channels out as in",
        )

    def whole(self) -> Any:
        return self._class.from_config(dict(self.raw))

    def load(self, folder: Path, outline: nn.Module) -> Any:
        path = weights_file(self, folder, outline, pickled="diffusion_pytorch_model.bin")
        with safe_open(path, framework="pt") as file:
            dtype = file.get_tensor(next(iter(file.keys()))).dtype
        with quietly(import_library(self.library)):
            try:
                model, info = self._class.from_pretrained(
                    folder,
                    use_safetensors=True,
                    torch_dtype=dtype,
                    local_files_only=True,
                    low_cpu_mem_usage=False,
                    ignore_mismatched_sizes=True,  # told below, by name
                    output_loading_info=True,
                )
            except (OSError, RuntimeError) as error:
                raise ValueError(f"{path}: {' '.join(str(error).split()):.300}; {AGAIN}") from error
        require_all_loaded(info, path)
        require_finite_weights(model, path)
        return model

    def save(self, whole: Any, path: Path) -> None:
        save_whole(self, whole, path)

    def preprocessor(self) -> dict[str, Any]:
        return {"image_processor_type": "VaeImageProcessor", "vae_scale_factor": 1 << self._levels}

    @property
    def _levels(self) -> int:
        return len(self.theirs.block_out_channels) - 1

    def modality(self) -> Modality:
        size = self.theirs.sample_size
        return ForeignPicture(
            self.theirs.in_channels, size if isinstance(size, int) else min(size), self._levels
        )

    def encoder(self, whole: Any) -> nn.Module:
        return PictureNetwork(self.parts(whole, self.encoder_parts), self.encoded)

    def decoder(self, whole: Any) -> nn.Module:
        return PictureNetwork(self.parts(whole, self.decoder_parts), self.decoded)

    def encoded(self, parts: nn.ModuleDict, x: Tensor) -> Tensor:
        """x: (B, C, H, W) → z_e (B, in_dim, h, w), by the modules of the encoder."""
        z_e: Tensor = parts["encoder"](x)
        return parts["quant_conv"](z_e) if "quant_conv" in parts else z_e

    def decoded(self, parts: nn.ModuleDict, z: Tensor) -> Tensor:
        """z: (B, out_dim, h, w) → x_hat (B, C, H, W), by the modules of the decoder."""
        x_hat: Tensor = parts["decoder"](parts["post_quant_conv"](z) if "post_quant_conv" in parts else z)
        return x_hat


class VQModel(DiffusersFamily, name="VQModel"):
    """`VQModel.encode` gives latents; codes are those of the nearest entry, as its decode looks them up."""

    model_class = "VQModel"
    encoder_parts = ("encoder", "quant_conv")
    bottleneck_parts = ("quantize",)
    decoder_parts = ("post_quant_conv", "decoder")

    def check(self) -> None:
        kind = self.raw.get("norm_type", "group")
        require(
            kind == "group", f"norm_type is {kind!r}, expected group: other decoders need more than latents"
        )
        super().check()

    def bottleneck(self, whole: Any) -> Bottleneck:
        return NearestEntry(self, whole, self.entries, unit=False)

    def entries(self, parts: nn.ModuleDict) -> Tensor:
        """The codebook (N, D)."""
        return cast(Tensor, cast(Any, parts["quantize"]).embedding.weight)


class AutoencoderKL(DiffusersFamily, name="AutoencoderKL"):
    """A VAE: `posterior`, and codes by `quantized`. Latents are as the library's encode gives them, without
    `scaling_factor`."""

    model_class = "AutoencoderKL"
    bottleneck_parts = ()

    def bottleneck_config(self) -> BottleneckConfig:
        return GaussianConfig(dim=self.theirs.latent_channels, kl_weight=1e-6)

    def bottleneck(self, whole: Any) -> Bottleneck:
        return self.bottleneck_config().build()

    def parts(self, whole: Any, names: tuple[str, ...]) -> nn.ModuleDict:
        """With the maps beside encoder and decoder, where a config has them."""
        beside = {"encoder": "quant_conv", "decoder": "post_quant_conv"}
        wanted = [*names, *(beside[name] for name in names if getattr(whole, beside[name]) is not None)]
        return super().parts(whole, tuple(wanted))
