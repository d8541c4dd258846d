"""Sound: convolutional encoder and decoder of waveforms, and the way from sound files to tensors and back.

Left out: reading files and resampling (`files/sounds.py`).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tokenizer.checks import Size
from tokenizer.installation import import_torchaudio
from tokenizer.modalities import CardWords, ModalityConfig
from tokenizer.modalities.files.sounds import Sound
from tokenizer.modalities.signals import SignalModality, SignalOptions
from tokenizer.variants import require


@dataclass(frozen=True)
class AudioConfig(SignalOptions, ModalityConfig, kind="audio"):
    """Sound, and the convolutional networks for it."""

    channels: int = 1
    """1 for mono, 2 for stereo."""
    sample_rate: int = 16000
    """Samples per second; sound of another rate is resampled."""
    size: tuple[int] = (16000,)
    strides: tuple[int, ...] = (8, 8, 5)
    widths: tuple[int, ...] = (64, 128, 256)
    blocks: tuple[int, ...] = (1, 2, 3)

    def __post_init__(self) -> None:
        require(self.channels in (1, 2), f"channels is {self.channels}, expected 1 (mono) or 2 (stereo)")
        require(
            1000 <= self.sample_rate <= 384_000,
            f"sample_rate is {self.sample_rate}, expected 1000 to 384000 Hz",
        )
        super().__post_init__()

    def build(self) -> "AudioModality":
        return AudioModality(self)


class AudioModality(SignalModality):
    """Sound x: (B, channels, T) in [-1, 1]."""

    name, many, reader = "audio", "sounds", "soundfile"
    pipeline_tag = "feature-extraction"

    def __init__(self, config: AudioConfig) -> None:
        import_torchaudio()  # a mistake of the installation is told now, not when a file has another rate
        super().__init__(config)

    def preprocess(self, source: Any, size: Size = None) -> Tensor:
        """A path, bytes or (waveform, its rate), or a list of them, as x: (B, channels, T) in [-1, 1].

        (its rate, waveform) and {"array": waveform, "sampling_rate": its rate} are taken too.

        Any sound file is taken; it is mixed to `channels` and resampled to `sample_rate`. A waveform is (T,)
        or (C, T). `size`: the first so many samples, with zeros after the end of a shorter sound; left out or
        "keep": the sound's own length. Raises `ValueError` naming the file for what is not a readable sound,
        for an impossible size, and if those of a list differ in length.
        """
        return super().preprocess(source, size)

    def open(self, source: Any, name: str | None = None, report: bool = True) -> Sound:
        return Sound(source, self.sample_rate, self.channels, name, report)

    def postprocess(self, x_hat: Tensor) -> list[tuple[NDArray[np.float32], int]]:
        """x_hat (B, channels, T) as (waveform (channels, T) float32, clipped to [-1, 1]; sample rate)."""
        if x_hat.ndim != 3 or x_hat.shape[1] != self.channels:
            raise ValueError(f"expected (B, {self.channels}, T), got {tuple(x_hat.shape)}")
        return [(x.numpy(), self.sample_rate) for x in x_hat.detach().float().clamp(-1, 1).cpu()]

    def card_words(self) -> CardWords:
        channels = "mono" if self.channels == 1 else "stereo"
        result = "waveform, sample_rate = tok.postprocess(x_hat)[0]"
        return CardWords(f"sound ({channels}, {self.sample_rate} Hz)", "it", "sound.wav", result)

    def preprocessor_config(self) -> dict[str, Any]:
        return {
            "feature_extractor_type": "tokenloom",
            "feature_size": self.channels,
            "sampling_rate": self.sample_rate,
            "padding_side": "right",
            "padding_value": 0.0,
            "mix": "mean of the channels, or copies of one",
            "resample": "sinc (torchaudio)",
            "clip": "[-1, 1]",
        }
