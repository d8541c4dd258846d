"""Training and encoding from end to end on tiny models: what the scripts write, and what they measure.

Left out: sampling (test_sample.py), evaluating (test_evaluate.py), command lines
(pipelines/run/test_command_line.py), bad input (test_bad_input.py), resuming
(pipelines/training/test_checkpoints.py), and several processes (processes/test_two_processes.py).
"""

import json
import math
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

from pipelines.tokens.items import read_tokens
from pipelines.training.setup import rate_scale
from prior import Prior
from tests.helpers.running import (
    EMOJI,
    MODEL,
    ROOT,
    TINY_PRIOR,
    TINY_TOKENIZER,
    Script,
    assert_refused,
    names_in,
    read,
    size_of,
)
from tokenizer import Tokenizer

AS_DECODER = ("--batch-size", 16, "--data.limit", 32, "--adversarial.weight", 0, "--perceptual", "")
RUN = {"run.json", "command.txt", "metrics.jsonl", "loss.png", "checkpoints", "logs"}


# Training


def test_a_trained_tokenizer_is_a_folder_for_the_hub(tiny_tokenizer: Path) -> None:
    pictures = {"reconstructions.png", "codebook.png", "sample.png"}
    assert names_in(tiny_tokenizer) == MODEL | RUN | {"data.json"} | pictures
    assert all(min(size_of(tiny_tokenizer / name)) > 50 for name in (*pictures, "loss.png"))
    assert list((tiny_tokenizer / "logs").glob("**/events.out.tfevents*"))
    tok = Tokenizer.from_pretrained(tiny_tokenizer)
    assert (tok.codebook_size, tok.num_codebooks, tok.stride) == (32, 1, 4)
    assert read(tiny_tokenizer / "config.json")["fingerprint"] == tok.fingerprint()


def test_what_a_tokenizer_measures_is_in_range(tiny_tokenizer: Path) -> None:
    metrics = read(tiny_tokenizer / "metrics.json")
    assert metrics.keys() == {"psnr", "ssim", "l1", "l2", "usage", "perplexity", "bits_per_item"}
    assert all(math.isfinite(value) for value in metrics.values())
    assert 3 < metrics["psnr"] < 40 and -1 <= metrics["ssim"] <= 1
    assert 0 < metrics["l2"] < 4 and 0 < metrics["l1"] < 2
    assert 0 < metrics["usage"] <= 1 <= metrics["perplexity"] <= 32
    assert metrics["bits_per_item"] == 8 * 8 * 5
    rows = [json.loads(line) for line in (tiny_tokenizer / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1] == {"step": 6, **{f"valid/{k}": v for k, v in metrics.items()}}
    assert [row["step"] for row in rows if "valid/psnr" in row] == [3, 6]
    assert all(math.isfinite(value) for row in rows for value in row.values())


@pytest.mark.parametrize("kind", ["tiny_tokenizer", "tiny_prior"])
def test_the_log_tells_rate_gradient_and_speed(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    options, lines = read(folder / "run.json"), (folder / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "train/loss" in row]
    last = options["max_steps"]
    expected = [options["learning_rate"] * rate_scale(step, 2, last) for step in range(last)]
    assert [row["train/learning_rate"] for row in rows] == pytest.approx(expected)
    # Before gradients are brought down to the norm that is allowed, which a prior's first ones exceed.
    largest = max(row["train/gradient_norm"] for row in rows)
    assert kind == "tiny_tokenizer" or largest > 1.01 * options["clip_norm"]
    assert all(row["train/gradient_norm"] > 0 and 1 < row["train/items_per_second"] < 1e6 for row in rows)


@pytest.mark.parametrize("kind", ["tiny_tokenizer", "tiny_prior"])
def test_the_card_tells_command_and_metrics(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    card = ModelCard.load(folder / "README.md")
    metrics = read(folder / "metrics.json")
    assert card.data.library_name == "tokenloom" and card.data.license == "apache-2.0"
    assert card.data.metrics == sorted(metrics)
    script = "train_tokenizer" if kind == "tiny_tokenizer" else "train_prior"
    assert f"python pipelines/{script}.py " in card.text and f"--output {folder}" in card.text
    assert "pipelines/embedded/LICENSES.md" in card.text
    for name, value in metrics.items():
        assert name in card.text and f"{value:.6g}" in card.text


def test_a_trained_prior_is_a_folder_for_the_hub(tiny_prior: Path, tiny_tokenizer: Path) -> None:
    assert names_in(tiny_prior) == MODEL | RUN | {"sample.png", "tokens.json"}
    config = Prior.from_pretrained(tiny_prior).config
    # Nothing of what is pushed tells of this machine's folders.
    assert config.tokenizer_id == tiny_tokenizer.name
    assert str(tiny_tokenizer.parent) not in (tiny_prior / "config.json").read_text()
    card = (tiny_prior / "README.md").read_text()
    assert "`tokenizer` (a folder beside it, not known to be on the Hub)" in card
    assert 'Tokenizer.from_pretrained("path/or/hub-id")' in card
    assert config.tokenizer_fingerprint == Tokenizer.from_pretrained(tiny_tokenizer).fingerprint()
    assert (config.codebook_size, config.grid, config.dim) == (32, (8, 8), 24)
    assert config.class_names == EMOJI


def test_what_a_prior_measures_is_in_range(tiny_prior: Path) -> None:
    metrics = read(tiny_prior / "metrics.json")
    names = {"bits_per_code", "bits_per_code_unconditional", "bits_per_pixel", "train_bits_per_code"}
    assert metrics.keys() == names
    assert 0 < metrics["bits_per_code"] < 5.2  # an untrained one has log2(32) = 5
    assert metrics["bits_per_pixel"] == pytest.approx(metrics["bits_per_code"] * 64 / 1024)


def test_training_beats_its_beginning(tiny_prior: Path) -> None:
    rows = [json.loads(line) for line in (tiny_prior / "metrics.jsonl").read_text().splitlines()]
    bits = [row["train/bits_per_code"] for row in rows if "train/bits_per_code" in row]
    assert bits[0] == pytest.approx(5) and bits[-1] < bits[0] - 0.05


def test_a_vae_measures_its_elbo(tiny_vae: Path) -> None:
    assert names_in(tiny_vae) == MODEL | RUN | {"data.json", "reconstructions.png", "sample.png"}
    metrics = read(tiny_vae / "metrics.json")
    names = {"psnr", "ssim", "l1", "l2", "negative_elbo_nats", "bits_per_dim", "kl_nats"}
    assert metrics.keys() == names and all(math.isfinite(value) for value in metrics.values())
    # A Bernoulli likelihood, so nats of 784 bits; without learning log 2 each and no KL.
    assert 0 <= metrics["kl_nats"] < metrics["negative_elbo_nats"] < 2 * 784
    bits = metrics["negative_elbo_nats"] / 784 / math.log(2)
    assert metrics["bits_per_dim"] == pytest.approx(bits)


def test_mixed_precision_trains(script: Script, no_plots: None, tmp_path: Path) -> None:
    words = ("--output", tmp_path, "--max-steps", 4, "--mixed-precision", "bf16", "--tracker", "none")
    script("train_tokenizer", "emoji", *TINY_TOKENIZER, *words)
    metrics = read(tmp_path / "metrics.json")
    assert all(math.isfinite(value) for value in metrics.values())
    assert all(v.dtype != torch.bfloat16 for v in Tokenizer.from_pretrained(tmp_path).state_dict().values())
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("name", ["train_tokenizer", "train_decoder", "train_prior"])
def test_rounded_weights_are_saved_and_measured(
    name: str, script: Script, no_plots: None, tiny_tokenizer: Path, tiny_tokens: Path, tmp_path: Path
) -> None:
    words = {
        "train_tokenizer": ("emoji", *TINY_TOKENIZER),
        "train_decoder": ("pictures", *AS_DECODER, "--tokenizer", tiny_tokenizer),
        "train_prior": ("small", *TINY_PRIOR, "--tokens", tiny_tokens),
    }[name]
    script(name, *words, "--output", tmp_path, "--max-steps", 2, "--tracker", "none", "--rounded")
    saved, stayed = load_file(tmp_path / "model.safetensors"), load_file(tiny_tokenizer / "model.safetensors")
    for key, value in saved.items():
        if name == "train_decoder" and not key.startswith("decoder."):
            assert torch.equal(value, stayed[key])  # codes are those of the tokenizer
        elif value.is_floating_point():
            assert value.dtype == torch.float32 and torch.equal(value, value.bfloat16().float())
    averages = load_file(tmp_path / "checkpoints" / "step-2" / "average.safetensors")
    assert any(not torch.equal(value, saved[key]) for key, value in averages.items())


def test_a_short_run_says_that_k_means_starts_early(script: Script, no_plots: None, tmp_path: Path) -> None:
    words = ("--model.bottleneck.kmeans-steps", 10, "--max-steps", 2, "--output", tmp_path)
    finished = script("train_tokenizer", "emoji", *TINY_TOKENIZER, *words)
    assert "after step 1" in finished.err and "k-means placed 32 entries" in finished.err
    assert read(tmp_path / "run.json")["model"]["bottleneck"]["kmeans_steps"] == 1


# Tokens


def test_tokens_are_the_tokenizers_codes(tiny_tokens: Path, tiny_tokenizer: Path) -> None:
    assert names_in(tiny_tokens) == {
        *("tokens.json", "encoding.json", "train-00000-of-00001.parquet", "held_out-00000-of-00001.parquet"),
    }
    info, splits = read_tokens(tiny_tokens)
    tok = Tokenizer.from_pretrained(tiny_tokenizer)
    assert (info.tokenizer, info.fingerprint) == (str(tiny_tokenizer), tok.fingerprint())
    assert (info.codebook_size, info.num_codebooks, info.grid) == (32, 1, (8, 8))
    assert (info.item_shape, info.class_names, info.source) == ((3, 32, 32), EMOJI, "embedded:emoji")
    assert len(splits["train"]) == len(splits["held_out"]) == 48
    table = pq.read_table(ROOT / "pipelines" / "embedded" / "emoji-train.parquet")[:48]
    x = torch.cat([tok.preprocess(picture_of(row)) for row in table["image"].to_pylist()])
    assert torch.equal(splits["train"].rows(slice(None))[0], tok.encode(x))
    assert splits["train"].labels.tolist() == table["label"].to_pylist()


def picture_of(cell: dict[str, Any]) -> Image.Image:
    return Image.open(BytesIO(cell["bytes"]))


def test_tokens_are_not_written_over(script: Script, tiny_tokens: Path, tiny_tokenizer: Path) -> None:
    before = {p: p.read_bytes() for p in tiny_tokens.iterdir()}
    finished = script("encode_dataset", "--tokenizer", tiny_tokenizer, "--output", tiny_tokens, code=2)
    assert_refused(finished, tiny_tokens, "holds tokens", "another --output")
    assert {p: p.read_bytes() for p in tiny_tokens.iterdir()} == before


def test_a_vae_has_no_tokens(script: Script, tiny_vae: Path, tmp_path: Path) -> None:
    finished = script("encode_dataset", "--tokenizer", tiny_vae, "--output", tmp_path / "t", code=2)
    assert_refused(finished, tiny_vae, "VAE", "quantize_vae.py", "sample.py --tokenizer")
