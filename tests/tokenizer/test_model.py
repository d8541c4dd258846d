"""The tokenizer as a whole: any size, codes that mean one thing, and bad input.

Left out: bottlenecks and losses by themselves, the objective (test_objective.py), the fingerprint
(test_fingerprint.py), VAEs (test_vae.py), pictures and files (test_pictures.py),
saving (tokenizer/hub/test_saved_models.py), and fixed codes (golden/test_models.py).
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.helpers import tiny
from tests.helpers.tiny import bottleneck_config, pictures
from tokenizer import Tokenizer, TokenizerConfig
from tokenizer.bottlenecks import kinds
from tokenizer.checks import NotFinite
from tokenizer.distributed import Step

SIZES = [(1, 1), (33, 30), (5, 64), (32, 32), (4, 3)]
DISCRETE = sorted(k for k in kinds() if bottleneck_config(k).build().num_codebooks)
KINDS = sorted(kinds())
tokenizer = tiny.made_once(tiny.tokenizer)


@pytest.mark.parametrize(("size", "channels"), [((33, 30), 1), *((size, 3) for size in SIZES)])
@pytest.mark.parametrize("kind", DISCRETE)
def test_encode_and_decode_are_the_forward_pass(kind: str, size: tuple[int, int], channels: int) -> None:
    tok = tokenizer(kind, channels=channels)
    x = pictures(3, channels, *size)
    out = tok(x)
    assert out.x_hat.shape == x.shape and out.x_hat.requires_grad
    codes = tok.encode(x)
    grid = (math.ceil(size[0] / 4), math.ceil(size[1] / 4))
    assert codes.shape == (3, tok.num_codebooks, *grid) and codes.dtype == torch.int64
    assert out.codes is not None and torch.equal(codes, out.codes)
    x_hat = tok.decode(codes, size)
    assert torch.equal(x_hat, out.x_hat) and not x_hat.requires_grad
    with torch.no_grad():
        assert torch.equal(tok(x).x_hat, x_hat)
    whole = tok.decode(codes)
    assert whole.shape == (3, channels, 4 * grid[0], 4 * grid[1])
    assert torch.equal(whole[:, :, : size[0], : size[1]], x_hat)
    assert torch.equal(tok.decode_latents(out.z_q, size), x_hat)


@pytest.mark.parametrize("kind", DISCRETE)
def test_encode_is_the_same_in_training_mode(kind: str) -> None:
    tok = tokenizer(kind)
    x = pictures(2, 3, 32, 32)
    codes, state = tok.encode(x), {k: v.clone() for k, v in tok.state_dict().items()}
    x_hat = tok.decode(codes)
    tok.train()
    assert torch.equal(tok.encode(x), codes) and torch.equal(tok.decode(codes), x_hat)
    assert all(torch.equal(v, state[k]) for k, v in tok.state_dict().items())


@pytest.mark.parametrize("kind", DISCRETE)
def test_codes_do_not_depend_on_the_rest_of_the_batch(kind: str) -> None:
    tok = tokenizer(kind)
    for size in ((32, 32), (21, 13), (4, 4)):
        x = pictures(24, 3, *size, seed=5)
        together = tok.encode(x)
        alone = torch.cat([tok.encode(x[i : i + 1]) for i in range(24)])
        shuffled = tok.encode(x.flip(0)).flip(0)
        halves = torch.cat([tok.encode(half) for half in x.split([17, 7])])
        for codes in (alone, shuffled, halves):
            assert (codes != together).sum().item() == 0
        assert together.unique().numel() >= 5


def test_memory_layout_of_x_does_not_matter() -> None:
    tok = tokenizer()
    x = pictures(2, 3, 20, 12)
    codes = tok.encode(x)
    assert torch.equal(tok.encode(x.contiguous(memory_format=torch.channels_last)), codes)
    wide = torch.cat([x, x], dim=3)[:, :, :, :12]
    assert not wide.is_contiguous() and torch.equal(tok.encode(wide), codes)


def test_padding_repeats_the_border() -> None:
    tok = tokenizer()
    x = pictures(2, 3, 6, 9)
    padded = torch.cat([x, x[:, :, -1:].expand(-1, -1, 2, -1)], dim=2)
    padded = torch.cat([padded, padded[:, :, :, -1:].expand(-1, -1, -1, 3)], dim=3)
    assert padded.shape == (2, 3, 8, 12)
    assert torch.equal(tok.encode(x), tok.encode(padded))


def test_stride_and_sizes() -> None:
    tok = tokenizer(strides=(2, 4), widths=(4, 8), blocks=(0, 1))
    assert (tok.stride, tok.codebook_size, tok.num_codebooks) == (8, 24, 1)
    assert tok.bits_per_code == pytest.approx(math.log2(24))
    assert tok.encode(pictures(1, 3, 17, 8)).shape == (1, 1, 3, 1)
    assert tok.device == torch.device("cpu")
    assert Tokenizer(TokenizerConfig()).stride == 4


def test_tanh_bounds_the_output() -> None:
    tok = tokenizer(output="tanh")
    with torch.no_grad():
        tok.decoder[0].bias.fill_(100.0)
    assert tok(pictures(2, 3, 8, 8)).x_hat.abs().max() <= 1
    assert isinstance(tokenizer(output="tanh").decoder[-1], torch.nn.Tanh)


# Decoding


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((9, 12), r"size is \(9, 12\); a grid of \(2, 3\) .*\(5, 9\) and \(8, 12\)"),
        ((8, 13), r"size is \(8, 13\)"),
        ((4, 12), r"size is \(4, 12\)"),
        ((8, 8), r"size is \(8, 8\)"),
        ((0, 0), r"size is \(0, 0\)"),
        ((8,), r"size is \(8,\)"),
        (8, r"size is \(8,\)"),
        ((8, 12, 3), r"size is \(8, 12, 3\)"),
    ],
)
def test_a_size_that_does_not_fit_the_grid_is_refused(size: Any, message: str) -> None:
    tok = tokenizer()
    codes = tok.encode(pictures(1, 3, 8, 12))
    for fits in ((8, 12), (5, 9), (6, 12), None):
        assert tok.decode(codes, fits).shape[2:] == (fits or (8, 12))
    with pytest.raises(ValueError, match=message):
        tok.decode(codes, size)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.full((1, 1, 2, 2), 24), "codes .* 24 to 24.*codebook .* 0 to 23; .*another tokenizer"),
        (torch.tensor([[[[0, -1]]]]), "codes .* -1 to 0.*codebook .* 0 to 23; .*another tokenizer"),
        (torch.zeros(1, 1, 2, 2), r"expected codes \(B, K, h, w\) int64, got \(1, 1, 2, 2\) torch.float32"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.bool), r"got \(1, 1, 2, 2\) torch.bool"),
        (torch.zeros(1, 2, 2, dtype=torch.int64), r"got \(1, 2, 2\) torch.int64"),
        (torch.zeros(1, 2, 2, 2, dtype=torch.int64), r"codes of 1 to 1 codebooks .*, got \(1, 2, 2, 2\)"),
        (torch.zeros(1, 0, 2, 2, dtype=torch.int64), r"codes .*empty.*got \(1, 0, 2, 2\)"),
        (torch.zeros(0, 1, 2, 2, dtype=torch.int64), r"codes .*empty.*got \(0, 1, 2, 2\)"),
    ],
)
def test_codes_that_cannot_be_decoded_are_refused(codes: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tokenizer().decode(codes)


def test_latents_of_another_shape_are_refused() -> None:
    for shape in ((1, 5, 2, 2), (1, 6, 2), (6, 2, 2)):
        with pytest.raises(ValueError, match=r"expected z \(B, 6, \*grid\), got"):
            tokenizer().decode_latents(torch.zeros(shape))


# Encoding


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), r"float in \[-1, 1\], got torch.uint8; preprocess\(\)"),
        (torch.zeros(3, 8, 8), r"expected x \(B, 3, H, W\) with no empty axis, got \(3, 8, 8\)"),
        (torch.zeros(1, 1, 8, 8), r"got \(1, 1, 8, 8\)"),
        (torch.zeros(1, 8, 8, 3), r"got \(1, 8, 8, 3\)"),
        (torch.zeros(0, 3, 8, 8), r"got \(0, 3, 8, 8\)"),
        (torch.zeros(1, 3, 0, 8), r"got \(1, 3, 0, 8\)"),
    ],
)
def test_x_that_is_no_batch_of_pictures_is_refused(kind: str, x: Tensor, message: str) -> None:
    tok = tokenizer(kind)
    for call in (tok, tok.encode if kind in DISCRETE else tok.posterior):
        with pytest.raises(ValueError, match=message):
            call(x)


def test_x_of_another_precision_is_refused_or_taken() -> None:
    assert tokenizer().encode(torch.zeros(1, 3, 8, 8, dtype=torch.float64)).shape == (1, 1, 2, 2)


def test_x_that_is_not_finite_is_refused() -> None:
    x = pictures(2, 3, 8, 8)
    x[1, 0, 3, 3] = math.nan
    with pytest.raises(ValueError, match=r"z .*not finite.* x"):
        tokenizer().encode(x)


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_step_that_may_be_left_out_the_gradient_says_it(kind: str) -> None:
    def gradients(broken: bool, optional: bool) -> list[Tensor]:
        tok = tokenizer(kind).train()
        if broken:
            tok.encoder.register_forward_hook(lambda *of: of[-1].index_fill(0, torch.tensor(1), torch.inf))
        losses = tok(pictures(4, 3, 16, 16), Step(0, 9, 0, 4, optional=optional)).losses
        torch.stack(list(losses.values())).sum().backward()
        return [p.grad for p in tok.parameters() if p.grad is not None]

    assert all(bool(g.isnan().any()) for g in gradients(broken=True, optional=True))
    for a, b in zip(gradients(False, True), gradients(False, False), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(NotFinite, match=r"z_e .*NaN.*step"):
        gradients(broken=True, optional=False)


@pytest.mark.parametrize("kind", DISCRETE)
def test_num_codebooks(kind: str) -> None:
    tok = tokenizer(kind)
    x = pictures(1, 3, 8, 8)
    codes = tok.encode(x)
    for k in range(1, tok.num_codebooks + 1):
        if k < tok.num_codebooks and not tok.bottleneck.prefix_decodes:
            for refused in (lambda: tok.encode(x, num_codebooks=k), lambda: tok.decode(codes[:, :k])):  # noqa: B023
                with pytest.raises(ValueError, match=f"{k} of {tok.num_codebooks} codebooks: .* together"):
                    refused()
            continue
        assert torch.equal(tok.encode(x, num_codebooks=k), codes[:, :k])
        assert tok.decode(codes[:, :k]).shape == (1, 3, 8, 8)
    for k in (0, tok.num_codebooks + 1, -1):
        with pytest.raises(ValueError, match=f"num_codebooks .*{k}, expected 1 to {tok.num_codebooks},"):
            tok.encode(x, num_codebooks=k)


def test_lengths_are_for_sound() -> None:
    with pytest.raises(ValueError, match=r"lengths .*sound.*images"):
        tokenizer().encode(pictures(1, 3, 8, 8), lengths=torch.tensor([8]))


@pytest.mark.parametrize("kind", sorted(set(kinds()) - {"gaussian"}))
def test_the_encoder_learns_through_a_frozen_bottleneck(kind: str) -> None:
    tok = tokenizer(kind).train()
    tok.bottleneck.eval()
    before = {k: v.clone() for k, v in tok.bottleneck.state_dict().items()}
    x = pictures(4, 3, 32, 32)
    F.mse_loss(tok(x).x_hat, x).backward()
    for name, parameter in tok.encoder.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), name
    for name, value in tok.bottleneck.state_dict().items():
        assert torch.equal(value, before[name]), name
