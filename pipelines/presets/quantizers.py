"""Training presets that show the bottlenecks: each is the preset `emoji` with another one.

Left out: which of them to choose (`benchmark.py quantizers` measures them), and the options themselves.
"""

import dataclasses

from pipelines.presets.registry import TOKENIZERS, preset
from pipelines.training.options import TokenizerTraining
from tokenizer.bottlenecks import BottleneckConfig
from tokenizer.bottlenecks.bsq import BSQConfig
from tokenizer.bottlenecks.fsq import FSQConfig
from tokenizer.bottlenecks.gaussian_quant import GaussianQuantConfig
from tokenizer.bottlenecks.grouped import GroupedConfig
from tokenizer.bottlenecks.lfq import LFQConfig
from tokenizer.bottlenecks.vq import VQConfig


def _emoji_with(bottleneck: BottleneckConfig) -> TokenizerTraining:
    options: TokenizerTraining = TOKENIZERS["emoji"].build()
    return dataclasses.replace(options, model=dataclasses.replace(options.model, bottleneck=bottleneck))


@preset(TOKENIZERS, "emoji-simvq")
def _simvq() -> TokenizerTraining:
    """32 × 32 colour emoji, 64 codes of 14 bits from one large codebook. About 5 minutes on 2 CPU cores; 0.9
    M parameters."""
    return _emoji_with(VQConfig(codebook_size=16384, update="simvq"))


@preset(TOKENIZERS, "emoji-grouped")
def _grouped() -> TokenizerTraining:
    """32 × 32 colour emoji, 64 positions of 2 codes of 8 bits. About 4 minutes on 2 CPU cores; 0.9 M
    parameters."""
    return _emoji_with(GroupedConfig(groups=2, base=VQConfig(codebook_size=256, dim=4, codebook_dim=4)))


@preset(TOKENIZERS, "emoji-gaussian-quant")
def _gaussian_quant() -> TokenizerTraining:
    """32 × 32 colour emoji by a VAE with 64 codes of 10 bits from Gaussian draws. About 5 minutes on 2 CPU
    cores; 0.9 M parameters."""
    return _emoji_with(GaussianQuantConfig(dim=4, group_dim=4, codebook_size=1024, kl_weight=0.02))


@preset(TOKENIZERS, "emoji-fsq")
def _fsq() -> TokenizerTraining:
    """32 × 32 colour emoji, 64 codes of 1000 values, channels rounded to levels. About 4 minutes on 2 CPU
    cores; 0.9 M parameters."""
    return _emoji_with(FSQConfig(levels=(8, 5, 5, 5)))


@preset(TOKENIZERS, "emoji-lfq")
def _lfq() -> TokenizerTraining:
    """32 × 32 colour emoji, 64 codes of 10 bits, signs of 10 channels. About 4 minutes on 2 CPU cores; 0.9 M
    parameters."""
    return _emoji_with(LFQConfig(bits=10))


@preset(TOKENIZERS, "emoji-bsq")
def _bsq() -> TokenizerTraining:
    """32 × 32 colour emoji, 64 codes of 10 bits, signs of a unit vector. About 4 minutes on 2 CPU cores; 0.9
    M parameters."""
    return _emoji_with(BSQConfig(bits=10))
