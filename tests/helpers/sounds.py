"""Waveforms and files of sound for tests of readers.

Left out: tests.
"""

from io import BytesIO

import numpy as np
import soundfile

from tokenizer.modalities.files.sounds import Sound, SoundSource

# What libsndfile writes and reads: (format, subtype) by suffix.
FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "aiff": ("AIFF", "PCM_24"),
    "au": ("AU", "PCM_16"),
    "w64": ("W64", "PCM_16"),
    "caf": ("CAF", "ALAC_16"),
}


def tone(count: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """A gliding tone with some noise: (count, channels) float32 within ±0.6."""
    t = np.arange(count)[:, None] / 16000
    noise = np.random.default_rng(seed).standard_normal((count, channels))
    return (0.4 * np.sin(2 * np.pi * (200 + 300 * t) * t) + 0.03 * noise).clip(-0.6, 0.6).astype(np.float32)


def encoded(x: np.ndarray, kind: str = "wav", rate: int = 16000, subtype: str | None = None) -> bytes:
    file = BytesIO()
    soundfile.write(file, x, rate, format=FORMATS[kind][0], subtype=subtype or FORMATS[kind][1])
    return file.getvalue()


def check_sound(source: SoundSource, sample_rate: int, channels: int, name: str | None = None) -> int:
    """The sound's length as `Sound.length`, or the `ValueError` that `Sound.check` raises."""
    with Sound(source, sample_rate, channels, name) as sound:
        sound.check()
        return sound.length


# MPEG


def mp3(
    count: int = 40_000, mode: str = "VARIABLE", rate: int = 16000, channels: int = 1, seed: int = 0
) -> bytes:
    """Quiet first, then loud: of variable rate it begins with small frames."""
    x = tone(count, channels, seed) * np.linspace(0, 1, count, dtype=np.float32)[:, None] ** 4
    file = BytesIO()
    options = {"bitrate_mode": mode, "compression_level": 0.3}
    soundfile.write(file, x, rate, format="MP3", subtype="MPEG_LAYER_III", **options)
    return file.getvalue()


def silent_frames(layer: int, count: int) -> bytes:
    """Frames of MPEG 1 at 32 kHz, mono and silent: what follows the header allots no bits."""
    second, third = {1: 0xFF, 2: 0xFD, 3: 0xFB}[layer], 0x98
    kbps = {1: 288, 2: 160, 3: 128}[layer]
    size = 12 * kbps // 32 * 4 if layer == 1 else 144 * kbps // 32
    return (bytes((0xFF, second, third, 0xC4)) + bytes(size - 4)) * count
