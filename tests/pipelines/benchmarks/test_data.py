"""The benchmark `data`: what a wait is, what it compares, prints and writes, on tiny models.

Left out: how fast anything is, the other loaders (`test_loaders.py`), and memory
(`test_loading_memory.py`).
"""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.benchmarks.data import speed as benchmark_data
from pipelines.benchmarks.data import waits as training_waits
from pipelines.benchmarks.data.speed import DataBenchmark, loading, pace, training_speed
from pipelines.benchmarks.data.waits import Run, random_tokens
from pipelines.benchmarks.registry import Spread
from pipelines.data.batches import load_splits
from pipelines.data.config import DataConfig
from pipelines.presets import PRIORS, TOKENIZERS
from pipelines.run.command_line import Preset
from pipelines.tokens.windows import Windows
from pipelines.training.options import PriorSize, PriorTraining, TokenizerTraining
from tests.helpers.running import assert_refused, read, run_script
from tests.helpers.tiny import audio_config, bottleneck_config, codec, image_config, tokenizer
from tokenizer import TokenizerConfig

WORDS = ("data", "--workers", 0, 1, "--turns", 1, "--steps", 1, "--warm-up", 1, "--batches", 2)
PLACES = {"tokenloom, decoded", "tokenloom, on access"}


class Clock:
    """A clock that only `pass_by` moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (training_waits, benchmark_data):
        monkeypatch.setattr(module.time, "perf_counter", lambda: clock.now)
    return clock


@pytest.fixture
def tiny_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Presets `pictures`, `sound` and `vae` in seconds, and priors to go with them."""
    losses = {"pictures": {"l2": 1.0}, "sound": {"l1": 1.0}, "vae": {"l2": 1.0}}
    kinds = {"pictures": "vq", "sound": "rvq", "vae": "gaussian"}
    for name, kind in kinds.items():
        sound = name == "sound"
        model = TokenizerConfig(
            audio_config() if sound else image_config(), bottleneck_config(kind), losses[name]
        )
        data = DataConfig(path="embedded:speech" if sound else "embedded:emoji")
        preset = TokenizerTraining(batch_size=4, data=data, model=model)
        monkeypatch.setitem(TOKENIZERS, name, Preset(lambda preset=preset: preset, ""))
    prior = PriorTraining(batch_size=4, seconds=0.2, model=PriorSize(dim=24, depth=1, heads=2))
    for name in ("small", "speech"):
        monkeypatch.setitem(PRIORS, name, Preset(lambda: prior, ""))


# What is measured


def slow_run(clock: Clock, seen: list[object]) -> Run:
    """Batches that take 3 seconds, and steps that take 2."""

    def load(workers: int, start: int, stop: int) -> Iterator[int]:
        seen.append((workers, start, stop))
        for step in range(start, stop):
            clock.pass_by(3)
            yield step

    def learn(step: int) -> None:
        clock.pass_by(2)
        seen.append(step)

    return Run(load, learn, torch.device("cpu"))


def test_waiting_is_told_from_working(clock: Clock) -> None:
    seen: list[object] = []
    run = slow_run(clock, seen)
    waits = run.steps(2, workers=0, warm_up=1)
    assert waits == ([3, 3], [2, 2]) and waits.idle == [0.6, 0.6]
    assert run.steps(1, workers=2, warm_up=0) == ([3], [2])
    # Steps go on where they ended; the loader has more to do than it is asked for.
    assert seen == [(0, 0, 4), 0, 1, 2, (2, 3, 9), 3]


def test_idle_shares_and_what_training_uses(clock: Clock) -> None:
    options = DataBenchmark(steps=2, turns=3, warm_up=1)
    values = training_speed({("slow", 1): slow_run(clock, [])}, batch_size=8, options=options)
    assert values["used"] == 4.0  # a step without its wait takes 2 seconds
    row = values["training"]["slow"]["1"]
    assert row == {"idle": Spread(0.6, 0.6, 0.6), "idle_of_all": 0.6, "step_ms": Spread(5000, 5000, 5000)}


def test_loaders_are_compared_per_example(clock: Clock) -> None:
    def load(seconds: float, rows: int) -> Iterator[tuple[torch.Tensor]]:
        clock.pass_by(100)  # its start
        while True:
            clock.pass_by(seconds)
            yield (torch.zeros(rows),)

    assert pace(lambda: load(3.0, 6), warm_up=1, count=2) == 0.5
    options = DataBenchmark(batches=2, turns=2, warm_up=1)
    loads = {("ours", 0): lambda: load(1.0, 4), ("peer", 0): lambda: load(6.0, 6)}
    values = loading(loads, "ours", used=2.0, options=options)
    assert values["ours"]["0"]["per_second"].median == 4 and values["ours"]["0"]["headroom"].median == 2
    assert values["peer"]["0"]["slower"] == Spread(4, 4, 4) and values["peer"]["0"]["headroom"].median == 0.5


def test_random_tokens_are_shaped_as_those_that_are_encoded() -> None:
    tok = tokenizer()
    pictures = load_splits(DataConfig(limit=9), tok.modality)
    info, rows = random_tokens(tok, pictures, 4.0)
    codes, labels = rows.rows(slice(None))
    x = pictures.train.take(np.arange(9))[0].float()
    assert codes.shape == tok.encode(x).shape == (9, info.num_codebooks, *info.grid)
    assert labels.tolist() == list(pictures.train.labels) and codes.unique().numel() == tok.codebook_size
    tok = codec()
    sound = load_splits(DataConfig(path="embedded:speech", limit=3), tok.modality)
    info, windows = random_tokens(tok, sound, 0.3)
    assert isinstance(windows, Windows) and info.grid == (80,)  # 16000 / 60 frames a second
    frames = [tok.encode(sound.train.x(i)[None]).shape[2] for i in range(3)]
    assert windows.clips.lengths.tolist() == frames


# The script


def test_the_script_prints_and_writes(tiny_presets: None, tmp_path: Path) -> None:
    words = (*WORDS, "--data.limit", 6, "--presets", "pictures", "sound", "vae", "--output", tmp_path)
    done = run_script("benchmark", *words)
    values = read(tmp_path / "benchmark-data.json")
    assert (values["benchmark"], values["turns"], values["steps"]) == ("data", 1, 1)
    assert list(values["runs"]) == ["pictures", "prior of pictures", "sound", "prior of sound", "vae"]
    assert "vae has no codes" in done.out and "memory" not in values
    peers = {"pictures": {"DataLoader, Pillow", "DataLoader, datasets"}, "sound": {"DataLoader, soundfile"}}
    for name, run in values["runs"].items():
        prior = name.startswith("prior")
        ours = {"tokenloom"} if prior else PLACES
        theirs = {"DataLoader, tensors"} if prior else peers["sound" if name == "sound" else "pictures"]
        assert run["batch_size"] == 4 and run["used"] > 0
        assert run["training"].keys() == ours and run["loaders"].keys() == ours | theirs
        for by_workers in (*run["training"].values(), *run["loaders"].values()):
            assert list(by_workers) == (["0"] if prior else ["0", "1"])
        for row in itertools.chain(*(w.values() for w in run["training"].values())):
            assert 0 < row["idle"]["low"] <= row["idle"]["median"] <= row["idle"]["high"] < 1
            assert 0 < row["idle_of_all"] < 1
        first = "tokenloom" if prior else "tokenloom, on access"
        assert run["beside"] == first and f"time / that of {first}, above" in done.out
        assert run["loaders"][first]["0"]["slower"] == {"median": 1, "low": 1, "high": 1}
        for name in (*ours, *theirs):
            assert name in done.out
    for part in (values["device"], values["command"], "share of a training step", "loaders alone"):
        assert part in done.out
    packages = {"tokenloom", "python", "torch", "datasets", "pillow", "soundfile", "torchaudio"}
    assert values["versions"].keys() == packages


def test_other_data(tiny_presets: None, tmp_path: Path, pictures: Path) -> None:
    words = (*WORDS, "--presets", "pictures", "--data.path", pictures, "--no-prior", "--output", tmp_path)
    run_script("benchmark", *words)
    assert list(read(tmp_path / "benchmark-data.json")["runs"]) == ["pictures"]


def test_wrong_words_are_named(tiny_presets: None, tmp_path: Path, pictures: Path) -> None:
    flags = {"--" + f.name.replace("_", "-") for f in dataclasses.fields(DataBenchmark)}
    text = run_script("benchmark", "data", "--help").out
    wanted = flags - {"--path", "--limit"} | {"--data.path", "--data.limit"}
    assert [flag for flag in wanted if flag not in text] == []
    for words, named in (
        (("--presets", "emojis"), ("--presets emojis is unknown", "emoji, ")),
        (("--data.path", pictures), ("--data.path is for one preset, got 2",)),
        (("--presets", "sound", "--data.path", pictures), ("12 pictures, expected sound files",)),
        (("--presets", "emoji", "image-256"), ("different precision",)),
        (("--steps", 0), ("steps is 0",)),
        (("--turns", 0), ("turns is 0",)),
        (("--warm-up", -1), ("warm_up is -1",)),
        (("--workers", -1), ("workers is (-1,)",)),
        (("--memory-pictures", 5), ("memory_pictures is 5",)),
        (("--memory-hours", 0), ("memory_hours is 0",)),
    ):
        assert_refused(run_script("benchmark", "data", *words, code=None), *named)
