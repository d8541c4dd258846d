"""The presets of the second stage, in which a decoder learns to be sharp while all codes stay.

Left out: the options themselves (`training/options.py`).
"""

from pipelines.data.augment import Augment
from pipelines.data.config import DataConfig
from pipelines.presets.registry import DECODERS, preset
from pipelines.training.options import AdversarialOptions, DecoderTraining
from tokenizer.losses import default_weights


@preset(DECODERS, "pictures")
def _pictures() -> DecoderTraining:
    """Small pictures, such as those of the preset emoji: l1 alone, which makes even areas even. About 2
    minutes on 2 CPU cores for 32 × 32 pixels. Discriminators by --adversarial.weight 0.02, which no run has
    shown to help pictures yet."""
    # Measured on emoji of 640 bits: KID (efficientnet-lite0) 0.117 → 0.104, PSNR 25.25 → 25.27 dB; with
    # discriminators, weights 0.01 to 0.1, 0.121 to 0.128 and 24.9 to 25.1 dB.
    return DecoderTraining(
        max_steps=600,
        learning_rate=1e-3,
        muon_learning_rate=0.01,
        losses={**default_weights(), "l1": 1.0},
        data=DataConfig(path="embedded:emoji"),
        augment=Augment(flip=True, shift=1),
        adversarial=AdversarialOptions(
            weight=0.0, width=48, start=200, learning_rate=1e-3, betas=(0.9, 0.99), augment=False
        ),
    )


@preset(DECODERS, "speech", timed=True)
def _speech() -> DecoderTraining:
    """Speech of 16 kHz, such as that of the preset audio-small. Estimate from 60 steps: 70 minutes on 2 CPU
    cores. Not trained yet."""
    return DecoderTraining(
        max_steps=1000,
        batch_size=16,
        optimizer="adamw",
        learning_rate=5e-4,
        betas=(0.8, 0.99),
        data=DataConfig(path="embedded:speech"),
        adversarial=AdversarialOptions(
            width=16, loss="least_squares", weight=1.0, feature_weight=2.0, start=100, betas=(0.8, 0.99)
        ),
    )
