"""Sound: its two networks by config, and the way from sound files to tensors and back.

Left out: the networks (`signals.py`, `frames.py`), reading files and resampling (`files/sounds.py`).
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from tokenizer.checks import Size
from tokenizer.installation import import_torchaudio
from tokenizer.modalities import CardWords, ModalityConfig
from tokenizer.modalities.files.sounds import Sound
from tokenizer.modalities.frames import FramesOptions, frames_decoder, frames_encoder
from tokenizer.modalities.signals import SignalModality, SignalOptions
from tokenizer.variants import require

# Options that one network has and the other has not.
WAVEFORM_ONLY = ("widths", "blocks", "activation", "weight_norm")
FRAMES_ONLY = ("dim", "depth")
# Samples of a frame, above which the tables of the short-time transform would take too much memory.
MAX_HOP = 1024


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
    network: Literal["waveform", "frames"] = "waveform"
    """Convolutions at many rates, or `frames`: nearly all work happens once per frame. Then `dim` and `depth`
    stand in place of `widths` and `blocks`, and of `strides` only their product matters."""
    dim: int = 256
    """Channels of the network `frames`."""
    depth: int = 6
    """Residual blocks of the network `frames`, in the encoder and in the decoder."""

    def __post_init__(self) -> None:
        require(self.channels in (1, 2), f"channels is {self.channels}, expected 1 (mono) or 2 (stereo)")
        require(
            1000 <= self.sample_rate <= 384_000,
            f"sample_rate is {self.sample_rate}, expected 1000 to 384000 Hz",
        )
        super().__post_init__()

    def check_networks(self) -> None:
        require(
            self.network in ("waveform", "frames"),
            f"network is {self.network!r}, expected waveform or frames",
        )
        frames = self.network == "frames"
        instead = "and set dim and depth" if frames else "or choose the network frames"
        for name in WAVEFORM_ONLY if frames else FRAMES_ONLY:
            value, usual = getattr(self, name), getattr(AudioConfig, name)
            require(
                value == usual,
                f"{name} is {value}, which the network {self.network} does not have; leave it at {usual}, "
                f"{instead}",
            )
        if not frames:
            return super().check_networks()
        require(1 <= self.dim <= 8192, f"dim is {self.dim}, expected 1 to 8192")
        require(0 <= self.depth <= 64, f"depth is {self.depth}, expected 0 to 64")
        require(
            1 <= math.prod(self.strides) <= MAX_HOP,
            f"strides are {self.strides}, expected a product of at most {MAX_HOP} for the network frames",
        )

    def with_networks(self, **changes: Any) -> Self:
        """Of another network, the options that only this one has fall back to what they are left out."""
        if changes.get("network", self.network) != self.network:
            left = WAVEFORM_ONLY if self.network == "waveform" else FRAMES_ONLY
            changes = {name: getattr(AudioConfig, name) for name in left} | changes
        return super().with_networks(**changes)

    def build(self) -> "AudioModality":
        return AudioModality(self)


class AudioModality(SignalModality):
    """Sound x: (B, channels, T) in [-1, 1]."""

    name, many, reader = "audio", "sounds", "soundfile"
    pipeline_tag = "feature-extraction"

    def __init__(self, config: AudioConfig) -> None:
        import_torchaudio()  # a mistake of the installation is told now, not when a file has another rate
        super().__init__(config)
        self.frames: FramesOptions | None = None
        if config.network == "frames":
            self.frames = FramesOptions(
                config.channels, self.stride, config.dim, config.depth, config.kernel, config.causal
            )

    def build_encoder(self, out_channels: int) -> nn.Module:
        """(B, channels, t · stride) → (B, out_channels, t)."""
        if self.frames:
            return frames_encoder(self.frames, out_channels)
        return super().build_encoder(out_channels)

    def build_decoder(self, in_channels: int) -> nn.Module:
        """(B, in_channels, t) → (B, channels, t · stride)."""
        if self.frames:
            return frames_decoder(self.frames, in_channels)
        return super().build_decoder(in_channels)

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
