"""What families of sound share: networks of another library over signals of any length, of padded batches and
in chunks, and codes of residual stages.

Left out: the networks themselves, which their library builds (the families beside this file).
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.bottlenecks import Bottleneck, Bottlenecked
from tokenizer.bottlenecks.parts.estimators import straight_through
from tokenizer.distributed import Step
from tokenizer.foreign.library import TransformersFamily
from tokenizer.installation import import_torchaudio
from tokenizer.layers_1d import State
from tokenizer.modalities.audio import AudioConfig, AudioModality
from tokenizer.variants import require

# Frames whose distances to a codebook are taken at once.
FRAMES_AT_ONCE = 1 << 15
# Share of examples whose decoder learns from a random number of codebooks, as in our own residual bottleneck.
DROPOUT = 0.5


class SoundNetwork(nn.Module):
    """Modules of another library as one map of signals (B, C, T) → (B, channels, T'), T' = T / takes · gives.

    `run` is what the library does with the modules `parts`. `reach`: steps of the input, on either side, that
    an output depends on, where they are few; then chunks go through with so many around them. Without it a
    stream waits for the end, and the signal goes through whole. `least`: outputs from which on an example in
    a padded batch is what it is alone; shorter ones, or without it all, go with those of equal length.
    """

    def __init__(
        self,
        parts: nn.ModuleDict,
        run: Callable[[nn.ModuleDict, Tensor], Tensor],
        channels: int,
        takes: int = 1,
        gives: int = 1,
        reach: int | None = None,
        least: int | None = None,
    ) -> None:
        super().__init__()
        self.parts, self._run = parts, run
        self.channels, self.takes, self.gives, self.least = channels, takes, gives, least
        self.reach = None if reach is None else -(-reach // takes)  # in units of `takes` steps

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """x: (B, C, T), T a multiple of `takes`; `valid` (B,) int64: steps of an example that are its own."""
        if valid is not None:
            return self._padded(x, (valid // self.takes).tolist())
        y = self._run(self.parts, x)
        wanted = x.shape[2] // self.takes * self.gives
        # A frame that a network leaves out would be no code; samples at the very end may be missing.
        assert y.shape[2] >= wanted or self.gives > 1, "the network gives fewer frames than the signal has"
        return y[:, :, :wanted] if y.shape[2] >= wanted else F.pad(y, (0, wanted - y.shape[2]))

    def _padded(self, x: Tensor, counts: list[int]) -> Tensor:
        """Examples of which `counts` outputs are their own, in as few batches as give them what they have
        alone."""
        groups: dict[int, list[int]] = {}
        for row, count in enumerate(counts):
            together = self.least is not None and count >= self.least
            groups.setdefault(0 if together else count, []).append(row)
        y: Tensor | None = None
        for rows in groups.values():
            out = self(x[rows, :, : max(counts[row] for row in rows) * self.takes])
            if y is None:
                y = out.new_zeros(len(x), out.shape[1], x.shape[2] // self.takes * self.gives)
            y[rows, :, : out.shape[2]] = out
        assert y is not None
        return y

    def start(self, like: Tensor) -> State:
        """The state before the first chunk: nothing to look back at."""
        return like.new_empty(*like.shape[:2], 0), 0

    def stream(self, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
        """The next chunk x (B, C, t) → (the outputs that are now complete, the next state)."""
        before, done = state
        x = torch.cat([before, x], dim=2)
        have = x.shape[2] // self.takes
        ahead = 0 if last else self.reach
        # As much at a time as it looks around at least, or most of the work would be done again and again.
        ready = 0 if ahead is None else have - done - ahead
        if ready < (1 if last else max(1, self.reach or 0)):
            return x.new_empty(len(x), self.channels, 0), (x, done)
        assert ahead is not None
        y = self(x[:, :, : (done + ready + ahead) * self.takes])
        y = y[:, :, done * self.gives : (done + ready) * self.gives]
        kept = min(done + ready, self.reach) if self.reach is not None else 0
        return y, (x[:, :, (done + ready - kept) * self.takes :].clone(), kept)


def reach_of(network: nn.Module) -> int:
    """Steps of the input on either side that an output of convolutions in a row can depend on, rounded up."""
    reach, step = 0.0, 1.0
    for m in network.modules():
        if isinstance(m, nn.Conv1d):
            reach += (m.kernel_size[0] - 1) * m.dilation[0] * step
            step *= m.stride[0]
        elif isinstance(m, nn.ConvTranspose1d):
            step /= m.stride[0]
            reach += m.kernel_size[0] * step
    return math.ceil(reach)


class ForeignSound(AudioModality):
    """Sound x: (B, channels, T) in [-1, 1], for the networks of a family."""

    def __init__(self, family: "SoundFamily", batch_exact: bool, chunk_exact: bool) -> None:
        strides, rate = family.strides(), family.theirs.sampling_rate
        stride = math.prod(strides)
        around = tuple(1 for _ in strides)
        super().__init__(
            AudioConfig(
                channels=family.channels(),
                sample_rate=rate,
                size=(max(1, rate // stride) * stride,),  # about a second
                strides=strides,
                widths=around,
                blocks=around,
            )
        )
        self.batch_exact, self.chunk_exact = batch_exact, chunk_exact


class SoundFamily(TransformersFamily):
    """Families of sound in transformers."""

    kind: ClassVar[str] = "audio"
    losses: ClassVar[Mapping[str, float]] = {"l1": 1.0, "mel": 1.0}

    def strides(self) -> tuple[int, ...]:
        """Reductions of the levels; their product is samples per frame."""
        raise TypeError(f"{type(self).__name__} does not define strides")

    def channels(self) -> int:
        """Channels of the sound: one where the config has no word for them."""
        return int(getattr(self.theirs, "audio_channels", 1))

    @property
    def stride(self) -> int:
        """Samples per frame."""
        return math.prod(self.strides())

    def encoded(self, parts: nn.ModuleDict, x: Tensor) -> Tensor:
        """x: (B, C, T) → z_e (B, in_dim, T / stride), by the modules of the encoder."""
        z_e: Tensor = parts["encoder"](x)
        return z_e

    def decoded(self, parts: nn.ModuleDict, z: Tensor) -> Tensor:
        """z: (B, out_dim, t) → x_hat (B, C, t · stride), by the modules of the decoder."""
        x_hat: Tensor = parts["decoder"](z)
        return x_hat

    def quantize(self, parts: nn.ModuleDict, z: Tensor, count: int) -> Tensor:
        """z: (B, in_dim, t) → codes of the first stages (B, count, t) int64, by those of the bottleneck."""
        raise TypeError(f"{type(self).__name__} does not define quantize")

    def dequantize(self, parts: nn.ModuleDict, codes: Tensor) -> Tensor:
        """codes: (B, k, t) of the first k stages → z_q (B, out_dim, t)."""
        raise TypeError(f"{type(self).__name__} does not define dequantize")

    def check(self) -> None:
        import_torchaudio()  # not first on the device meta, where its constants would stay
        strides = self.strides()
        require(
            bool(strides) and all(isinstance(n, int) and n >= 1 for n in strides),
            f"strides are {strides}, expected 1 or more, 1 or more each",
        )


class Stages(Bottleneck):
    """The residual quantizer of another library, whose first stages decode alone."""

    prefix_decodes = True

    def __init__(
        self, family: SoundFamily, whole: Any, dim: int, num_codebooks: int, codebook_size: int
    ) -> None:
        super().__init__()
        self.parts, self.in_dim, self.out_dim = family.parts(whole, family.bottleneck_parts), dim, dim
        self.num_codebooks, self.codebook_size = num_codebooks, codebook_size
        self._quantize, self._dequantize = family.quantize, family.dequantize
        ends = family.statistics
        names = frozenset(name for name in self.state_dict() if ends and name.endswith(ends))
        self.not_coding = self.statistics = names

    def forward(self, z: Tensor, step: Step | None = None) -> Bottlenecked:
        codes = self.encode(z)
        return Bottlenecked(straight_through(z, self.decode(codes)), codes, {}, {})

    def encode(self, z: Tensor) -> Tensor:
        return self.encode_first(z, self.num_codebooks)

    @torch.no_grad()
    def encode_first(self, z: Tensor, count: int) -> Tensor:
        # Frames do not know of each other; the distances of all to all entries would take much memory. A
        # graph is of any batch, of which nothing can be counted.
        z = self._in_own_type(z)
        parts = [z] if torch.compiler.is_exporting() else z.split(max(1, FRAMES_AT_ONCE // len(z)), dim=2)
        with torch.autocast(z.device.type, enabled=False):
            return torch.cat([self._quantize(self.parts, part, count) for part in parts], dim=2)

    def decode(self, codes: Tensor) -> Tensor:
        """codes: (B, k, *grid) of the first k stages, 1 ≤ k ≤ K → z_q: (B, dim, *grid)."""
        with torch.autocast(codes.device.type, enabled=False):
            return self._dequantize(self.parts, codes)

    @torch.no_grad()
    def frozen(self, z: Tensor, step: Step | None = None) -> Tensor:
        """From a random number of codebooks for some examples, so that the decoder serves every bitrate."""
        codes = self.encode(z)
        u = torch.rand(len(z), dtype=torch.float64) if step is None else step.uniform(len(z), "quantizers")
        counts = (1 + (u / DROPOUT * self.num_codebooks).long()).clamp(max=self.num_codebooks)
        rows = zip(codes, counts.tolist(), strict=True)
        return torch.cat([self.decode(row[None, :count]) for row, count in rows])

    def _in_own_type(self, z: Tensor) -> Tensor:
        return z.to(next(value.dtype for value in self.state_dict().values() if value.is_floating_point()))
