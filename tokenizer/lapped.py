"""From waveforms to frames and back: short-time Fourier transforms in real arithmetic, whole or in chunks.

Left out: the networks between them (`modalities/frames.py`).
"""

import math

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from tokenizer.layers_1d import Layer, State, zero_after

# Power of a bin that is taken for silence by its logarithm; a sine of full scale has hop² / 4.
SILENCE = 1e-4
# Power to which magnitudes are brought beside their logarithm, so that quiet bins count too.
COMPRESSION = 0.3


class Spectrum(Layer):
    """Per frame and channel its log magnitudes, and real and imaginary parts of its spectrum with magnitudes
    to the power of COMPRESSION: (B, C, 1, t · hop) → (B, C · 3 · bins, 1, t).

    A Hann window of two frames stands with its middle on that of the frame's own samples, or, causal, ends
    with them. Around the signal are zeros.
    """

    basis: Tensor

    def __init__(self, channels: int, hop: int, causal: bool) -> None:
        super().__init__()
        self.channels, self.stride, self.reach = channels, hop, 2 * hop
        self.bins = hop + 1
        self.right = 0 if causal else hop // 2
        self.left = hop - self.right
        self.make_unsaved()

    def make_unsaved(self) -> None:
        """`basis` (reach, 2 · bins): the real and the imaginary part of every bin, under the window."""
        window = torch.hann_window(self.reach, dtype=torch.float64)
        basis = (_waves(self.bins, self.reach) * window).mT.contiguous()
        self.register_buffer("basis", basis.to(torch.get_default_dtype()), persistent=False)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        if valid is not None:
            x = zero_after(x, valid)
        return self._spectra(F.pad(x, (self.left, self.right)))

    def start(self, like: Tensor) -> State:
        return like.new_zeros(len(like), self.channels, 1, self.left)

    def stream(self, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
        x = torch.cat([state.to(x), x], dim=3)
        if last:
            x = F.pad(x, (0, self.right))
        count = max(0, (x.shape[3] - self.reach) // self.stride + 1)
        rest = x[..., count * self.stride :].clone()
        if count == 0:
            return x.new_zeros(len(x), self.channels * 3 * self.bins, 1, 0), rest
        return self._spectra(x[..., : (count - 1) * self.stride + self.reach]), rest

    def _spectra(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            frames = x.squeeze(2).to(dtype).unfold(2, self.reach, self.stride)
            real, imaginary = (frames @ self.basis.to(dtype)).split(self.bins, dim=3)
            power = real.square() + imaginary.square() + SILENCE
            scale = power ** ((COMPRESSION - 1) / 2)
            y = torch.cat([power.log() / 2, real * scale, imaginary * scale], dim=3).to(x.dtype)
        return rearrange(y, "b c t n -> b (c n) 1 t").contiguous(memory_format=torch.channels_last)


class InverseSTFT(Layer):
    """Per frame and channel the log magnitudes and phases of a spectrum → `hop` samples (Siuzdak 2023,
    arXiv 2306.00814, section 3): (B, C · 2 · bins, 1, t) → (B, C, 1, t · hop).

    A window of `reach` samples stands with its middle on that of the frame's own samples. Causal: it begins
    with them, and its neighbour fades in over a quarter of a frame, so that no sample waits for a later
    frame. What frames give is divided by the sum of both transforms' windows there, so that the
    transform is inverted exactly, at both ends too.
    """

    basis: Tensor
    envelope: Tensor

    def __init__(self, channels: int, hop: int, causal: bool) -> None:
        super().__init__()
        self.channels, self.hop, self.causal = channels, hop, causal
        # Frames under one window; of a causal one, the second holds the fading end alone.
        self.hops = 2 if causal else 4
        self.reach = self.hops * hop
        self.bins = self.reach // 2 + 1
        # Samples before the first frame's own that its window covers.
        self.early = 0 if causal else (self.reach - hop) // 2
        self.make_unsaved()

    def make_unsaved(self) -> None:
        """`basis` (2 · bins, reach): what a real and an imaginary part of 1 add to a frame, under the window;
        `envelope` (reach,): the product of both windows."""
        forward, inverse = self.windows()
        # Of a real signal all bins stand for two but the first and the last.
        weight = torch.full((self.bins, 1), 2.0, dtype=torch.float64)
        weight[0] = weight[-1] = 1
        both = weight.repeat(2, 1) * _waves(self.bins, self.reach)
        dtype = torch.get_default_dtype()
        self.register_buffer("basis", (both * inverse / self.reach).to(dtype), persistent=False)
        self.register_buffer("envelope", (forward * inverse).to(dtype), persistent=False)

    def windows(self) -> tuple[Tensor, Tensor]:
        """The windows (reach,) float64 of the transform and of its inverse."""
        if not self.causal:
            hann = torch.hann_window(self.reach, dtype=torch.float64)
            return hann, hann
        fade = -(-self.hop // 4)
        rise = torch.sin(math.pi / 2 * (torch.arange(fade) + 0.5).double() / fade).square()
        rest = rise.new_zeros(self.reach - self.hop - fade)
        full = rise.new_ones(self.hop - fade)
        # Fading in the inverse alone, a first frame stands at the start as it is.
        flat = torch.cat([rise.new_ones(self.hop + fade), rest])
        return flat, torch.cat([rise, full, rise.flip(0), rest])

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        steps = x.shape[3] * self.hop
        frames, inside = self._frames(x), x.new_ones(1, 1, x.shape[3], 1)
        if valid is not None:
            frames = rearrange(
                zero_after(rearrange(frames, "b c t n -> b c n t"), valid), "b c n t -> b c t n"
            )
            inside = rearrange(zero_after(inside.expand(len(x), -1, -1, -1).mT, valid), "b c 1 t -> b c t 1")
        y, envelope = self._overlapped(frames), self._overlapped(inside * self.envelope)
        span = slice(self.early, self.early + steps)
        return self._scaled(y[..., span], envelope[..., span])

    def start(self, like: Tensor) -> State:
        """Sums of samples that later frames add to, those of the envelope, and how many samples are early."""
        rest = self.reach - self.hop
        return like.new_zeros(len(like), self.channels, rest), like.new_zeros(1, 1, rest), self.early

    def stream(self, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
        before, envelope_before, early = state
        count = x.shape[3] * self.hop
        y = self._overlapped(self._frames(x))
        envelope = self._overlapped(self.envelope.expand(1, 1, x.shape[3], -1))
        y = F.pad(before.to(y), (0, count)) + y
        envelope = F.pad(envelope_before.to(envelope), (0, count)) + envelope
        first = early if last else min(early, count)
        span = slice(first, count + self.early if last else count)
        state = (y[..., count:].clone(), envelope[..., count:].clone(), early - first)
        return self._scaled(y[..., span], envelope[..., span]), state

    def _frames(self, x: Tensor) -> Tensor:
        """(B, C · 2 · bins, 1, t) → (B, C, t, reach), under the window."""
        x = rearrange(x, "b (c n) 1 t -> b c t n", c=self.channels)
        dtype = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            log_magnitude, phase = x.to(dtype).split(self.bins, dim=3)
            # A sine of full scale reaches half the window's length, which bounds what exp may give.
            magnitude = log_magnitude.clamp(max=math.log(self.reach)).exp()
            return torch.cat([magnitude * phase.cos(), magnitude * phase.sin()], dim=3) @ self.basis.to(dtype)

    def _overlapped(self, frames: Tensor) -> Tensor:
        """(B, C, t, reach) → (B, C, (t - 1) · hop + reach): each frame added `hop` samples after the one
        before."""
        parts = rearrange(frames, "b c t (k h) -> k b c t h", k=self.hops)
        shifted = [F.pad(part, (0, 0, i, self.hops - 1 - i)) for i, part in enumerate(parts)]
        return torch.stack(shifted).sum(0).flatten(2)

    def _scaled(self, y: Tensor, envelope: Tensor) -> Tensor:
        y = (y / torch.where(envelope > 0, envelope, 1)).to(self.basis.dtype)
        return rearrange(y, "b c t -> b c 1 t").contiguous(memory_format=torch.channels_last)


def _waves(bins: int, samples: int) -> Tensor:
    """(2 · bins, samples) float64: the cosines of a Fourier transform, and its negative sines."""
    angle = 2 * math.pi / samples * torch.arange(bins)[:, None] * torch.arange(samples).double()
    return torch.cat([angle.cos(), -angle.sin()])
