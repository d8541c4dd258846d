"""Sampling from end to end on tiny models: the pictures that the script writes, and what it refuses.

Left out: training and encoding (test_training.py), evaluating and another tokenizer than the prior's
(test_evaluate.py), and the sampling itself (prior/sampling/test_choice.py).
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.sample import wanted_labels
from prior import Prior
from tests.helpers.running import EMOJI, Script, assert_refused, names_in, size_of


@pytest.fixture(scope="module")
def samples(script: Script, tiny_prior: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two samples of each class."""
    folder = tmp_path_factory.mktemp("drawn") / "samples"
    script("sample", "--prior", tiny_prior, "--label", "all", "--num", 2, "--output", folder, "--seed", 3)
    return folder


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def test_a_class_called_all_can_be_drawn() -> None:
    assert wanted_labels(("all",), ("a", "b")) == wanted_labels(("*",), ("a", "b")) == ("a", "b")
    assert wanted_labels(("all",), ("all", "b")) == ("all",)
    assert wanted_labels(("*",), ("all", "b")) == ("all", "b") and wanted_labels((), ("a",)) == ()
    with pytest.raises(ValueError, match=r"--label \*: .*no classes"):
        wanted_labels(("*",), ())


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


def test_where_there_are_no_classes_none_is_named(
    script: Script, tiny_prior: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    config = dataclasses.replace(Prior.from_pretrained(tiny_prior).config, class_names=())
    Prior(config).save_pretrained(tmp_path / "prior")
    words = ("--prior", tmp_path / "prior", "--tokenizer", tiny_tokenizer, "--num", 2)
    script("sample", *words, "--output", tmp_path / "out")
    assert names_in(tmp_path / "out") == {"samples.png", "samples-0000.png", "samples-0001.png"}
    finished = script("sample", *words, "--output", tmp_path / "new", "--label", "*", code=2)
    assert_refused(finished, "--label *", "no classes", "leave it out", "--prior")


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
        (("--cfg-scale", "3"), ("cfg_scale=3.0", "label", "cfg_scale=1")),
        (("--num", "0"), ("num is 0", "expected")),
        (("--steps", "0"), ("steps: expected 1 or more", "got 0")),
        (("--steps", "8"), ("steps", "raster order only", "--model.order any")),
        (("--order", "confidence"), ("order confidence", "--model.order any")),
        (("--steps", "8", "--choice-temperature", "2"), ("choice_temperature", "order confidence")),
        (("--interpolate", "food", "flags", "--steps", "2"), ("--interpolate", "--steps")),
    ],
)
def test_options_of_sampling_that_do_not_fit_are_named(
    words: tuple[str, ...], named: tuple[str, ...], script: Script, tiny_prior: Path, tmp_path: Path
) -> None:
    finished = script("sample", "--prior", tiny_prior, "--output", tmp_path / "s", *words, code=2)
    assert_refused(finished, *named)
    assert not (tmp_path / "s").exists()


def test_a_prior_of_every_order_draws_in_few_steps(
    script: Script, tiny_prior: Path, tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(Prior.from_pretrained(tiny_prior).config, order="any")
    Prior(config).save_pretrained(tmp_path / "prior")
    seen: list[dict[str, Any]] = []
    sample = Prior.sample

    def noted(prior: Prior, *given: Any, **options: Any) -> Any:
        seen.append(options)
        return sample(prior, *given, **options)

    monkeypatch.setattr(Prior, "sample", noted)
    words = ("--prior", tmp_path / "prior", "--tokenizer", tiny_tokenizer, "--num", 3, "--seed", 3)
    how = ("--order", "confidence", "--choice-temperature", 2.5, "--steps", 4)
    script("sample", *words, *how, "--output", tmp_path / "a")
    assert {**seen[0], "steps": 4, "order": "confidence", "choice_temperature": 2.5} == seen[0]
    assert (
        "--compile has no effect"
        in script("sample", *words, *how, "--compile", "--batch-size", 2, "--output", tmp_path / "b").err
    )
    for i in range(3):
        name = f"no-class-{i:04d}.png"
        assert pixels(tmp_path / "a" / name) == pixels(tmp_path / "b" / name)
    refused = script("sample", *words, "--steps", 65, "--output", tmp_path / "c", code=2)
    assert_refused(refused, "steps: expected 1 to 64", "got 65")
    assert not (tmp_path / "c").exists()


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
    assert_refused(finished, words[0], "for priors", "leave it out", "give a --prior")


def test_a_tokenizer_with_codes_needs_a_prior(script: Script, tiny_tokenizer: Path, tmp_path: Path) -> None:
    finished = script("sample", "--tokenizer", tiny_tokenizer, "--output", tmp_path / "s", code=2)
    assert_refused(finished, tiny_tokenizer, "--prior DIR")


def test_a_script_without_a_model_says_what_it_needs(script: Script) -> None:
    assert_refused(script("evaluate", code=2), "--prior DIR", "--tokenizer DIR")
