"""The training presets of pictures. A new preset is one decorated function.

Left out: those of other bottlenecks (`quantizers.py`), and the options themselves (`training/options.py`).
"""

from pipelines.data.augment import Augment
from pipelines.data.config import DataConfig
from pipelines.presets.registry import TOKENIZERS, preset
from pipelines.training.options import TokenizerTraining
from tokenizer import TokenizerConfig
from tokenizer.bottlenecks.gaussian import GaussianConfig
from tokenizer.bottlenecks.vq import VQConfig
from tokenizer.losses import default_weights
from tokenizer.modalities.image import ImageConfig


@preset(TOKENIZERS, "emoji")
def _emoji() -> TokenizerTraining:
    """32 × 32 colour emoji, 64 codes of 10 bits. About 4 minutes on 2 CPU cores; 0.9 M parameters."""
    return TokenizerTraining(
        max_steps=1900,
        learning_rate=4e-3,
        muon_learning_rate=0.04,
        data=DataConfig(path="embedded:emoji"),
        augment=Augment(flip=True, shift=1),
        model=TokenizerConfig(
            bottleneck=VQConfig(codebook_size=1024),
            losses={**default_weights(), "l1": 0.1, "l2": 1.0},
        ),
    )


@preset(TOKENIZERS, "digits")
def _digits() -> TokenizerTraining:
    """28 × 28 grey digits, 49 codes of 7 bits. About 2 minutes on 2 CPU cores."""
    return TokenizerTraining(
        max_steps=1000,
        data=DataConfig(path="embedded:digits"),
        model=TokenizerConfig(
            modality=ImageConfig(channels=1, size=(28, 28), widths=(32, 64), blocks=(1, 1)),
            bottleneck=VQConfig(codebook_size=128, dim=4, codebook_dim=4),
        ),
    )


@preset(TOKENIZERS, "digits-small")
def _digits_small() -> TokenizerTraining:
    """28 × 28 grey digits, 16 codes of 9 bits; the quickstart's. About 1 minute on 2 CPU cores; 0.4 M
    parameters."""
    return TokenizerTraining(
        max_steps=400,
        warmup_steps=30,
        checkpoint_every=200,
        data=DataConfig(path="embedded:digits"),
        model=TokenizerConfig(
            modality=ImageConfig(
                channels=1, size=(28, 28), strides=(2, 2, 2), widths=(16, 32, 64), blocks=(0, 1, 1)
            ),
            bottleneck=VQConfig(codebook_size=512, dim=8, codebook_dim=8),
        ),
    )


@preset(TOKENIZERS, "digits-vae")
def _digits_vae() -> TokenizerTraining:
    """28 × 28 grey digits as one Gaussian latent of 32 numbers; sample.py --tokenizer draws new ones. About 4
    minutes on 2 CPU cores; 1.5 M parameters."""
    return TokenizerTraining(
        max_steps=1500,
        data=DataConfig(path="embedded:digits"),
        model=TokenizerConfig(
            modality=ImageConfig(
                channels=1,
                size=(28, 28),
                strides=(2, 2, 2, 2, 2),
                widths=(32, 48, 64, 96, 128),
                blocks=(0, 1, 1, 0, 0),
                output="tanh",
            ),
            bottleneck=GaussianConfig(dim=32, kl_weight=1.0, kl_warmup_steps=300),
            losses={**default_weights(), "bernoulli": 1.0},
        ),
    )


@preset(TOKENIZERS, "image-64")
def _image_64() -> TokenizerTraining:
    """64 × 64 colour pictures, 256 codes of 10 bits. Estimate: some hours on one GPU; 5.6 M parameters. Not
    trained but for 1000 steps of a smaller network (cards/photographs.md)."""
    return TokenizerTraining(
        max_steps=50_000,
        batch_size=128,
        checkpoint_every=2000,
        eval_every=2000,
        ema_decay=0.999,
        data=DataConfig(path="my_pictures", workers=4),
        model=TokenizerConfig(
            modality=ImageConfig(size=(64, 64), widths=(96, 192), blocks=(2, 3)),
            bottleneck=VQConfig(codebook_size=1024),
            losses={**default_weights(), "l1": 0.5, "l2": 1.0, "ms_ssim": 0.1},
        ),
    )


@preset(TOKENIZERS, "image-256")
def _image_256() -> TokenizerTraining:
    """256 × 256 colour pictures, 1024 codes of 13 bits. Estimate: days on several data-centre GPUs for 1 M
    pictures, in bf16; 43 M parameters. Not trained."""
    return TokenizerTraining(
        max_steps=200_000,
        batch_size=128,
        mixed_precision="bf16",
        checkpoint_every=5000,
        eval_every=5000,
        warmup_steps=1000,
        ema_decay=0.9995,
        data=DataConfig(path="my_pictures", workers=8),
        augment=Augment(flip=True),
        model=TokenizerConfig(
            modality=ImageConfig(
                size=(256, 256), strides=(2, 2, 2), widths=(128, 256, 512), blocks=(2, 2, 3)
            ),
            bottleneck=VQConfig(codebook_size=8192),
            losses={**default_weights(), "l1": 1.0, "l2": 1.0, "ms_ssim": 0.1},
        ),
    )
