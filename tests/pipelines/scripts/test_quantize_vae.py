"""quantize_vae.py: from a trained VAE to a tokenizer with codes, a prior over them, and samples.

Left out: the bottleneck itself (tokenizer/bottlenecks/test_gaussian_quant.py).
"""

import json
import logging
import math
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from huggingface_hub import ModelCard

from pipelines.data.batches import load_splits
from pipelines.data.config import DataConfig
from pipelines.data.kinds import to_float
from pipelines.quantize_vae import bits_in_words, chosen_size, kl_bits
from tests.helpers.running import (
    MODEL,
    TINY_PRIOR,
    TINY_TOKENIZER,
    Script,
    as_a_new_process,
    assert_refused,
    names_in,
    read,
)
from tokenizer import Tokenizer

DIGITS = ("--data.path", "embedded:digits", "--data.limit", 40)


@pytest.fixture(scope="module")
def quantized(script: Script, tiny_vae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny VAE with a code of 5 bits for every two of its four channels."""
    folder = tmp_path_factory.mktemp("quantized") / "vae-codes"
    words = ("--tokenizer", tiny_vae, *DIGITS, "--group-dim", 2, "--codebook-size", 32)
    script("quantize_vae", *words, "--output", folder)
    return folder


def test_a_quantized_vae_is_a_folder_for_the_hub(quantized: Path, tiny_vae: Path) -> None:
    assert names_in(quantized) == MODEL | {"reconstructions.png", "codebook.png", "sample.png"}
    tok, vae = Tokenizer.from_pretrained(quantized), Tokenizer.from_pretrained(tiny_vae)
    assert (tok.codebook_size, tok.num_codebooks, tok.bits_per_code) == (32, 2, 5)
    assert tok.fingerprint() == vae.quantized(32, 2).fingerprint()
    metrics = read(quantized / "metrics.json")
    same = {"psnr", "ssim", "l1", "l2"}
    assert metrics.keys() == same | {f"posterior_mean_{k}" for k in same} | {
        *("usage", "perplexity", "bits_per_item", "kl_bits_per_code")
    }
    was = read(tiny_vae / "metrics.json")
    assert metrics["bits_per_item"] == 10 and was.keys() >= same
    card = ModelCard.load(quantized / "README.md")
    assert f"--tokenizer {tiny_vae}" in card.text and "python pipelines/quantize_vae.py" in card.text
    assert str(tiny_vae) in card.text and "40 items" in card.text


def test_its_measures_by_hand(quantized: Path, tiny_vae: Path) -> None:
    metrics = read(quantized / "metrics.json")
    tok, vae = Tokenizer.from_pretrained(quantized), Tokenizer.from_pretrained(tiny_vae)
    held_out = load_splits(DataConfig("embedded:digits", limit=40), tok.modality).held_out
    x = to_float(torch.stack([held_out.x(i) for i in range(len(held_out))]))
    posterior = vae.posterior(x)
    means = vae.decode_latents(posterior.mean, (28, 28))
    codes = tok.decode(tok.encode(x), (28, 28))
    for name, x_hat in (("posterior_mean_l2", means), ("l2", codes)):
        assert metrics[name] == pytest.approx((x_hat.clamp(-1, 1) - x).square().mean().item(), rel=1e-4)
    nats = 0.5 * (posterior.mean**2 + posterior.logvar.exp() - 1 - posterior.logvar)
    groups = nats[:, :, 0, 0].unflatten(1, (2, 2)).sum(2).mean(0).double() / math.log(2)
    assert metrics["kl_bits_per_code"] == pytest.approx(groups.mean().item(), rel=1e-4)
    with as_a_new_process():
        bits = kl_bits(vae, held_out, Accelerator(), 2, batch_size=7)
    torch.testing.assert_close(bits, groups.detach(), rtol=1e-5, atol=1e-6)
    used = len(tok.encode(x).movedim(1, 0).flatten(1)[0].unique()) / 32
    assert 0 < metrics["usage"] < 1 and used > 0


@pytest.mark.parametrize(
    ("bits", "margin", "size"),
    [
        ((3.0, 5.0), 0.0, 16),
        ((3.0, 5.01), 0.0, 32),
        ((4.2,), 2.0, 128),
        ((0.0,), 0.0, 2),
        ((14.0,), 2, 65536),
    ],
)
def test_the_size_is_the_power_of_two_that_was_asked_for(
    bits: tuple[float, ...], margin: float, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    assert chosen_size(torch.tensor(bits), margin) == size and not caplog.records


def test_a_size_that_is_too_large_is_capped_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert chosen_size(torch.tensor([14.5]), 2.0) == 65536
    assert "2^17 entries" in caplog.text and "65536" in caplog.text
    assert "kl-weight" in caplog.text


def test_the_kl_is_told() -> None:
    text = bits_in_words(torch.tensor([2.0, 4.0], dtype=torch.float64))
    assert "3.00 bits (2.00, 4.00)" in text and "8 entries" in text


def test_the_size_may_be_left_out(script: Script, tiny_vae: Path, tmp_path: Path) -> None:
    words = ("--tokenizer", tiny_vae, *DIGITS, "--output", tmp_path / "out")
    finished = script("quantize_vae", *words)
    bits = read(tmp_path / "out" / "metrics.json")["kl_bits_per_code"]
    tok = Tokenizer.from_pretrained(tmp_path / "out")
    assert tok.bits_per_code == math.ceil(bits + 2) and tok.num_codebooks == 4
    assert f"KL per code: {bits:.2f} bits" in finished.err


def test_its_codes_train_a_prior_that_draws(script: Script, quantized: Path, tmp_path: Path) -> None:
    tokens, prior = tmp_path / "tokens", tmp_path / "prior"
    script("encode_dataset", "--tokenizer", quantized, *DIGITS, "--output", tokens)
    words = ("--tokens", tokens, "--output", prior, "--max-steps", 3, "--tracker", "none")
    script("train_prior", "small", *TINY_PRIOR, *words)
    assert 0 < read(prior / "metrics.json")["bits_per_code"] < 6
    script("sample", "--prior", prior, "--num", 2, "--output", tmp_path / "samples")
    assert len(list((tmp_path / "samples").glob("no-class-*.png"))) == 2
    words = ("--prior", prior, *DIGITS, "--output", tmp_path / "eval")
    script("evaluate", *words)
    measured, was = read(tmp_path / "eval" / "metrics.json"), read(quantized / "metrics.json")
    assert measured["psnr"] == pytest.approx(was["psnr"]) and measured["prior_bits_per_code"] > 0


def test_a_tokenizer_is_trained_for_its_codes(script: Script, no_plots: None, tmp_path: Path) -> None:
    tiny = TINY_TOKENIZER[: TINY_TOKENIZER.index("--model.bottleneck.kmeans-steps")]
    rest = TINY_TOKENIZER[TINY_TOKENIZER.index("--model.bottleneck.kmeans-steps") + 2 :]
    words = ("--max-steps", 3, "--tracker", "none", "--output", tmp_path)
    script("train_tokenizer", "emoji-gaussian-quant", *tiny, *rest, *words)
    metrics = read(tmp_path / "metrics.json")
    assert metrics.keys() == {"psnr", "ssim", "l1", "l2", "usage", "perplexity", "bits_per_item"}
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {"train/kl_bits_per_code", "train/usage", "train/kl_factor", "train/dead_age"} <= rows[0].keys()
    assert Tokenizer.from_pretrained(tmp_path).posterior(torch.zeros(1, 3, 8, 8)).mean.shape == (1, 4, 2, 2)


def test_a_vae_of_sound_gets_codes(script: Script, tiny_sound_vae: Path, tmp_path: Path) -> None:
    data = ("--data.path", "embedded:speech", "--data.limit", 3)
    codes = ("--group-dim", 2, "--codebook-size", 16, "--output", tmp_path / "codes")
    script("quantize_vae", "--tokenizer", tiny_sound_vae, *data, *codes)
    metrics = read(tmp_path / "codes" / "metrics.json")
    assert metrics["bitrate"] == pytest.approx(2 * 4 * 50) and metrics["posterior_mean_l1"] > 0
    assert {"reconstructions.html", "sample.wav", "README.md"} <= names_in(tmp_path / "codes")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--group-dim", 3), ("--group-dim 3", "4 channels")),
        (("--group-dim", 0), ("group_dim is 0", "expected")),
        (("--codebook-size", 1), ("codebook_size is 1", "expected")),
        (("--margin", -1), ("margin is -1", "expected")),
        (("--data.path", "embedded:speech"), ("embedded:speech",)),
    ],
)
def test_mistakes_are_named(
    script: Script, tiny_vae: Path, words: tuple[object, ...], named: tuple[str, ...], tmp_path: Path
) -> None:
    out = ("--output", tmp_path / "out")
    finished = script("quantize_vae", "--tokenizer", tiny_vae, *DIGITS[2:], *words, *out, code=2)
    assert_refused(finished, *named)
    assert not (tmp_path / "out").exists()


def test_codes_are_neither_made_again_nor_written_over(
    script: Script, quantized: Path, tiny_vae: Path, tmp_path: Path
) -> None:
    words = ("--tokenizer", quantized, *DIGITS, "--output", tmp_path / "out")
    assert_refused(script("quantize_vae", *words, code=2), quantized, "has codes", "encode_dataset.py")
    words = ("--tokenizer", tiny_vae, *DIGITS, "--output", quantized)
    assert_refused(script("quantize_vae", *words, code=2), quantized, "holds a model", "--output")
