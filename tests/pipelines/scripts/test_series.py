"""Series of several channels from end to end: the third modality, which the scripts know nothing of.

Left out: single files (tokenizer/files/test_series.py).
"""

import shutil
from pathlib import Path

import numpy as np
import pytest

from prior import Prior
from tests.helpers.running import MODEL, TINY_PRIOR, Script, assert_refused, names_in, read, without_plots
from tokenizer import Tokenizer

CHANNELS, RATE, SCALE = 3, 100, 50.0
TINY = (
    *("--model.modality.widths", *"468", "--model.modality.blocks", *"011", "--model.modality.size", 128),
    *("--model.modality.scale", SCALE),
    *("--model.bottleneck.stage.codebook-size", 16, "--model.bottleneck.stage.kmeans-steps", 1),
    *("--batch-size", 8, "--log-every", 1, "--warmup-steps", 2, "--max-steps", 6, "--eval-every", 3),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve walks of two kinds, as a robot's joints have them, in units of degrees, of 2 to 4 seconds."""
    root = tmp_path_factory.mktemp("series")
    rng = np.random.default_rng(0)
    for i in range(12):
        kind = ("slow", "fast")[i % 2]
        seconds = np.arange(200 + 17 * i) / RATE
        phase = rng.uniform(0, 2 * np.pi, (CHANNELS, 1))
        x = 40 * np.sin(2 * np.pi * (0.5 + i % 2) * seconds + phase)
        x += rng.normal(0, 1, x.shape)
        (root / kind).mkdir(exist_ok=True)
        np.save(root / kind / f"{i:02}.npy", x.astype(np.float32))
    return root


@pytest.fixture(scope="module")
def runs(script: Script, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, tokens and a prior of series, made by the scripts."""
    root = tmp_path_factory.mktemp("runs")
    data = ("--data.path", folder, "--data.valid-fraction", 0.4)
    tokenizer, tokens = root / "tokenizer", root / "tokens"
    script("train_tokenizer", "series", *TINY, *data, "--output", tokenizer)
    script("encode_dataset", "--tokenizer", tokenizer, *data, "--output", tokens, "--views", 2)
    words = (*TINY_PRIOR, "--max-steps", 4, "--eval-every", 2, "--seconds", 2, "--output", root / "prior")
    script("train_prior", "series", *words, "--tokens", tokens)
    return root


def test_a_run_leaves_a_model_and_curves_to_look_at(runs: Path) -> None:
    pictures = {"reconstructions.png", "sample.png", "codebook.png", "loss.png"}
    assert names_in(runs / "tokenizer") >= MODEL | pictures
    metrics = read(runs / "tokenizer" / "metrics.json")
    assert metrics["bitrate"] == 12.5 * 4 * 4 and {"l1", "l2", "snr", "usage_1"} <= metrics.keys()
    card = (runs / "tokenizer" / "README.md").read_text()
    assert "series of 3 channels (100 Hz)" in card and "0.2 kbit/s" in card
    info = read(runs / "tokens" / "tokens.json")
    assert (
        info["frame_rate"] == 12.5 and info["grid"] == [] and info["item_shape"] == [3] and info["views"] == 2
    )
    assert info["class_names"] == ["fast", "slow"]
    assert (
        Prior.from_pretrained(runs / "prior").config.grid == (25,)
        and (runs / "prior" / "sample.png").exists()
    )


def test_what_the_model_gives_back_is_in_the_units_of_the_files(runs: Path, folder: Path) -> None:
    tok = Tokenizer.from_pretrained(runs / "tokenizer")
    path = folder / "slow" / "00.npy"
    x = tok.preprocess(path)
    assert x.shape == (1, 3, 200) and tok.sample_rate == 100 and tok.frame_rate == 12.5
    np.testing.assert_allclose(tok.postprocess(x)[0], np.load(path).clip(-SCALE, SCALE), rtol=1e-6)
    codes = tok.encode(x)
    assert codes.shape == (1, 4, 25) and tok.decode(codes, size=200).shape == x.shape
    batch, lengths = tok.preprocess_batch([path, folder / "fast" / "01.npy"])
    assert lengths.tolist() == [200, 217] and (tok.encode(batch, lengths)[0, :, :25] == codes[0]).all()


def test_samples_and_measures(script: Script, runs: Path, folder: Path, tmp_path: Path) -> None:
    words = ("--prior", runs / "prior", "--output", tmp_path / "samples", "--num", 2, "--label", "slow")
    script("sample", *words, "--seconds", 3, "--tokens", runs / "tokens")
    drawn = np.load(tmp_path / "samples" / "001.npy")
    assert drawn.shape == (3, 304) and 1 < np.abs(drawn).max() <= SCALE
    assert names_in(tmp_path / "samples") == {"000.npy", "001.npy", "samples.png", "neighbours.png"}
    words = ("--tokenizer", runs / "tokenizer", "--prior", runs / "prior", "--output", tmp_path / "eval")
    finished = script("evaluate", *words, "--data.path", folder)
    assert "snr" in finished.out and "prior_bits_per_code" in finished.out
    assert "prior-positions.png" in names_in(tmp_path / "eval")


def test_a_run_resumes_to_the_same_files(script: Script, folder: Path, tmp_path: Path) -> None:
    words = ("series", *TINY, "--data.path", folder, "--checkpoint-every", 3, "--tracker", "none")
    with without_plots():
        script("train_tokenizer", *words, "--output", tmp_path / "whole")
        shutil.copytree(tmp_path / "whole", tmp_path / "parts", ignore=shutil.ignore_patterns("step-6"))
        (tmp_path / "parts" / "model.safetensors").unlink()
        resumed = script("train_tokenizer", "--output", tmp_path / "parts", "--resume", "latest")
    assert "step-3" in resumed.err
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1]


def test_what_cannot_be_read_is_left_out_by_name(
    script: Script, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    for i, path in enumerate(sorted(folder.rglob("*.npy"))):
        (root / f"{i}.npy").write_bytes(path.read_bytes())
    np.save(root / "nan.npy", np.full((3, 50), np.nan))
    np.save(root / "turned.npy", np.zeros((50, 3)))
    np.save(root / "loud.npy", np.full((3, 50), 2 * SCALE))
    (root / "cut.npy").write_bytes((root / "0.npy").read_bytes()[:300])
    (root / "a.csv").write_text("1,2,3\n")
    with without_plots():
        words = ("series", *TINY, "--data.path", root)
        finished = script("train_tokenizer", *words, "--output", tmp_path / "run")
    for name in ("nan.npy: holds NaN", "turned.npy: is (50, 3)", "cut.npy: cannot be read", "numpy.loadtxt"):
        assert name in finished.err, name
    assert "values beyond [-1, 1], which are clamped; the largest is 2, in loud.npy" in finished.err
    words = ("--tokenizer", tmp_path / "run", "--output", tmp_path / "eval")
    assert_refused(script("evaluate", *words, "--data.path", root, "--kid", "torchvision:x", code=2), "--kid")
