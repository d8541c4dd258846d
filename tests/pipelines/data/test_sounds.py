"""Data sets of sound: clips of a folder, what is skipped, and segments in an order of seed and epoch.

Left out: clips of tables and of the Hub, and data that are no sound (test_sound_sources.py).
"""

import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from pipelines.data.augment import Augment
from pipelines.data.batches import Batch, batches, load_splits, order
from pipelines.data.clips import Clips, Segments, in_time
from pipelines.data.config import DataConfig
from pipelines.data.kinds import to_float
from tests.helpers.clips import CROP, RATE, load, ramp, wav, write
from tokenizer.modalities.audio import AudioConfig
from tokenizer.modalities.files.sounds import open_sound

LENGTHS = {"a/0.wav": 400, "a/1.flac": 1000, "b/2.wav": 3600, "b/3.WAV": 1, "b/4.flac": 2499}


@pytest.fixture(params=[1 << 30, 0], ids=["cached", "read on access"])
def clips(request: pytest.FixtureRequest, tmp_path: Path) -> Clips:
    train = load(write(tmp_path / "set", LENGTHS), request.param, valid_fraction=0).train
    assert isinstance(train, Clips)
    return train


# A folder


def test_clips_of_a_folder(clips: Clips) -> None:
    assert [clips.id(i) for i in range(len(clips))] == list(LENGTHS)
    assert [clips.samples(i) for i in range(5)] == list(LENGTHS.values())
    np.testing.assert_array_equal(clips.labels, [0, 0, 1, 1, 1])
    for i, count in enumerate(LENGTHS.values()):
        x = clips.x(i)
        assert x.dtype == torch.float32
        np.testing.assert_array_equal(x.numpy(), ramp(count, i)[None] / 32768)
        blocks = list(clips.blocks(i, 700))
        assert all(b.shape == (1, 700) for b in blocks[:-1]) and torch.equal(torch.cat(blocks, 1), x)
    assert to_float(clips.x(0)).equal(clips.x(0))


def test_sounds_that_are_not_read_are_counted_with_the_way_to_convert_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write(tmp_path, {"0.wav": 400, "1.wav": 401})
    for name in (*(f"{i}.m4a" for i in range(4)), "a.webm"):
        (root / name).touch()
    with caplog.at_level(logging.INFO):
        load(root, valid_fraction=0, max_megapixels=5)
    (line,) = (m for m in caplog.messages if " to train on" in m)
    assert line.startswith("2 sound files (0.1 s) to train on, none held out; left out: 4 .m4a (convert")
    assert "ffmpeg -i X.m4a X.wav" in line and "1 .webm (convert" in line
    assert f"{root}: --data.max-megapixels has no effect on sound" in caplog.text
    for i in range(2):
        (root / f"{i}.wav").unlink()
    with pytest.raises(ValueError, match=r"4 \.m4a \(.*ffmpeg -i X\.m4a X\.wav.*--data\.path"):
        load(root)


def test_the_seconds_of_each_part_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two of twenty may be half of all."""
    root = write(tmp_path, {"train/0.wav": 20_000, "train/1.wav": 4_000, "test/0.wav": 16_000 * 130})
    with caplog.at_level(logging.INFO):
        load(root)
    assert "2 sound files (3.0 s) to train on, 1 held out (4.3 min, folder test)" in caplog.text
    assert in_time(7300) == "2.0 h"


# What is skipped


@pytest.mark.parametrize("cache_bytes", [1 << 30, 0])
def test_bad_files_are_counted_named_and_left_out(
    tmp_path: Path, cache_bytes: int, caplog: pytest.LogCaptureFixture
) -> None:
    root = write(tmp_path / "set", {f"{i:02}.wav": 500 + i for i in range(12)})
    nan = np.full(50, np.nan)
    (root / "02.wav").write_text("not a sound")
    (root / "03.wav").write_bytes(b"")
    (root / "05.wav").write_bytes(wav(ramp(500))[:600])
    (root / "07.wav").write_bytes(wav(nan, subtype="FLOAT"))
    (root / "08.wav").write_bytes(wav(ramp(0)))
    splits = load(root, cache_bytes)
    assert len(splits.train) + len(splits.held_out) == 7 and len(splits.held_out) >= 1
    assert [name for name, _ in splits.train.skipped] == [f"{i:02}.wav" for i in (2, 3, 5, 7, 8)]
    (message,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    first, *lines = message.splitlines()
    assert first == "skipped 5 of 12 sound files:" and "02.wav: not a sound file" in lines[0]
    assert [line.split(":")[0].strip() for line in lines] == [f"{i:02}.wav" for i in (2, 3, 5, 7, 8)]
    for path in root.iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"12 of 12 .*:\n  00\.wav: .*remove"):
        load(root, cache_bytes)


def test_silent_clips_are_kept_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write(tmp_path, {"a.wav": 10, "b.wav": 20})
    soundfile.write(root / "c.wav", np.zeros(30), RATE)
    assert len(load(root, valid_fraction=0).train) == 3
    assert "1 of 3 sound files are silent, the first is c.wav" in caplog.text


@pytest.mark.parametrize("cache_bytes", [1 << 30, 0])
def test_loud_clips_are_one_line_and_those_of_another_scale_are_left_out(
    tmp_path: Path, cache_bytes: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    x = np.sin(np.arange(9000) * 0.05)
    for name, scale in {"a": 1, "b": 1.5, "c": 3.25, "d": 32767, "e": 2}.items():
        soundfile.write(tmp_path / f"{name}.wav", x * scale / np.abs(x).max(), RATE, subtype="FLOAT")
    train = load(tmp_path, cache_bytes, valid_fraction=0).train
    assert [train.id(i) for i in range(len(train))] == ["a.wav", "b.wav", "c.wav", "e.wav"]
    ((name, why),) = train.skipped
    assert name == "d.wav" and "up to 32767" in why and "divide them by 32768" in why
    assert train.x(2).abs().max() == 1
    (line,) = [r.getMessage() for r in caplog.records if "clamped" in r.getMessage()]
    assert line.startswith("3 of 4 sound files") and line.endswith("the largest is 3.25, in c.wav")


def test_clips_that_become_unreadable_are_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write(tmp_path / "set", {f"{'aabb'[i]}/{i}.wav": 500 + i for i in range(4)})
    train = load(root, cache_bytes=0, valid_fraction=0).train
    (root / "a/1.wav").unlink()
    soundfile.write(root / "b/3.wav", ramp(77), RATE)
    for _ in range(2):
        for i, stands_in in ((1, 2), (3, 0)):
            x, found = train.read(i)
            assert found == stands_in and torch.equal(x, train.x(stands_in))
    wanted = np.array([0, 1, 3])
    x, labels, index = Segments(train, 600).take(wanted, np.zeros(3, np.int64), seed=0)
    assert index.tolist() == [0, 2, 0] and labels.tolist() == [0, 1, 0]
    assert torch.equal(x[0, :, :500], train.x(0)) and not x[0, :, 500:].any()
    assert [name for name, _ in train.skipped] == ["a/1.wav", "b/3.wav"]
    assert sum("skipped a sound" in r.getMessage() for r in caplog.records) == 2
    with pytest.raises(ValueError, match=r"b/3\.wav: .* 77 samples, .* 503 "):
        next(train.blocks(3, 100))
    (root / "a/0.wav").unlink()
    (root / "b/2.wav").unlink()
    with pytest.raises(ValueError, match=r"none of 4 sound files .*disk"):
        train.x(0)


def test_content_decides_what_is_held_out(tmp_path: Path) -> None:
    root = write(tmp_path / "set", {f"{i:02}.wav": 100 + i for i in range(30)})
    before = load(root, valid_fraction=0.3)
    held_out = {before.held_out.samples(i) for i in range(len(before.held_out))}
    assert 2 <= len(held_out) <= 20 and len(before.train) == 30 - len(held_out)
    for i, path in enumerate(sorted(root.iterdir())):
        path.rename(root / f"{(i * 17) % 30:02}-renamed.wav")
    after = load(root, cache_bytes=0, valid_fraction=0.3)
    assert {after.held_out.samples(i) for i in range(len(after.held_out))} == held_out


# Segments


def test_a_clip_counts_as_often_as_a_crop_fits(clips: Clips) -> None:
    segments = clips.training()
    assert len(segments) == 1 + 1 + 4 + 1 + 2
    wanted = np.arange(len(segments))
    x, labels, index = segments.take(wanted, np.zeros(9, np.int64), seed=0)
    assert x.shape == (9, 1, CROP) and x.dtype == torch.float32
    assert index.tolist() == [0, 1, 2, 2, 2, 2, 3, 4, 4]
    assert labels.tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 1]
    for row, i in zip(x, index.tolist(), strict=True):
        whole, count = clips.x(i), clips.samples(i)
        start = round(float(row[0, 0] - whole[0, 0]) * 32768)
        assert torch.equal(row[:, :count], whole[:, start : start + CROP]) and not row[:, count:].any()
    assert len(Segments(clips, 100)) == 4 + 10 + 36 + 1 + 25


def test_crops_begin_everywhere_alike(tmp_path: Path) -> None:
    train = load(write(tmp_path, {"a.wav": CROP + 3}), valid_fraction=0).train
    epochs = np.arange(400)
    x, _, _ = train.training().take(np.zeros(400, np.int64), epochs, seed=1)
    counts = np.bincount(((x[:, 0, 0] * 32768).round().long() - 100).numpy(), minlength=4)
    assert len(counts) == 4 and counts.min() > 70
    again, _, _ = train.training().take(np.zeros(400, np.int64), epochs, seed=2)
    assert not torch.equal(x, again)


def flattened(steps: list[Batch]) -> tuple[torch.Tensor, ...]:
    steps = sorted(steps, key=lambda b: (b.step, b.offset))
    return tuple(torch.cat([getattr(b, k) for b in steps]) for k in ("x", "labels", "index"))


def test_crops_do_not_depend_on_ranks_or_where_a_run_began(clips: Clips) -> None:
    arguments = {"batch_size": 4, "seed": 5, "stop_step": 7}
    expected = flattened(list(batches(clips, **arguments)))
    clip_of = np.array([0, 1, 2, 2, 2, 2, 3, 4, 4])
    np.testing.assert_array_equal(expected[2], clip_of[order(9, 5, 0, 28)])
    for world, micro_batches in ((2, 1), (2, 2), (4, 1)):
        parts = [
            list(batches(clips, rank=r, world=world, micro_batches=micro_batches, **arguments))
            for r in range(world)
        ]
        for got, wanted in zip(flattened([b for part in parts for b in part]), expected, strict=True):
            assert torch.equal(got, wanted)
    for got, wanted in zip(flattened(list(batches(clips, start_step=3, **arguments))), expected, strict=True):
        assert torch.equal(got, wanted[12:])
    epochs = expected[0][:9], expected[0][9:18]
    assert not torch.equal(epochs[0].sort(0).values, epochs[1].sort(0).values)


def test_cached_and_read_on_access_are_the_same(tmp_path: Path) -> None:
    root = write(tmp_path / "set", LENGTHS)
    audio = AudioConfig(channels=2, sample_rate=11025, size=(700,)).build()
    cached, lazy = (load_splits(DataConfig(path=str(root)), audio, n) for n in (1 << 30, 0))
    for a, b in zip(
        batches(cached.train, batch_size=4, seed=1, stop_step=4),
        batches(lazy.train, batch_size=4, seed=1, stop_step=4),
        strict=True,
    ):
        assert a.x.shape == (4, 2, 700) and torch.equal(a.x, b.x) and torch.equal(a.index, b.index)
    whole = open_sound(root / lazy.train.id(1), 11025, 2)
    np.testing.assert_array_equal(lazy.train.x(1).numpy(), whole)
    np.testing.assert_array_equal(cached.train.x(1).numpy(), whole)


def test_workers_give_the_same_batches(tmp_path: Path) -> None:
    train = load(write(tmp_path / "set", LENGTHS), cache_bytes=0, valid_fraction=0).train
    arguments = {"batch_size": 4, "micro_batches": 2, "seed": 2, "stop_step": 6}
    alone, helped = list(batches(train, **arguments)), list(batches(train, workers=2, **arguments))
    for a, b in zip(alone, helped, strict=True):
        assert (a.step, a.micro, a.offset) == (b.step, b.micro, b.offset)
        assert torch.equal(a.x, b.x) and torch.equal(a.labels, b.labels) and torch.equal(a.index, b.index)


def test_views_are_for_pictures(clips: Clips, caplog: pytest.LogCaptureFixture) -> None:
    (batch,) = batches(clips, batch_size=1, seed=0, stop_step=1, augment=Augment(flip=True))
    assert "--augment.* has no effect on sound" in caplog.text and batch.x.shape == (1, 1, CROP)
