"""The scripts on sound: what they leave behind, exact resume, two processes, folders with broken files."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from pipelines.data.batches import load_splits
from pipelines.data.clips import PIECE_SECONDS
from pipelines.data.config import DataConfig
from pipelines.evaluation.speech import SLOW
from pipelines.tokens.items import read_tokens
from prior import Prior
from tests.helpers.running import (
    MODEL,
    TINY_CODEC,
    TINY_PRIOR,
    Script,
    assert_refused,
    names_in,
    read,
    size_of,
)
from tests.helpers.warm import run_ranks
from tests.helpers.whole_runs import rows_of
from tokenizer import Tokenizer
from tokenizer.sound_metrics import available

SHOWN = {"reconstructions", "reconstructions.html", "reconstructions.png", "codebook.png"}
RATES = {"rate_distortion.json", "rate_distortion.png"}
# Projections in the stages, and their k-means starts after steps 1 to 6; a batch of 8 is 4 for each of two.
TRAIN = (
    *("audio-small-waveform", *TINY_CODEC, "--model.bottleneck.stage.codebook-dim", "4", "--max-steps", "8"),
    *("--checkpoint-every", "3", "--keep-checkpoints", "9", "--eval-every", "8", "--tracker", "none"),
)


@contextlib.contextmanager
def without_report() -> Iterator[None]:
    """Training without its pictures and without the slow measures of speech."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.train_tokenizer.write_tokenizer_report", lambda *_: None)
        patch.setattr("pipelines.evaluation.sounds.available", lambda: ())
        yield


@pytest.fixture
def no_report() -> Iterator[None]:
    """`without_report` for a whole test."""
    with without_report():
        yield


@pytest.fixture(scope="module")
def whole(script: Script, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `TRAIN` that was never stopped."""
    folder = tmp_path_factory.mktemp("sound") / "whole"
    with without_report():
        script("train_tokenizer", *TRAIN, "--output", folder)
    return folder


# The same in other processes.
WITHOUT_REPORT = """
from pipelines import train_tokenizer
from pipelines.evaluation import sounds
from pipelines.run import command_line as cli

train_tokenizer.write_tokenizer_report = lambda *_: None
sounds.available = lambda: ()
cli.run(train_tokenizer.main)
"""


def test_a_run_leaves_a_model_and_things_to_hear(tiny_codec: Path) -> None:
    run = {"run.json", "command.txt", "data.json", "metrics.jsonl", "loss.png", "checkpoints", "logs"}
    assert names_in(tiny_codec) == MODEL | SHOWN | RATES | run | {"sample.png", "sample.wav"}
    metrics, rows = read(tiny_codec / "metrics.json"), read(tiny_codec / "rate_distortion.json")
    assert {"bitrate", "l1", "mel_distance", "stft_distance", "si_sdr", "usage", "perplexity"} < set(metrics)
    assert {f"{name}_{k}" for name in ("usage", "perplexity") for k in range(1, 7)} < set(metrics)
    assert not any("speed" in name for name in metrics)
    assert [row["num_codebooks"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["bitrate"] for row in rows] == [200 * k for k in range(1, 7)]  # 50 frames of 4 bits
    assert metrics["bitrate"] == 1200 and all(name in metrics for name in {*available()} - {*SLOW})
    waveform, rate = soundfile.read(tiny_codec / "sample.wav")
    assert rate == 16000 and waveform.ndim == 1 and len(waveform) > rate
    for name in ("reconstructions", "codebook", "sample", "rate_distortion", "loss"):
        assert min(size_of(tiny_codec / f"{name}.png")) > 100
    page = (tiny_codec / "reconstructions.html").read_text()
    assert page.count("<audio") == 18 and "http" not in page
    card = (tiny_codec / "README.md").read_text()
    assert "feature-extraction" in card and "24 bits for every 320 samples" in card and "sound.wav" in card
    tok = Tokenizer.from_pretrained(tiny_codec)
    assert tok.fingerprint() == read(tiny_codec / "config.json")["fingerprint"]


def test_tokens_are_the_codes_of_each_clip_alone(tiny_codec: Path, tiny_codec_tokens: Path) -> None:
    tok = Tokenizer.from_pretrained(tiny_codec)
    info, splits = read_tokens(tiny_codec_tokens)
    assert (info.frame_rate, info.sample_rate, info.stride, info.grid) == (50, 16000, 320, ())
    clips = load_splits(DataConfig("embedded:speech", limit=6), tok.modality).train
    assert len(splits["train"]) == len(splits["held_out"]) == len(clips) == 6
    for i in range(6):
        expected = tok.encode(clips.x(i)[None])[0].T.numpy()
        np.testing.assert_array_equal(splits["train"].clip(i), expected)


def test_samples_have_the_seconds_asked_for_whatever_the_batch(
    script: Script, tiny_codec_prior: Path, tmp_path: Path
) -> None:
    words = ("--prior", tiny_codec_prior, "--num", 3, "--seconds", 0.7)  # longer than the window of 0.5 s
    for batch in (1, 3):
        script("sample", *words, "--batch-size", batch, "--output", tmp_path / str(batch))
    names = {f"{i:03d}-samples-{i}.wav" for i in (1, 2, 3)}
    assert names_in(tmp_path / "1") == names | {"samples.html", "samples.png"}
    for name in names:
        first, second = (soundfile.read(tmp_path / batch / name) for batch in ("1", "3"))
        assert first[1] == 16000 and len(first[0]) == 35 * 320
        np.testing.assert_allclose(first[0], second[0], atol=1e-3)
    finished = script("sample", *words, "--output", tmp_path / "1", code=2)
    assert_refused(finished, "holds samples", "--output")


def test_a_prefix_begins_every_sample(
    script: Script, tiny_codec: Path, tiny_codec_prior: Path, tmp_path: Path
) -> None:
    waveform = 0.3 * np.sin(np.arange(20000) / 20)
    soundfile.write(tmp_path / "voice.wav", waveform, 16000)
    words = ("--prior", tiny_codec_prior, "--prefix", tmp_path / "voice.wav", "--num", 2, "--seconds", 0.3)
    script("sample", *words, "--output", tmp_path / "out")
    page = (tmp_path / "out" / "samples.html").read_text(encoding="utf-8")
    assert "new after 1.26 s, 1.56 s" in page and "The prefix ends at 1.26 s" in page
    assert ">sample 1<" in page and {"001-samples-1.wav", "002-samples-2.wav"} < names_in(tmp_path / "out")
    tok = Tokenizer.from_pretrained(tiny_codec)
    begun = tok.decode(tok.encode(tok.preprocess(tmp_path / "voice.wav")))[0, 0]
    for path in (tmp_path / "out").glob("*.wav"):
        sound, _ = soundfile.read(path)
        assert len(sound) == (63 + 15) * 320
        # Less what the decoder sees of the frames after it.
        kept = len(begun) - 4000
        np.testing.assert_allclose(sound[:kept], begun[:kept].clamp(-1, 1), atol=1e-3)


def test_evaluation_of_a_tokenizer_and_its_prior(
    script: Script, tiny_codec: Path, tiny_codec_prior: Path, tmp_path: Path
) -> None:
    words = ("--data.path", "embedded:speech", "--data.limit", 2, "--output", tmp_path)
    finished = script("evaluate", "--prior", tiny_codec_prior, *words, dnsmos=True)
    of_prior = {"prior-positions.json", "prior-positions.png"}
    assert names_in(tmp_path) == SHOWN | RATES | of_prior | {"metrics.json"}
    metrics = read(tmp_path / "metrics.json")
    # What noise of a network that knows nothing does to the score: that of the data is another.
    rows = read(tmp_path / "rate_distortion.json")
    assert [row["dnsmos"] for row in rows] == [None] * 5 + [metrics["dnsmos"]]
    assert 1 < metrics["dnsmos"] < metrics["dnsmos_original"] - 0.3 < 5
    assert "DNSMOS" in (tmp_path / "reconstructions.html").read_text() and "dnsmos" not in finished.err
    assert metrics["items"] == 2 and metrics["encode_speed"] > 0 and metrics["decode_speed"] > 0
    assert 0 < metrics["prior_bits_per_code"] < 5
    assert metrics["prior_bits_per_second"] == pytest.approx(metrics["prior_bits_per_code"] * 300)
    assert "kbit/s" in finished.out and finished.out.count("0.600") >= 1
    assert Prior.from_pretrained(tiny_codec_prior).config.pattern == "delay"


@pytest.mark.usefixtures("no_report")
def test_a_resumed_run_ends_in_the_same_bytes(script: Script, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "resumed"
    for step in (3, 6):  # while codebooks still start, and after
        shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("step-8"))
        (folder / "model.safetensors").unlink()
        if step == 3:
            shutil.rmtree(folder / "checkpoints" / "step-6")
        finished = script("train_tokenizer", *TRAIN, "--output", folder, "--resume", "latest")
        assert f"step-{step}" in finished.err
        assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
        assert rows_of(folder) == rows_of(whole)
        shutil.rmtree(folder)


def test_two_processes_learn_what_one_learns(whole: Path, tmp_path: Path) -> None:
    ranks = run_ranks(2, "-c", WITHOUT_REPORT, *TRAIN, "--output", tmp_path / "two")
    assert [rank.code for rank in ranks] == [0, 0], ranks
    one, two = (load_file(folder / "model.safetensors") for folder in (whole, tmp_path / "two"))
    assert bool(one["bottleneck.stages.5.codebook.started"])
    torch.testing.assert_close(two, one, atol=2e-3, rtol=2e-3)
    metrics = [read(folder / "metrics.json") for folder in (whole, tmp_path / "two")]
    assert metrics[1]["bitrate"] == metrics[0]["bitrate"]
    assert metrics[1]["l1"] == pytest.approx(metrics[0]["l1"], rel=0.02)


@pytest.mark.usefixtures("no_report")
def test_no_bad_file_ends_a_run(script: Script, tmp_path: Path) -> None:
    folder = tmp_path / "sounds"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        soundfile.write(folder / f"good-{i}.flac", 0.1 * rng.standard_normal(4000 + 3000 * i), 22050)
    soundfile.write(folder / "eight.wav", 0.1 * rng.standard_normal((9000, 8)), 16000)
    soundfile.write(folder / "one-sample.wav", np.array([0.5]), 16000)
    soundfile.write(folder / "silent.wav", np.zeros(8000), 16000)
    soundfile.write(folder / "clipped.wav", np.clip(9 * rng.standard_normal(8000), -1, 1), 16000)
    soundfile.write(folder / "loud.wav", 3 * np.sin(np.arange(8000) / 9), 16000, subtype="FLOAT")
    soundfile.write(folder / "empty.wav", np.zeros(0), 16000)
    nan = np.full(8000, np.nan, np.float32)
    soundfile.write(folder / "nan.wav", nan, 16000, subtype="FLOAT")
    (folder / "text.wav").write_text("this is no sound")
    soundfile.write(folder / "cut.mp3", 0.1 * rng.standard_normal(64000), 16000)
    (folder / "cut.mp3").write_bytes((folder / "cut.mp3").read_bytes()[:3000])
    data = ("--data.path", folder, "--data.valid-fraction", "0.2", "--data.limit", 99)
    finished = script("train_tokenizer", *TRAIN, *data, "--output", tmp_path / "run")
    assert "skipped 4 of 15" in finished.err
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(v) for row in rows for v in row.values())
    tokens = ("--tokenizer", tmp_path / "run", *data, "--output", tmp_path / "tokens")
    script("encode_dataset", *tokens)
    assert sum(map(len, read_tokens(tmp_path / "tokens")[1].values())) == 11


def test_options_of_the_other_modality_are_refused(
    script: Script, tiny_codec: Path, tiny_prior: Path, tmp_path: Path
) -> None:
    out = ("--output", tmp_path / "out")
    refused = script("sample", "--prior", tiny_prior, "--seconds", 2, *out, code=2)
    assert_refused(refused, "--seconds and --prefix", "sound", "pictures", "leave them out")
    refused = script("evaluate", "--tokenizer", tiny_codec, "--data.path", "embedded:emoji", *out, code=2)
    assert_refused(refused, "embedded:emoji", "expected sound files", "--data.path")
    refused = script("train_tokenizer", "emoji", "--data.path", "embedded:speech", *out, code=2)
    assert_refused(refused, "embedded:speech", "expected pictures", "--data.path")
    words = ("audio-small-waveform", *TINY_CODEC, "--perceptual", "torchvision:vgg16")
    assert_refused(script("train_tokenizer", *words, *out, code=2), "--perceptual", "pictures")
    assert not (tmp_path / "out").exists()


def test_a_vae_of_sound_by_config_alone(script: Script, tiny_sound_vae: Path, tmp_path: Path) -> None:
    metrics = read(tiny_sound_vae / "metrics.json")
    assert metrics["l1"] > 0 and "bitrate" not in metrics
    words = ("--tokenizer", tiny_sound_vae, "--num", 2, "--seconds", 0.4, "--output", tmp_path / "s")
    script("sample", *words)
    for path in (tmp_path / "s").glob("*.wav"):
        assert len(soundfile.read(path)[0]) == 6400
    words = ("--tokenizer", tiny_sound_vae, "--prefix", "voice.wav", "--output", tmp_path / "new")
    assert_refused(script("sample", *words, code=2), "--prefix", "leave it out", "give a --prior")
    refused = script("encode_dataset", "--tokenizer", tiny_sound_vae, "--output", tmp_path / "t", code=2)
    assert_refused(refused, "VAE", "quantize_vae.py")


def test_classes_of_sound(script: Script, tiny_codec: Path, tmp_path: Path) -> None:
    for name, pitch in (("high", 3.0), ("low", 30.0)):
        (tmp_path / "sounds" / name).mkdir(parents=True)
        for i in range(4):
            wave = 0.3 * np.sin(np.arange(6000 + 1000 * i) / pitch)
            soundfile.write(tmp_path / "sounds" / name / f"{i}.wav", wave, 16000)
    tokens, prior = tmp_path / "tokens", tmp_path / "prior"
    script(
        "encode_dataset", "--tokenizer", tiny_codec, "--data.path", tmp_path / "sounds", "--output", tokens
    )
    words = ("--tokens", tokens, "--seconds", 0.4, "--max-steps", 2, "--output", prior)
    script("train_prior", "speech", *TINY_PRIOR, *words)
    assert Prior.from_pretrained(prior).config.class_names == ("high", "low")
    words = ("--label", "all", "--cfg-scale", 2, "--num", 2, "--output", tmp_path / "out")
    script("sample", "--prior", prior, *words)
    names = {f"{i + 1:03d}-{n}.wav" for i, n in enumerate(("high-1", "high-2", "low-1", "low-2"))}
    assert names_in(tmp_path / "out") == names | {"samples.html", "samples.png"}
    assert size_of(prior / "sample.png") and (prior / "sample.wav").exists()


@pytest.mark.usefixtures("no_report")
def test_weight_normalisation_is_for_adamw(script: Script, tmp_path: Path) -> None:
    words = ("audio-small-waveform", *TINY_CODEC, "--model.modality.weight-norm", "--max-steps", 2)
    words += ("--output", tmp_path / "out")
    assert_refused(script("train_tokenizer", *words, code=2), "--optimizer adamw")
    script("train_tokenizer", *words, "--optimizer", "adamw")
    tok = Tokenizer.from_pretrained(tmp_path / "out")
    gains = [n for n, _ in tok.named_parameters() if n.endswith("original0")]
    assert gains and tok.fingerprint() == read(tmp_path / "out" / "config.json")["fingerprint"]


def test_long_clips_are_measured_in_equal_pieces(tiny_codec: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.wav", np.zeros(16000 * PIECE_SECONDS + 3), 16000)
    soundfile.write(tmp_path / "short.wav", np.zeros(900), 16000)
    tok = Tokenizer.from_pretrained(tiny_codec)
    clips = load_splits(DataConfig(str(tmp_path), valid_fraction=0), tok.modality).train
    assert [[x.shape[1] for x in clips.pieces(i)] for i in range(2)] == [[240002, 240001], [900]]
