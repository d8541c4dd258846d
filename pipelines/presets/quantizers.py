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

COST = "About 4 minutes on 2 CPU cores; 0.9 M parameters."
LONGER = "About 5 minutes on 2 CPU cores; 0.9 M parameters."


def _emoji_with(bottleneck: BottleneckConfig) -> TokenizerTraining:
    options: TokenizerTraining = TOKENIZERS["emoji"].build()
    return dataclasses.replace(options, model=dataclasses.replace(options.model, bottleneck=bottleneck))


@preset(
    TOKENIZERS, "emoji-simvq", "32 × 32 colour emoji, 64 codes of 14 bits from one large codebook.", LONGER
)
def _simvq() -> TokenizerTraining:
    return _emoji_with(VQConfig(codebook_size=16384, update="simvq"))


@preset(TOKENIZERS, "emoji-grouped", "32 × 32 colour emoji, 64 positions of 2 codes of 8 bits.", COST)
def _grouped() -> TokenizerTraining:
    return _emoji_with(GroupedConfig(groups=2, base=VQConfig(codebook_size=256, dim=4, codebook_dim=4)))


@preset(
    TOKENIZERS,
    "emoji-gaussian-quant",
    "32 × 32 colour emoji by a VAE with 64 codes of 10 bits from Gaussian draws.",
    LONGER,
)
def _gaussian_quant() -> TokenizerTraining:
    return _emoji_with(GaussianQuantConfig(dim=4, group_dim=4, codebook_size=1024, kl_weight=0.02))


@preset(
    TOKENIZERS,
    "emoji-fsq",
    "32 × 32 colour emoji, 64 codes of 1000 values, channels rounded to levels.",
    COST,
)
def _fsq() -> TokenizerTraining:
    return _emoji_with(FSQConfig(levels=(8, 5, 5, 5)))


@preset(TOKENIZERS, "emoji-lfq", "32 × 32 colour emoji, 64 codes of 10 bits, signs of 10 channels.", COST)
def _lfq() -> TokenizerTraining:
    return _emoji_with(LFQConfig(bits=10))


@preset(TOKENIZERS, "emoji-bsq", "32 × 32 colour emoji, 64 codes of 10 bits, signs of a unit vector.", COST)
def _bsq() -> TokenizerTraining:
    return _emoji_with(BSQConfig(bits=10))
