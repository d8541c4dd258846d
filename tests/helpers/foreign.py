"""Tiny models of other libraries, with random weights, and what these libraries themselves make of data.

Left out: tests.
"""

import copy
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor

from tests.helpers.tiny import pictures


class Tiny(NamedTuple):
    """How a family's tiny model is made; its own `encode(model, x)` and `decode(model, codes)`."""

    make: Callable[[], Any]
    encode: Callable[[Any, Tensor], Tensor]
    decode: Callable[[Any, Tensor], Tensor]


def encodec(**changes: Any) -> Any:
    """4 samples per frame, 4 codebooks of 16 entries."""
    sizes: dict[str, Any] = {"num_filters": 2, "hidden_size": 8, "codebook_size": 16, "sampling_rate": 4000}
    sizes |= {"upsampling_ratios": [2, 2], "target_bandwidths": [4.0, 8.0, 16.0], "num_lstm_layers": 1}
    model = transformers.EncodecModel(transformers.EncodecConfig(**sizes | changes))
    fit_codebooks([layer.codebook.embed for layer in model.quantizer.layers], model.encoder(sounds(1, 800)))
    return model


@torch.no_grad()
def fit_codebooks(codebooks: list[Tensor], z: Tensor) -> None:
    """Fill codebooks (N, D) so that latents z (1, D, t) are near many entries, and what is left over too."""
    vectors = z[0].T
    for k, codebook in enumerate(codebooks):
        noise = torch.randn(codebook.shape)
        codebook.copy_(noise * vectors.std(0) / 2**k + (vectors.mean(0) if k == 0 else 0))


def dac(**changes: Any) -> Any:
    """10 samples per frame, 3 codebooks of 16 entries; one stride is odd, as in those for 16 and 24 kHz."""
    sizes: dict[str, Any] = {
        "encoder_hidden_size": 4,
        "decoder_hidden_size": 16,
        "downsampling_ratios": [2, 5],
    }
    sizes |= {"n_codebooks": 3, "codebook_size": 16, "codebook_dim": 4, "sampling_rate": 4000}
    model = transformers.DacModel(transformers.DacConfig(**sizes | changes))
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.mul_(8)  # 0.02 as made, with which all frames are alike
    return model


def mimi(**changes: Any) -> Any:
    """8 samples per frame, 3 codebooks of 16 entries, and attention to the 5 frames before."""
    sizes: dict[str, Any] = {"num_filters": 2, "hidden_size": 16, "upsampling_ratios": [2, 2]}
    sizes |= {"codebook_size": 16, "codebook_dim": 8, "vector_quantization_hidden_dimension": 8}
    sizes |= {"num_quantizers": 3, "upsample_groups": 16, "sampling_rate": 4000, "sliding_window": 5}
    sizes |= {"num_hidden_layers": 1, "intermediate_size": 16, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 2, "layer_scale_initial_scale": 0.5}
    model = transformers.MimiModel(transformers.MimiConfig(**sizes | changes))
    z, quantizer = model.encoder(sounds(1, 800)).latents, model.quantizer
    for half in (quantizer.semantic_residual_vector_quantizer, quantizer.acoustic_residual_vector_quantizer):
        fit_codebooks([layer.codebook.embed_sum for layer in half.layers], half.input_proj(z))
    return model


def xcodec2(**changes: Any) -> Any:
    """320 samples per frame, as its spectrum has, and one codebook of 16 entries."""
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 8, "num_hidden_layers": 1}
    sizes |= {"head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "encoder_hidden_size": 2}
    sizes |= {"downsampling_ratios": [8, 8, 5], "quantization_dim": 72, "quantization_levels": [4, 4]}
    semantic: dict[str, Any] = {"model_type": "wav2vec2-bert", "hidden_size": 8, "num_hidden_layers": 1}
    semantic |= {"num_attention_heads": 2, "intermediate_size": 8, "output_hidden_size": 8}
    sizes |= {"semantic_model_config": {**semantic, "conv_depthwise_kernel_size": 3}}
    model = transformers.Xcodec2Model(transformers.Xcodec2Config(**sizes | changes))
    # With weights as made all frames are alike: spread what is quantized over all levels.
    last, seen = model.quantizer.project_in, []
    hook = last.register_forward_hook(lambda module, given, out: seen.append(out))
    with torch.no_grad():
        xcodec2_codes(model.eval(), sounds(1, 320 * 20))
        hook.remove()
        scale = 1 / seen[0].std((0, 1))
        last.bias.copy_((last.bias - seen[0].mean((0, 1))) * scale)
        last.weight.mul_(scale[:, None])
    return model


def xcodec2_codes(model: Any, x: Tensor) -> Tensor:
    """Those of the sound, which the library follows by a frame of silence."""
    reader = transformers.Xcodec2FeatureExtractor()
    read = reader([item[0].numpy() for item in x], sampling_rate=16000, return_tensors="pt")
    codes: Tensor = model.encode(read["input_values"], read["input_features"]).audio_codes
    return codes[:, :, : x.shape[2] // 320].long()


TINY: Mapping[str, Tiny] = {
    "dac": Tiny(
        dac,
        lambda model, x: model.encode(x).audio_codes,
        lambda model, codes: model.decode(audio_codes=codes).audio_values[:, None],
    ),
    "encodec": Tiny(
        encodec,
        lambda model, x: model.encode(x, bandwidth=model.config.target_bandwidths[-1]).audio_codes[0],
        lambda model, codes: model.decode(codes[None], [None]).audio_values,
    ),
    "mimi": Tiny(
        mimi,
        lambda model, x: model.encode(x).audio_codes,
        lambda model, codes: model.decode(codes).audio_values,
    ),
    "xcodec2": Tiny(xcodec2, xcodec2_codes, lambda model, codes: model.decode(codes).audio_values),
}


def janus(**changes: Any) -> Any:
    """Pictures of 16 × 16 pixels, halved twice, and a codebook of 16 entries of several lengths."""
    sizes: dict[str, Any] = {"base_channels": 32, "channel_multiplier": [1, 1, 1], "num_res_blocks": 1}
    sizes |= {"latent_channels": 8, "embed_dim": 4, "num_embeddings": 16, "num_patches": 4}
    model = transformers.JanusVQVAE(transformers.JanusVQVAEConfig(**sizes | changes))
    with torch.no_grad():
        model.quantize.embedding.weight.copy_(torch.randn(16, 4) * (0.2 + torch.rand(16, 1)))
        z = model.quant_conv(model.encoder(pictures(4, 3, 16, 16)))
        scale = 1 / z.std((0, 2, 3))
        model.quant_conv.weight.mul_(scale[:, None, None, None])
        model.quant_conv.bias.copy_((model.quant_conv.bias - z.mean((0, 2, 3))) * scale)
    return model


# Levels, blocks and channels of both autoencoders of diffusers.
DIFFUSION: dict[str, Any] = {
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    **{"norm_num_groups": 4, "layers_per_block": 1, "latent_channels": 4, "sample_size": 16},
}


def vq_model() -> Any:
    """Pictures of 16 × 16 pixels, halved once, and a codebook of 16 entries."""
    import diffusers

    model = diffusers.VQModel(num_vq_embeddings=16, **DIFFUSION)
    with torch.no_grad():
        model.quantize.embedding.weight.normal_(std=0.5)
    return model


def autoencoder_kl() -> Any:
    import diffusers

    return diffusers.AutoencoderKL(**DIFFUSION)


# Families of pictures, which differ too much for one way in.
PICTURES: Mapping[str, Callable[[], Any]] = {
    "janus_vqgan": janus,
    "VQModel": vq_model,
    "AutoencoderKL": autoencoder_kl,
}


@functools.cache
def _made(name: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return (PICTURES[name] if name in PICTURES else TINY[name].make)().eval()


def model_of(name: str) -> Any:
    """A copy of the family's tiny model, in eval mode."""
    return copy.deepcopy(_made(name))


def saved(name: str, folder: Path) -> Path:
    """The family's tiny model in a folder, as its library saves it."""
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        model_of(name).save_pretrained(folder)
    finally:
        if bars:
            transformers.utils.logging.enable_progress_bar()
    return folder


def sounds(batch: int, samples: int, seed: int = 0) -> Tensor:
    """Noise (batch, 1, samples) in [-1, 1]."""
    return torch.rand((batch, 1, samples), generator=torch.Generator().manual_seed(seed)) * 2 - 1
