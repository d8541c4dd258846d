"""Codes are made in full precision, whatever was chosen for products and convolutions before, and after.

Left out: what TF32 does on a GPU.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.helpers.brute_force import brute_force, normal
from tests.helpers.tiny import codec, tokenizer
from tokenizer import Tokenizer
from tokenizer.precision import full_precision
from tokenizer.search import nearest

Precision = Callable[[], list[str]]


@pytest.fixture
def precision() -> Iterator[Precision]:
    """What is chosen now for products and convolutions, on GPUs and CPUs."""
    backends: Any = torch.backends
    settings = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv)
    before = [s.fp32_precision for s in settings]
    yield lambda: [s.fp32_precision for s in settings]
    for setting, value in zip(settings, before, strict=True):
        setting.fp32_precision = value
    torch.set_float32_matmul_precision("highest")


def test_the_precision_is_full_and_then_as_before(precision: Precision) -> None:
    conv = precision()[1]  # torch's own choice is TF32
    for chosen, (gpu, cpu) in {
        "high": ("tf32", "tf32"),
        "medium": ("tf32", "bf16"),
        "highest": ("ieee", "ieee"),
    }.items():
        torch.set_float32_matmul_precision(chosen)
        before = precision()
        assert before[:3] == [gpu, conv, cpu]
        with full_precision():
            assert set(precision()) <= {"ieee", "none"}
        with full_precision(wanted=False):
            assert precision() == before
        with pytest.raises(ValueError, match="not finite"):
            nearest(torch.tensor([[torch.nan]]), torch.zeros(1, 1))
        z, codebook = normal(300, 64), normal(200, 64, seed=1)
        assert torch.equal(nearest(z, codebook), brute_force(z, codebook))
        assert precision() == before and torch.get_float32_matmul_precision() == chosen
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    nearest(normal(3, 2), normal(2, 2))
    assert precision()[2] == "bf16"


@pytest.mark.parametrize("allowed", [True, False])
def test_who_uses_the_older_interface_may_go_on_to(precision: Precision, allowed: bool) -> None:
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32
    try:
        cudnn.allow_tf32 = allowed
        with full_precision():
            assert cudnn.conv.fp32_precision in ("none", "ieee")
        assert cudnn.allow_tf32 is allowed
    finally:
        cudnn.allow_tf32 = before


def ways(tok: Tokenizer) -> dict[str, Callable[[], object]]:
    """All ways to codes that do not depend on the batch, and of sound back from them."""
    size = (16, 16) if tok.modality.name == "image" else (400,)
    x = torch.rand(2, tok.modality.channels, *size) - 0.5
    found: dict[str, Callable[[], object]] = {"encode": lambda: tok.encode(x)}
    if tok.modality.timed:
        codes = tok.encode(x)
        found |= {
            "padded": lambda: tok.encode(x, lengths=[400, 300]),
            "encode_stream": lambda: list(tok.encode_stream([x[..., :200], x[..., 200:]])),
            "decode_stream": lambda: list(tok.decode_stream([codes])),
        }
    return found


@pytest.mark.parametrize("make", [tokenizer, codec])
def test_codes_are_made_in_full_precision(
    make: Callable[[], Tokenizer], precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    tok, seen = make(), list[list[str]]()
    torch.set_float32_matmul_precision("high")
    before = precision()
    for holder, name in ((F, "conv1d"), (F, "conv2d"), (tok.bottleneck, "encode_first")):
        real = getattr(holder, name)

        def noted(*arguments: Any, real: Callable[..., Tensor] = real, **options: Any) -> Tensor:
            seen.append(precision())
            return real(*arguments, **options)

        monkeypatch.setattr(holder, name, noted)
    for name, way in ways(tok).items():
        for tf32, expected in ((False, {"ieee", "none"}), (True, set(before))):
            tok.tf32 = tf32
            seen.clear()
            way()
            assert seen and {v for values in seen for v in values} <= expected, name
            assert (not tf32) or seen[0] == before
            assert precision() == before
