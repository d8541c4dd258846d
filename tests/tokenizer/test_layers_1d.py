"""Layers for sound: their gradients and the memory format that keeps them fast.

Left out: chunks and padded batches (test_streaming.py).
"""

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from tests.helpers.tiny import codec, sounds
from tokenizer.layers_1d import Layer, Snake


def test_snake_is_its_equation_and_has_its_gradients() -> None:
    snake = Snake(3).double()
    x = torch.randn(2, 3, 1, 7, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    x.requires_grad_()
    alpha = torch.tensor([0.5, 1.0, 2.0], dtype=torch.double, requires_grad=True)
    a = alpha.detach()[:, None, None]

    def run(x: Tensor, alpha: Tensor) -> Tensor:
        y: Tensor = functional_call(snake, {"alpha": alpha}, (x,))
        return y

    torch.testing.assert_close(run(x, alpha), x + torch.sin(a * x) ** 2 / a)
    assert torch.autograd.gradcheck(run, (x, alpha))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_snake_works_in_the_precision_of_its_weights(dtype: torch.dtype) -> None:
    snake = Snake(3)
    x = torch.full((1, 3, 1, 4), 0.5, dtype=dtype, requires_grad=True)
    y = snake(x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, torch.full_like(y, 0.5 + 0.479425539**2))
    y.sum().backward()
    assert x.grad is not None and x.grad.dtype == dtype


@pytest.mark.parametrize("network", ["waveform", "frames"])
@pytest.mark.parametrize("causal", [False, True])
def test_all_layers_keep_channels_last(causal: bool, network: str) -> None:
    """One layer that leaves it makes every sum after it 3 times as slow on a CPU; in chunks too."""
    tok = codec(causal=causal, network=network)
    formats: list[bool] = []

    def look(layer: Layer, args: tuple[Tensor, ...], y: Tensor) -> None:
        formats.append(y.is_contiguous(memory_format=torch.channels_last))

    for layer in tok.modules():
        if isinstance(layer, Layer):
            layer.register_forward_hook(look)
    codes = tok.encode(sounds(1, 1, 1200))
    tok.decode(codes)
    assert len(formats) > 20 and all(formats)
    state = tok.encoder.start(sounds(1, 1, 0))
    for _ in range(3):
        _, state = tok.encoder.stream(sounds(1, 1, 600), state, False)
    kept = [s for s in _tensors(state) if s.numel() and s.shape[1] > 1]
    assert len(kept) >= 2 and all(s.stride(1) == 1 for s in kept)


def _tensors(state: object) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    return [t for s in state for t in _tensors(s)] if isinstance(state, tuple) else []


# What torch's compiler does itself with every function of one's own.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_snake_compiles_to_the_same_gradients() -> None:
    snake = Snake(3)
    x = torch.randn(2, 3, 1, 50, generator=torch.Generator().manual_seed(0))
    found = []
    for function in (snake, torch.compile(snake, backend="aot_eager", fullgraph=True)):
        inputs = x.clone().requires_grad_()
        snake.zero_grad()
        (function(inputs) ** 2).sum().backward()
        assert inputs.grad is not None and snake.alpha.grad is not None
        found.append((inputs.grad, snake.alpha.grad.clone()))
    torch.testing.assert_close(found[1], found[0])


def test_snake_is_the_identity_where_alpha_is_zero() -> None:
    snake = Snake(2)
    torch.nn.init.zeros_(snake.alpha)
    x = torch.randn(1, 2, 1, 5, requires_grad=True)
    y = snake(x)
    y.sum().backward()
    assert torch.equal(y, x) and torch.equal(x.grad, torch.ones_like(x))
    assert snake.alpha.grad is not None and snake.alpha.grad.isfinite().all()
