"""Priors of sound: they learn windows of tokens, are measured on them, and draw more than a window.

Left out: what windows hold (pipelines/tokens/test_windows.py), and a real tokenizer.
"""

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from pipelines.evaluation.priors import evaluate_prior
from pipelines.tokens.info import TokenInfo, write_info
from pipelines.tokens.items import read_tokens
from pipelines.tokens.shards import write_shard
from pipelines.tokens.windows import Windows, window_info
from pipelines.train_prior import check_preset, prior_config
from pipelines.training.options import PriorSize, PriorTraining
from prior import Prior
from tests.helpers.running import MODEL, TINY_PRIOR, Script, as_a_new_process, assert_refused, names_in, read
from tests.helpers.whole_runs import rows_of
from tests.pipelines.tokens.test_windows import INFO


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CodeClips of 5 to 30 frames: one code of the upper or lower half that never changes, and its mirror."""
    folder = tmp_path_factory.mktemp("tokens")
    generator = np.random.default_rng(0)
    for split, count in (("train", 60), ("held_out", 12)):
        labels = generator.integers(0, 2, count)
        codes = [np.full(generator.integers(5, 30), generator.integers(8) + 8 * (1 - n)) for n in labels]
        pairs = [torch.from_numpy(np.stack([c, 15 - c])) for c in codes]
        write_shard(folder, split, 0, 1, INFO, pairs, labels, [str(i) for i in range(count)])
    write_info(folder, INFO)
    return folder


@pytest.fixture(scope="module")
def trained(script: Script, tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prior of windows of 0.3 s, 15 frames, after 100 steps."""
    folder = tmp_path_factory.mktemp("prior") / "prior"
    words = ("--tokens", tokens, "--output", folder, "--max-steps", 100, "--seconds", 0.3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.train_prior.loss_plot", lambda *_: None)
        script("train_prior", "small", *TINY_PRIOR, *words, "--learning-rate", 0.01, "--tracker", "none")
    return folder


def test_a_prior_learns_tokens_of_sound(trained: Path) -> None:
    assert names_in(trained) >= MODEL and "sample.png" not in names_in(trained)
    config = Prior.from_pretrained(trained).config
    assert (config.grid, config.num_codebooks, config.class_names) == ((15,), 2, ("high", "low"))
    assert (config.pattern, config.rope_theta) == ("delay", 10000.0)
    metrics = read(trained / "metrics.json")
    assert metrics.keys() == {
        *("bits_per_code", "bits_per_code_unconditional", "bits_per_second", "train_bits_per_code"),
    }
    assert metrics["bits_per_second"] == pytest.approx(metrics["bits_per_code"] * 2 * 50)
    # Uniform codes have 4 bits; the code before says almost all of them.
    assert metrics["bits_per_code"] < 0.6
    assert metrics["bits_per_code"] < metrics["bits_per_code_unconditional"]
    card = (trained / "README.md").read_text()
    assert "measured on " in card and " windows" in card and "A window is 0.3 s long" in card


def test_a_preset_for_other_tokens_is_named_with_the_one_to_take(
    script: Script, tokens: Path, no_plots: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = (*TINY_PRIOR, "--tokens", tokens, "--seconds", 0.3, "--max-steps", 1, "--tracker", "none")
    for preset, warned in (((), 1), (("small",), 1), (("speech",), 0)):
        finished = script("train_prior", *preset, *words, "--output", tmp_path / f"{preset}")
        assert len(re.findall("preset small .*train_prior.py speech", finished.err)) == warned
    pictures = dataclasses.replace(INFO, grid=(4, 4), frame_rate=0.0)
    for name in ("small", "base", ""):
        check_preset(name, pictures)
    check_preset("", INFO)
    assert caplog.messages == []
    check_preset("speech", pictures)
    assert "train_prior.py small or medium or llama or base" in caplog.text


def test_its_measure_by_hand(trained: Path, tokens: Path) -> None:
    info, splits = read_tokens(tokens)
    info, windows = window_info(info, 0.3), Windows(splits["held_out"], 15)
    prior = Prior.from_pretrained(trained)
    codes, labels = windows.rows(slice(None))
    assert len(codes) >= 12 and (codes[:, 0] + codes[:, 1] == 15).all()
    bits = float(prior.nll(codes, labels).double().sum()) / math.log(2)
    with as_a_new_process():
        metrics = evaluate_prior(prior, info, windows, Accelerator(cpu=True), batch_size=5)
    assert metrics["bits_per_code"] == pytest.approx(bits / codes.numel(), rel=1e-5)
    assert metrics["bits_per_second"] == pytest.approx(bits / (len(codes) * 0.3), rel=1e-5)
    assert metrics == {
        name: pytest.approx(read(trained / "metrics.json")[name], rel=1e-5) for name in metrics
    }


def test_it_draws_more_frames_than_its_window(trained: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    codes = Prior.from_pretrained(trained).sample_long(32, 40, "high", generator=generator)
    assert codes.shape == (32, 2, 40)
    assert (codes[:, 0, 0] >= 8).float().mean() > 0.8
    assert (codes[:, 0].diff() == 0).float().mean() > 0.8
    assert (codes.sum(dim=1) == 15).float().mean() > 0.8


def test_a_resume_learns_the_same_windows(
    script: Script, tokens: Path, tmp_path: Path, no_plots: None
) -> None:
    words = (*TINY_PRIOR, "--tokens", tokens, "--seconds", 0.3, "--model.dropout", 0, "--tracker", "none")
    script("train_prior", "small", *words, "--max-steps", 6, "--output", tmp_path / "a")
    words = (*words, "--checkpoint-every", 3)
    with pytest.MonkeyPatch.context() as patch:
        # Stopped after its checkpoint, before its end.
        patch.setattr("pipelines.train_prior.finish", lambda *_: None)
        script("train_prior", "small", *words, "--max-steps", 6, "--output", tmp_path / "b")
    resume = tmp_path / "b" / "checkpoints" / "step-3"
    script("train_prior", "small", *words, "--max-steps", 6, "--output", tmp_path / "b", "--resume", resume)
    rows = [rows_of(tmp_path / run) for run in "ab"]
    assert rows[0] == rows[1] and [row["step"] for row in rows[0]] == [1, 2, 3, 4, 5, 6, 6]


@pytest.mark.parametrize(
    ("grid", "num_codebooks", "pattern", "expected"),
    [
        ((8, 8), 1, "", ("flatten", 100.0)),
        ((8, 8), 4, "", ("flatten", 100.0)),
        ((8, 8), 4, "parallel", ("parallel", 100.0)),
        ((50,), 1, "", ("flatten", 10000.0)),
        ((50,), 4, "", ("delay", 10000.0)),
        ((50,), 4, "flatten", ("flatten", 10000.0)),
    ],
)
def test_the_priors_order_of_codes_follows_the_tokens(
    grid: tuple[int, ...], num_codebooks: int, pattern: str, expected: tuple[str, float]
) -> None:
    info = TokenInfo("tok", "0123", 16, num_codebooks, grid, (1,))
    config = prior_config(PriorTraining(model=PriorSize(pattern=pattern)), info)
    assert (config.pattern, config.rope_theta) == expected
    assert (config.grid, config.num_codebooks, config.codebook_size) == (grid, num_codebooks, 16)


@pytest.mark.parametrize(
    ("size", "num_codebooks", "said"),
    [
        (PriorSize(inner_dim=64), 4, ["--model.inner-* has no effect without --model.pattern depth"]),
        (PriorSize(pattern="depth"), 1, ["--model.pattern depth has no effect: there is one codebook"]),
        (PriorSize(pattern="depth", inner_dim=64), 4, []),
    ],
)
def test_options_of_the_depth_transformer_without_effect_are_named(
    size: PriorSize, num_codebooks: int, said: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    config = prior_config(PriorTraining(model=size), TokenInfo("tok", "0123", 16, num_codebooks, (50,), (1,)))
    assert all(message.startswith(part) for message, part in zip(caplog.messages, said, strict=True))
    assert config.in_turn == (not said)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--seconds", "0.01"), ("--seconds 0.01 is 0 frames", "--seconds 0.04")),
        (("--seconds", "0"), ("seconds is 0", "more than 0")),
        (("--model.pattern", "spiral"), ("pattern is 'spiral'", "delay", "flatten", "parallel")),
    ],
)
def test_options_that_do_not_fit_are_named(
    words: tuple[str, ...], named: tuple[str, ...], script: Script, tokens: Path, tmp_path: Path
) -> None:
    finished = script("train_prior", "--tokens", tokens, "--output", tmp_path / "p", *words, code=2)
    assert_refused(finished, *named)
    assert not (tmp_path / "p").exists()


def test_pictures_have_no_seconds(script: Script, tiny_tokens: Path, no_plots: None, tmp_path: Path) -> None:
    words = (
        *TINY_PRIOR,
        "--tokens",
        tiny_tokens,
        "--output",
        tmp_path,
        "--max-steps",
        1,
        "--tracker",
        "none",
    )
    finished = script("train_prior", "small", *words, "--seconds", 2)
    assert "--seconds has no effect: every item has a grid of (8, 8)" in finished.err
    config = Prior.from_pretrained(tmp_path).config
    assert (config.pattern, config.rope_theta) == ("flatten", 100.0)
