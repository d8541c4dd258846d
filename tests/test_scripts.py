"""The scripts from end to end on tiny models: what they write, and what they measure.

Left out: command lines (test_cli.py), bad input (test_bad_input.py), resuming (test_checkpoints.py), and
several processes (test_two_processes.py).
"""

import json
import math
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from conftest import (
    EMOJI,
    MODEL,
    ROOT,
    TINY_PRIOR,
    TINY_TOKENIZER,
    Script,
    as_a_new_process,
    assert_refused,
    names_in,
    read,
    size_of,
)
from huggingface_hub import ModelCard
from PIL import Image

from pipelines.data import DataConfig, load_splits
from pipelines.evaluation import evaluate_prior
from pipelines.kid import evaluate_kid
from pipelines.tokens import read_tokens
from prior import Prior, PriorConfig
from tokenizer import Tokenizer

RUN = {"run.json", "command.txt", "metrics.jsonl", "loss.png", "checkpoints", "logs"}


# Training


def test_a_trained_tokenizer_is_a_folder_for_the_hub(tiny_tokenizer: Path) -> None:
    pictures = {"reconstructions.png", "codebook.png", "sample.png"}
    assert names_in(tiny_tokenizer) == MODEL | RUN | pictures
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
    assert all(math.isfinite(value) for row in rows for value in row.values())


@pytest.mark.parametrize("kind", ["tiny_tokenizer", "tiny_prior"])
def test_the_card_tells_command_and_metrics(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    card = ModelCard.load(folder / "README.md")
    metrics = read(folder / "metrics.json")
    assert card.data.library_name == "tokenloom" and card.data.license == "apache-2.0"
    assert card.data.metrics == sorted(metrics)
    script = "train_tokenizer" if kind == "tiny_tokenizer" else "train_prior"
    assert f"accelerate launch pipelines/{script}.py " in card.text and f"--output {folder}" in card.text
    assert "pipelines/embedded/LICENSES.md" in card.text
    for name, value in metrics.items():
        assert name in card.text and f"{value:.6g}" in card.text


def test_a_trained_prior_is_a_folder_for_the_hub(tiny_prior: Path, tiny_tokenizer: Path) -> None:
    assert names_in(tiny_prior) == MODEL | RUN | {"sample.png", "tokens.json"}
    config = Prior.from_pretrained(tiny_prior).config
    assert config.tokenizer_id == str(tiny_tokenizer)
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
    assert names_in(tiny_vae) == MODEL | RUN | {"reconstructions.png", "sample.png"}
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


def test_a_short_run_says_that_k_means_starts_early(script: Script, no_plots: None, tmp_path: Path) -> None:
    words = ("--model.bottleneck.kmeans-steps", 10, "--max-steps", 2, "--output", tmp_path)
    finished = script("train_tokenizer", "emoji", *TINY_TOKENIZER, *words)
    assert "codes start after step 1" in finished.err and "k-means placed 32 entries" in finished.err
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
    assert_refused(finished, tiny_tokens, "already holds tokens", "choose another --output")
    assert {p: p.read_bytes() for p in tiny_tokens.iterdir()} == before


def test_a_vae_has_no_tokens(script: Script, tiny_vae: Path, tmp_path: Path) -> None:
    finished = script("encode_dataset", "--tokenizer", tiny_vae, "--output", tmp_path / "t", code=2)
    assert_refused(finished, tiny_vae, "is a VAE and has no codes", "sample.py --tokenizer")


# Sampling


@pytest.fixture(scope="module")
def samples(script: Script, tiny_prior: Path, workspace: Path) -> Path:
    """Two samples of each class."""
    words = ("--label", "all", "--num", 2, "--output", workspace / "samples", "--seed", 3)
    script("sample", "--prior", tiny_prior, *words)
    return workspace / "samples"


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def test_all_labels_give_a_row_each(samples: Path) -> None:
    files = {f"{name}-{i:04d}.png" for name in EMOJI for i in range(2)}
    assert names_in(samples) == {"samples.png", *files}
    assert all(size_of(samples / name) == (32, 32) for name in files)
    width, height = size_of(samples / "samples.png")
    assert width > 2 * 32 and height > 9 * 32
    assert len({pixels(samples / name) for name in files}) > 9  # noise, but not one and the same


def test_labels_are_names_or_numbers_and_depend_on_nothing_else(
    script: Script, samples: Path, tiny_prior: Path, tmp_path: Path
) -> None:
    words = ("--prior", tiny_prior, "--output", tmp_path, "--seed", 3, "--num", 3, "--batch-size", 1)
    script("sample", *words, "--label", "flags", "8")
    assert names_in(tmp_path) == {
        "samples.png",
        *(f"{name}-{i:04d}.png" for name in ("flags", "travel") for i in range(3)),
    }
    # The same pictures whatever the other labels, their number and the size of the batches.
    for name in ("flags-0000.png", "flags-0001.png", "travel-0001.png"):
        assert pixels(tmp_path / name) == pixels(samples / name)


def test_weights_and_compiled_loops_serve_the_script(
    script: Script, samples: Path, tiny_prior: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, bool]] = []
    ready = Prior.for_sampling

    def for_sampling(prior: Prior, weights: Any = "full", compile: bool = False) -> Prior:
        asked.append((weights, compile))
        return ready(prior, weights, compile)

    monkeypatch.setattr(Prior, "for_sampling", for_sampling)
    words = ("--prior", tiny_prior, "--label", "flags", "--num", 2, "--seed", 3)
    script("sample", *words, "--weights", "int8", "--output", tmp_path / "int8")
    assert names_in(tmp_path / "int8") == {"samples.png", "flags-0000.png", "flags-0001.png"}
    script("sample", *words, "--compile", "--output", tmp_path / "compiled")
    assert asked == [("int8", False), ("full", True)]
    for name in ("flags-0000.png", "flags-0001.png"):
        assert pixels(tmp_path / "compiled" / name) == pixels(samples / name)


def test_another_seed_gives_other_samples(
    script: Script, samples: Path, tiny_prior: Path, tmp_path: Path
) -> None:
    script("sample", "--prior", tiny_prior, "--label", "food", "--num", 2, "--seed", 4, "--output", tmp_path)
    assert pixels(tmp_path / "food-0000.png") != pixels(samples / "food-0000.png")


def test_without_a_label_there_is_no_class(script: Script, tiny_prior: Path, tmp_path: Path) -> None:
    words = ("--temperature", 0.5, "--top-k", 5, "--top-p", 0.9, "--min-p", 0.05)
    script("sample", "--prior", tiny_prior, "--num", 2, "--output", tmp_path, *words)
    assert names_in(tmp_path) == {"samples.png", "no-class-0000.png", "no-class-0001.png"}


def test_temperature_0_takes_the_likeliest_codes(script: Script, tiny_prior: Path, tmp_path: Path) -> None:
    words = ("--label", "food", "--temperature", 0, "--cfg-scale", 2, "--num", 2, "--output", tmp_path)
    script("sample", "--prior", tiny_prior, *words)
    assert pixels(tmp_path / "food-0000.png") == pixels(tmp_path / "food-0001.png")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--label", "cheese"), ("'cheese'", *EMOJI)),
        (("--label", "9"), ("9", "to 8")),
        (("--label", "food", "--temperature", "-1"), ("temperature", "-1")),
        (("--top-k", "33"), ("top_k", "33", "32")),
        (("--top-p", "0"), ("top_p",)),
        (("--min-p", "2"), ("min_p",)),
        (("--cfg-schedule", "steep"), ("--cfg-schedule", "steep")),
        (("--cfg-scale", "3"), ("cfg_scale=3.0 needs a label",)),
        (("--num", "0"), ("num is 0",)),
    ],
)
def test_options_of_sampling_that_do_not_fit_are_named(
    words: tuple[str, ...], named: tuple[str, ...], script: Script, tiny_prior: Path, tmp_path: Path
) -> None:
    finished = script("sample", "--prior", tiny_prior, "--output", tmp_path / "s", *words, code=2)
    assert_refused(finished, *named)
    assert not (tmp_path / "s").exists()


def test_a_vae_is_sampled_without_a_prior(script: Script, tiny_vae: Path, tmp_path: Path) -> None:
    words = ("--tokenizer", tiny_vae, "--num", 5)
    script("sample", *words, "--output", tmp_path / "a")
    script("sample", *words, "--output", tmp_path / "b", "--batch-size", 2)
    files = {f"samples-{i:04d}.png" for i in range(5)}
    assert names_in(tmp_path / "a") == {"samples.png", *files}
    for name in files:
        assert size_of(tmp_path / "a" / name) == (28, 28)
        with Image.open(tmp_path / "a" / name) as a, Image.open(tmp_path / "b" / name) as b:
            assert a.mode == "L"
            assert np.abs(np.asarray(a, int) - np.asarray(b, int)).max() <= 1
    assert len({pixels(tmp_path / "a" / name) for name in files}) == 5


@pytest.mark.parametrize(
    "words",
    [
        ("--label", "3"),
        ("--top-k", "4"),
        ("--top-p", "0.5"),
        ("--min-p", "0.1"),
        ("--cfg-scale", "2"),
        ("--interpolate", "3", "4"),
        ("--tokens", "runs/tokens"),
        ("--weights", "bf16"),
        ("--compile",),
    ],
)
def test_options_for_priors_are_refused_for_a_vae(
    words: tuple[str, ...], script: Script, tiny_vae: Path, tmp_path: Path
) -> None:
    finished = script("sample", "--tokenizer", tiny_vae, "--output", tmp_path / "s", *words, code=2)
    assert_refused(finished, words[0], "is for priors")


def test_a_tokenizer_with_codes_needs_a_prior(script: Script, tiny_tokenizer: Path, tmp_path: Path) -> None:
    finished = script("sample", "--tokenizer", tiny_tokenizer, "--output", tmp_path / "s", code=2)
    assert_refused(finished, tiny_tokenizer, "--prior DIR")


def test_scripts_without_a_model_say_what_they_need(script: Script) -> None:
    assert_refused(script("sample", code=2), "--prior DIR", "--tokenizer DIR")
    assert_refused(script("evaluate", code=2), "--prior DIR", "--tokenizer DIR")


# Evaluating


def test_a_prior_and_its_tokenizer_are_measured_together(
    script: Script, tiny_prior: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    finished = script("evaluate", "--prior", tiny_prior, "--output", tmp_path, "--data.limit", 32)
    of_prior = {"prior-positions.json", "prior-positions.png"}
    assert names_in(tmp_path) == {"metrics.json", "reconstructions.png", "codebook.png", *of_prior}
    metrics = read(tmp_path / "metrics.json")
    assert metrics["items"] == 32
    bits = np.array(read(tmp_path / "prior-positions.json")["bits"])
    assert bits.shape == (1, 8, 8) and bits.mean() == pytest.approx(metrics["prior_bits_per_code"])
    assert 0 < metrics["prior_train_bits_per_code"] < 5.2
    # On the data that training held out, so with the same results.
    for name, value in read(tiny_tokenizer / "metrics.json").items():
        assert metrics[name] == pytest.approx(value, rel=1e-4)
    assert 0 < metrics["prior_bits_per_code"] < 5.2
    assert metrics["prior_bits_per_pixel"] == pytest.approx(metrics["prior_bits_per_code"] / 16)
    for name, value in metrics.items():
        assert f"{name:28} {value:.6g}\n" in finished.out


def test_results_of_an_earlier_evaluation_do_not_stay(
    script: Script, tiny_prior: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    of_others = tmp_path / "notes.txt"
    of_others.write_text("mine")
    script("evaluate", "--prior", tiny_prior, "--output", tmp_path, "--data.limit", 32)
    script("evaluate", "--tokenizer", tiny_tokenizer, "--output", tmp_path, "--data.limit", 32)
    assert names_in(tmp_path) == {"metrics.json", "reconstructions.png", "codebook.png", "notes.txt"}


def test_the_priors_measure_is_that_of_its_training(script: Script, tiny_prior: Path, tmp_path: Path) -> None:
    script("evaluate", "--prior", tiny_prior, "--output", tmp_path, "--data.limit", 48, "--batch-size", 7)
    metrics, trained = read(tmp_path / "metrics.json"), read(tiny_prior / "metrics.json")
    names = ("bits_per_code", "bits_per_code_unconditional", "bits_per_pixel", "train_bits_per_code")
    for name in names:
        assert metrics[f"prior_{name}"] == pytest.approx(trained[name], rel=1e-4)


def test_a_tokenizers_measures_by_hand(tiny_tokenizer: Path) -> None:
    """The metrics.json of its training, recomputed picture by picture from what was saved."""
    tok = Tokenizer.from_pretrained(tiny_tokenizer)
    table = pq.read_table(ROOT / "pipelines" / "embedded" / "emoji-test.parquet")[:32]
    psnr, l1, l2, codes = [], [], [], []
    for cell in table["image"].to_pylist():
        x = tok.preprocess(picture_of(cell))
        codes.append(tok.encode(x).numpy())
        error = tok.decode(torch.from_numpy(codes[-1])).clamp(-1, 1).numpy() - x.numpy()
        l1.append(np.abs(error).mean())
        l2.append(np.square(error).mean())
        psnr.append(10 * np.log10(4 / l2[-1]))  # the range of values is 2
    share = np.bincount(np.concatenate(codes).ravel(), minlength=32) / (32 * 64)
    entropy = -(share[share > 0] * np.log(share[share > 0])).sum()
    metrics = read(tiny_tokenizer / "metrics.json")
    assert metrics["psnr"] == pytest.approx(np.mean(psnr), rel=1e-4)
    assert metrics["l1"] == pytest.approx(np.mean(l1), rel=1e-4)
    assert metrics["l2"] == pytest.approx(np.mean(l2), rel=1e-4)
    assert metrics["usage"] == pytest.approx((share > 0).mean())
    assert metrics["perplexity"] == pytest.approx(np.exp(entropy), rel=1e-4)


def test_a_priors_measures_by_hand(tiny_tokens: Path) -> None:
    torch.manual_seed(0)
    info, splits = read_tokens(tiny_tokens)
    split = splits["held_out"].first(7)
    config = PriorConfig(codebook_size=32, grid=(8, 8), class_names=EMOJI, dim=24, depth=1, heads=2)
    prior = Prior(config)
    for parameter in prior.parameters():  # what a fresh prior predicts depends on nothing
        torch.nn.init.normal_(parameter, std=0.5)
    with as_a_new_process():
        metrics = evaluate_prior(prior, info, split, Accelerator(cpu=True), batch_size=3)
    codes, labels = split.rows(slice(None))
    bits = [float(prior.nll(codes[i : i + 1], labels[i : i + 1])) / math.log(2) for i in range(7)]
    without = [float(prior.nll(codes[i : i + 1])) / math.log(2) for i in range(7)]
    assert metrics == {
        "bits_per_code": pytest.approx(sum(bits) / 7 / 64, rel=1e-5),
        "bits_per_code_unconditional": pytest.approx(sum(without) / 7 / 64, rel=1e-5),
        "bits_per_pixel": pytest.approx(sum(bits) / 7 / 1024, rel=1e-5),
    }
    assert abs(sum(bits) - sum(without)) > 1


def test_a_vae_is_measured_as_in_training(script: Script, tiny_vae: Path, tmp_path: Path) -> None:
    words = ("--data.path", "embedded:digits", "--data.limit", 32, "--batch-size", 9)
    script("evaluate", "--tokenizer", tiny_vae, "--output", tmp_path, *words)
    assert names_in(tmp_path) == {"metrics.json", "reconstructions.png"}
    metrics = read(tmp_path / "metrics.json")
    for name, value in read(tiny_vae / "metrics.json").items():
        assert metrics[name] == pytest.approx(value, rel=1e-3)


def test_data_without_held_out_pictures_or_classes_are_measured_whole(
    script: Script, tiny_prior: Path, pictures: Path, tmp_path: Path
) -> None:
    words = ("--data.path", pictures, "--data.valid-fraction", 0, "--output", tmp_path)
    finished = script("evaluate", "--prior", tiny_prior, *words)
    assert "nothing is held out" in finished.err
    metrics = read(tmp_path / "metrics.json")
    assert metrics["items"] == 12 and "prior_bits_per_code" in metrics
    assert "prior_bits_per_code_unconditional" not in metrics


def test_other_classes_than_the_priors_are_measured_without_labels(
    script: Script, tiny_prior: Path, tmp_path: Path
) -> None:
    words = ("--data.path", "embedded:digits", "--data.limit", 8, "--output", tmp_path)
    finished = script("evaluate", "--prior", tiny_prior, *words)
    assert "classes are not the prior's" in finished.err
    assert "prior_bits_per_code_unconditional" not in read(tmp_path / "metrics.json")


def test_without_label_dropout_only_labels_are_measured_and_sampled(
    script: Script, tiny_tokens: Path, tmp_path: Path
) -> None:
    prior = tmp_path / "prior"
    words = ("--tokens", tiny_tokens, "--output", prior, "--max-steps", 2, "--label-dropout", 0)
    script("train_prior", "small", *TINY_PRIOR, *words)
    assert not Prior.from_pretrained(prior).config.unconditional
    assert read(prior / "metrics.json").keys() == {"bits_per_code", "bits_per_pixel", "train_bits_per_code"}
    assert size_of(prior / "sample.png")[0] > 0
    words = ("--prior", prior, "--num", 1, "--output", tmp_path / "samples")
    assert_refused(script("sample", *words, code=2), "sampling without a label", "label dropout")
    assert_refused(script("sample", *words, "--label", "food", "--cfg-scale", 2, code=2), "cfg_scale=2.0")
    script("sample", *words, "--label", "food")
    words = ("--data.path", "embedded:digits", "--data.limit", 8, "--output", tmp_path / "eval")
    assert_refused(script("evaluate", "--prior", prior, *words, code=2), "its classes only", *EMOJI[:5])


def test_kid_of_a_prior_that_knows_classes_only(
    tiny_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tok = Tokenizer.from_pretrained(tiny_tokenizer)
    config = PriorConfig(32, grid=(8, 8), class_names=EMOJI, unconditional=False, dim=24, depth=1, heads=2)
    prior, asked = Prior(config), []
    sample = prior.sample

    def noted(count: int, label: torch.Tensor, **options: Any) -> torch.Tensor:
        asked.append(label)
        return sample(count, label, **options)

    monkeypatch.setattr(prior, "sample", noted)
    examples = load_splits(DataConfig(path="embedded:emoji", limit=40), tok.modality).held_out
    network: Any = lambda x: x.mean((2, 3))  # noqa: E731
    metrics = evaluate_kid(network, tok, prior, examples, batch_size=16)
    assert {"kid_reconstructions", "kid_samples"} < metrics.keys()
    assert len(torch.cat(asked)) == len(examples) and torch.cat(asked).unique().numel() > 4


# Another tokenizer


@pytest.fixture(scope="module")
def other_tokenizer(tiny_tokenizer: Path, workspace: Path) -> Path:
    """The same tokenizer with two entries of its codebook exchanged."""
    tok = Tokenizer.from_pretrained(tiny_tokenizer)
    entries = tok.bottleneck.get_buffer("codebook.entries")
    entries[[0, 1]] = entries[[1, 0]]
    return tok.save_pretrained(workspace / "other")


@pytest.mark.parametrize("name", ["sample", "evaluate"])
def test_a_prior_refuses_another_tokenizer_with_both_fingerprints(
    name: str, script: Script, tiny_prior: Path, tiny_tokenizer: Path, other_tokenizer: Path, tmp_path: Path
) -> None:
    words = ("--prior", tiny_prior, "--tokenizer", other_tokenizer, "--output", tmp_path / "out")
    finished = script(name, *words, code=2)
    both = [Tokenizer.from_pretrained(folder).fingerprint() for folder in (tiny_tokenizer, other_tokenizer)]
    assert_refused(finished, *both)
    assert both[0] != both[1] and not (tmp_path / "out").exists()


def test_a_prior_whose_tokenizer_moved_says_how_to_give_it(
    script: Script, tiny_prior: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    prior = Prior.from_pretrained(tiny_prior)
    shutil.copytree(tiny_prior, tmp_path / "prior")
    config = read(tmp_path / "prior" / "config.json")
    config["config"]["tokenizer_id"] = str(tmp_path / "gone")
    (tmp_path / "prior" / "config.json").write_text(json.dumps(config))
    assert prior.config.tokenizer_fingerprint == config["config"]["tokenizer_fingerprint"]
    words = ("--prior", tmp_path / "prior", "--num", 1, "--output", tmp_path / "out")
    assert_refused(script("sample", *words, code=2), tmp_path / "gone", "--tokenizer")
    script("sample", *words, "--tokenizer", tiny_tokenizer)
    words = ("--prior", tmp_path / "prior", "--output", tmp_path / "eval", "--data.limit", 4)
    assert_refused(script("evaluate", *words, code=2), tmp_path / "gone", "--tokenizer")
