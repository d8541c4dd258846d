"""The training presets of series of several channels: a tokenizer, and a prior over its codes.

Left out: the options themselves (`training/options.py`).
"""

from pipelines.data.config import DataConfig
from pipelines.presets.registry import PRIORS, TOKENIZERS, preset
from pipelines.training.options import PriorSize, PriorTraining, TokenizerTraining
from tokenizer import TokenizerConfig
from tokenizer.bottlenecks.rvq import RVQConfig
from tokenizer.bottlenecks.vq import VQConfig
from tokenizer.losses import default_weights
from tokenizer.modalities.series import SeriesConfig


@preset(TOKENIZERS, "series")
def _series() -> TokenizerTraining:
    """3 channels at 100 Hz from .npy files (C, T), 12.5 frames per second of 4 codes of 8 bits. Some minutes
    on 2 CPU cores; 0.7 M parameters."""
    return TokenizerTraining(
        max_steps=1000,
        batch_size=32,
        data=DataConfig(path="my_series"),
        model=TokenizerConfig(
            modality=SeriesConfig(),
            bottleneck=RVQConfig(
                num_codebooks=4, stage=VQConfig(codebook_size=256, dim=32, codebook_dim=32, decay=0.99)
            ),
            losses={**default_weights(), "l1": 0.1, "l2": 1.0},
        ),
    )


@preset(PRIORS, "series")
def _series_prior() -> PriorTraining:
    """Tokens of series in windows of 8 seconds, all codebooks of a frame delayed against each other. About 2
    minutes on 2 CPU cores; 1 M parameters."""
    return PriorTraining(
        max_steps=450,
        weight_decay=0.1,
        eval_every=150,
        seconds=8.0,
        model=PriorSize(dim=128, depth=4, heads=4, dropout=0.2),
    )
