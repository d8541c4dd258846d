"""Well-known checkpoints: their sizes, from the library's default config or its conversion script, build a
model on the device meta that has as many weights as is known of them.

Left out: their weights, which no test downloads; VQGANs that are a pickle, whose sizes are read from their
tensors (tests/tokenizer/foreign/test_pickles.py).
"""

from typing import Any, NamedTuple

import pytest
from torchaudio.compliance import kaldi

from tokenizer import Tokenizer
from tokenizer.foreign import read_family
from tokenizer.hub.meta import outline_of


class Known(NamedTuple):
    """A checkpoint: its config.json but for what the library has by default, and what it is known for."""

    raw: dict[str, Any]
    sample_rate: int
    stride: int
    num_codebooks: int
    codebook_size: int
    parameters: int


# Sizes of DAC: conf/final/*.yml of descriptinc/descript-audio-codec, which its conversion script reads from
# its checkpoints; the others are the defaults of the configs of the library, which name these checkpoints.
DAC: dict[str, Any] = {"model_type": "dac", "downsampling_ratios": [2, 4, 5, 8]}
DAC_44: dict[str, Any] = {"model_type": "dac", "downsampling_ratios": [2, 4, 8, 8], "n_codebooks": 9}
KNOWN = {
    "facebook/encodec_24khz": Known({"model_type": "encodec"}, 24000, 320, 32, 1024, 14_851_810),
    "descript/dac_16khz": Known(
        {**DAC, "n_codebooks": 12, "sampling_rate": 16000}, 16000, 320, 12, 1024, 74_141_697
    ),
    "descript/dac_24khz": Known(
        {**DAC, "n_codebooks": 32, "sampling_rate": 24000}, 24000, 320, 32, 1024, 74_653_857
    ),
    "descript/dac_44khz": Known({**DAC_44, "sampling_rate": 44100}, 44100, 512, 9, 1024, 76_620_777),
    "kyutai/mimi": Known({"model_type": "mimi", "frame_rate": 12.5}, 24000, 1920, 32, 2048, 79_308_609),
    "HKUSTAudio/xcodec2-hf": Known({"model_type": "xcodec2"}, 16000, 320, 1, 65536, 629_281_706),
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_checkpoint_builds_with_its_sizes(name: str, tmp_path: Any) -> None:
    known = KNOWN[name]
    tok = outline_of(lambda: Tokenizer(read_family(known.raw, tmp_path).config()))
    assert (tok.sample_rate, tok.stride) == (known.sample_rate, known.stride)
    assert (tok.num_codebooks, tok.codebook_size) == (known.num_codebooks, known.codebook_size)
    assert sum(p.numel() for p in tok.parameters()) == known.parameters
    assert tok.modality.size[0] % tok.stride == 0 and abs(tok.modality.size[0] - tok.sample_rate) < tok.stride
    assert tok.bottleneck.in_dim == tok.encoder.channels and tok.decoder.channels == 1
    # Modules that were imported meanwhile have their constants in memory.
    assert not kaldi.EPSILON.is_meta
    if tok.chunk_exact:  # less than half a second on either side
        assert tok.encoder.reach * tok.stride < tok.sample_rate / 2 > tok.decoder.reach * tok.stride


# Of Stable Diffusion 1 and sd-vae-ft-mse: configs/stable-diffusion/v1-inference.yaml of
# CompVis/stable-diffusion (ch 128, ch_mult 1 2 4 4, z_channels 4); of VQGANs configs/imagenet_vqgan.yaml of
# CompVis/taming-transformers, attention in its last level; of LlamaGen's VQ-16 the library's defaults.
KL: dict[str, Any] = {"_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512]}
KL |= {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
KL |= {"layers_per_block": 2, "latent_channels": 4, "sample_size": 256}
VQ: dict[str, Any] = {"_class_name": "VQModel", "block_out_channels": [128, 128, 256, 256, 512]}
VQ |= {"down_block_types": ["DownEncoderBlock2D"] * 4 + ["AttnDownEncoderBlock2D"], "layers_per_block": 2}
VQ |= {"up_block_types": ["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 4, "latent_channels": 256}
PICTURES = {
    "stable-diffusion vae": (KL, 8, 0, 83_653_863),
    "vqgan_imagenet_f16_1024": ({**VQ, "num_vq_embeddings": 1024}, 16, 1024, 72_141_699),
    "vqgan_imagenet_f16_16384": ({**VQ, "num_vq_embeddings": 16384}, 16, 16384, 76_073_859),
    "LlamaGen vq_ds16": ({"model_type": "janus_vqgan"}, 16, 16384, 71_883_403),
}


@pytest.mark.parametrize("name", PICTURES)
def test_the_checkpoint_of_pictures_builds_with_its_sizes(name: str, tmp_path: Any) -> None:
    raw, stride, entries, parameters = PICTURES[name]
    tok = outline_of(lambda: Tokenizer(read_family(raw, tmp_path).config()))
    assert tok.stride == stride and tok.is_discrete == bool(entries)
    assert sum(p.numel() for p in tok.parameters()) == parameters
    if entries:
        assert (tok.num_codebooks, tok.codebook_size) == (1, entries)
    else:
        assert tok.bottleneck.out_dim == 4
