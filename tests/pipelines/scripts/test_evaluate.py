"""Evaluating from end to end on tiny models: what the script writes and measures; a prior's own tokenizer.

Left out: training and encoding (test_training.py), sampling (test_sample.py), and metrics on made-up
input (tokenizer/test_metrics.py).
"""

import dataclasses
import json
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator

from pipelines.data.batches import load_splits
from pipelines.data.config import DataConfig
from pipelines.evaluation import kid
from pipelines.evaluation.kid import evaluate_kid
from pipelines.evaluation.priors import code_batches, evaluate_prior
from pipelines.tokens.items import read_tokens
from prior import Prior, PriorConfig
from tests.helpers.running import (
    EMOJI,
    ROOT,
    TINY_PRIOR,
    Script,
    as_a_new_process,
    assert_refused,
    names_in,
    read,
    size_of,
)
from tests.pipelines.scripts.test_training import picture_of
from tokenizer import Tokenizer
from tokenizer.modalities.image import ImageConfig

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


@pytest.mark.parametrize("left", [(), ("run.json", "checkpoints"), ("config.json",)])
def test_the_folder_of_a_model_or_run_is_refused(
    left: tuple[str, ...], script: Script, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_tokenizer, tmp_path / "tok")
    (tmp_path / "other").mkdir()
    for name in left:
        shutil.move(tmp_path / "tok" / name, tmp_path / "other")
    for folder in (tmp_path / "tok", tmp_path / "other") if left else (tmp_path / "tok",):
        before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        finished = script("evaluate", "--tokenizer", "no/model", "--output", folder, code=2)
        assert_refused(finished, f"--output {folder} ", "choose another")
        assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


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


@pytest.mark.parametrize(("classes", "unconditional"), [((), True), (EMOJI, False)])
def test_likelihoods_that_are_not_reported_are_not_computed(
    classes: tuple[str, ...], unconditional: bool, tiny_tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info, splits = read_tokens(tiny_tokens)
    info = dataclasses.replace(info, class_names=classes)
    size = {"dim": 24, "depth": 1, "heads": 2}
    config = PriorConfig(32, grid=(8, 8), class_names=EMOJI, unconditional=unconditional, **size)
    prior, calls = Prior(config), []
    nll = prior.nll
    monkeypatch.setattr(prior, "nll", lambda *given: calls.append(len(given)) or nll(*given))
    with as_a_new_process():
        metrics = evaluate_prior(prior, info, splits["held_out"].first(7), Accelerator(cpu=True), 3)
    assert calls == [2, 2, 2] and metrics.keys() == {"bits_per_code", "bits_per_pixel"}


@pytest.mark.parametrize("world", [1, 2, 3])
def test_batches_are_of_each_process_and_all_items_are_shared(world: int, tiny_tokens: Path) -> None:
    examples = load_splits(DataConfig(path="embedded:digits", limit=20), ImageConfig().build()).held_out
    rows = read_tokens(tiny_tokens)[1]["held_out"].first(20)
    pictures, codes = [], []
    for rank in range(world):
        process: Any = SimpleNamespace(process_index=rank, num_processes=world, device="cpu")
        share = 20 * (rank + 1) // world - 20 * rank // world
        sizes = [7] * (share // 7) + [share % 7] * (share % 7 > 0)
        pictures += (of_pictures := list(examples.inputs(7, rank, world)))
        codes += (of_codes := list(code_batches(rows, process, 7)))
        assert [len(x) for x, _ in of_pictures] == [len(c) for c, _ in of_codes] == sizes
    assert np.concatenate([index for _, index in pictures]).tolist() == [*range(20)]
    assert torch.equal(torch.cat([c for c, _ in codes]), rows.rows(slice(None))[0])


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
    assert re.search(
        r"classes \(0, 1, 2, 3, 4, \.\.\.\) .*prior's \(\w+.*, \.\.\.\).*--data\.path", finished.err
    )
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
    assert_refused(script("sample", *words, code=2), "without a label", "train with label dropout")
    assert_refused(
        script("sample", *words, "--label", "food", "--cfg-scale", 2, code=2),
        "cfg_scale=2.0",
        "label dropout",
    )
    script("sample", *words, "--label", "food")
    words = ("--data.path", "embedded:digits", "--data.limit", 8, "--output", tmp_path / "eval")
    assert_refused(script("evaluate", "--prior", prior, *words, code=2), "label dropout", *EMOJI[:5])


def test_kid_of_a_prior_that_knows_classes_only(
    tiny_tokenizer: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
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
    (warning,) = caplog.messages
    spread = f"{metrics['kid_samples']:.2g} ± {metrics['kid_samples_std']:.1g}"
    assert "--kid of 40 pictures is a rough estimate" in warning and f"kid_samples {spread}" in warning
    assert f"kid_reconstructions {metrics['kid_reconstructions']:.2g} ±" in warning

    caplog.clear()
    monkeypatch.setattr(kid, "FEW", 40)
    evaluate_kid(network, tok, None, examples, batch_size=16)
    assert not caplog.messages


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
    shutil.copytree(tiny_prior, tmp_path / "prior", ignore=shutil.ignore_patterns("tokens.json"))
    config = read(tmp_path / "prior" / "config.json")
    config["config"]["tokenizer_id"] = str(tmp_path / "gone")
    (tmp_path / "prior" / "config.json").write_text(json.dumps(config))
    assert prior.config.tokenizer_fingerprint == config["config"]["tokenizer_fingerprint"]
    words = ("--prior", tmp_path / "prior", "--num", 1, "--output", tmp_path / "out")
    assert_refused(script("sample", *words, code=2), tmp_path / "gone", "--tokenizer")
    script("sample", *words, "--tokenizer", tiny_tokenizer)
    words = ("--prior", tmp_path / "prior", "--output", tmp_path / "eval", "--data.limit", 4)
    assert_refused(script("evaluate", *words, code=2), tmp_path / "gone", "--tokenizer")
