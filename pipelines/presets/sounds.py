"""The training presets of sound.

Left out: the options themselves (`training/options.py`).
"""

from dataclasses import replace

from pipelines.data.config import DataConfig
from pipelines.presets.registry import TOKENIZERS, preset
from pipelines.training.options import TokenizerTraining
from tokenizer import TokenizerConfig
from tokenizer.bottlenecks.rvq import RVQConfig
from tokenizer.bottlenecks.vq import VQConfig
from tokenizer.losses import default_weights
from tokenizer.modalities.audio import AudioConfig


@preset(TOKENIZERS, "audio-small")
def _audio_small() -> TokenizerTraining:
    """16 kHz mono sound from a network at the frame rate, 50 frames per second of 6 codes of 9 bits (2.7
    kbit/s). About 10 minutes on 2 CPU cores; 3.8 M parameters."""
    return TokenizerTraining(
        max_steps=2500,
        batch_size=16,
        # Muon's own arithmetic takes 0.7 of the time of all the rest, and in equal time it learnt less.
        optimizer="adamw",
        data=DataConfig(path="embedded:speech"),
        model=TokenizerConfig(
            modality=AudioConfig(size=(12800,), network="frames"),
            bottleneck=RVQConfig(
                stage=VQConfig(codebook_size=512, dim=32, codebook_dim=32, beta=0.1, decay=0.99)
            ),
            # With 0.1 of l1 codes say less of phases, and PESQ is 1.88, not 2.20.
            losses={**default_weights(), "l1": 1.0, "mel": 1.0},
        ),
    )


@preset(TOKENIZERS, "audio-small-waveform")
def _audio_small_waveform() -> TokenizerTraining:
    """As many codes from convolutions at many rates, the network of audio-small before: nearer to the
    waveform, further from what ears hear. About 10 minutes on 2 CPU cores; 4.9 M parameters."""
    small = _audio_small()
    model = replace(small.model, modality=AudioConfig(size=(12800,)))
    return replace(small, max_steps=1000, optimizer=TokenizerTraining.optimizer, model=model)


def _audio(rate: int, widths: tuple[int, ...], codebooks: int) -> TokenizerTraining:
    """What the larger codecs share: 320 samples per frame, causal."""
    return TokenizerTraining(
        max_steps=300_000,
        batch_size=64,
        mixed_precision="bf16",
        checkpoint_every=5000,
        eval_every=5000,
        warmup_steps=1000,
        ema_decay=0.999,
        data=DataConfig(path="my_sounds", workers=8),
        model=TokenizerConfig(
            modality=AudioConfig(
                sample_rate=rate,
                size=(rate,),
                strides=(4, 4, 4, 5),
                widths=widths,
                blocks=(2, 2, 3, 3),
                causal=True,
            ),
            bottleneck=RVQConfig(
                num_codebooks=codebooks, stage=VQConfig(codebook_size=1024, dim=64, codebook_dim=64)
            ),
            losses={**default_weights(), "l1": 1.0, "mel": 1.0, "stft": 0.2},
        ),
    )


@preset(TOKENIZERS, "audio-16k")
def _audio_16k() -> TokenizerTraining:
    """16 kHz mono sound, causal, 50 frames per second of 8 codes of 10 bits (4 kbit/s). Estimate: a day on
    one GPU for some hundred hours of sound; 21 M parameters. Not trained."""
    return _audio(16000, (64, 128, 256, 512), 8)


@preset(TOKENIZERS, "audio-24k")
def _audio_24k() -> TokenizerTraining:
    """24 kHz mono sound, causal, 75 frames per second of 8 codes of 10 bits (6 kbit/s). Estimate: days on one
    GPU for some hundred hours of sound; 37 M parameters. Not trained."""
    return _audio(24000, (64, 128, 320, 704), 8)
