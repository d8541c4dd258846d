"""Layers of networks for sound, each in two forms that agree: whole signals, and chunks with explicit
state.

Left out: normalisation over time, which would tie a sample to all others, and attention.
"""

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# 1 / α is computed as α / (α² + TINY), which is 0 and not infinite at α = 0.
TINY = 1e-9


def snake(x: Tensor, alpha: Tensor) -> Tensor:
    """x: (B, C, 1, T), alpha: (C, 1, 1) → (B, C, 1, T), in the wider of their types (Ziyin et al. 2020,
    arXiv 2006.08195, equation 3)."""
    y: Tensor = _Snake.apply(x, alpha)
    return y


class _Snake(torch.autograd.Function):
    """Keeps x, and no other activation, for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor) -> Tensor:
        ctx.save_for_backward(x, alpha)
        y = (alpha * x).sin_().square_()
        return torch.addcmul(x.to(y), y, _inverse(alpha)[0].to(alpha))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        """With g ≈ 1 / α: dy/dx = 1 + αg sin(2αx) and dy/dα = x g sin(2αx) + g' sin²(αx)."""
        x, alpha = ctx.saved_tensors
        inverse, slope_of_inverse = (part.to(alpha) for part in _inverse(alpha))
        angle = alpha * x
        slope = torch.sin(2 * angle).mul_(inverse)
        to_alpha = (x * slope).addcmul_(angle.sin_().square_(), slope_of_inverse).mul_(grad)
        to_x = slope.mul_(alpha).add_(1).mul_(grad)
        return to_x.to(x), to_alpha.sum(dim=(0, 2, 3))[:, None, None].to(alpha)


def _inverse(alpha: Tensor) -> tuple[Tensor, Tensor]:
    """g = α / (α² + TINY) and its derivative, at least float32."""
    alpha = alpha.to(torch.promote_types(alpha.dtype, torch.float32))
    square = alpha.square()
    return alpha / (square + TINY), (TINY - square) / (square + TINY).square()


# What a layer keeps between chunks: None, tensors, or a tuple of the states of the layers inside.
State: TypeAlias = Any


class Layer(nn.Module):
    """A map (B, C, 1, T) → (B, C', 1, T') of signals; the axis of height 1 lets 2-d convolutions, whose
    channels-last kernels are 1.1 to 2 times faster than those of conv1d on a CPU, do the work.

    `forward` takes whole signals. `stream` takes the next chunk and the state after the chunks before
    (`start` makes the first), gives all outputs that this chunk completes, and with `last` those that the
    signal's end completes; put together, they are the output of `forward`.
    """

    # Steps of the input for each step of the output.
    stride: int = 1

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """x: (B, C, 1, T). `valid` (B,) int64: steps after so many are padding, and count as zeros."""
        raise TypeError(f"{type(self).__name__} does not define forward")

    def start(self, like: Tensor) -> State:
        """The state before the first chunk, for a batch, type and device as those of `like` (B, ...)."""
        return None

    def stream(self, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
        """The next chunk x (B, C, 1, t), perhaps of no steps, → (outputs, the next state)."""
        return self(x), state


class Conv(Layer):
    """A convolution with zeros around the signal: T → T / stride steps for T a multiple of the stride.

    Causal: all zeros stand before the signal, so that an output sees no input after its own steps.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
        causal: bool = False,
        weight_norm: bool = False,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(
            channels, width, (1, kernel), (1, stride), dilation=(1, dilation), groups=groups
        )
        # Weights of one channel fit both formats, so `contiguous` leaves them: the convolution would take
        # the other format, and sums of both formats take 3 times as long.
        weight = self.conv.weight.data
        self.conv.weight.data = torch.empty_like(weight, memory_format=torch.channels_last).copy_(weight)
        if weight_norm:
            nn.utils.parametrizations.weight_norm(self.conv)
        self.reach = (kernel - 1) * dilation + 1
        self.right = 0 if causal else (self.reach - stride) // 2
        self.left = self.reach - stride - self.right

    def start_at_zero(self) -> None:
        """Let the layer give its bias alone, until it has learnt more."""
        parameters = dict(self.conv.named_parameters())
        gain = "parametrizations.weight.original0"  # of weight normalisation
        nn.init.zeros_(parameters[gain if gain in parameters else "weight"])

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        if valid is not None:
            x = zero_after(x, valid)
        # The convolution's own zeros cost no copy of x, but stand on both sides alike: steps may be too many.
        y, steps = self._convolve(x, self.left), x.shape[3] // self.stride
        return y if y.shape[3] == steps else y[..., :steps]

    def start(self, like: Tensor) -> State:
        zeros = like.new_zeros(like.shape[0], self.conv.in_channels, 1, self.left)
        return zeros.contiguous(memory_format=torch.channels_last)

    def stream(self, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
        x = _join(state.to(x), x)
        if last:
            x = F.pad(x, (0, self.right))
        count = max(0, (x.shape[3] - self.reach) // self.stride + 1)
        if count == 0:
            return x.new_zeros(x.shape[0], self.conv.out_channels, 1, 0), x.clone()
        y = self._convolve(x[..., : (count - 1) * self.stride + self.reach])
        # A copy: a view would keep the whole chunk in memory.
        return y, x[..., count * self.stride :].clone()

    def _convolve(self, x: Tensor, zeros: int = 0) -> Tensor:
        conv = self.conv
        return F.conv2d(x, conv.weight, conv.bias, conv.stride, (0, zeros), conv.dilation, conv.groups)


class Upsample1d(Conv):
    """A convolution to `factor` times the channels, whose groups become neighbouring steps (sub-pixel
    convolution, Shi et al. 2016, arXiv 1609.05158): all work happens at the lower rate."""

    def __init__(self, channels: int, width: int, kernel: int, factor: int, **options: bool) -> None:
        super().__init__(channels, width * factor, kernel, **options)
        self.factor = factor

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        return self._spread(super().forward(x, valid))

    def stream(self, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
        y, state = super().stream(x, state, last)
        return self._spread(y), state

    def _spread(self, y: Tensor) -> Tensor:
        return rearrange(y, "b (r c) 1 t -> b c 1 (t r)", r=self.factor)


class Snake(Layer):
    """x + sin²(αx) / α with a learnt α for each channel (Ziyin et al. 2020, arXiv 2006.08195, equation 3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        return snake(x, rearrange(self.alpha, "c -> c 1 1"))


class ELU(Layer):
    """The exponential linear unit (Clevert et al. 2015, arXiv 1511.07289)."""

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        return F.elu(x)


class GELU(Layer):
    """The Gaussian error linear unit (Hendrycks and Gimpel 2016, arXiv 1606.08415)."""

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        return F.gelu(x)


class ChannelNorm(Layer):
    """Layer normalisation (Ba et al. 2016, arXiv 1607.06450) of each step by itself, over its channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        x = rearrange(x, "b c h t -> b h t c")
        return rearrange(F.layer_norm(x, self.weight.shape, self.weight, self.bias), "b h t c -> b c h t")


class Scale(Layer):
    """Each channel times a number that is learnt (Touvron et al. 2021, arXiv 2103.17239, section 3)."""

    def __init__(self, channels: int, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), value))

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        return x * rearrange(self.weight, "c -> c 1 1")


class Chain(Layer):
    """Layers in a row."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        for layer in self._each():
            x = layer(x, valid)
            valid = valid if valid is None else valid // layer.stride
        return x

    def start(self, like: Tensor) -> State:
        return tuple(layer.start(like) for layer in self._each())

    def stream(self, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
        states = []
        for layer, old in zip(self._each(), state, strict=True):
            x, new = layer.stream(x, old, last)
            states.append(new)
        return x, tuple(states)

    def _each(self) -> Iterator[Layer]:
        for layer in self.layers:
            assert isinstance(layer, Layer)
            yield layer


class Residual(Layer):
    """x + body(x), for a body that keeps the number of steps and channels."""

    def __init__(self, body: Layer) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        y: Tensor = x + self.body(x, valid)
        return y

    def start(self, like: Tensor) -> State:
        return None, self.body.start(like)

    def stream(self, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
        """The body's outputs lag behind x where it looks ahead: x waits for them in the state."""
        waiting, inner = state
        y, inner = self.body.stream(x, inner, last)
        x = x if waiting is None else _join(waiting, x)
        count = y.shape[3]
        return x[..., :count] + y, (x[..., count:].clone(), inner)


class Network(nn.Module):
    """A chain from signals (B, C, T) to signals (B, C', T'), with the same three ways in as a `Layer`."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.chain = Chain(layers)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """x: (B, C, T) → (B, C', T'); steps of an example after its `valid` (B,) ones count as zeros."""
        y: Tensor = self.chain(_lift(x), valid)
        return y.squeeze(2)

    def start(self, like: Tensor) -> State:
        """The state before the first chunk of a batch like `like` (B, ...)."""
        return self.chain.start(like)

    def stream(self, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
        """The next chunk (B, C, t) → (outputs (B, C', t'), the next state)."""
        y, state = self.chain.stream(_lift(x), state, last)
        return y.squeeze(2), state


def zero_after(x: Tensor, valid: Tensor) -> Tensor:
    """x (B, ..., T) with zeros after the first `valid` (B,) steps of each example."""
    inside = torch.arange(x.shape[-1], device=x.device) < valid[:, None]
    # Not a product: the padding may hold anything, NaN included.
    return x.masked_fill(~inside.view(len(x), *(1,) * (x.ndim - 2), x.shape[-1]), 0)


def _join(before: Tensor, x: Tensor) -> Tensor:
    """Both along time. `torch.cat` alone would leave channels-last where one of them is empty."""
    return (
        torch.cat([before, x], dim=3) if before.shape[3] and x.shape[3] else before if before.shape[3] else x
    )


def _lift(x: Tensor) -> Tensor:
    return rearrange(x, "b c t -> b c 1 t").contiguous(memory_format=torch.channels_last)
