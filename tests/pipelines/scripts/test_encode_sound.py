"""Encoding of sound: blocks by its length, views that begin later, and clips that vanish.

Left out: blocks and continuing in general (test_encode_dataset.py), and windows over clips
(pipelines/tokens/test_windows.py).
"""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from pipelines.data.batches import load_splits
from pipelines.data.clips import skipped_samples
from pipelines.data.config import DataConfig
from pipelines.data.kinds import FixedViews
from pipelines.data.sounds import SOUND
from pipelines.tokens.clips import CodeClips
from pipelines.tokens.items import read_tokens, view_phases
from pipelines.tokens.windows import Windows
from tests.helpers.running import TINY_PRIOR, Script, names_in
from tokenizer import Tokenizer

# Seconds of the files: with blocks of one second, 0 to 2, 3, 4 and 5 begin in the same one.
SECONDS = (0.4, 0.5, 0.3, 0.7, 1.9, 0.01)


@pytest.fixture
def wavs(tmp_path: Path) -> Path:
    folder = tmp_path / "wavs"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i, seconds in enumerate(SECONDS):
        soundfile.write(folder / f"{i}.wav", 0.3 * rng.standard_normal(round(16000 * seconds)), 16000)
    return folder


@pytest.fixture
def tokens(
    script: Script, tiny_codec: Path, wavs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Three views of each file, in blocks of a second."""
    monkeypatch.setattr(SOUND, "block", 1)
    data = ("--data.path", wavs, "--data.valid-fraction", 0)
    words = ("--tokenizer", tiny_codec, *data, "--output", tmp_path / "tokens", "--views", 3, "--seed", 4)
    said = script("encode_dataset", *words, "--augment.flip")
    assert "--augment.* has no effect on sound" in said.err
    return tmp_path / "tokens"


def test_a_clip_is_in_the_block_in_which_it_begins(tokens: Path) -> None:
    tables = [pq.read_table(path) for path in sorted(tokens.glob("train-*.parquet"))]
    assert [t["id"].to_pylist()[::3] for t in tables] == [
        ["0.wav", "1.wav", "2.wav"],
        ["3.wav", "4.wav"],
        ["5.wav"],
    ]
    (empty,) = tokens.glob("held_out-*.parquet")
    assert len(pq.read_table(empty)) == 0


def test_views_begin_later_by_less_than_a_frame(tokens: Path, tiny_codec: Path, wavs: Path) -> None:
    tok = Tokenizer.from_pretrained(tiny_codec)
    clips = load_splits(DataConfig(str(wavs), valid_fraction=0), tok.modality).train
    split = read_tokens(tokens)[1]["train"]
    assert isinstance(split, CodeClips) and (len(split), split.views) == (6, 3)
    skipped = []
    for i in range(6):
        for view in range(3):
            skip = skipped_samples(min(320, clips.samples(i)), view, i, 4)
            skipped.append(skip)
            expected = tok.encode(clips.x(i)[None, :, skip:])[0].T.numpy()
            np.testing.assert_array_equal(split.clip(i, view), expected)
    assert skipped[::3] == [0] * 6
    later = [skip for i, skip in enumerate(skipped) if i % 3]
    assert min(later) >= 1 and max(later) < 320 and len(set(later)) > 8
    assert not np.array_equal(split.clip(4, 0)[:90], split.clip(4, 1)[:90])
    assert [skipped_samples(most, 1, 0, 0) for most in (1, 2)] == [0, 1]


def test_windows_show_another_view_in_every_epoch(tokens: Path) -> None:
    split = read_tokens(tokens)[1]["train"]
    windows = Windows(split, 20, seed=2)
    first = [0, 1, 2, 3]  # of clips 0 to 3, each of which has one window or more; it begins with its clip
    phases = view_phases(6, 3, 2)
    for epoch in range(4):
        codes = windows.rows(np.array(first[:1]), np.array([epoch]))[0]
        view = (phases[0] + epoch) % 3
        start = split.clip(0, view)[:19]
        assert np.array_equal(codes[0, :, : len(start)].T.numpy(), start)
    plain = windows.rows(np.array(first))[0]
    assert np.array_equal(plain[0, :, :19].T.numpy(), split.clip(0)[:19])
    assert torch.equal(plain, windows.rows(slice(0, 4))[0])


def test_a_prior_learns_views_of_sound(script: Script, tokens: Path, no_plots: None, tmp_path: Path) -> None:
    words = ("--tokens", tokens, "--seconds", 0.4, "--max-steps", 3, "--output", tmp_path / "prior")
    script("train_prior", "speech", *TINY_PRIOR, *words, "--tracker", "none")
    assert "windows, each epoch in one of 3 views" in (tmp_path / "prior" / "README.md").read_text()


def test_a_clip_that_vanishes_is_left_out_in_all_views(
    tiny_codec: Path, wavs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tok = Tokenizer.from_pretrained(tiny_codec)
    clips = load_splits(DataConfig(str(wavs), valid_fraction=0), tok.modality, cache_bytes=0).train
    (wavs / "1.wav").unlink()
    with caplog.at_level("WARNING"):
        parts = list(clips.codes(tok, range(3), 1, FixedViews(2)))
    assert [part.ids for part in parts] == [["0.wav"], ["2.wav"]] and all(len(p.codes) == 2 for p in parts)
    assert "left out a sound that can no longer be read" in caplog.text


def test_an_encoding_of_sound_continues(
    script: Script, tokens: Path, tiny_codec: Path, wavs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: (tokens / name).read_bytes() for name in names_in(tokens)}
    for name in ("tokens.json", "train-00001-of-00003.parquet"):
        (tokens / name).unlink()
    data = ("--data.path", wavs, "--data.valid-fraction", 0)
    said = script(
        "encode_dataset", "--tokenizer", tiny_codec, *data, "--output", tokens, "--views", 3, "--seed", 4
    )
    assert "3 of 4 shards are there" in said.err
    assert {name: (tokens / name).read_bytes() for name in names_in(tokens)} == before
