"""The presets of the second stage, in which a decoder learns to be sharp while all codes stay.

Left out: the options themselves (`training/options.py`).
"""

from typing import Any

from pipelines.data.augment import Augment
from pipelines.data.config import DataConfig
from pipelines.presets.registry import DECODERS, preset
from pipelines.training.options import AdversarialOptions, DecoderTraining
from tokenizer.anti_aliased import STLPIPS
from tokenizer.config import DecoderConfig
from tokenizer.losses import default_weights


@preset(DECODERS, "pictures")
def _pictures() -> DecoderTraining:
    """Small pictures, such as those of the preset emoji: a deeper decoder that begins as the old one, and a
    loss that keeps edges sharp. About 10 minutes on 2 CPU cores for 32 × 32 pixels. Discriminators by
    --adversarial.weight 0.02, which no run has shown to help pictures yet."""
    # Measured on emoji of 640 bits, one seed: KID (efficientnet-lite0) 0.119 → 0.050, PSNR 25.28 → 25.77 dB.
    # After 500 steps l1 in place of cauchy was at 0.091, cauchy at 0.087: within the spread.
    return DecoderTraining(
        max_steps=2400,
        learning_rate=2e-3,
        muon_learning_rate=0.02,
        decoder=DecoderConfig(deeper=4),
        losses={**default_weights(), "cauchy": 0.2},
        data=DataConfig(path="embedded:emoji"),
        augment=Augment(flip=True, shift=1),
        adversarial=AdversarialOptions(
            weight=0.0, width=48, start=200, learning_rate=1e-3, betas=(0.9, 0.99), augment=False
        ),
    )


@preset(DECODERS, "speech", timed=True)
def _speech() -> DecoderTraining:
    """Speech of 16 kHz, such as that of the preset audio-small: spectra alone, without the waveform, whose
    phases the codes hold already. About 9 minutes on 2 CPU cores. Discriminators by --adversarial.weight 1
    --adversarial.feature-weight 2, at several times the cost; not trained with them."""
    # Measured on audio-small: PESQ 2.20 → 2.44, STOI 0.926 → 0.932. With l1 as well PESQ stood still for 300
    # steps; so it did, lower, with compressed complex spectra (Braun and Tashev 2020, arXiv 2009.12286).
    return DecoderTraining(
        max_steps=2000,
        batch_size=16,
        optimizer="adamw",
        learning_rate=5e-4,
        betas=(0.8, 0.99),
        losses={**default_weights(), "mel": 1.0, "stft": 0.5},
        data=DataConfig(path="embedded:speech"),
        adversarial=AdversarialOptions(
            width=8, loss="least_squares", weight=0.0, start=100, learning_rate=5e-4, betas=(0.8, 0.99)
        ),
    )


def _on_gpus(data: str, **options: Any) -> DecoderTraining:
    """What the stages of large tokenizers share: as many steps between checkpoints as in the first one, and
    discriminators that see data as they are, since nobody learns so much by heart."""
    return DecoderTraining(
        mixed_precision="bf16",
        checkpoint_every=5000,
        eval_every=5000,
        warmup_steps=1000,
        optimizer="adamw",
        data=DataConfig(path=data, workers=8),
        **options,
    )


@preset(DECODERS, "audio-16k", timed=True)
def _audio_16k() -> DecoderTraining:
    """Sound of the preset audio-16k, by the losses of DAC. Estimate: days on one GPU for some hundred hours
    of sound. Not trained."""
    # Kumar et al. 2023 (arXiv 2306.06546), section 4 and the authors' configuration: 15 times the mel
    # distance, 1 the adversarial loss and 2 the features, each summed over 7 windows, 8 views and 100 layers.
    # Here all are means, and the features also shares of their size |D|, so the same is 105 : 8 : 200 |D|, or
    # 13 : 1 : 25 |D|. |D| is 0.03 in discriminators that have learnt nothing, and grows.
    # They let both sides learn from the first step. This decoder is trained already, so it waits for
    # discriminators that are not, until all rates are at their peak.
    return _on_gpus(
        "my_sounds",
        max_steps=250_000,
        batch_size=64,
        learning_rate=1e-4,
        betas=(0.8, 0.99),
        ema_decay=0.999,
        losses={**default_weights(), "mel": 13.0},
        adversarial=AdversarialOptions(
            width=32,
            loss="least_squares",
            weight=1.0,
            feature_weight=2.0,
            start=1000,
            learning_rate=1e-4,
            betas=(0.8, 0.99),
            augment=False,
        ),
    )


@preset(DECODERS, "audio-24k", timed=True)
def _audio_24k() -> DecoderTraining:
    """Sound of the preset audio-24k, by the losses of EnCodec, balanced by their gradients. Estimate: days on
    one GPU for some hundred hours of sound. Not trained."""
    # Défossez et al. 2022 (arXiv 2210.13438), section 4: batches of 64 seconds, Adam at 3e-4 with decays 0.5
    # and 0.9, and as shares of the gradient 0.1 for the waveform, 1 for mel, 3 for adversarial loss and for
    # features, for which it does not matter what a loss is summed over. Less what is random or has no place
    # here: their discriminators skip a third of the steps, and are of spectra alone.
    return _on_gpus(
        "my_sounds",
        max_steps=300_000,
        batch_size=64,
        learning_rate=3e-4,
        betas=(0.5, 0.9),
        ema_decay=0.999,
        losses={**default_weights(), "l1": 0.1, "mel": 1.0},
        adversarial=AdversarialOptions(
            width=32,
            weight=3.0,
            feature_weight=3.0,
            start=1000,
            learning_rate=3e-4,
            betas=(0.5, 0.9),
            balance=True,
            augment=False,
        ),
    )


@preset(DECODERS, "image-256")
def _image_256() -> DecoderTraining:
    """Pictures of the preset image-256, by the losses of LlamaGen's tokenizer. Estimate: days on several
    data-centre GPUs for 1 M pictures. Not trained."""
    # The authors' configuration (Sun et al. 2024, arXiv 2406.06525): l2 and LPIPS 1.0, hinge loss 0.5 with a
    # fixed weight, batches of 128, Adam at 1e-4 with decays 0.9 and 0.95 for both sides, first layers of 64
    # channels. The distance here, without learnt weights per channel, was 1.8 times that with them (emoji,
    # blurred and with noise), so its weight is 0.6. The decoder gets used to it for an epoch of 1 M pictures
    # before adversarial loss comes, which VQGAN's authors (Esser et al. 2021, arXiv 2012.09841) add late too.
    return _on_gpus(
        "my_pictures",
        max_steps=100_000,
        batch_size=128,
        learning_rate=1e-4,
        betas=(0.9, 0.95),
        ema_decay=0.9995,
        augment=Augment(flip=True),
        losses={**default_weights(), "l2": 1.0},
        perceptual=STLPIPS,
        perceptual_weight=0.6,
        adversarial=AdversarialOptions(
            width=64,
            weight=0.5,
            start=8000,
            learning_rate=1e-4,
            betas=(0.9, 0.95),
            augment=False,
        ),
    )
