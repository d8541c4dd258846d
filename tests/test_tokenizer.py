"""The tokenizer as a whole: any size, codes that mean one thing, the objective, the fingerprint, bad input.

Left out: bottlenecks and losses by themselves, saving (test_hub.py), and fixed codes (test_golden.py).
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import bottleneck_config, image_config, pictures, tokenizer
from torch import Tensor
from torch.nn import functional as F

from tokenizer import Tokenizer, TokenizerConfig
from tokenizer.bottlenecks import kinds
from tokenizer.distributed import Step

SIZES = [(1, 1), (33, 30), (5, 64), (32, 32), (4, 3)]
DISCRETE = sorted(k for k in kinds() if bottleneck_config(k).build().num_codebooks)
KINDS = sorted(kinds())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES)
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


# Decoding


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((9, 12), r"size is \(9, 12\); a grid of \(2, 3\) decodes to between \(5, 9\) and \(8, 12\)"),
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
        (torch.full((1, 1, 2, 2), 24), "codes range from 24 to 24, but the codebook has entries 0 to 23"),
        (torch.tensor([[[[0, -1]]]]), "codes range from -1 to 0"),
        (torch.zeros(1, 1, 2, 2), r"expected codes \(B, K, h, w\) int64, got \(1, 1, 2, 2\) torch.float32"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.int32), r"got \(1, 1, 2, 2\) torch.int32"),
        (torch.zeros(1, 2, 2, dtype=torch.int64), r"got \(1, 2, 2\) torch.int64"),
        (torch.zeros(1, 2, 2, 2, dtype=torch.int64), r"codes of 1 to 1 codebooks .*, got \(1, 2, 2, 2\)"),
        (torch.zeros(1, 0, 2, 2, dtype=torch.int64), r"got \(1, 0, 2, 2\)"),
        (torch.zeros(0, 1, 2, 2, dtype=torch.int64), r"got \(0, 1, 2, 2\)"),
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
    with pytest.raises(ValueError, match="not finite"):
        tokenizer().encode(x)


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
        with pytest.raises(ValueError, match=f"num_codebooks is {k}, this tokenizer has {tok.num_codebooks}"):
            tok.encode(x, num_codebooks=k)


def test_lengths_are_for_sound() -> None:
    with pytest.raises(ValueError, match="lengths are for padded batches of sound, not of images"):
        tokenizer().encode(pictures(1, 3, 8, 8), lengths=torch.tensor([8]))


# The VAE


def test_a_vae_has_no_codes() -> None:
    tok = tokenizer("gaussian")
    x = pictures(2, 3, 9, 7)
    for call in (
        lambda: tok.encode(x),
        lambda: tok.decode(torch.zeros(1, 1, 2, 2, dtype=torch.int64)),
        lambda: tok.codebook_size,
        lambda: tok.num_codebooks,
        lambda: tok.bits_per_code,
    ):
        with pytest.raises(TypeError, match=r"a VAE has no codes; use posterior\(x\) and decode_latents"):
            call()
    assert tok(x).codes is None
    with pytest.raises(TypeError, match=r"posterior is for a VAE .*: use encode"):
        tokenizer("vq").posterior(x)


@pytest.mark.parametrize("size", SIZES)
def test_posterior_and_decode_latents_are_the_forward_pass(size: tuple[int, int]) -> None:
    tok = tokenizer("gaussian")
    x = pictures(3, 3, *size)
    out, posterior = tok(x), tok.posterior(x)
    grid = (math.ceil(size[0] / 4), math.ceil(size[1] / 4))
    assert posterior.mean.shape == posterior.logvar.shape == out.z_q.shape == (3, 6, *grid)
    assert torch.equal(out.z_q, posterior.mode())
    assert torch.equal(tok.decode_latents(posterior.mode(), size), out.x_hat)
    sample = tok.decode_latents(posterior.sample(torch.Generator().manual_seed(0)), size)
    assert sample.shape == x.shape and not torch.equal(sample, out.x_hat)
    new = tok.decode_latents(torch.randn(2, 6, 5, 3, generator=torch.Generator().manual_seed(0)))
    assert new.shape == (2, 3, 20, 12) and torch.isfinite(new).all()


def test_decode_latents_is_differentiable() -> None:
    tok = tokenizer("gaussian")
    z = torch.randn(1, 6, 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    tok.decode_latents(z).sum().backward()
    assert z.grad is not None and (z.grad != 0).all()


# The objective


def test_losses_are_weighted_and_stats_are_not() -> None:
    tok = tokenizer("vq", losses={"l1": 0.0, "l2": 2.5, "bernoulli": 0.0})
    x = pictures(2, 3, 10, 9)
    out = tok(x)
    mse = F.mse_loss(out.x_hat, x)
    assert set(out.losses) == {"l2", "commitment"}
    torch.testing.assert_close(out.losses["l2"], 2.5 * mse)
    torch.testing.assert_close(out.stats["l2"], mse.detach())
    assert out.losses["commitment"].item() == pytest.approx(0.25 * out.stats["commitment"].item())
    both = tokenizer("vq", losses={"l1": 1.0, "l2": 1.0})(x)
    assert {"l1", "l2", "commitment"} == set(both.losses)
    torch.testing.assert_close(both.losses["l1"], F.l1_loss(both.x_hat, x))


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_stats_are_finite_scalars_that_train_every_weight(kind: str) -> None:
    tok = tokenizer(kind).train()
    out = tok(pictures(4, 3, 20, 20), Step(0, 50, 0, 4))
    for name, value in {**out.losses, **out.stats}.items():
        assert value.shape == () and torch.isfinite(value), name
    assert not any(v.requires_grad for v in out.stats.values())
    torch.stack(list(out.losses.values())).sum().backward()
    for name, parameter in tok.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_kl_is_in_nats_per_element() -> None:
    tok = tokenizer("gaussian")
    x = pictures(2, 3, 10, 9)
    out = tok(x)
    kl = tok.posterior(x).kl().mean()
    assert out.stats["kl"].item() == pytest.approx(kl.item())
    assert out.losses["kl"].item() == pytest.approx(kl.item() / (3 * 10 * 9))
    # So that losses["kl"] + losses["bernoulli"], times the elements, is −ELBO.
    tok = tokenizer("gaussian", losses={"bernoulli": 1.0}, output="tanh", channels=1)
    x = torch.where(pictures(2, 1, 8, 8) > 0, 1.0, -1.0)
    out = tok(x)
    nats = -torch.distributions.Bernoulli((out.x_hat + 1) / 2).log_prob((x > 0).float()).sum((1, 2, 3)).mean()
    total = 64 * sum(v.item() for v in out.losses.values())
    assert total == pytest.approx((nats + out.stats["kl"]).item(), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_training_learns(kind: str) -> None:
    torch.manual_seed(0)
    config = TokenizerConfig(image_config(), bottleneck_config(kind), {"l2": 1.0})
    if kind == "gaussian":
        config = dataclasses.replace(config, bottleneck=bottleneck_config(kind, kl_weight=0.01))
    tok = Tokenizer(config).train()
    optimizer = torch.optim.Adam(tok.parameters(), 1e-2)
    x = pictures(16, 3, 16, 16)
    losses = []
    for index in range(60):
        out = tok(x, Step(0, index, 0, 16))
        optimizer.zero_grad()
        torch.stack(list(out.losses.values())).sum().backward()
        optimizer.step()
        losses.append(out.losses["l2"].item())
    assert losses[-1] < 0.7 * losses[0]
    assert F.mse_loss(tok.eval()(x).x_hat, x).item() < 0.7 * x.var().item()


def test_bf16_autocast_keeps_the_losses_in_float32() -> None:
    tok = tokenizer("vq").train()
    x = pictures(4, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        out = tok(x, Step(0, 50, 0, 4))
    assert {v.dtype for v in out.losses.values()} == {torch.float32}
    assert out.z_q.dtype == torch.float32
    expected = tokenizer("vq").train()(x, Step(0, 50, 0, 4))
    assert out.losses["l2"].item() == pytest.approx(expected.losses["l2"].item(), rel=0.05)


def test_tanh_bounds_the_output() -> None:
    tok = tokenizer(output="tanh")
    with torch.no_grad():
        tok.decoder[0].bias.fill_(100.0)
    assert tok(pictures(2, 3, 8, 8)).x_hat.abs().max() <= 1
    assert isinstance(tokenizer(output="tanh").decoder[-1], torch.nn.Tanh)


# The fingerprint


@pytest.mark.parametrize("kind", KINDS)
def test_the_fingerprint_is_of_what_decides_codes(kind: str, tmp_path: Path) -> None:
    tok = tokenizer(kind)
    original = tok.fingerprint()
    assert len(original) == 16 and int(original, 16) >= 0
    assert tokenizer(kind).fingerprint() == original
    assert tokenizer(kind, seed=1).fingerprint() != original
    assert Tokenizer.from_pretrained(tok.save_pretrained(tmp_path)).fingerprint() == original
    assert tok.train().fingerprint() == original and tok.eval().double().fingerprint() == original
    with torch.no_grad():
        for parameter in tok.decoder.parameters():
            parameter.add_(1)
    assert tok.fingerprint() == original
    for name, parameter in tokenizer(kind).encoder.named_parameters():
        changed = tokenizer(kind)
        with torch.no_grad():
            changed.encoder.get_parameter(name)[(-1,) * parameter.ndim] += 1e-5
        assert changed.fingerprint() != original, name


def test_every_part_of_a_bottleneck_counts_or_not() -> None:
    original = tokenizer("vq").fingerprint()
    decides = {"codebook.entries", "project_in.weight", "project_in.bias"}
    state = tokenizer("vq").bottleneck.state_dict()
    assert decides < set(state)
    for name in state:
        changed = tokenizer("vq")
        value = changed.bottleneck.state_dict()[name]
        value.view(-1)[0] = ~value.view(-1)[0] if value.dtype == torch.bool else value.view(-1)[0] + 1e-3
        assert (changed.fingerprint() != original) == (name in decides), name


def test_weights_of_losses_leave_the_fingerprint_alone_and_other_options_do_not() -> None:
    tok = tokenizer("vq")

    def fingerprint(**changes: Any) -> str:
        other = Tokenizer(dataclasses.replace(tok.config, **changes))
        other.load_state_dict(tok.state_dict(), strict=True)
        return other.fingerprint()

    assert fingerprint() == fingerprint(losses={"l1": 3.0}) == tok.fingerprint()
    assert fingerprint(modality=image_config(size=(8, 8))) != tok.fingerprint()
    vq = tok.config.bottleneck
    for name, value in {
        "gradient": "rotation", "beta": 0.1, "decay": 0.5, "kmeans_steps": 3, "revive_below": 0.0
    }.items():  # fmt: skip
        assert fingerprint(bottleneck=dataclasses.replace(vq, **{name: value})) == tok.fingerprint(), name
    assert fingerprint(bottleneck=dataclasses.replace(vq, distance="cosine")) != tok.fingerprint()


# From files and back


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_pictures_come_back_exactly(channels: int, mode: str, tmp_path: Path) -> None:
    tok = tokenizer(channels=channels)
    shape = (16, 16) if channels == 1 else (16, 16, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    pixels.reshape(-1)[:256] = np.arange(256)
    picture = Image.fromarray(pixels)
    assert picture.mode == mode
    picture.save(tmp_path / "a.png")
    for source in (picture, tmp_path / "a.png", str(tmp_path / "a.png"), pixels, pixels / 255):
        x = tok.preprocess(source)
        assert x.shape == (1, channels, 16, 16) and x.dtype == torch.float32
        (again,) = tok.postprocess(x)
        assert again.mode == mode
        np.testing.assert_array_equal(np.asarray(again), pixels)
    assert x.min().item() == -1 and x.max().item() == 1
    several = tok.preprocess([picture, tmp_path / "a.png", pixels, Image.new("RGB", (40, 20))])
    assert several.shape == (4, channels, 16, 16)
    assert torch.equal(several[:3], x.expand(3, -1, -1, -1)) and (several[3] == -1).all()


def test_preprocess_brings_any_picture_to_size_and_channels() -> None:
    grey, colour = tokenizer(channels=1), tokenizer(size=(8, 12))
    red = Image.new("RGB", (50, 31), (255, 0, 0))
    x = colour.preprocess(red)
    assert x.shape == (1, 3, 8, 12)
    assert x[0, 0].unique().tolist() == [1] and x[0, 1:].unique().tolist() == [-1]
    assert grey.preprocess(red).shape == (1, 1, 16, 16)
    assert colour.preprocess(Image.new("L", (1, 1), 255)).unique().tolist() == [1]


def test_postprocess_clips_and_rounds() -> None:
    tok = tokenizer(channels=1)
    (picture,) = tok.postprocess(torch.tensor([[[[-3.0, -1, -0.998, 0, 0.999, 7]]]]))
    assert np.asarray(picture).tolist() == [[0, 0, 0, 128, 255, 255]]
    x_hat = tok(pictures(2, 1, 5, 7)).x_hat
    first, second = tok.postprocess(x_hat)
    assert first.size == second.size == (7, 5)
    assert tok.postprocess(x_hat.bfloat16())[0].size == (7, 5)
    for bad in (torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4)):
        with pytest.raises(ValueError, match=r"expected \(B, 1, H, W\), got"):
            tok.postprocess(bad)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.png", "nowhere.png: no such file"),
        ([], "preprocess got an empty list"),
        (np.zeros((2, 2, 5)), r"expected \(H, W\)"),
        (np.full((2, 2), 3.0), r"float pictures must lie in \[0, 1\], got 3..3"),
    ],
)
def test_what_is_no_picture_is_refused(source: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tokenizer().preprocess(source)
