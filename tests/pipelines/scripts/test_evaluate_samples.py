"""Measuring what tiny priors draw, by the script: what it writes, and what it refuses before it draws.

Left out: the figures themselves (evaluation/test_samples.py).
"""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pipelines.evaluate import EvaluateOptions, how_drawn
from pipelines.evaluation.samples import classifier, pictures
from tests.helpers.running import Script, assert_refused, names_in, read, size_of


def test_pictures_of_a_prior_are_measured(
    script: Script,
    tiny_prior: Path,
    tiny_tokens: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(classifier.train_classifier, "__defaults__", ("cpu", 2, 0))  # two steps
    # In place of a large network, whose features are measured in evaluation/test_kid.py.
    monkeypatch.setattr(pictures, "lite_features", lambda _: nn.Sequential(nn.AvgPool2d(8), nn.Flatten()))
    words = ("--samples", 9, "--seeds", 2, "--cfg-scale", 2, "--temperature", 0.9, "--tokens", tiny_tokens)
    finished = script(
        "evaluate", "--prior", tiny_prior, "--output", tmp_path, "--data.limit", 24, *words, "--batch-size", 9
    )
    assert {"samples.md", "sample.png"} < names_in(tmp_path)
    metrics = read(tmp_path / "metrics.json")
    both = ("kid", "agreement", "blanks", "nearest", "repeats", "copies")
    assert {f"samples_{name}{end}" for name in both for end in ("", "_std")} < metrics.keys()
    assert metrics["reconstructions_nearest"] > 0 and 0 <= metrics["samples_agreement"] <= 1
    assert metrics["samples_kid"] > metrics["training_kid"]  # after 5 steps
    section = (tmp_path / "samples.md").read_text()
    assert "9 samples of each of 2 seeds" in section and "guidance 2" in section
    (line,) = [row for row in section.splitlines() if row.startswith("| KID")]
    assert f"{metrics['samples_kid']:.4f} ± {metrics['samples_kid_std']:.4f}" in line and line in finished.out
    assert size_of(tmp_path / "sample.png")[0] > 0
    # Of an evaluation without samples nothing of them stays.
    script("evaluate", "--prior", tiny_prior, "--output", tmp_path, "--data.limit", 8)
    assert not {"samples.md", "sample.png"} & names_in(tmp_path)


def test_sounds_of_a_prior_are_measured(
    script: Script, tiny_codec_prior: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[torch.Size]()
    monkeypatch.setattr("tokenizer.dnsmos.overall_score", lambda x: asked.append(x.shape) or 2.5)
    words = ("--samples", 4, "--seeds", 1, "--data.path", "embedded:speech", "--data.limit", 4)
    words = (*words, "--prior", tiny_codec_prior, "--output", tmp_path)
    monkeypatch.setattr("pipelines.evaluation.sounds.available", lambda: ())
    script("evaluate", *words, dnsmos=True)
    assert {"samples.md", "sample.png", "sample.wav"} < names_in(tmp_path)
    metrics = read(tmp_path / "metrics.json")
    for figure in ("frechet", "silence"):
        assert {f"{of}_{figure}" for of in ("samples", "training", "reconstructions")} < metrics.keys()
    assert (
        metrics["samples_frechet"] > metrics["training_frechet"] > 0 and "samples_frechet_std" not in metrics
    )
    assert metrics["held_out_dnsmos"] == 2.5 and len(set(asked)) == 1 and "samples_repeats" in metrics
    assert "seed 0" in (tmp_path / "samples.md").read_text()


def test_it_says_in_which_steps_and_order() -> None:
    options = EvaluateOptions(
        prior="p", samples=9, seeds=1, steps=8, order="confidence", choice_temperature=2.0
    )
    assert "guidance 1, 8 steps in the order confidence (2). What" in how_drawn(options)
    assert "9 samples of seed 0" in how_drawn(options)
    one_by_one = EvaluateOptions(prior="p", samples=9, top_p=0.5, order="random")
    assert "top-p 0.5, one position at a time in the order random. What" in how_drawn(one_by_one)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--samples", 3), ("samples is 3", "4 or more")),
        (("--samples", 10), ("--samples 10", "9 classes", "give 9 or 18")),
        (("--seeds", 2), ("--seeds is for samples", "--samples N")),
        (("--steps", 2), ("--steps is for samples", "--samples N")),
        (("--samples", 9, "--steps", 2), ("steps", "raster order only", "--model.order any")),
        (("--samples", 9, "--top-p", 2), ("top_p",)),
        (("--samples", 9, "--data.limit", 3), ("3 are held out", "--data.valid-fraction")),
        (("--samples", 9, "--tokens", "nowhere"), ("nowhere",)),
    ],
)
def test_what_cannot_be_measured_is_refused(
    words: tuple[object, ...], parts: tuple[str, ...], script: Script, tiny_prior: Path, tmp_path: Path
) -> None:
    base = ("--prior", tiny_prior, "--output", tmp_path / "out", "--data.limit", 8)
    assert_refused(script("evaluate", *base, *words, code=2), *parts)
    assert not (tmp_path / "out").exists()


def test_samples_need_a_prior_of_pictures_or_sound(
    script: Script, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    words = ("--tokenizer", tiny_tokenizer, "--samples", 9, "--output", tmp_path / "out")
    assert_refused(script("evaluate", *words, code=2), "--samples", "give --prior")


def test_missing_extras_are_named_before_anything_is_drawn(
    script: Script,
    tiny_prior: Path,
    tiny_codec_prior: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    words = ("--samples", 9, "--output", tmp_path / "out", "--data.limit", 8)
    refused = script("evaluate", "--prior", tiny_prior, *words, code=2)
    assert_refused(refused, "--samples", "pip install -c pipelines/configs/constraints.txt -e '.[kid]'")
    words = (*words, "--data.path", "embedded:speech")
    refused = script("evaluate", "--prior", tiny_codec_prior, *words, code=2)  # as without DNSMOS's packages
    assert_refused(refused, "--samples", "pip install -c pipelines/configs/constraints.txt -e '.[metrics]'")
    assert pictures.BLANK == 0.03 and not (tmp_path / "out").exists()
